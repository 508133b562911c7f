"""Digests of many texts at once against hashlib's of each."""

from __future__ import annotations

import hashlib
import itertools

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.pairs.blake2b import BLOCK, LANES, TOGETHER, digests
from prefkit.pairs.packed import hexadecimal


def by_hashlib(parts: list[str]) -> str:
    framed = b"".join(len(part.encode()).to_bytes(8, "little") + part.encode() for part in parts)
    return hashlib.blake2b(framed, digest_size=16).hexdigest()


def columns(rows: list[tuple[str, ...]], width: int) -> list[pl.Series]:
    return [pl.Series([row[place] for row in rows], dtype=pl.String) for place in range(width)]


TEXT = st.text(max_size=5) | st.builds(str.__mul__, st.sampled_from(["a", "é", "😀"]), st.integers(0, 3 * BLOCK))


@given(st.integers(1, 3).flatmap(lambda width: st.lists(st.tuples(*[TEXT] * width), max_size=40)), st.data())
@settings(deadline=None)
def test_digests_are_hashlibs(rows: list[tuple[str, ...]], data: st.DataObject) -> None:
    width = len(rows[0]) if rows else 1
    found = hexadecimal(digests(columns(rows, width)))
    assert found.to_list() == [by_hashlib(list(row)) for row in rows]

    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=6)))
    bounds = [0, *cuts, len(rows)]
    together = hexadecimal(digests(columns(rows, width), [last - first for first, last in itertools.pairwise(bounds)]))
    texts = [list(itertools.chain(*rows[first:last])) for first, last in itertools.pairwise(bounds)]
    assert together.to_list() == [by_hashlib(text) for text in texts]


@pytest.mark.parametrize("count", [TOGETHER - 1, TOGETHER, 2 * TOGETHER + int(LANES) + 1])
def test_every_length_around_blocks_in_any_lane(count: int) -> None:
    texts = [("x" * (7 * number % (4 * BLOCK)),) for number in range(count)]
    found = hexadecimal(digests(columns(texts, 1)))
    assert found.to_list() == [by_hashlib([text]) for (text,) in texts]


def test_one_long_text_among_short_ones() -> None:
    texts = [("a",), ("long" * 1_000_000,), *[("b" * number,) for number in range(100)]]
    assert hexadecimal(digests(columns(texts, 1))).to_list() == [by_hashlib([text]) for (text,) in texts]
