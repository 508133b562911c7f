"""Runs as `prefkit train` leaves them, made without training: any length, any state, any text."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

PHASE = {"name": "dpo", "objective": "sigmoid", "beta": 0.1, "max_grad_norm": 1.0, "alarms": {"window": 20}}
SFT = {"name": "sft", "objective": "sft", "max_grad_norm": 1.0}


def step_line(phase: str, step: int, rng: random.Random, **figures: Any) -> dict[str, Any]:
    """A line of training as the trainer logs it."""
    accuracy = 0.5 + 0.3 * (1 - math.exp(-step / 20))
    return {
        "phase": phase,
        "step": step,
        "epoch": step / 100,
        "loss": 0.69 * math.exp(-step / 50) + rng.random() / 10,
        "rewards/chosen": -step / 100 + rng.random() / 10,
        "rewards/rejected": -step / 50 + rng.random() / 10,
        "rewards/accuracies": accuracy + rng.uniform(-0.1, 0.1),
        "rewards/margins": step / 100 + rng.random() / 10,
        "logps/chosen": -20 - step / 10,
        "logps/rejected": -25 - step / 5,
        "longer/data": 0.5,
        "longer/policy": 0.5,
        "logps/chosen_change": -step / 10,
        "kl": step / 8,
        "grad_norm": 0.5 + rng.random(),
        "learning_rate": 1e-5 * step,
        "pairs": 32,
        "packing_efficiency": 0.9,
        "sharing_factor": 2.5,
        "num_tokens": 1000 * step,
        "pairs_per_second": 100 + rng.random(),
        "tokens_per_second": 3000 + rng.random(),
        "data_wait": 0.03,
        **figures,
    }


def eval_line(phase: str, step: int, accuracy: float, half: float = 0.02, **figures: Any) -> dict[str, Any]:
    """An evaluation, with an interval of `half` to either side."""
    return {
        "phase": phase,
        "step": step,
        "eval_pairs": 2000,
        "eval_loss": 0.69 - step / 1000,
        "eval_rewards/accuracies": accuracy,
        "eval_rewards/accuracies_low": accuracy - half,
        "eval_rewards/accuracies_high": accuracy + half,
        "eval_rewards/margins": step / 100,
        "eval_logps/chosen": -20 - step / 10,
        "eval_logps/chosen_change": -step / 10,
        **figures,
    }


def sft_line(step: int) -> dict[str, Any]:
    """A line of supervised fine-tuning."""
    kept = ("phase", "step", "epoch", "loss", "grad_norm", "learning_rate", "pairs", "pairs_per_second",
            "tokens_per_second", "packing_efficiency", "sharing_factor", "num_tokens", "data_wait")  # fmt: skip
    return {key: value for key, value in step_line("sft", step, random.Random(step)).items() if key in kept}


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """A JSONL file, with texts as they are, as the trainer writes its samples."""
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")


def write_run(
    out: Path,
    lines: list[dict[str, Any]],
    phases: tuple[dict[str, Any], ...] = (PHASE,),
    *,
    finished: bool = True,
    planned: int = 100,
    alarms: tuple[dict[str, Any], ...] = (),
    samples: tuple[dict[str, Any], ...] = (),
    data_hash: str = "d" * 64,
    data: str = "demo",
    kind: str = "pairs",
) -> Path:
    """A run's folder with these lines in its log."""
    out.mkdir(parents=True)
    model = {"path": "base", "config": None}
    table = {"options": {"model": model, "train": list(phases)}, "data_hash": data_hash, "max_steps": None}
    (out / "run.json").write_text(json.dumps(table))
    write_lines(out / "metrics.jsonl", lines)
    write_lines(out / "alarms.jsonl", list(alarms))
    write_lines(out / "samples.jsonl", list(samples))
    for phase in phases:
        folder = out / phase["name"]
        folder.mkdir()
        begun = {
            "steps": planned,
            "made_from": {"the tokenizer": "t" * 64, "the tokens of test": None},
            "data": {"pipeline": data, "kind": kind, "train": 3000, "test": 2000, "versions": {"prefkit": "0.1.0"}},
            "versions": {"prefkit": "0.1.0", "torch": "2.9"},
            "device": "cpu",
            "ranks": 1,
        }
        (folder / "begun.json").write_text(json.dumps(begun))
        if finished:
            (folder / "phase.json").write_text(
                json.dumps({"tokens": {"rows": 3000, "too_long": 7}, "epochs": [{"taken": 2993}]})
            )
    return out


def dpo_lines(
    steps: int = 100, evaluations: dict[int, float] | None = None, phase: str = "dpo", seed: int = 0
) -> list[dict[str, Any]]:
    """The log of a phase, with evaluations by step."""
    rng, evaluations = random.Random(seed), evaluations or {}
    lines = []
    for step in range(steps + 1):
        lines += [step_line(phase, step, rng)] if step else []
        lines += [eval_line(phase, step, evaluations[step])] if step in evaluations else []
    return lines
