"""Sets of comparable answers: the rules over a set, equal prompts kept, merged or dropped, contradictions."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from prefkit.errors import DataError, UsageError
from prefkit.manifest import Manifest
from prefkit.pairs.build import build_pairs
from prefkit.pairs.verify import verify
from tests.pairs.raw import WORDS
from tests.pairs.test_build import pairs_of, pipeline, rejects_of

RATED = """
[build]
language = false
[[build.inputs]]
use = "ultrafeedback"
paths = ["rated.jsonl"]
[build.binarize]
use = "all_pairs"
[build.split]
test = 0.0
"""
MERGED = '[build.dedupe]\non_duplicate = "merge"\n'
COMPARED = RATED.replace("ultrafeedback", "pairs").replace("rated.jsonl", "compared.jsonl")


def rated(prompt: str, **scores: float) -> dict[str, Any]:
    """A row of ratings: scores by answer."""
    completions = [{"response": text, "overall_score": score} for text, score in scores.items()]
    return {"instruction": prompt, "completions": completions}


def compared(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def build(folder: Path, text: str, *overrides: str, **files: list[dict[str, Any]]) -> Manifest:
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = build_pairs(pipeline(folder, *overrides, text=text), folder / "out")
    assert verify(folder / "out") == []
    return record


def found(folder: Path) -> set[tuple[str, str]]:
    sides = [pl.col(side).list.first().struct.field("content") for side in ("chosen", "rejected")]
    return set(pairs_of(folder / "out", "train").select(sides[0], sides[1].alias("other")).rows())


def fell(folder: Path) -> set[tuple[str, int]]:
    if not list((folder / "out" / "rejects").iterdir()):
        return set()
    return set(rejects_of(folder / "out").select("reason", "origin_row").rows())


@pytest.mark.parametrize(
    ("given", "kept", "reasons"),
    [
        ({"a": 3, "b": 2}, {("a", "b")}, set()),
        ({"a": 3, " a ": 2, "b": 1, "c": 0}, {("b", "c")}, {"identical_responses"}),
        ({"a": 3, " a": 3, "b": 1}, {("a", "b")}, {"repeated_response"}),
        ({"a": 3, "": 2, "c": 1}, {("a", "c")}, {"empty_response"}),
        ({"a": 3, "b": 3, "c": 1}, {("a", "c"), ("b", "c")}, set()),
        ({"a": 3, "a ": 2, "b": 1}, set(), {"identical_responses", "too_few_candidates"}),
        ({"a": 3, "b": 3, "c": 3}, set(), {"tied"}),
        ({"a": 3, "": 2, "c": 3}, set(), {"tied", "empty_response"}),
    ],
)
def test_answers_that_contradict_themselves_or_say_nothing(
    tmp_path: Path, given: dict[str, float], kept: set[tuple[str, str]], reasons: set[str]
) -> None:
    other = rated("Something quite different", x=2, y=1)
    build(tmp_path, RATED, rated=[rated("What is it?", **given), other])
    assert found(tmp_path) == kept | {("x", "y")}
    assert {reason for reason, _ in fell(tmp_path)} == reasons


def test_the_first_of_equal_prompts_that_can_give_a_pair_stays(tmp_path: Path) -> None:
    rows = [rated("Same", a=1, b=1), rated("same ", c=2, d=1), rated("SAME", e=3, f=1)]
    build(tmp_path, RATED, rated=rows)
    assert found(tmp_path) == {("c", "d")}
    assert fell(tmp_path) == {("tied", 1), ("exact_duplicate", 3)}


@pytest.mark.parametrize("how", ["", MERGED])
def test_a_dropped_duplicate_names_file_and_row_of_its_twin(tmp_path: Path, how: str) -> None:
    second = '[[build.inputs]]\nuse = "ultrafeedback"\npaths = ["second.jsonl"]\n'
    first = [rated("Another question", z=1, y=2), rated("Same", a=2, b=1)]
    build(tmp_path, how + RATED.replace("[build.binarize]", second + "[build.binarize]"), rated=first, second=first[1:])
    (detail,) = set(rejects_of(tmp_path / "out").filter(pl.col("reason") == "exact_duplicate")["detail"])
    assert detail == "rated.jsonl, row 2 is the same prompt"


def test_merged_ratings_are_compared_with_each_other(tmp_path: Path) -> None:
    rows = [rated("Same", a=5), rated("Other question", z=1), rated("same ", b=3), rated("same", c=4)]
    build(
        tmp_path,
        RATED.replace("[build.binarize]", '[build.dedupe]\non_duplicate = "merge"\n[build.binarize]'),
        rated=rows,
    )
    assert found(tmp_path) == {("a", "b"), ("a", "c"), ("c", "b")}
    assert fell(tmp_path) == {("too_few_candidates", 2)}
    pair = pairs_of(tmp_path / "out").filter(pl.col("margin") == 2).row(0, named=True)
    assert (pair["chosen_row"], pair["rejected_row"]) == (1, 3)
    assert pairs_of(tmp_path / "out")["prompt_id"].n_unique() == 1


def test_merged_ratings_that_contradict_each_other_are_rejected(tmp_path: Path) -> None:
    rows = [rated("Same", a=5, b=1), rated("same ", a=4, c=2), rated("same", b=1, d=0)]
    build(tmp_path, MERGED + RATED, rated=rows)
    assert found(tmp_path) == {("c", "b"), ("c", "d"), ("b", "d")}
    assert fell(tmp_path) == {("identical_responses", 1), ("identical_responses", 2), ("repeated_response", 3)}


def test_an_answer_that_contradicts_itself_names_file_row_and_score_of_the_other(tmp_path: Path) -> None:
    rows = [rated("same", a=5, b=1), rated("same", a=5, c=2), rated("same", a=4, d=0)]
    build(tmp_path, MERGED + RATED, rated=rows)
    fallen = rejects_of(tmp_path / "out").filter(pl.col("reason") == "identical_responses").sort("origin_row")
    other, first = (
        f"rated.jsonl, row {row}, answer 0 is the same text with the score {n}.0" for row, n in ((3, 4), (1, 5))
    )
    assert fallen["detail"].to_list() == [other, other, first]


def test_merged_comparisons_stay_comparisons(tmp_path: Path) -> None:
    rows = [
        compared("Same", "a", "b"),
        compared("same", "c", "d"),
        compared("Same ", "b", "e"),
        compared("SAME", "e", "b"),
        compared("same", "a", "b"),
    ]
    build(tmp_path, MERGED + COMPARED, compared=rows)
    assert found(tmp_path) == {("a", "b"), ("c", "d")}, "a was never compared with d, nor c with b"
    assert fell(tmp_path) == {("contradictory_labels", 3), ("contradictory_labels", 4), ("repeated_pair", 5)}
    assert set(rejects_of(tmp_path / "out").select("origin_row", "detail").rows()) == {
        (3, "compared.jsonl, row 4 prefers the other answer"),
        (4, "compared.jsonl, row 3 prefers the other answer"),
        (5, "compared.jsonl, row 1 has the same pair"),
    }
    build_first = tmp_path / "first"
    build_first.mkdir()
    build(build_first, COMPARED, compared=rows)
    assert found(build_first) == {("a", "b")}


def test_kept_duplicates_do_not_contradict_each_other_either(tmp_path: Path) -> None:
    rows = [compared("Same", "a", "b"), compared("same", "b", "a"), compared("Same", "x", "y")]
    build(
        tmp_path,
        COMPARED.replace("[build.binarize]", '[build.dedupe]\naction = "keep"\n[build.binarize]'),
        compared=rows,
    )
    assert found(tmp_path) == {("x", "y")}
    assert {reason for reason, _ in fell(tmp_path)} == {"contradictory_labels"}


def test_scores_of_different_inputs_are_never_compared(tmp_path: Path) -> None:
    text = RATED.replace(
        "[build.binarize]", '[[build.inputs]]\nuse = "ultrafeedback"\npaths = ["more.jsonl"]\n[build.binarize]'
    )
    text = text.replace("[build.binarize]", MERGED + "[build.binarize]")
    build(tmp_path, text, rated=[rated("Same", a=5, b=3)], more=[rated("same", c=9, d=8), rated("New one", e=2, f=1)])
    assert found(tmp_path) == {("a", "b"), ("e", "f")}
    assert fell(tmp_path) == {("exact_duplicate", 1)}


def test_single_answers_need_merging_and_the_error_says_what_fell(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too_few_candidates"):
        build(tmp_path, RATED, rated=[rated("Same", a=5), rated("same", b=3)])


def words(seed: int, count: int = 40) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(count))


def test_answers_that_repeat_an_earlier_one(tmp_path: Path) -> None:
    one, two, three, four = (words(seed) for seed in range(4))
    rows = [
        rated("First question", **{one: 5, two: 3}),
        rated("Second question", **{two.upper(): 4, three: 3, four: 1}),
        rated("Third question", **{one + " again": 5, words(9): 2}),
        rated("First question", **{words(10): 5, words(11): 1}),
    ]
    scope = '[build.dedupe]\nscope = "response"\n'
    build(tmp_path, scope + RATED, rated=rows)
    assert found(tmp_path) == {(one, two), (three, four), (words(10), words(11))}
    assert fell(tmp_path) == {("exact_duplicate", 2), ("near_duplicate", 3), ("too_few_candidates", 3)}
    details = dict(rejects_of(tmp_path / "out").select("origin_row", "detail").drop_nulls().rows())
    assert details[2] == "rated.jsonl, row 1 has the same text"
    assert details[3].startswith("rated.jsonl, row 1 shares 9")
    pairs = pairs_of(tmp_path / "out")
    both = pairs.filter(pl.col("prompt_id") == pairs.filter(pl.col("chosen_row") == 1)["prompt_id"][0])
    assert both["chosen_row"].to_list() == [1, 4], "equal prompts are kept, in one cluster"
    together = tmp_path / "together"
    together.mkdir()
    build(together, scope.replace("response", "prompt_response") + RATED, rated=[*rows, rows[0]])
    assert fell(together) == {
        ("near_duplicate", 2), ("near_duplicate", 3), ("too_few_candidates", 3), ("exact_duplicate", 5)
    }  # fmt: skip


def test_a_long_prompt_makes_no_duplicates_of_its_answers(tmp_path: Path) -> None:
    """Prompt and answer together are nearly the same text; the answers are not."""
    rows = [rated(words(0, 200), yes=5, no=3), rated(words(0, 200) + " please", yes=4, perhaps=1)]
    build(
        tmp_path,
        '[build.dedupe]\nscope = "prompt_response"\n' + RATED,
        rated=[*rows, rated(words(1, 200), yes=2, no=1)],
    )
    assert found(tmp_path) == {("yes", "no")}
    assert fell(tmp_path) == {("near_duplicate", 2), ("too_few_candidates", 2)}
    assert len(pairs_of(tmp_path / "out")) == 2


def test_a_scope_that_nothing_would_come_of_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing would come"):
        build(tmp_path, '[build.dedupe]\nscope = "response"\naction = "keep"\n' + RATED, rated=[rated("a", x=1, y=2)])
