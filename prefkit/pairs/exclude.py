"""`[build] exclude`: pairs (or labels) that a person flagged fall, with the note as the reason's detail.

    select ─▶ exclude ─▶ quotas, mix         only where a pipeline names a file of flags
    a task    a task a bucket

It comes behind everything that decides what a pair is, so changed flags redo this step and what follows, and before
quotas, which other pairs then fill. Nothing takes the place of an excluded pair: the strategy does not choose again. A
candidate that is in no other pair goes to the rejects, as for every other rule.

A flag that no pair meets is no error, since the pair may have fallen to another rule; but it is said, in the summary,
the dataset card and the manifest, and counted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from prefkit.errors import UsageError
from prefkit.manifest import Manifest, file_sha256, write_text_atomically
from prefkit.pairs import flags, inputs, tables
from prefkit.pairs.engine import RunTasks, Task, key
from prefkit.pairs.flags import KINDS
from prefkit.pairs.select import PART, trim
from prefkit.schema import IDS

REASONS = ("flagged",)
MOST_SHOWN = 10  # flags that a remark names


class Excluded(NamedTuple):
    """The files of flags, by name with their SHA-256, and the note of every flag: `notes[kind][id]`."""

    files: dict[str, str]
    notes: dict[str, dict[str, str]]

    def ids(self) -> Iterator[tuple[str, str]]:
        """Kind and id of each."""
        return ((kind, identity) for kind in KINDS for identity in self.notes[kind])


def read(paths: Any, base: Path, where: str) -> Excluded:
    """The flags of the option `exclude`: a file, or a list of files, relative to `base`.

    Notes of one id in several lines are all kept. Raises UsageError where a file is not there, DataError for a bad
    line.
    """
    names = [paths] if isinstance(paths, str) else paths
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise UsageError(f'{where}: name a file of flags, "flags.jsonl", or a list of such files, not {paths!r}.')
    found = [base / os.path.expanduser(name) for name in names]
    for path in found:
        if not path.is_file():
            raise UsageError(f"{where}: {path}: no such file. A relative path starts at the pipeline file.")
    notes: dict[str, dict[str, list[str]]] = {kind: {} for kind in KINDS}
    for flag in (flag for path in found for flag in flags.read(path)):
        said = notes[flag.kind].setdefault(flag.id, [])
        if flag.note and flag.note not in said:
            said.append(flag.note)
    (files,) = inputs.name_files([found])
    return Excluded(
        {file.name: file_sha256(path) for file, path in zip(files, found, strict=True)},
        {kind: {identity: "; ".join(said) for identity, said in of.items()} for kind, of in notes.items()},
    )


def refuse_standing(folder: Path, record: Manifest, excluded: Excluded) -> None:
    """UsageError where a flag names a pair of the data set that is added to, whose pairs stay as they are."""
    for shard in [shard for shard in record.shards if shard.split != "rejects"]:
        flagged = [pl.col(name).is_in(list(excluded.notes[kind])) for kind, name in _columns(record.kind)]
        rows = pl.scan_parquet(folder / shard.path).filter(pl.any_horizontal(flagged)).select(IDS[record.kind])
        standing = rows.head(1).collect(engine="streaming").to_series().to_list()
        if standing:
            raise UsageError(
                f"[build] exclude: pair {standing[0]} stands in {folder}, whose pairs stay as they are. Build {folder} "
                "again with these flags first, or take out the flags of its pairs."
            )


def _columns(kind: str) -> Iterator[tuple[str, str]]:
    """The kinds of flags, and which column of a data set each is about: a flagged pair may be a labelled answer."""
    yield from zip(KINDS, (IDS[kind], "prompt_id"), strict=True)


def leave_out(selected: list[Path], kind: str, excluded: Excluded, work: Path, run: RunTasks) -> list[Path]:
    """Run the step over finished buckets of pairs; the folders of those without the flagged pairs."""
    identity = key(excluded.notes)
    listed = work / "flags" / f"{identity}.json"
    listed.parent.mkdir(exist_ok=True)
    write_text_atomically(listed, json.dumps(excluded.notes))
    tasks = [
        Task(work / "exclude" / key(bucket.name, identity), exclude_bucket, (bucket, kind, listed))
        for bucket in selected
    ]
    run("exclude", tasks)
    return [task.folder for task in tasks]


def exclude_bucket(folder: Path, bucket: Path, kind: str, listed: Path) -> None:
    """Write a bucket of `select` anew, without the flagged pairs; and met.json, the flags that were met: a task."""
    notes: Mapping[str, Mapping[str, str]] = json.loads(listed.read_text())
    rows = tables.read_whole(bucket / "rows.arrow", PART[kind])
    said = [_said(rows[name], flag, notes[flag]) for flag, name in _columns(kind)]
    details = pl.select(detail=pl.coalesce(said))
    fates = details.select(lost=pl.when(pl.col("detail").is_not_null()).then(pl.lit(REASONS[0])), detail="detail")
    met = {flag: sorted(set(rows[name]) & notes[flag].keys()) for flag, name in _columns(kind)}
    (folder / "met.json").write_text(json.dumps(met))
    trim(folder, kind, bucket, rows, fates, REASONS)


def _said(ids: pl.Series, kind: str, notes: Mapping[str, str]) -> pl.Series:
    """Of each id what its flag says, null where it has none."""
    texts = {identity: f"{kind}_id: {note or 'no note'}" for identity, note in notes.items()}
    return ids.replace_strict(texts, default=None, return_dtype=pl.String)


def remarks(selected: Sequence[Path], excluded: Excluded) -> list[str]:
    """A sentence about the flags that met no pair, if there are any."""
    met = {
        (kind, identity)
        for folder in selected
        for kind, ids in json.loads((folder / "met.json").read_text()).items()
        for identity in ids
    }
    every = list(excluded.ids())
    left = [f"{kind} {identity}" for kind, identity in every if (kind, identity) not in met]
    if not left:
        return []
    more = f" and {len(left) - MOST_SHOWN:,} more" if len(left) > MOST_SHOWN else ""
    return [
        f"exclude: {len(left):,} of {len(every):,} flags met no pair: {', '.join(left[:MOST_SHOWN])}{more}. Their "
        "texts changed, another rule took the pair before, or it is of other raw files; prefkit why tells."
    ]
