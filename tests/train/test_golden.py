"""The loss curves of a small run, kept in golden_losses.json: a change that moves them must be meant.

To write them anew after such a change: python -m tests.train.test_golden
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from prefkit.config import load_pipeline
from prefkit.train import metrics
from prefkit.train.run import train
from tests.train.datasets_for_tests import toy_pairs, write_data_set

GOLDEN = Path(__file__).parent / "golden_losses.json"
PIPELINE = """
[model]
tokenizer = { vocab_size = 300 }
[model.config]
model_type = "llama"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
[[train]]
objective = "sft"
pairs_per_step = 8
learning_rate = 3e-3
[[train]]
objective = "sigmoid"
pairs_per_step = 12
learning_rate = 1e-3
max_tokens = 300
"""


def losses(folder: Path) -> dict[str, list[float]]:
    rows = toy_pairs(24, 3)
    write_data_set(folder / "data", rows[:54], rows[54:], shards=2)
    (folder / "golden.toml").write_text(PIPELINE)
    train(load_pipeline(str(folder / "golden.toml")), data=folder / "data", out=folder / "run")
    phases = ("sft", "sigmoid")
    return {name: [line["loss"] for line in metrics.read(folder / "run", name) if "loss" in line] for name in phases}


def test_the_curves_are_those_in_git(tmp_path: Path) -> None:
    found, golden = losses(tmp_path), json.loads(GOLDEN.read_text())
    assert found["sft"][-1] < found["sft"][0], "it learns"
    for name, curve in golden.items():
        assert found[name] == pytest.approx(curve, abs=1e-4), name


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(losses(Path(folder)), indent=1) + "\n")
