"""Signatures against datasketch, hashes against xxhash, similarities against Python sets."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.errors import UsageError
from prefkit.pairs import minhash

WORDS = st.text(st.characters(exclude_characters=" ", exclude_categories=["Zs", "Cc", "Cs"]), min_size=1, max_size=12)
TEXTS = st.lists(st.lists(WORDS, min_size=1, max_size=40).map(" ".join), min_size=1, max_size=6)


def word_ngrams(text: str, n: int) -> set[bytes]:
    words = text.split(" ")
    return {" ".join(words[i : i + n]).encode() for i in range(max(1, len(words) - n + 1))}


@given(TEXTS, st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_shingles_are_xxh64_of_word_ngrams(texts: list[str], n: int) -> None:
    hashes, offsets = minhash.shingles(texts, n)
    for i, text in enumerate(texts):
        expected = sorted({xxhash.xxh64_intdigest(gram) for gram in word_ngrams(text, n)})
        assert hashes[offsets[i] : offsets[i + 1]].tolist() == expected


@given(TEXTS)
@settings(max_examples=40, deadline=None)
def test_signatures_equal_datasketch(texts: list[str]) -> None:
    hashes, offsets = minhash.shingles(texts, 5)
    signatures = minhash.signatures(hashes, offsets, minhash.permutations(64, seed=7))
    for text, signature in zip(texts, signatures, strict=True):
        theirs = MinHash(64, seed=7, scheme="affine32", hashfunc=lambda g: xxhash.xxh64_intdigest(g) & 0xFFFFFFFF)
        theirs.update_batch(list(word_ngrams(text, 5)))
        assert signature.tolist() == theirs.hashvalues.tolist()


def test_long_inputs_take_the_four_lane_path_of_xxh64() -> None:
    text = "x" * 1000 + " " + "é漢" * 321
    hashes, _ = minhash.shingles([text], 2)
    assert hashes.tolist() == [xxhash.xxh64_intdigest(text.encode())]


@given(TEXTS.filter(lambda texts: len(texts) > 1))
@settings(max_examples=40, deadline=None)
def test_jaccard_is_that_of_the_sets(texts: list[str]) -> None:
    hashes, offsets = minhash.shingles(texts, 2)
    one, other = word_ngrams(texts[0], 2), word_ngrams(texts[1], 2)
    assert minhash.jaccard(hashes, offsets, 0, 1) == pytest.approx(len(one & other) / len(one | other))


def test_band_keys_are_equal_exactly_where_the_rows_are() -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in rng.integers(0, 12, 8)) for _ in range(200)]
    hashes, offsets = minhash.shingles(texts, 3)
    signatures = minhash.signatures(hashes, offsets, minhash.permutations(16, seed=1))
    for band in range(8):
        rows = signatures[:, 2 * band : 2 * band + 2]
        keys = minhash.band_keys(rows.T)
        same_rows = (rows[:, None] == rows[None, :]).all(axis=2)
        assert (same_rows == (keys[:, None] == keys[None, :])).all()


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_keep_the_promised_recall_at_the_threshold(threshold: float) -> None:
    bands, rows = minhash.bands_and_rows(threshold, 128)
    assert bands * rows <= 128
    assert 1 - (1 - threshold**rows) ** bands >= 0.98


def test_a_threshold_that_so_few_permutations_cannot_find() -> None:
    with pytest.raises(UsageError, match="more than 128 permutations"):
        minhash.bands_and_rows(0.01, 128)
