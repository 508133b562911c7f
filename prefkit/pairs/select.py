"""Task 3: a part's candidates -> its pairs, sorted for the shards, and the reasons of all that is in no pair.

    candidates.. drop duplicates -> drop ties -> strategy -> enforce -> pair filters -> ids, split, order

A candidate ends in at least one pair, or in REJECTS with exactly one reason: the first rule that took its last pair
away.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from prefkit import schema
from prefkit.errors import UsageError
from prefkit.pairs import tables
from prefkit.pairs.read import shown
from prefkit.pairs.text import digest, uniform
from prefkit.resolve import Call

# What shards need besides PAIRS: the split, and the sort key. `order` is a seeded hash of the prompt.
PART_PAIRS = pa.schema([*schema.PAIRS, ("test", pa.bool_()), ("order", pa.uint64()), ("ordinal", pa.int64())])
SORT = ["test", "order", "prompt_id", "ordinal", "chosen_index", "rejected_index"]

# What a pair is, whatever strategy named it.
ALWAYS = {
    "not_better": pl.col("margin") > 0,
    "identical_responses": pl.col("chosen_text").str.strip_chars() != pl.col("rejected_text").str.strip_chars(),
}


@dataclass(frozen=True)
class Neighbours:
    """Where a part's prompts stand among all prompts: the parts in input order, and what `dedupe` found."""

    parts: Sequence[Path]
    files: Sequence[str]  # name of the raw file of each part
    clusters: Path
    drop: bool  # whether duplicates are dropped, or only clustered


def select_part(
    folder: Path, part: int, among: Neighbours, strategy: Call, filters: list[Call], test: float, seed: int
) -> None:
    """Write pairs.arrow (sorted; its sort key in order.npy and test.npy), rejects.arrow (also those of reading) and
    counts.json into `folder`."""
    rules = {call.name: (call.call(), shown(call)) for call in filters}
    rules = {name: (rule, "") for name, rule in ALWAYS.items()} | rules
    prompts = _neighbours(part, among)
    fates: list[pl.DataFrame] = []
    found = [tables.empty(PART_PAIRS)]
    lost = dict.fromkeys(rules, 0)
    for candidates in tables.read(among.parts[part] / "candidates.arrow"):
        candidates = candidates.join(prompts, on="group", how="left", maintain_order="left")
        candidates = _first_of_cluster(candidates, among.drop, fates)
        pairs = _pairs(candidates, strategy)
        kept = _judge(pairs, rules, lost)
        fates.append(_unpaired(candidates, kept))
        found.append(_finish(kept.filter(pl.col("lost").is_null()), strategy.name, test, seed))
    pairs = pl.concat(found).sort(SORT)
    tables.write(folder / "pairs.arrow", pairs, PART_PAIRS)
    np.save(folder / "order.npy", pairs["order"].to_numpy())
    np.save(folder / "test.npy", pairs["test"].to_numpy())
    earlier = tables.read(among.parts[part] / "rejects.arrow")
    rejects = pl.concat([tables.empty(schema.REJECTS), *earlier, *fates]).sort("origin_row", "completion_index")
    tables.write(folder / "rejects.arrow", rejects, schema.REJECTS)
    counts = {"train": int((~pairs["test"]).sum()), "test": int(pairs["test"].sum()), "rejects": len(rejects)}
    by_reason = rejects.group_by("stage", "reason", pl.col("completion_index").is_null()).len().sort(pl.all()).rows()
    (folder / "counts.json").write_text(json.dumps(counts | {"by_reason": by_reason, "lost_pairs": lost}))


def _neighbours(part: int, among: Neighbours) -> pl.DataFrame:
    """Of each prompt of the part: ordinal, cluster_id, and for a duplicate its kind and its twin in words."""
    bases = np.load(among.clusters / "bases.npy")
    mine = slice(bases[part], bases[part + 1])
    arrays = {name: np.load(among.clusters / f"{name}.npy", mmap_mode="r")[mine] for name in CLUSTER_ARRAYS}
    ordinals = np.arange(bases[part], bases[part + 1])
    heads = _look_up(arrays["representative"], "prompt_ids", among, bases)
    rows = _look_up(arrays["twin"], "origin_rows", among, bases)
    files = [among.files[i] for i in np.searchsorted(bases, arrays["twin"], side="right") - 1]
    return pl.DataFrame(
        {
            "group": ordinals - bases[part],
            "ordinal": ordinals,
            "cluster_id": [f"{high:016x}{low:016x}" for high, low in heads.tolist()],
            "is_first": arrays["representative"] == ordinals,
            "similarity": arrays["similarity"],
            "exact": arrays["exact"],
            "twin": [f"{file}, row {row}" for file, row in zip(files, rows.tolist(), strict=True)],
        },
        schema_overrides={"cluster_id": pl.String, "twin": pl.String, "similarity": pl.Float32},
    )


CLUSTER_ARRAYS = ("representative", "twin", "similarity", "exact")


def _look_up(
    ordinals: npt.NDArray[np.int64], name: str, among: Neighbours, bases: npt.NDArray[np.int64]
) -> npt.NDArray[np.generic]:
    """An array of the parts, at some prompts' ordinals."""
    owners = np.searchsorted(bases, ordinals, side="right") - 1
    width = (2,) if name == "prompt_ids" else ()
    result = np.zeros((len(ordinals), *width), np.uint64 if width else np.int64)
    for owner in np.unique(owners):
        values = np.load(among.parts[owner] / f"{name}.npy", mmap_mode="r")
        result[owners == owner] = values[ordinals[owners == owner] - bases[owner]]
    return result


def _first_of_cluster(candidates: pl.DataFrame, drop: bool, fates: list[pl.DataFrame]) -> pl.DataFrame:
    if not drop:
        return candidates
    for reason, kind in (("exact_duplicate", pl.col("exact")), ("near_duplicate", ~pl.col("exact"))):
        twin = pl.format("{} is the same prompt", "twin")
        if reason == "near_duplicate":
            twin = pl.format("{} shares {}% of its word n-grams", "twin", (pl.col("similarity") * 100).round(1))
        fates.append(tables.rejects(candidates.filter(~pl.col("is_first") & kind), "dedupe", reason, twin))
    return candidates.filter("is_first")


def _pairs(candidates: pl.DataFrame, strategy: Call) -> pl.DataFrame:
    """The strategy's pairs with all columns of PAIRS that candidates know."""
    edges = strategy.call(candidates)
    if not isinstance(edges, pl.DataFrame) or not {"group", "chosen", "rejected"} <= set(edges.columns):
        raise UsageError(f"[build.binarize] {strategy.name}: it must give a DataFrame of group, chosen and rejected.")
    try:
        edges = edges.select(
            pl.col("group").cast(pl.Int64),
            chosen_index=pl.col("chosen").cast(pl.Int32),
            rejected_index=pl.col("rejected").cast(pl.Int32),
        ).unique(maintain_order=True)
    except pl.exceptions.PolarsError as error:
        raise UsageError(f"[build.binarize] {strategy.name}: its columns are not whole numbers ({error}).") from error
    side = candidates.select("group", "completion_index", text="response", score="score", model="model")
    shared = candidates.unique("group", keep="first", maintain_order=True).select(SHARED)
    pairs = edges.join(shared, on="group", maintain_order="left")
    pairs = pairs.join(_named(side, "chosen"), on=["group", "chosen_index"], maintain_order="left")
    pairs = pairs.join(_named(side, "rejected"), on=["group", "rejected_index"], maintain_order="left")
    if len(pairs) < len(edges):
        raise UsageError(f"[build.binarize] {strategy.name}: it names completions that are not among the candidates.")
    return pairs.with_columns(
        margin=pl.col("chosen_score") - pl.col("rejected_score"),
        chosen=_answer("chosen_text"),
        rejected=_answer("rejected_text"),
    )


SHARED = [
    "group", "ordinal", "cluster_id", "prompt", "prompt_id", "source", "lang", "lang_prob", "origin_file", "origin_row"
]  # fmt: skip


def _named(side: pl.DataFrame, name: str) -> pl.DataFrame:
    return side.rename(
        {"completion_index": f"{name}_index"} | {column: f"{name}_{column}" for column in ("text", "score", "model")}
    )


def _answer(text: str) -> pl.Expr:
    """One assistant message as a message list."""
    return pl.concat_list(pl.struct(role=pl.lit("assistant"), content=pl.col(text)))


def _judge(pairs: pl.DataFrame, rules: dict[str, tuple[pl.Expr, str]], lost: dict[str, int]) -> pl.DataFrame:
    """Mark each pair with the first rule that it breaks: columns `lost` (null: none) and `detail`."""
    verdict = pl.lit(None, pl.String)
    detail = pl.lit(None, pl.String)
    for name, (rule, options) in reversed(rules.items()):
        broken = ~rule.fill_null(False)
        verdict = pl.when(broken).then(pl.lit(name)).otherwise(verdict)
        detail = pl.when(broken).then(pl.lit(options or None, pl.String)).otherwise(detail)
    judged = pairs.with_columns(lost=verdict, detail=detail)
    for name, count in judged["lost"].drop_nulls().value_counts().iter_rows():
        lost[name] += count
    return judged


def _unpaired(candidates: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """Candidates in no surviving pair, with the rule that took their first pair, or "not_selected"."""
    sides = [
        pairs.select("group", "lost", "detail", completion_index=f"{side}_index") for side in ("chosen", "rejected")
    ]
    touched = pl.concat(sides).group_by("group", "completion_index", maintain_order=True)
    fate = touched.agg(pl.col("lost").is_null().any().alias("paired"), pl.col("lost", "detail").first())
    left = candidates.join(fate, on=["group", "completion_index"], how="left", maintain_order="left")
    left = left.filter(~pl.col("paired").fill_null(False)).with_columns(pl.col("lost").fill_null("not_selected"))
    return tables.rejects(left, "binarize", pl.col("lost"), pl.col("detail"))


def _finish(pairs: pl.DataFrame, strategy: str, test: float, seed: int) -> pl.DataFrame:
    """Ids, split and order: functions of the text, the cluster and the seed alone."""
    texts = pairs.select("prompt_id", "chosen_text", "rejected_text").iter_rows()
    ids = [digest(*text) for text in texts]
    held_out = [uniform(str(seed), "split", cluster) < test * 2**64 for cluster in pairs["cluster_id"]]
    order = [uniform(str(seed), "order", prompt) for prompt in pairs["prompt_id"]]
    return pairs.with_columns(
        pl.Series("pair_id", ids, pl.String),
        pl.Series("test", held_out, pl.Boolean),
        pl.Series("order", order, pl.UInt64),
        strategy=pl.lit(strategy),
    ).select(PART_PAIRS.names)
