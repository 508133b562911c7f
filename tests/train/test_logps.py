"""The chunked head against plain log_softmax, in value, gradient and memory, and under what wraps models."""

import numpy as np
import peft
import pytest
import torch

from prefkit.errors import TrainError
from prefkit.train import attention, logps
from prefkit.train.logps import check_head, padded_token_logps, pair_logps, sequence_sums, token_logps
from prefkit.train.pack import Sequence, collate
from tests.train.conftest import TREE_MODELS, make_model, tree_of

ROWS, HIDDEN, WORDS = 11, 6, 17


@pytest.fixture
def bin():
    sequences = [[5, 6, 7, 8, 9], [5, 6, 7, 10], [5, 6, 11, 12, 13, 14]]
    return collate([tree_of([Sequence(np.array(s, dtype=np.int32), 2) for s in sequences])])


def head_inputs(bias):
    torch.manual_seed(0)
    hidden, weight = (torch.randn(n, HIDDEN, dtype=torch.float64, requires_grad=True) for n in (ROWS, WORDS))
    return hidden, weight, torch.randn(WORDS, dtype=torch.float64, requires_grad=True) if bias else None


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize(("bias", "scale", "cap"), [(False, 1.0, None), (True, 0.3, None), (True, 2.0, 1.5)])
def test_chunked_head_equals_log_softmax(chunk, bias, scale, cap):
    hidden, weight, offset = head_inputs(bias)
    targets = torch.randint(WORDS, (ROWS,))
    found = logps._ChunkedLogps.apply(hidden, weight, offset, targets, scale, cap, chunk)
    logits = torch.nn.functional.linear(hidden, weight, offset) * scale
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    expected = logits.log_softmax(-1)[range(ROWS), targets]
    assert torch.allclose(found, expected, rtol=1e-12)
    inputs = [x for x in (hidden, weight, offset) if x is not None]
    pull = torch.randn(ROWS, dtype=torch.float64)
    wanted = torch.autograd.grad(expected, inputs, pull)
    for keep in (True, False):  # what the first backward pass uses up, a second one computes again
        for f, e in zip(torch.autograd.grad(found, inputs, pull, retain_graph=keep), wanted, strict=True):
            assert torch.allclose(f, e, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cap", [None, 2.0])
def test_gradcheck(cap):
    hidden, weight, bias = head_inputs(bias=True)
    targets = torch.randint(WORDS, (ROWS,))
    assert torch.autograd.gradcheck(
        lambda h, w, b: logps._ChunkedLogps.apply(h, w, b, targets, 1.3, cap, 4), (hidden, weight, bias)
    )


def test_full_logits_never_exist():
    """Of 600 rows, no tensor of more than a chunk's logits is made, forward or backward."""
    hidden, weight = torch.randn(600, 8, requires_grad=True), torch.randn(500, 8, requires_grad=True)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(result):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return result

    with Watch():
        logps._ChunkedLogps.apply(
            hidden, weight, None, torch.zeros(600, dtype=torch.long), 1.0, None, 20
        ).sum().backward()
    assert largest == 20 * 500


@pytest.mark.parametrize("of_weight", [torch.float32, torch.bfloat16])
def test_chunks_cost_the_gradient_of_the_weight_no_digit_in_16_bits(of_weight, monkeypatch):
    """Against float64 on the same numbers, 64 chunks are as exact as one; blocks of the vocabulary too."""
    torch.manual_seed(0)
    words, width, tokens = 300, 16, 4096
    hidden = torch.randn(tokens, width).bfloat16()
    weight = (torch.randn(words, width) * 0.5).bfloat16()
    targets = torch.multinomial(1 / torch.arange(1.0, words + 1), tokens, replacement=True)
    monkeypatch.setattr(logps, "BLOCK_WEIGHTS", 100 * width)

    def gradient(chunk, hidden, weight):
        weight = weight.clone().requires_grad_()
        logps._ChunkedLogps.apply(hidden, weight, None, targets, 1.0, None, chunk).sum().backward()
        return weight.grad

    exact = gradient(tokens, hidden.double(), weight.double())
    found, in_one = (gradient(chunk, hidden, weight.to(of_weight)) for chunk in (64, tokens))
    assert found.dtype == of_weight
    error, least = ((grad.double() - exact).norm() / exact.norm() for grad in (found, in_one))
    assert error < 1.1 * least < 0.005


def peak_bytes(function):
    """The most bytes that the CPU's allocator held at a time beyond those before, temporaries of kernels included."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(np.cumsum(changes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.5, 30.0)])
def test_the_head_adds_less_than_a_gibibyte(dtype, scale, cap):
    """128k words, 16k tokens of width 4096: what a chunk costs is measured, what does not depend on chunks is added."""
    words, width, tokens, chunk = 4096, 16, 512, 64
    weight = torch.randn(words, width, dtype=dtype, requires_grad=True)
    hidden = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    targets = torch.randint(words, (tokens,))

    def forward_and_backward():
        logps._ChunkedLogps.apply(hidden, weight, None, targets, scale, cap, chunk).sum().backward()

    gradients = (weight.numel() + hidden.numel()) * weight.element_size()
    in_chunks = (peak_bytes(forward_and_backward) - gradients) / (4 * words * chunk)
    assert 1 < in_chunks < 2.2
    hidden_and_its_gradient = 2 * 2 * 2**14 * 4096
    assert in_chunks * 4 * logps.CHUNK_LOGITS + hidden_and_its_gradient < 2**30


@pytest.mark.parametrize("name", TREE_MODELS)
def test_head_is_the_models_own(name):
    check_head(make_model(name))


def test_an_unknown_change_of_the_logits_is_refused(monkeypatch):
    model = make_model("Granite")
    monkeypatch.setattr(logps, "_logit_scale", lambda config: 1.0)
    with pytest.raises(TrainError, match="changes its logits after the head"):
        check_head(model)


def test_a_frozen_head_gets_no_gradient(bin):
    model = make_model("Llama")
    attention.enable(model)
    model.lm_head.requires_grad_(False)
    token_logps(model, bin).sum().backward()
    assert model.lm_head.weight.grad is None
    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().max() > 0


def test_tied_embeddings_get_both_gradients(bin):
    model = make_model("Qwen3")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    attention.enable(model)
    token_logps(model, bin).sum().backward()
    found = model.lm_head.weight.grad.clone()
    model.zero_grad()
    expected = 0
    for row in ([5, 6, 7, 8, 9], [5, 6, 7, 10], [5, 6, 11, 12, 13, 14]):
        tokens = torch.tensor([row])
        logits = model(input_ids=tokens, use_cache=False).logits[0].log_softmax(-1)
        first = 3 if row[3:] == [10] else 2  # the token 7 is one entry of two sequences
        expected = expected + sum(logits[i - 1, row[i]] for i in range(first, len(row)))
    expected.backward()
    assert torch.allclose(found, model.lm_head.weight.grad, rtol=1e-4, atol=1e-5)


def test_sums_and_pairs(bin):
    tokens_C = torch.arange(1.0, len(bin.entry_target_C) + 1)
    sums_Q = sequence_sums(tokens_C, bin)
    # Depth first: 7 8 9, then 10, then 11 12 13 14; the second sequence shares the 7.
    assert sums_Q.tolist() == [1 + 2 + 3, 1 + 4, 5 + 6 + 7 + 8]
    pairs = pair_logps(sums_Q, bin)
    assert pairs.chosen_P.tolist() == [6, 5, 26]
    assert pairs.rejected_P.tolist() == [5, 26, 6]
    assert pairs.chosen_length_P.tolist() == [3, 2, 4]
    assert pairs.rejected_length_P.tolist() == [2, 4, 3]


def lora(model, **options):
    torch.manual_seed(1)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, init_lora_weights=False, **options))
    return wrapped.eval()


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
)
def test_adapters_are_in_the_result_and_learn_also_on_the_head(options, bin):
    plain = make_model("Llama")
    expected_base = padded_token_logps(plain, bin)
    model = lora(plain, **options)
    tokens = torch.tensor([[5, 6, 7, 8, 9]])
    logits = model(input_ids=tokens, use_cache=False).logits[0]
    expected = logits.log_softmax(-1)[range(1, 4), tokens[0, 2:]]
    assert attention.supports(model) is None
    check_head(model)
    attention.enable(model)
    found = token_logps(model, bin)
    assert torch.allclose(found[:3], expected, rtol=1e-5, atol=1e-5)
    found.sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained)
    with model.disable_adapter(), torch.no_grad():
        assert torch.allclose(token_logps(model, bin), expected_base, rtol=1e-5, atol=1e-5)


def test_prompt_learning_is_refused(bin):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    assert "virtual tokens" in attention.supports(peft.get_peft_model(make_model("Llama"), config))


def test_autocast_runs_the_head_in_its_dtype(bin):
    model = make_model("Llama")
    attention.enable(model)
    exact = token_logps(model, bin)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = token_logps(model, bin)
    rounded.sum().backward()
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.1
    assert model.lm_head.weight.grad.dtype == torch.float32


def test_the_models_forward_is_its_own_again(bin):
    model = make_model("Llama")
    attention.enable(model)
    before = model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False).logits
    token_logps(model, bin)
    assert "forward" not in vars(model)
    assert torch.equal(model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False).logits, before)


def test_hooks_of_wrappers_run_around_the_call(bin):
    model = make_model("Llama")
    attention.enable(model)
    shapes = []
    model.register_forward_hook(lambda module, arguments, output: shapes.append(output.shape))
    token_logps(model, bin)
    assert shapes == [bin.entry_target_C.shape]


@pytest.mark.parametrize("name", ["Llama", "Mamba"])
def test_padded_rows_are_bounded_by_the_bins_tokens(name):
    """Groups of rows give the same, and never more padded tokens than the bin has go through the model at a time."""
    from tests.train.test_attention import example_bin, relative_error, results

    model, bin = make_model(name), example_bin()
    seen = []
    layers = attention.backbone(model)

    def count(module, args, kwargs):
        seen.append(kwargs["input_ids"].numel())

    layers.register_forward_pre_hook(count, with_kwargs=True)
    expected = results(padded_token_logps, model, bin)
    assert seen[0] > bin.input_ids_1T.numel()
    del seen[:]
    found = results(lambda *args: padded_token_logps(*args, bounded=True), model, bin)
    assert max(seen) <= bin.input_ids_1T.numel()
    assert len(seen) > 2
    for f, e in zip(found, expected, strict=True):
        assert relative_error([f], [e]) < 1e-5
