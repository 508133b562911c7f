"""What people use reads the product unconverted: `datasets`, DuckDB, polars, and one step of TRL's trainer."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from prefkit import schema
from prefkit.config import load_pipeline
from prefkit.pairs.build import build_pairs
from prefkit.pairs.verify import verify
from tests.pairs.raw import dirty_lines, write_lines

REAL = {
    "prometheus/ratings.jsonl.gz": ("ultrafeedback", 80, []),
    "ultrafeedback_binarized/train_1000.jsonl": (
        "ultrafeedback-binarized",
        1000,
        [f"build.inputs.0.{side}_score=metadata.score_{side}" for side in ("chosen", "rejected")],
    ),
    "hh_harmless/test.jsonl.gz": ("hh-rlhf", 2312, []),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interop")
    raw = write_lines(folder / "raw.jsonl", dirty_lines(150))
    build_pairs(load_pipeline("ultrafeedback", ["build.split.test=0.2"]), folder / "out", given=[str(raw)])
    return folder / "out"


def train_one_step_with_trl(data: Path, scratch: Path) -> float:
    """TRL's loss of its first step on the shards as they are, with a tiny random Llama."""
    from datasets import load_dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import DPOConfig, DPOTrainer

    from prefkit import manifest
    from prefkit.train.tokenizer import train_bpe

    words = train_bpe(data, manifest.read(data), vocab_size=2000)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **shape))
    rows = load_dataset(str(data), split="train", cache_dir=str(scratch / "cache")).select(range(4))
    arguments = DPOConfig(
        output_dir=str(scratch / "trl"), per_device_train_batch_size=4, max_steps=1, max_length=1024, report_to=[],
        use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True, save_strategy="no", logging_steps=1,
    )  # fmt: skip
    reference = copy.deepcopy(model)
    trainer = DPOTrainer(model=model, ref_model=reference, args=arguments, train_dataset=rows, processing_class=words)
    return trainer.train().training_loss


def test_datasets_loads_both_splits_by_the_card(made: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    loaded = load_dataset(str(made), cache_dir=str(tmp_path))
    assert set(loaded) == {"train", "test"}
    assert loaded["train"].column_names == schema.PAIRS.names
    first = loaded["train"][0]
    assert first["prompt"][-1]["role"] == "user"
    assert [message["role"] for message in first["chosen"] + first["rejected"]] == ["assistant", "assistant"]


def test_duckdb_and_polars_read_the_files(made: Path) -> None:
    import duckdb
    import polars as pl

    files = str(made / "data" / "*.parquet")
    query = f"select count(*), min(margin), max(len(prompt)) from '{files}'"
    count, margin, turns = duckdb.sql(query).fetchall()[0]
    rows = pl.read_parquet(files)
    assert (count, margin, turns) == (len(rows), rows["margin"].min(), 1)


def test_trl_trains_on_it(made: Path, tmp_path: Path) -> None:
    assert train_one_step_with_trl(made, tmp_path) == pytest.approx(0.693, abs=0.001)


@pytest.mark.parametrize("name", REAL)
def test_real_data_builds_verifies_and_trains_in_trl(real_data: Path, tmp_path: Path, name: str) -> None:
    pipeline, rows, overrides = REAL[name]
    record = build_pairs(load_pipeline(pipeline, overrides), tmp_path / "out", given=[str(real_data / name)])
    assert record.inputs[0].rows == rows
    assert verify(tmp_path / "out") == []
    assert record.rows("train") > 50
    assert train_one_step_with_trl(tmp_path / "out", tmp_path) == pytest.approx(0.693, abs=0.001)
