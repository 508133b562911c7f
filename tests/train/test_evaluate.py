"""Evaluation: the figures are what their names say, against plain forwards of the model itself."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefkit import manifest
from prefkit.cli import main
from prefkit.errors import DataError, TrainError
from prefkit.manifest import Shard
from prefkit.train import evaluate, generate, run
from prefkit.train.metrics import Silent
from prefkit.train.render import render
from tests.train.datasets_for_tests import pair, pipeline, toy_pairs, write_data_set


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A data set, an SFT model, and a DPO model that started from it."""
    root = tmp_path_factory.mktemp("evaluate")
    rows = toy_pairs(24, answers=3)
    rows[60]["source"], rows[61]["lang"] = None, "de"
    write_data_set(root / "d", rows[:54], rows[54:])
    phases = [
        {"objective": "sft", "learning_rate": 3e-3, "pairs_per_step": 4, "epochs": 6},
        {"name": "dpo", "objective": "sigmoid", "learning_rate": 1e-3, "pairs_per_step": 6},
    ]
    result = run.train(pipeline(root / "d", *phases), data=root / "d", out=root / "r")
    return root / "d", root / "r" / "sft" / "model", root / "r" / "model", result, rows[54:]


def plain_logps(folder, rows, side):
    """Sum and mean log-probability of each completion, by one forward pass a row and the full logits."""
    model, words = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    sums, means = [], []
    for row in rows:
        prompt = words.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        whole = words.apply_chat_template(row["prompt"] + row[side], return_dict=True)["input_ids"]
        with torch.no_grad():
            logps = model(torch.tensor([whole])).logits[0, :-1].log_softmax(-1)
        picked = logps[range(len(whole) - 1), whole[1:]][len(prompt) - 1 :]
        sums.append(picked.sum().item())
        means.append(picked.mean().item())
    return np.array(sums), np.array(means)


def test_figures_against_plain_forwards(trained):
    data, start, model, _, rows = trained
    result = evaluate.evaluate(model, data=data, reference_model=start, beta=0.3)
    (chosen, chosen_mean), (rejected, rejected_mean) = (plain_logps(model, rows, s) for s in ("chosen", "rejected"))
    (base_chosen, _), (base_rejected, _) = (plain_logps(start, rows, s) for s in ("chosen", "rejected"))
    margins = 0.3 * ((chosen - base_chosen) - (rejected - base_rejected))
    assert result["pairs"] == len(rows)
    assert result["logps/chosen"] == pytest.approx(chosen.mean(), rel=1e-4)
    assert result["logps/accuracies"] == np.mean(chosen > rejected)
    assert result["logps/accuracies_per_token"] == np.mean(chosen_mean > rejected_mean)
    assert result["rewards/margins"] == pytest.approx(margins.mean(), rel=1e-3)
    assert result["rewards/accuracies"] == np.mean(margins > 0)
    assert result["loss"] == pytest.approx(np.log1p(np.exp(-margins)).mean(), rel=1e-4)
    json.dumps(result)


def test_agrees_with_the_evaluation_of_the_run(trained):
    data, start, model, run_result, _ = trained
    result = evaluate.evaluate(model, data=data, reference_model=start)
    after = run_result["phases"]["dpo"]["eval_after"]
    for name in ("loss", "rewards/accuracies", "rewards/margins", "logps/accuracies", "logps/accuracies_low"):
        assert result[name] == pytest.approx(after[f"eval_{name}"], abs=1e-5)


def test_what_became_of_the_rows_is_said(trained, monkeypatch):
    data, _, model, _, rows = trained
    said, progress = [], Silent()
    monkeypatch.setattr(progress, "note", said.append)
    evaluate.evaluate(model, data=data, max_length=24, progress=progress)
    [text] = said
    assert text.startswith(f"{model}, test: ") and f" of {len(rows)} rows (" in text and " same after cut" in text


def test_model_against_itself_is_a_coin(trained):
    data, start, *_ = trained
    result = evaluate.evaluate(start, data=data, reference_model=start)
    assert result["rewards/accuracies"] == 0.5
    assert result["loss"] == pytest.approx(np.log(2), abs=1e-6)


def test_slices_add_up(trained):
    data, _, model, _, rows = trained
    result = evaluate.evaluate(model, data=data)
    assert result["reference"] is None
    assert "rewards/accuracies" not in result
    assert result["by_lang"]["de"]["pairs"] == 1
    assert result["by_source"]["unknown"]["pairs"] == 1
    for name in ("by_lang", "by_source"):
        slices = result[name].values()
        assert sum(s["pairs"] for s in slices) == len(rows)
        mean = sum(s["pairs"] * s["logps/chosen"] for s in slices) / len(rows)
        assert mean == pytest.approx(result["logps/chosen"])
    console = Console(file=io.StringIO(), width=160)
    render(result, console)
    assert "lang de" in console.file.getvalue()
    narrow = Console(file=io.StringIO(), width=80)
    render(result, narrow)
    assert "…" not in narrow.file.getvalue(), "no figure is cut in a terminal of 80 columns"


def test_rejects_are_no_split(tmp_path):
    made = write_data_set(tmp_path / "d", [pair("prompt", "x", "y")])
    with_rejects = replace(made, shards=[*made.shards, Shard("rejects/r.parquet", "rejects", 3, 9, "0" * 64)])
    (tmp_path / "d" / manifest.FILE_NAME).write_text(manifest.dump(with_rejects))
    with pytest.raises(DataError, match=r'"rejects" has no pairs. Splits: train\.'):
        evaluate.evaluate("any", data=tmp_path / "d", split="rejects")
    with pytest.raises(DataError, match="a file, and no data set"):
        manifest.read(tmp_path / "d" / manifest.FILE_NAME)


def test_what_cannot_be_evaluated(trained, tmp_path):
    data, start, *_ = trained
    with pytest.raises(DataError, match=r'"dev" has no pairs. Splits: train, test'):
        evaluate.evaluate(start, data=data, split="dev")
    with pytest.raises(TrainError, match="no folder of a model"):
        evaluate.evaluate(tmp_path, data=data)
    write_data_set(tmp_path / "d", [pair("long prompt", "x", "y")])
    with pytest.raises(TrainError, match=r"no pair can be evaluated: .*1 prompt too long"):
        evaluate.evaluate(start, data=tmp_path / "d", split="train", max_length=2)


def test_no_limit_cuts_nothing(trained):
    data, start, *_ = trained
    short, whole = (evaluate.evaluate(start, data=data, max_length=length)["counts"] for length in (30, 0))
    assert short["completion_cut"] + short["prompt_too_long"] > 0
    assert (whole["completion_cut"], whole["examples"]) == (0, whole["rows"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--beta", "0.2"], "--beta has no effect without --reference"),
        (["--max-length", "0", "--max-length-policy", "drop"], "--max-length-policy has no effect without a limit"),
    ],
)
def test_options_without_effect_are_refused(tmp_path, capsys, given, message):
    assert main(["evaluate", "model", "--data", str(tmp_path), *given]) == 2
    assert message in capsys.readouterr().err


def test_read_only_data_set_is_left_alone(trained, monkeypatch):
    data, start, *_ = trained
    before = sorted(data.rglob("*"))
    monkeypatch.setattr("prefkit.train.chat.os.access", lambda *a: False)
    evaluate.evaluate(start, data=data, max_length=300)
    assert sorted(data.rglob("*")) == before


def test_generation_does_not_depend_on_the_batch(trained):
    _, _, folder, _, rows = trained
    model, words = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompts = [row["prompt"] for row in rows]
    together = generate.generate(model, words, prompts, max_new_tokens=12)
    assert together == generate.generate(model, words, prompts, max_new_tokens=12, batch_size=1)
    ids = words.apply_chat_template(prompts[0], add_generation_prompt=True, return_dict=True)["input_ids"]
    with torch.no_grad():
        for _ in range(12):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == words.eos_token_id:
                break
    start = len(words.apply_chat_template(prompts[0], add_generation_prompt=True, return_dict=True)["input_ids"])
    assert together[0] == words.decode(ids[start:], skip_special_tokens=True).strip()
