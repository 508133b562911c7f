"""`prefkit verify DIR`: prove from the files alone that a data set is whole and what its manifest says.

Checked: every file's size, SHA-256, rows and schema; that the generations before are still in it, and that a report is
of it; that the stages of the manifest add up and end in the pairs; that every pair is a real preference, and every
answer has one label; that no cluster stands in both splits; and conservation: each raw row, and each candidate, is
either in the data or in REJECTS, once.

Of what `prefkit adopt` made, which has neither stages nor rejects: the files, and that equal conversations have one
split.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from prefkit import manifest, schema
from prefkit.manifest import Manifest, Shard
from prefkit.pairs import extend
from prefkit.pairs.publish import REPORT, files_of

ROW = ["origin_file", "origin_row"]
CANDIDATE = [*ROW, "completion_index"]


def verify(folder: Path) -> list[str]:
    """What is wrong with the data set in `folder`, as sentences; empty if nothing. DataError if it has no manifest."""
    record = manifest.read(folder)
    wrong = [problem for shard in record.shards for problem in _shard(folder, shard, record.kind)]
    if (folder / "sketches").is_dir():  # without them a data set is whole, but cannot be added to
        wrong += extend.damaged(folder, record)
    listed = {file.path for files in (record.shards, record.sketches) for file in files}
    present = {path.relative_to(folder).as_posix() for path in files_of(folder)}
    wrong += [f"{name}: not in the manifest." for name in sorted(present - listed)]
    whole = not wrong
    report = folder / REPORT
    if report.is_file() and record.data_hash.encode() not in report.read_bytes():
        wrong.append(f"{REPORT}: is of another data set; prefkit report {folder} makes it anew.")
    if record.kind == "conversations":
        return wrong + (list(_conversations(folder, record)) if whole else [])
    wrong += _generations(record)
    wrong += _stages(record)
    if whole:  # of damaged files the rest would only say the same in other words
        wrong += _preferences(folder, record) if record.kind == "pairs" else _labels(folder, record)
        wrong += _leaks(folder, record, "cluster_id", "clusters")
        wrong += _conservation(folder, record)
    return wrong


def _conversations(folder: Path, record: Manifest) -> Iterator[str]:
    rows, held = sum(file.rows for file in record.inputs), record.rows("train") + record.rows("test")
    if rows != held:
        yield f"conservation: {rows:,} rows came in, but the shards hold {held:,}."
    yield from _leaks(folder, record, "prompt_id", "conversations")


def _shard(folder: Path, shard: Shard, kind: manifest.Kind) -> Iterator[str]:
    path = folder / shard.path
    if not path.is_file():
        yield f"{shard.path}: missing."
        return
    if path.stat().st_size != shard.bytes:
        yield f"{shard.path}: {path.stat().st_size:,} bytes, but the manifest says {shard.bytes:,}."
        return
    if manifest.file_sha256(path) != shard.sha256:
        yield f"{shard.path}: its SHA-256 is not the manifest's, so its content changed."
        return
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        yield f"{shard.path}: not readable as Parquet ({str(error).splitlines()[0]})."
        return
    name = "rejects" if shard.split == "rejects" else kind
    if not file.schema_arrow.equals(schema.TABLES[name]):
        yield f"{shard.path}: its columns are not those of {name.upper()}."
    if file.metadata.num_rows != shard.rows:
        yield f"{shard.path}: {file.metadata.num_rows:,} rows, but the manifest says {shard.rows:,}."


def _generations(record: Manifest) -> Iterator[str]:
    for number, one in enumerate(record.generations):
        if manifest.data_hash(record.shards[: one.shards]) != one.data_hash:
            yield f"manifest: the shards of generation {number} are not those that were added to."


def _stages(record: Manifest) -> Iterator[str]:
    for stage in record.stages:
        if stage.came_in - sum(stage.rejected.values()) != stage.went_out:
            yield f"manifest: stage {stage.stage} ({stage.unit}) does not add up."
    rows = sum(file.rows for file in record.inputs)
    if [stage.came_in for stage in record.stages if stage.unit == "rows"] != [rows]:
        yield f"manifest: the inputs have {rows:,} rows, which is not what its first stage took in."
    candidates = [stage for stage in record.stages if stage.unit == "candidates"]
    if not candidates:
        yield "manifest: it has no stage of candidates."
    for earlier, later in pairwise(candidates):
        if earlier.went_out != later.came_in:
            yield (
                f"manifest: {later.stage} takes in {later.came_in:,} candidates, "
                f"but {earlier.stage} gave {earlier.went_out:,}."
            )
    said = sum(stage.went_out for stage in record.stages if stage.unit == record.kind)
    held = record.rows("train") + record.rows("test")
    if said != held:
        yield f"manifest: {said:,} {record.kind} by its stages, but its shards hold {held:,}."


def _scan(folder: Path, record: Manifest, *splits: str) -> Iterator[tuple[Shard, pl.LazyFrame]]:
    for shard in record.shards:
        if shard.split in splits:
            yield shard, pl.scan_parquet(folder / shard.path)


def _preferences(folder: Path, record: Manifest) -> Iterator[str]:
    margin = pl.col("chosen_score") - pl.col("rejected_score")
    chosen, rejected = (pl.col(side).list.last().struct.field("content") for side in ("chosen", "rejected"))
    broken = {
        "chosen is not scored above rejected": (margin > 0).not_().fill_null(True),
        "the margin is not the difference of the scores": (pl.col("margin") != margin).fill_null(True),
        "chosen and rejected are the same text": (chosen.str.strip_chars() == rejected.str.strip_chars()).fill_null(
            True
        ),
        "the prompt is empty": pl.col("prompt").list.len() == 0,
    }
    for shard, rows in _scan(folder, record, "train", "test"):
        counts = rows.select(rule.sum().alias(name) for name, rule in broken.items()).collect().row(0, named=True)
        for name, count in counts.items():
            if count:
                yield f"{shard.path}: {count:,} pairs in which {name}."


def _labels(folder: Path, record: Manifest) -> Iterator[str]:
    text = pl.col("completion").list.last().struct.field("content")
    broken = {
        "an answer has no label": pl.col("label").is_null(),
        "an answer has no score": pl.col("completion_score").is_null(),
        "the answer is empty": text.str.strip_chars() == "",
        "the prompt is empty": pl.col("prompt").list.len() == 0,
        "a text stands under its prompt before": pl.col("answer_id").is_duplicated(),
    }
    bounds: dict[bool, list[float]] = {True: [], False: []}
    for shard, rows in _scan(folder, record, "train", "test"):
        counts = rows.select(rule.sum().alias(name) for name, rule in broken.items()).collect().row(0, named=True)
        yield from (f"{shard.path}: {count:,} rows in which {name}." for name, count in counts.items() if count)
        score = pl.col("completion_score")
        for label, low, high in rows.group_by("label").agg(score.min().alias("low"), high=score.max()).collect().rows():
            if label is not None:
                bounds[label].append(low if label else high)
    if not record.generations and min(bounds[True], default=math.inf) <= max(bounds[False], default=-math.inf):
        yield "labels: an answer with a good label is scored no higher than one with a bad label."


def _leaks(folder: Path, record: Manifest, column: str, what: str) -> Iterator[str]:
    sides = [
        pl.concat(
            [rows.select(column).unique().collect() for _, rows in _scan(folder, record, split)]
            or [pl.DataFrame(schema={column: pl.String})]
        )
        for split in ("train", "test")
    ]
    both = sides[0].unique().join(sides[1].unique(), on=column, how="semi")
    if len(both):
        yield f"leak: {len(both):,} {what} stand in train and in test, for example {both[column][0]}."


def _conservation(folder: Path, record: Manifest) -> Iterator[str]:
    sides = [
        rows.select(origin_file=f"{side}_file", origin_row=f"{side}_row", completion_index=f"{side}_index").collect()
        for _, rows in _scan(folder, record, "train", "test")
        for side in schema.SIDES[record.kind]
    ]
    rejects = [rows.select("stage", "reason", *CANDIDATE).collect() for _, rows in _scan(folder, record, "rejects")]
    fallen = pl.concat([*rejects, pl.DataFrame(schema=_FALLEN)])
    kept = pl.concat([*sides, pl.DataFrame(schema={name: _FALLEN[name] for name in CANDIDATE})]).unique()
    candidates = fallen.filter(pl.col("completion_index").is_not_null())
    if twice := len(fallen) - len(fallen.unique(CANDIDATE)):
        yield f"rejects: {twice:,} rows or candidates were rejected twice."
    if both := len(candidates.join(kept, on=CANDIDATE, how="semi")):
        yield f"conservation: {both:,} candidates are in {record.kind} and in rejects."
    total = next((stage.came_in for stage in record.stages if stage.unit == "candidates"), 0)
    if total != len(candidates) + len(kept):
        yield (
            f"conservation: {total:,} candidates came in, "
            f"{len(kept):,} are in {record.kind} and {len(candidates):,} in rejects."
        )
    yield from _rows(record, pl.concat([kept.select(ROW), fallen.select(ROW)]).unique())
    yield from _reasons(record, fallen)


_FALLEN = {
    "stage": pl.String,
    "reason": pl.String,
    "origin_file": pl.String,
    "origin_row": pl.Int64,
    "completion_index": pl.Int32,
}


def _rows(record: Manifest, seen: pl.DataFrame) -> Iterator[str]:
    by_file = dict(seen.group_by("origin_file").len().iter_rows())
    for file in record.inputs:
        if (count := by_file.pop(file.path, 0)) != file.rows:
            where = f"{record.kind} or rejects"
            yield f"conservation: {file.path} has {file.rows:,} rows, of which {count:,} are in {where}."
    for name in by_file:
        yield f"conservation: rows of {name}, which is not among the inputs."


def _reasons(record: Manifest, fallen: pl.DataFrame) -> Iterator[str]:
    said: Counter[tuple[str, bool, str]] = Counter()
    for stage in record.stages:
        if stage.unit != record.kind:
            for reason, count in stage.rejected.items():
                said[stage.stage, stage.unit == "rows", reason] += count
    found = fallen.group_by("stage", pl.col("completion_index").is_null(), "reason").len()
    seen = Counter({(stage, is_row, reason): count for stage, is_row, reason, count in found.iter_rows()})
    for where in sorted(said.keys() | seen.keys()):
        if said[where] != seen[where]:
            yield f"rejects: {where[2]} of {where[0]}: {seen[where]:,} rows, but the manifest says {said[where]:,}."
