"""Loading, creating and preparing models: what is refused, and what stays as it was."""

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from prefkit.errors import TrainError, UsageError
from prefkit.train import export, policy, tokenizer
from prefkit.train.adapters import Lora
from prefkit.train.pack import Sequence, build_tree, collate
from tests.train.conftest import make_model
from tests.train.datasets_for_tests import TINY, toy_pairs, write_data_set


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words") / "d"
    manifest = write_data_set(folder, toy_pairs(10))
    return tokenizer.train_bpe(folder, manifest, vocab_size=400)


def tiny_bin():
    sequences = [Sequence(np.array([3, 4, 5, 6, end], dtype=np.int32), 3) for end in (7, 8)]
    return collate([build_tree(sequences, [(0, 1)], pair_rows=[0], sequence_rows=[0, 1])])


def test_create_is_a_function_of_the_seed(words):
    first, again, other = (policy.weights_hash(policy.create(TINY, words, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_create_fits_the_tokenizer(words):
    model = policy.create(TINY, words, seed=0)
    assert model.config.vocab_size == len(words)
    assert model.config.eos_token_id == words.eos_token_id
    assert policy.create({**TINY, "vocab_size": 512}, words, seed=0).config.vocab_size == 512
    policy.check_fits(model, words, 512)
    with pytest.raises(TrainError, match="longest sequence has 513 tokens, the model 512"):
        policy.check_fits(model, words, 513)
    small = policy.create({**TINY, "vocab_size": 100}, words, seed=0)
    with pytest.raises(TrainError, match="do not belong together"):
        policy.check_fits(small, words, 10)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": 8}, "model_type is missing"),
        ({"model_type": "lama"}, 'no model_type "lama"'),
        ({"model_type": "llama", "hiden_size": 8}, 'llama has no "hiden_size".*Did you mean "hidden_size"'),
    ],
)
def test_wrong_configurations_are_refused(words, config, message):
    with pytest.raises(UsageError, match=message):
        policy.create(config, words, seed=0)


def test_missing_models_are_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(TrainError, match=r'model "/no/such/place" cannot be loaded: no such folder\.'):
        policy.load("/no/such/place")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TrainError, match="not in the local cache, and the Hub cannot be reached") as caught:
        policy.load("nobody/nothing")
    assert "\n" not in str(caught.value)

    def says_nothing(*_args: object, **_options: object) -> None:
        raise TimeoutError

    monkeypatch.setattr("prefkit.train.hub.HfApi.model_info", says_nothing)
    with pytest.raises(TrainError, match=r"the Hub cannot be reached \(TimeoutError\)"):
        policy.load("nobody/nothing")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(TrainError, match="safetensors"):
        policy.load(tmp_path)


def test_pickled_weights_are_never_opened(tmp_path):
    model = make_model("Llama")
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(TrainError):
        policy.load(tmp_path)


def test_dropout_is_off_and_the_configuration_keeps_it():
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=30, n_positions=32)
    model = transformers.AutoModelForCausalLM.from_config(config)
    ready = policy.ready(model, dtype="float32")
    ready.model.train()
    with torch.no_grad():
        assert torch.equal(ready.sequence_logps(tiny_bin()), ready.sequence_logps(tiny_bin()))
    with policy.own_config(model):
        assert model.config.attn_pdrop == 0.1
    llama = make_model("Llama", attention_dropout=0.5)
    ready = policy.ready(llama, dtype="float32")
    ready.model.train()
    with torch.no_grad():
        assert torch.equal(ready.sequence_logps(tiny_bin()), ready.sequence_logps(tiny_bin()))


def test_adapter_off_is_the_model_before(words):
    ready = policy.ready(make_model("Llama"), dtype="float32")
    with torch.no_grad():
        before = ready.sequence_logps(tiny_bin())
        learner = policy.add_lora(ready, Lora(r=2, dropout=0.5))
        for name, parameter in learner.trained().items():
            assert "lora_" in name
            parameter.normal_()
        learner.model.train()
        assert not torch.allclose(learner.sequence_logps(tiny_bin()), before, atol=1e-3)
        with policy.adapter_off(learner) as reference:
            assert torch.equal(reference.sequence_logps(tiny_bin()), before)
        assert learner.model.training


def test_frozen_copy_does_not_follow():
    ready = policy.ready(make_model("Llama"), dtype="float32")
    frozen = policy.frozen_copy(ready)
    with torch.no_grad():
        before = frozen.sequence_logps(tiny_bin())
        next(iter(ready.trained().values())).add_(0.5)
        assert torch.equal(frozen.sequence_logps(tiny_bin()), before)
    assert not frozen.trained()


def test_lora_of_unknown_modules_is_refused():
    with pytest.raises(TrainError, match="lora"):
        policy.add_lora(policy.ready(make_model("Llama"), dtype="float32"), Lora(target_modules=["nonexistent"]))


def test_weights_hash_sees_every_weight_and_the_configuration():
    model = make_model("Qwen3")
    before = policy.weights_hash(model)
    with torch.no_grad():
        list(model.parameters())[-1].view(-1)[-1] += 1e-3
    assert policy.weights_hash(model) != before
    assert policy.weights_hash(make_model("Mistral")) != policy.weights_hash(make_model("Mistral", sliding_window=7))


def test_weights_hash_sees_buffers_that_are_saved_and_no_others():
    """As the bias by which DeepSeek-V3 chooses experts."""
    model = make_model("Llama")
    model.register_buffer("bias_of_choice", torch.zeros(3))
    model.register_buffer("made_anew", torch.zeros(3), persistent=False)
    before = policy.weights_hash(model)
    model.made_anew += 1
    assert policy.weights_hash(model) == before
    model.bias_of_choice += 1
    assert policy.weights_hash(model) != before


NOISY = {"Falcon": {"hidden_dropout": 0.3, "attention_dropout": 0.2}, "Mixtral": {"router_jitter_noise": 0.3}}


@pytest.mark.parametrize("name", NOISY)
def test_noise_that_is_read_from_the_configuration_is_off(tmp_path, words, name):
    model = make_model(name, **NOISY[name])
    before = policy.weights_hash(model)
    ready = policy.ready(model, dtype="float32")
    ready.model.train()
    with torch.no_grad():
        assert torch.equal(ready.sequence_logps(tiny_bin()), ready.sequence_logps(tiny_bin()))
    assert policy.weights_hash(model) == before
    export.export(ready, words, tmp_path / "model", "")
    saved = transformers.AutoConfig.from_pretrained(tmp_path / "model").to_dict()
    assert {key: saved[key] for key in NOISY[name]} == NOISY[name]


def test_noise_that_cannot_be_switched_off_is_refused():
    model = make_model("Llama")
    model.model.norm.register_forward_hook(lambda module, _, out: out + module.training * torch.randn_like(out))
    with pytest.raises(TrainError, match="LlamaForCausalLM computes something else in training"):
        policy.ready(model, dtype="float32")


def test_missing_and_misshapen_weights_are_refused(tmp_path):
    make_model("Qwen3").save_pretrained(tmp_path)  # its head is tied, and so not in the file
    policy.load(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    name = "model.layers.0.self_attn.q_proj.weight"
    taken = weights.pop(name)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(TrainError, match=rf"1 of its weights are missing: {name}"):
        policy.load(tmp_path)
    save_file({**weights, name: taken[:8].clone()}, file, metadata={"format": "pt"})
    with pytest.raises(TrainError, match=rf"1 of its weights have another shape: {name}"):
        policy.load(tmp_path)


@pytest.mark.parametrize("size", [0, 5, 2000])
def test_truncated_weights_are_one_sentence(tmp_path, size):
    make_model("Llama").save_pretrained(tmp_path)
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.truncate(size)
    with pytest.raises(TrainError, match=r"cannot be loaded: .+") as caught:
        policy.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_size", "x", "hidden_size"),
        ("num_attention_heads", 3, r"\(32\) is not a multiple"),
        ("hidden_act", "foo", 'hidden_act: it knows no "foo"'),
        ("rope_parameters", {"rope_type": "foo"}, 'rope_parameters: it knows no "foo"'),
    ],
)
def test_impossible_configurations_are_one_sentence(words, key, value, message):
    with pytest.raises(UsageError, match=message) as caught:
        policy.create({**TINY, key: value}, words, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_lora_of_tied_weights_is_refused(target):
    modules = [target, "q_proj"]
    with pytest.raises(TrainError, match="share one weight"):
        policy.add_lora(policy.ready(make_model("Qwen3"), dtype="float32"), Lora(target_modules=modules))
    policy.add_lora(policy.ready(make_model("Llama"), dtype="float32"), Lora(target_modules=modules))


def test_lora_of_a_broken_pattern_is_refused():
    with pytest.raises(TrainError, match=r"lora: target_modules = '\('"):
        policy.add_lora(policy.ready(make_model("Llama"), dtype="float32"), Lora(target_modules="("))
