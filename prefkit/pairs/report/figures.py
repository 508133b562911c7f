"""The figures of the report: what is counted of every row, from what `scan` gives of each shard.

Of a shard only sums and counts go on to the next, so memory does not grow with the data set.

Every row holds answers of a kind: of pairs a chosen and a rejected one, of labels a good or a bad one. What is said of
answers is so the same for both; pairs besides have margins and a longer answer, labels a balance.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import polars as pl

from prefkit import schema
from prefkit.manifest import Manifest
from prefkit.pairs import scan
from prefkit.pairs.report.shares import Ratio, Share, lengths_of_prompts, of_prompts, ratios, shares

MOST_BINS = 24
LARGEST_SCORE = 1e307  # what is beyond stands in the last bin, so that no width overflows
SMALLEST_WIDTH = 1e-300
HALF_OCTAVES = 2  # bins of lengths a doubling
KINDS = {"pairs": ("chosen", "rejected"), "labels": ("good", "bad")}  # of answers, the wanted ones first
Counts = dict[str, dict[str | int | None, dict[str, int]]]


class Scale(NamedTuple):
    """Bins of a score: bin b holds what is nearest to `start + b × step`, the first and last also what lies beyond."""

    start: float
    step: float

    def bin(self, value: pl.Expr) -> pl.Expr:
        """The bin of each value."""
        return ((value - self.start) / self.step).round().fill_nan(0).clip(0, MOST_BINS + 1).cast(pl.Int64)

    def label(self, number: int) -> str:
        """The middle of a bin."""
        value = self.start + number * self.step
        return f"{value if abs(value) > self.step / 1e6 else 0:g}"


class Figures(NamedTuple):
    """Counts by figure, key and split, and shares by figure and key."""

    counts: Counts
    shares: dict[str, dict[str, Share]]
    lengths: dict[str, Ratio]  # of labels: good to bad answers, of all and of each source
    scales: dict[str, Scale]  # of scores and margins
    margin_mean: dict[str, float]  # by split


def gather(record: Manifest, scales: dict[str, Scale], shards: Iterable[tuple[str, pl.DataFrame]]) -> Figures:
    """All figures of the rows in `shards`, as `scan` gives them."""
    counts: Counts = defaultdict(lambda: defaultdict(lambda: defaultdict(int)))
    sums: list[pl.DataFrame] = []
    lengths: list[pl.DataFrame] = []
    margins: dict[str, float] = defaultdict(float)
    for split, rows in shards:
        answers = _answers(rows, record)
        _count(counts, split, rows, answers, scales)
        wanted = pl.col("side") == KINDS[record.kind][0]
        sums.append(of_prompts(answers.drop_nulls("model"), "models", pl.col("model"), wanted))
        if record.kind == "pairs":
            sums += _longer(rows, split)
            margins[split] += float(rows["margin"].sum())
        else:
            sums += _good(rows, split)
            lengths += [lengths_of_prompts(answers, key, KINDS["labels"]) for key in (pl.lit("all"), pl.col("source"))]
    means = {split: total / record.rows(split) for split, total in margins.items()}
    return Figures(counts, shares(pl.concat(sums)), ratios(pl.concat(lengths)) if lengths else {}, scales, means)


def scales(folder: Path, record: Manifest) -> dict[str, Scale]:
    """How scores and margins are put into bins, by their least and greatest values."""
    paths = [folder / shard.path for shard in scan.data(record)]
    columns = {"score": [f"{side}_score" for side in schema.SIDES[record.kind]]}
    columns |= {"margin": ["margin"]} if record.kind == "pairs" else {}
    asked: list[pl.Expr] = []
    for name, of in columns.items():
        low, high = pl.min_horizontal(pl.min(*of)), pl.max_horizontal(pl.max(*of))
        whole = pl.all_horizontal((pl.col(column) == pl.col(column).round()).all() for column in of)
        asked.append(pl.struct(low=low, high=high, whole=whole).alias(name))
    (row,) = pl.scan_parquet(paths).select(asked).collect(engine="streaming").to_dicts()
    return {name: scale(**of) for name, of in row.items()}


def scale(low: float, high: float, whole: bool = False) -> Scale:
    """The least round width of which [low, high] holds at most MOST_BINS, beginning at a multiple of it; at least 1 for
    `whole` numbers."""
    low, high = max(low, -LARGEST_SCORE), min(high, LARGEST_SCORE)
    width = (high - low) / MOST_BINS
    if width < SMALLEST_WIDTH:
        return Scale(low, 1.0)
    power = 10.0 ** math.floor(math.log10(width))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10, 20) if width <= power * factor)
    step = max(step, 1.0) if whole else step
    return Scale(math.floor(low / step) * step, step)


def _answers(rows: pl.DataFrame, record: Manifest) -> pl.DataFrame:
    """An answer a row: its prompt, source, side (of KINDS), model, score and chars."""
    wanted, other = KINDS[record.kind]
    label = pl.when("label").then(pl.lit(wanted)).otherwise(pl.lit(other)) if record.kind == "labels" else None
    return pl.concat(
        rows.select(
            "prompt", "source", side=pl.lit(side) if label is None else label,
            model=f"{side}_model", score=f"{side}_score", chars=f"{side}_chars",
        )
        for side in schema.SIDES[record.kind]
    )  # fmt: skip


def _count(counts: Counts, split: str, rows: pl.DataFrame, answers: pl.DataFrame, scales: dict[str, Scale]) -> None:
    """Add the rows of a shard to the counts."""
    keys = {"source": pl.col("source"), "lang": pl.col("lang")}
    keys |= {"margin": scales["margin"].bin(pl.col("margin"))} if "margin" in scales else {}
    for name, key in keys.items():
        for value, count in rows.group_by(key.alias("key")).len().sort("key").rows():
            counts[name][value][split] += count
    octaves = ((pl.col("chars") + 1).log(2) * HALF_OCTAVES).floor().cast(pl.Int64)
    for name, key in {"score": scales["score"].bin(pl.col("score")), "chars": octaves}.items():
        for side, value, count in answers.group_by("side", key.alias("key")).len().sort("side", "key").rows():
            counts[f"{side}_{name}"][value][split] += count
    of_prompt = answers.group_by("prompt").agg(both=pl.col("side").n_unique() == 2)
    counts["prompts"][None][split] += len(of_prompt)
    counts["prompts with both"][None][split] += int(of_prompt["both"].sum())


def _longer(pairs: pl.DataFrame, split: str) -> list[pl.DataFrame]:
    """In how many pairs which answer is the longer one."""
    longer, shorter = (
        pl.col("chosen_chars") > pl.col("rejected_chars"),
        pl.col("chosen_chars") < pl.col("rejected_chars"),
    )
    return [
        of_prompts(pairs, "longer", pl.lit("all"), longer),
        of_prompts(pairs, "shorter", pl.lit("all"), shorter),
        of_prompts(pairs, "longer by source", pl.col("source"), longer),
        of_prompts(pairs, "longer by split", pl.lit(split), longer),
    ]


def _good(labels: pl.DataFrame, split: str) -> list[pl.DataFrame]:
    """How many answers are good."""
    good = pl.col("label")
    return [
        of_prompts(labels, "good", pl.lit("all"), good),
        of_prompts(labels, "good by source", pl.col("source"), good),
        of_prompts(labels, "good by lang", pl.col("lang").fill_null("none"), good),
        of_prompts(labels, "good by split", pl.lit(split), good),
    ]
