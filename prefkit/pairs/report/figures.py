"""The figures of the report, from a data set's files alone: one pass over the pairs, shard by shard.

Of a shard, only lengths, scores and names are kept in memory, and of these only sums and counts go on to the next; so
memory is that of the largest shard's narrow columns. Rejects are counted by polars' streaming engine, which holds
the near-duplicates' keys.

Pairs of one prompt are not independent, so an interval is Wilson's with the effective number of pairs: the number of
independent pairs that would give the share the variance that it has between prompts (Korn and Graubard 1998, on
proportions from clustered samples).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import polars as pl

from prefkit.manifest import Manifest

Z = 1.959964  # 95 %
MOST_BINS = 24
LARGEST_SCORE = 1e307  # what is beyond stands in the last bin, so that no width overflows
SMALLEST_WIDTH = 1e-300
HALF_OCTAVES = 2  # bins of lengths a doubling
LARGEST = 10
SCORES = ("chosen_score", "rejected_score", "margin")
LENGTHS = ("chosen_chars", "rejected_chars")
SUMS = ("hits", "total", "xx", "xn", "nn", "prompts")


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
    """Counts by split of each figure and key, shares of pairs, and the largest groups of rejects."""

    counts: dict[str, dict[str | int | None, dict[str, int]]]
    shares: dict[str, dict[str, Share]]
    scales: dict[str, Scale]  # of each score
    margin_mean: dict[str, float]  # by split
    clusters: list[tuple[str, int]]  # cluster_id, rows that fell to it
    hits: list[tuple[str, int]]  # evaluation item, candidates that met it


def gather(folder: Path, record: Manifest) -> Figures:
    """All figures of a finished data set."""
    shards = [shard for shard in record.shards if shard.split != "rejects"]
    scales = _scales([folder / shard.path for shard in shards])
    counts: dict[str, dict[str | int | None, dict[str, int]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(int))
    )
    sums: list[pl.DataFrame] = []
    margins: dict[str, float] = defaultdict(float)
    for shard in shards:
        pairs = _narrow(folder / shard.path, scales)
        for name in ("source", "lang", "strategy", *(f"bin_{column}" for column in (*SCORES, *LENGTHS))):
            for key, count in pairs.group_by(name).len().sort(name).rows():
                counts[name][key][shard.split] += count
        counts["prompts"][None][shard.split] += pairs["prompt_id"].n_unique()
        margins[shard.split] += float(pairs["margin"].sum())
        sums.append(_sums(pairs, shard.split))
    rejects = [folder / shard.path for shard in record.of_split("rejects")]
    return Figures(
        counts,
        _shares(pl.concat(sums)),
        scales,
        {split: total / record.rows(split) for split, total in margins.items() if record.rows(split)},
        _largest_clusters(rejects),
        _most_met_items(rejects),
    )


def length(column: str) -> pl.Expr:
    """Characters of a side's answer."""
    return pl.col(column).list.eval(pl.element().struct.field("content").str.len_chars()).list.sum()


def _scales(paths: list[Path]) -> dict[str, Scale]:
    asked: list[pl.Expr] = []
    for name in SCORES:
        whole = (pl.col(name) == pl.col(name).round()).all()
        asked += [pl.min(name).alias(f"{name} low"), pl.max(name).alias(name), whole.alias(f"{name} whole")]
    (row,) = pl.scan_parquet(paths).select(asked).collect(engine="streaming").to_dicts()
    whole_sides = row["chosen_score whole"] and row["rejected_score whole"]
    sides = scale(row["rejected_score low"], row["chosen_score"], whole_sides)  # the lowest and highest of both
    margins = scale(row["margin low"], row["margin"], row["margin whole"])
    return {"chosen_score": sides, "rejected_score": sides, "margin": margins}


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


def _narrow(path: Path, scales: dict[str, Scale]) -> pl.DataFrame:
    columns = ["prompt_id", "source", "lang", "strategy", "chosen_model", "rejected_model", "margin"]
    scores = [scales[name].bin(pl.col(name)).alias(f"bin_{name}") for name in SCORES]
    lengths = [length(side).alias(f"{side}_chars") for side in ("chosen", "rejected")]
    rows = pl.scan_parquet(path).select(*columns, *scores, *lengths).collect(engine="streaming")
    bins = [(pl.col(name) + 1).log(2) * HALF_OCTAVES for name in LENGTHS]
    return rows.with_columns(
        *(bin.floor().cast(pl.Int64).alias(f"bin_{name}") for bin, name in zip(bins, LENGTHS, strict=True)),
        longer=pl.col("chosen_chars") > pl.col("rejected_chars"),
        shorter=pl.col("chosen_chars") < pl.col("rejected_chars"),
    )


def _sums(pairs: pl.DataFrame, split: str) -> pl.DataFrame:
    """Of each share, what its value and variance are made of."""
    chosen = pairs.select("prompt_id", model="chosen_model", won=pl.lit(True))
    rejected = pairs.select("prompt_id", model="rejected_model", won=pl.lit(False))
    met = pl.concat([chosen, rejected]).filter(pl.col("model").is_not_null())
    return pl.concat(
        [
            _sum(pairs, "longer", pl.lit("all"), pl.col("longer")),
            _sum(pairs, "shorter", pl.lit("all"), pl.col("shorter")),
            _sum(pairs, "longer by source", pl.col("source"), pl.col("longer")),
            _sum(pairs, "longer by split", pl.lit(split), pl.col("longer")),
            _sum(met, "wins", pl.col("model"), pl.col("won")),
        ]
    )


def _sum(rows: pl.DataFrame, figure: str, key: pl.Expr, hit: pl.Expr) -> pl.DataFrame:
    prompts = rows.group_by(key.alias("key"), "prompt_id").agg(
        x=hit.cast(pl.Float64).sum(), n=pl.len().cast(pl.Float64)
    )
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


def _largest_clusters(rejects: list[Path]) -> list[tuple[str, int]]:
    """Clusters by the rows that fell as near-duplicates of their first prompt."""
    near = (pl.col("reason") == "near_duplicate") & pl.col("cluster_id").is_not_null()
    return _most(rejects, lambda rows: rows.filter(near).select("cluster_id", "origin_file", "origin_row").unique())


def _most_met_items(rejects: list[Path]) -> list[tuple[str, int]]:
    """Evaluation items by the candidates that met them; the detail of a reject begins with the item."""
    item = pl.col("detail").str.extract(r"^(.*?, row \d+):")
    return _most(rejects, lambda rows: rows.filter(pl.col("stage") == "decontaminate").select(item))


def _most(rejects: list[Path], select: Callable[[pl.LazyFrame], pl.LazyFrame]) -> list[tuple[str, int]]:
    if not rejects:
        return []
    rows = select(pl.scan_parquet(rejects))
    name = rows.collect_schema().names()[0]
    counted = rows.group_by(name).len().drop_nulls().collect(engine="streaming")
    return counted.sort(pl.col("len"), name, descending=[True, False]).head(LARGEST).rows()
