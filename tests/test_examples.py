"""The example scripts run, and their losses are those of prefkit's own trainer, and of TRL's."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prefkit
from prefkit import manifest
from prefkit.train import metrics, policy
from prefkit.train.tokenizer import train_bpe
from tests.conftest import PROJECT
from tests.train.datasets_for_tests import TINY, pipeline, toy_pairs, write_data_set

EXAMPLES = PROJECT / "docs" / "examples"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples") / "data"
    write_data_set(folder, toy_pairs(20), toy_pairs(24)[20:], shards=2)
    return folder


@pytest.fixture(scope="module")
def model(data: Path) -> Path:
    folder = data.parent / "model"
    words = train_bpe(data, manifest.read(data), vocab_size=400)
    policy.create(TINY, words, seed=0).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def script(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / name))


def test_own_loop_has_the_losses_of_prefkit_train_also_when_it_resumes(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phase = {
        "objective": "sigmoid", "pairs_per_step": 6, "learning_rate": 1e-3, "schedule": "constant", "warmup": 0,
        "reference": "live",
    }  # fmt: skip
    prefkit.train(pipeline(data, phase, path=str(model)), data=data, out=tmp_path / "run")
    expected = [line["loss"] for line in metrics.read(tmp_path / "run") if "loss" in line]
    options = ["--data", data, "--model", model, "--pairs-per-step", "6", "--max-tokens", "150"]
    options += ["--learning-rate", "1e-3", "--out", tmp_path / "out"]
    losses = []
    for more in (["--max-steps", "2"], []):
        monkeypatch.setattr(sys, "argv", ["own_loop.py", *map(str, options), *more])
        losses += script("own_loop.py")["main"]()
    assert len(losses) == len(expected) == 4
    assert expected[0] - expected[-1] > 0.01
    np.testing.assert_allclose(losses, expected, atol=2e-6)
    assert prefkit.PairStream(data, policy_words(tmp_path / "out"))
    assert "prefkit_tree" not in (tmp_path / "out" / "config.json").read_text()


def policy_words(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_hf_trainer_has_the_losses_of_trl(data: Path, model: Path, tmp_path: Path) -> None:
    """Twenty pairs in batches of 3, two a step: the last step is smaller, and still an exact mean."""
    from datasets import load_dataset
    from torch.utils.data import SequentialSampler
    from transformers import TrainingArguments
    from trl import DPOConfig, DPOTrainer

    common = {
        "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "report_to": [],
        "logging_steps": 1, "lr_scheduler_type": "constant", "use_cpu": True, "disable_tqdm": True, "bf16": False,
        "save_strategy": "no", "num_train_epochs": 1, "gradient_checkpointing": False, "per_device_eval_batch_size": 4,
    }  # fmt: skip
    ours = script("hf_trainer.py")["make_trainer"](
        data,
        str(model),
        TrainingArguments(output_dir=str(tmp_path / "ours"), remove_unused_columns=False, **common),
        beta=0.1,
        max_length=512,
    )
    theirs = DPOTrainer(
        model=str(model),
        args=DPOConfig(output_dir=str(tmp_path / "trl"), max_length=512, **common),
        train_dataset=load_dataset(str(data), split="train"),
        eval_dataset=load_dataset(str(data), split="test"),
        processing_class=policy_words(model),
    )
    curves = []
    for trainer in (ours, theirs):
        trainer._get_train_sampler = lambda *_, t=trainer: SequentialSampler(t.train_dataset)
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        logged = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        curves.append([before, *logged, trainer.evaluate()["eval_loss"]])
    assert len(curves[0]) == 4 + 2
    assert curves[1][0] - curves[1][-1] > 0.01
    np.testing.assert_allclose(curves[0], curves[1], atol=1e-4)
    ours.save_model()
    assert "prefkit_tree" not in (tmp_path / "ours" / "config.json").read_text()
