"""The figures of the report: counts, and shares with their intervals, from what `scan` gives of each shard.

Of a shard only sums and counts go on to the next, so memory does not grow with the data set.

Pairs of one prompt are not independent, so an interval is Wilson's with the effective number of pairs: the number of
independent pairs that would give the share the variance that it has between prompts (Korn and Graubard 1998, on
proportions from clustered samples).
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
from prefkit.pairs.report import scan

Z = 1.959964  # 95 %
MOST_BINS = 24
LARGEST_SCORE = 1e307  # what is beyond stands in the last bin, so that no width overflows
SMALLEST_WIDTH = 1e-300
HALF_OCTAVES = 2  # bins of lengths a doubling
SUMS = ("hits", "total", "xx", "xn", "nn", "prompts")
Counts = dict[str, dict[str | int | None, dict[str, int]]]


class Share(NamedTuple):
    """A share of pairs with its 95 % interval."""

    hits: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """Between 0 and 1."""
        return self.hits / self.total


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
    scales: dict[str, Scale]  # of scores and margins
    margin_mean: dict[str, float]  # by split


def gather(record: Manifest, scales: dict[str, Scale], shards: Iterable[tuple[str, pl.DataFrame]]) -> Figures:
    """All figures of the rows in `shards`, as `scan` gives them."""
    counts: Counts = defaultdict(lambda: defaultdict(lambda: defaultdict(int)))
    sums: list[pl.DataFrame] = []
    margins: dict[str, float] = defaultdict(float)
    for split, pairs in shards:
        _count(counts, split, pairs, scales)
        margins[split] += float(pairs["margin"].sum())
        sums.append(_sums(pairs, split))
    means = {split: total / record.rows(split) for split, total in margins.items()}
    return Figures(counts, _shares(pl.concat(sums)), scales, means)


def scales(folder: Path, record: Manifest) -> dict[str, Scale]:
    """How scores and margins are put into bins, by their least and greatest values."""
    paths = [folder / shard.path for shard in scan.data(record)]
    sides = [f"{side}_score" for side in schema.SIDES[record.kind]]
    asked: list[pl.Expr] = []
    for name, columns in (("score", sides), ("margin", ["margin"])):
        low, high = pl.min_horizontal(pl.min(*columns)), pl.max_horizontal(pl.max(*columns))
        whole = pl.all_horizontal((pl.col(column) == pl.col(column).round()).all() for column in columns)
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


def _count(counts: Counts, split: str, pairs: pl.DataFrame, scales: dict[str, Scale]) -> None:
    """Add the rows of a shard to the counts."""
    named = {"source": pl.col("source"), "lang": pl.col("lang"), "margin": scales["margin"].bin(pl.col("margin"))}
    for side in ("chosen", "rejected"):
        named[f"{side}_score"] = scales["score"].bin(pl.col(f"{side}_score"))
        octaves = (pl.col(f"{side}_chars") + 1).log(2) * HALF_OCTAVES
        named[f"{side}_chars"] = octaves.floor().cast(pl.Int64)
    for name, key in named.items():
        for value, count in pairs.group_by(key.alias(name)).len().sort(name).rows():
            counts[name][value][split] += count
    counts["prompts"][None][split] += pairs["prompt"].n_unique()


def _sums(pairs: pl.DataFrame, split: str) -> pl.DataFrame:
    """Of each share, what its value and variance are made of."""
    longer, shorter = (
        pl.col("chosen_chars") > pl.col("rejected_chars"),
        pl.col("chosen_chars") < pl.col("rejected_chars"),
    )
    chosen = pairs.select("prompt", model="chosen_model", won=pl.lit(True))
    rejected = pairs.select("prompt", model="rejected_model", won=pl.lit(False))
    met = pl.concat([chosen, rejected]).filter(pl.col("model").is_not_null())
    return pl.concat(
        [
            _sum(pairs, "longer", pl.lit("all"), longer),
            _sum(pairs, "shorter", pl.lit("all"), shorter),
            _sum(pairs, "longer by source", pl.col("source"), longer),
            _sum(pairs, "longer by split", pl.lit(split), longer),
            _sum(met, "wins", pl.col("model"), pl.col("won")),
        ]
    )


def _sum(rows: pl.DataFrame, figure: str, key: pl.Expr, hit: pl.Expr) -> pl.DataFrame:
    prompts = rows.group_by(key.alias("key"), "prompt").agg(x=hit.cast(pl.Float64).sum(), n=pl.len().cast(pl.Float64))
    x, n = pl.col("x"), pl.col("n")
    return prompts.group_by("key").agg(
        figure=pl.lit(figure),
        hits=x.sum(), total=n.sum(), xx=(x * x).sum(), xn=(x * n).sum(), nn=(n * n).sum(),
        prompts=pl.len().cast(pl.Float64),
    )  # fmt: skip


def _shares(sums: pl.DataFrame) -> dict[str, dict[str, Share]]:
    """Wilson's intervals from the sums of all shards; the largest totals first."""
    found: dict[str, dict[str, Share]] = defaultdict(dict)
    together = sums.group_by("figure", "key").agg(pl.col(SUMS).sum())
    for figure, key, *of in together.sort(pl.col("total"), "key", descending=[True, False]).rows():
        found[figure][key] = share(*of)
    return found


def share(hits: float, total: float, xx: float, xn: float, nn: float, prompts: float) -> Share:
    """A share from sums over prompts of x hits among n pairs: of x, n, x², xn, n², and of ones."""
    p = hits / total
    between = xx - 2 * p * xn + p * p * nn
    variance = between / total**2 * prompts / (prompts - 1) if prompts > 1 else 0.0
    effective = min(total, p * (1 - p) / variance) if variance > 0 else min(total, prompts)
    middle, scale = p + Z * Z / (2 * effective), 1 + Z * Z / effective
    spread = Z * math.sqrt(p * (1 - p) / effective + Z * Z / (4 * effective**2))
    return Share(int(hits), int(total), max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale))
