"""The router loss of mixtures of experts against transformers' own on the same tokens, in value and gradient."""

import contextlib
import json

import pytest
import torch

from prefkit.errors import TrainError
from prefkit.train import attention, blocks, policy, router, run
from prefkit.train.logps import padded_token_logps, token_logps
from prefkit.train.pack import Sequence, collate
from tests.train.conftest import make_model, tree_of
from tests.train.datasets_for_tests import TINY, pipeline, toy_pairs, write_data_set
from tests.train.test_attention import example_bin, relative_error
from tests.train.test_run import DPO, lines

MIXTURES = ("Mixtral", "Qwen3Moe", "GptOss")


def mixture(name, coefficient=0.3):
    return make_model(name, output_router_logits=True, router_aux_loss_coef=coefficient)


def gradient(model, result):
    model.zero_grad()
    result.backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def one_sequence():
    """A tree of one sequence, which is a plain row of tokens."""
    tokens = torch.arange(20) * 7 % 61
    return collate([tree_of([Sequence(tokens.numpy().astype("int32"), 5)], pairs=[(0, 0)])])


@pytest.mark.parametrize("compute", [token_logps, padded_token_logps])
@pytest.mark.parametrize("name", MIXTURES)
def test_it_is_transformers_own(name, compute):
    model, bin, losses = mixture(name), one_sequence(), []
    tokens_1T = bin.input_ids_1T
    own = model(input_ids=tokens_1T, use_cache=False)
    logps = own.logits[0, 4:-1].log_softmax(-1).gather(1, tokens_1T[0, 5:, None]).sum()
    expected = gradient(model, 2 * logps + 0.3 * own.aux_loss)
    if compute is token_logps:
        attention.enable(model)
    result = compute(model, bin, router_losses=losses).sum()
    found = gradient(model, 2 * result)
    assert torch.stack(losses).sum().item() == pytest.approx(own.aux_loss.item(), rel=1e-6)
    assert relative_error(found, expected) < 1e-5
    without = gradient(model, 2 * compute(model, bin).sum())
    assert relative_error(without, expected) > 1e-3  # so the comparison sees the router loss


def test_padding_does_not_count():
    model, bin, losses = mixture("Mixtral"), example_bin(), []
    padded_token_logps(model, bin, router_losses=losses)
    rows = [torch.cat([path, path[:0]]) for path in paths(bin)]
    longest = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(bin.input_ids_1T[0, row], (0, longest - len(row))) for row in rows])
    mask = torch.stack([torch.arange(longest) < len(row) for row in rows]).long()
    own = model(input_ids=ids, attention_mask=mask, use_cache=False).aux_loss
    assert losses[0].item() == pytest.approx(own.item(), rel=1e-5)


def paths(bin):
    from prefkit.train.logps import _sequence_paths

    return _sequence_paths(bin)


def test_each_token_of_a_tree_counts_once():
    model, bin, losses = mixture("Mixtral"), example_bin(), []
    logits = []
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(lambda module, inputs, output: logits.append(output[0]))
    attention.enable(model)
    token_logps(model, bin, router_losses=losses)
    assert [len(of_layer) for of_layer in logits] == 2 * [bin.input_ids_1T.numel()]
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    assert losses[0].item() == pytest.approx(load_balancing_loss_func(tuple(logits), 4, 2).item(), rel=1e-6)


@pytest.mark.parametrize(("keeping", "compiled"), [("full", False), ("matmuls", False), ("none", True)])
def test_recomputed_and_compiled_layers_keep_it(keeping, compiled, monkeypatch):
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: real(function, backend="eager", **options))
    model, bin, losses = mixture("Mixtral").train(), example_bin(), []
    attention.enable(model)
    expected = gradient(model, token_logps(model, bin, router_losses=losses).sum())
    blocks.prepare(model, keeping, compiled=compiled, max_tokens=9, longest=9, autocast=contextlib.nullcontext)
    found = gradient(model, token_logps(model, bin, router_losses=losses).sum())
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-6)
    assert relative_error(found, expected) < 1e-5


def test_it_is_there_only_if_the_configuration_asks_for_it():
    assert router.weight(make_model("Mixtral")) == 0
    assert router.weight(mixture("Mixtral", 0.0)) == 0
    assert router.weight(mixture("Mixtral")) == 0.3
    assert router.weight(make_model("Llama")) == 0


def test_another_router_loss_is_refused(monkeypatch):
    router.check(mixture("Mixtral"))
    monkeypatch.setattr(
        "transformers.models.mixtral.modeling_mixtral.load_balancing_loss_func", lambda *_: torch.ones(1)
    )
    with pytest.raises(TrainError, match=r"MixtralForCausalLM has a router loss that prefkit does not know"):
        policy.ready(mixture("Mixtral"), dtype="float32")


def test_a_run_balances_and_logs_it(tmp_path):
    """With the router loss alone the experts become alike in use; every bin counts by its tokens."""
    write_data_set(tmp_path / "d", toy_pairs(24, answers=3))
    config = {
        **TINY,
        "model_type": "mixtral",
        "num_local_experts": 4,
        "output_router_logits": True,
        "initializer_range": 0.3,
    }
    model = {"config": {**config, "router_aux_loss_coef": 20.0}, "tokenizer": {"vocab_size": 400}}
    found = {}
    for size in (8192, 70):
        phase = {**DPO, "beta": 1e-6, "max_tokens": size, "learning_rate": 3e-3, "pairs_per_step": 18, "epochs": 4}
        run.train(pipeline(tmp_path, phase, **model), data=tmp_path / "d", out=tmp_path / str(size))
        found[size] = [line["router_loss"] for line in lines(tmp_path / str(size)) if "router_loss" in line]
    assert found[8192][-1] < found[8192][0]
    assert found[8192][-1] == pytest.approx(2, abs=0.05)  # top-2: 2 is balance
    assert found[70][0] == pytest.approx(found[8192][0], abs=0.05)
    assert found[70][0] != found[8192][0]
    card = json.loads((tmp_path / "8192" / "model" / "config.json").read_text())
    assert card["router_aux_loss_coef"] == 20.0
