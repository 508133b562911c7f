"""The splits of a phase: tokenised, or opened as a stream, and what its epochs take of the train split."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from prefkit.errors import TrainError, UsageError, nearest
from prefkit.manifest import Manifest
from prefkit.train import chat, labelled, policy, sampling, shards
from prefkit.train.arriving import Arriving, Index, Supply, read_index
from prefkit.train.chat import Tokenising
from prefkit.train.examples import Examples
from prefkit.train.job import Job, SplitData
from prefkit.train.objective import Preference, Supervised, of_phase, tokenising
from prefkit.train.options import Phase, TrainOptions
from prefkit.train.store import length_hint
from prefkit.train.stream import Plan
from prefkit.train.terms import Weighted


def check(options: TrainOptions, data: Path, manifest: Manifest) -> None:
    """What the phases ask of the data set, and it has not, is said before the first one begins, which may take days.

    UsageError or TrainError. Read off the end of one shard, and a few columns of all where an option goes by rows.
    """
    listed = manifest.of_split("train")
    with shards.opened(data, next(shard for shard in listed if shard.rows)) as file:
        there = shards.columns_of_messages(pq.ParquetFile(file).schema_arrow)
    index = read_index(data, listed) if any(map(sampling.looks_at_rows, options.phases)) else []
    for phase, losses in zip(options.phases, options.losses, strict=True):
        where = f"{options.path}: [[train]] {phase.name}"
        asked = tokenising(phase, of_phase(phase, losses), manifest.kind).answers
        _check_columns(asked, there, where, fine_tunes=not losses)
        if not manifest.rows("test"):
            _check_no_test_is_asked_for(phase)
        if sampling.looks_at_rows(phase):
            _check_something_is_left(phase, index)


def _check_something_is_left(phase: Phase, index: list[Index]) -> None:
    """TrainError if no epoch of a phase takes any example; what `sampling.check` raises."""
    counts, drawn = sampling.check(phase, index)
    prompts = tuple(len(one.first) for one in index)
    order = Plan(prompts, counts, phase.pairs_per_step, phase.epochs, phase.seed, phase.shuffle_window, drawn)
    if not any(order.account(epoch)["taken"] for epoch in range(phase.epochs)):
        raise sampling.nothing_left(phase, counts)


def _check_columns(asked: Collection[str], there: Collection[str], where: str, *, fine_tunes: bool) -> None:
    """UsageError for columns of messages to learn from that are not there."""
    known = f"the data set's columns of messages are {', '.join(there)}"
    for column in asked:
        if fine_tunes and column not in there:
            raise UsageError(f'{where}: there is no column = "{column}"; {known}.{nearest(column, there)}')
    if not {*asked} <= {*there}:
        raise UsageError(
            f"{where}: it learns from {' and '.join(asked)}, and {known}. Take a data set that build-pairs wrote, or "
            'objective = "sft".'
        )


def _check_no_test_is_asked_for(phase: Phase) -> None:
    if "overfitting" in (phase.alarms or {}).get("stop", ()):
        raise TrainError(
            f'{phase.name}: alarms: stop names "overfitting", which is seen on a test split, and there is none.'
        )


def open_splits(
    job: Job, phase: Phase, objective: Preference | Supervised, model: Any
) -> tuple[SplitData, SplitData | None]:
    """Train and test split; None for a second without examples.

    TrainError if nothing is left of the first, or the phase shall end by what only the second would show.
    """
    train_set = open_split(job, phase, objective, "train", model)
    test_set = open_split(job, phase, objective, "test", model) if job.manifest.rows("test") else None
    if not phase.stream and not train_set.store.counts["examples"]:
        hint = length_hint(train_set.store.counts)
        raise TrainError(f"{phase.name}: nothing to train on is left of {train_set.store.summary}.{hint}")
    if test_set is not None and not test_set.store.counts["examples"]:
        test_set = None  # said aloud by its summary; training does not need it
    if test_set is None and phase.eval_every is not None:
        job.progress.note(f"{phase.name}: eval_every = {phase.eval_every} has no effect, since there is no test split.")
    if test_set is None:
        _check_no_test_is_asked_for(phase)
    return train_set, test_set


def open_split(job: Job, phase: Phase, objective: Preference | Supervised, split: str, model: Any) -> SplitData:
    """Tokens of a split, with what became of its rows said aloud; TrainError if something cannot fit."""
    how = tokenising(phase, objective, job.manifest.kind)
    if split == "train" and phase.stream:
        return open_stream(job, how, model)
    store = chat.tokenise(job.data, job.manifest, split, job.tokenizer, how, cache=job.cache, progress=job.progress)
    job.progress.note(f"{phase.name}, {store.summary}")
    policy.check_fits(model, job.tokenizer, store.counts["longest"])
    examples = Examples.of(store)
    examples.check_fit(phase.max_tokens)
    return SplitData(store, examples)


def open_stream(job: Job, how: Tokenising, model: Any) -> SplitData:
    """The train split, of which only the index is read; its tokens come while the steps go on."""
    listed = job.manifest.of_split("train")
    store = chat.new_store(listed, "train", job.tokenizer, how, job.cache)
    store.folder.mkdir(parents=True, exist_ok=True)
    index = read_index(job.data, listed)

    def check(longest: int) -> None:
        policy.check_fits(model, job.tokenizer, longest)

    return SplitData(store, Arriving(Supply(job.data, listed, index, job.tokenizer, how, store, check)))


def make_plan(job: Job, phase: Phase, losses: list[Weighted], train_set: SplitData) -> tuple[SplitData, Plan]:
    """The examples that the phase takes, and the order of its steps; says what an epoch leaves out or repeats, and
    whether labels are out of balance."""
    examples, drawn = sampling.select(train_set.examples, phase)
    prompts = examples.shard_prompts
    order = Plan(
        prompts, examples.counts(), phase.pairs_per_step, phase.epochs, phase.seed, phase.shuffle_window, drawn
    )
    for epoch in range(phase.epochs):
        if said := sampling.told(order.account(epoch)):
            job.progress.note(f"{phase.name}, epoch {epoch + 1}: {said}")
    if not order.steps:
        raise sampling.nothing_left(phase, examples.counts())
    if said := labelled.balance(*labelled.counted(examples), losses):
        job.progress.note(f"{phase.name}: {said}")
    return SplitData(train_set.store, examples), order
