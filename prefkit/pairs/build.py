"""`prefkit build-pairs`: the whole pipeline on one page.

    index ─▶ read ─▶ duplicates ─▶ select ─▶ write
             a task   a task a band   a task   a task
             a part   and for all     a part   a shard

Every step is tasks from files to files under OUT/.work (see `engine`), named by the hash of what goes in. A killed run
goes on from its finished tasks; a changed option redoes the steps from there on and no earlier one. The finished files
are then moved into place, and the manifest is written last.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import prefkit
from prefkit.config import Pipeline
from prefkit.manifest import Manifest
from prefkit.pairs import dedupe, engine, inputs, publish
from prefkit.pairs.engine import Task, key
from prefkit.pairs.inputs import Indexed, Part, RawFile
from prefkit.pairs.options import Options, check_build, fingerprint
from prefkit.pairs.publish import PlannedFile
from prefkit.pairs.read import read_part
from prefkit.pairs.select import Neighbours, select_part
from prefkit.pairs.shards import REJECTS_A_FILE, write_rejects, write_shard
from prefkit.progress import Stages
from prefkit.resolve import Call


def build_pairs(
    pipeline: Pipeline,
    out: Path,
    *,
    given: Sequence[str] = (),
    workers: int = 1,
    limit: int | None = None,
    overwrite: bool = False,
    keep_work: bool = False,
    progress: Stages | None = None,
) -> Manifest:
    """Build the data set that `pipeline` describes into the folder `out`, and return its manifest.

    `given` files take the place of those in the pipeline; `limit` reads only the first rows of each. A finished data
    set of the same inputs and options is left as it is; of others, it is replaced only with `overwrite`. `keep_work`
    keeps the finished steps for the next build. Raises UsageError or DataError.
    """
    options = check_build(pipeline, given, out)
    stages = progress or Stages(live=False)
    with publish.only_builder(out), engine.local(workers) as executor:
        sources = index(options, stages, limit)
        planned = publish.plan(pipeline, options, sources, limit)
        if (finished := publish.finished(out, planned, overwrite)) is not None:
            publish.clean(out, keep_work)
            return finished
        steps = Steps(options, sources, out / ".work", functools.partial(_run, executor, stages))
        read = steps.read()
        clusters = steps.cluster(read)
        selected = steps.select(read, clusters)
        record = publish.account(planned, sources, read, selected)
        files = steps.write(selected)
        record = publish.publish(out, record, files)
        publish.clean(out, keep_work)
    return record


@dataclass(frozen=True)
class Source:
    """One raw file, what reads it, and its parts."""

    call: Call
    file: RawFile
    indexed: Indexed


@dataclass(frozen=True)
class Steps:
    """The four steps. Each returns the folders of its tasks, in input order."""

    options: Options
    sources: list[Source]
    work: Path
    run: Callable[[str, Sequence[Task]], None]

    def read(self) -> list[Path]:
        """Parts -> candidates, rejects and sketches."""
        options = self.options
        sketching = options.dedupe.function()().sketching
        shared: list[Any] = [_identity(call) for call in [*options.candidate_filters, options.language] if call]
        shared += [[options.dedupe.options[name] for name in ("ngram", "permutations", "seed")], _code()]
        tasks: list[Task] = []
        for given in self.sources:
            for part in given.indexed.parts:
                name = key(
                    given.indexed.sha256, part.file.name, part.kind, part.start, part.end, part.limit,
                    _identity(given.call), *shared,
                )  # fmt: skip
                arguments = (part, given.call, options.candidate_filters, options.language, sketching)
                tasks.append(Task(self.work / "read" / name, read_part, arguments, part.bytes))
        self.run("read", tasks)
        return [task.folder for task in tasks]

    def cluster(self, read: list[Path]) -> Path:
        """Sketches -> clusters of duplicate prompts."""
        return dedupe.find(read, self.options.dedupe.function()(), self.work, self.run)

    def select(self, read: list[Path], clusters: Path) -> list[Path]:
        """Candidates -> pairs, sorted for the shards, and the reasons of all other candidates."""
        options = self.options
        files = [part.file.name for given in self.sources for part in given.indexed.parts]
        drop = options.dedupe.options["action"] == "drop"
        among = Neighbours(read, files, clusters, drop)
        test, seed = options.split.function()()
        shared = [clusters.name, drop, test, seed, _identity(options.binarize), *map(_identity, options.pair_filters)]
        tasks = [
            Task(
                self.work / "select" / key(number, folder.name, *shared),
                select_part,
                (number, among, options.binarize, options.pair_filters, test, seed),
            )
            for number, folder in enumerate(read)
        ]
        self.run("binarize", tasks)
        return [task.folder for task in tasks]

    def write(self, selected: list[Path]) -> list[PlannedFile]:
        """Pairs and rejects -> Parquet files, with their splits and names."""
        pairs_per_shard, row_group = self.options.shards.function()()
        totals = [publish.counts(folder) for folder in selected]
        names = [folder.name for folder in selected]
        planned: list[PlannedFile] = []
        for split in ("train", "test"):
            count = -(-sum(total[split] for total in totals) // pairs_per_shard)
            for number in range(count):
                arguments = (selected, split == "test", number, count, row_group)
                folder = self.work / "write" / key(names, split, number, count, row_group)
                name = f"data/{split}-{number:05d}-of-{count:05d}.parquet"
                planned.append(PlannedFile(Task(folder, write_shard, arguments), split, name))
        counts = [total["rejects"] for total in totals]
        count = -(-sum(counts) // REJECTS_A_FILE)
        for number in range(count):
            folder = self.work / "write" / key(names, "rejects", number)
            name = f"rejects/rejects-{number:05d}-of-{count:05d}.parquet"
            planned.append(PlannedFile(Task(folder, write_rejects, (selected, counts, number)), "rejects", name))
        self.run("write", [file.task for file in planned])
        return planned


def _run(executor: Executor, stages: Stages, name: str, tasks: Sequence[Task]) -> None:
    stages.stage(name, sum(task.weight for task in tasks))

    def done(task: Task) -> None:
        rows = publish.counts(task.folder)["rows"] if task.function is read_part else 0
        stages.advance(task.weight, rows)

    engine.run(tasks, executor, done)


def index(options: Options, stages: Stages, limit: int | None) -> list[Source]:
    files = [(given.source, file) for given in options.inputs for file in given.files]
    stages.stage("index", len(files))
    found: list[Source] = []
    for source, file in files:
        indexed = inputs.index(file, options.chunk_bytes)
        parts = [_limited(part, limit) for part in indexed.parts if limit is None or part.first_row <= limit]
        found.append(Source(source, file, indexed._replace(parts=parts)))
        stages.advance(1)
    return found


def _limited(part: Part, limit: int | None) -> Part:
    return part if limit is None else replace(part, limit=limit - part.first_row + 1)


def _identity(call: Call) -> list[Any]:
    """What a step depends on in a function: its address, its options, and what those name outside prefkit."""
    printed = fingerprint(call)
    options = {
        name: value for name, value in call.options.items() if not (name == "model" and "model_sha256" in printed)
    }
    return [call.address, options, printed]


@functools.cache
def _code() -> str:
    """Hash of the code of this half and the versions of what it computes with."""
    hasher = hashlib.sha256(json.dumps(publish.versions()).encode())
    package = Path(prefkit.__file__).parent
    for path in [package / "schema.py", package / "resolve.py", *sorted((package / "pairs").rglob("*.py"))]:
        hasher.update(path.read_bytes())
    return hasher.hexdigest()
