"""Task 5 where labels are asked for in place of pairs: a bucket's answers -> the good and the bad ones.

    answers.. drop near-duplicates -> thresholds -> enforce -> ids, split, order

For learning from single answers that somebody found good or bad (KTO: Ethayarajh et al. 2024, arXiv:2402.01306): a
prompt need not have both. It is the step of `select` with another table at its end, LABELS, and so stands beside
strategies, not among these: a strategy names pairs, and what is always true of pairs is enforced on them.

A pipeline asks for it with [build.labels] in place of [build.binarize], and says itself what scores are good and bad:
no threshold is right for all sources (`unpaired` scores 1 and 0, UltraFeedback 1 to 10). What is scored in between has
no label, and is rejected as such.

What is always true: a text has one label under its prompt, and stands there once.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import polars as pl

from prefkit.errors import UsageError
from prefkit.pairs.bucket import Bucket
from prefkit.pairs.rules import Rule
from prefkit.pairs.select import (
    Neighbours,
    answers_left,
    first_says,
    judge,
    placed,
    save,
    side_of,
    unused,
    with_prompts,
)

SCORE = pl.col("completion_score")
TEXT = ("prompt_id", "completion_text")
_IS_GOOD = pl.col("label")
ALWAYS = {
    "contradictory_labels": Rule(
        _IS_GOOD.n_unique().over(TEXT) == 1,
        told=pl.when(_IS_GOOD)
        .then(first_says("completion", ~_IS_GOOD, TEXT, "labels it bad"))
        .otherwise(first_says("completion", _IS_GOOD, TEXT, "labels it good")),
    ),
    "repeated_label": Rule(
        pl.int_range(pl.len()).over(TEXT) == 0,
        told=first_says("completion", pl.lit(True), TEXT, "has the same answer"),
    ),
}
REASONS = ("no_label", *ALWAYS)


class Thresholds(NamedTuple):
    """The scores, both included, from which on answers are good, and up to which they are bad."""

    desirable_at_least: float
    undesirable_at_most: float


def labels(*, desirable_at_least: float, undesirable_at_most: float) -> Thresholds:
    """Every answer scored high enough as a good one, and every one scored low enough as a bad one, both bounds
    included."""
    if undesirable_at_most >= desirable_at_least:
        raise UsageError(
            f"[build.labels] undesirable_at_most = {undesirable_at_most:g} must be below desirable_at_least = "
            f"{desirable_at_least:g}: an answer is good or bad, not both."
        )
    return Thresholds(desirable_at_least, undesirable_at_most)


def label_bucket(folder: Path, bucket: int, rows: Bucket, among: Neighbours, how: Thresholds) -> None:
    """Write the bucket's labels and rejects into `folder`, as `save` does."""
    answers, prompts, fates = answers_left(bucket, rows, among, ())
    labelled = answers.select("candidate", "group", "prompt_id", "cluster_id").hstack(side_of(answers, "completion"))
    labelled = with_prompts(labelled, prompts).with_columns(label=how.desirable_at_least <= SCORE)
    has_label = (how.desirable_at_least <= SCORE) | (how.undesirable_at_most >= SCORE)
    options = ", ".join(f"{name}={value:g}" for name, value in how._asdict().items())
    rules = {"no_label": Rule(has_label, options), **ALWAYS}
    judged, lost = judge(labelled, "labels", rules)
    fates.append(unused(answers, judged, "labels"))
    save(folder, "labels", placed(judged, "labels", among.split), pl.concat(fates), lost)
