"""A part of a raw file -> its rows, each with its number, its bytes, and what is wrong with it if it is no row.

    lines    JSONL: bytes `start` to `end`, one row a line; numbers are line numbers, blank lines are no rows
    array    the items of one JSON array: bytes `start` to `end`, between the commas; numbers count the items
    csv      CSV and TSV with a header; numbers count the records after the header, whatever lines they take
    parquet  row groups `start` to `end`; numbers count the rows of the file

Memory is one block and one row (line, item, record, 100 rows of Parquet). A file must be the one that was indexed: its
size and version (time of change, or what its server calls a version) are compared before the first row and after the
last.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import Struct

from prefkit import urls
from prefkit.errors import DataError
from prefkit.pairs import arrays

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
LONGEST_ROW = 256 << 20  # bytes of a line, characters of a CSV field


@dataclass(frozen=True)
class RawFile:
    """`path` (or URL) to open, the `name` that the data set records, and the `version` that was indexed.

    The path may be a signed URL: print `shown`, never `path`.
    """

    path: str
    name: str
    version: str = ""

    @property
    def is_remote(self) -> bool:
        return urls.is_url(self.path)

    @property
    def shown(self) -> str:
        return urls.shown(self.path) if self.is_remote else self.path

    @property
    def compression(self) -> str:
        return next((suffix for suffix in COMPRESSIONS if self.shown.lower().endswith(suffix)), "")

    def has_suffix(self, *suffixes: str) -> bool:
        """Whether the name, without that of a compression, ends in one of `suffixes`."""
        return self.shown.lower().removesuffix(self.compression).endswith(suffixes)


@dataclass(frozen=True)
class Part:
    """A slice of a file: bytes of JSONL or of an array, row groups of Parquet; to the end of the file if `end` is None.

    `first_row` is the number of its first row (from 1); `limit` how many rows to read at most. `identity` is the
    SHA-256 of the file from its beginning to at least the end of the part.
    """

    file: RawFile
    kind: str  # lines, array, csv, parquet
    start: int
    end: int | None
    first_row: int
    bytes: int
    limit: int | None = None
    identity: str = ""


class RawRow(Struct, frozen=True):
    """One row: its number, its bytes (with white space around them; none for Parquet), and its value where it is
    decoded already (Parquet, CSV).

    `problem` is (reason, detail) of what can be no row; its `text` then is what stands in its place.
    """

    number: int
    text: bytes
    value: dict[str, Any] | None
    problem: tuple[str, str] | None = None


def rows(part: Part) -> Iterator[RawRow]:
    """The rows of a part, in order. Raises DataError where the file cannot be read, or is another than was indexed."""
    reader = {"lines": _line_rows, "array": _array_rows, "csv": _csv_rows, "parquet": _parquet_rows}[part.kind]
    _check_version(part.file)
    for row in reader(part):
        if part.limit is not None and row.number >= part.first_row + part.limit:
            break
        yield row
    _check_version(part.file)


def let_go(part: Part) -> None:
    """Take the bytes of a part that was read out of the page cache, where they are a range of a local file.

    For inputs that memory does not hold: while these pass through the cache, the system must find a page to drop for
    every page that it takes, and drops the files between the steps.
    """
    if part.end is not None and part.kind in ("lines", "array") and not part.file.is_remote:
        uncache(part.file.path, part.start, part.bytes)


def uncache(path: Path | str, start: int = 0, length: int = 0) -> None:
    """Take bytes of a local file out of the page cache, by default all of them."""
    if hasattr(os, "posix_fadvise"):  # which macOS has not
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), start, length, os.POSIX_FADV_DONTNEED)


def state(file: RawFile) -> tuple[int | None, str]:
    """Size in bytes (None where a server does not say) and version of a file as it is now."""
    if file.is_remote:
        return urls.state(file.path)
    found = os.stat(file.path)
    return found.st_size, f"{found.st_size} {found.st_mtime_ns}"


def _check_version(file: RawFile) -> None:
    if file.version and state(file)[1] != file.version:
        raise DataError(f"{file.shown}: changed since it was indexed. Run the same command again.")


def open_raw(file: RawFile, start: int = 0, end: int | None = None) -> io.BufferedReader:
    """The file's own bytes from `start`; of a remote file no more than up to `end` is fetched."""
    if file.is_remote:
        return io.BufferedReader(urls.RemoteFile(file.path, start, end), urls.BLOCK)
    local = io.FileIO(file.path)
    local.seek(start)
    return io.BufferedReader(local, 1 << 18)


def open_text(file: RawFile, start: int = 0, end: int | None = None) -> io.BufferedReader:
    """The file's bytes from `start`, decompressed by its name; reading past a truncation raises OSError."""
    if not file.compression:
        return open_raw(file, start, end)
    import pyarrow as pa

    source = open_raw(file) if file.is_remote else file.path
    stream = io.BufferedReader(pa.input_stream(source, compression=COMPRESSIONS[file.compression]), 1 << 20)
    stream.read(start)
    return stream


def _line_rows(part: Part) -> Iterator[RawRow]:
    number = part.first_row
    left = float("inf") if part.end is None else part.end - part.start
    try:
        with open_text(part.file, part.start, part.end) as stream:
            while left > 0 and (line := stream.readline(LONGEST_ROW)):
                left -= len(line)
                problem = None
                if len(line) == LONGEST_ROW and not line.endswith(b"\n"):
                    rest = _skip_line(stream)
                    left -= rest
                    problem = ("too_long", f"a line of {len(line) + rest:,} bytes; the longest read is {len(line):,}")
                    line = line[:1000]
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if line and not line.isspace():
                    yield RawRow(number, line, None, problem)
                number += 1
    except OSError as error:
        raise cut_short(part.file, error) from error


def _skip_line(stream: io.BufferedReader) -> int:
    """Read to the end of the line; returns how many bytes that were."""
    skipped = 0
    while piece := stream.readline(1 << 20):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped


def cut_short(file: RawFile, error: Exception) -> DataError:
    """What to say where reading a file fails after it was opened."""
    return DataError(f"{file.shown}: cannot be read to its end ({error}). Is the file complete?")


def _array_rows(part: Part) -> Iterator[RawRow]:
    left = float("inf") if part.end is None else part.end - part.start
    try:
        with open_text(part.file, part.start, part.end) as stream:

            def read(size: int) -> bytes:
                nonlocal left
                block = stream.read(int(min(size, left)))
                left -= len(block)
                return block

            for number, item in enumerate(arrays.items(read, closed=part.end is None), part.first_row):
                if text := item.strip():
                    yield RawRow(number, text, None)
    except (OSError, EOFError) as error:
        raise cut_short(part.file, error) from error
    except ValueError as error:
        raise not_an_array(part.file, error) from error


def not_an_array(file: RawFile, error: ValueError) -> DataError:
    return DataError(f"{file.shown}: not a JSON array that can be read to its end ({error}). Write it as JSONL.")


def _csv_rows(part: Part) -> Iterator[RawRow]:
    """Records of a CSV or TSV file as dicts of texts, by the names in its header.

    Quoted as RFC 4180 says (Python's csv module, strict). A record with another number of fields than the header, or
    with broken quotes, is a problem of its own; a quote that is never closed costs all up to the next quote. What the
    quotes of a broken record leave open cannot be known, so the next line is taken for the next record.
    """
    csv.field_size_limit(LONGEST_ROW)
    taken: list[str] = []  # the lines of the record that is being read

    def lines(text: io.TextIOWrapper) -> Iterator[str]:
        for line in text:
            taken.append(line)
            yield line

    try:
        with open_text(part.file) as stream:
            text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
            records = csv.reader(lines(text), delimiter="\t" if part.file.has_suffix(".tsv") else ",", strict=True)
            header = _csv_header(next((names for names in records if names), []), part.file)
            taken.clear()
            number = 1
            while (fields := _csv_fields(records, number, part.file)) is not None:
                if fields:  # else a blank line
                    yield _csv_row(number, "".join(taken), fields, header)
                    number += 1
                taken.clear()
    except OSError as error:
        raise cut_short(part.file, error) from error
    except csv.Error as error:
        raise DataError(f"{part.file.shown}: its header cannot be read as CSV ({error}).") from error


def _refuse_twice(names: list[str], file: RawFile) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{file.shown}: it has two columns {twice!r}. Give each column a name of its own.")


def _csv_header(names: list[str], file: RawFile) -> list[str]:
    _refuse_twice(names, file)
    if any("\udc80" <= character <= "\udcff" for character in "".join(names)):
        raise DataError(f"{file.shown}: its header is no text in UTF-8. Is this a CSV file?")
    if other := next((mark for mark in ";\t|" if len(names) == 1 and mark in names[0]), None):
        raise DataError(
            f"{file.shown}: its header is one column {names[0]!r}, as if {other!r} stood between the fields. Write it "
            "with commas, or with tabs as .tsv."
        )
    return names


def _csv_fields(records: Any, number: int, file: RawFile) -> list[str] | str | None:
    """The fields of the next record, or what is wrong with its quotes; None at the end."""
    try:
        return next(records, None)
    except csv.Error as error:
        if "field limit" in str(error):
            raise DataError(
                f"{file.shown}: record {number:,} has a field of more than {LONGEST_ROW:,} characters. "
                "Is one of its quotes never closed?"
            ) from error
        return str(error)


def _csv_row(number: int, text: str, fields: list[str] | str, header: list[str]) -> RawRow:
    raw = text.encode("utf-8", "surrogateescape")
    if isinstance(fields, str):
        return RawRow(number, raw, None, ("not_csv", fields))
    if len(fields) != len(header):
        return RawRow(number, raw, None, ("not_csv", f"{len(fields)} fields, but the header has {len(header)}"))
    try:
        text.encode()
    except UnicodeEncodeError:
        return RawRow(number, raw, None, ("not_utf8", "the record is no text in UTF-8"))
    return RawRow(number, raw, dict(zip(header, fields, strict=True)))


def parquet(file: RawFile) -> Any:
    """The opened Parquet file; DataError if it is none. Of a remote file, only what is asked for is fetched."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(open_raw(file) if file.is_remote else file.path, pre_buffer=file.is_remote)
        names = opened.schema_arrow.names
    except pa.ArrowInvalid as error:
        raise DataError(f"{file.shown}: not a readable Parquet file ({str(error).splitlines()[0]}).") from error
    _refuse_twice(names, file)
    return opened


def _parquet_rows(part: Part) -> Iterator[RawRow]:
    assert part.end is not None
    number = part.first_row
    if part.start == part.end:
        return
    groups = list(range(part.start, part.end))
    try:
        for batch in parquet(part.file).iter_batches(batch_size=100, row_groups=groups):
            for row in _batch_rows(batch, number):
                yield row
                number += 1
    except OSError as error:
        raise DataError(f"{part.file.shown}: row {number} or soon after cannot be read ({error}).") from error


def _batch_rows(batch: Any, number: int) -> Iterator[RawRow]:
    """The rows of a record batch. Where one holds what Python cannot (text that is not UTF-8, a date after the year
    9999), it is a problem of that row alone."""
    try:
        yield from (RawRow(at, b"", value) for at, value in enumerate(batch.to_pylist(), number))
    except (ValueError, OverflowError) as error:
        if len(batch) > 1:
            for place in range(len(batch)):
                yield from _batch_rows(batch.slice(place, 1), number + place)
            return
        reason = "not_utf8" if isinstance(error, UnicodeDecodeError) else "wrong_type"
        yield RawRow(number, b"", None, (reason, f"a value cannot be read: {error}"))
