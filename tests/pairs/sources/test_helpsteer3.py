"""HelpSteer3: a signed preference becomes two scores whose difference is its strength."""

from __future__ import annotations

from typing import Any

import pytest

from tests.pairs.sources.reading import one, rated, read, scores, turns

FOUND = read("helpsteer3", "helpsteer3")


def row(*votes: int, **changes: Any) -> dict[str, Any]:
    base = {"context": [{"role": "user", "content": "Q"}], "response1": "A", "response2": "B"}
    return base | {"individual_preference": [{"score": vote} for vote in votes]} | changes


def test_the_fixture_is_read_as_it_should_be() -> None:
    assert scores(FOUND[1]) == [2, 0]
    assert scores(FOUND[2]) == [0, 3]
    assert scores(FOUND[3]) == [0, 0], "a tie stays a tie, and is rejected as one later"
    assert scores(FOUND[4]) == [1, 0]
    assert rated(FOUND[4]).completions[1].response is None
    assert [FOUND[number] for number in (5, 6, 7)] == ["preference_out_of_range", "other_subset", "other_subset"]
    assert not any(rated(FOUND[number]).absolute for number in range(1, 5))
    assert turns(FOUND[2])[1] == ("assistant", "In place or as a copy?")


def test_source_is_the_domain_or_the_language() -> None:
    assert [rated(FOUND[number]).source for number in (1, 2, 3, 4)] == ["general", "code", "stem", "multilingual"]
    assert rated(read("helpsteer3", "helpsteer3", source_column="language")[2]).source == "python"
    assert rated(one("helpsteer3", row(overall_preference=1))).source == "helpsteer3"


@pytest.mark.parametrize(
    ("preference", "votes", "expected"),
    [
        ("mean", (-2, -3, 2), (1, 0)),
        ("median", (-2, -3, 1), (2, 0)),
        ("majority", (2, 3, -1), (0, 1)),
        ("majority", (2, 3), (0, 1)),
        ("majority", (0, 0, -3), (0, 0)),
        ("majority", (2, -1), "annotators_split"),
        ("unanimous", (-1, -3), (1, 0)),
        ("unanimous", (-1, 0), "annotators_disagree"),
        ("mean", (), (None, None)),
    ],
)
def test_individual_preferences(preference: str, votes: tuple[int, ...], expected: Any) -> None:
    found = rated(one("helpsteer3", row(*votes, overall_preference=3), preference=preference))
    rejects = {answer.reject for answer in found.completions}
    if isinstance(expected, str):
        assert rejects == {expected}
    else:
        assert (tuple(scores(found)), rejects) == (expected, {None})


def test_a_preference_that_nobody_states_is_no_score() -> None:
    assert scores(one("helpsteer3", row())) == [None, None]
    assert one("helpsteer3", row(4), preference="mean") == "preference_out_of_range"
    assert one("helpsteer3", row(overall_preference=10**400)) == "preference_out_of_range"
    assert one("helpsteer3", row(overall_preference=1.5)) == "wrong_type"
    assert one("helpsteer3", row(overall_preference=1, context=[{"role": "user"}])) == "wrong_type"


def test_a_person_who_stated_nothing_has_no_vote() -> None:
    nobody = {"score": None}
    found = one("helpsteer3", row(overall_preference=-2, individual_preference=[nobody]))
    assert [answer.score for answer in rated(found).completions] == [2, 0]
    found = one("helpsteer3", row(individual_preference=[nobody, {"score": 3}]), preference="mean")
    assert [answer.score for answer in rated(found).completions] == [0, 3]
