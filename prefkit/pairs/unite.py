"""Task 2: a bucket of prompts from all parts -> the sets of comparable answers, and the sketches of the prompts.

    rows of the bucket -> sets -> rules over a set -> equal prompts -> sketches

A bucket is a range of keys, so all rows of equal prompts meet in one bucket, whatever files they came from. A set is
what a pair may be made of: answers whose scores compare. Ratings on one scale (`absolute`) of equal prompts make one
set with `on_duplicate = "merge"`; the answers of a comparison or a ranking stay a set of their own.

Prompts go by their ordinal, the position among all prompts in input order, which does not depend on how the input was
cut. What a later, global step needs of the bucket's prompts is a few fixed-width arrays (`*.npy`), memory-mapped there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from prefkit import schema
from prefkit.pairs import minhash, tables
from prefkit.pairs.bucket import Bucket
from prefkit.pairs.packed import Packed, numbers_of

# The sets: `group` is the ordinal of a set's first prompt, `at` the place of the row among those of the bucket.
SETS = pa.schema([("group", pa.int64()), ("at", pa.int64())])

# What decides about sets.
OF_PROMPTS = ("absolute", "prompt_id", "canonical", "origin_file", "origin_row")
OF_ANSWERS = ("completion_index", "score", "text", "origin_file", "origin_row")


def _same_text_otherwise_scored() -> pl.Expr:
    """A detail, of answers whose text has several scores: where the first of another score than theirs stands."""
    same = ("group", "text")
    is_first = pl.col("score") == pl.col("score").first().over(same)

    def other(score: pl.Expr) -> pl.Expr:
        names = ("origin_file", "origin_row", "completion_index", "score")
        place = (pl.col(name).filter(score).first().over(same) for name in names)
        return pl.format("{}, row {}, answer {} is the same text with the score {}", *place)

    return pl.when(is_first).then(other(~is_first)).otherwise(other(is_first))


# Rules over a set that no pipeline can turn off: a pair needs two different answers, and scores that say which is
# better; labels need that no text has two. They come before duplicates are looked for, so that the first of them is one
# that can give a pair.
SET_RULES: dict[str, tuple[pl.Expr, str | pl.Expr]] = {
    "identical_responses": (
        pl.col("score").n_unique().over("group", "text") == 1,
        _same_text_otherwise_scored(),
    ),
    "repeated_response": (
        pl.int_range(pl.len()).over("group", "text") == 0,
        pl.lit("an earlier answer to the prompt is the same text with the same score"),
    ),
    "too_few_candidates": (pl.len().over("group") >= 2, ""),
    "tied": (pl.col("score").n_unique().over("group") > 1, pl.format("all answers that are left score {}", "score")),
}
TEXT_RULES = ("identical_responses", "repeated_response")  # what labels need as well
SCORE_RULES = ("too_few_candidates", "tied")


@dataclass(frozen=True)
class Known:
    """The prompts of the data set that is added to: folders of its sketches, and the names of its raw files."""

    sketches: Sequence[Path] = ()
    files: Sequence[str] = ()


@dataclass(frozen=True)
class Sketching:
    """How near-duplicates are looked for: see `minhash`."""

    ngram: int
    unit: minhash.Unit
    fold_case: bool
    permutations: npt.NDArray[np.uint32]  # [2, permutations]
    bands: int
    rows: int  # signature values of a band


@dataclass(frozen=True)
class Uniting:
    """What happens to equal prompts: the first is kept, or their answers are merged, or all are kept apart."""

    on_duplicate: str  # first, merge
    drop: bool
    sketching: Sketching
    rules: tuple[str, ...] = (*TEXT_RULES, *SCORE_RULES)


class Sketches(NamedTuple):
    """The distinct prompts of a bucket, ascending by id."""

    ids: npt.NDArray[np.uint64]  # [prompts, 2]: the 128 bits
    ordinals: npt.NDArray[np.int64]
    origins: npt.NDArray[np.int64]  # [prompts, 2]: number of the raw file, row
    band_keys: minhash.U64  # [bands, prompts], ascending in each band
    band_prompts: npt.NDArray[np.int32]  # [bands, prompts]: whose key it is
    shingles: minhash.U64
    spans: npt.NDArray[np.int64]  # [prompts, 2]: where each prompt's shingles begin and end


def unite_bucket(folder: Path, bucket: Bucket, how: Uniting, known: Known) -> None:
    """Write prompts.arrow and answers.arrow (by sets), rejects.arrow, the sketches and counts.json into `folder`."""
    prompts, answers = bucket.rows(OF_PROMPTS, OF_ANSWERS)
    prompts = prompts.sort("ordinal")
    sets = _sets(prompts, how)
    answers = answers.join(sets, on="ordinal", how="left").sort("group", "ordinal", "at")
    rejects = [tables.empty(schema.REJECTS)]
    for reason in how.rules:
        rule, detail = SET_RULES[reason]
        verdict = answers.select(keep=rule)["keep"]
        rejects.append(tables.rejects(answers.filter(~verdict), "filter", reason, detail))
        answers = answers.filter(verdict)
    prompts = prompts.join(answers.select(ordinal="group").unique(), on="ordinal", how="semi", maintain_order="left")
    if how.drop:
        answers, prompts = _drop_known(answers, prompts, known, rejects)
    heads = _heads(prompts)
    answers, prompts = _drop_equal(answers, prompts, heads, how, rejects)
    tables.write_whole(folder / "prompts.arrow", prompts.with_columns(group="ordinal"), SETS)
    tables.write_whole(folder / "answers.arrow", answers, SETS)
    tables.write_whole(folder / "rejects.arrow", pl.concat(rejects), schema.REJECTS)
    sketches = sketch(heads, how.sketching)
    for name, array in sketches._asdict().items():
        np.save(folder / f"{name}.npy", array)
    (folder / "counts.json").write_text(json.dumps({"prompts": len(heads)}))


def _sets(prompts: pl.DataFrame, how: Uniting) -> pl.DataFrame:
    """Which set each prompt's answers belong to: ordinal, group (the ordinal of its first prompt), prompt_id."""
    united = pl.col("ordinal")
    if how.on_duplicate == "merge":
        first = pl.col("ordinal").first().over("prompt_id", "entry", "absolute")
        united = pl.when("absolute").then(first).otherwise("ordinal")
    return prompts.select("ordinal", "prompt_id", group=united)


def _heads(prompts: pl.DataFrame) -> pl.DataFrame:
    """The first prompt of each id, ascending by id."""
    return prompts.unique("prompt_id", keep="first", maintain_order=True).sort("prompt_id")


def _drop_known(
    answers: pl.DataFrame, prompts: pl.DataFrame, known: Known, rejects: list[pl.DataFrame]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Without the sets of prompts that the data set before has, whose pairs stay as they are."""
    twins: list[str | None] = [None] * len(prompts)
    mine = numbers_of(prompts["prompt_id"]).view(_ID).ravel()
    for folder in known.sketches:
        theirs = tables.array(folder / "ids.npy").view(_ID).ravel()
        first, last = (np.searchsorted(theirs, mine, side=side) for side in ("left", "right"))
        origins = tables.array(folder / "origins.npy")
        for number in np.flatnonzero(first < last).tolist():
            file, row = origins[first[number]]
            twins[number] = f"{known.files[file]}, row {row} of the data set before is the same prompt"
    prompts = prompts.with_columns(twin=pl.Series(twins, dtype=pl.String))
    gone = prompts.filter(pl.col("twin").is_not_null()).select("twin", group="ordinal")
    fallen = answers.join(gone, on="group", maintain_order="left")
    rejects.append(tables.rejects(fallen, "dedupe", "exact_duplicate", pl.col("twin")))
    answers = answers.join(gone, on="group", how="anti", maintain_order="left")
    return answers, prompts.filter(pl.col("twin").is_null()).drop("twin")


_ID = np.dtype([("high", np.uint64), ("low", np.uint64)])  # compares as the hexadecimal text does


def _drop_equal(
    answers: pl.DataFrame, prompts: pl.DataFrame, heads: pl.DataFrame, how: Uniting, rejects: list[pl.DataFrame]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Without the sets of equal prompts that `how` drops."""
    if not how.drop:
        return answers, prompts
    head = heads.select("prompt_id", head="ordinal", head_entry="entry", head_file="origin_file", head_row="origin_row")
    joined = prompts.join(head, on="prompt_id", how="left", maintain_order="left")
    kept = pl.col("ordinal") == pl.col("head")
    if how.on_duplicate == "merge":  # scores of different inputs do not compare, so the first input has the prompt
        kept = pl.col("entry") == pl.col("head_entry")
    gone = joined.filter(~kept).select("head_file", "head_row", group="ordinal")
    fallen = answers.join(gone, on="group", maintain_order="left")
    twin = pl.format("{}, row {} is the same prompt", "head_file", "head_row")
    rejects.append(tables.rejects(fallen, "dedupe", "exact_duplicate", twin))
    answers = answers.join(gone, on="group", how="anti", maintain_order="left")
    return answers, prompts.filter(joined.select(keep=kept)["keep"])


def sets_of(united: Path, bucket: Bucket) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The prompts and answers that `unite_bucket` kept, with all their columns; texts stay where they lie."""
    found = []
    for name, rows in zip(("prompts", "answers"), bucket.rows(), strict=True):
        kept = tables.read_whole(united / f"{name}.arrow", SETS)
        found.append(rows.drop("at")[kept["at"]].with_columns(kept["group"]))
    return found[0], found[1]


def sketch(heads: pl.DataFrame, how: Sketching) -> Sketches:
    """The sketches of some prompts."""
    found = sketch_texts(Packed.of_column(heads["canonical"]), how)
    origins = heads.select("file", "origin_row").cast(pl.Int64).to_numpy()
    return Sketches(numbers_of(heads["prompt_id"]), heads["ordinal"].to_numpy(), origins, *found)


def sketch_texts(
    texts: Sequence[str] | Packed, how: Sketching
) -> tuple[minhash.U64, npt.NDArray[np.int32], minhash.U64, npt.NDArray[np.int64]]:
    """Band keys, whose they are, shingles and their spans, as in Sketches, of canonical texts."""
    hashes, offsets = minhash.shingles(texts, how.ngram, how.unit)
    signatures = minhash.signatures(hashes, offsets, how.permutations).T
    keys = np.empty((how.bands, signatures.shape[1]), np.uint64)
    owners = np.empty((how.bands, signatures.shape[1]), np.int32)
    for band in range(how.bands):
        found = minhash.band_keys(np.ascontiguousarray(signatures[band * how.rows : (band + 1) * how.rows]))
        owners[band] = minhash.order_of(found)
        keys[band] = found[owners[band]]
    return keys, owners, hashes, np.stack([offsets[:-1], offsets[1:]], axis=1)
