"""HelpSteer2: five aspects, one score, and conversations written into one text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prefkit.errors import UsageError
from prefkit.pairs.sources.helpsteer2 import WEIGHTS
from tests.pairs.sources.reading import one, only, rated, read, rows, turns

FOUND = read("helpsteer2", "helpsteer2")


def row(**ratings: Any) -> dict[str, Any]:
    return {"prompt": "Q", "response": "A"} | dict.fromkeys(WEIGHTS, 2) | ratings


def test_the_fixture_is_read_as_it_should_be() -> None:
    assert {number: found for number, found in FOUND.items() if isinstance(found, str)} == {
        7: "rating_out_of_range", 8: "not_a_transcript", 9: "other_subset",
    }  # fmt: skip
    assert all(rated(FOUND[number]).absolute for number in range(1, 7))


def test_the_score_is_the_weighted_sum_of_the_aspects() -> None:
    for number in (1, 2, 3, 4):
        raw = rows("helpsteer2")[number - 1]
        expected = np.dot([raw[name] for name in WEIGHTS], list(WEIGHTS.values()))
        assert only(FOUND[number]).score == pytest.approx(expected, abs=1e-12)
        assert only(FOUND[number]).aspects == [(name, raw[name]) for name in WEIGHTS]


def test_sums_that_are_equal_on_paper_are_equal() -> None:
    one_way, other_way = row(correctness=3), row(verbosity=0)  # 0.8 more, and 2 · 0.4 more
    assert only(one("helpsteer2", one_way)).score == only(one("helpsteer2", other_way)).score


def test_one_aspect_or_other_weights_by_option() -> None:
    raw = row(helpfulness=4, verbosity=1)
    assert only(one("helpsteer2", raw, score="helpfulness")).score == 4
    assert only(one("helpsteer2", raw, weights={"helpfulness": 1, "verbosity": -2})).score == 2
    with pytest.raises(UsageError, match="weights"):
        one("helpsteer2", raw, weights={"helpfullness": 1})
    with pytest.raises(UsageError, match=r"raw.jsonl: .* no effect with score"):
        one("helpsteer2", raw, score="helpfulness", weights={"verbosity": 1})
    with pytest.raises(UsageError, match="at least 1"):
        one("helpsteer2", raw, weights={})
    with pytest.raises(UsageError, match="finite"):
        one("helpsteer2", raw, weights={"helpfulness": float("inf")})


def test_a_missing_aspect_that_counts_leaves_no_score() -> None:
    assert only(FOUND[6]).score is None
    assert only(FOUND[6]).reject is None
    assert only(one("helpsteer2", row(verbosity=None), score="correctness")).score == 2


def test_conversations_are_taken_apart() -> None:
    assert turns(FOUND[3]) == [
        ("user", "Name a river."), ("assistant", "The Elbe."), ("user", "And the country of its source?"),
    ]  # fmt: skip
    assert turns(one("helpsteer2", row() | {"prompt": "What is <extra_id_1>User?"})) == [
        ("user", "What is <extra_id_1>User?")
    ]
    assert one("helpsteer2", row() | {"prompt": "Q\n<extra_id_1>Assistant\nA"}) == "not_a_transcript"


def test_several_annotators_become_one_rating() -> None:
    assert dict(only(FOUND[5]).aspects) == pytest.approx(
        {"helpfulness": 11 / 3, "correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 5 / 3}
    )
    raw = row(helpfulness=[4, 4, 3], complexity=[0, 1, 2])
    assert dict(only(one("helpsteer2", raw, aggregate="median")).aspects)["helpfulness"] == 4
    split = only(one("helpsteer2", raw, aggregate="majority"))
    assert (split.reject, split.detail) == ("annotators_split", "complexity: 1 × 0, 1 × 1, 1 × 2")
    kept = only(one("helpsteer2", raw, aggregate="majority", score="helpfulness"))
    assert (kept.reject, kept.score) == (None, 4)


@pytest.mark.parametrize(
    "ratings", [{"coherence": -1}, {"coherence": 4.5}, {"coherence": [4, 5]}, {"coherence": float("nan")}]
)
def test_ratings_off_the_scale(ratings: dict[str, Any]) -> None:
    assert one("helpsteer2", row(**ratings)) == "rating_out_of_range"
