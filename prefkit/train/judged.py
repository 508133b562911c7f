"""How well do a model's rewards tell good answers from bad ones? The figures of `prefkit evaluate` on labelled answers.

A labelled answer has no other to be compared with, so all that can be held against its label is its implicit reward:
beta x (log-probability minus the reference's).

    rewards/auc          how often a good answer has a larger reward than a bad one, any of either; no threshold
    rewards/accuracies   how often the sign of the reward is that of the label. The threshold is 0, where policy and
                         reference say the same; `kto` and `bco` learn around one of their own, which no model keeps
    loss                 -log sigmoid of the reward, or of minus the reward of a bad answer: ln 2 before training
    rewards/chosen, rewards/rejected, rewards/margins   means over good answers, over bad ones, and their difference

Ties count half. The area under the curve is the statistic of Mann and Whitney; its interval, and that of the difference
of two models', come from how each answer is placed among those of the other label (DeLong et al. 1988), summed over the
answers of a prompt, which are not independent (Obuchowski 1997). Where one of the labels is missing, it is None.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from prefkit import intervals
from prefkit.train import compare

Figures = dict[str, np.ndarray]


def columns(rewards: np.ndarray, good: np.ndarray) -> Figures:
    """One value an answer: its loss, whether its reward has the sign of its label, its reward, its label."""
    signed = np.where(good, rewards, -rewards)
    right = (np.sign(signed) + 1) / 2
    return {"loss": np.logaddexp(0, -signed), "rewards/accuracies": right, "rewards": rewards, "good": good}


def summary(figures: Figures, prompts: np.ndarray, chosen: np.ndarray | None = None) -> dict[str, Any]:
    """Figures over all answers (that `chosen` selects); accuracy and area with the two ends of their 95 % interval."""
    everything = slice(None) if chosen is None else chosen
    mine, of_prompt = {name: values[everything] for name, values in figures.items()}, prompts[everything]
    right, rewards, good = mine["rewards/accuracies"], mine["rewards"], mine["good"]
    chosen_mean, rejected_mean = (float(rewards[side].mean()) if side.any() else None for side in (good, ~good))
    accuracy = float(right.mean())
    low, high = intervals.wilson(accuracy, intervals.independent_pairs(right, of_prompt))
    return {
        "answers": len(good),
        "good": int(good.sum()),
        "loss": float(mine["loss"].mean()),
        **area(rewards, good, of_prompt),
        "rewards/accuracies": accuracy,
        "rewards/accuracies_low": low,
        "rewards/accuracies_high": high,
        "rewards/chosen": chosen_mean,
        "rewards/rejected": rejected_mean,
        "rewards/margins": None if chosen_mean is None or rejected_mean is None else chosen_mean - rejected_mean,
    }


def area(rewards: np.ndarray, good: np.ndarray, prompts: np.ndarray) -> dict[str, float | None]:
    """`rewards/auc` with the ends of its interval, Wilson's over as many trials as its variance is worth."""
    if good.all() or not good.any():
        return dict.fromkeys(("rewards/auc", "rewards/auc_low", "rewards/auc_high"))
    placed = placements(rewards, good)
    share = float(placed[good].mean())
    variance = variance_of_mean(placed, good, prompts)
    if variance:
        trials = min(float(len(good)), max(1.0, share * (1 - share) / variance))
    else:  # all are placed alike, mostly rightly: worth as many as there are prompts with the rarer label
        trials = float(min(len(np.unique(prompts[mine])) for mine in (good, ~good)))
    low, high = intervals.wilson(share, trials)
    return {"rewards/auc": share, "rewards/auc_low": low, "rewards/auc_high": high}


def placements(rewards: np.ndarray, good: np.ndarray) -> np.ndarray:
    """For each answer, the share of those of the other label that it is rightly above or below; ties count half.

    The mean over the good answers is that over the bad ones: the area under the curve.
    """
    placed = np.empty(len(rewards))
    for mine, sign in ((good, 1), (~good, -1)):
        others, own = np.sort(sign * rewards[~mine]), sign * rewards[mine]
        below, not_above = (np.searchsorted(others, own, side) for side in ("left", "right"))
        placed[mine] = (below + not_above) / 2 / len(others)
    return placed


def variance_of_mean(placed: np.ndarray, good: np.ndarray, prompts: np.ndarray) -> float:
    """Of an area, or of the difference of two, from its placements: each prompt's answers move it together."""
    moves = np.empty(len(placed))
    for mine in (good, ~good):
        moves[mine] = (placed[mine] - placed[mine].mean()) / mine.sum()
    _, member = np.unique(prompts, return_inverse=True)
    sums = np.bincount(member, moves)
    return float(sums @ sums)


def differences(first: Figures, second: Figures, prompts: np.ndarray) -> dict[str, Any]:
    """First minus second over the same answers: mean, ends of the 95 % interval, p."""
    one, other = ({name: figures[name] for name in ("loss", "rewards/accuracies")} for figures in (first, second))
    found = compare.differences(one, other, prompts)
    good = first["good"]
    if good.all() or not good.any():
        return found
    apart = placements(first["rewards"], good) - placements(second["rewards"], good)
    mean, deviation = float(apart[good].mean()), math.sqrt(variance_of_mean(apart, good, prompts))
    half = intervals.Z_95 * deviation
    p = math.erfc(abs(mean) / deviation / math.sqrt(2)) if deviation else float(mean == 0)
    return {"rewards/auc": {"difference": mean, "low": mean - half, "high": mean + half, "p": p}, **found}


def calibration(figures: Figures) -> dict[str, Any]:
    """As of pairs, with sigmoid(reward) for the probability that an answer is good."""
    return compare.calibration(np.where(figures["good"], figures["rewards"], -figures["rewards"]), "answers")
