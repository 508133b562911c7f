"""Checkpoints: all that a phase needs to go on at step n; a crash at any moment costs no more than the steps since.

RUN/<phase>/checkpoints/step-00000100/ holds `weights.safetensors` (the parameters that learn: all, or the LoRA
adapter), `optimizer.safetensors` (what the optimiser keeps of each), `reference.safetensors` where the phase
moves its reference, and `state.json` (the step, the counters, the length of the metrics log, what losses remember, and
hashes of what the phase was made from: start weights, tokens). Schedule, order of the data and a reference that stays
are functions of the options and the step, so nothing else is needed; the random states of all ranks go along for LoRA's
dropout.

Ranks that hold a part of every weight each write it themselves, as `weights-00002-of-00004.safetensors`, whose rows
follow those of the file before; a rank reads the rows that are its own now, so a run goes on with any number of ranks.
torch.distributed.checkpoint would do the same, but its own format loads its metadata by pickle, and its safetensors
format has changed between versions of torch; rows in order need neither.

A folder that has its name is complete (`files.whole_folder`), and its `SHA256SUMS` tells whether it still is what was
written: the newest one is compared before anything of it is used. Only tensors and JSON are read back, never pickles.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from prefkit.errors import TrainError
from prefkit.train import files, parallel
from prefkit.train import optimizer as optimizers
from prefkit.train.optimizer import MOMENTS, WHOLE
from prefkit.train.policy import Policy


def save(
    folder: Path,
    step: int,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    *,
    keep: int,
    reference: Policy | None = None,
) -> None:
    """Write the checkpoint of `step`, each rank its part, then delete all but the last `keep`.

    `reference` is one that steps move, and so a state of the run.
    """
    random = _random_states(policy.device)
    with _folder_of_all_ranks(folder / f"step-{step:08d}") as target:
        if policy.sharded or parallel.is_first():
            _write_part(target, policy, optimizer, random if parallel.is_first() else {}, reference)
        if parallel.is_first():
            (target / "state.json").write_text(json.dumps({"step": step, **state}))
    if parallel.is_first():
        for old in _finished(folder)[:-keep]:
            files.remove(old)


@contextmanager
def _folder_of_all_ranks(target: Path) -> Iterator[Path]:
    """`files.whole_folder` for all ranks to write into: the first makes it, and puts it in place when all are done."""
    with files.whole_folder(target) if parallel.is_first() else nullcontext(files.unfinished(target)) as folder:
        parallel.wait()  # the folder is there
        yield folder
        parallel.wait()  # all have written


def _random_states(device: torch.device) -> dict[str, Tensor]:
    """The state of every rank's random generators; all ranks must ask."""
    mine = {"random_state": torch.get_rng_state()}
    if device.type == "cuda":
        mine["cuda_random_state"] = torch.cuda.get_rng_state()
    return {
        _of_rank(name, rank): state for name, one in mine.items() for rank, state in enumerate(parallel.all_rows(one))
    }


def _of_rank(name: str, rank: int) -> str:
    return f"{name}.{rank}" if rank else name


def _write_part(
    target: Path,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    random: dict[str, Tensor],
    reference: Policy | None,
) -> None:
    """What this rank holds of weights and moments, and the random states that are given."""
    parameters = policy.trained()
    moments = {
        f"{name}.{key}": parallel.local(value).cpu()
        for name, parameter in parameters.items()
        for key, value in optimizers.state_of(optimizer, parameter).items()
    }
    parts = parallel.size() if policy.sharded else 1
    part = "" if parts == 1 else f"-{parallel.rank() + 1:05d}-of-{parts:05d}"
    kinds = {"weights": held(parameters), "optimizer": {**moments, **random}}
    if reference is not None:
        kinds["reference"] = held(dict(reference.model.named_parameters()))
    for name, tensors in kinds.items():
        with files.naming(target):
            save_file(tensors, target / f"{name}{part}.safetensors")
        files.flush(target / f"{name}{part}.safetensors")


def held(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """What this rank holds of some parameters, on the CPU."""
    return {name: parallel.local(p.detach()).cpu().contiguous() for name, p in parameters.items()}


def settle(folder: Path, note: Callable[[str], None]) -> None:
    """Before going on: delete what a crash left half-written, and put a damaged newest checkpoint aside, aloud.

    TrainError if there are checkpoints, and all are damaged.
    """
    for leftover in folder.glob("*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    found = _finished(folder)
    damaged = list(itertools.takewhile(itemgetter(1), ((path, files.damaged(path)) for path in reversed(found))))
    if found and len(damaged) == len(found):
        raise TrainError(
            f"{damaged[0][1]}: damaged, and no earlier checkpoint is whole. Delete {folder} to begin the phase again."
        )
    for path, file in damaged:
        path.rename(path.with_name(f"damaged-{path.name}"))
        note(f"{file}: damaged, so training goes on from the checkpoint before.")


def latest_state(folder: Path) -> dict[str, Any] | None:
    """What `save` was given as state, and the step, of the newest checkpoint; None if there is none."""
    found = _finished(folder)
    return json.loads((found[-1] / "state.json").read_text()) if found else None


def restore(folder: Path, policy: Policy, optimizer: torch.optim.Optimizer, reference: Policy | None = None) -> None:
    """Put weights, optimiser, random state and a moved reference of the newest checkpoint into place."""
    newest = _finished(folder)[-1]
    weights, optimised, moved = (
        [safe_open(path, "pt") for path in sorted(newest.glob(f"{kind}*.safetensors"))]
        for kind in ("weights", "optimizer", "reference")
    )
    for name, parameter in reference.model.named_parameters() if reference is not None else ():
        _read_rows(moved, name, parameter)
    parameters = policy.trained()
    assert set(weights[0].keys()) == parameters.keys(), "the options are the run's own, so the parameters must be"
    stepped = {*optimised[0].keys()}
    for name, parameter in parameters.items():
        _read_rows(weights, name, parameter)
        if f"{name}.step" in stepped:
            keys = [[key for key in kind if f"{name}.{key}" in stepped] for kind in (MOMENTS, WHOLE)]
            moments = {key: torch.empty_like(parameter) for key in keys[0]}
            for key, tensor in moments.items():
                _read_rows(optimised, f"{name}.{key}", tensor)
            whole = {key: optimised[0].get_tensor(f"{name}.{key}") for key in keys[1]}
            optimizer.state[parameter] = {**moments, **whole}
    optimizers.settle(optimizer)
    # A rank that the checkpoint has no state of goes on from its own seed: one more than there were, or now on a GPU.
    on_cpu, on_gpu = (_of_rank(name, parallel.rank()) for name in ("random_state", "cuda_random_state"))
    if on_cpu in stepped:
        torch.set_rng_state(optimised[0].get_tensor(on_cpu))
    if policy.device.type == "cuda" and on_gpu in stepped:
        torch.cuda.set_rng_state(optimised[0].get_tensor(on_gpu))


@torch.no_grad()
def _read_rows(parts: list[Any], name: str, into: Tensor) -> None:
    """Fill what this rank holds of a tensor from the files that its rows were dealt to."""
    wanted, target, before = parallel.rows_of(into), parallel.local(into), 0
    for part in parts:
        rows = part.get_slice(name)
        length = rows.get_shape()[0]
        first, end = max(wanted.start, before), min(wanted.stop, before + length)
        if first < end:
            target[first - wanted.start : end - wanted.start] = rows[first - before : end - before]
        before += length


def _finished(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.suffix != ".tmp")
