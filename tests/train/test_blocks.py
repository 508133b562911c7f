"""What layers keep for the backward pass, and that compiling or recomputing them changes no result."""

import contextlib
import copy

import numpy as np
import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.utils import counters

from prefkit.errors import TrainError, UsageError
from prefkit.train import attention, blocks, policy
from prefkit.train.logps import token_logps
from prefkit.train.options import check_phase
from prefkit.train.pack import Sequence, collate
from tests.train.conftest import TREE_MODELS, make_model, tree_of
from tests.train.test_attention import example_bin, results

LEVELS = ("none", "matmuls", "full")


def tree_model(name, **overrides):
    model = make_model(name, **overrides).train()
    attention.enable(model)
    return model


def prepare(model, keeping, *, compiled=False, max_tokens=1000, longest=1):
    how = {"compiled": compiled, "max_tokens": max_tokens, "longest": longest, "autocast": contextlib.nullcontext}
    return blocks.prepare(model, keeping, **how)


def bytes_a_token(model):
    return blocks.bytes_a_token(model, contextlib.nullcontext)


@pytest.mark.parametrize("name", TREE_MODELS)
def test_recomputation_changes_nothing_and_keeps_less(name):
    model, bin = tree_model(name), example_bin()
    expected, held = results(token_logps, model, bin), [bytes_a_token(model)]
    for level in ("matmuls", "full"):
        prepare(model, level)
        for found, wanted in zip(results(token_logps, model, bin), expected, strict=True):
            assert torch.equal(found, wanted)
        held.append(bytes_a_token(model))
        blocks.plain(model)
    assert held[0] > held[1] > held[2] > 0
    assert bytes_a_token(model) == held[0]


def saved_bytes(model, forward):
    """Bytes of the storages that autograd saves, parameters apart: another way to see what is held."""
    saved, weights = {}, {parameter.data_ptr() for parameter in model.parameters()}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(saved.values())


def test_the_measure_agrees_with_what_autograd_saves():
    model = tree_model("Llama", num_hidden_layers=6, hidden_size=64, intermediate_size=256)
    tokens = torch.arange(40)[None]

    def forward():
        return model.model(input_ids=tokens, use_cache=False)[0]

    saved = saved_bytes(model, forward)
    states = 40 * 64 * 4
    assert saved <= blocks.held_bytes(forward) <= saved + 2 * states  # the result and its norm are not saved
    prepare(model, "full")
    # The input of each layer; embeddings of tokens and positions, mask, norm and result beside them.
    assert 6 * states <= blocks.held_bytes(forward) <= 12 * states


@given(
    layers=st.integers(1, 50),
    room=st.floats(0, 1e4),
    middle=st.floats(0, 100),
    everything=st.floats(0.1, 200),
    matmuls=st.booleans(),
)
def test_a_budget_is_kept_and_used(layers, room, middle, everything, matmuls):
    cost = {"full": 0.0, "none": everything, **({"matmuls": middle} if matmuls else {})}
    levels = blocks.distribute(layers, room, cost)
    assert len(levels) == layers
    held = sum(cost[level] for level in levels)
    assert held <= room * (1 + 1e-9)
    if set(levels) != {"none"}:
        # No layer could keep more than it does: the next way up would not fit.
        worst = max(set(levels), key=LEVELS.index)
        better = "matmuls" if worst == "full" and 0 < cost.get("matmuls", 0) < everything else "none"
        assert held + cost[better] - cost[worst] > room * (1 - 1e-9)


def test_the_budget_decides_what_each_layer_keeps():
    model, bin = tree_model("Llama", num_hidden_layers=8), example_bin()
    expected = results(token_logps, model, bin)
    held = {}
    for level in LEVELS:
        prepare(model, level)
        held[level] = bytes_a_token(model) * 1000
        blocks.plain(model)
    for share in (0.0, 0.4, 1.0):
        budget = held["full"] * 1.01 + share * (held["none"] - held["full"])
        note = prepare(model, budget / blocks.GIB)
        assert bytes_a_token(model) * 1000 <= budget * 1.001
        for found, wanted in zip(results(token_logps, model, bin), expected, strict=True):
            assert torch.equal(found, wanted)
        blocks.plain(model)
        assert {0.0: "8 full", 0.4: "matmuls", 1.0: "8 none"}[share] in note
    with pytest.raises(TrainError, match=r"a bin of max_tokens = 1000 needs .* even if every layer is recomputed"):
        prepare(model, held["full"] * 0.9 / blocks.GIB)


@pytest.mark.parametrize(("name", "share"), [("Llama", 1.0), ("Gemma2", 0.3), ("Gemma2", 1.0)])
def test_what_a_bin_of_long_sequences_holds_is_what_was_measured(name, share):
    """Gemma 2 caps its scores, so that what a token holds grows with the tokens that it sees."""
    model = tree_model(name, num_hidden_layers=4, hidden_size=256, max_position_embeddings=2048)
    rows = [np.random.default_rng(n).integers(3, 61, 1024).astype(np.int32) for n in range(3)]
    bin = collate([tree_of([Sequence(row, 1)]) for row in rows])
    tokens = bin.input_ids_1T.shape[1]

    def forward():
        layers = model.model(
            input_ids=bin.input_ids_1T, position_ids=bin.position_ids_1T, segments=bin.segments, use_cache=False
        )
        bin.segments.layouts.clear()  # so that each call makes its masks
        return layers[0]

    held = {}
    for level in ("full", "none"):
        prepare(model, level)
        held[level] = blocks.held_bytes(forward)
        blocks.plain(model)
    budget = 1.05 * held["full"] + share * 1.05 * (held["none"] - held["full"])
    note = prepare(model, budget / blocks.GIB, max_tokens=tokens, longest=1024)
    found = blocks.held_bytes(forward)
    said = float(note.partition(": ")[2].partition(" GiB")[0]) * blocks.GIB
    assert said == pytest.approx(found, rel=0.2)
    assert 0.5 * budget < found <= budget


def test_with_an_adapter_less_is_held():
    model = tree_model("Llama")
    full = bytes_a_token(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"])).train()
    assert 0 < bytes_a_token(adapted) < full


def some_bins():
    """Bins of different size, each of trees with different segments."""
    rng = np.random.default_rng(0)
    for n in range(6):
        groups = []
        for _ in range(1 + n % 3):
            prompt = rng.integers(3, 61, rng.integers(3, 30))
            answers = [rng.integers(3, 61, rng.integers(2, 20)) for _ in range(2 + n % 3)]
            groups.append([Sequence(np.r_[prompt, a].astype(np.int32), len(prompt)) for a in answers])
        yield collate([tree_of(group) for group in groups])


@pytest.fixture
def traced(monkeypatch):
    """Trace graphs and run them as they are, without generating code; count them from zero."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: real(function, backend="eager", **options))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("name", "keeping"), [("Llama", "none"), ("Gemma3Text", "full"), ("Mixtral", "full")])
def test_layers_are_compiled_once_for_all_bins(traced, name, keeping):
    model = tree_model(name, num_hidden_layers=4, **({"layer_types": None} if name == "Gemma3Text" else {}))
    expected = [results(token_logps, model, bin) for bin in some_bins()]
    prepare(model, keeping, compiled=True)
    graphs = []
    for bin, wanted in zip(some_bins(), expected, strict=True):
        for f, w in zip(results(token_logps, model, bin), wanted, strict=True):
            assert ((f - w).norm() / w.norm()).item() < 1e-5
        graphs.append(counters["stats"]["unique_graphs"])
    assert 0 < graphs[0] <= 8  # shared by the four layers
    assert set(graphs) == {graphs[0]}


@pytest.mark.slow
def test_compiled_code_gives_the_same():
    model = tree_model("Llama", num_hidden_layers=1)
    expected = [results(token_logps, model, bin) for bin in some_bins()]
    torch._dynamo.reset()
    prepare(model, "none", compiled=True)
    for bin, wanted in zip(some_bins(), expected, strict=True):
        for f, w in zip(results(token_logps, model, bin), wanted, strict=True):
            assert ((f - w).norm() / w.norm()).item() < 1e-5


def test_a_frozen_copy_of_a_prepared_model_is_on_its_own(traced):
    ready = policy.ready(make_model("Llama"), dtype="float32")
    prepare(ready.model, "full", compiled=True)
    frozen = policy.frozen_copy(ready)
    with torch.no_grad():
        before = ready.sequence_logps(example_bin())
        next(iter(ready.trained().values())).add_(0.5)
        torch.testing.assert_close(frozen.sequence_logps(example_bin()), before)
        assert not torch.allclose(ready.sequence_logps(example_bin()), before, atol=1e-2)


def test_models_without_known_layers_are_refused():
    model = make_model("Llama")
    model.model.layers = torch.nn.ModuleList([torch.nn.Identity()])
    with pytest.raises(TrainError, match="LlamaForCausalLM does not tell its layers"):
        blocks.prepare(
            copy.copy(model), "full", compiled=False, max_tokens=8, longest=8, autocast=contextlib.nullcontext
        )


def test_options_that_exclude_each_other_are_refused():
    table = {"objective": "sigmoid", "compile": True, "activation_checkpointing": "matmuls"}
    with pytest.raises(UsageError, match="no effect on compiled layers"):
        check_phase(table, "here")
    for value in (0, -1, "some"):
        with pytest.raises(UsageError, match="activation_checkpointing"):
            check_phase({"objective": "sigmoid", "activation_checkpointing": value}, "here")
