"""One score from several: of the annotators of one thing, or of the aspects of one answer; and margins.

All are exact where the arithmetic on paper is (4, 4, 4 and 3, 4, 5 have equal means; 0.1 + 0.2 equals 0.3), since a
difference in the last bit would turn a tie into a preference. That costs a few microseconds a score.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Literal, NamedTuple

import polars as pl

DIGITS = 12  # of a margin that are sure, of the 15 to 17 that a number has

How = Literal["mean", "median", "majority", "unanimous"]


class Score(NamedTuple):
    """A score, or None; `reject` is a reason not to use what was scored, with `detail`."""

    score: float | None
    reject: str | None = None
    detail: str | None = None


def aggregate(values: Sequence[float], how: How) -> Score:
    """One score from those that several annotators gave, all finite; None where nobody did.

    "majority" is the most frequent value and rejects a tie of the most frequent as `annotators_split`; "unanimous"
    rejects any disagreement as `annotators_disagree`.
    """
    if not values:
        return Score(None)
    if how == "mean":
        return Score(float(statistics.mean(values)))
    if how == "median":
        return Score(float(statistics.median(values)))
    counts = Counter(values)
    votes = ", ".join(f"{count} × {value:g}" for value, count in sorted(counts.items()))
    if how == "unanimous":
        return Score(float(values[0])) if len(counts) == 1 else Score(None, "annotators_disagree", votes)
    most = max(counts.values())
    winners = [value for value, count in counts.items() if count == most]
    return Score(float(winners[0])) if len(winners) == 1 else Score(None, "annotators_split", votes)


def weigh(aspects: Sequence[tuple[str, float]], weights: Mapping[str, float]) -> float | None:
    """The weighted sum of an answer's aspects, all finite; None where one that has a weight is missing."""
    values = dict(aspects)
    if not weights.keys() <= values.keys():
        return None
    return float(sum(Decimal(repr(weight)) * Decimal(repr(values[name])) for name, weight in weights.items()))


def on_paper(margin: pl.Expr) -> pl.Expr:
    """A margin to compare with a limit, or with another margin, as if it were counted on paper: 4.1 - 3.1 gives
    0.9999999999999996, which is less than 1, and than 2 - 1."""
    return margin.round_sig_figs(DIGITS)
