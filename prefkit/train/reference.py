"""The reference model's log-probabilities: computed once, kept beside the token store, reused by every later run.

A preference loss needs, of the reference, one number a sequence. `compute` runs a model over a whole split and gives
that array; `cached` keeps it as `reference-<key>/<shard>.npy` under the hash of the weights, the configuration, the
token store and the precision, so an array can never belong to another model than it says. Each file appears at once
or not at all, an interrupted pass goes on where it was, and all files are checked for length and finite values before
training starts.

The reference of a phase is always the model that the phase starts from, also when a run is resumed: the caller passes
the start weights, never those of a checkpoint. Training then holds one model instead of two and saves a third of the
forward passes; the price is one pass over all of the train split, even if `max_steps` will use a part of it only:
`reference = "live"` suits that case.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from prefkit.errors import TrainError
from prefkit.train.chat import Store
from prefkit.train.metrics import Progress
from prefkit.train.policy import Policy, weights_hash
from prefkit.train.stream import Examples, in_order

FORMAT = 1


@torch.no_grad()
def compute(policy: Policy, examples: Examples, max_tokens: int, *, progress: Progress, stage: str) -> np.ndarray:
    """Summed log-probability of the completion of every sequence of a token store, float32, by running the model over

    it.
    """
    logps = np.full(examples.sequences, np.nan, dtype=np.float32)
    training = policy.model.training
    policy.model.eval()
    done = 0
    for bin in in_order(examples, max_tokens):
        logps[bin.sequence_rows_Q.numpy()] = policy.sequence_logps(bin).cpu().numpy()
        done += len(bin.sequence_rows_Q)
        progress.update(stage, min(done, examples.sequences), examples.sequences, "sequences")
    policy.model.train(training)
    return logps


def cached(
    policy: Policy, store: Store, examples: Examples, max_tokens: int, *, cache: Path, progress: Progress
) -> np.ndarray:
    """What `compute` gives, from the cache if it was computed before by these weights on these tokens."""
    key = f"{FORMAT} {weights_hash(policy.model)} {store.key} {policy.dtype} {bool(policy.padded_because)}"
    folder = cache / f"reference-{hashlib.sha256(key.encode()).hexdigest()[:24]}"
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, name in enumerate(store.files):
        path = (folder / name).with_suffix(".npy")
        part = examples.shard(number)
        if not path.exists():
            logps = compute(
                policy,
                part,
                max_tokens,
                progress=progress,
                stage=f"reference, {store.split} {number + 1}/{len(store.files)}",
            )
            temporary = path.with_suffix(".tmp")
            with open(temporary, "wb") as file:
                np.save(file, logps, allow_pickle=False)
            temporary.replace(path)
        parts.append(_complete(path, part.sequences))
    return np.concatenate([np.zeros(0, np.float32), *parts])


def _complete(path: Path, sequences: int) -> np.ndarray:
    """The array of one shard; TrainError if it is damaged, or not one finite number a sequence."""
    try:
        logps = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise TrainError(f"{path}: damaged ({error}). Delete it; it will be computed again.") from error
    if logps.shape != (sequences,):
        raise TrainError(
            f"{path}: {logps.shape} log-probabilities for {sequences} sequences. Delete it; it will be computed again."
        )
    if not np.isfinite(logps).all():
        raise TrainError(
            f"{path}: {np.count_nonzero(~np.isfinite(logps))} log-probabilities are not finite, so the model that the "
            'phase starts from is broken or overflows. Try dtype = "float32"; delete the file to compute it again.'
        )
    return logps
