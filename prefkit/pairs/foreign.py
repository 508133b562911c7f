"""What a text file is that is none in UTF-8, by its first bytes, so that one sentence says so and not every row."""

from __future__ import annotations

import codecs
import re
import shlex
from pathlib import PurePath

from prefkit.errors import DataError
from prefkit.pairs.parts import COMPRESSIONS, RawFile, cut_short, open_raw, open_text

HEAD = 64  # bytes
FEWEST = 4  # letters by which text in units of several bytes is known
MAGIC = {".gz": b"\x1f\x8b\x08", ".zst": b"\x28\xb5\x2f\xfd"}
BINARY = {
    MAGIC[".gz"]: "compressed by gzip; its name should end in .gz",
    MAGIC[".zst"]: "compressed by zstd; its name should end in .zst",
    b"PK\x03\x04": "a ZIP archive; unpack it",
    b"PAR1": "Parquet; its name should end in .parquet",
    b"ARROW1": "an Arrow file; save it as Parquet",
    b"\x89HDF": "an HDF5 file; save it as Parquet",
    b"SQLite format 3": "an SQLite database; export the table as CSV",
}
OBJECT = re.compile(rb"(?:\xef\xbb\xbf)?\s*\{\s*\n\s*\"")  # JSON over several lines
ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*\{")
MARKS = {  # byte order marks; that of UTF-32 begins like one of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
WIDE = (("UTF-16LE", 2, 0), ("UTF-16BE", 2, 1), ("UTF-32LE", 4, 0), ("UTF-32BE", 4, 3))


def refuse(file: RawFile) -> None:
    """DataError where a file that is to be read as text is something else, or JSON that is no rows; of a compressed one
    the text is looked at.

    Those on a server are not, since it would be asked once more for each.
    """
    if file.is_remote or file.has_suffix(".parquet"):
        return
    with open_text(file) as stream:
        try:
            head = stream.read(HEAD)
        except OSError as error:
            if not _is_compressed(file):
                tool = COMPRESSIONS[file.compression]
                raise DataError(f"{file.shown}: not compressed by {tool}, which its name says it is.") from error
            raise cut_short(file, error) from error
    what = next((what for magic, what in BINARY.items() if head.startswith(magic)), None)
    if what and not file.compression:
        raise DataError(f"{file.shown}: it is {what}.")
    if encoding := _encoding(head):
        raise DataError(
            f"{file.shown}: it is text in {encoding}, and rows are read as UTF-8. Convert it: "
            f"{conversion(file, encoding)}"
        )
    lines = file.has_suffix(".jsonl", ".ndjson")
    if (lines or file.has_suffix(".json")) and OBJECT.match(head):
        raise DataError(
            f"{file.shown}: an object over several lines, and no rows. Where it only describes the others, give these "
            "alone, as in raw/*.jsonl. Where each object is a row, write it as one line, as jq -c . does; where one "
            "object holds all rows in a list, take them out of it: jq -c '.NAME[]'."
        )
    if lines and ARRAY.match(head):
        raise DataError(f"{file.shown}: it is a JSON array; its name should end in .json{file.compression}.")


def _is_compressed(file: RawFile) -> bool:
    with open_raw(file) as stream:
        return stream.read(len(MAGIC[file.compression])) == MAGIC[file.compression]


def conversion(file: RawFile, encoding: str) -> str:
    """The shell command that writes a file again in UTF-8, beside itself."""
    name, compression = PurePath(file.shown).name, file.compression
    source, target = shlex.quote(name), shlex.quote(f"utf8-{name}")
    if not compression:
        return f"iconv -f {encoding} -t UTF-8 {source} > {target}"
    tool = COMPRESSIONS[compression]
    return f"{tool} -dc {source} | iconv -f {encoding} -t UTF-8 | {tool} > {target}"


def _encoding(head: bytes) -> str | None:
    """The encoding of text that has a mark, or that begins with ASCII in units of several bytes."""
    marked = next((name for mark, name in MARKS.items() if head.startswith(mark) and b"\0" in head), None)
    return marked or next((name for name, width, at in WIDE if _is_wide(head, width, at)), None)


def _is_wide(head: bytes, width: int, at: int) -> bool:
    letters = head[at::width]
    return len(letters) >= FEWEST and letters.isascii() and all(letters) and head.count(0) == len(head) - len(letters)
