"""From finished tasks to a finished data set: the files in place, the manifest last."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit import manifest
from prefkit.config import Pipeline
from prefkit.errors import DataError, UsageError
from prefkit.manifest import InputFile, Manifest, Shard, SketchFile
from prefkit.pairs import card, extend, software
from prefkit.pairs.engine import Task, remove, sweep
from prefkit.pairs.extend import Before
from prefkit.pairs.options import Options

if TYPE_CHECKING:
    from prefkit.pairs.steps import Source

REMOVERS = 4  # threads
REPORT = "report.html"
FOLDERS = ("data", "rejects", "sketches")
OURS = re.compile(r"(data/(train|test)|rejects/rejects)-\d{5}-of-\d{5}(-g\d+)?\.parquet|sketches/g\d+/[\w-]+\.npy")


@dataclass(frozen=True)
class PlannedFile:
    """A Parquet file of the data set: the task that writes it, its split, and its place under OUT."""

    task: Task
    split: str
    name: str


@contextmanager
def only_builder(out: Path) -> Iterator[None]:
    """Make OUT and hold its lock, so that two builds never mix. UsageError for a folder that is not ours.

    A finished data set that may not be written to is not locked: we can only look whether it is what is asked for,
    which no other builder minds; whatever else there was to do fails where it would write.
    """
    _check_ours(out)
    if (out / manifest.FILE_NAME).exists() and not os.access(out, os.W_OK):
        yield
        return
    work = out / ".work"
    made = [path for path in (work, *work.parents) if not path.exists()]
    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.path.samestat(os.fstat(lock.fileno()), (work / "lock").stat())
        except (BlockingIOError, FileNotFoundError):
            held = False
        if not held:  # by another, or the lock of a build that ended while we were asking
            raise UsageError(f"{out}: another prefkit is building here.")
        shutil.rmtree(out / ".work.done", ignore_errors=True)
        sweep(work)
        try:
            yield
        finally:
            _remove_if_unused(work, made)


def _check_ours(out: Path) -> None:
    """UsageError unless OUT is new, empty, or a data set of prefkit (finished, or begun) with nothing else in its
    folders."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file; --out wants a folder.")
    for folder in out.resolve().parents:
        if out.resolve().relative_to(folder).parts[0] in FOLDERS and (folder / manifest.FILE_NAME).is_file():
            raise UsageError(f"{out}: lies in the data set {folder}, which it would damage; choose another --out.")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / ".work").is_dir() and not (out / ".work.done").is_dir():
        try:
            manifest.read(out)
        except DataError:
            raise UsageError(
                f"{out}: is not empty, and no data set of prefkit; choose an empty or new folder."
            ) from None
    for folder in (out / ".work", *(out / name for name in FOLDERS), *out.glob("sketches/*")):
        if folder.is_symlink():
            raise UsageError(f"{folder}: is a link; a data set keeps its files in folders of its own.")
    for path in files_of(out):
        if not OURS.fullmatch(path.relative_to(out).as_posix()) or not path.is_file():
            raise UsageError(f"{path}: is not of a data set of prefkit; move it away, or choose another --out.")


def files_of(out: Path) -> list[Path]:
    """What stands in the folders of a data set."""
    of_sketches = [path for path in out.glob("sketches/*") if not path.is_dir()]
    return [*out.glob("data/*"), *out.glob("rejects/*"), *of_sketches, *out.glob("sketches/*/*")]


def _remove_if_unused(work: Path, made: list[Path]) -> None:
    """Leave no trace of a build that ended before its first task did."""
    if work.is_dir() and {path.name for path in work.iterdir()} <= {"lock"}:
        (work / "lock").unlink(missing_ok=True)
        for folder in made if work in made else [work]:
            if any(folder.iterdir()):
                return
            folder.rmdir()


@contextmanager
def cleaning(out: Path, keep_work: bool) -> Iterator[None]:
    """Remove the finished steps while something else is done: no half-removed step counts as done.

    The last one, of which the report reads, is removed at the end; its large files are names of what is in place.
    """
    work = out / ".work"
    if keep_work or not os.access(out, os.W_OK):
        yield
        return
    with ThreadPoolExecutor(REMOVERS) as removers:  # large files take a while, in which others go on
        removed = removers.map(remove, [path for path in work.glob("*/*") if path.parent.name != "write"])
        yield
        list(removed)
    work = work.rename(out / ".work.done")
    shutil.rmtree(work)


def plan(
    pipeline: Pipeline, options: Options, sources: Sequence[Source], limit: int | None, before: Before
) -> Manifest:
    """The manifest as far as it is known before anything ran: what the data set is made from."""
    return Manifest(
        pipeline_name=pipeline.name,
        pipeline=pipeline.text,
        overrides=pipeline.overrides,
        options=options.shown() | {"limit": limit},
        versions=software.versions(),
        inputs=[
            *(before.record.inputs if before.record else []),
            *(InputFile(given.file.name, *given.index.finish()[:2], 0) for given in sources),
        ],
        stages=[],
        shards=[],
        generations=before.generations,
        kind=options.kind,
    )


def finished(out: Path, planned: Manifest, overwrite: bool, scratch: bool = False) -> Manifest | None:
    """The data set that already stands in OUT, if it is the planned one; None if there is none, or it is to go.

    In a `scratch` folder, where a data set is only built before it is uploaded, any other may go.
    """
    if overwrite or not (out / manifest.FILE_NAME).exists():
        return None
    present = manifest.read(out)
    if is_planned(present, planned):
        return present
    if scratch:
        return None
    raise other_data_set(str(out))


def is_planned(present: Manifest, planned: Manifest) -> bool:
    """Whether a finished data set was made from the planned inputs, options, versions and generations before."""

    def made_from(record: Manifest) -> Any:
        inputs = [(file.path, file.sha256) for file in record.inputs]
        return json.loads(
            json.dumps([inputs, record.options, record.versions, list(map(dataclasses.asdict, record.generations))])
        )

    return bool(made_from(present) == made_from(planned))


def other_data_set(where: str) -> UsageError:
    """What to say where a data set of other inputs or options is in the way."""
    return UsageError(
        f"{where}: holds a finished data set of other inputs, options or versions. "
        "Add --overwrite to replace it, or choose another --out."
    )


def publish(out: Path, record: Manifest, files: Sequence[PlannedFile], sketches: Path, before: Before) -> Manifest:
    """Put the files into place beside those of before, remove what is not of this data set, write card and manifest.

    The finished tasks keep their files (a file of the data set is a second name for the same bytes), so this can be
    done again from the beginning: killed anywhere in between, the folder has no manifest, and the next run does.
    """
    shards = [
        Shard(file.name, file.split, **json.loads((file.task.folder / "shard.json").read_text())) for file in files
    ]
    generation = f"sketches/g{len(before.generations)}"
    made = json.loads((sketches / "sketches.json").read_text())
    arrays = made["files"]
    new_sketches = [SketchFile(f"{generation}/{name}", **facts) for name, facts in arrays.items()]
    if before.record:
        shards = [*before.record.shards, *shards]
        new_sketches = [*before.record.sketches, *new_sketches]
    record = dataclasses.replace(record, shards=shards, sketches=new_sketches, sketching=made["fingerprint"])
    texts = {"README.md": card.dataset_card(record), manifest.FILE_NAME: manifest.dump(record)}
    for name, text in texts.items():  # a full disk shows here, where the data set before this one is still whole
        manifest.write_text_atomically(out / ".work" / name, text)
    for name in (manifest.FILE_NAME, REPORT):  # a report of the data set before would tell of another one
        (out / name).unlink(missing_ok=True)
    for path in files_of(out):
        path.unlink()
    for folder in out.glob("sketches/*"):
        folder.rmdir()
    for folder in (out / "data", out / "rejects", out / generation):
        folder.mkdir(parents=True, exist_ok=True)
    extend.bring(before, out)
    for file in files:
        os.link(file.task.folder / "data.parquet", out / file.name)
    for name in arrays:
        os.link(sketches / name, out / generation / name)
    for name in texts:
        (out / ".work" / name).replace(out / name)
    return record
