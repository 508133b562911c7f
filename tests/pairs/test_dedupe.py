"""Clusters against brute force over all pairs."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from prefkit.pairs import dedupe, engine, unite
from prefkit.pairs.engine import InThisProcess, Task
from prefkit.pairs.records import Message
from prefkit.pairs.text import canonical, prompt_id
from tests.pairs.raw import nearly, sentence


def representatives(folder: Path, texts: list[str], options: dedupe.Dedupe, buckets: int) -> list[int]:
    """Of each text the ordinal of the first of its cluster, with distinct prompts dealt to buckets as `unite` does."""
    ids = [prompt_id([Message("user", text)]) for text in texts]
    first = {identity: number for number, identity in reversed(list(enumerate(ids)))}
    rows = [
        {
            "prompt_id": one,
            "ordinal": at,
            "file": 0,
            "origin_row": at,
            "canonical": canonical(texts[at]),
        }
        for one, at in sorted(first.items())
    ]
    types = {"prompt_id": pl.String, "ordinal": pl.Int64, "file": pl.Int64, "origin_row": pl.Int64}
    table = pl.DataFrame(rows, schema=types | {"canonical": pl.String})
    folders, counts = [], []
    for number in range(buckets):
        inside = [int(one[:16], 16) * buckets >> 64 == number for one in table["prompt_id"]]
        mine = table.filter(pl.Series(inside, dtype=pl.Boolean))
        folders.append(folder / f"bucket{number}")
        counts.append(len(mine))
        folders[-1].mkdir(parents=True)
        for name, array in unite.sketch(mine, options.uniting.sketching)._asdict().items():
            np.save(folders[-1] / f"{name}.npy", array)

    def run(name: str, tasks: list[Task]) -> None:
        engine.run(tasks, InThisProcess(), lambda task: None)

    found = dedupe.find(folders, counts, options, folder / "work", run)
    ordinals = np.array(table["ordinal"])
    heads = {one: first[one] for one in first}
    members, heads_of = (np.load(found / f"{name}.npy") for name in ("members", "representative"))
    for member, head in zip(members, heads_of, strict=True):
        heads[table["prompt_id"][int(member)]] = int(ordinals[head])
    return [heads[one] for one in ids]


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
    found = representatives(tmp_path, texts, options, 4)
    expected = brute_force(texts, threshold, 3)
    assert len(set(expected)) < len(texts) * 0.6, "the corpus must have clusters for this to mean anything"
    missed = [i for i in range(len(texts)) if found[i] != expected[i]]
    assert len(missed) <= 0.02 * len(texts)  # LSH may miss an edge at the threshold, rarely
    assert all(expected[found[i]] == expected[i] for i in range(len(texts))), (
        "no two that are not similar may be joined"
    )


def test_buckets_ranges_and_blocks_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = dedupe.dedupe()
    texts = corpus(5, 40)
    expected = representatives(tmp_path / "whole", texts, options, 1)
    monkeypatch.setattr(dedupe, "KEYS_A_TASK", 7)
    monkeypatch.setattr(dedupe, "SHINGLES_AT_ONCE", 100)
    assert representatives(tmp_path / "pieces", texts, options, 8) == expected
    assert len(list((tmp_path / "pieces" / "work" / "similar").iterdir())) > 100


def test_short_prompts_are_one_shingle_and_still_deduplicated(tmp_path: Path) -> None:
    texts = ["Hi", "Hello there", "hi ", "Hello  There"]
    assert representatives(tmp_path, texts, dedupe.dedupe(), 2) == [0, 1, 0, 1]


def test_no_prompts_at_all(tmp_path: Path) -> None:
    assert representatives(tmp_path, [], dedupe.dedupe(), 1) == []
