"""The splits of a phase: tokenised, or opened as a stream, and what its epochs take of the train split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from prefkit.errors import TrainError, UsageError, nearest
from prefkit.manifest import Manifest
from prefkit.train import chat, labelled, policy, sampling, shards
from prefkit.train.arriving import Arriving, Supply, read_index
from prefkit.train.chat import Tokenising
from prefkit.train.examples import Examples
from prefkit.train.job import Job, SplitData
from prefkit.train.objective import Preference, Supervised, of_phase, tokenising
from prefkit.train.options import Phase, TrainOptions
from prefkit.train.stream import Plan
from prefkit.train.terms import Weighted


def check_columns(options: TrainOptions, data: Path, manifest: Manifest) -> None:
    """UsageError for a phase that learns from a column of messages which the data set lacks, before any phase begins.

    Read off one shard, of which no more than its end is fetched.
    """
    shard = next(shard for shard in manifest.of_split("train") if shard.rows)
    with shards.opened(data, shard) as file:
        there = shards.columns_of_messages(pq.ParquetFile(file).schema_arrow)
    known = f"the data set's columns of messages are {', '.join(there)}"
    for phase, losses in zip(options.phases, options.losses, strict=True):
        where = f"{options.path}: [[train]] {phase.name}"
        asked = tokenising(phase, of_phase(phase, losses), manifest.kind).answers
        if not losses and phase.column not in there:
            raise UsageError(f'{where}: there is no column = "{phase.column}"; {known}.{nearest(phase.column, there)}')
        if not {*asked} <= {*there}:
            raise UsageError(
                f"{where}: it learns from {' and '.join(asked)}, and {known}. Take a data set that build-pairs wrote, "
                'or objective = "sft".'
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
        raise TrainError(f"{phase.name}: nothing to train on is left of {train_set.store.summary}. Raise max_length?")
    if test_set is not None and not test_set.store.counts["examples"]:
        test_set = None  # said aloud by its summary; training does not need it
    if test_set is None and phase.eval_every is not None:
        job.progress.note(f"{phase.name}: eval_every = {phase.eval_every} has no effect, since there is no test split.")
    if test_set is None and "overfitting" in (phase.alarms or {}).get("stop", ()):
        raise TrainError(
            f'{phase.name}: alarms: stop names "overfitting", which is seen on a test split, and there is none.'
        )
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
        raise TrainError(f"{phase.name}: filters, weights and caps leave nothing to train on.")
    if said := labelled.balance(*labelled.counted(examples), losses):
        job.progress.note(f"{phase.name}: {said}")
    return SplitData(train_set.store, examples), order
