"""Canonical texts (see `text`) of many texts at once, by a compiled kernel.

What a character becomes depends on nothing but itself as long as it is a starter that composes with nothing before it
(Unicode Standard Annex #15), which holds for all but a few thousand of the Basic Multilingual Plane. So a table says of
each such character what is left of it; texts with any other one (combining marks, Hangul jamo, emoji beyond the plane)
go through `text.canonical`, which is the definition.

Cost on one core: 1.7 ns a byte of prompts of which five in six are ASCII; `text.canonical` takes 6 to 8 times as long.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from prefkit.pairs.blake2b import digests
from prefkit.pairs.compiled import compiled
from prefkit.pairs.packed import Packed, hexadecimal, read_only
from prefkit.pairs.text import OTHER_SPACE, canonical

PLANE = 0x10000
GROWTH = 3  # of a character's bytes, at most; those that become more are left to `text.canonical`

# Ranges whose characters are what they are: ideographs, and Hangul syllables. A test compares them with Python's data.
THEMSELVES = [range(0x3400, 0x4DC0), range(0x4E00, 0xA000), range(0xAC00, 0xD7A4)]
OTHERS = [range(0x3400), range(0x4DC0, 0x4E00), range(0xA000, 0xAC00), range(0xF900, PLANE)]
VOWELS_AND_TAILS = [*map(chr, range(0x1161, 0x1176)), *map(chr, range(0x11A8, 0x11C3))]


def canonical_texts(texts: Packed, fold_case: bool = True) -> Packed:
    """The canonical text of each text."""
    mapped, starts = _table(fold_case)
    count = len(texts.ends) - 1
    data = np.empty(GROWTH * len(texts.data), np.uint8)
    ends = np.zeros(count + 1, np.int64)
    is_left = np.zeros(count, np.bool_)
    _map(texts.data, texts.ends, mapped, starts, data, ends, is_left)
    found = Packed(read_only(data[: ends[-1]]), read_only(ends))
    if not is_left.any():
        return found
    pieces, raw = found.bytes(), texts.data.tobytes()
    for number in np.flatnonzero(is_left).tolist():
        text = raw[texts.ends[number] : texts.ends[number + 1]].decode()
        pieces[number] = canonical(text, fold_case).encode()
    return Packed.of_bytes(pieces)


def identities(roles: pl.Series, texts: Packed, turns: Sequence[int]) -> tuple[pl.Series, Packed]:
    """`text.identity` of many prompts, given by their turns (`turns` of each, with role and canonical text): their ids,
    and the canonical text of all turns of each."""
    ids = hexadecimal(digests([roles, texts.column()], turns))
    if len(turns) == len(roles):
        return ids, texts
    pieces, ends = texts.bytes(), itertools.accumulate(turns, initial=0)
    together = [b" ".join(filter(None, pieces[first:last])) for first, last in itertools.pairwise(ends)]
    return ids, Packed.of_bytes(together)


@functools.cache
def _table(fold_case: bool) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """What each character of the plane becomes, in UTF-8, and where that begins; nothing for those left to `text`."""
    becomes = [b""] * PLANE
    for point in itertools.chain(*THEMSELVES):
        becomes[point] = chr(point).encode()
    others = [chr(point) for point in itertools.chain(*OTHERS) if point != ord("\n")]
    unfit = {character for character in others if unicodedata.combining(character)} | {*VOWELS_AND_TAILS}
    for decomposition in filter(None, map(unicodedata.decomposition, others)):
        first, _, second = decomposition.partition(" ")
        if second and not first.startswith("<"):
            unfit.add(chr(int(second, 16)))
    plain = unicodedata.normalize("NFKC", "\n".join(others))  # nothing composes with a line's end, nor moves over it
    folded = plain.casefold() if fold_case else plain
    for character, left, text in zip(others, plain.split("\n"), folded.encode().split(b"\n"), strict=True):
        if len(text) <= GROWTH * len(character.encode()) and unfit.isdisjoint(character + left):
            becomes[ord(character)] = text
    for space in [*map(chr, range(128)), *OTHER_SPACE]:
        if space.isspace():
            becomes[ord(space)] = b" "
    mapped = Packed.of_bytes(becomes)
    return mapped.data, mapped.ends.astype(np.int32)


@compiled
def _map(data: Any, ends: Any, mapped: Any, starts: Any, out: Any, out_ends: Any, is_left: Any) -> None:
    """Canonical texts into `out`; an empty one, and a mark in `is_left`, for those that the table cannot tell.

    Of ASCII, the table's first 128 bytes are what each character becomes.
    """
    to = 0
    for text in range(len(ends) - 1):
        at, end, begin = ends[text], ends[text + 1], to
        spaces: Any = np.uint8(1)  # whether a space stands before, or nothing
        while at < end:
            byte = data[at]
            if byte < 0x80:
                out[to] = mapped[byte]
                space = np.uint8(mapped[byte] == 0x20)
                to += 1 - (space & spaces)
                spaces = space
                at += 1
                continue
            point, width = _decode(data, at)
            if point < 0 or starts[point] == starts[point + 1]:
                is_left[text] = True
                to = begin
                break
            for i in range(starts[point], starts[point + 1]):
                out[to] = mapped[i]
                space = np.uint8(mapped[i] == 0x20)
                to += 1 - (space & spaces)
                spaces = space
            at += width
        if spaces and to > begin:
            to -= 1
        out_ends[text + 1] = to


@compiled
def _decode(data: Any, at: Any) -> Any:
    """The character at a byte above ASCII, and how many bytes it has; -1 beyond the plane."""
    one, two = np.int64(data[at]), np.int64(data[at + 1]) & 0x3F
    if one < 0xE0:
        return (one & 0x1F) << 6 | two, 2
    if one < 0xF0:
        return (one & 0x0F) << 12 | two << 6 | np.int64(data[at + 2]) & 0x3F, 3
    return -1, 4
