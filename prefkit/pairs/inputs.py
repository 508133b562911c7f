"""Raw files -> parts of bounded size (see `parts` for how their rows are read).

JSONL, one JSON array, CSV and TSV (each also as .gz and .zst), and Parquet, by path or by URL (see `urls`). JSONL is
cut at newlines into parts of about `chunk_bytes`, a JSON array between its items, a Parquet file into row groups. What
is compressed is one part, since it has no place to begin but its start; so is CSV, where a newline may be in quotes.

Indexing reads every file once: its SHA-256, its cuts, and how many lines stand before each. That costs about as much
as the disk and the hash need (a GB/s; for an array some hundred MB/s), and is what lets parts be read in any order on
any machine and still know their line numbers. Parts are read while later ones are still being cut. A remote file so
goes over the network twice, once to be indexed and once for its rows: line numbers must be known before parts are read,
and no server tells a SHA-256. A part fetches only its own bytes.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prefkit import urls
from prefkit.errors import DataError, UsageError
from prefkit.pairs import arrays, foreign, globs
from prefkit.pairs.parts import (
    COMPRESSIONS,
    Part,
    RawFile,
    RawRow,
    let_go,
    not_an_array,
    open_raw,
    open_text,
    parquet,
    rows,
    state,
)

__all__ = [
    "Index",
    "Indexed",
    "Part",
    "RawFile",
    "RawRow",
    "expand",
    "first_rows",
    "index",
    "let_go",
    "name_files",
    "rows",
    "size",
    "whole",
]

TEXTS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
SUFFIXES = (*TEXTS, ".parquet")
NEWLINE = ord("\n")
BLOCK = 1 << 20

Place = Path | str  # of a local file, or the URL of a remote one


class Indexed(NamedTuple):
    """What indexing found: identity of the file, and its parts."""

    size: int
    sha256: str
    parts: list[Part]


def expand(given: list[str], base: Path, outside: Place | None = None) -> list[Place]:
    """Files, folders and globs (relative to `base` or to ~, or URLs) in the given order; folders and globs sorted.

    A folder gives all its raw files, also those behind links, but no hidden ones and none under `outside`. An hf:// URL
    names the commit that its revision stands for now. Raises UsageError where an input matches nothing or is of an
    unknown kind.
    """
    places: list[Place] = []
    for name in map(os.path.expanduser, given):
        found = _remote(name, outside) if urls.is_url(name) else _local(name, base, outside)
        shown = urls.shown(name) if urls.is_url(name) else str(base / name) if name else repr(name)
        if not found and not urls.is_url(name) and name and (base / name).is_dir():
            raise UsageError(f"{shown}: a folder without raw files; hidden ones, and those in --out, do not count.")
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
        found = sorted(file for file in globs.below(path) if _is_raw(file, outside))
    elif name and path.is_file():
        found = [path]
    else:
        found = globs.matches(name, base)
    return [Path(os.path.abspath(file)) for file in found]


def _is_raw(file: Path, outside: Place | None) -> bool:
    ours = isinstance(outside, Path) and file.resolve().is_relative_to(outside.resolve())
    return not ours and file.is_file() and _known(file.name)


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


def first_rows(file: RawFile, count: int) -> list[RawRow]:
    """The first rows of a file, without reading the rest. Raises DataError where it cannot be read."""
    try:
        foreign.refuse(file)
        if file.has_suffix(".parquet"):
            part = Part(file, "parquet", 0, min(1, parquet(file).metadata.num_row_groups), 1, 0)
        elif file.has_suffix(".csv", ".tsv"):
            part = Part(file, "csv", 0, None, 1, 0)
        else:
            begin = _array_start(file)
            part = Part(file, "lines" if begin is None else "array", begin or 0, None, 1, 0)
        return list(itertools.islice(rows(part), count))
    except OSError as error:
        raise DataError(f"{file.shown}: cannot be read ({error.strerror or error}).") from error


def size(file: RawFile) -> int:
    """Size of a file in bytes; 0 where a server does not say. Raises OSError or DataError where it is not there."""
    return state(file)[0] or 0


class Index:
    """A file being hashed and cut. Its parts come one by one, so that the first are read while the last are not cut."""

    def __init__(self, file: RawFile, chunk_bytes: int):
        self._cutting = _cut(file, chunk_bytes)
        self._parts: list[Part] = []
        self._end: tuple[int, str] | None = None

    def parts(self) -> Iterator[Part]:
        """All parts, at least one, each as soon as it is known. Raises DataError where the file cannot be read.

        They remember the version of the file, so that rows are only read of what was indexed.
        """
        for number in itertools.count():
            while number == len(self._parts):
                if self._end is not None:
                    return
                self._go_on()
            yield self._parts[number]

    def _go_on(self) -> None:
        try:
            self._parts.append(next(self._cutting))
        except StopIteration as end:
            self._end = end.value

    def finish(self) -> Indexed:
        """Size, SHA-256 and parts of the whole file."""
        parts = list(self.parts())
        assert self._end
        return Indexed(*self._end, parts)


def index(file: RawFile, chunk_bytes: int) -> Indexed:
    """Hash a file and cut it into at least one part. Raises DataError where it cannot be read."""
    return Index(file, chunk_bytes).finish()


def whole(parts: Sequence[Part]) -> Part:
    """The parts of a file as one: for a source that must see all rows of a file together."""
    first, last = parts[0], parts[-1]
    return replace(first, end=last.end, bytes=sum(part.bytes for part in parts), identity=last.identity)


def _cut(file: RawFile, chunk_bytes: int) -> Generator[Part, None, tuple[int, str]]:
    """The parts of a file; returns its size and SHA-256."""
    try:
        expected, version = state(file)
        file = replace(file, version=version)
        foreign.refuse(file)
        begin = _array_start(file)
        sha = hashlib.sha256()
        with open_raw(file) as stream:
            if file.compression or file.has_suffix(".csv", ".tsv", ".parquet"):
                _hash(stream, sha)
                yield from _hashed_parts(file, begin, chunk_bytes, stream.tell(), sha.hexdigest())
            elif file.is_remote:  # the server may turn out to give no ranges, so that cuts would be of no use
                parts = list(_cut_text(file, stream, sha, begin, chunk_bytes))
                yield from [whole(parts)] if _is_sequential(stream) else parts
            else:
                yield from _cut_text(file, stream, sha, begin, chunk_bytes)
            size = stream.tell()
        if expected not in (None, size) or state(file)[1] != version:
            raise DataError(f"{file.shown}: changed while it was indexed. Run the same command again.")
        return size, sha.hexdigest()
    except OSError as error:
        raise DataError(f"{file.shown}: cannot be read ({error.strerror or error}).") from error


def _hash(stream: io.BufferedReader, sha: Any) -> None:
    while block := stream.read(BLOCK):
        sha.update(block)


def _hashed_parts(file: RawFile, begin: int | None, chunk_bytes: int, size: int, digest: str) -> Iterator[Part]:
    """The parts of what is not cut by its bytes: row groups of Parquet; all of what is compressed, and of CSV."""
    if not file.has_suffix(".parquet"):
        kind = "csv" if file.has_suffix(".csv", ".tsv") else "lines" if begin is None else "array"
        yield Part(file, kind, begin or 0, None, 1, size, identity=digest)
        return
    metadata = parquet(file).metadata
    start = first_row = rows = weight = 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        weight += metadata.row_group(group).total_byte_size
        if weight >= chunk_bytes or group == metadata.num_row_groups - 1:
            yield Part(file, "parquet", start, group + 1, first_row + 1, weight, identity=digest)
            start, first_row, weight = group + 1, rows, 0
    if not metadata.num_row_groups:
        yield Part(file, "parquet", 0, 0, 1, 0, identity=digest)


def _cut_text(
    file: RawFile, stream: io.BufferedReader, sha: Any, begin: int | None, chunk_bytes: int
) -> Iterator[Part]:
    if begin is None:
        return _cut_lines(file, stream, sha, chunk_bytes)
    return _cut_array(file, stream, sha, begin, chunk_bytes)


def _cut_lines(file: RawFile, stream: io.BufferedReader, sha: Any, chunk_bytes: int) -> Iterator[Part]:
    start = offset = lines = first_row = 0
    while block := stream.read(min(chunk_bytes, BLOCK)):
        newline = block.find(b"\n") if offset - start >= chunk_bytes else -1
        sha.update(block[: newline + 1])
        if newline >= 0:
            cut = offset + newline + 1
            yield Part(file, "lines", start, cut, first_row + 1, cut - start, identity=sha.hexdigest())
            start, first_row = cut, lines + 1
        sha.update(block[newline + 1 :])
        lines += int(np.count_nonzero(np.frombuffer(block, np.uint8) == NEWLINE))
        offset += len(block)
    if offset > start or not offset:
        yield Part(file, "lines", start, offset, first_row + 1, offset - start, identity=sha.hexdigest())


def _cut_array(file: RawFile, stream: io.BufferedReader, sha: Any, begin: int, chunk_bytes: int) -> Iterator[Part]:
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
                yield Part(file, "array", start, offset - 1, first_row, offset - start, identity=sha.hexdigest())
                start, first_row = offset, number + 1
    except ValueError as error:
        raise not_an_array(file, error) from error
    if offset > start:
        yield Part(file, "array", start, offset - 1, first_row, offset - start, identity=sha.hexdigest())


def _is_sequential(stream: io.BufferedReader) -> bool:
    return isinstance(stream.raw, urls.RemoteFile) and stream.raw.sequential


def _array_start(file: RawFile) -> int | None:
    """Where the items of a .json file begin that is an array, and None for others; .jsonl is lines by its name."""
    if not file.has_suffix(".json"):
        return None
    with open_text(file) as stream:
        return arrays.start(stream.read)
