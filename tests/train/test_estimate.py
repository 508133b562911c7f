"""Estimates against what they estimate: counted models, measured layers, formulas of the literature, whole runs."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from prefkit import manifest
from prefkit.cli import main
from prefkit.config import load_pipeline, shipped_pipelines
from prefkit.train import attention, blocks, estimate, logps, policy, run, tokenizer
from prefkit.train.adapters import Lora
from prefkit.train.attention import backbone
from prefkit.train.logps import CHUNK_LOGITS
from tests.train.datasets_for_tests import TINY, pipeline, toy_pairs, write_data_set

DPO = {"name": "dpo", "objective": "sigmoid", "pairs_per_step": 6}
LLAMA_3_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "d"
    rows = toy_pairs(24, answers=3)
    write_data_set(folder, rows[:54], rows[54:])
    return folder


def planned(data, *phases, **model):
    options = run.check(pipeline(data, *phases, **model))
    return estimate.plan(options, data, max_steps=None, tflops=1.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("keeping", ["none", "matmuls", "full"])
def test_counted_and_measured_like_the_real_model(data, dtype, keeping):
    (entry,) = planned(data, {**DPO, "dtype": dtype, "activation_checkpointing": keeping, "max_tokens": 4096})
    options = run.check(pipeline(data, DPO))
    words = tokenizer.train_bpe(data, manifest.read(data), vocab_size=400)
    model = policy.create(options.model.config, words, seed=0)
    parameters = sum(p.numel() for p in model.parameters())
    assert entry["parameters"] == entry["learning"] == parameters
    attention.enable(model)
    for layer in blocks.decoder_layers(model):
        blocks.keep(layer, keeping)
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=dtype == "bfloat16")
    copies, held = blocks.bytes_held(model, autocast, options.phases[0].longest)
    gib = {name: value * 2**30 for name, value in entry["memory_gib"].items()}
    near = {"abs": 6e-4 * 2**30}  # three digits of a GiB
    assert gib["weights"] == pytest.approx(4 * parameters, **near)
    assert gib["optimizer"] == pytest.approx(8 * parameters, **near)
    assert gib["activations"] == pytest.approx(held * 4096, **near)
    linear = sum(m.weight.numel() for m in attention.backbone(model).modules() if isinstance(m, torch.nn.Linear))
    assert gib["copies"] == pytest.approx(max(copies, 2 * linear if dtype == "bfloat16" else 0), **near)
    of_weight = 6 if dtype == "bfloat16" else 4
    head = 8 * min(CHUNK_LOGITS, 4096 * len(words)) + 4 * 4096 * 32 + of_weight * len(words) * 32
    assert gib["head"] == pytest.approx(head, **near)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_head_holds_what_is_estimated_of_it(data, dtype, adapter, tied):
    """Measured while a bin's backward pass could begin; the gradient of its weight comes with that pass."""
    how = {"dtype": dtype, "max_tokens": 64, **({"lora": {"r": 2}} if adapter else {})}
    config = {**TINY, "hidden_size": 64, "vocab_size": 4096, "tie_word_embeddings": tied}
    options = run.check(pipeline(data, {**DPO, **how}, config=config, tokenizer={"vocab_size": 400}))
    (phase,) = options.phases
    words = tokenizer.train_bpe(data, manifest.read(data), vocab_size=400)
    model = policy.create(config, words, seed=0)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()  # as if from files in 16 bits
    now = policy.ready(model, dtype=dtype)
    now = policy.add_lora(now, Lora(r=2)) if adapter else now
    hidden, targets = torch.randn(64, 64), torch.arange(64)

    def forward():
        with now.autocast():
            return logps._head(attention.unwrap(now.model), hidden.clone().requires_grad_(), targets, CHUNK_LOGITS)

    gradient = 0 if adapter else 4 * 4096 * 64
    rest = 4 * 64 * 4096 + 4 * 64 * 64  # the second copy of the chunk, and rounding of what is small
    found = estimate.head(estimate.size(options, phase, words), phase) - gradient
    assert found - rest <= blocks.held_bytes(forward) <= found


def test_flops_are_those_of_a_counted_step(data):
    """Of the layers: 6 FLOPs a weight and token, forward and backward, and the attention matrices of each sequence."""
    options = run.check(pipeline(data, DPO))
    words = tokenizer.train_bpe(data, manifest.read(data), vocab_size=400)
    size = estimate.size(options, options.phases[0], words)
    model = policy.create(TINY, words, seed=0)
    model.set_attn_implementation("eager")
    linear = sum(m.weight.numel() for m in backbone(model).modules() if isinstance(m, torch.nn.Linear))
    assert size.flops == 2 * linear
    with FlopCounterMode(display=False) as counter:
        backbone(model)(input_ids=torch.zeros(1, 100, dtype=torch.long)).last_hidden_state.sum().backward()
    counted = 3 * 100 * (size.flops + size.flops_a_position * 100)
    # The first layer's input needs no gradient, but its embedding does; so nothing is left out.
    assert counter.get_total_flops() == pytest.approx(counted, rel=1e-6)


@pytest.mark.slow
def test_moments_in_8_bits_are_estimated_as_such(data):
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8}
    model = {"config": {"model_type": "llama", **shape}, "tokenizer": {"vocab_size": 400}}
    full, small = planned(data, DPO, {**DPO, "name": "small", "optimizer": "adamw_8bit"}, **model)
    assert small["memory_gib"]["optimizer"] == pytest.approx(full["memory_gib"]["optimizer"] * 2.03 / 8, rel=0.02)
    assert small["memory_gib"]["gradients"] == full["memory_gib"]["gradients"]


def test_an_8b_model_without_its_weights(data, tmp_path):
    """8,030,261,248 parameters, and 41,943,040 of a LoRA of rank 16 on all linear layers, are figures known of it."""
    kept = tmp_path / "words"
    tokenizer.train_bpe(data, manifest.read(data), vocab_size=400).save_pretrained(kept)
    how = {"max_tokens": 8192, "dtype": "bfloat16", "activation_checkpointing": "full"}
    phases = [{**DPO, **how, "reference": "live"}, {**DPO, **how, "name": "lora", "lora": {"r": 16}}]
    full, lora = planned(data, *phases, config=LLAMA_3_8B, tokenizer=str(kept))
    assert full["parameters"] == full["learning"] == 8_030_261_248
    assert lora["learning"] == 41_943_040
    weights = 8_030_261_248 * 4 / 2**30
    assert full["memory_gib"]["weights"] == pytest.approx(weights, abs=1e-3)
    # Gradients, AdamW, the live reference, half of the layers' weights with their copies, and what the head needs to
    # learn are what LoRA saves.
    saved = 4 * weights + (4 * 6.979e9 + 6 * 128256 * 4096) / 2**30
    assert full["memory_gib"]["total"] - lora["memory_gib"]["total"] == pytest.approx(saved, rel=0.01)
    assert lora["memory_gib"]["weights"] == pytest.approx((2 * 6.979e9 + 4 * 1.051e9) / 2**30, rel=1e-3)
    assert full["flops"] > 6 * 6.9e9 * full["tokens"]
    assert full["hours"] == pytest.approx(full["flops"] / 1e12 / 3600, rel=0.01)


def test_tokens_are_those_of_the_run(data, tmp_path):
    (entry,) = planned(data, {**DPO, "epochs": 2})
    report = run.train(pipeline(data, {**DPO, "epochs": 2}), data=data, out=tmp_path / "r")["phases"]["dpo"]
    assert entry["tokens"] == pytest.approx(report["last_step"]["num_tokens"], rel=0.01)
    assert entry["steps"] == report["steps"]


def test_shards_may_be_empty(tmp_path):
    """As they are where one prompt has the pairs of several."""
    made = write_data_set(tmp_path / "d", toy_pairs(1, answers=4), shards=3)
    (tmp_path / "d" / manifest.FILE_NAME).write_text(manifest.dump(replace(made, shards=made.shards[::-1])))
    (entry,) = planned(tmp_path / "d", DPO)
    assert entry["tokens"] > 0
    report = run.train(pipeline(tmp_path, DPO), data=tmp_path / "d", out=tmp_path / "r")["phases"]["dpo"]
    assert report["last_step"]["pairs"] == made.rows("train")


def test_a_mixture_of_experts_takes_memory_of_all_and_flops_of_those_used(data):
    mixture = {**TINY, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
    one, eight = (
        planned(
            data,
            {**DPO, "reference": "live"},
            config={**mixture, "num_local_experts": number},
            tokenizer={"vocab_size": 400},
        )[0]
        for number in (2, 8)  # of two, a token uses both
    )
    assert one["active"] == one["parameters"]
    router = 6 * TINY["hidden_size"] * TINY["num_hidden_layers"]
    assert eight["active"] == one["active"] + router
    assert eight["parameters"] > 2 * one["parameters"]
    assert eight["flops"] == pytest.approx(one["flops"], rel=0.02)
    bytes_of_all = 4 * eight["parameters"] / 2**30
    assert eight["memory_gib"]["weights"] == pytest.approx(bytes_of_all, abs=6e-4)
    assert eight["memory_gib"]["live reference"] == pytest.approx(bytes_of_all, abs=6e-4)


def test_an_adapter_is_estimated_from_above(data):
    words = tokenizer.train_bpe(data, manifest.read(data), vocab_size=400)
    model = policy.create(TINY | {"hidden_size": 128, "intermediate_size": 256}, words, seed=0)
    now = policy.Policy(model, torch.device("cpu"), "float32", None)
    base = blocks.bytes_a_token(model, lambda: torch.autocast("cpu", torch.bfloat16, enabled=False))
    held = blocks.bytes_a_token(
        policy.add_lora(now, Lora(r=4)).model, lambda: torch.autocast("cpu", torch.bfloat16, enabled=False)
    )
    assert 0.75 * base < held <= base


def test_a_speed_is_refused_where_nothing_is_estimated(data, tmp_path, capsys):
    assert main(["train", "demo", "--data", str(data), "--out", str(tmp_path / "r"), "--tflops", "300"]) == 2
    assert "--tflops has no effect without --dry-run" in capsys.readouterr().err


def test_out_of_reach_is_said(data):
    (entry,) = planned(data, DPO, path="nobody/no_such_model")
    assert entry["estimate"].startswith("none, since ")
    assert "no_such_model" in entry["estimate"]
    assert entry["steps"] == 9


def test_what_training_would_refuse_is_no_missing_estimate(data, tmp_path, capsys):
    command = ["train", "demo", "--data", str(data), "--out", str(tmp_path / "r"), "--dry-run"]
    assert main([*command, "--set", "model.config.hidden_sizes=64"]) == 2
    assert 'llama has no "hidden_sizes". Did you mean "hidden_size"?' in capsys.readouterr().err


@pytest.mark.parametrize("name", shipped_pipelines())
def test_every_shipped_pipeline_with_phases_has_a_plan(name, data, tmp_path, capsys):
    table = load_pipeline(name).table
    if "train" not in table:
        pytest.skip("builds pairs alone")
    config = AutoConfig.for_model("llama", **{key: value for key, value in TINY.items() if key != "model_type"})
    config.save_pretrained(tmp_path / "model")
    tokenizer.train_bpe(data, manifest.read(data), vocab_size=400).save_pretrained(tmp_path / "model")
    command = ["train", name, "--data", str(data), "--out", str(tmp_path / "r"), "--dry-run"]
    assert main([*command, "--model", str(tmp_path / "model")]) == 0
    shown = capsys.readouterr().out
    assert main([*command, "--model", str(tmp_path / "model"), "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)["plan"]
    for entry in entries:
        assert entry["phase"] in shown and f"{entry['steps']:,}" in shown and f"{entry['tokens']:,}" in shown
        assert f"{entry['memory_gib']['total']:.3g}" in shown
    assert [entry["phase"] for entry in entries] == [phase.get("name", phase["objective"]) for phase in table["train"]]
    assert all(entry["memory_gib"]["total"] > 0 and entry["hours"] > 0 for entry in entries)
    if "model" in table:
        assert main(command) == 0  # whose model may be out of reach here
        assert "Nothing was written now." in capsys.readouterr().out
    assert not (tmp_path / "r").exists()


def test_losses_of_the_whole_step_take_a_forward_pass_more_and_kto_other_prompts_answers(data):
    entries = {
        name: planned(data, {**DPO, "name": name, "objective": name, "reference": "live"})[0]
        for name in ("sigmoid", "aot", "kto")
    }
    assert entries["aot"]["flops"] == pytest.approx(entries["sigmoid"]["flops"] * 5 / 4, rel=1e-3)
    assert entries["aot"]["tokens"] == entries["sigmoid"]["tokens"] < entries["kto"]["tokens"]
