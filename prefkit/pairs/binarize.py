"""Strategies: which completions of a prompt become pairs.

A strategy takes candidates (columns `candidate`, a number of its own for each, `group`, `prompt_id`, `score`,
`response`, …; every score a finite number, at least two candidates a group, rows of a group adjacent and in input
order) and gives one row a pair: `chosen` and `rejected`, two candidates of one group. It only has to name pairs it
wants: that chosen is scored strictly above rejected, and that their texts differ, is enforced on what it returns. Its
name is recorded with every pair.

Of k completions, `best_vs_worst` and `best_vs_random` make one pair, `best_vs_each_lower` and `listwise` at most k - 1,
the others up to k (k - 1) / 2. All work on whole columns; those that compare every two completions of a group hold
that many rows of a few numbers.
"""

from __future__ import annotations

from typing import Annotated

import polars as pl
from annotated_types import Ge

from prefkit.pairs.scores import on_paper
from prefkit.pairs.text import uniform

CANDIDATE = pl.col("candidate")
SCORE = pl.col("score")


def best_vs_worst(candidates: pl.DataFrame) -> pl.DataFrame:
    """The highest-scored completion against the lowest-scored; of equals, the first."""
    return candidates.group_by("group", maintain_order=True).agg(
        chosen=CANDIDATE.get(SCORE.arg_max()), rejected=CANDIDATE.get(SCORE.arg_min())
    )


def best_vs_random(candidates: pl.DataFrame, *, seed: int = 0) -> pl.DataFrame:
    """The highest-scored completion against a random one scored below it, drawn by a seeded hash of the prompt."""
    best = candidates.group_by("group", maintain_order=True).agg(
        pl.col("prompt_id").first(), chosen=CANDIDATE.get(SCORE.arg_max()), lower=CANDIDATE.filter(SCORE.max() > SCORE)
    )
    best = best.filter(pl.col("lower").list.len() > 0)
    draws = [uniform(str(seed), "best_vs_random", prompt) for prompt in best["prompt_id"]]
    picks = [draw % count for draw, count in zip(draws, best["lower"].list.len(), strict=True)]
    best = best.with_columns(pick=pl.Series(picks, dtype=pl.Int64))
    return best.select("chosen", rejected=pl.col("lower").list.get(pl.col("pick")))


def best_vs_each_lower(candidates: pl.DataFrame) -> pl.DataFrame:
    """The highest-scored completion (of equals, the first) against every completion scored below it."""
    best = candidates.select(
        "candidate", below=SCORE.max().over("group") > SCORE, best=CANDIDATE.get(SCORE.arg_max()).over("group")
    )
    return best.filter("below").select(chosen="best", rejected="candidate")


def adjacent_ranks(candidates: pl.DataFrame) -> pl.DataFrame:
    """Each completion against those of the next lower score in its group: the closest, hardest comparisons."""
    upper = candidates.select("group", "candidate", level=SCORE.rank("dense").over("group"))
    lower = upper.with_columns(pl.col("level") + 1)
    both = upper.join(lower, on=["group", "level"], suffix="_lower", maintain_order="left_right")
    return both.select(chosen="candidate", rejected="candidate_lower")


def all_pairs(candidates: pl.DataFrame) -> pl.DataFrame:
    """Every two completions of different scores: 6 pairs for four distinct scores. They share one token tree in
    training."""
    return _every(candidates, candidates).select("chosen", "rejected")


def max_margin(candidates: pl.DataFrame, *, at_most: Annotated[int, Ge(1)] = 1) -> pl.DataFrame:
    """The pairs of a group with the largest margins, at most so many; of equal margins, the first in input order.

    A completion may stand in several of them. Input order is that of chosen, then of rejected.
    """
    return _widest(_every(candidates, candidates), at_most)


def score_threshold(
    candidates: pl.DataFrame,
    *,
    chosen_at_least: float,
    rejected_at_most: float,
    at_most: Annotated[int, Ge(1)] | None = None,
) -> pl.DataFrame:
    """Every completion scored high enough against every one scored low enough, both bounds included.

    `at_most` keeps so many pairs of a group, those with the largest margins. Bounds that overlap are allowed: chosen
    is always scored above rejected.
    """
    upper, lower = candidates.filter(SCORE.ge(chosen_at_least)), candidates.filter(SCORE.le(rejected_at_most))
    return _widest(_every(upper, lower), at_most)


def listwise(candidates: pl.DataFrame) -> pl.DataFrame:
    """The ranking of a group as a chain: one completion a score level (of equals, the first) against the next lower.

    K levels give K - 1 pairs, and each rejected answer is the chosen one of the next pair, known by its file, row and
    index. So a list loss or an exporter rebuilds the ranking of K answers from the pairs of a prompt, which stand
    next to each other; the scores are in the pairs too. A filter of pairs or a quota that takes a pair out of the
    middle leaves two chains.
    """
    levels = candidates.unique(["group", "score"], keep="first", maintain_order=True)
    ranked = levels.sort("group", "score", descending=[False, True])
    chain = ranked.select(chosen="candidate", rejected=CANDIDATE.shift(-1).over("group"))
    return chain.drop_nulls()


def _every(upper: pl.DataFrame, lower: pl.DataFrame) -> pl.DataFrame:
    """Each of `upper` against each of `lower` in its group that scores less, in input order: group, chosen, rejected,
    margin."""
    sides = [side.select("group", "candidate", "score") for side in (upper, lower)]
    both = sides[0].join(sides[1], on="group", suffix="_lower", maintain_order="left_right")
    margin = SCORE - pl.col("score_lower")
    return both.filter(margin > 0).select("group", chosen="candidate", rejected="candidate_lower", margin=margin)


def _widest(pairs: pl.DataFrame, at_most: int | None) -> pl.DataFrame:
    """The pairs of each group with the largest margins, in the order they had."""
    if at_most is not None:
        pairs = pairs.filter(on_paper(pl.col("margin")).rank("ordinal", descending=True).over("group") <= at_most)
    return pairs.select("chosen", "rejected")
