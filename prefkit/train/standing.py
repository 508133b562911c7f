"""Where a phase stands: not begun, at a checkpoint, or finished; and whether it may go on from there.

What a phase is made from (the hashes of its model, tokenizer, template and tokens) is kept in its checkpoints and in
RUN/<phase>/phase.json, which says that it is finished. Going on is refused if one of them is another one by now.
Options that decide the cost alone may be others; which steps ran with which goes along with the checkpoints.

RUN/<phase>/begun.json says all that for people and for the report of the run, with the steps that are planned, and with
the software and the device that the phase runs on. A resumed phase writes it again, since machine and software may be
others then. Training reads nothing back from it.
"""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from prefkit import __version__
from prefkit.errors import TrainError
from prefkit.manifest import write_text_atomically
from prefkit.runs.record import changes
from prefkit.train import chat, checkpoint, parallel, policy, router
from prefkit.train.job import Job, SplitData
from prefkit.train.options import COSTS, Phase

# A finished phase can be finished again from its last checkpoint; what came after it started from its model.
FINISH_AGAIN = "Delete the phase's phase.json and the folders of the phases after it, and go on with --resume."


def of(job: Job, number: int, made_from: dict[str, Any]) -> dict[str, Any]:
    """The state that a phase begins with; or that of its newest checkpoint, if it was made from the same."""
    name = job.options.phases[number].name
    folder = job.out / name / "checkpoints"
    with parallel.first_before_others():
        if parallel.is_first():
            checkpoint.settle(folder, job.progress.note)
    state = parallel.of_first(checkpoint.latest_state(folder))
    if state is None:
        written = finished_bytes(job, number)
        state = {"step": 0, "num_tokens": 0, "metrics_bytes": written, "memory": [], "made_from": made_from}
        return {**state, "ran_with": ran_with([], 1, job.options.phases[number])}
    check_unchanged(job, name, state["made_from"], made_from)
    return {**state, "ran_with": ran_with(state.get("ran_with", []), state["step"] + 1, job.options.phases[number])}


def ran_with(before: list[dict[str, Any]], step: int, phase: Phase) -> list[dict[str, Any]]:
    """What a phase ran with until it came to `step`, and runs with from there on: an entry for each change of COSTS."""
    now = {name: getattr(phase, name) for name in COSTS}
    if before and before[-1] == {"from_step": before[-1]["from_step"], **now}:
        return before
    return [*before, {"from_step": step, **now}]


def goes_on(phase: Phase, state: dict[str, Any], steps: int) -> str:
    """What is said of a phase that is resumed."""
    step = state["step"]
    changed = [text for first, text in changes(state["ran_with"]) if first == step + 1]
    how = f", with {', '.join(changed)}" if changed else ""
    return f"{phase.name} goes on after step {step} of {steps}{how}."


def made_from(job: Job, phase: Phase, start: Any, train_set: SplitData, test_set: SplitData | None) -> dict[str, Any]:
    """All that the result of a phase depends on besides options and data; the same on every rank, or TrainError.

    And options of COSTS, where the result does depend on them.
    """
    drops = phase.lora is not None and phase.lora["dropout"] > 0
    made = {
        "the model it started from": policy.weights_hash(start),
        **vocabulary(job),
        "the tokens of train": train_set.store.key,
        "the tokens of test": test_set and test_set.store.key,
        "max_tokens (a router loss is a mean over bins)": phase.max_tokens if router.weight(start) else None,
        "max_tokens or compile (dropout falls on bins)": [phase.max_tokens, phase.compile] if drops else None,
    }
    parallel.alike(made)
    return made


def vocabulary(job: Job) -> dict[str, Any]:
    """What all phases must have in common besides options and data: hashes of chat template and tokenizer."""
    template = json.dumps(job.tokenizer.chat_template, sort_keys=True).encode()
    return {
        "the chat template": hashlib.sha256(template).hexdigest(),
        "the tokenizer": chat.tokenizer_hash(job.tokenizer),
    }


def write_begun(job: Job, phase: str, steps: int, state: dict[str, Any], device: torch.device) -> None:
    """Write RUN/<phase>/begun.json, once for all ranks."""
    if not parallel.is_first():
        return
    software = {name: version(name) for name in ("torch", "transformers")}
    table = {
        "steps": steps,
        "made_from": state["made_from"],
        "ran_with": [entry for entry in state["ran_with"] if entry["from_step"] <= steps],
        "data": {
            "pipeline": job.manifest.pipeline_name,
            "kind": job.manifest.kind,
            "train": job.manifest.rows("train"),
            "test": job.manifest.rows("test"),
            "versions": job.manifest.versions,
        },
        "versions": {"prefkit": __version__, "python": platform.python_version(), **software},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "ranks": parallel.size(),
    }
    folder = job.out / phase
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(folder / "begun.json", json.dumps(table, indent=1) + "\n")


def check_unchanged(job: Job, name: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """TrainError if something that a phase was made from is another one now, though the options are the same."""
    for what, value in now.items():
        if before.get(what) != value:
            raise TrainError(
                f"{job.out}: cannot resume, {what} of phase {name} has changed since. Bring it back, or choose "
                "another --out."
            )


def finished_bytes(job: Job, number: int) -> int:
    """Length of the metrics log when the phase before was finished."""
    if number == 0:
        return 0
    return read_report(job.out / job.options.phases[number - 1].name / "phase.json")["metrics_bytes"]


def read_report(file: Path) -> dict[str, Any]:
    """What `finish` wrote of a phase; TrainError if it is damaged."""
    try:
        report = json.loads(file.read_text())
        whole = isinstance(report["metrics_bytes"], int) and isinstance(report["made_from"], dict)
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise TrainError(f"{file}: damaged. {FINISH_AGAIN}")
    return report
