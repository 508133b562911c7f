"""The CUDA path of tree attention, with a plain kernel in the place of flash attention where there is no GPU.

The stand-in has the signature and the semantics of the real kernels (causal aligned bottom-right, windows that do not
count the query itself, grouped heads), so that layout, gathering and gradients are proven here; the real kernels are
held to SDPA on a GPU.
"""

import math
import sys
import types

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefkit.errors import TrainError
from prefkit.train import attention, attention_varlen, policy
from prefkit.train.attention import VARLEN_NAME, kernel_error, tree_attention
from prefkit.train.logps import token_logps
from prefkit.train.pack import Segments, collate
from tests.train.conftest import TREE_MODELS, make_model, sequence_lists, tree_of
from tests.train.test_attention import (
    HEADS,
    KV_HEADS,
    WIDTH,
    dense_attention,
    example_bin,
    padded_token_logps,
    relative_error,
    results,
    visible_tokens,
)

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def plain_kernel(query, key, value, query_offsets, key_offsets, most_queries, most_keys, scale, window):
    """Flash attention by its definition, a segment at a time."""
    assert query_offsets.dtype == key_offsets.dtype == torch.int32
    assert (query.shape[0], key.shape[0]) == (query_offsets[-1], key_offsets[-1]) == (len(query), len(value))
    assert most_queries == query_offsets.diff().max()
    assert most_keys == key_offsets.diff().max()
    left, right = window
    outputs = []
    for s in range(len(query_offsets) - 1):
        q = query[query_offsets[s] : query_offsets[s + 1]]
        k, v = (x[key_offsets[s] : key_offsets[s + 1]] for x in (key, value))
        at = torch.arange(len(q))[:, None] + len(k) - len(q)
        keys = torch.arange(len(k))
        visible = (keys <= at + right) & ((keys >= at - left) | (left < 0))
        states = (x.transpose(0, 1)[None] for x in (q, k, v))
        outputs.append(dense_attention(*states, visible, scale, None, None)[0])
    return torch.cat(outputs)


def as_torch(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa):
    assert enable_gqa
    return plain_kernel(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size)


def as_flash_attn(query, key, value, cu_q, cu_k, max_q, max_k, *, softmax_scale, causal, window_size):
    assert causal
    return plain_kernel(query, key, value, cu_q, cu_k, max_q, max_k, softmax_scale, window_size)


@pytest.fixture(params=["torch", "flash_attn"])
def stand_in(request, monkeypatch):
    """The plain kernel under the name of one of the real ones, for any dtype, and how often it was called."""
    calls = []

    def counted(kernel):
        return lambda *args, **kwargs: calls.append(1) or kernel(*args, **kwargs)

    monkeypatch.setattr(attention_varlen, "DTYPES", (torch.float64, torch.float32, torch.bfloat16))
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", counted(as_torch))
    fake = types.SimpleNamespace(flash_attn_varlen_func=counted(as_flash_attn))
    monkeypatch.setitem(sys.modules, "flash_attn", fake)
    monkeypatch.setattr(attention_varlen, "find_kernel", lambda: getattr(attention_varlen, f"by_{request.param}"))
    return calls


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lists=st.lists(sequence_lists(), min_size=1, max_size=3),
    window=st.sampled_from([None, 1, 3, 8, 100]),
    seed=st.integers(0, 9),
)
def test_equals_dense_attention(stand_in, lists, window, seed):
    segments = collate([tree_of(sequences) for sequences in lists]).segments
    torch.manual_seed(seed)
    shapes = [(1, heads, sum(segments.lengths), WIDTH) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    options = {"scaling": 0.7, "segments": segments, "sliding_window": window, "varlen": True}
    stand_in.clear()
    found, _ = tree_attention(torch.nn.Module(), *inputs, None, **options)
    assert len(stand_in) == 1
    expected = dense_attention(*inputs, visible_tokens(segments, window), 0.7, None, None)
    assert relative_error([found], [expected]) <= 1e-12
    weights = torch.randn_like(expected)
    gradients = (torch.autograd.grad((out * weights).sum(), inputs) for out in (found, expected))
    assert relative_error(*gradients) <= 1e-12


@pytest.mark.parametrize("name", TREE_MODELS)
def test_models_give_the_same_as_padded_rows(stand_in, name):
    model, bin = make_model(name), example_bin()
    expected = results(padded_token_logps, model, bin)
    attention.enable(model, VARLEN_NAME)
    for found, wanted in zip(results(token_logps, model, bin), expected, strict=True):
        assert relative_error([found], [wanted]) < 1e-5
    # Soft caps and sinks are outside the kernel's vocabulary: those layers take the plain softmax.
    assert len(stand_in) == (0 if name in ("Gemma2", "GptOss") else 2)


def test_one_layout_serves_all_layers(stand_in, monkeypatch):
    made = []
    make = attention_varlen._make_layout
    monkeypatch.setattr(attention_varlen, "_make_layout", lambda *args: made.append(1) or make(*args))
    model, bin = make_model("Llama"), example_bin()
    attention.enable(model, VARLEN_NAME)
    token_logps(model, bin).sum().backward()
    token_logps(model, bin)
    assert len(made) == 1
    assert len(stand_in) == 4


@pytest.mark.parametrize(
    ("leak", "error"),
    [
        (lambda s: Segments(s.lengths, s.depths), 0.0),
        (lambda s: Segments(s.lengths, [max(0, d - 1) for d in s.depths]), 1e-3),
        (lambda s: Segments(s.lengths, [0] * len(s.lengths)), 1e-3),
    ],
)
def test_the_comparison_finds_a_wrong_layout(stand_in, leak, error):
    model, bin = make_model("Llama"), example_bin()
    expected = padded_token_logps(model, bin)
    attention.enable(model, VARLEN_NAME)
    found = token_logps(model, type(bin)(**{**vars(bin), "segments": leak(bin.segments)}))
    assert (relative_error([found], [expected]) > 1e-3) == bool(error)


def test_the_check_of_the_kernel_finds_a_mask_aligned_at_the_top(stand_in, monkeypatch):
    assert kernel_error(torch.device("cpu"), torch.float64) < 1e-12
    monkeypatch.setattr(attention_varlen, "missing", lambda device, dtype: None)
    assert attention.choose("auto", torch.device("cpu"), torch.float32) == VARLEN_NAME
    right = globals()["dense_attention"]

    def top_left(query, key, value, visible, *rest):
        queries, keys = visible.shape
        return right(query, key, value, visible.roll(queries - keys, 1), *rest)

    monkeypatch.setitem(globals(), "dense_attention", top_left)
    with pytest.raises(TrainError, match="differs from scaled dot products by"):
        attention.choose("auto", torch.device("cpu"), torch.float32)


def test_without_a_gpu_auto_is_sdpa_and_varlen_is_refused():
    cpu = torch.device("cpu")
    assert attention.choose("auto", cpu, torch.bfloat16) == attention.NAME
    assert attention.choose("sdpa", cpu, torch.bfloat16) == attention.NAME
    with pytest.raises(
        TrainError, match=r'attention = "varlen" cannot be had: it needs a CUDA device, and this is cpu'
    ):
        policy.ready(make_model("Llama"), dtype="bfloat16", kernel="varlen")
    with pytest.raises(TrainError, match="no effect on padded batches"):
        policy.ready(make_model("Bloom", n_head=4), dtype="bfloat16", kernel="varlen")


def test_an_older_torch_leaves_it_to_flash_attn(monkeypatch):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", lambda query, key, value, is_causal: None)
    monkeypatch.setattr(attention_varlen, "find_spec", lambda name: name != "flash_attn")
    attention_varlen.find_kernel.cache_clear()
    assert attention_varlen.find_kernel() is None
    monkeypatch.setattr(attention_varlen, "find_spec", lambda name: True)
    attention_varlen.find_kernel.cache_clear()
    assert attention_varlen.find_kernel() is attention_varlen.by_flash_attn
    attention_varlen.find_kernel.cache_clear()


def test_the_check_of_the_kernel_finds_nan(stand_in, monkeypatch):
    monkeypatch.setattr(attention_varlen, "missing", lambda device, dtype: None)
    right = attention_varlen.attend
    monkeypatch.setattr(attention_varlen, "attend", lambda *given: right(*given) * math.nan)
    with pytest.raises(TrainError, match="differs from scaled dot products by inf"):
        attention.choose("auto", torch.device("cpu"), torch.float32)


@pytest.mark.gpu
@gpu
def test_the_real_kernel_equals_sdpa():
    assert kernel_error(torch.device("cuda"), torch.bfloat16) < attention.KERNEL_TOLERANCE


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen3", "Gemma2", "GptOss"])
def test_models_on_a_gpu(name):
    model, bin = make_model(name).cuda(), example_bin().to("cuda")
    expected = padded_token_logps(model, bin)
    attention.enable(model, VARLEN_NAME)
    with torch.autocast("cuda", torch.bfloat16):
        found = token_logps(model, bin)
    assert relative_error([found], [expected]) < 2e-2
