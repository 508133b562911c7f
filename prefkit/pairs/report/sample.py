"""The report's sample: pairs and rejects to look at, the same for equal data sets.

Pairs are those of the lowest pair_id, which is a hash, so they are a uniform sample whatever the order of the shards.
Of rejects, every stage and reason gets as many of its own as fit, drawn by a seeded generator. Rejects carry no
text; where a pair of the same prompt, or of its near-duplicates, stands in the data set, its prompt is shown.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from prefkit.manifest import Manifest
from prefkit.pairs.report.figures import length

PAIRS = 200
REJECTS = 200
EACH_REASON = 3  # at least, however many reasons there are
CHARACTERS = 4000  # of a text; the rest is counted
SEED = 0
FACTS = [
    "pair_id", "source", "lang", "margin", "chosen_score", "rejected_score", "chosen_model", "rejected_model",
    "strategy", "chosen_file", "chosen_row", "chosen_index", "rejected_file", "rejected_row", "rejected_index",
]  # fmt: skip


def pairs(folder: Path, record: Manifest) -> list[dict[str, Any]]:
    """PAIRS pairs with their texts, cut to CHARACTERS."""
    lowest = pl.DataFrame(schema={"pair_id": pl.String, "path": pl.String})
    for shard in [shard for shard in record.shards if shard.split != "rejects"]:
        ids = pl.read_parquet(folder / shard.path, columns=["pair_id"]).with_columns(path=pl.lit(shard.path))
        lowest = pl.concat([lowest, ids]).sort("pair_id").head(PAIRS)
    split_of = {shard.path: shard.split for shard in record.shards}
    lengths = [length(side).alias(f"{side}_chars") for side in ("chosen", "rejected")]
    finite = pl.col("margin").clip(upper_bound=sys.float_info.max)  # of scores at both ends it is not, and no JSON
    shown = []
    for path, ids in lowest.group_by("path", maintain_order=True):
        wanted = pl.col("pair_id").is_in(ids["pair_id"].to_list())
        rows = (
            pl.scan_parquet(folder / str(path[0]))
            .filter(wanted)
            .select("prompt", "chosen", "rejected", *FACTS, *lengths)
            .with_columns(finite)
        )
        for row in rows.collect(engine="streaming").to_dicts():
            texts = {name: _said(row[name]) for name in ("prompt", "chosen", "rejected")}
            shown.append(row | texts | {"split": split_of[str(path[0])]})
    return sorted(shown, key=lambda row: str(row["pair_id"]))


def rejects(folder: Path, record: Manifest) -> list[dict[str, Any]]:
    """About REJECTS rejects, some of every stage and reason, with the prompts that are known."""
    names = {(stage.stage, reason) for stage in record.stages for reason in stage.rejected}
    each = max(EACH_REASON, REJECTS // max(1, len(names)))
    draws = np.random.default_rng(SEED)
    drawn = []
    for shard in record.of_split("rejects"):
        rows = pl.scan_parquet(folder / shard.path).select("stage", "reason").collect().with_row_index("row")
        rows = rows.with_columns(draw=draws.random(len(rows)), path=pl.lit(shard.path))
        drawn.append(rows.sort("draw").group_by("stage", "reason", maintain_order=True).head(each))
    if not drawn:
        return []
    kept = pl.concat(drawn).sort("draw").group_by("stage", "reason", maintain_order=True).head(each)
    shown = []
    for path, chosen in kept.sort("path", "row").group_by("path", maintain_order=True):
        lazy = pl.scan_parquet(folder / str(path[0]), row_index_name="row")
        shown += lazy.filter(pl.col("row").is_in(chosen["row"].to_list())).drop("row").collect().to_dicts()
    ids = {row[name] for row in shown for name in ("prompt_id", "cluster_id") if row[name]}
    known = prompts(folder, record, ids)
    order = {one: at for at, one in enumerate(_order(record))}
    shown.sort(key=lambda row: order.get((row["stage"], row["reason"]), len(order)))
    return [_reject(row, known) for row in shown]


def prompts(folder: Path, record: Manifest, ids: set[str]) -> dict[str, str]:
    """Prompts of pairs by prompt_id or cluster_id, where there is one among `ids`."""
    found: dict[str, str] = {}
    asked = pl.col("prompt_id").is_in(sorted(ids)) | pl.col("cluster_id").is_in(sorted(ids))
    for shard in [shard for shard in record.shards if shard.split != "rejects"]:
        rows = pl.scan_parquet(folder / shard.path).filter(asked).select("prompt_id", "cluster_id", "prompt")
        for row in rows.unique("prompt_id").sort("prompt_id").collect(engine="streaming").to_dicts():
            for name in {row["prompt_id"], row["cluster_id"]} - {None}:
                found.setdefault(name, _said(row["prompt"]))
    return found


def _order(record: Manifest) -> list[tuple[str, str]]:
    return [(stage.stage, reason) for stage in record.stages for reason in stage.rejected]


def _reject(row: dict[str, Any], known: dict[str, str]) -> dict[str, Any]:
    raw = row.pop("raw")
    cluster = row.pop("cluster_id")
    row["raw"] = _cut(raw.decode("utf-8", "replace")) if raw is not None else None
    row["prompt"] = known.get(row["prompt_id"])
    row["cluster_prompt"] = known.get(cluster) if row["prompt"] is None and cluster else None
    row["detail"] = _cut(row["detail"]) if row["detail"] else None
    return row


def _said(messages: list[dict[str, str]]) -> str:
    """Messages as one text; the role of a single one goes without saying."""
    if len(messages) == 1:
        return _cut(messages[0]["content"])
    return _cut("\n\n".join(f"{message['role']}: {message['content']}" for message in messages))


def _cut(text: str) -> str:
    left = len(text) - CHARACTERS
    return text if left <= 0 else f"{text[:CHARACTERS]}… ({left:,} more characters)"
