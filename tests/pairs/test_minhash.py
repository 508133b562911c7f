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


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=6), st.integers(1, 8))
@settings(max_examples=150, deadline=None)
def test_shingles_are_xxh64_of_character_ngrams(texts: list[str], n: int) -> None:
    hashes, offsets = minhash.shingles(texts, n, "characters")
    for i, text in enumerate(texts):
        grams = {text[k : k + n].encode() for k in range(max(1, len(text) - n + 1))}
        assert hashes[offsets[i] : offsets[i + 1]].tolist() == sorted(map(xxhash.xxh64_intdigest, grams))


@pytest.mark.parametrize("words", [1, 2, 17, 40, 5000])
def test_hashes_are_sorted_and_distinct_also_of_long_texts_and_of_such_that_repeat_themselves(words: int) -> None:
    draws = np.random.default_rng(0)
    texts = [" ".join(map(str, draws.integers(0, most, words))) for most in (2, 20, 10**9)]
    texts += [text + " " + text for text in texts]
    all_hashes, ends = minhash.ngrams(texts, 3)
    hashes, offsets = minhash.shingles(texts, 3)
    for i in range(len(texts)):
        assert np.array_equal(hashes[offsets[i] : offsets[i + 1]], np.unique(all_hashes[ends[i] : ends[i + 1]]))


@given(TEXTS, st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_ngrams_come_in_order_and_as_often_as_they_stand(texts: list[str], n: int) -> None:
    hashes, offsets = minhash.ngrams([f"{text} {text}" for text in texts], n)
    for i, text in enumerate(texts):
        words = f"{text} {text}".split(" ")
        grams = [" ".join(words[k : k + n]) for k in range(max(1, len(words) - n + 1))]
        expected = [xxhash.xxh64_intdigest(gram.encode()) for gram in grams]
        assert hashes[offsets[i] : offsets[i + 1]].tolist() == expected


@pytest.mark.parametrize("unit", ["words", "characters"])
def test_no_texts_and_empty_texts(unit: minhash.Unit) -> None:
    hashes, offsets = minhash.shingles([], 5, unit)
    assert len(hashes) == 0 and offsets.tolist() == [0]
    assert minhash.signatures(hashes, offsets, minhash.permutations(16, seed=1)).shape == (0, 16)
    hashes, offsets = minhash.shingles(["", "a"], 1, unit)
    assert hashes.tolist() == [xxhash.xxh64_intdigest(b""), xxhash.xxh64_intdigest(b"a")] and offsets.tolist() == [
        0,
        1,
        2,
    ]


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


@given(st.data())
def test_the_order_of_keys_is_that_of_a_stable_sort(data: st.DataObject) -> None:
    """With keys that are equal, that differ in their lowest bits alone, and that differ."""
    some = st.sampled_from([0, 1, 2, 3, 7, 8, 1 << 40, (1 << 40) + 1, (1 << 64) - 2, (1 << 64) - 1])
    keys = np.array(data.draw(st.lists(some | st.integers(0, (1 << 64) - 1))), np.uint64)
    expected = sorted(range(len(keys)), key=keys.tolist().__getitem__)
    assert minhash.order_of(keys).tolist() == expected


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_keep_the_promised_recall_at_the_threshold(threshold: float) -> None:
    bands, rows = minhash.bands_and_rows(threshold, 128)
    assert bands * rows <= 128
    assert 1 - (1 - threshold**rows) ** bands >= 0.98


def test_a_threshold_that_so_few_permutations_cannot_find() -> None:
    with pytest.raises(UsageError, match="more than 128 permutations"):
        minhash.bands_and_rows(0.01, 128)


def components(edges: list[tuple[int, int]], count: int) -> list[int]:
    """The first document of each one's component."""
    label = list(range(count))
    for one, other in edges:
        keep, gone = sorted((label[one], label[other]))
        label = [keep if mine == gone else mine for mine in label]
    return label


@given(
    st.lists(st.frozensets(st.integers(0, 9), min_size=1), min_size=2, max_size=25), st.sampled_from([0.3, 0.6, 1.0])
)
@settings(max_examples=150, deadline=None)
def test_similar_pairs_connect_what_all_pairs_connect(documents: list[frozenset[int]], threshold: float) -> None:
    hashes = np.array([value for document in documents for value in sorted(document)], np.uint64)
    offsets = np.cumsum([0, *map(len, documents)])
    cut = len(documents) // 2
    runs = [range(len(documents)), range(cut), range(cut, len(documents))]
    members = np.array([document for run in runs for document in run])
    bounds = np.cumsum([0, *map(len, runs)])
    found = minhash.similar_pairs(bounds, members, hashes, offsets, threshold)
    for one, other, similarity in found:
        union = documents[one] | documents[other]
        assert one < other and similarity == len(documents[one] & documents[other]) / len(union) >= threshold
    pairs = [(i, j) for j in range(len(documents)) for i in range(j)]
    similar = [
        (i, j) for i, j in pairs if len(documents[i] & documents[j]) >= threshold * len(documents[i] | documents[j])
    ]
    assert components([(i, j) for i, j, _ in found], len(documents)) == components(similar, len(documents))


def test_a_run_of_equal_documents_takes_one_comparison_each(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 300_000
    compared = 0

    def equal(hashes: object, offsets: object, one: int, other: int) -> float:
        nonlocal compared
        compared += 1
        return 1.0

    monkeypatch.setattr(minhash, "jaccard", equal)
    monkeypatch.setattr(minhash, "_root", minhash._root.py_func)  # calls of compiled code from Python are slow
    python = minhash.similar_pairs.py_func
    found = python(np.array([0, count]), np.arange(count), np.empty(0, np.uint64), np.zeros(count + 1, int), 0.7)
    assert len(found) == compared == count - 1
