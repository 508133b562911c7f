"""The model that a phase leaves: a standard Hugging Face folder that `AutoModelForCausalLM.from_pretrained` loads.

Weights are float32 safetensors, as trained, so that the next phase and the reference start from exactly these
numbers. A LoRA adapter is merged into them, and kept in `adapter/`; or it is left alone, if the phase asks for that, as
peft writes it. The folder appears at once or not at all. Weights that are dealt to ranks are gathered one by one in the
first rank's main memory, 4 bytes a parameter.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefkit.train import adapters, parallel
from prefkit.train.files import whole_folder
from prefkit.train.options import TrainOptions
from prefkit.train.policy import Policy, own_config

SHOWN = ("loss", "logps/accuracies", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected")


def export(
    policy: Policy,
    tokenizer: Any,
    target: Path,
    card: str,
    *,
    merge: bool = True,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write model, tokenizer, generation settings and model card to `target`.

    A policy with an adapter is merged, and so spent; or, unless `merge`, the adapter alone is written. A sharded policy
    needs its whole `weights`.
    """
    model = policy.model
    with whole_folder(target) as folder, own_config(model):
        if policy.has_adapter:
            adapters.save_alone(model, folder / "adapter" if merge else folder)
        if merge:
            model = adapters.merged(model) if policy.has_adapter else model
            settings = model.generation_config
            if settings is not None and settings.eos_token_id is None:
                settings.eos_token_id = tokenizer.eos_token_id
            model.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")


def gathered(policy: Policy) -> dict[str, Tensor] | None:
    """The whole weights of a sharded policy in main memory, what is tied still tied; on the first rank alone."""
    if not policy.sharded:
        return None
    seen: dict[int, Tensor] = {}
    weights = {}
    for name, tensor in policy.model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            whole = parallel.whole(tensor.detach())
            seen[id(tensor)] = whole.cpu() if parallel.is_first() else torch.empty(0)
        weights[name] = seen[id(tensor)]
    return weights if parallel.is_first() else None


def model_card(
    options: TrainOptions, data_hash: str, reports: dict[str, Any], version: str, *, merge: bool = True
) -> str:
    """The README of a model, or unless `merge` of an adapter alone: data set, options and held-out figures, with the
    front matter that the Hub reads. Of folders outside the run it says the names, and not where they are here."""
    table = options.table()
    texts = {key: value for key, value in table["model"].items() if isinstance(value, str)}
    here = {key: found for key, value in texts.items() if (found := _here(value, options.folder))}
    table["model"] |= {key: found.resolve().name for key, found in here.items()}
    start = table["model"]["path"]
    *before, _ = reports
    is_base = "path" not in here if merge else not before  # that of an adapter may be what a phase of this run left
    base = f"base_model: {json.dumps(start)}\n" if start and is_base else ""
    left = f"what phase {before[-1]} left" if before else "that model"
    alone = "" if merge else f" This is an adapter alone, of {left}; peft loads it."
    phases = "\n".join(_phase_section(name, report) for name, report in reports.items())
    return (
        f"---\nlibrary_name: {'transformers' if merge else 'peft'}\npipeline_tag: text-generation\n{base}"
        "tags:\n- prefkit\n- preference-optimization\n---\n\n"
        f"# A model aligned with prefkit {version}\n\n"
        f"Started from {start or 'random weights'}.{alone} Trained on the preference data set with hash\n"
        f"`{data_hash}`\n(SHA-256 over its shards).\n\n{phases}\n"
        f"## Options\n\n```json\n{json.dumps(table, indent=1, ensure_ascii=False)}\n```\n"
    )


def _here(path: str, folder: Path) -> Path | None:
    """What a path in the pipeline file of `folder` stands for on this machine; None for a name on the Hub."""
    return next((found for found in (folder / path, Path(path)) if found.exists()), None)


def _phase_section(name: str, report: dict[str, Any]) -> str:
    before, after = report["eval_before"], report["eval_after"]
    lines = [f"## Phase {name}\n", f"{report['steps']} steps."]
    if before is None:
        return "\n".join([*lines, "The data set has no test split, so nothing was held out.\n"])
    lines += [f"On {after['eval_pairs']} held-out examples:\n", "| | before | after |", "|---|---|---|"]
    for figure in SHOWN:
        if f"eval_{figure}" in after:
            lines.append(f"| {figure} | {_figure(before, figure)} | {_figure(after, figure)} |")
    return "\n".join([*lines, ""])


def _figure(line: dict[str, Any], name: str) -> str:
    shown = f"{line[f'eval_{name}']:.4f}"
    low, high = line.get(f"eval_{name}_low"), line.get(f"eval_{name}_high")
    return shown if low is None else f"{shown} ({low:.3f}–{high:.3f})"
