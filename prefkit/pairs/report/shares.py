"""Shares and ratios of a data set with their intervals, from sums over its prompts.

Rows of one prompt are not independent, so the interval of a share is Wilson's with the effective number of rows: the
number of independent rows that would give the share the variance that it has between prompts (Korn and Graubard 1998,
on proportions from clustered samples). That of a ratio is by the variance of a difference of two means over clusters
(linearised, as in Cochran 1977, section 6). What both are made of are sums over prompts, so shards just add up.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from prefkit.intervals import Z_95, wilson


class Share(NamedTuple):
    """A share of rows with its 95 % interval."""

    hits: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """Between 0 and 1."""
        return self.hits / self.total


class Ratio(NamedTuple):
    """How many times as long one kind of answers typically is as another, with its 95 % interval; typical is the
    geometric mean."""

    value: float
    low: float
    high: float
    typical: tuple[float, float]  # of either kind


def of_prompts(rows: pl.DataFrame, figure: str, key: pl.Expr, hit: pl.Expr) -> pl.DataFrame:
    """Of each key, what the share of rows that hit, and its variance, are made of."""
    x, n = pl.col("x"), pl.col("n")
    prompts = rows.group_by(key.alias("key"), "prompt").agg(x=hit.cast(pl.Float64).sum(), n=pl.len().cast(pl.Float64))
    return prompts.group_by("key").agg(
        figure=pl.lit(figure), hits=x.sum(), total=n.sum(), xx=(x * x).sum(), xn=(x * n).sum(), nn=(n * n).sum(),
        prompts=pl.len().cast(pl.Float64),
    )  # fmt: skip


def shares(sums: pl.DataFrame) -> dict[str, dict[str, Share]]:
    """By figure and key, the shares of what `of_prompts` gave of all shards; the largest totals first."""
    found: dict[str, dict[str, Share]] = defaultdict(dict)
    together = sums.group_by("figure", "key").agg(pl.col("hits", "total", "xx", "xn", "nn", "prompts").sum())
    for figure, key, *of in together.sort(pl.col("total"), "key", descending=[True, False]).rows():
        found[figure][key] = share(*of)
    return found


def share(hits: float, total: float, xx: float, xn: float, nn: float, prompts: float) -> Share:
    """A share from sums over prompts of x hits among n rows: of x, n, x², xn, n², and of ones."""
    p = hits / total
    between = xx - 2 * p * xn + p * p * nn
    variance = between / total**2 * prompts / (prompts - 1) if prompts > 1 else 0.0
    effective = min(total, p * (1 - p) / variance) if variance > 0 else min(total, prompts)
    return Share(int(hits), int(total), *wilson(p, effective))


def lengths_of_prompts(answers: pl.DataFrame, key: pl.Expr, sides: Sequence[str]) -> pl.DataFrame:
    """Of each key, what the ratio of lengths of the answers of two `sides` is made of: the sums over prompts of a, n, b
    and m, and of their products. a is the sum of the logarithms of n lengths of the first side, b that of m."""
    logs = pl.max_horizontal("chars", 1).log()
    first, second = (pl.col("side") == side for side in sides)
    prompts = answers.group_by(key.alias("key"), "prompt").agg(
        a=logs.filter(first).sum(), n=first.sum().cast(pl.Float64),
        b=logs.filter(second).sum(), m=second.sum().cast(pl.Float64),
    )  # fmt: skip
    products = [(x + y, (pl.col(x) * pl.col(y)).sum()) for at, x in enumerate("anbm") for y in "anbm"[at:]]
    return prompts.group_by("key").agg(pl.col("a", "n", "b", "m").sum(), prompts=pl.len(), **dict(products))


def ratios(sums: pl.DataFrame) -> dict[str, Ratio]:
    """By key, the ratios of what `lengths_of_prompts` gave of all shards, where there are both sides of two prompts."""
    together = sums.group_by("key").agg(pl.exclude("key").sum()).sort(-pl.col("n") - pl.col("m"), "key")
    rows = together.filter(pl.col("n") > 0, pl.col("m") > 0, pl.col("prompts") > 1).to_dicts()
    return {row.pop("key"): ratio(row) for row in rows}


def ratio(of: dict[str, float]) -> Ratio:
    """exp of the difference of two means of logarithms, from the sums of `lengths_of_prompts`."""
    n, m = of["n"], of["m"]
    first, second = of["a"] / n, of["b"] / m
    variance = (of["aa"] - 2 * first * of["an"] + first**2 * of["nn"]) / n**2
    variance += (of["bb"] - 2 * second * of["bm"] + second**2 * of["mm"]) / m**2
    variance -= 2 * (of["ab"] - second * of["am"] - first * of["nb"] + first * second * of["nm"]) / (n * m)
    spread = Z_95 * math.sqrt(max(0.0, variance * of["prompts"] / (of["prompts"] - 1)))
    between = first - second
    return Ratio(
        math.exp(between), math.exp(between - spread), math.exp(between + spread), (math.exp(first), math.exp(second))
    )
