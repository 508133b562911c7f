"""Checkpoints: all that a phase needs to go on at step n; a crash at any moment costs no more than the steps since.

RUN/<phase>/checkpoints/step-00000100/ holds `weights.safetensors` (the parameters that learn: all, or the LoRA
adapter), `optimizer.safetensors` (AdamW's two moments and step count of each), and `state.json` (the step, the
counters, the length of the metrics log, and hashes of what the phase was made from: start weights, tokens).
Schedule, order of the data and reference are functions of the options and the step, so nothing else is needed; the
random state goes along for LoRA's dropout. A folder is written under another name, flushed to disk, and renamed: one
that has its name is complete. `SHA256SUMS` tells whether it still is what was written: the newest one is compared
before anything of it is used. Only tensors and JSON are read back, never pickles.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from prefkit.errors import TrainError
from prefkit.train import files
from prefkit.train.policy import Policy

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `target` at once when all is written, and vanishes if writing fails.

    It also gets the SHA-256 sums of its files.
    """
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with files.naming(target):
            yield temporary
            files.write_sums(temporary)
            for path in temporary.rglob("*"):
                _flush(path)
        if target.exists():
            _remove(target)
        temporary.rename(target)
        _flush(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def save(
    folder: Path, step: int, policy: Policy, optimizer: torch.optim.Optimizer, state: dict[str, Any], *, keep: int
) -> None:
    """Write the checkpoint of `step`, then delete all but the last `keep`."""
    parameters = policy.trained()
    moments = {
        f"{name}.{moment}": optimizer.state[parameter][moment].cpu()
        for name, parameter in parameters.items()
        if parameter in optimizer.state  # empty before the first step
        for moment in MOMENTS
    }
    random = {"random_state": torch.get_rng_state()}
    if policy.device.type == "cuda":
        random["cuda_random_state"] = torch.cuda.get_rng_state()
    with whole_folder(folder / f"step-{step:08d}") as target:
        save_file(
            {name: p.detach().cpu().contiguous() for name, p in parameters.items()}, target / "weights.safetensors"
        )
        save_file({**moments, **random}, target / "optimizer.safetensors")
        (target / "state.json").write_text(json.dumps({"step": step, **state}))
    for old in _finished(folder)[:-keep]:
        _remove(old)


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


def restore(folder: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> None:
    """Put weights, optimiser and random state of the newest checkpoint into place."""
    newest = _finished(folder)[-1]
    weights = load_file(newest / "weights.safetensors")
    tensors = load_file(newest / "optimizer.safetensors")
    parameters = policy.trained()
    assert weights.keys() == parameters.keys(), "the options are the run's own, so the parameters must be"
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    for name, parameter in parameters.items():
        if f"{name}.step" in tensors:
            # AdamW keeps its step count on the CPU unless it is fused on a GPU; `load_state_dict` knows where.
            optimizer.state[parameter] = {moment: tensors[f"{name}.{moment}"] for moment in MOMENTS}
    optimizer.load_state_dict(optimizer.state_dict())
    torch.set_rng_state(tensors["random_state"])
    if policy.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["cuda_random_state"])


def _remove(path: Path) -> None:
    """Delete a folder under another name, so that it never stands there half."""
    doomed = path.with_name(f"{path.name}.old.tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def _finished(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.suffix != ".tmp")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
