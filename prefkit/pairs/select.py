"""Task 5: a bucket's sets of answers -> its pairs, sorted for the shards, and the reasons of all that is in no pair.

    answers.. drop near-duplicates -> strategy -> enforce -> pair filters -> ids, split, order

A candidate ends in at least one pair, or in REJECTS with exactly one reason: the first rule that took its last pair
away.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from prefkit import schema
from prefkit.errors import UsageError
from prefkit.pairs import tables
from prefkit.pairs.answers import Twins, fallen
from prefkit.pairs.blake2b import digests
from prefkit.pairs.bucket import Bucket
from prefkit.pairs.dedupe import look_up
from prefkit.pairs.packed import hexadecimal
from prefkit.pairs.read import keys_of
from prefkit.pairs.rules import Rule, blamed, detail, rule
from prefkit.pairs.text import uniform
from prefkit.pairs.trimmed import trimmed
from prefkit.pairs.unite import SCORE_RULES, SET_RULES, sets_of
from prefkit.resolve import Call

# What later steps need besides PAIRS or LABELS: the entry of [[build.inputs]], the split, and the sort key. `order` is
# a seeded hash of the prompt, `group` its set of answers; then come the places of the answers among the bucket's.
PLACES = {"pairs": ["better", "worse"], "labels": ["candidate"]}
SORT = {kind: ["test", "order", "prompt_id", "group", *places] for kind, places in PLACES.items()}
PART = {
    kind: pa.schema(
        [
            *schema.TABLES[kind],
            ("entry", pa.int32()),
            ("test", pa.bool_()),
            ("order", pa.uint64()),
            *((name, pa.int64()) for name in ["group", *places]),
        ]
    )
    for kind, places in PLACES.items()
}


def first_says(side: str, which: pl.Expr, same: Sequence[str | pl.Expr], what: str) -> pl.Expr:
    """A detail: raw file and row of the first row, among those that are the `same`, for which `which` is true, and
    `what` it says."""
    place = (pl.col(f"{side}_{name}").filter(which).first().over(same) for name in ("file", "row"))
    return pl.format(f"{{}}, row {{}} {what}", *place)


# What a pair is, whatever strategy named it. The last two can only happen where a prompt has several sets. Texts are
# told apart by their hashes.
TEXTS = ["chosen_text", "rejected_text"]
_SAME_PAIR = ["prompt_id", *TEXTS]
_SAME_ANSWERS: list[str | pl.Expr] = ["prompt_id", pl.min_horizontal(TEXTS), pl.max_horizontal(TEXTS)]
_IN_ORDER = pl.col("chosen_text") < pl.col("rejected_text")  # which of the two ways round a pair has its answers
ALWAYS = {
    "not_better": Rule(pl.col("margin") > 0),
    "identical_responses": Rule(pl.col("chosen_text") != pl.col("rejected_text")),
    "contradictory_labels": Rule(
        _IN_ORDER.n_unique().over(_SAME_ANSWERS) == 1,
        told=pl.when(_IN_ORDER)
        .then(first_says("chosen", ~_IN_ORDER, _SAME_ANSWERS, "prefers the other answer"))
        .otherwise(first_says("chosen", _IN_ORDER, _SAME_ANSWERS, "prefers the other answer")),
    ),
    "repeated_pair": Rule(
        pl.int_range(pl.len()).over(_SAME_PAIR) == 0,
        told=first_says("chosen", pl.lit(True), _SAME_PAIR, "has the same pair"),
    ),
}


class Split(NamedTuple):
    """The share of clusters on the test side, and the seed of that draw and of the order."""

    test: float
    seed: int


@dataclass(frozen=True)
class Neighbours:
    """Where a bucket's prompts stand among all: the buckets with their numbers of prompts, and what `dedupe` found."""

    buckets: Sequence[Path]
    counts: Sequence[int]
    files: Sequence[str]  # names of all raw files
    clusters: Path
    drop: bool  # whether near-duplicates are dropped, or only clustered
    split: Split
    old: int = 0  # how many of the buckets are of the data set before
    twins: Twins | None = None  # answers that repeat each other, where these are looked for


@dataclass(frozen=True)
class Pairing:
    """What becomes a pair."""

    strategy: Call
    filters: list[Call]


def select_bucket(folder: Path, bucket: int, rows: Bucket, among: Neighbours, how: Pairing) -> None:
    """Write the bucket's pairs and rejects into `folder`, as `save` does."""
    answers, prompts, fates = answers_left(bucket, rows, among, SCORE_RULES)
    rules = {**ALWAYS, **{call.name: rule(call) for call in how.filters}}
    judged, lost = judge(_pairs(answers, prompts, how.strategy), "pairs", rules)
    fates.append(unused(answers, judged, "pairs"))
    save(folder, "pairs", placed(judged, "pairs", among.split), pl.concat(fates), lost)


def answers_left(
    bucket: int, rows: Bucket, among: Neighbours, set_rules: Iterable[str]
) -> tuple[pl.DataFrame, pl.DataFrame, list[pl.DataFrame]]:
    """A bucket's answers (numbered as `candidate`) and prompts without near-duplicates, and the rejects so far.

    `set_rules` are judged anew where duplicate answers fall, since those may have been what others were better than.
    """
    here = among.buckets[bucket]
    neighbours = _neighbours(bucket, among)
    prompts, answers = sets_of(here, rows)
    prompts = prompts.join(neighbours, on="prompt_id", how="left", maintain_order="left")
    answers = answers.join(
        prompts.select("group", "prompt_id", "cluster_id"), on="group", how="left", maintain_order="left"
    )
    earlier = tables.read_whole(here / "rejects.arrow", schema.REJECTS).drop("cluster_id")
    earlier = earlier.join(neighbours.select("prompt_id", "cluster_id"), on="prompt_id", how="left")
    fates = [tables.empty(schema.REJECTS), earlier.select(schema.REJECTS.names)]
    if among.twins:
        answers = _drop_repeated(answers, fallen(bucket - among.old, among.twins, among.files), set_rules, fates)
    answers, prompts = _drop_near(answers, prompts, among.drop, fates)
    return answers.with_row_index("candidate").cast({"candidate": pl.Int64}), prompts, fates


def text_of(side: str) -> pl.Expr:
    """The text of an answer."""
    return pl.col(side).list.last().struct.field("content")


def save(folder: Path, kind: str, rows: pl.DataFrame, rejects: pl.DataFrame, lost: Mapping[str, int]) -> None:
    """The files of a bucket: rows.arrow, in their order, of which order.npy and test.npy hold the sort key, entry.npy
    and longer.npy what quotas ask; rejects.arrow; counts.json."""
    tables.write(folder / "rows.arrow", rows, PART[kind])
    for name in ("order", "test", "entry"):
        np.save(folder / f"{name}.npy", rows[name].to_numpy())
    np.save(folder / "longer.npy", rows.select(longer=_LONGER[kind])["longer"].to_numpy())
    rejects = rejects.sort("prompt_id", "origin_file", "origin_row", "completion_index")
    tables.write(folder / "rejects.arrow", rejects, schema.REJECTS)
    held_out = int(rows["test"].sum())
    counts = {"train": len(rows) - held_out, "test": held_out, "rejects": len(rejects), "lost": lost}
    (folder / "counts.json").write_text(json.dumps(counts | {"by_reason": tables.count_reasons(rejects)}))


def trim(
    folder: Path, kind: str, bucket: Path, rows: pl.DataFrame, fates: pl.DataFrame, reasons: Sequence[str]
) -> None:
    """Write a bucket, of which these are the rows, anew into `folder`, without those that a later rule takes.

    `fates` has of each row why it is `lost` (one of `reasons`; null: it stays) and the `detail`. Candidates that are
    then in no row go to the rejects.
    """
    rejects = tables.read_whole(bucket / "rejects.arrow", schema.REJECTS)
    fallen = unused(_candidates(rows, kind), rows.hstack(fates), kind)
    lost = json.loads((bucket / "counts.json").read_text())["lost"]
    lost |= {reason: int((fates["lost"] == reason).sum()) for reason in reasons}
    save(folder, kind, rows.filter(fates["lost"].is_null()), pl.concat([rejects, fallen]), lost)


def _candidates(rows: pl.DataFrame, kind: str) -> pl.DataFrame:
    """Each candidate of some rows once."""
    sides = [
        rows.select(
            "prompt_id",
            "cluster_id",
            candidate=number,
            origin_file=f"{side}_file",
            origin_row=f"{side}_row",
            completion_index=f"{side}_index",
        )
        for side, number in zip(schema.SIDES[kind], PLACES[kind], strict=True)
    ]
    return pl.concat(sides).unique("candidate", keep="first", maintain_order=True)


def _characters(side: str) -> pl.Expr:
    return trimmed(text_of(side)).str.len_chars()


# Whether chosen is the longer answer, which nothing asks of labels.
_LONGER = {
    "pairs": _characters("chosen") > _characters("rejected"),
    "labels": pl.repeat(False, pl.len(), dtype=pl.Boolean),
}


def _neighbours(bucket: int, among: Neighbours) -> pl.DataFrame:
    """Of each distinct prompt of the bucket: prompt_id, cluster_id, and for a near-duplicate its twin, the similarity,
    and whether it is `torn`: its cluster joins old ones of both sides of the split."""
    ids = tables.array(among.buckets[bucket] / "ids.npy")
    first = sum(among.counts[:bucket])
    arrays = {name: tables.array(among.clusters / f"{name}.npy") for name in CLUSTER_ARRAYS}
    mine = slice(*np.searchsorted(arrays["members"], [first, first + len(ids)]))
    members, heads, head_ids, origins, similarity = (np.asarray(array[mine]) for array in arrays.values())
    own = hexadecimal(ids)
    found = pl.DataFrame(
        {
            "prompt_id": own.gather(members - first),
            "cluster_id": hexadecimal(head_ids),
            "is_first": heads == members,
            "torn": np.isin(heads, _torn(among)),
            "similarity": similarity,
            "twin": [f"{among.files[part]}, row {row}" for part, row in origins.tolist()],
        },
        schema_overrides={"twin": pl.String},
    )
    every = pl.DataFrame({"prompt_id": own})
    return every.join(found, on="prompt_id", how="left", maintain_order="left").with_columns(
        pl.col("cluster_id").fill_null(pl.col("prompt_id")),
        pl.col("is_first").fill_null(True),
        pl.col("torn").fill_null(False),
    )


def _torn(among: Neighbours) -> npt.NDArray[np.int64]:
    """Representatives of clusters that join clusters of the data set before which lie on different sides."""
    joined = np.load(among.clusters / "joined.npy")
    sides = held_out(look_up(joined.ravel(), "ids", among.buckets, among.counts)[:, 0], among.split).reshape(-1, 2)
    torn: npt.NDArray[np.int64] = joined[sides[:, 0] != sides[:, 1], 0]
    return torn


CLUSTER_ARRAYS = ("members", "representative", "representative_ids", "twin_origins", "similarity")


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


def _drop_repeated(
    answers: pl.DataFrame, repeated: pl.DataFrame, set_rules: Iterable[str], fates: list[pl.DataFrame]
) -> pl.DataFrame:
    """Without the answers that repeat an earlier one, and without those that then break a rule over their set."""
    marked = (
        answers.with_row_index("at").cast({"at": pl.Int64}).join(repeated, on="at", how="left", maintain_order="left")
    )
    gone = marked.filter(pl.col("reason").is_not_null())
    fates.append(tables.rejects(gone, "dedupe", pl.col("reason"), pl.col("detail")))
    left = marked.filter(pl.col("reason").is_null()).select(answers.columns)
    for reason in set_rules:
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
    pairs = edges.hstack(side_of(chosen, "chosen")).hstack(side_of(rejected, "rejected"))
    pairs = with_prompts(pairs.hstack(chosen.select("group", "prompt_id", "cluster_id")), prompts)
    return pairs.with_columns(margin=pl.col("chosen_score") - pl.col("rejected_score"), strategy=pl.lit(strategy.name))


def with_prompts(rows: pl.DataFrame, prompts: pl.DataFrame) -> pl.DataFrame:
    """Rows of a `group` with what is known of its prompt."""
    shared = prompts.select("group", "prompt", "source", "lang", "lang_prob", "langs", "entry")
    return rows.join(shared, on="group", how="left", maintain_order="left")


def side_of(answers: pl.DataFrame, name: str) -> pl.DataFrame:
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


def judge(rows: pl.DataFrame, kind: str, rules: Mapping[str, Rule]) -> tuple[pl.DataFrame, dict[str, int]]:
    """Mark each row with the first rule that it breaks: columns `lost` (null: none) and `detail`; and count them."""
    texts = [f"{side}_text" for side in schema.SIDES[kind]]
    left = rows.with_row_index("at")
    fallen: list[pl.DataFrame] = []
    for name, judged in rules.items():
        with blamed(name):
            verdict = left.with_columns(keep=judged.keep.fill_null(False))["keep"]
            broken = left.filter(~verdict)
            if judged.told is None or broken.is_empty():
                said = detail(judged, broken.drop(texts))
            else:
                said = left.select(judged.told).to_series().filter(~verdict)
        fallen.append(broken.select("at", lost=pl.lit(name), detail=said))
        left = left.filter(verdict)
    marks = pl.concat([pl.DataFrame(schema={"at": pl.UInt32, "lost": pl.String, "detail": pl.String}), *fallen])
    marked = rows.with_row_index("at").join(marks, on="at", how="left", maintain_order="left").drop("at")
    return marked, {name: len(marked) for name, marked in zip(rules, fallen, strict=True)}


def unused(answers: pl.DataFrame, judged: pl.DataFrame, kind: str) -> pl.DataFrame:
    """Candidates in no row that stays, with the rule that took their first one, or "not_selected"."""
    sides = [judged.select("lost", "detail", candidate=place) for place in PLACES[kind]]
    touched = pl.concat(sides).group_by("candidate", maintain_order=True)
    fate = touched.agg(pl.col("lost").is_null().any().alias("stays"), pl.col("lost", "detail").first())
    left = answers.join(fate, on="candidate", how="left", maintain_order="left")
    left = left.filter(~pl.col("stays").fill_null(False)).with_columns(pl.col("lost").fill_null("not_selected"))
    return tables.rejects(left, "binarize", pl.col("lost"), pl.col("detail"))


def placed(judged: pl.DataFrame, kind: str, split: Split) -> pl.DataFrame:
    """The rows that stay, with ids, split and order, which are functions of the text, the cluster and the seed alone;
    sorted."""
    rows = judged.filter(pl.col("lost").is_null())
    texts = rows.select("prompt_id", *(text_of(side).alias(side) for side in schema.SIDES[kind]))
    order = keys_of(rows["prompt_id"]) ^ np.uint64(uniform(str(split.seed), "order"))
    columns = [
        hexadecimal(digests(texts.get_columns())).alias(schema.IDS[kind]),
        pl.Series("test", held_out(keys_of(rows["cluster_id"]), split), pl.Boolean),
        pl.Series("order", order, pl.UInt64),
    ]
    return rows.with_columns(columns).select(PART[kind].names).sort(SORT[kind])


def held_out(keys: npt.NDArray[np.uint64], split: Split) -> npt.NDArray[np.bool_]:
    """Whether the clusters with these keys (the first 64 bits of their id) are on the test side."""
    drawn: npt.NDArray[np.bool_] = scrambled(keys ^ np.uint64(uniform(str(split.seed), "split"))) < split.test * 2**64
    return drawn


def scrambled(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A 64-bit mix in which every bit of a value decides about every bit of the result (splitmix64's finaliser)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
