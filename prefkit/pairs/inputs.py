"""Raw files -> parts of bounded size -> raw rows, each with its number and its bytes.

JSONL (plain, .gz, .zst), one JSON array, and Parquet. A plain JSONL file is cut at newlines into parts of about
`chunk_bytes`, a Parquet file into row groups; a compressed file or a JSON array is one part. Lines are parsed
one by one, so a bad line costs that line alone and keeps its number.

Indexing reads every file once: its SHA-256, its cuts, and how many lines stand before each. That costs about as much as
the disk and the hash need (some GB/s), and is what lets parts be read in any order on any machine and still know
their line numbers.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from prefkit.errors import DataError, UsageError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True)
class RawFile:
    """`path` to open, and the `name` that the data set records (see `name_files`)."""

    path: str
    name: str

    @property
    def compression(self) -> str:
        suffix = Path(self.path).suffix.lower()
        return suffix if suffix in COMPRESSIONS else ""

    @property
    def is_parquet(self) -> bool:
        return self.path.lower().endswith(".parquet")


@dataclass(frozen=True)
class Part:
    """A slice of a file: bytes of plain JSONL, row groups of Parquet, or all of it (`end` None).

    `first_row` is the number of its first row (from 1); `limit` how many rows to read at most.
    """

    file: RawFile
    kind: str  # lines, array, parquet
    start: int
    end: int | None
    first_row: int
    bytes: int
    limit: int | None = None


class Indexed(NamedTuple):
    """What indexing found: identity of the file, and its parts."""

    size: int
    sha256: str
    parts: list[Part]


class RawRow(NamedTuple):
    """One row: its number, its JSON text (empty for Parquet), and the decoded dict for Parquet."""

    number: int
    text: bytes
    value: dict[str, Any] | None


def expand(given: list[str], base: Path, outside: Path | None = None) -> list[Path]:
    """Files, folders and globs (relative to `base`) in the given order; folders and globs sorted by name.

    A folder gives all its raw files, but no hidden ones and none under `outside`. Raises UsageError where an input
    matches nothing or is of an unknown kind.
    """
    paths: list[Path] = []
    for name in given:
        path = base / name
        if name and path.is_dir():
            found = sorted(file for file in path.rglob("*") if _is_raw(file, path, outside))
        elif name and path.is_file():
            found = [path]
        else:
            found = sorted(
                base / match for match in glob.glob(name, root_dir=base, recursive=True) if (base / match).is_file()
            )
        if not found:
            raise UsageError(
                f"{path if name else repr(name)}: no such file, folder with raw files, or glob with a match."
            )
        for file in found:
            if not _known(file):
                raise UsageError(f"{file}: not JSONL, JSON or Parquet (also .gz, .zst) by its name.")
        paths += [Path(os.path.abspath(file)) for file in found]
    return paths


def name_files(groups: Sequence[Sequence[Path]]) -> list[list[RawFile]]:
    """Give every file a name to be recorded: as few of its last path components as keep all names apart.

    Names so do not depend on where the inputs lie. Raises UsageError for a file that is given twice.
    """
    paths = [path for group in groups for path in group]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UsageError(f"{twice}: given twice among the inputs.")
    for path in paths:
        if not str(path).isprintable():
            raise UsageError(f"{str(path)!a}: a file name with characters that are no text cannot be recorded.")
    parts = 1
    while len({path.parts[-parts:] for path in paths}) < len(paths):
        parts += 1
    return [[RawFile(str(path), "/".join(path.parts[-parts:])) for path in group] for group in groups]


def _is_raw(file: Path, folder: Path, outside: Path | None) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    ours = outside is not None and file.resolve().is_relative_to(outside.resolve())
    return not hidden and not ours and file.is_file() and _known(file)


def _known(path: Path) -> bool:
    name = path.name.lower()
    for compression in COMPRESSIONS:
        if name.endswith(compression):
            return name.removesuffix(compression).endswith((".jsonl", ".ndjson", ".json"))
    return name.endswith(SUFFIXES)


def index(file: RawFile, chunk_bytes: int) -> Indexed:
    """Hash a file and cut it into at least one part. Raises DataError where it cannot be read."""
    try:
        if file.is_parquet:
            return _index_parquet(file, chunk_bytes)
        if file.compression or _is_array(file):
            digest, size = _hash(file.path)
            kind = "array" if _is_array(file) else "lines"
            return Indexed(size, digest, [Part(file, kind, 0, None, 1, size)])
        return _index_lines(file, chunk_bytes)
    except OSError as error:
        raise DataError(f"{file.path}: cannot be read ({error.strerror or error}).") from error


def _hash(path: str) -> tuple[str, int]:
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return digest, stream.tell()


def _index_lines(file: RawFile, chunk_bytes: int) -> Indexed:
    sha = hashlib.sha256()
    parts: list[Part] = []
    start = offset = lines = first_row = 0
    with open(file.path, "rb") as stream:
        while block := stream.read(min(chunk_bytes, 1 << 20)):
            sha.update(block)
            if offset - start >= chunk_bytes and (newline := block.find(b"\n")) >= 0:
                cut = offset + newline + 1
                lines += 1
                parts.append(Part(file, "lines", start, cut, first_row + 1, cut - start))
                start, first_row = cut, lines
                lines += block.count(b"\n", newline + 1)
            else:
                lines += block.count(b"\n")
            offset += len(block)
    if offset > start or not parts:
        parts.append(Part(file, "lines", start, offset, first_row + 1, offset - start))
    return Indexed(offset, sha.hexdigest(), parts)


def _index_parquet(file: RawFile, chunk_bytes: int) -> Indexed:
    metadata = _parquet(file).metadata
    parts: list[Part] = []
    start = first_row = rows = size = 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        size += metadata.row_group(group).total_byte_size
        if size >= chunk_bytes or group == metadata.num_row_groups - 1:
            parts.append(Part(file, "parquet", start, group + 1, first_row + 1, size))
            start, first_row, size = group + 1, rows, 0
    digest, total = _hash(file.path)
    return Indexed(total, digest, parts or [Part(file, "parquet", 0, 0, 1, 0)])


def _parquet(file: RawFile) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file.path)
    except pa.ArrowInvalid as error:
        raise DataError(f"{file.path}: not a readable Parquet file ({str(error).splitlines()[0]}).") from error


def _is_array(file: RawFile) -> bool:
    """Whether a .json file begins, after white space, with the bracket of an array; .jsonl is lines by its name."""
    if not file.path.lower().removesuffix(file.compression).endswith(".json"):
        return False
    with _open(file) as stream:
        while block := stream.read(4096):
            if stripped := block.removeprefix(b"\xef\xbb\xbf").lstrip():
                return stripped.startswith(b"[")
    return False


def _open(file: RawFile) -> io.BufferedReader:
    """The file's bytes, decompressed by its name; reading past a truncation raises OSError."""
    if not file.compression:
        return open(file.path, "rb")
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(file.path, compression=COMPRESSIONS[file.compression]))


def rows(part: Part) -> Iterator[RawRow]:
    """The rows of a part, in order, with their numbers; blank lines count as lines but are no rows."""
    reader = {"lines": _line_rows, "array": _array_rows, "parquet": _parquet_rows}[part.kind]
    for row in reader(part):
        if part.limit is not None and row.number >= part.first_row + part.limit:
            return
        yield row


def _line_rows(part: Part) -> Iterator[RawRow]:
    try:
        with _open(part.file) as stream:
            if part.start:
                stream.seek(part.start)
            left = part.end - part.start if part.end is not None else None
            for number, line in enumerate(stream, part.first_row):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if text := line.strip():
                    yield RawRow(number, text, None)
                if left is not None and (left := left - len(line)) <= 0:
                    return
    except OSError as error:
        raise DataError(f"{part.file.path}: cannot be read to its end ({error}). Is the file complete?") from error


def _array_rows(part: Part) -> Iterator[RawRow]:
    with _open(part.file) as stream:
        text = stream.read().removeprefix(b"\xef\xbb\xbf")
    try:
        items = msgspec.json.decode(text, type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError):
        items = [msgspec.Raw(item) for item in _lenient_items(text, part.file)]
    for number, item in enumerate(items, 1):
        yield RawRow(number, bytes(item), None)


def _lenient_items(text: bytes, file: RawFile) -> list[bytes]:
    """Items of an array that is JSON only to Python (NaN, lone surrogates): each is judged as a row of its own."""
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{file.path}: not a JSON array that can be read to its end ({error}). Write it as JSONL."
        ) from error
    return [json.dumps(item).encode() for item in items]


def _parquet_rows(part: Part) -> Iterator[RawRow]:
    assert part.end is not None
    number = part.first_row
    if part.start == part.end:
        return
    groups = list(range(part.start, part.end))
    try:
        for batch in _parquet(part.file).iter_batches(batch_size=100, row_groups=groups):
            for value in batch.to_pylist():
                yield RawRow(number, b"", value)
                number += 1
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{part.file.path}: row {number} or soon after cannot be read ({error}).") from error
