"""The demo improves the model, and only because its labels mean something: shuffled ones improve nothing."""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prefkit.config import load_pipeline, shipped
from prefkit.demo.__main__ import measure, run
from prefkit.pairs.build import build_pairs
from prefkit.train.run import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    with (out / "printed.txt").open("w") as file:
        run(out, Console(file=file, width=120))
    return out


@pytest.fixture(scope="module")
def models(demo: Path) -> dict[str, Any]:
    return json.loads((demo / "demo.json").read_text())["models"]


def test_dpo_improves_preferences_and_generated_answers(models: dict[str, Any]) -> None:
    before, after = models["after SFT"], models["after DPO"]
    for name in ("logps/accuracies", "logps/accuracies_per_token"):
        assert after[f"{name}_low"] > before[f"{name}_high"], name
    assert after["rewards/accuracies_low"] > 0.7
    assert after["rewards/margins"] > 0.5
    assert after["judge"]["low"] > before["judge"]["high"]


def test_the_demo_prints_what_it_did(demo: Path) -> None:
    printed = (demo / "printed.txt").read_text()
    for words in ("near_duplicate", "not_json", "reward margin", "judge's score", "after DPO:"):
        assert words in printed
    for report, title in ((demo / "pairs" / "report.html", "Data report"), (demo / "run" / "report.html", "Training")):
        assert str(report) in printed.replace("\n", "")
        assert f"<h1>{title}" in report.read_text("utf-8")


def shuffled(seed: int) -> bytes:
    """The demo's ratings with the scores of each row permuted among its answers; unreadable lines stay."""
    rng = random.Random(seed)
    lines = gzip.decompress((shipped("data") / "demo.jsonl.gz").read_bytes()).split(b"\n")
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
            answers = row["completions"]
            ratings = [(answer["overall_score"], answer["annotations"]) for answer in answers]
        except (ValueError, KeyError, TypeError):
            continue
        rng.shuffle(ratings)
        for answer, (score, aspects) in zip(answers, ratings, strict=True):
            answer["overall_score"], answer["annotations"] = score, aspects
        lines[number] = json.dumps(row).encode()
    return b"\n".join(lines)


def test_shuffled_labels_improve_nothing(demo: Path, models: dict[str, Any], tmp_path: Path) -> None:
    sft = demo / "run" / "sft" / "model"
    (tmp_path / "shuffled.jsonl").write_bytes(shuffled(seed=7))
    pipeline = load_pipeline("demo")
    build_pairs(pipeline, tmp_path / "pairs", given=[str(tmp_path / "shuffled.jsonl")])
    dpo_alone = {"model": {"path": str(sft)}, "train": pipeline.table["train"][1:]}
    control = dataclasses.replace(pipeline, table=pipeline.table | dpo_alone)
    train(control, data=tmp_path / "pairs", out=tmp_path / "run")
    found = measure(tmp_path / "run" / "model", demo / "pairs", sft)
    before, after = models["after SFT"], models["after DPO"]
    assert found["rewards/accuracies_low"] < 0.53, "rewards learnt from noise know nothing of the true labels"
    assert found["logps/accuracies"] < before["logps/accuracies_high"] < after["logps/accuracies_low"]
    assert found["judge"]["mean"] < before["judge"]["high"] < after["judge"]["low"]
