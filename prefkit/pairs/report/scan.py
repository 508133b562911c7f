"""One pass over the shards of a data set: of every row what figures are made of, and of some rows their texts.

Decompressing the texts is nearly all that it costs, so they are read once. polars' streaming engine gives them up as it
goes; of a shard, only narrow columns and the texts that are asked for stay in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from prefkit import schema
from prefkit.manifest import Manifest, Shard

OWN = {"pairs": ["margin"], "labels": ["label"]}
UNSEEN = {"prompt_id", "cluster_id", "lang_prob", "langs"}  # on the page


def shards(folder: Path, record: Manifest, shown: pl.Expr, named: pl.Expr) -> Iterator[tuple[str, pl.DataFrame]]:
    """Of each shard its split and its rows: source, lang, and of each side SIDE_model, SIDE_score and SIDE_chars.

    `prompt` numbers the prompts of the shard. Where a row is `shown` (a predicate), `row` holds all that a page
    shows of it; where its prompt is to be `named`, `names` holds its prompt_id, cluster_id and prompt.
    """
    sides = schema.SIDES[record.kind]
    lengths = {f"{side}_chars": characters(side) for side in sides}
    columns = [
        "source",
        "lang",
        *OWN[record.kind],
        *(f"{side}_{name}" for side in sides for name in ("model", "score")),
    ]
    kept = [pl.col(name) for name in schema.TABLES[record.kind].names if name not in UNSEEN]
    seen = pl.struct([*kept, *(length.alias(name) for name, length in lengths.items())])
    names = pl.struct("prompt_id", "cluster_id", "prompt")
    for shard in data(record):
        rows = pl.scan_parquet(folder / shard.path).select(
            *columns, "prompt_id", row=pl.when(shown).then(seen), names=pl.when(named).then(names), **lengths
        )
        one = rows.collect(engine="streaming")
        yield shard.split, one.with_columns(prompt=pl.col("prompt_id").rle_id())  # pairs of a prompt are neighbours


def characters(column: str) -> pl.Expr:
    """Characters of a side's answer."""
    return pl.col(column).list.eval(pl.element().struct.field("content").str.len_chars()).list.sum()


def data(record: Manifest) -> list[Shard]:
    """The shards that hold pairs or labels."""
    return [shard for shard in record.shards if shard.split != "rejects"]
