"""What fell: one pass over the rejects, for the groups that lost most, and for some rejects of every reason.

In memory are one batch of rejects, the sample, and where each near-duplicate stands, which is counted once however many
answers it had.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from prefkit.manifest import Manifest
from prefkit.pairs import tables
from prefkit.pairs.engine import ahead

REJECTS = 200
EACH_REASON = 3  # at least, however many reasons there are
LARGEST = 10
BATCH_ROWS = 20_000
SEED = 0
WHY = ["stage", "reason"]


class Fallen(NamedTuple):
    """The largest groups of rejects, and a sample of them all."""

    clusters: list[tuple[str, int]]  # cluster_id, rows that fell as near-duplicates of its first prompt
    hits: list[tuple[str, int]]  # evaluation item, candidates that met it
    sample: list[dict[str, Any]]  # rows of REJECTS, reasons in the order of the stages


def gather(folder: Path, record: Manifest) -> Fallen:
    """All that the report says of rejects but their counts, which the manifest has.

    In the sample are about REJECTS of them, as many of every stage and reason, drawn by a seeded generator.
    """
    order = {at: number for number, at in enumerate(reasons(record))}
    each = max(EACH_REASON, REJECTS // max(1, len(order)))
    draws = np.random.default_rng(SEED)
    near: list[pl.DataFrame] = []
    drawn: list[pl.DataFrame] = []
    hits: Counter[str] = Counter()
    for shard in record.of_split("rejects"):
        with pq.ParquetFile(folder / shard.path) as file:
            for batch in ahead(file.iter_batches(BATCH_ROWS, use_threads=False), 1):
                rows = tables.frame(batch).with_columns(draw=draws.random(len(batch)))
                near.append(_near_duplicates(rows))
                hits.update(_met_items(rows))
                drawn = [_lowest(pl.concat([*drawn, _lowest(rows, each)]), each)]
    sample = [row for rows in drawn for row in rows.sort("draw").drop("draw").to_dicts()]
    sample.sort(key=lambda row: order[row["stage"], row["reason"]])
    most_met = sorted(hits.items(), key=lambda item: (-item[1], item[0]))
    return Fallen(_largest_clusters(near), most_met[:LARGEST], sample)


def reasons(record: Manifest) -> list[tuple[str, str]]:
    """Every stage and reason to which rows or candidates fell."""
    fell = [(stage.stage, reason) for stage in record.stages if stage.unit != record.kind for reason in stage.rejected]
    return list(dict.fromkeys(fell))


def _lowest(rows: pl.DataFrame, each: int) -> pl.DataFrame:
    """Of every stage and reason, the rows of the lowest draws."""
    order = rows.select("stage", "reason", "draw").with_row_index().sort("draw")
    return rows[order.group_by("stage", "reason", maintain_order=True).head(each)["index"]]


def _near_duplicates(rows: pl.DataFrame) -> pl.DataFrame:
    """Where the near-duplicates of each cluster stand."""
    near = (pl.col("reason") == "near_duplicate") & pl.col("cluster_id").is_not_null()
    return rows.filter(near).select("cluster_id", "origin_file", "origin_row").unique()


def _largest_clusters(near: list[pl.DataFrame]) -> list[tuple[str, int]]:
    if not near:
        return []
    counted = pl.concat(near).unique().group_by("cluster_id").len()
    return counted.sort(pl.col("len"), "cluster_id", descending=[True, False]).head(LARGEST).rows()


def _met_items(rows: pl.DataFrame) -> Counter[str]:
    """Evaluation items by the candidates that met them; the detail of a reject begins with the item."""
    item = pl.col("detail").str.extract(r"^(.*?, row \d+):")
    met = rows.filter(pl.col("stage") == "decontaminate").select(item.alias("item")).drop_nulls()
    return Counter(dict(met.group_by("item").len().rows()))
