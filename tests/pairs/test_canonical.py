"""Canonical texts by the kernel against Python's own Unicode functions; ids and joined turns against `identity`."""

from __future__ import annotations

import itertools
import unicodedata

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from prefkit.pairs import minhash
from prefkit.pairs.canonical import canonical_texts, identities
from prefkit.pairs.packed import Packed
from prefkit.pairs.records import Message
from prefkit.pairs.text import identity

TEXTS = st.lists(
    st.text(max_size=6)
    | st.text(st.characters(max_codepoint=0x3FF), max_size=8)
    | st.sampled_from(["  ", "\x85", "\u2028", "\u3000", "é", "e\u0301", "각", "ᆨ", "ﬁ", "½", "ΑΣ", "😀", "\x1c", "…"])
).map("".join)


def definition(text: str, fold_case: bool) -> str:
    normal = unicodedata.normalize("NFKC", text)
    return " ".join((normal.casefold() if fold_case else normal).split())


def texts_of(packed: Packed) -> list[str]:
    return [text.decode() for text in packed.bytes()]


@given(st.lists(TEXTS, max_size=6), st.booleans())
@example(["a", "\u0301", " ", "", "b "], True)
@settings(max_examples=500, deadline=None)
def test_kernel_is_what_the_definition_says(texts: list[str], fold_case: bool) -> None:
    found = canonical_texts(Packed.of(texts), fold_case)
    assert texts_of(found) == [definition(text, fold_case) for text in texts]
    assert found.column().to_list() == texts_of(found)


@pytest.mark.parametrize("fold_case", [True, False])
def test_every_single_character_amid_others(fold_case: bool) -> None:
    """Alone, before and after a character that may compose with it, and twice."""
    codes = itertools.chain(range(0xD800), range(0xE000, 0x11000), range(0x11000, 0x110000, 101))
    characters = [chr(code) for code in codes]
    texts = [f"{one} e{one}\u0301각{one}{one}Z" for one in characters]
    found = texts_of(canonical_texts(Packed.of(texts), fold_case))
    wrong = [text for text, ours in zip(texts, found, strict=True) if ours != definition(text, fold_case)]
    assert not wrong


ROLES = st.sampled_from(["system", "user", "assistant"])
PROMPTS = st.lists(st.lists(st.builds(Message, ROLES, TEXTS), min_size=1, max_size=4), max_size=5)


@given(PROMPTS)
@settings(deadline=None)
def test_identities_are_those_of_single_prompts(prompts: list[list[Message]]) -> None:
    turns = [turn for prompt in prompts for turn in prompt]
    plain = canonical_texts(Packed.of_column(pl.Series([turn.content for turn in turns], dtype=pl.String)))
    ids, together = identities(
        pl.Series([turn.role for turn in turns], dtype=pl.String), plain, [len(prompt) for prompt in prompts]
    )
    assert list(zip(ids, texts_of(together), strict=True)) == [identity(prompt) for prompt in prompts]


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_components_are_those_of_scipy(given: tuple[int, list[tuple[int, int]]]) -> None:
    count, edges = given
    ends = np.array(edges, np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    lowest = [int(np.flatnonzero(labels == label)[0]) for label in labels]
    assert minhash.components(ends, count).tolist() == lowest
