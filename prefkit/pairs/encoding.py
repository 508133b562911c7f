"""Rows that fell since they are no UTF-8: whether they look like Windows-1252, said once with the mend.

Text of Western Europe in one byte a letter (Windows-1252 has all that Latin-1 has) shows itself: its bytes beyond ASCII
are letters and typographic marks, and stand alone among ASCII, or in twos that are not UTF-8. Those of other alphabets
stand in longer runs, and most of damaged UTF-8 still are UTF-8. What cannot be told by this is a code page that agrees
with it in most letters.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath

import polars as pl

from prefkit.pairs import tables
from prefkit.pairs.foreign import conversion
from prefkit.pairs.parts import RawFile, open_text
from prefkit.pairs.steps import Source

WESTERN = "CP1252"  # as iconv and Python call it
SAMPLE = 1000  # rows of a file that fell and are looked at
HEAD = 1 << 20  # bytes at its beginning that are
MOST = 0.9  # of the bytes beyond ASCII
LONGEST_RUN = 2  # as in größer
BEYOND_ASCII = re.compile(rb"[\0\x80-\xff]+")  # and what text in one byte a letter never has
MARKS = "‘’“”‚„–—…€«»°§¿¡"
UNLIKELY = "ÿ"  # the byte 0xFF, which damage and byte order marks are made of


def remarks(sources: Sequence[Source], read: Sequence[Path]) -> list[str]:
    """A sentence about the files whose rows fell and look like that; `read` are the folders of all parts, in order."""
    folders = iter(read)
    files = [(given.file, [next(folders) for _ in given.parts()]) for given in sources]
    western = [(file, count) for file, parts in files if (count := _fallen(parts)) and _is_western(file, parts)]
    if not western:
        return []
    file, total = western[0][0], sum(count for _, count in western)
    more = f" and {len(western) - 1:,} more" if len(western) > 1 else ""
    name = PurePath(file.shown).name
    return [
        f"{total:,} row{'s' * (total != 1)} of {name}{more}: not UTF-8, as if in {WESTERN}. "
        f"Convert and build again: {conversion(file, WESTERN)}"
    ]


def _is_western(file: RawFile, parts: Sequence[Path]) -> bool:
    """Whether the rows that fell look like that, and the file besides: a command would spoil rows that are UTF-8."""
    fallen = list(_raw(parts))
    if not fallen:
        return False
    with open_text(file) as stream:
        return is_western([stream.read(HEAD), *fallen])


def is_western(texts: Iterable[bytes]) -> bool:
    """Whether texts that are not UTF-8 look like Windows-1252."""
    runs = [run for text in texts for run in BEYOND_ASCII.findall(text)]
    letters = b"".join(runs).decode(WESTERN, "replace")
    short = sum(len(run) <= LONGEST_RUN and not run.decode(errors="ignore") for run in runs)
    likely = sum((letter.isalpha() or letter in MARKS) and letter != UNLIKELY for letter in letters)
    return bool(runs) and short >= MOST * len(runs) and likely >= MOST * len(letters)


def _fallen(parts: Sequence[Path]) -> int:
    """Rows of a file that are not UTF-8."""
    return sum(
        count
        for folder in parts
        for _, reason, is_row, count in json.loads((folder / "counts.json").read_text())["by_reason"]
        if is_row and reason == "not_utf8"
    )


def _raw(parts: Sequence[Path]) -> Iterator[bytes]:
    """The bytes of the first of them; rows of Parquet have none."""
    wanted = (pl.col("reason") == "not_utf8") & pl.col("raw").is_not_null()
    rejects = (rows for folder in parts for rows in tables.read(folder / "rejects.arrow"))
    return itertools.islice((raw for rows in rejects for raw in rows.filter(wanted)["raw"]), SAMPLE)
