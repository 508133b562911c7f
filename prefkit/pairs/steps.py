"""The steps of a build in turn: which tasks each is made of, and what their names depend on."""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefkit.pairs import bucket, dedupe, exclude, extend, inputs, mix, software, tables
from prefkit.pairs.answers import Twins, sketch_answers
from prefkit.pairs.bucket import Bucket, ReadPart
from prefkit.pairs.decode import reads_whole_files
from prefkit.pairs.decontaminate import Decontamination, write_index
from prefkit.pairs.engine import RunTasks, Task, ahead, counts, key
from prefkit.pairs.extend import Before
from prefkit.pairs.inputs import Part, RawFile
from prefkit.pairs.label import label_bucket
from prefkit.pairs.options import Input, Options, fingerprint
from prefkit.pairs.publish import PlannedFile
from prefkit.pairs.read import RUN_BYTES, Reading, let_go, read_part
from prefkit.pairs.select import Neighbours, Pairing, Split, select_bucket
from prefkit.pairs.shards import REJECTS_A_FILE, write_rejects, write_shard
from prefkit.pairs.unite import TEXT_RULES, unite_bucket
from prefkit.resolve import Call

BUCKET_BYTES = 128 << 20
BYTES_AHEAD = 1 << 30  # of parts that are found while the worker processes start, and while they are busy
PARTS_AHEAD = 64  # at most
MEMORY_SHARE = 0.5  # of inputs, above which they are not kept in the page cache: steps between take as much again


class Source:
    """One raw file, and the number of its entry in [[build.inputs]]."""

    def __init__(self, entry: int, file: RawFile, options: Options, limit: int | None):
        self.entry = entry
        self.file = file
        self.index = inputs.Index(file, options.chunk_bytes)
        self._whole = reads_whole_files(options.inputs[entry].source)
        self._limit = limit

    def parts(self) -> Iterator[Part]:
        """What is to be read of it, each part as soon as it is known."""
        parts = iter([inputs.whole(list(self.index.parts()))]) if self._whole else self.index.parts()
        for part in parts:
            if self._limit is None:
                yield part
            elif part.first_row <= self._limit:
                yield replace(part, limit=self._limit - part.first_row + 1)


@dataclass(frozen=True)
class Steps:
    """The steps in turn. Each returns the folders of its tasks, in order."""

    options: Options
    sources: list[Source]
    work: Path
    run: RunTasks
    before: Before

    def read(self) -> list[Path]:
        """Parts -> prompts, answers and rejects. Files are indexed on the way, as far as they are not yet."""
        options = self.options
        shared = [_identity(call) for call in [*options.candidate_filters, options.redact, options.language] if call]
        fold_case, keep_aspects = options.dedupe.options["fold_case"], options.look_at_aspects()
        shared += [[options.evaluation(), fold_case, keep_aspects, software.fingerprint()]]
        ways = [self._reading(entry, fold_case, keep_aspects) for entry in options.inputs]
        folders: list[Path] = []

        def tasks() -> Iterator[Task]:
            for given in self.sources:
                how = ways[given.entry]
                for part in given.parts():
                    name = key(
                        part.identity, part.file.name, part.kind, part.start, part.end, part.limit,
                        _identity(how.source), how.weights, *shared,
                    )  # fmt: skip
                    folders.append(self.work / "read" / name)
                    yield Task(folders[-1], read_part, (part, how), part.bytes)

        self.run("read", ahead(tasks(), min(PARTS_AHEAD, 1 + BYTES_AHEAD // options.chunk_bytes)), self._size)
        return folders

    @functools.cached_property
    def _size(self) -> int:
        """Bytes of all raw files."""
        return sum(inputs.size(given.file) for given in self.sources)

    @property
    def _is_large(self) -> bool:
        """Whether memory is too short for the raw files and those between the steps: who reads a file last lets go of
        it."""
        return self._size > MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def _reading(self, entry: Input, fold_case: bool, keep_aspects: bool) -> Reading:
        return Reading(
            source=entry.source,
            weights=entry.settings.options["score_weights"],
            keep_aspects=keep_aspects,
            filters=self.options.candidate_filters,
            redact=self.options.redact,
            language=self.options.language,
            evaluation=self.evaluation,
            fold_case=fold_case,
            run_bytes=max(RUN_BYTES, self.options.chunk_bytes),
            let_go=self._is_large,
        )

    @functools.cached_property
    def evaluation(self) -> tuple[Path, Decontamination] | None:
        """The index of evaluation prompts, if data is to be kept clear of any."""
        if self.options.decontaminate is None:
            return None
        how = self.options.decontaminate.call()
        task = Task(
            self.work / "evaluation" / key(self.options.evaluation(), software.fingerprint()), write_index, (how,)
        )
        self.run("index evaluation", [task])
        return task.folder, how

    def buckets(self, read: list[Path]) -> list[Bucket]:
        """The read parts, cut by ranges of prompt ids into buckets of about BUCKET_BYTES."""
        counted = [counts(folder) for folder in read]
        firsts = itertools.accumulate(
            (count["groups"] for count in counted), initial=len(self.before.known.sketches) * extend.ORDINALS
        )
        entries = [given.entry for given in self.sources for _ in given.parts()]
        old_files = len(self.before.known.files)
        files = [number for number, given in enumerate(self.sources, old_files) for _ in given.parts()]
        parts = [ReadPart(*each) for each in zip(read, entries, firsts, files, strict=False)]
        identity = key([(part.folder.name, part.entry, part.first, part.file) for part in parts])
        listed = self.work / "parts" / f"{identity}.json"
        bucket.save(listed, parts)
        size = sum(count["bytes"] for count in counted)
        number = 1 << max(0, math.ceil(math.log2(max(1.0, size / BUCKET_BYTES))))
        return [Bucket((one << 64) // number, ((one + 1) << 64) // number, listed) for one in range(number)]

    def unite(self, buckets: list[Bucket]) -> list[Path]:
        """Prompts and answers of a bucket -> its sets of answers, and sketches of its prompts."""
        how = self.options.dedupe.function()().uniting
        if self.options.labels:
            how = replace(how, rules=TEXT_RULES)
        shared = [self.options.dedupe.options, self.before.sha256, how.rules]
        tasks = [
            Task(
                self.work / "unite" / key(one.low, one.high, one.parts.name, *shared),
                unite_bucket,
                (one, how, self.before.known),
            )
            for one in buckets
        ]
        self.run("unite", tasks)
        return [task.folder for task in tasks]

    def cluster(self, united: list[Path]) -> Path:
        """Sketches -> clusters of near-duplicate prompts."""
        old = self.before.known.sketches
        buckets, how = [*old, *united], self.options.dedupe.function()()
        return dedupe.find(buckets, _prompts(buckets), how, self.work, self.run, len(old), self.before.sha256)

    def twins(self, buckets: list[Bucket], united: list[Path]) -> Twins | None:
        """Answers that repeat each other, where the scope of duplicates asks for them."""
        scope, how = self.options.dedupe.options["scope"], self.options.dedupe.function()()
        if scope == "prompt":
            return None
        files = [*self.before.known.files, *(given.file.name for given in self.sources)]

        def sketched(what: str) -> list[Task]:
            return [
                Task(
                    self.work / "answers" / key(folder.name, what),
                    sketch_answers,
                    (folder, rows, files, what, how.uniting.sketching),
                )
                for folder, rows in zip(united, buckets, strict=True)
            ]

        tasks, alone = sketched(scope), sketched("response") if scope == "prompt_response" else []
        self.run("sketch answers", [*tasks, *alone])
        folders = [task.folder for task in tasks]
        answers = [counts(folder)["answers"] for folder in folders]
        also = [task.folder for task in alone]
        return Twins(folders, answers, dedupe.find(folders, answers, how, self.work, self.run, also=also))

    def sketches(self, united: list[Path], clusters: Path) -> Task:
        """The task that keeps what later builds onto this data set need of its prompts."""
        old = self.before.known.sketches
        buckets = [*old, *united]
        how = self.options.dedupe.function()().uniting.sketching
        arguments = (buckets, _prompts(buckets), len(old), clusters, how)
        return Task(self.work / "sketches" / key(clusters.name), extend.write_sketches, arguments, lasting=True)

    def select(self, buckets: list[Bucket], united: list[Path], clusters: Path) -> list[Path]:
        """Sets of answers -> pairs or labels, sorted for the shards, and the reasons of all other candidates."""
        options = self.options
        known = self.before.known
        sketched = [*known.sketches, *united]
        files = [*known.files, *(given.file.name for given in self.sources)]
        drop = options.dedupe.function()().uniting.drop
        twins = self.twins(buckets, united)
        split = Split(*options.split.function()())
        among = Neighbours(sketched, _prompts(sketched), files, clusters, drop, split, len(known.sketches), twins)
        select: Callable[..., None]
        if options.labels:
            select, how = label_bucket, options.labels.function()()
        else:
            select, how = select_bucket, Pairing(options.binarize, options.pair_filters)
        decisive = [options.labels] if options.labels else [options.binarize, *options.pair_filters]
        shared = [clusters.name, twins and twins.clusters.name, drop, *split, *map(_identity, decisive)]
        tasks = [
            Task(self.work / "select" / key(number, folder.name, *shared), select, (number, rows, among, how))
            for number, (folder, rows) in enumerate(zip(united, buckets, strict=True), len(known.sketches))
        ]
        self.run("binarize", tasks)
        return [task.folder for task in tasks]

    def exclude(self, selected: list[Path]) -> tuple[list[Path], list[str]]:
        """Pairs -> those that nobody flagged, where there are flags; and what is to be said of these."""
        if self.options.exclude is None:
            return selected, []
        left = exclude.leave_out(selected, self.options.kind, self.options.exclude, self.work, self.run)
        return left, exclude.remarks(left, self.options.exclude)

    def mix(self, selected: list[Path]) -> list[Path]:
        """Pairs -> those within the quotas, where there are any."""
        given = [entry.settings.function()() for entry in self.options.inputs]
        names = [f"entry {number} ({entry.source.name})" for number, entry in enumerate(self.options.inputs, 1)]
        _, seed = self.options.split.function()()
        quotas = mix.Quotas(
            names,
            [entry.cap for entry in given],
            [entry.weight for entry in given],
            self.options.balance.function()(),
            seed,
        )
        return mix.trim(selected, self.options.kind, quotas, self.work, self.run)

    def write(self, read: list[Path], selected: list[Path], sketches: Task) -> list[PlannedFile]:
        """Pairs and rejects -> Parquet files, with their splits and names; and the sketches, beside them."""
        pairs_per_shard, row_group, level = self.options.shards.function()()
        totals = [counts(folder) for folder in selected]
        names = [folder.name for folder in [*read, *selected]]
        planned: list[PlannedFile] = []
        for split in ("train", "test"):
            count = -(-sum(total[split] for total in totals) // pairs_per_shard)
            for number in range(count):
                arguments = (selected, self.options.kind, split == "test", number, count, row_group, level)
                folder = self.work / "write" / key(names, split, number, count, row_group, level)
                name = f"data/{split}-{number:05d}-of-{count:05d}{self.before.suffix}.parquet"
                planned.append(PlannedFile(Task(folder, write_shard, arguments, lasting=True), split, name))
        fallen = [*read, *selected]
        rejects = [counts(folder)["rejects"] for folder in fallen]
        count = -(-sum(rejects) // REJECTS_A_FILE)
        for number in range(count):
            folder = self.work / "write" / key(names, "rejects", number, level)
            name = f"rejects/rejects-{number:05d}-of-{count:05d}{self.before.suffix}.parquet"
            task = Task(folder, write_rejects, (fallen, rejects, number, level), lasting=True)
            planned.append(PlannedFile(task, "rejects", name))
        for folder in read if self._is_large else ():
            let_go(folder)
        small_last = sorted(planned, key=lambda file: file.split == "test")
        self.run("write", [sketches, *(file.task for file in small_last)])
        return planned


def _prompts(buckets: Sequence[Path]) -> list[int]:
    return [len(tables.array(folder / "ordinals.npy")) for folder in buckets]


def _identity(call: Call) -> list[Any]:
    """What a step depends on in a function: its address, its options, and what those name outside prefkit."""
    printed = fingerprint(call)
    options = {
        name: value for name, value in call.options.items() if not (name == "model" and "model_sha256" in printed)
    }
    return [call.address, options, printed]
