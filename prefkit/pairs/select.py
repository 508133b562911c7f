"""Task 5: a bucket's sets of answers -> its pairs, sorted for the shards, and the reasons of all that is in no pair.

    answers.. drop near-duplicates -> strategy -> enforce -> pair filters -> ids, split, order

A candidate ends in at least one pair, or in REJECTS with exactly one reason: the first rule that took its last pair
away.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from prefkit import schema
from prefkit.errors import UsageError
from prefkit.pairs import tables
from prefkit.pairs.answers import Twins, fallen
from prefkit.pairs.bucket import Bucket
from prefkit.pairs.dedupe import look_up
from prefkit.pairs.read import keys_of, shown
from prefkit.pairs.text import digest_bytes, uniform
from prefkit.pairs.unite import SET_RULES, sets_of
from prefkit.resolve import Call

# What later steps need besides PAIRS: the entry of [[build.inputs]], the split, and the sort key. `order` is a seeded
# hash of the prompt, `group` its set of answers, `better` and `worse` the places of the two answers among the
# bucket's.
SORT = ["test", "order", "prompt_id", "group", "better", "worse"]
SIDES = ("chosen", "rejected")
PART_PAIRS = pa.schema(
    [
        *schema.PAIRS,
        ("entry", pa.int32()),
        ("test", pa.bool_()),
        ("order", pa.uint64()),
        *((name, pa.int64()) for name in SORT[3:]),
    ]
)


# What a pair is, whatever strategy named it. The last two can only happen where a prompt has several sets. Texts are
# told apart by their hashes.
TEXTS = ["chosen_text", "rejected_text"]
_BOTH = (pl.min_horizontal(TEXTS), pl.max_horizontal(TEXTS))
ALWAYS: dict[str, pl.Expr] = {
    "not_better": pl.col("margin") > 0,
    "identical_responses": pl.col("chosen_text") != pl.col("rejected_text"),
    "contradictory_labels": (pl.col("chosen_text") < pl.col("rejected_text")).n_unique().over("prompt_id", *_BOTH) == 1,
    "repeated_pair": pl.int_range(pl.len()).over("prompt_id", *TEXTS) == 0,
}


@dataclass(frozen=True)
class Neighbours:
    """Where a bucket's prompts stand among all: the buckets with their numbers of prompts, and what `dedupe` found."""

    buckets: Sequence[Path]
    counts: Sequence[int]
    files: Sequence[str]  # names of all raw files
    clusters: Path
    drop: bool  # whether near-duplicates are dropped, or only clustered
    old: int = 0  # how many of the buckets are of the data set before
    twins: Twins | None = None  # answers that repeat each other, where these are looked for


@dataclass(frozen=True)
class Pairing:
    """What becomes a pair, and on which side of the split and where it stands."""

    strategy: Call
    filters: list[Call]
    test: float
    seed: int


def select_bucket(folder: Path, bucket: int, rows: Bucket, among: Neighbours, how: Pairing) -> None:
    """Write pairs.arrow (sorted; its sort key in order.npy and test.npy, what quotas ask in entry.npy and longer.npy),
    rejects.arrow and counts.json into `folder`."""
    here = among.buckets[bucket]
    neighbours = _neighbours(bucket, among, how)
    prompts, answers = sets_of(here, rows)
    prompts = prompts.join(neighbours, on="prompt_id", how="left", maintain_order="left")
    answers = answers.join(
        prompts.select("group", "prompt_id", "cluster_id"), on="group", how="left", maintain_order="left"
    )
    earlier = tables.read_whole(here / "rejects.arrow", schema.REJECTS).drop("cluster_id")
    earlier = earlier.join(neighbours.select("prompt_id", "cluster_id"), on="prompt_id", how="left")
    fates = [tables.empty(schema.REJECTS), earlier.select(schema.REJECTS.names)]
    if among.twins:
        answers = _drop_repeated(answers, fallen(bucket - among.old, among.twins, among.files), fates)
    answers, prompts = _drop_near(answers, prompts, among.drop, fates)
    rules = {name: (rule, "") for name, rule in ALWAYS.items()}
    rules |= {call.name: (call.call(), shown(call)) for call in how.filters}
    answers = answers.with_row_index("candidate").cast({"candidate": pl.Int64})
    judged, lost = _judge(_pairs(answers, prompts, how.strategy), rules)
    fates.append(unpaired(answers, judged))
    pairs = _finish(judged.filter(pl.col("lost").is_null()), how).sort(SORT)
    save(folder, pairs, pl.concat(fates), lost)


def text_of(side: str) -> pl.Expr:
    """The text of the chosen or rejected answer."""
    return pl.col(side).list.last().struct.field("content")


def save(folder: Path, pairs: pl.DataFrame, rejects: pl.DataFrame, lost: Mapping[str, int]) -> None:
    """The files of a bucket's pairs (in their order) and rejects."""
    tables.write(folder / "pairs.arrow", pairs, PART_PAIRS)
    np.save(folder / "order.npy", pairs["order"].to_numpy())
    np.save(folder / "test.npy", pairs["test"].to_numpy())
    np.save(folder / "entry.npy", pairs["entry"].to_numpy())
    characters = [text_of(side).str.strip_chars().str.len_chars() for side in SIDES]
    np.save(folder / "longer.npy", pairs.select(longer=characters[0] > characters[1])["longer"].to_numpy())
    rejects = rejects.sort("prompt_id", "origin_file", "origin_row", "completion_index")
    tables.write(folder / "rejects.arrow", rejects, schema.REJECTS)
    held_out = int(pairs["test"].sum())
    counts = {"train": len(pairs) - held_out, "test": held_out, "rejects": len(rejects), "lost_pairs": lost}
    (folder / "counts.json").write_text(json.dumps(counts | {"by_reason": tables.count_reasons(rejects)}))


def trim(folder: Path, bucket: Path, pairs: pl.DataFrame, fates: pl.DataFrame, reasons: Sequence[str]) -> None:
    """Write a bucket, of which these are the pairs, anew into `folder`, without those that a later rule takes.

    `fates` has of each pair why it is `lost` (one of `reasons`; null: it stays) and the `detail`. Candidates that are
    then in no pair go to the rejects.
    """
    rejects = tables.read_whole(bucket / "rejects.arrow", schema.REJECTS)
    fallen = unpaired(_candidates(pairs), pairs.hstack(fates))
    lost = json.loads((bucket / "counts.json").read_text())["lost_pairs"]
    lost |= {reason: int((fates["lost"] == reason).sum()) for reason in reasons}
    save(folder, pairs.filter(fates["lost"].is_null()), pl.concat([rejects, fallen]), lost)


def _candidates(pairs: pl.DataFrame) -> pl.DataFrame:
    """Each candidate of some pairs once."""
    sides = [
        pairs.select(
            "prompt_id",
            "cluster_id",
            candidate=number,
            origin_file=f"{side}_file",
            origin_row=f"{side}_row",
            completion_index=f"{side}_index",
        )
        for side, number in (("chosen", "better"), ("rejected", "worse"))
    ]
    return pl.concat(sides).unique("candidate", keep="first", maintain_order=True)


def _neighbours(bucket: int, among: Neighbours, how: Pairing) -> pl.DataFrame:
    """Of each distinct prompt of the bucket: prompt_id, cluster_id, and for a near-duplicate its twin, the similarity,
    and whether it is `torn`: its cluster joins old ones of both sides of the split."""
    ids = np.load(among.buckets[bucket] / "ids.npy")
    first = sum(among.counts[:bucket])
    arrays = {name: np.load(among.clusters / f"{name}.npy", mmap_mode="r") for name in CLUSTER_ARRAYS}
    mine = slice(*np.searchsorted(arrays["members"], [first, first + len(ids)]))
    members, heads, twins, similarity = (np.asarray(array[mine]) for array in arrays.values())
    where = look_up(twins, "origins", among.buckets, among.counts)
    own = _hexadecimal(ids)
    found = pl.DataFrame(
        {
            "prompt_id": [own[number] for number in members - first],
            "cluster_id": _hexadecimal(look_up(heads, "ids", among.buckets, among.counts)),
            "is_first": heads == members,
            "torn": np.isin(heads, _torn(among, how)),
            "similarity": similarity,
            "twin": [f"{among.files[part]}, row {row}" for part, row in where.tolist()],
        },
        schema_overrides={"prompt_id": pl.String, "cluster_id": pl.String, "twin": pl.String},
    )
    every = pl.DataFrame({"prompt_id": own}, {"prompt_id": pl.String})
    return every.join(found, on="prompt_id", how="left", maintain_order="left").with_columns(
        pl.col("cluster_id").fill_null(pl.col("prompt_id")),
        pl.col("is_first").fill_null(True),
        pl.col("torn").fill_null(False),
    )


def _torn(among: Neighbours, how: Pairing) -> npt.NDArray[np.int64]:
    """Representatives of clusters that join clusters of the data set before which lie on different sides."""
    joined = np.load(among.clusters / "joined.npy")
    sides = held_out(look_up(joined.ravel(), "ids", among.buckets, among.counts)[:, 0], how).reshape(-1, 2)
    torn: npt.NDArray[np.int64] = joined[sides[:, 0] != sides[:, 1], 0]
    return torn


CLUSTER_ARRAYS = ("members", "representative", "twin", "similarity")


def _hexadecimal(ids: npt.NDArray[np.generic]) -> list[str]:
    return [f"{high:016x}{low:016x}" for high, low in ids.tolist()]


def _drop_near(
    answers: pl.DataFrame, prompts: pl.DataFrame, drop: bool, fates: list[pl.DataFrame]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Without the near-duplicates; where these are kept, without those that would bring old train and test prompts
    together."""
    falls = ~pl.col("is_first") if drop else pl.col("torn")
    gone = prompts.filter(falls).select("group", "twin", "similarity")
    fallen = answers.join(gone, on="group", maintain_order="left")
    share = pl.format("{} shares {}% of its n-grams", "twin", (pl.col("similarity") * 100).round(1))
    if not drop:
        share = pl.format("{}; its cluster joins train and test prompts of the data set before", share)
    fates.append(tables.rejects(fallen, "dedupe", "near_duplicate", share))
    return answers.join(gone, on="group", how="anti", maintain_order="left"), prompts.filter(~falls)


def _drop_repeated(answers: pl.DataFrame, repeated: pl.DataFrame, fates: list[pl.DataFrame]) -> pl.DataFrame:
    """Without the answers that repeat an earlier one, and without those that are then alone or tied."""
    marked = (
        answers.with_row_index("at").cast({"at": pl.Int64}).join(repeated, on="at", how="left", maintain_order="left")
    )
    gone = marked.filter(pl.col("reason").is_not_null())
    fates.append(tables.rejects(gone, "dedupe", pl.col("reason"), pl.col("detail")))
    left = marked.filter(pl.col("reason").is_null()).select(answers.columns)
    for reason in ("too_few_candidates", "tied"):
        rule, detail = SET_RULES[reason]
        verdict = left.select(keep=rule)["keep"]
        fates.append(tables.rejects(left.filter(~verdict), "filter", reason, detail))
        left = left.filter(verdict)
    return left


def _pairs(answers: pl.DataFrame, prompts: pl.DataFrame, strategy: Call) -> pl.DataFrame:
    """The strategy's pairs with all columns of PAIRS that answers and prompts know."""
    edges = strategy.call(answers)
    if not isinstance(edges, pl.DataFrame) or not {"chosen", "rejected"} <= set(edges.columns):
        raise UsageError(f"[build.binarize] {strategy.name}: it must give a DataFrame of chosen and rejected.")
    try:
        edges = edges.select(better=pl.col("chosen").cast(pl.Int64), worse=pl.col("rejected").cast(pl.Int64))
    except pl.exceptions.PolarsError as error:
        raise UsageError(f"[build.binarize] {strategy.name}: its columns are not whole numbers ({error}).") from error
    edges = edges.unique(maintain_order=True)
    if not edges.select(pl.all().is_between(0, len(answers) - 1).all()).row(0) == (True, True):
        raise UsageError(f"[build.binarize] {strategy.name}: it names candidates that are not in its table.")
    chosen, rejected = answers[edges["better"]], answers[edges["worse"]]
    if not chosen["group"].equals(rejected["group"]):
        raise UsageError(f"[build.binarize] {strategy.name}: it pairs answers of different groups.")
    shared = prompts.select("group", "prompt", "source", "lang", "lang_prob", "langs", "entry")
    pairs = edges.hstack(_side(chosen, "chosen")).hstack(_side(rejected, "rejected"))
    pairs = pairs.hstack(chosen.select("group", "prompt_id", "cluster_id"))
    pairs = pairs.join(shared, on="group", how="left", maintain_order="left")
    return pairs.with_columns(margin=pl.col("chosen_score") - pl.col("rejected_score"), strategy=pl.lit(strategy.name))


def _side(answers: pl.DataFrame, name: str) -> pl.DataFrame:
    """The columns of one side: a message list, and where it comes from."""
    message = pl.struct(role=pl.lit("assistant"), content="response")
    columns = {
        "score": "score",
        "model": "model",
        "file": "origin_file",
        "row": "origin_row",
        "index": "completion_index",
        "text": "text",
    }
    return answers.select(
        pl.concat_list(message).alias(name),
        *(pl.col(column).alias(f"{name}_{short}") for short, column in columns.items()),
    )


def _judge(pairs: pl.DataFrame, rules: dict[str, tuple[pl.Expr, str]]) -> tuple[pl.DataFrame, dict[str, int]]:
    """Mark each pair with the first rule that it breaks: columns `lost` (null: none) and `detail`; and count them."""
    left = pairs.with_row_index("pair")
    fallen: list[pl.DataFrame] = []
    for name, (rule, options) in rules.items():
        try:
            verdict = left.with_columns(keep=rule.fill_null(False))["keep"]
        except pl.exceptions.PolarsError as error:
            raise UsageError(f"[[build.filters]] {name} failed: {error}") from error
        broken = left.filter(~verdict)
        detail = tables.seen(rule, options, broken.drop(TEXTS))
        fallen.append(broken.select("pair", lost=pl.lit(name), detail=detail))
        left = left.filter(verdict)
    marks = pl.concat([pl.DataFrame(schema={"pair": pl.UInt32, "lost": pl.String, "detail": pl.String}), *fallen])
    judged = pairs.with_row_index("pair").join(marks, on="pair", how="left", maintain_order="left").drop("pair")
    return judged, {name: len(marked) for name, marked in zip(rules, fallen, strict=True)}


def unpaired(answers: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """Candidates in no surviving pair, with the rule that took their first pair, or "not_selected"."""
    sides = [pairs.select("lost", "detail", candidate=side) for side in ("better", "worse")]
    touched = pl.concat(sides).group_by("candidate", maintain_order=True)
    fate = touched.agg(pl.col("lost").is_null().any().alias("paired"), pl.col("lost", "detail").first())
    left = answers.join(fate, on="candidate", how="left", maintain_order="left")
    left = left.filter(~pl.col("paired").fill_null(False)).with_columns(pl.col("lost").fill_null("not_selected"))
    return tables.rejects(left, "binarize", pl.col("lost"), pl.col("detail"))


def _finish(pairs: pl.DataFrame, how: Pairing) -> pl.DataFrame:
    """Ids, split and order: functions of the text, the cluster and the seed alone."""
    texts = pairs.select(
        pl.col("prompt_id").cast(pl.Binary), *(text_of(side).cast(pl.Binary).alias(side) for side in SIDES)
    )
    order = keys_of(pairs["prompt_id"]) ^ np.uint64(uniform(str(how.seed), "order"))
    return pairs.with_columns(
        pl.Series("pair_id", [digest_bytes(*row) for row in texts.iter_rows()], pl.String),
        pl.Series("test", held_out(keys_of(pairs["cluster_id"]), how), pl.Boolean),
        pl.Series("order", order, pl.UInt64),
    ).select(PART_PAIRS.names)


def held_out(keys: npt.NDArray[np.uint64], how: Pairing) -> npt.NDArray[np.bool_]:
    """Whether the clusters with these keys (the first 64 bits of their id) are on the test side."""
    drawn: npt.NDArray[np.bool_] = scrambled(keys ^ np.uint64(uniform(str(how.seed), "split"))) < how.test * 2**64
    return drawn


def scrambled(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A 64-bit mix in which every bit of a value decides about every bit of the result (splitmix64's finaliser)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
