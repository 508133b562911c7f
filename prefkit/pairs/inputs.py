"""Raw files -> parts of bounded size (see `parts` for how their rows are read).

JSONL, one JSON array, CSV and TSV (each also as .gz and .zst), and Parquet, by path or by URL (see `urls`). JSONL is
cut at newlines into parts of about `chunk_bytes`, a JSON array between its items, a Parquet file into row groups. What
is compressed is one part, since it has no place to begin but its start; so is CSV, where a newline may be in quotes.

Indexing reads every file once: its SHA-256, its cuts, and how many lines stand before each. That costs about as much
as the disk and the hash need (some GB/s; for an array some hundred MB/s), and is what lets parts be read in any order
on any machine and still know their line numbers. A remote file so goes over the network twice, once to be indexed and
once for its rows: line numbers must be known before parts are read, and no server tells a SHA-256. A part fetches only
its own bytes.
"""

from __future__ import annotations

import glob
import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from prefkit import urls
from prefkit.errors import DataError, UsageError
from prefkit.pairs import arrays
from prefkit.pairs.parts import (
    COMPRESSIONS,
    Part,
    RawFile,
    RawRow,
    not_an_array,
    open_raw,
    open_text,
    parquet,
    rows,
    state,
)

__all__ = ["Indexed", "Part", "RawFile", "RawRow", "expand", "index", "name_files", "rows", "size", "whole"]

TEXTS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
SUFFIXES = (*TEXTS, ".parquet")

Place = Path | str  # of a local file, or the URL of a remote one


class Indexed(NamedTuple):
    """What indexing found: identity of the file, and its parts."""

    size: int
    sha256: str
    parts: list[Part]


def expand(given: list[str], base: Path, outside: Place | None = None) -> list[Place]:
    """Files, folders and globs (relative to `base`, or URLs) in the given order; folders and globs sorted by name.

    A folder gives all its raw files, but no hidden ones and none under `outside`. An hf:// URL names the commit that
    its revision stands for now. Raises UsageError where an input matches nothing or is of an unknown kind.
    """
    places: list[Place] = []
    for name in given:
        found = _remote(name, outside) if urls.is_url(name) else _local(name, base, outside)
        shown = urls.shown(name) if urls.is_url(name) else str(base / name) if name else repr(name)
        if not found:
            raise UsageError(f"{shown}: no such file, folder with raw files, or glob with a match.")
        for file in found:
            if not _known(_name(file)):
                raise UsageError(f"{shown_place(file)}: not JSONL, JSON, CSV or Parquet (also .gz, .zst) by its name.")
        places += found
    return places


def _remote(url: str, outside: Place | None) -> Sequence[Place]:
    ours = f"{outside}".rstrip("/") + "/"
    return [file for file in urls.files(url, lambda name: _known(_name(name))) if not file.startswith(ours)]


def _local(name: str, base: Path, outside: Place | None) -> Sequence[Place]:
    path = base / name
    if name and path.is_dir():
        found = sorted(file for file in path.rglob("*") if _is_raw(file, path, outside))
    elif name and path.is_file():
        found = [path]
    else:
        matches = (base / match for match in glob.glob(name, root_dir=base, recursive=True))
        found = sorted(match for match in matches if match.is_file())
    return [Path(os.path.abspath(file)) for file in found]


def _is_raw(file: Path, folder: Path, outside: Place | None) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    ours = isinstance(outside, Path) and file.resolve().is_relative_to(outside.resolve())
    return not hidden and not ours and file.is_file() and _known(file.name)


def _known(name: str) -> bool:
    name = name.lower()
    for compression in COMPRESSIONS:
        if name.endswith(compression):
            return name.removesuffix(compression).endswith(TEXTS)
    return name.endswith(SUFFIXES)


def _name(place: Place) -> str:
    return _components(place)[-1]


def _components(place: Place) -> tuple[str, ...]:
    return place.parts if isinstance(place, Path) else urls.components(place)


def shown_place(place: Place) -> str:
    """A place as it may be printed: a URL without its secrets."""
    return str(place) if isinstance(place, Path) else urls.shown(place)


def name_files(groups: Sequence[Sequence[Place]], taken: Sequence[str] = ()) -> list[list[RawFile]]:
    """Give every file a name to be recorded: as few of its last path components as keep all names apart, also from
    those that are `taken`.

    Names so do not depend on where the inputs lie, and hold no secret of a URL. Raises UsageError for a file that is
    given twice.
    """
    places = [place for group in groups for place in group]
    paths = [_components(place) for place in places]
    for place, path in zip(places, paths, strict=True):
        if not "".join(path).isprintable():
            raise UsageError(
                f"{shown_place(place)!a}: a file name with characters that are no text cannot be recorded."
            )
    if len(set(paths)) < len(paths):
        twice = next(place for place, path in zip(places, paths, strict=True) if paths.count(path) > 1)
        raise UsageError(f"{shown_place(twice)}: given twice among the inputs.")
    parts = 1
    used = set(taken)
    while len(names := {"/".join(path[-parts:]) for path in paths}) < len(paths) or names & used:
        parts += 1
        if parts > max(map(len, paths)):
            raise UsageError(
                f"{min(names & used)}: the data set has rows of a file of this name; give this one another."
            )
    return [[RawFile(str(place), "/".join(_components(place)[-parts:])) for place in group] for group in groups]


def size(file: RawFile) -> int:
    """Size of a file in bytes; 0 where a server does not say. Raises OSError or DataError where it is not there."""
    return state(file)[0] or 0


def index(file: RawFile, chunk_bytes: int) -> Indexed:
    """Hash a file and cut it into at least one part. Raises DataError where it cannot be read.

    The parts remember the version of the file, so that rows are only read of what was indexed.
    """
    try:
        expected, version = state(file)
        file = replace(file, version=version)
        if file.has_suffix(".parquet"):
            found = _index_parquet(file, chunk_bytes)
        elif file.has_suffix(".csv", ".tsv"):
            found = _one_part(file, "csv")
        elif (begin := _array_start(file)) is not None:
            found = _one_part(file, "array", begin) if file.compression else _index_array(file, begin, chunk_bytes)
        else:
            found = _one_part(file, "lines") if file.compression else _index_lines(file, chunk_bytes)
        if expected not in (None, found.size) or state(file)[1] != version:
            raise DataError(f"{file.shown}: changed while it was indexed. Run the same command again.")
        return found
    except OSError as error:
        raise DataError(f"{file.shown}: cannot be read ({error.strerror or error}).") from error


def whole(indexed: Indexed) -> Indexed:
    """The same file as one part: for a source that must see all rows of a file together."""
    first, last = indexed.parts[0], indexed.parts[-1]
    part = replace(first, end=last.end, bytes=sum(part.bytes for part in indexed.parts))
    return indexed._replace(parts=[part])


def _hash(file: RawFile) -> tuple[str, int]:
    with open_raw(file) as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return digest, stream.tell()


def _one_part(file: RawFile, kind: str, start: int = 0) -> Indexed:
    digest, total = _hash(file)
    return Indexed(total, digest, [Part(file, kind, start, None, 1, total)])


def _index_lines(file: RawFile, chunk_bytes: int) -> Indexed:
    sha = hashlib.sha256()
    parts: list[Part] = []
    start = offset = lines = first_row = 0
    with open_raw(file) as stream:
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
        if _is_sequential(stream):
            parts, start, first_row = [], 0, 0
    if offset > start or not parts:
        parts.append(Part(file, "lines", start, offset, first_row + 1, offset - start))
    return Indexed(offset, sha.hexdigest(), parts)


def _is_sequential(stream: io.BufferedReader) -> bool:
    """Whether the bytes come from a server that gives no ranges, so that cuts would be of no use."""
    return isinstance(stream.raw, urls.RemoteFile) and stream.raw.sequential


def _index_array(file: RawFile, begin: int, chunk_bytes: int) -> Indexed:
    sha = hashlib.sha256()
    parts: list[Part] = []
    with open_raw(file) as stream:

        def read(size: int) -> bytes:
            block = stream.read(size)
            sha.update(block)
            return block

        read(begin)
        start = offset = begin
        first_row = 1
        try:
            for number, item in enumerate(arrays.items(read, closed=True), 1):
                offset += len(item) + 1
                if offset - start > chunk_bytes:
                    parts.append(Part(file, "array", start, offset - 1, first_row, offset - start))
                    start, first_row = offset, number + 1
        except ValueError as error:
            raise not_an_array(file, error) from error
        total = stream.tell()
        if _is_sequential(stream):
            parts, start, first_row = [], begin, 1
    if offset > start or not parts:
        parts.append(Part(file, "array", start, offset - 1, first_row, offset - start))
    return Indexed(total, sha.hexdigest(), parts)


def _index_parquet(file: RawFile, chunk_bytes: int) -> Indexed:
    metadata = parquet(file).metadata
    parts: list[Part] = []
    start = first_row = rows = size = 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        size += metadata.row_group(group).total_byte_size
        if size >= chunk_bytes or group == metadata.num_row_groups - 1:
            parts.append(Part(file, "parquet", start, group + 1, first_row + 1, size))
            start, first_row, size = group + 1, rows, 0
    digest, total = _hash(file)
    return Indexed(total, digest, parts or [Part(file, "parquet", 0, 0, 1, 0)])


def _array_start(file: RawFile) -> int | None:
    """Where the items of a .json file begin that is an array, and None for others; .jsonl is lines by its name."""
    if not file.has_suffix(".json"):
        return None
    with open_text(file) as stream:
        return arrays.start(stream.read)
