"""The policy of a phase, ready to learn, and the reference beside it.

In this order: the model is checked whole. If the reference is to be live, it is copied. Without an adapter, the layers
learn what to keep of their activations, and the weights are dealt to the ranks, if there are several. The reference's
log-probabilities are computed, by all ranks. At last an adapter is put on, if there is to be one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefkit.train import adapters, attention, blocks, optimizer, parallel, policy, reference
from prefkit.train.adapters import Lora
from prefkit.train.job import Job, SplitData
from prefkit.train.objective import Preference, Supervised
from prefkit.train.options import Phase
from prefkit.train.pack import Bin
from prefkit.train.policy import Policy

ReferenceOf = Callable[[Bin], Tensor]


@dataclass(frozen=True)
class Learner:
    """The policy, with its adapter if any, and what the reference says of a bin; None where no loss asks.

    `of_test` are the reference's log-probabilities of the test split, and do not change; None where there are none, or
    where `moving`, a live reference that steps move, is asked anew at each evaluation.
    """

    policy: Policy
    reference: ReferenceOf | None
    of_test: np.ndarray | None
    moving: Policy | None


def need(phase: Phase) -> None:
    """TrainError for what a phase asks of this machine, and it has not."""
    device, sharded = policy.own_device(), is_to_shard(phase)
    if phase.lora is not None:
        adapters.need(Lora(**phase.lora))
    if phase.attention == "varlen":
        attention.choose(phase.attention, device, getattr(torch, phase.dtype))
    if sharded:
        parallel.need_sharding()
    optimizer.need(phase.optimizer, device, sharded=sharded)


def is_to_shard(phase: Phase) -> bool:
    """Whether ranks hold parts of the weights; with LoRA each holds the whole model."""
    return phase.lora is None and (parallel.size() > 1 or phase.cpu_offload)


def ready(job: Job, phase: Phase, model: Any) -> Policy:
    """The model checked, and on its device unless it will be dealt to ranks; says aloud what is special about it."""
    now = policy.ready(model, dtype=phase.dtype, kernel=phase.attention, to_shard=is_to_shard(phase))
    if now.padded_because:
        job.progress.note(f"{phase.name}: padded batches, not token trees, since {now.padded_because}.")
    return now


def with_reference(
    job: Job,
    phase: Phase,
    objective: Preference | Supervised,
    start: Policy,
    train_set: SplitData,
    test_set: SplitData | None,
    prompts: np.ndarray,
) -> Learner:
    """The policy ready to learn, and its reference; `prompts` are those of the train split that the phase comes to."""
    is_live = objective.takes_reference and phase.reference == "live"
    is_cached = objective.takes_reference and not is_live
    moves = phase.reference_sync is not None
    second = policy.frozen_copy(start) if is_live and phase.lora is None else None
    if phase.lora is None:
        prepare_layers(job, phase, start)
    if is_to_shard(phase):
        start = policy.shard(start, cpu_offload=phase.cpu_offload)
        second = second and policy.shard(second, cpu_offload=phase.cpu_offload)

    def logps_of(split: SplitData, some: np.ndarray | None = None) -> np.ndarray:
        where: dict[str, Any] = {"cache": job.cache, "progress": job.progress}
        return reference.cached(start, split.store, split.whole, phase.max_tokens, prompts=some, **where)

    of_test = logps_of(test_set) if objective.takes_reference and test_set is not None and not moves else None
    of_train = torch.from_numpy(logps_of(train_set, prompts)).to(start.device) if is_cached else None
    learns = start if phase.lora is None else with_adapter(job, phase, start)
    if not parallel.is_first():
        torch.manual_seed(phase.seed + parallel.rank())  # adapters begin alike, dropout falls on each rank's own bins

    @torch.no_grad()
    def reference_of(bin: Bin) -> Tensor:
        if of_train is not None:
            return of_train[bin.sequence_rows_Q]
        with policy.adapter_off(learns) if second is None else nullcontext(second) as model:
            return model.sequence_logps(bin)

    return Learner(learns, reference_of if objective.takes_reference else None, of_test, second if moves else None)


def with_adapter(job: Job, phase: Phase, start: Policy) -> Policy:
    """The policy with a new adapter, which alone learns."""
    learns = policy.add_lora(start, Lora(**phase.lora or {}))
    prepare_layers(job, phase, learns)
    return learns


def prepare_layers(job: Job, phase: Phase, now: Policy) -> None:
    """Let the layers keep and recompute as the phase says."""
    budget: dict[str, Any] = {"max_tokens": phase.max_tokens, "longest": phase.longest, "autocast": now.autocast}
    if said := blocks.prepare(now.model, phase.activation_checkpointing, compiled=phase.compile, **budget):
        job.progress.note(f"{phase.name}: {said}.")
