"""The policy of a phase, ready to learn, and the reference beside it.

In this order: the model is checked whole. If the reference is to be live, it is copied. Without an adapter, the layers
learn what to keep of their activations, and the weights are dealt to the ranks, if there are several. The reference's
log-probabilities are computed, by all ranks. At last an adapter is put on, if there is to be one.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefkit.train import blocks, parallel, policy, reference
from prefkit.train.adapters import Lora
from prefkit.train.loop import Job, ReferenceOf, SplitData
from prefkit.train.objective import Preference, Supervised
from prefkit.train.options import Phase
from prefkit.train.pack import Bin
from prefkit.train.policy import Policy


def ready(job: Job, phase: Phase, model: Any) -> Policy:
    """The model checked, and on its device unless it will be dealt to ranks; says aloud what is special about it."""
    now = policy.ready(model, dtype=phase.dtype, kernel=phase.attention, to_shard=is_to_shard(phase))
    if now.padded_because:
        job.progress.note(f"{phase.name}: padded batches, not token trees, since {now.padded_because}.")
    return now


def is_to_shard(phase: Phase) -> bool:
    """Whether ranks hold parts of the weights; with LoRA each holds the whole model."""
    return phase.lora is None and (parallel.size() > 1 or phase.cpu_offload)


def with_reference(
    job: Job,
    phase: Phase,
    objective: Preference | Supervised,
    start: Policy,
    train_set: SplitData,
    test_set: SplitData | None,
    prompts: np.ndarray,
) -> tuple[Policy, ReferenceOf | None, np.ndarray | None, Policy | None]:
    """The policy, with its adapter if any; the start weights' log-probabilities of a bin; and of the test split.

    At last the second model that is the live reference, if there is one.

    `prompts` are those of the train split that the phase will come to.
    """

    def of_split(split: SplitData, some: np.ndarray | None = None) -> np.ndarray:
        where: dict[str, Any] = {"cache": job.cache, "progress": job.progress}
        return reference.cached(start, split.store, split.whole, phase.max_tokens, prompts=some, **where)

    needed = objective.takes_reference
    live = needed and phase.reference == "live"
    frozen = policy.frozen_copy(start) if live and phase.lora is None else None
    if phase.lora is None:
        prepare_layers(job, phase, start)
    if is_to_shard(phase):
        start = policy.shard(start, cpu_offload=phase.cpu_offload)
        frozen = frozen and policy.shard(frozen, cpu_offload=phase.cpu_offload)
    moves = phase.reference_sync is not None  # and then has to be asked anew at each evaluation
    of_test = of_split(test_set) if needed and test_set is not None and not moves else None
    kept = torch.from_numpy(of_split(train_set, prompts)) if needed and not live else None
    learner = start
    if phase.lora is not None:
        learner = policy.add_lora(start, Lora(**phase.lora))
        prepare_layers(job, phase, learner)
    if not parallel.is_first():
        torch.manual_seed(phase.seed + parallel.rank())  # adapters begin alike, dropout falls on each rank's own bins

    @torch.no_grad()
    def reference_of(bin: Bin) -> Tensor:
        if kept is not None:
            return kept[bin.sequence_rows_Q.cpu()].to(start.device)
        with policy.adapter_off(learner) if frozen is None else nullcontext(frozen) as model:
            return model.sequence_logps(bin)

    return learner, reference_of if needed else None, of_test, frozen


def prepare_layers(job: Job, phase: Phase, now: Policy) -> None:
    """Let the layers keep and recompute as the phase says."""
    budget: dict[str, Any] = {"max_tokens": phase.max_tokens, "longest": phase.longest, "autocast": now.autocast}
    if said := blocks.prepare(now.model, phase.activation_checkpointing, compiled=phase.compile, **budget):
        job.progress.note(f"{phase.name}: {said}.")
