"""NVIDIA's HelpSteer3-Preference: two answers a row, compared by up to three people (arXiv:2505.11475).

A preference is a whole number from -3 (the first is much better) over 0 (about the same) to 3 (the second is much
better). The better answer scores the strength of the preference and the other 0, so a pair's margin is the strength;
0 ties both. The preference is the data set's overall one, or is made from the individual ones: "mean" and "median"
keep the strength; "majority" and "unanimous" look only at which answer each person chose, and the strength is 1.

The files in `feedback/`, `edit/` and `edit_quality/` have other columns and are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from prefkit.pairs import scores
from prefkit.pairs.records import BadRow, Completion, Rated, messages
from prefkit.pairs.scores import How, Score

STRONGEST = 3


class Vote(msgspec.Struct):
    score: int | None = None


class Row(msgspec.Struct):
    context: list[Any]
    response1: str | msgspec.UnsetType | None = msgspec.UNSET
    response2: str | msgspec.UnsetType | None = msgspec.UNSET
    overall_preference: int | None = None
    individual_preference: list[Vote] | None = None
    domain: str | None = None
    language: str | None = None


def helpsteer3(
    row: Row,
    *,
    preference: Literal["overall", "mean", "median", "majority", "unanimous"] = "overall",
    source_column: Literal["domain", "language"] = "domain",
) -> Iterator[Rated]:
    """HelpSteer3's preference rows: a conversation, two answers, and which one people prefer, and how much."""
    if row.response1 is msgspec.UNSET or row.response2 is msgspec.UNSET:
        raise BadRow("other_subset", 'no "response1" and "response2": only the "preference" files compare two answers')
    prompt = messages(row.context, field="context", text_role="user")
    if preference == "overall":
        found = Score(None if row.overall_preference is None else _in_range(row.overall_preference))
    else:
        votes = [_in_range(vote.score) for vote in row.individual_preference or [] if vote.score is not None]
        found = _vote(votes, preference)
    first = second = found.score
    if found.score is not None:
        first, second = max(0.0, -found.score), max(0.0, found.score)
    answers = [
        Completion(0, row.response1, first, reject=found.reject, detail=found.detail),
        Completion(1, row.response2, second, reject=found.reject, detail=found.detail),
    ]
    yield Rated(prompt, answers, (row.domain if source_column == "domain" else row.language) or "helpsteer3")


def _vote(votes: list[float], how: How) -> Score:
    if how in ("majority", "unanimous"):
        votes = [float((vote > 0) - (vote < 0)) for vote in votes]
    return scores.aggregate(votes, how)


def _in_range(preference: int) -> float:
    if not -STRONGEST <= preference <= STRONGEST:
        raise BadRow("preference_out_of_range", f"a preference is {preference}, not from -{STRONGEST} to {STRONGEST}")
    return float(preference)
