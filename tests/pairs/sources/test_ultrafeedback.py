"""The quirks of raw UltraFeedback, one by one."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefkit.pairs.records import BadRow, Message, Rated
from prefkit.pairs.sources.ultrafeedback import Row, ultrafeedback


def rated(*completions: dict[str, Any], **options: Any) -> list[Rated]:
    return list(ultrafeedback(msgspec.convert({"instruction": "Why?", "completions": completions}, Row), **options))


def aspects(*ratings: Any) -> dict[str, Any]:
    return {f"aspect{i}": {"Rating": rating, "Rationale": "…", "Type": "None"} for i, rating in enumerate(ratings)}


def score(completion: dict[str, Any], **options: Any) -> float | None:
    return rated(completion, **options)[0].completions[0].score


def test_score_comes_from_the_named_place() -> None:
    answer = {"overall_score": 7.5, "fine-grained_score": 4.25, "annotations": aspects("5", "2", "N/A")}
    assert score(answer) == 7.5
    assert score(answer, score="fine_grained") == 4.25
    assert score(answer, score="mean_aspects") == 3.5


def test_unratable_aspects_are_left_out() -> None:
    answer = {"annotations": aspects("N/A", "0", "4", None, "five", 3)}
    assert rated(answer)[0].completions[0].aspects() == [("aspect2", 4.0), ("aspect5", 3.0)]


def test_lists_of_ratings_count_with_their_mean() -> None:
    answer = {"annotations": {"rubric": [{"Rating": "5"}, {"Rating": "4"}, {"Rating": "N/A"}]}}
    assert rated(answer)[0].completions[0].aspects() == [("rubric", 4.5)]


@pytest.mark.parametrize(
    ("ratings", "expected"),
    [(("1", "2"), 1.0), (("2", "2"), 1.0), (("5", "4"), 10.0), (("4", "5", "N/A"), 10.0)],
)
def test_a_ten_that_the_aspects_decide(ratings: tuple[str, ...], expected: float) -> None:
    answer = {"overall_score": 10, "annotations": aspects(*ratings)}
    assert score(answer) == expected
    assert rated(answer)[0].completions[0].reject is None
    assert score(answer, repair_tens=False) == 10


@pytest.mark.parametrize("ratings", [("3",), ("4", "4"), ("2", "3"), (), ("N/A",)])
def test_a_ten_that_nobody_can_decide_is_rejected(ratings: tuple[str, ...]) -> None:
    answer = rated({"overall_score": 10, "annotations": aspects(*ratings)})[0].completions[0]
    assert answer.reject == "ambiguous_ten"


def test_only_overall_scores_have_the_bug() -> None:
    answer = {"fine-grained_score": 10.0, "overall_score": 10, "annotations": aspects("3")}
    assert rated(answer, score="fine_grained")[0].completions[0].reject is None


def test_system_prompts_are_dropped_or_compared_within() -> None:
    answers = [{"custom_system_prompt": prompt, "response": prompt or "-"} for prompt in ("A", "B", "A", None)]
    assert [message.role for message in rated(*answers)[0].prompt] == ["user"]
    groups = rated(*answers, system_prompt="keep")
    neither = [{"custom_system_prompt": prompt, "response": "-"} for prompt in ("", None)]
    assert len(rated(*neither, system_prompt="keep")) == 1, "one prompt, so one set of answers"
    assert [[answer.index for answer in group.completions] for group in groups] == [[0, 2], [1], [3]]
    assert groups[0].prompt == [Message("system", "A"), Message("user", "Why?")]
    assert groups[2].prompt == [Message("user", "Why?")]


def test_a_row_without_completions_is_bad() -> None:
    with pytest.raises(BadRow, match="no_completions"):
        rated()


def test_numbers_written_as_text_and_words_that_are_none() -> None:
    answer = {"overall_score": "7.5", "annotations": aspects(10**400, "4")}
    assert score(answer) == 7.5
    assert score(answer, score="mean_aspects") == 4
    assert score({"overall_score": "N/A"}) is None
    for text in ("1_0", "٤", "inf", "nan", "", "1e999", "0x4"):
        assert score({"overall_score": text}) is None, text
    assert score({"annotations": aspects(True, 2)}, score="mean_aspects") == 2, "true is no rating"


@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=7), min_size=1, max_size=6), st.randoms())
def test_means_do_not_depend_on_the_order_of_the_aspects(ratings: list[list[int]], rng: random.Random) -> None:
    def mean(lists: list[list[int]]) -> float | None:
        return score(
            {"annotations": {f"a{i}": [{"Rating": str(one)} for one in of] for i, of in enumerate(lists)}},
            score="mean_aspects",
        )

    assert mean(ratings) == mean(rng.sample(ratings, len(ratings)))
