"""Tree attention against attention under a dense mask, and whole models against separate forwards."""

import functools
import math

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.errors import TrainError
from prefkit.train import attention
from prefkit.train.attention import position_limit, supports, tree_attention
from prefkit.train.logps import _sequence_paths, padded_token_logps, sequence_sums, token_logps
from prefkit.train.pack import Bin, Segments, Sequence, collate
from tests.train.conftest import SHAPE, TREE_MODELS, make_model, sequence_lists, tree_of

HEADS, KV_HEADS, WIDTH = 4, 2, 8


cached_model = functools.cache(make_model)


def example_bin():
    """Completions inside one another, a branch in the middle of a completion, one token alone, and a second tree."""
    rng = np.random.default_rng(0)
    prompt, a, b = (rng.integers(3, 61, n) for n in (9, 11, 8))
    lists = [[a, b, a[:5], np.r_[a[:5], b], b[:1], np.r_[b, a]], [b, a]]
    sequences = [[Sequence(np.r_[prompt, tokens].astype(np.int32), 9) for tokens in group] for group in lists]
    sequences[0].append(Sequence(sequences[0][0].tokens, 4))
    return collate([tree_of(group) for group in sequences])


def results(compute, model, bin):
    """Token log-probabilities, their sums, and the gradient of a weighting of the sums that tells sequences apart."""
    model.zero_grad()
    logps_C = compute(model, bin)
    sums_Q = sequence_sums(logps_C, bin)
    (sums_Q * torch.linspace(-1, 2, len(sums_Q))).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return logps_C.detach(), sums_Q.detach(), gradient


def relative_errors(model, bin, compute=token_logps):
    """Of tree against padded rows under the model's own attention."""
    own = model.config._attn_implementation
    expected = results(padded_token_logps, model, bin)
    attention.enable(model)
    found = results(compute, model, bin)
    model.set_attn_implementation(own)
    return [((f - e).norm() / e.norm()).item() for f, e in zip(found, expected, strict=True)]


@pytest.mark.parametrize("name", TREE_MODELS)
def test_models_give_the_same_with_trees(name):
    model = make_model(name)
    assert supports(model) is None
    assert max(relative_errors(model, example_bin())) < 1e-5


@settings(max_examples=40, deadline=None)
@given(st.lists(sequence_lists(), min_size=1, max_size=3), st.sampled_from(["Llama", "Mistral", "Gemma2", "GptOss"]))
def test_random_trees_and_bins(lists, name):
    bin = collate([tree_of(sequences) for sequences in lists])
    assert max(relative_errors(cached_model(name), bin)) < 1e-5


@pytest.mark.parametrize(
    "leak",
    [
        lambda s: Segments([sum(s.lengths)], [0]),  # everything before is seen
        lambda s: Segments(s.lengths, [d + 1 if d else 0 for d in s.depths]),  # one token of a sibling is seen
        lambda s: Segments(s.lengths, [max(0, d - 1) for d in s.depths]),  # one token too few is seen
        lambda s: Segments(s.lengths, [0] * len(s.lengths)),  # no prompt is seen
    ],
)
def test_the_comparison_finds_a_wrong_mask(leak):
    def leaking(model, bin):
        return token_logps(model, Bin(**{**vars(bin), "segments": leak(bin.segments)}))

    assert min(relative_errors(make_model("Llama"), example_bin(), leaking)) > 1e-3


def dense_attention(query, key, value, visible, scale, softcap, sinks):
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    weights = torch.exp(scores) * visible
    total = weights.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + torch.exp(sinks)[:, None, None]
    return (weights / total @ value).transpose(1, 2)


def relative_error(found, expected):
    """Norm of the difference over the norm, of all tensors as one: elements that cancel to nothing say nothing."""
    found, expected = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (found, expected))
    return ((found - expected).norm() / expected.norm()).item()


def visible_tokens(segments, window):
    """[T, T] booleans from the paths themselves."""
    total, offset, paths = sum(segments.lengths), 0, []
    visible = torch.zeros(total, total, dtype=torch.bool)
    for length, depth in zip(segments.lengths, segments.depths, strict=True):
        paths.append((paths[-1][:depth] if depth else []) + list(range(offset, offset + length)))
        offset += length
        for i in range(depth, depth + length):
            first = 0 if window is None else max(0, i - window + 1)
            visible[paths[-1][i], paths[-1][first : i + 1]] = True
    return visible


@settings(max_examples=60, deadline=None)
@given(
    lists=st.lists(sequence_lists(), min_size=1, max_size=3),
    window=st.sampled_from([None, 1, 3, 8, 100]),
    softcap=st.sampled_from([None, 2.0]),
    sinks=st.booleans(),
    seed=st.integers(0, 9),
)
def test_equals_dense_attention(lists, window, softcap, sinks, seed):
    segments = collate([tree_of(sequences) for sequences in lists]).segments
    torch.manual_seed(seed)
    shapes = [(1, heads, sum(segments.lengths), WIDTH) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    sink_H = torch.randn(HEADS, dtype=torch.float64) if sinks else None
    extra = {"sliding_window": window, "softcap": softcap, "s_aux": sink_H}
    found, _ = tree_attention(torch.nn.Module(), *inputs, None, scaling=0.7, segments=segments, **extra)
    expected = dense_attention(*inputs, visible_tokens(segments, window), 0.7, softcap, sink_H)
    tolerance = 1e-6 if softcap or sinks else 1e-12  # these two take a softmax in float32
    assert relative_error([found], [expected]) <= tolerance
    weights = torch.randn_like(expected)
    found_grads, expected_grads = (torch.autograd.grad((out * weights).sum(), inputs) for out in (found, expected))
    assert relative_error(found_grads, expected_grads) <= tolerance


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "Mistral"])
def test_bfloat16(name):
    """Half precision rounds at 2^-8; a leak would be far larger, as the test of leaks shows."""
    errors = relative_errors(make_model(name).bfloat16(), example_bin())
    assert errors[1] < 2e-2
    assert errors[2] < 1e-1


def test_attention_dropout_is_applied_in_training_only():
    model, bin = make_model("Llama", attention_dropout=0.5), example_bin()
    attention.enable(model)
    calm = token_logps(model, bin)
    model.train()
    torch.manual_seed(0)
    first = token_logps(model, bin)
    torch.manual_seed(0)
    assert torch.equal(first, token_logps(model, bin))
    assert (first - calm).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("name", "overrides", "reason"),
    [
        ("Mamba", {"num_hidden_layers": 2}, "recurrent"),
        ("Rwkv", {"attention_hidden_size": 32}, "recurrent"),
        ("Jamba", {"num_experts": 2, "use_mamba_kernels": False}, "recurrent"),
        ("Qwen3Next", {"num_experts": 2}, "recurrent"),
        ("Bloom", {"n_head": 4}, "attention interface"),
        ("Phimoe", {"num_local_experts": 2, "sliding_window": 5}, "sliding window"),
        ("Llama4Text", {"num_local_experts": 2}, "chunked_attention"),
    ],
)
def test_what_trees_do_not_fit_is_refused_with_a_reason(name, overrides, reason):
    with torch.device("meta" if name in ("Qwen3Next", "Jamba", "Llama4Text") else "cpu"):
        config = getattr(transformers, f"{name}Config")(**{**SHAPE, **overrides})
        model = transformers.AutoModelForCausalLM.from_config(config)
    assert reason in supports(model)


@pytest.mark.parametrize(("name", "overrides"), [("Mamba", {"num_hidden_layers": 2}), ("Bloom", {"n_head": 4})])
def test_refused_models_take_padded_rows(name, overrides):
    model, bin = make_model(name, **overrides), example_bin()
    sums_Q = sequence_sums(padded_token_logps(model, bin), bin)
    for q, path in enumerate(_sequence_paths(bin)):
        tokens = bin.input_ids_1T[:, path]
        logps = model(input_ids=tokens).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
        assert logps[-int(bin.sequence_length_Q[q]) :].sum().item() == pytest.approx(sums_Q[q].item(), rel=1e-5)


def test_the_probe_finds_what_no_configuration_tells(monkeypatch):
    model = make_model("Llama")
    monkeypatch.setattr(attention, "_attend", lambda q, k, v, *_: [v[:, :, -q.shape[2] :].repeat(1, 2, 1, 1)])
    assert "change the hidden states" in supports(model)
    assert model.config._attn_implementation == "sdpa"


def test_the_probe_finds_nan(monkeypatch):
    monkeypatch.setattr(attention, "_attend", lambda q, *_: [q * math.nan])
    assert "by inf" in supports(make_model("Llama"))


@pytest.mark.parametrize(("cap", "sinks"), [(None, False), (3.0, False), (None, True)])
@pytest.mark.parametrize("window", [None, 50, 400])
@pytest.mark.parametrize("depth", [0, 5, 300])
@pytest.mark.parametrize("n", [1, 100, 192, 520])
def test_blocks_of_queries_see_what_the_definition_says(n, depth, window, cap, sinks):
    torch.manual_seed(0)
    query, keys, values = (torch.randn(1, heads, size, 8) for heads, size in ((4, n), (2, depth + n), (2, depth + n)))
    sinks_H = torch.randn(4) if sinks else None
    found = torch.cat(attention._attend(query, keys, values, 0.3, 0.0, window, cap, sinks_H, {}), 2)
    scores = 0.3 * query.double() @ keys.double().repeat_interleave(2, 1).transpose(2, 3)
    scores = scores if cap is None else cap * (scores / cap).tanh()
    back = torch.arange(depth, depth + n)[:, None] - torch.arange(depth + n)
    scores[..., (back < 0) | (back >= (window or math.inf))] = -math.inf
    total = scores.exp().sum(-1, keepdim=True) + (0 if sinks_H is None else sinks_H.double().exp()[:, None, None])
    expected = scores.exp() / total @ values.double().repeat_interleave(2, 1)
    assert torch.allclose(found.double(), expected, atol=1e-5)


def test_masks_of_a_bin_that_was_seen_without_gradients_serve_one_with_them():
    states, segments = torch.randn(1, 2, 210, 8, requires_grad=True), Segments([200, 10], [0, 150])
    with torch.inference_mode():
        tree_attention(torch.nn.Module(), states, states, states, None, segments=segments)
    assert segments.layouts
    tree_attention(torch.nn.Module(), states, states, states, None, segments=segments)[0].sum().backward()


def call(module=None, **arguments):
    states = torch.zeros(1, 2, 3, 4)
    tree_attention(module or torch.nn.Module(), states, states, states, **{"attention_mask": None, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention_mask": torch.zeros(1, 1, 3, 3)}, "mask of its own"),
        ({"position_bias": torch.zeros(1)}, "passes position_bias"),
        ({"is_causal": False}, "not causal"),
    ],
)
def test_what_attention_does_not_know_is_refused(arguments, message):
    with pytest.raises(TrainError, match=message):
        call(**arguments)


def test_generation_with_a_cache_is_refused():
    model = make_model("Llama")
    attention.enable(model)
    with pytest.raises(TrainError, match="no key-value cache"):
        model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, do_sample=False)


@pytest.mark.parametrize(("kind", "limit"), [("dynamic", 256), ("linear", None)])
def test_rotary_scaling_that_depends_on_the_batch_has_a_limit(kind, limit):
    model = make_model("Llama", rope_parameters={"rope_type": kind, "factor": 2.0, "rope_theta": 1e4})
    assert position_limit(model) == limit


def test_the_limit_is_that_of_any_kind_of_layers():
    """Gemma 3 has a table for each kind; of its full attention alone the frequencies depend on the batch."""
    plain = {"rope_type": "default", "rope_theta": 1e4}
    for dynamic, limit in ((True, 256), (False, None)):
        full = {**plain, "rope_type": "dynamic", "factor": 2.0} if dynamic else plain
        rope = {"full_attention": full, "sliding_attention": plain}
        assert position_limit(make_model("Gemma3Text", rope_parameters=rope)) == limit


def test_sequences_beyond_that_limit_are_refused():
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16, **factors}
    model = make_model("Phi3", rope_parameters=rope, original_max_position_embeddings=16)
    attention.enable(model)
    for compute in (token_logps, padded_token_logps):
        with pytest.raises(TrainError, match="a sequence of 28 tokens exceeds the 16"):
            compute(model, example_bin())
