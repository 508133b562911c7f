"""`prefkit build-pairs`: the whole pipeline on one page.

    read ─▶ unite ─▶ similar ─▶ clusters ─▶ select ─▶ write
    a task   a task   a task     one task    a task    a task
    a part   a bucket a band                 a bucket  a shard

A part is a slice of a raw file, a bucket a range of prompt ids: between the two, rows of equal prompts come together.
Raw files are hashed and cut into parts while their first parts are being read.
Flagged pairs fall, and quotas over all pairs are met, between select and write, where a pipeline asks for either (see
`exclude` and `mix`).

Every step is tasks from files to files under OUT/.work (see `engine`), named by the hash of what goes in. A killed run
goes on from its finished tasks; a changed option redoes the steps from there on and no earlier one. The finished files
are then moved into place, and the manifest is written last; behind it, for people, report.html.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from pathlib import Path

from prefkit import manifest, urls
from prefkit.config import Pipeline, load_pipeline
from prefkit.errors import DataError, UsageError
from prefkit.manifest import Manifest
from prefkit.pairs import encoding, engines, extend, gone, listed, named, publish, remote, report, scan
from prefkit.pairs.account import account
from prefkit.pairs.engine import Task, counts, run
from prefkit.pairs.options import check_build
from prefkit.pairs.publish import PlannedFile
from prefkit.pairs.read import close_parts, read_part
from prefkit.pairs.steps import Source, Steps
from prefkit.progress import Stages


def build_pairs(
    pipeline: Pipeline | str | Path,
    out: Path | str,
    *,
    given: str | Path | Sequence[str | Path] = (),
    workers: int | None = None,
    engine: str = "local",
    address: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    keep_work: bool = False,
    progress: Stages | None = None,
    onto: Path | str | None = None,
    upload_to: str | None = None,
    with_report: bool = True,
) -> Manifest:
    """Build the data set that `pipeline` describes into the folder `out`, and return its manifest.

    `pipeline` is a loaded one, a pipeline file, or the name of a shipped one. `given` files, one or several, take the
    place of those in the pipeline; `limit` reads only the first rows of each. A finished data set of the same inputs
    and options is left as it is; of others, it is replaced only with `overwrite`. `keep_work` keeps the finished steps
    for the next build.
    `engine`, `workers` and `address` say where the tasks run (see `engines.executor`): without them, in this process.
    With `onto`, a finished data set, the result is that one with these files added to it (see `extend`). With
    `upload_to`, a URL, the result is put there as well, under the same rules, and `out` is no more than where it is
    made. `with_report` writes report.html beside the finished data set, unless there is one of it (see `report`).
    Raises UsageError or DataError.
    """
    if not str(out).strip():
        raise UsageError("out is empty; it is the folder for the data set.")
    if urls.is_url(str(out)):
        raise UsageError(f"{urls.shown(str(out))}: out is a folder of this machine; a URL is given as upload_to.")
    if limit is not None and limit < 1:
        raise UsageError(f"limit = {limit}: it must be at least 1.")
    pipeline, out = load_pipeline(pipeline), Path(out)
    raw = [given] if isinstance(given, str | Path) else given
    before = extend.open_before(Path(onto) if onto else None, out)
    options = check_build(pipeline, list(map(str, raw)), out, before.known.files)
    stages = progress or Stages(live=False)
    with publish.only_builder(out):
        with engines.executor(engine, workers, address) as executor:
            sources = [Source(entry, file, options, limit) for entry, file in options.files()]
            record: Manifest | None = None
            written: list[PlannedFile] = []
            if onto or upload_to or ((out / manifest.FILE_NAME).exists() and not overwrite):  # is it what is asked for?
                _index(sources, stages)
                extend.check(before, options, sources)
                planned = publish.plan(pipeline, options, sources, limit, before)
                if upload_to:
                    remote.refuse_other(upload_to, planned, overwrite)
                record = publish.finished(out, planned, overwrite, scratch=bool(upload_to))
            if record is None:
                run_tasks = functools.partial(_run, executor, stages)
                steps = Steps(options, sources, (out / ".work").absolute(), run_tasks, before)
                record, written = _made(steps, pipeline, out, limit)
        with publish.cleaning(out, keep_work):
            if with_report:
                _report(out, stages, written)
        if upload_to:
            _upload(out, upload_to, overwrite, stages)
    return record


def _made(steps: Steps, pipeline: Pipeline, out: Path, limit: int | None) -> tuple[Manifest, list[PlannedFile]]:
    """All steps in turn; the data set that they make, moved into place, and its files as they were written."""
    read = steps.read()
    of_files = _remarks(steps, read, limit, pipeline.name)
    buckets = steps.buckets(read)
    united = steps.unite(buckets)
    clusters = steps.cluster(united)
    selected = steps.select(buckets, united, clusters)
    selected, of_flags = steps.exclude(selected)
    selected = steps.mix(selected)
    planned = publish.plan(pipeline, steps.options, steps.sources, limit, steps.before)
    record = account(planned, steps.sources, read, selected, steps.before, [*of_files, *of_flags])
    sketches = steps.sketches(united, clusters)
    written = steps.write(read, selected, sketches)
    record = publish.publish(out, record, written, sketches.folder, steps.before)
    close_parts()
    return record, written


def _remarks(steps: Steps, read: Sequence[Path], limit: int | None, pipeline: str) -> list[str]:
    """What is to be said of the raw files once they are read. UsageError where no row has a column that is named."""
    of_columns = named.remarks(steps.options, steps.sources, read, limit, pipeline)
    of_texts, of_lost = encoding.remarks(steps.sources, read), gone.remarks(steps.sources, read)
    return [*of_texts, *of_lost, *of_columns, *listed.remarks(read)]


def _index(sources: Sequence[Source], stages: Stages) -> None:
    """Hash and cut all raw files now, which reading would else do on the way."""
    stages.stage("index", len(sources))
    for given in sources:
        given.index.finish()
        stages.advance(1)


def _report(out: Path, stages: Stages, files: Sequence[PlannedFile]) -> None:
    """The report of the finished data set in `out`, of which `files` were written now; what goes wrong here is repaired
    by the next run."""
    if not (out / publish.REPORT).exists():
        if not os.access(out, os.W_OK):
            raise DataError(
                f"{out}: finished, but without {publish.REPORT}, and it may not be written to. "
                f"Add --no-report, or write the page elsewhere: prefkit report {out} --out FILE"
            )
        stages.stage("report", 1)
        scans = {file.name: file.task.folder / scan.FILE for file in files if file.split != "rejects"}
        report.write(out, scratch=out / ".work", scans=scans)
        stages.advance(1)


def _upload(out: Path, url: str, overwrite: bool, stages: Stages) -> None:
    stages.stage("upload", sum(shard.bytes for shard in manifest.read(out).shards))
    remote.upload(out, url, overwrite=overwrite, on_sent=stages.advance)


def _run(executor: Executor, stages: Stages, name: str, tasks: Iterable[Task], total: int | None = None) -> None:
    """Run a step. `total` is its work, where its tasks are not known beforehand."""
    if total is None:
        tasks = list(tasks)
        total = sum(task.weight for task in tasks)
    stages.stage(name, total)

    def done(task: Task) -> None:
        rows = counts(task.folder)["rows"] if task.function is read_part else 0
        stages.advance(task.weight, rows)

    run(tasks, executor, done)
