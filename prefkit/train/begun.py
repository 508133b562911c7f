"""RUN/<phase>/begun.json: what a phase began with, for people and for the report of the run.

How many steps are planned, the identities that its result depends on (hashes of the weights that it starts from, of
tokenizer, template and tokens), the data set's size, and the software and the device that the phase runs on. A resumed
phase writes it again, since machine and software may be others then. Nothing is read back from it by training.
"""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from typing import Any

import torch

from prefkit import __version__
from prefkit.manifest import write_text_atomically
from prefkit.train import parallel
from prefkit.train.loop import Job

FILE_NAME = "begun.json"


def write(job: Job, phase: str, steps: int, made_from: dict[str, Any], device: torch.device) -> None:
    """Write it, once for all ranks."""
    if not parallel.is_first():
        return
    software = {name: version(name) for name in ("torch", "transformers")}
    table = {
        "steps": steps,
        "made_from": made_from,
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
    write_text_atomically(folder / FILE_NAME, json.dumps(table, indent=1) + "\n")
