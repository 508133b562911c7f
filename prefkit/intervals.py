"""95 % intervals of shares, for both halves and their reports; pairs of one prompt count as fewer independent ones."""

from __future__ import annotations

import math

import numpy as np

Z_95 = 1.959964  # standard deviations of a normal distribution on either side


def independent_pairs(values: np.ndarray, prompts: np.ndarray) -> float:
    """How many independent pairs would make a mean as certain as these do.

    Pairs of one prompt tend to be right or wrong together. The binomial variance over the cluster-robust one (Liang
    and Zeger 1986), at least 1, at most the number of pairs.
    """
    share = float(values.mean())
    _, member = np.unique(prompts, return_inverse=True)
    sums = np.bincount(member, values - share)
    spread = float(sums @ sums)
    if spread == 0:  # all alike
        return float(len(sums))
    return min(float(len(values)), max(1.0, share * (1 - share) * len(values) ** 2 / spread))


def wilson(share: float, trials: float) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson 1927): sensible also near 0 and 1, and for few trials."""
    z2 = Z_95 * Z_95
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z_95 / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)
