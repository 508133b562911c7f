"""A scan of a shard: of every row what figures are made of, and of some rows all that a page shows.

Decompressing the texts is nearly all that it costs, so the step that writes a shard, which has them in memory, leaves
its scan behind. Where there is none, the shard is read once; polars' streaming engine gives the texts up as it goes. In
memory are narrow columns and the texts of few rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl

from prefkit import schema
from prefkit.manifest import Manifest, Shard

FILE = "scan.arrow"  # in the folder of the task that wrote the shard
ROWS = 200  # of a shard, and of the report, that are shown
OWN = {"pairs": ["margin"], "labels": ["label"]}
UNSEEN = {"prompt_id", "cluster_id", "lang_prob", "langs"}  # on the page


def shards(folder: Path, record: Manifest, left: Mapping[str, Path]) -> Iterator[tuple[str, pl.DataFrame]]:
    """Of each shard its split and its scan, which is read where one is `left` of the shard's path, and else made."""
    for shard in data(record):
        scanned = left.get(shard.path)
        yield shard.split, pl.read_ipc(scanned) if scanned else scan(pl.scan_parquet(folder / shard.path), record.kind)


def scan(rows: pl.LazyFrame, kind: str) -> pl.DataFrame:
    """The scan of a shard's rows: source, lang, margin or label, and of each side SIDE_model, SIDE_score, SIDE_chars.

    `prompt` numbers the prompts of the shard. `row` holds all that a page shows of a row, of the ROWS lowest ids.
    """
    sides = schema.SIDES[kind]
    lengths = {f"{side}_chars": characters(side) for side in sides}
    models_and_scores = [f"{side}_{name}" for side in sides for name in ("model", "score")]
    lowest = rows.select(pl.col(schema.IDS[kind]).bottom_k(ROWS).max()).collect(engine="streaming").item()
    kept = [pl.col(name) for name in schema.TABLES[kind].names if name not in UNSEEN]
    seen = pl.struct([*kept, *(length.alias(name) for name, length in lengths.items())])
    scanned = rows.with_row_index("at").select(
        "at", "source", "lang", *OWN[kind], *models_and_scores, **lengths,
        prompt="prompt_id", row=pl.when(pl.col(schema.IDS[kind]) <= lowest).then(seen),
    ).collect(engine="streaming")  # fmt: skip
    shown = scanned.select("at", "row").drop_nulls()  # whose texts alone are kept: a null row still has its texts
    numbered = scanned.drop("row").with_columns(pl.col("prompt").rle_id())  # pairs of a prompt are neighbours
    return numbered.join(shown, on="at", how="left", maintain_order="left").drop("at")


def characters(column: str) -> pl.Expr:
    """Characters of a side's answer."""
    return pl.col(column).list.eval(pl.element().struct.field("content").str.len_chars()).list.sum()


def data(record: Manifest) -> list[Shard]:
    """The shards that hold pairs or labels."""
    return [shard for shard in record.shards if shard.split != "rejects"]
