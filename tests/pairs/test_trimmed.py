"""Trimmed texts against polars' own `strip_chars`."""

from __future__ import annotations

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from prefkit.pairs.read import ALWAYS
from prefkit.pairs.trimmed import trimmed

TEXT = st.text(st.sampled_from("ab \n\t\r\x0b\x1c\x85\xa0\u2003\u200b\u3000é😀"), max_size=20)


@given(st.lists(st.none() | TEXT))
def test_trimmed_is_strip_chars_and_an_empty_answer_is_one_of_white_space(texts: list[str | None]) -> None:
    table = pl.DataFrame({"response": texts}, {"response": pl.String})
    expected = table["response"].str.strip_chars()
    assert table.select(trimmed(pl.col("response")))["response"].equals(expected, null_equal=True)
    assert table.lazy().select(trimmed(pl.col("response")).hash()).collect()["response"].equals(expected.hash())
    kept = table.select(keep=ALWAYS["empty_response"].keep)["keep"]
    assert kept.equals(expected.str.len_bytes() > 0, null_equal=True)
