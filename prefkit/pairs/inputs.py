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
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from prefkit.errors import DataError, UsageError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
COMPRESSIONS = (".gz", ".zst")


@dataclass(frozen=True)
class RawFile:
    """`path` to open, and `name`, relative to the folder that all inputs share, which is what the data set records."""

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
    """What indexing found: identity of the file and its parts. `lines` is None where it would need decompression."""

    size: int
    sha256: str
    parts: list[Part]


class RawRow(NamedTuple):
    """One row: its number, its JSON text (empty for Parquet), and the decoded dict for Parquet."""

    number: int
    text: bytes
    value: dict[str, Any] | None


def find_files(inputs: list[str], base: Path) -> list[RawFile]:
    """Expand files, folders and globs (relative to `base`) in the given order; folders and globs sorted by name.

    Raises UsageError where an input matches nothing, is of an unknown kind, or is given twice.
    """
    paths: list[Path] = []
    for given in inputs:
        path = base / given
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.is_file() and _known(p) and not p.name.startswith("."))
        elif path.is_file():
            found = [path]
        else:
            found = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
        if not found:
            raise UsageError(f"{path}: no such file, folder with raw files, or glob with a match.")
        for file in found:
            if not _known(file):
                raise UsageError(f"{file}: not JSONL, JSON or Parquet (also .gz, .zst) by its name.")
        paths += [Path(os.path.abspath(file)) for file in found]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UsageError(f"{twice}: given twice among the inputs.")
    root = Path(os.path.commonpath([path.parent for path in paths]))
    return [RawFile(str(path), path.relative_to(root).as_posix()) for path in paths]


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
    """Whether the first character that is no white space opens a JSON array."""
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

    return io.BufferedReader(pa.input_stream(file.path, compression="detect"))


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
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{part.file.path}: not a JSON array that can be read to its end ({error}). Write it as JSONL."
        ) from error
    for number, item in enumerate(items, 1):
        yield RawRow(number, bytes(item), None)


def _parquet_rows(part: Part) -> Iterator[RawRow]:
    assert part.end is not None
    number = part.first_row
    if part.start == part.end:
        return
    for batch in _parquet(part.file).iter_batches(batch_size=1000, row_groups=list(range(part.start, part.end))):
        for value in batch.to_pylist():
            yield RawRow(number, b"", value)
            number += 1
