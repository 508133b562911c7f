"""Two models on the same pairs: the difference of their figures with its interval; and how sure a model may be.

The difference is taken pair by pair, so what makes a pair hard for both cancels out. Its interval is a bootstrap over
prompts (Efron 1979; the cluster bootstrap of Cameron, Gelbach and Miller 2008): prompts are drawn with replacement,
each with all of its pairs, since the pairs of a prompt are not independent; the middle 95 % of the means are the
interval. `p` is the share of draws on the other side of 0, twice: how surprising the sign would be if there were no
difference.

Calibration: the policy says sigmoid(margin of the rewards) that the chosen answer is the better one. Pairs are put in
bins by how sure that is either way, and each bin's mean certainty is held against how often it is right; the
difference, weighted by pairs, is the expected calibration error (Guo et al. 2017, arXiv:1706.04599).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

DRAWS = 2000
BINS = 10


def differences(
    first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], prompts: np.ndarray, *, seed: int = 0
) -> dict[str, Any]:
    """First minus second of each figure that both have: mean, ends of the 95 % interval, p.

    One value a pair, the same pairs in both; `prompts` numbers the prompt of each.
    """
    _, member = np.unique(prompts, return_inverse=True)
    count = int(member.max()) + 1
    pairs = np.bincount(member, minlength=count).astype(float)
    names = [name for name in first if name in second]
    sums = np.stack([np.bincount(member, first[name] - second[name], minlength=count) for name in names], axis=1)
    rng, drawn = np.random.default_rng(seed), np.empty((DRAWS, len(names)))
    for draw in range(DRAWS):
        times = np.bincount(rng.integers(count, size=count), minlength=count)
        drawn[draw] = times @ sums / (times @ pairs)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    p = 2 * np.minimum((drawn <= 0).mean(axis=0), (drawn >= 0).mean(axis=0))
    means = sums.sum(axis=0) / pairs.sum()
    return {
        name: {"difference": float(means[i]), "low": float(low[i]), "high": float(high[i]), "p": min(1.0, float(p[i]))}
        for i, name in enumerate(names)
    }


def calibration(margins: np.ndarray, what: str = "pairs") -> dict[str, Any]:
    """The expected calibration error of sigmoid(margin), and its table: a row a bin of certainty that has any."""
    said = 1 / (1 + np.exp(-np.abs(margins)))
    right = (np.sign(margins) + 1) / 2
    bins = np.minimum(((said - 0.5) * 2 * BINS).astype(int), BINS - 1)
    table = []
    for number in np.unique(bins):
        mine = bins == number
        row = {"from": 0.5 + number / (2 * BINS), "to": 0.5 + (number + 1) / (2 * BINS), what: int(mine.sum())}
        table.append({**row, "said": float(said[mine].mean()), "right": float(right[mine].mean())})
    error = sum(row[what] * abs(row["said"] - row["right"]) for row in table) / len(margins)
    return {"expected_calibration_error": float(error), "bins": table}
