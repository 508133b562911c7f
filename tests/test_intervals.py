"""Intervals against scipy, a textbook's example, and data whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from prefkit import intervals


def test_intervals_are_those_of_scipy() -> None:
    from scipy.stats import binomtest

    for hits, trials in ((0, 5), (3, 10), (400, 500), (7, 7)):
        expected = binomtest(hits, trials).proportion_ci(0.95, "wilson")
        assert intervals.wilson(hits / trials, trials) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962), (81, 263, 0.2553, 0.3662)],
)
def test_wilson(successes: int, trials: int, low: float, high: float) -> None:
    """The last one is Newcombe's example (1998, Statistics in Medicine 17)."""
    assert intervals.wilson(successes / trials, trials) == pytest.approx((low, high), abs=1e-4)


def test_pairs_of_a_prompt_count_as_the_independent_pairs_that_they_are_worth() -> None:
    rng = np.random.default_rng(0)
    values = (rng.random(400) < 0.7).astype(float)
    alone = intervals.independent_pairs(values, np.arange(400))
    assert alone == pytest.approx(400)
    sixfold = intervals.independent_pairs(np.repeat(values, 6), np.repeat(np.arange(400), 6))
    assert sixfold == pytest.approx(400)
    assert intervals.independent_pairs(np.ones(12), np.repeat(np.arange(4), 3)) == 4


def test_intervals_over_clustered_pairs_cover_the_truth() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        values = (rng.random((80, 6)) < rng.beta(1.4, 0.6, (80, 1))).astype(float).ravel()  # mean 0.7, correlated
        trials = intervals.independent_pairs(values, np.repeat(np.arange(80), 6))
        low, high = intervals.wilson(values.mean(), trials)
        covered += low <= 0.7 <= high
    assert covered / 300 > 0.91
