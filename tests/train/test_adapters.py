"""LoRA and QLoRA; models that are a base and an adapter; what a phase with an adapter leaves."""

import json
import warnings
from functools import partial
from importlib.util import find_spec

import numpy as np
import peft
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from prefkit.errors import TrainError, UsageError
from prefkit.train import adapters, export, policy, run
from prefkit.train.adapters import Lora
from prefkit.train.options import check
from prefkit.train.tokenizer import load_tokenizer
from tests.train.conftest import make_model
from tests.train.datasets_for_tests import pipeline, toy_pairs, write_data_set
from tests.train.test_run import DPO, SFT, lines, trained


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "d"
    rows = toy_pairs(16, answers=3)
    write_data_set(folder, rows[:36], rows[36:])
    return folder


@pytest.fixture(scope="module")
def base(data, tmp_path_factory):
    """A trained model in a folder, as others would have one."""
    out = tmp_path_factory.mktemp("base")
    run.train(pipeline(data, SFT), data=data, out=out / "run")
    return out / "run" / "model"


@pytest.fixture(scope="module")
def sft_adapter(base, tmp_path_factory):
    """An adapter on that model, as peft leaves it."""
    folder = tmp_path_factory.mktemp("adapter") / "a"
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(3)
    config = peft.LoraConfig(r=3, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    peft.get_peft_model(model, config).save_pretrained(folder)
    return folder


def logits(model):
    return model(input_ids=torch.arange(3, 13)[None], use_cache=False).logits


def test_a_module_that_the_model_lacks_is_named_among_others_that_it_has():
    model = make_model("Llama")
    with pytest.raises(TrainError, match=r'target_modules: no module is called "q_prj"\. Did you mean "q_proj"'):
        adapters.check_fits(model, Lora(r=2, target_modules=["v_proj", "q_prj"]))
    adapters.check_fits(model, Lora(r=2, target_modules=["v_proj", "self_attn.q_proj"]))


def test_an_adapter_is_loaded_with_its_base(sft_adapter, base):
    expected = peft.AutoPeftModelForCausalLM.from_pretrained(sft_adapter)
    found = policy.load(sft_adapter)
    torch.testing.assert_close(logits(found), logits(expected), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(found), logits(policy.load(base)), atol=1e-2)
    assert not any("lora" in name for name, _ in found.named_parameters())
    assert all(parameter.requires_grad for parameter in found.parameters())


@pytest.mark.parametrize(
    ("stay_tied", "how"),
    [
        (False, {"target_modules": ["q_proj", "lm_head"]}),
        (False, {"target_modules": ["q_proj", "embed_tokens"]}),
        (False, {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}),
        (True, {"target_modules": ["q_proj"]}),
        (True, {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}),
        (True, {"target_modules": ["q_proj"], "trainable_token_indices": [4, 7]}),
    ],
)
def test_an_adapter_of_tied_weights_changes_what_it_is_of(tmp_path, stay_tied, how):
    """One of the head alone must not change the embedding, and what is saved must not tie them again."""
    make_model("Qwen3").save_pretrained(tmp_path / "base")
    tied = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    torch.manual_seed(3)
    adapted = peft.get_peft_model(tied, peft.LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM", **how))
    for name, parameter in adapted.named_parameters():
        if "modules_to_save" in name or "trainable_tokens" in name:
            parameter.data += torch.randn_like(parameter) / 10
    adapted.save_pretrained(tmp_path / "adapter")
    with warnings.catch_warnings(action="error", category=UserWarning):
        found = policy.load(tmp_path / "adapter")
    torch.testing.assert_close(logits(found), logits(adapted.eval()), rtol=1e-4, atol=1e-4)
    assert (found.lm_head.weight is found.model.embed_tokens.weight) == found.config.tie_word_embeddings == stay_tied
    found.save_pretrained(tmp_path / "model")
    assert torch.equal(logits(policy.load(tmp_path / "model")), logits(found))


@pytest.mark.parametrize("how", [{}, {"lora": {"r": 2}}, {"lora": {"r": 2}, "reference": "live"}])
def test_preferences_start_from_a_fine_tuned_adapter(data, sft_adapter, tmp_path, how):
    """LLaMA-Factory#8974: the reference must be base + adapter, not the base, and not the trained policy."""
    run.train(pipeline(data, {**DPO, **how}, path=str(sft_adapter)), data=data, out=tmp_path / "r", max_steps=3)
    of_steps = [line for line in lines(tmp_path / "r") if "loss" in line]
    assert of_steps[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert of_steps[-1]["loss"] < of_steps[0]["loss"]
    before = next(line for line in lines(tmp_path / "r") if "eval_logps/chosen" in line)
    assert before["eval_rewards/margins"] == pytest.approx(0, abs=1e-6)


def test_the_tokenizer_of_an_adapter_is_its_own_or_its_bases(sft_adapter, base, tmp_path):
    assert load_tokenizer(sft_adapter).get_vocab() == load_tokenizer(base).get_vocab()


def edited(folder, target, **config):
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    path = target / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return target


def test_adapters_that_do_not_fit_are_refused(sft_adapter, base, tmp_path):
    with pytest.raises(TrainError, match="base_model_name_or_path is missing"):
        policy.load(edited(sft_adapter, tmp_path / "a", base_model_name_or_path=None))
    with pytest.raises(TrainError, match="cannot be loaded: no such folder"):
        policy.load(edited(sft_adapter, tmp_path / "b", base_model_name_or_path="/no/such/place"))
    with pytest.raises(TrainError, match=r"c -> .* is a circle"):
        policy.load(edited(sft_adapter, tmp_path / "c", base_model_name_or_path="."))
    one = edited(sft_adapter, tmp_path / "one", base_model_name_or_path=str(tmp_path / "two"))
    two = edited(sft_adapter, tmp_path / "two", base_model_name_or_path=str(tmp_path / "three"))
    edited(sft_adapter, tmp_path / "three", base_model_name_or_path=str(two))  # a circle that `one` only leads to
    for load in (policy.load, load_tokenizer):
        with pytest.raises(TrainError, match=r"one -> .*two -> .*three -> .*two is a circle"):
            load(one)
    with pytest.raises(TrainError, match=r"cannot be merged into its base.*size mismatch"):
        policy.load(edited(sft_adapter, tmp_path / "d", r=5))
    with pytest.raises(TrainError, match=r"cannot be merged into its base: it does not fit: .*q_proj"):
        policy.load(edited(sft_adapter, tmp_path / "e", target_modules=["o_proj"]))
    lacking = edited(sft_adapter, tmp_path / "f")
    weights = load_file(lacking / adapters.WEIGHTS_FILE)
    last = max(weights)
    save_file({name: weights[name] for name in weights.keys() - {last}}, lacking / adapters.WEIGHTS_FILE)
    with pytest.raises(TrainError, match=f"it does not fit: {last}"):
        policy.load(lacking)
    torch.save(weights, lacking / "adapter_model.bin")
    (lacking / adapters.WEIGHTS_FILE).unlink()
    with pytest.raises(TrainError, match=r"cannot be merged into its base: .*adapter_model\.safetensors"):
        policy.load(lacking)


LORA = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (
            peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
            "PROMPT_TUNING has no sum with its base",
        ),
        (peft.LoraConfig(layer_replication=[(0, 1), (0, 1)], **LORA), "layer_replication gives one weight several"),
        (peft.LoraConfig(lora_bias=True, **LORA), "Impossible to merge LoRA with `lora_bias=True`"),
    ],
)
def test_what_has_no_sum_with_its_base_is_refused(base, tmp_path, config, why):
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "p")
    with pytest.raises(TrainError, match=f"cannot be merged into its base: .*{why}"):
        policy.load(tmp_path / "p")


@pytest.mark.parametrize("kind", [peft.VeraConfig, partial(peft.AdaLoraConfig, total_step=10)])
def test_adapters_whose_files_lack_what_peft_makes_anew(base, tmp_path, kind):
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), kind(r=2, **LORA))
    torch.manual_seed(3)
    for parameter in adapted.parameters():
        parameter.data += parameter.requires_grad * torch.randn_like(parameter) / 10
    adapted.save_pretrained(tmp_path / "a")
    torch.testing.assert_close(logits(policy.load(tmp_path / "a")), logits(adapted.eval()), rtol=1e-4, atol=1e-4)


def test_a_phase_can_leave_the_adapter_alone(data, base, tmp_path):
    phase = {**DPO, "lora": {"r": 4}, "learning_rate": 1e-2}
    merged = trained(data, tmp_path / "m", phase, model=str(base), max_steps=3)
    alone = {**phase, "lora": {"r": 4, "merge": False}}
    assert trained(data, tmp_path / "a", alone, model=str(base), max_steps=3) == merged
    files = {path.name for path in (tmp_path / "a" / "model").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"} <= files
    assert "model.safetensors" not in files
    card = (tmp_path / "a" / "model" / "README.md").read_text()
    assert ModelCard(card).data.base_model == base.name and ModelCard(card).data.library_name == "peft"
    assert "This is an adapter alone, of that model" in card
    other = (tmp_path / "m" / "model" / "README.md").read_text()
    assert ModelCard(other).data.base_model is None, "the Hub would take the name of a folder for one of its models"
    assert str(tmp_path) not in card + other and str(base.parent) not in card + other
    expected = logits(policy.load(tmp_path / "m" / "model"))
    torch.testing.assert_close(logits(policy.load(tmp_path / "a" / "model")), expected, rtol=1e-4, atol=1e-5)
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "a" / "model")
    torch.testing.assert_close(logits(theirs), expected, rtol=1e-4, atol=1e-5)


def test_an_adapter_of_what_a_phase_left_has_no_other_base(data, tmp_path):
    trained(data, tmp_path / "r", SFT, {**DPO, "lora": {"r": 4, "merge": False}}, max_steps=1)
    card = ModelCard.load(tmp_path / "r" / "model" / "README.md")
    assert card.data.base_model is None and "an adapter alone, of what phase sft left" in card.text
    assert ModelCard.load(tmp_path / "r" / "sft" / "model" / "README.md").data.library_name == "transformers"


def test_the_next_phase_starts_from_the_sum(data, base, tmp_path):
    alone = {**SFT, "lora": {"r": 4, "merge": False}}
    chained = trained(data, tmp_path / "a", alone, DPO, model=str(base), max_steps=3)
    assert chained[0] == pytest.approx(np.log(2), abs=1e-6)
    merged = {**SFT, "lora": {"r": 4}}
    np.testing.assert_allclose(
        chained, trained(data, tmp_path / "b", merged, DPO, model=str(base), max_steps=3), atol=1e-5
    )


def test_an_adapter_without_a_base_is_refused(data, sft_adapter, tmp_path):
    alone = {**DPO, "lora": {"merge": False}}
    with pytest.raises(UsageError, match="it starts from random weights, so it would have no base"):
        check(pipeline(data, alone))
    with pytest.raises(UsageError, match="it starts from one itself, so it would have no base"):
        check(pipeline(data, {**SFT, "lora": {"merge": False}}, alone, path="somewhere"))
    with pytest.raises(TrainError, match="which is a base with an adapter itself"):
        run.train(pipeline(data, alone, path=str(sft_adapter)), data=data, out=tmp_path / "r")


def example_bin():
    from tests.train.test_attention import example_bin

    return example_bin()


@pytest.mark.parametrize("exact", [True, False])
def test_frozen_weights_are_held_in_16_bits_where_that_loses_nothing(exact):
    model = make_model("Llama")
    if exact:
        model.to(torch.bfloat16).to(torch.float32)
    ready = policy.ready(model, dtype="bfloat16")
    with torch.no_grad():
        before = ready.sequence_logps(example_bin())
        learner = policy.add_lora(ready, Lora(r=2))
        dtypes = {name: p.dtype for name, p in learner.model.named_parameters() if not p.requires_grad}
        held = {name for name, dtype in dtypes.items() if dtype == torch.bfloat16}
        assert held == ({name for name in dtypes if "proj" in name or "lm_head" in name} if exact else set())
        assert torch.equal(learner.sequence_logps(example_bin()), before)
    assert {p.dtype for p in learner.trained().values()} == {torch.float32}


def test_the_sum_is_computed_in_float32(base, tmp_path):
    model = policy.load(base).to(torch.bfloat16).to(torch.float32)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    learner = policy.add_lora(policy.ready(model, dtype="bfloat16"), Lora(r=2, alpha=2))
    with torch.no_grad():
        for parameter in learner.trained().values():
            parameter.normal_(std=0.01)
    name = "model.layers.0.self_attn.q_proj"
    layer = learner.model.get_submodule(f"base_model.model.{name}")
    update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    export.export(learner, load_tokenizer(base), tmp_path / "m", "")
    found = load_file(tmp_path / "m" / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    torch.testing.assert_close(found[f"{name}.weight"], weights[f"{name}.weight"] + update, rtol=1e-6, atol=1e-7)


def test_tied_weights_are_not_held_apart():
    ready = policy.ready(make_model("Qwen3").to(torch.bfloat16).to(torch.float32), dtype="bfloat16")
    learner = policy.add_lora(ready, Lora(r=2))
    model = learner.model.get_base_model()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.dtype == torch.float32


def test_quantisation_is_refused_where_it_cannot_be(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainError, match='quantize = "nf4" needs a CUDA device, and this machine has none'):
        adapters.prepare(make_model("Llama"), Lora(quantize="nf4"), torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(adapters, "find_spec", lambda name: None if name == "bitsandbytes" else name)
    with pytest.raises(TrainError, match="pip install bitsandbytes"):
        adapters.prepare(make_model("Llama"), Lora(quantize="nf4"), torch.bfloat16)


@pytest.mark.skipif(not find_spec("bitsandbytes"), reason="needs bitsandbytes")
def test_qlora(tmp_path):
    """Through bitsandbytes' kernels, on the device that there is: the pipeline option wants CUDA for their speed."""
    model = make_model("Llama", hidden_size=64, intermediate_size=128)
    plain = logits(model).detach()
    before = policy.weights_hash(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    adapters.quantise(model, torch.float32, device)
    ready = policy.ready(model, dtype="float32")
    assert ready.padded_because is None
    linear = model.model.layers[0].mlp.up_proj
    assert linear.weight.dtype == torch.uint8
    assert type(model.lm_head) is torch.nn.Linear
    assert 1e-3 < (logits(model.cpu()) - plain).norm() / plain.norm() < 0.5
    quantised = policy.weights_hash(model)
    assert quantised != before
    linear.weight.quant_state.absmax += 1  # the codes are the same, the weights are not
    assert policy.weights_hash(model) != quantised
    linear.weight.quant_state.absmax -= 1
    learner = policy.add_lora(ready, Lora(r=2, target_modules=["q_proj", "up_proj"]))
    with torch.no_grad():
        start = ready.sequence_logps(example_bin())
        for name, parameter in learner.trained().items():
            assert "lora_" in name
            parameter.normal_(std=0.1)
        expected = learner.sequence_logps(example_bin())
        assert not torch.allclose(expected, start, rtol=1e-3)
        with policy.adapter_off(learner):
            assert torch.equal(learner.sequence_logps(example_bin()), start)
    learner.sequence_logps(example_bin()).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in learner.trained().values())
    merged = adapters.merged(learner.model)
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    merged.save_pretrained(tmp_path / "m")
    loaded = policy.ready(policy.load(tmp_path / "m"), dtype="float32")
    with torch.no_grad():
        torch.testing.assert_close(loaded.sequence_logps(example_bin()), expected, rtol=1e-3, atol=1e-3)
