"""Mixtures of experts without values: counts and measurements against real models and published figures."""

from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from prefkit.train import attention, blocks, estimate, experts
from prefkit.train.attention import backbone
from tests.train.conftest import make_model

MIXTURES = ("Mixtral", "Qwen3Moe", "GptOss")
PUBLISHED = {  # configuration, parameters, and how many of them are active, in billions, as their authors say
    "mixtral": (  # Mixtral 8x7B: 46.7 and 12.9
        {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
        {"num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2},
        46_702_792_704,
        12.9,
    ),
    "qwen3_moe": (  # Qwen3-30B-A3B: 30.5 and 3.3
        {"vocab_size": 151936, "hidden_size": 2048, "moe_intermediate_size": 768, "num_hidden_layers": 48},
        {"num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128}
        | {"num_experts_per_tok": 8, "intermediate_size": 6144, "tie_word_embeddings": False},
        30_532_122_624,
        3.3,
    ),
    "gpt_oss": (  # gpt-oss-20b: 20.91, and 3.61 without the input embedding of 0.58
        {"vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24},
        {"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "num_local_experts": 32}
        | {"num_experts_per_tok": 4},
        20_914_757_184,
        3.61 + 0.58,
    ),
}


def without_values(name):
    model = make_model(name)
    attention.enable(model)
    experts.let_measure(model)
    return model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [*MIXTURES, "Llama"])
def test_bytes_held_are_those_of_the_real_model(name, dtype):
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=dtype == "bfloat16")
    with FakeTensorMode():
        found = blocks.bytes_a_token(without_values(name), autocast)
    real = make_model(name)
    attention.enable(real)
    assert found == blocks.bytes_a_token(real, autocast)


@pytest.mark.parametrize("name", MIXTURES)
def test_flops_and_parameters_are_those_of_two_experts_of_four(name):
    """transformers' other implementation gathers each token's experts, so that its products can be counted."""
    with FakeTensorMode():
        model = without_values(name)
        found, more = estimate.forward_flops(model)
        active = experts.parameters_active(model)
    real = make_model(name, experts_implementation="batched_mm")
    real.set_attn_implementation("eager")
    real.set_experts_implementation("batched_mm")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(real)(input_ids=torch.zeros(1, 50, dtype=torch.long), use_cache=False)
    assert counter.get_total_flops() == pytest.approx(50 * (found + 50 * more), rel=1e-9)
    held = sum(p.numel() for name, p in real.named_parameters() if ".experts." in name)
    assert active == real.num_parameters() - held // 2


@pytest.mark.parametrize("name", MIXTURES)
def test_where_all_experts_are_alike_the_result_is_the_real_one(name):
    model, tokens = make_model(name), torch.arange(3, 23)[None]
    with torch.no_grad():
        for module in experts.of(model):
            for parameter in module.parameters():
                parameter[1:] = parameter[0]
        expected = model(tokens).logits
        experts.let_measure(model)
        torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-5, atol=1e-5)


def test_dense_models_have_no_experts():
    model = make_model("Llama")
    assert not experts.of(model)
    assert experts.parameters_active(model) == model.num_parameters()


@pytest.mark.parametrize("kind", PUBLISHED)
def test_counts_are_those_that_the_authors_give(kind):
    *shape, parameters, active = PUBLISHED[kind]
    config = AutoConfig.for_model(kind, **shape[0], **shape[1])
    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        experts.let_measure(model)
        flops, _ = estimate.forward_flops(model)
        found = experts.parameters_active(model)
    assert model.num_parameters() == parameters
    assert found / 1e9 == pytest.approx(active, abs=0.06)
    ends = 2 * config.vocab_size * config.hidden_size  # embedding and head are no part of the layers
    assert flops == pytest.approx(2 * (found - ends), rel=1e-3)  # norms and biases are no products
