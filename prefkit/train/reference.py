"""The reference model's log-probabilities: computed once, kept beside the token store, reused by every later run.

A preference loss needs, of the reference, one number a sequence. `compute` runs a model over a whole split and gives
that array; `cached` keeps it as `reference-<key>/<shard>.safetensors` under the hash of the weights, the
configuration, the token store and the precision, so an array can never belong to another model than it says. Each file
appears at once or not at all, an interrupted pass goes on where it was, and all files are checked for damage, length
and finite values before training starts.

The reference of a phase is always the model that the phase starts from, also when a run is resumed: the caller passes
the start weights, never those of a checkpoint. Training then holds one model instead of two and saves a third of the
forward passes. A run that `max_steps` ends before all prompts had their turn computes only those of its plan, under a
key of its own: log-probabilities depend, in the last digit, on what shares a bin, and a run must not depend on what
ran before it.

A live reference may follow the policy: TR-DPO (Gorbatovski et al. 2024, arXiv:2404.09656). Every so many steps it
becomes ``alpha policy + (1 - alpha) reference``, parameter by parameter: the paper's soft update for alpha below 1, its
hard one for 1. So the policy may go farther from where it started than a fixed reference allows. The moved weights are
a state of the run, and go into its checkpoints.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from prefkit.errors import TrainError
from prefkit.train import parallel
from prefkit.train.examples import Examples
from prefkit.train.files import flush, naming, scratch, sweep
from prefkit.train.metrics import Progress
from prefkit.train.policy import Policy, weights_hash
from prefkit.train.store import Store
from prefkit.train.stream import make_step

FORMAT = 3
PROMPTS_A_BATCH = 256  # packed into bins together


@torch.no_grad()
def compute(
    policy: Policy,
    examples: Examples,
    max_tokens: int,
    *,
    prompts: np.ndarray | None = None,
    weighted: bool = False,
    progress: Progress,
    stage: str,
) -> np.ndarray:
    """Summed log-probability of the completion of every sequence of a token store, float32, by running the model.

    With `prompts`, of their sequences alone; the others get NaN. With `weighted` two rows: those, and the weights of
    WPO. Each rank computes its share, and all get the result.
    """
    prompts = np.arange(examples.prompts) if prompts is None else prompts
    sums = np.zeros((1 + weighted, examples.sequences), dtype=np.float32)
    times = np.zeros(examples.sequences, dtype=np.float32)
    training = policy.model.training
    policy.model.eval()
    for first in range(0, len(prompts), PROMPTS_A_BATCH):
        batch = prompts[first : first + PROMPTS_A_BATCH]
        for bin in make_step(examples, batch, max_tokens, parallel.rank(), parallel.size()).bins:
            rows = bin.sequence_rows_Q.numpy()
            found = policy.weighted_logps(bin) if weighted else (policy.sequence_logps(bin),)
            np.add.at(sums.T, rows, torch.stack(found, dim=1).cpu().numpy())
            np.add.at(times, rows, 1)  # more than one where a prompt was split, and two parts need the sequence
        progress.update(stage, first + len(batch), len(prompts), "prompts")
    policy.model.train(training)
    for array in (sums, times):
        parallel.summed(torch.from_numpy(array))
    means = np.divide(sums, times, out=np.full_like(sums, np.nan), where=times > 0)
    return means if weighted else means[0]


def cached(
    policy: Policy,
    store: Store,
    examples: Examples,
    max_tokens: int,
    *,
    prompts: np.ndarray | None = None,
    cache: Path,
    progress: Progress,
) -> np.ndarray:
    """What `compute` gives, from the cache if it was computed before by these weights on these tokens.

    The first rank looks and writes, for all of them.
    """
    of_all = prompts is None or len(np.unique(prompts)) == examples.prompts
    prompts = np.arange(examples.prompts) if prompts is None or of_all else np.unique(prompts)
    parts = [FORMAT, weights_hash(policy.model), store.key, policy.dtype, bool(policy.padded_because)]
    if not of_all:
        parts.append(hashlib.sha256(prompts.tobytes()).hexdigest())
    folder = cache / f"reference-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]}"
    folder.mkdir(parents=True, exist_ok=True)
    arrays = [np.zeros(0, np.float32)]
    for number, name in enumerate(store.files):
        path = (folder / name).with_suffix(".safetensors")
        shard, base = examples.shard(number), examples.prompt_base[number]
        mine = prompts[(prompts >= base) & (prompts < base + shard.prompts)] - base
        if not parallel.of_first(path.exists()):
            stage = f"reference, {store.split} {number + 1}/{len(store.files)}"
            computed = compute(policy, shard, max_tokens, prompts=mine, progress=progress, stage=stage)
            with parallel.first_before_others():
                if parallel.is_first():
                    _write(path, computed)
        arrays.append(_complete(path, shard, mine))
    if parallel.is_first():
        sweep(folder)
    return np.concatenate(arrays)


def _write(path: Path, logps: np.ndarray) -> None:
    with naming(path), scratch(path.parent) as folder:
        temporary = folder / path.name
        save_file({"logps": logps}, temporary, metadata={"sha256": _sha256(logps)})
        flush(temporary)
        temporary.replace(path)


def _sha256(logps: np.ndarray) -> str:
    return hashlib.sha256(logps.tobytes()).hexdigest()


def _complete(path: Path, shard: Examples, prompts: np.ndarray) -> np.ndarray:
    """The array of one shard; TrainError if it is damaged, or lacks a finite number for a sequence of `prompts`."""
    try:
        with safe_open(path, "numpy") as file:
            logps = file.get_tensor("logps")
            whole = file.metadata()["sha256"] == _sha256(logps)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise TrainError(f"{path}: damaged. Delete it; it will be computed again.")
    if logps.shape != (shard.sequences,):
        raise TrainError(
            f"{path}: {logps.shape} numbers for {shard.sequences} sequences. Delete it; it will be computed again."
        )
    missing = np.count_nonzero(~np.isfinite(logps[shard.sequences_of(prompts)]))
    if missing:
        raise TrainError(
            f"{path}: {missing} log-probabilities are not finite, so the model that the phase starts from is broken or "
            'overflows. Try dtype = "float32"; delete the file to compute it again.'
        )
    return logps


@dataclass(frozen=True, kw_only=True)
class Sync:
    """`reference_sync = { … }` of a phase; TRL's defaults."""

    every: Annotated[int, Ge(1)] = 512  # steps from one move to the next
    alpha: Annotated[float, Gt(0), Le(1)] = 0.6  # the policy's share in the new reference


@torch.no_grad()
def move(reference: Policy, policy: Policy, alpha: float) -> None:
    """Move a live reference towards the policy; on several ranks each moves what it holds."""
    for target, source in zip(reference.model.parameters(), policy.model.parameters(), strict=True):
        parallel.local(target).lerp_(parallel.local(source), alpha)
