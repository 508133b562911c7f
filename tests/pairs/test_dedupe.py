"""Clusters against brute force over all pairs."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from prefkit.pairs import dedupe, engine, minhash
from prefkit.pairs.engine import InThisProcess, Task
from prefkit.pairs.text import canonical
from tests.pairs.raw import nearly, sentence


def write_part(folder: Path, texts: list[str], options: dedupe.Dedupe) -> Path:
    """A part as `read` leaves it, as far as `dedupe` looks at it. Ids are those of the canonical text."""
    folder.mkdir()
    hashes, offsets = minhash.shingles([canonical(text) for text in texts], options.sketching.ngram)
    signatures = minhash.signatures(hashes, offsets, options.sketching.permutations).T
    ids = np.array([[hash(canonical(text)) & 0xFFFFFFFFFFFF, 0] for text in texts], np.uint64).reshape(-1, 2)
    arrays = {"prompt_ids": ids, "shingles": hashes, "counts": np.diff(offsets), "signatures": signatures}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def representatives(tmp_path: Path, parts: list[list[str]], options: dedupe.Dedupe) -> list[int]:
    folders = [write_part(tmp_path / f"part{i}", texts, options) for i, texts in enumerate(parts)]

    def run(name: str, tasks: list[Task]) -> None:
        engine.run(tasks, InThisProcess(), lambda task: None)

    found = dedupe.find(folders, options, tmp_path / "work", run)
    return np.load(found / "representative.npy").tolist()


def brute_force(texts: list[str], threshold: float, ngram: int) -> list[int]:
    """First member of each connected component over all pairs of true Jaccard similarity >= threshold."""

    def grams(text: str) -> set[str]:
        words = canonical(text).split()
        return {" ".join(words[i : i + ngram]) for i in range(max(1, len(words) - ngram + 1))}

    sets = [grams(text) for text in texts]
    label = list(range(len(texts)))
    for j in range(len(texts)):
        for i in range(j):
            similar = len(sets[i] & sets[j]) >= threshold * len(sets[i] | sets[j])
            if similar and label[i] != label[j]:
                keep, gone = min(label[i], label[j]), max(label[i], label[j])
                label = [keep if one == gone else one for one in label]
    return label


def corpus(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    texts = [sentence(rng, rng.choice([1, 2, 30, 60])) for _ in range(count)]
    for _ in range(count):
        texts.append(nearly(rng, rng.choice(texts)))  # chains: nearly of nearly of …
    texts += [rng.choice(texts).upper() + "  " for _ in range(count // 2)]
    rng.shuffle(texts)
    return texts


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_clusters_are_those_of_brute_force(tmp_path: Path, seed: int, threshold: float) -> None:
    options = dedupe.dedupe(threshold=threshold, ngram=3)
    texts = corpus(seed, 60)
    cut = len(texts) // 3
    found = representatives(tmp_path, [texts[:cut], [], texts[cut:]], options)
    expected = brute_force(texts, threshold, 3)
    assert len(set(expected)) < len(texts) * 0.6, "the corpus must have clusters for this to mean anything"
    missed = [i for i in range(len(texts)) if found[i] != expected[i]]
    assert len(missed) <= 0.02 * len(texts)  # LSH may miss an edge at the threshold, rarely
    assert all(expected[found[i]] == expected[i] for i in range(len(texts))), (
        "no two that are not similar may be joined"
    )


def test_how_the_input_was_cut_does_not_matter(tmp_path: Path) -> None:
    options = dedupe.dedupe()
    texts = corpus(5, 40)
    whole = tmp_path / "whole"
    pieces = tmp_path / "pieces"
    whole.mkdir()
    pieces.mkdir()
    cut = [texts[i : i + 7] for i in range(0, len(texts), 7)]
    assert representatives(whole, [texts], options) == representatives(pieces, cut, options)


def test_short_prompts_are_one_shingle_and_still_deduplicated(tmp_path: Path) -> None:
    assert representatives(tmp_path, [["Hi", "Hello there", "hi ", "Hello  There"]], dedupe.dedupe()) == [0, 1, 0, 1]


def test_no_prompts_at_all(tmp_path: Path) -> None:
    assert representatives(tmp_path, [[]], dedupe.dedupe()) == []
