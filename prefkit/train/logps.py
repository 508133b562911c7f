"""Hidden states -> log-probabilities of completion tokens, never the full logits.

For a vocabulary of 128k and a bin of 8k tokens, float32 logits are 4 GB, and a log-softmax with its gradient three
times that: more than the rest of a small model. Two things avoid it. Only the hidden states that predict a completion
token reach the head; prompts never do. And the head runs in chunks, forward and backward: forward keeps one number a
token (its log-normaliser), backward computes the chunk's logits again and from them the gradients of hidden states
and of the weight. Memory has room for one chunk, so what the last one became is kept, and backward begins with it.

Cost: 8 C D V operations instead of 6 (one of the products is computed twice), and 6 where all fits one chunk. A chunk
of `CHUNK_LOGITS` float32 logits exists twice at the most (its copy in 16 bits, or the slope of a cap), so 512 MB,
whatever the vocabulary and the number of tokens. For each chunk the weight is read three times and its gradient read
and written once: with 512 tokens a chunk (128k words) 230 operations a byte in 16 bits, somewhat more than keep an H200
busy.

The projection runs in the dtype of the model's own head (or of autocast), the softmax in float32. The gradient of the
weight is summed over chunks in float32, which the weights of training are in anyway: in 16 bits a sum that has grown no
longer feels what a chunk adds (docs/benchmarks.md). Products in 16 bits are added a block of the vocabulary at a time,
so that no second copy of the gradient exists; a weight that FSDP hands over in 16 bits gets it rounded once, at the
end, and that takes a copy in float32. A frozen head gets no gradient computed.

The model is called, not its parts: the completion head takes the place of its forward for the duration of the call, so
that whatever wraps the model (peft, FSDP) runs its hooks around it.

Shape suffixes: T tokens, C entries (hidden state, target), E (entry, sequence) incidences, Q sequences, P pairs,
D hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from prefkit.errors import TrainError
from prefkit.train import router
from prefkit.train.attention import backbone, position_limit, unwrap
from prefkit.train.losses import LogProbs
from prefkit.train.pack import Bin, Layout

CHUNK_LOGITS = 2**26  # float32 logits that exist at a time: 256 MB, 512 tokens of a vocabulary of 128k
BLOCK_WEIGHTS = 2**25  # of the weight's gradient that are computed at a time in 16 bits: 64 MB


def token_logps(
    model: nn.Module,
    bin: Bin,
    *,
    chunk_logits: int = CHUNK_LOGITS,
    agreement: bool = False,
    router_losses: list[Tensor] | None = None,
) -> Tensor:
    """Log-probability of each entry of the bin, float32 [C]: one pass over its token trees.

    With `agreement` float32 [2, C]: besides, without gradient, what `_agreement` says of each entry. With
    `router_losses` the router loss that the model asks for hangs on the result, and its value is put into the list.

    The model must have been given to `attention.enable`.
    """
    _check_positions(model, bin)

    def forward(causal_lm: Any) -> Tensor:
        where: dict[str, Any] = {"position_ids": bin.position_ids_1T, "segments": bin.segments}
        hidden_1TD = _hidden(causal_lm, bin.input_ids_1T, bin.share, router_losses, **where)
        hidden_CD = hidden_1TD[0].index_select(0, bin.entry_source_C)
        return _head(causal_lm, hidden_CD, bin.entry_target_C, chunk_logits, agreement)

    return _call_as_forward(model, bin.input_ids_1T, forward)


def padded_token_logps(
    model: nn.Module,
    bin: Bin,
    *,
    chunk_logits: int = CHUNK_LOGITS,
    agreement: bool = False,
    router_losses: list[Tensor] | None = None,
    bounded: bool = False,
) -> Tensor:
    """The same numbers as `token_logps`, float32 [C], by one right-padded row a sequence and nothing shared.

    For models that token trees do not fit (recurrent layers), and the reference that trees are tested against. A
    token that several sequences share is read off the last of them.

    If `bounded`, no more tokens go through the model at a time than the bin has, padding included, so that
    `max_tokens` bounds memory here too: where the rows are more than that, they go in groups, which are computed once
    more in the backward pass.
    """
    _check_positions(model, bin)
    rows = [bin.input_ids_1T[0, path] for path in _sequence_paths(bin)] or [bin.input_ids_1T[0]]
    lengths_Q = bin.sequence_length_Q
    first_E = (lengths_Q.cumsum(0) - lengths_Q).repeat_interleave(lengths_Q)
    source_E = torch.arange(len(first_E), device=first_E.device) - first_E
    source_E += (bin.sequence_end_Q - lengths_Q).repeat_interleave(lengths_Q)
    row_C, source_C = torch.empty_like(bin.entry_source_C), torch.empty_like(bin.entry_source_C)
    row_C[bin.incidence_entry_E] = torch.arange(len(lengths_Q), device=first_E.device).repeat_interleave(lengths_Q)
    source_C[bin.incidence_entry_E] = source_E
    balanced = router_losses is not None and router.weight(unwrap(model)) > 0  # over all rows of the bin together
    limit = bin.input_ids_1T.shape[1] if bounded and not balanced else None
    groups = _row_groups([len(row) for row in rows], limit)

    def forward(causal_lm: Any) -> Tensor:
        parts, places = [], []
        for group in groups:
            row_q = torch.tensor(group, device=row_C.device)
            rows_qL = pad_sequence([rows[i] for i in group], batch_first=True)
            real_qL = pad_sequence([torch.ones_like(rows[i], dtype=torch.bool) for i in group], batch_first=True)
            run = partial(_hidden, causal_lm, rows_qL, bin.share, router_losses, real_qL.flatten())
            hidden_qLD = run() if len(groups) == 1 else checkpoint(run, use_reentrant=False)
            at_c, member_c = (row_C[:, None] == row_q).nonzero().unbind(1)
            parts.append(hidden_qLD.flatten(0, 1).index_select(0, member_c * rows_qL.shape[1] + source_C[at_c]))
            places.append(at_c)
        hidden_CD = torch.cat(parts).index_select(0, torch.cat(places).argsort())
        return _head(causal_lm, hidden_CD, bin.entry_target_C, chunk_logits, agreement)

    return _call_as_forward(model, bin.input_ids_1T, forward)


def _row_groups(lengths: list[int], limit: int | None) -> list[list[int]]:
    """Rows, longest first, in groups that have at most `limit` tokens with their padding; no limit: one group."""
    if limit is None:
        return [list(range(len(lengths)))]
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    groups: list[list[int]] = []
    for i in order:
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= limit:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _hidden(
    causal_lm: Any,
    input_ids: Tensor,
    share: float,
    router_losses: list[Tensor] | None,
    real_T: Tensor | None = None,
    **where: Any,
) -> Tensor:
    """The last hidden states, with the router loss on them if it is wanted and the model asks for it."""
    routed = router_losses is not None and router.weight(causal_lm) > 0
    asked = {"output_router_logits": True} if routed else {}
    outputs = backbone(causal_lm)(input_ids=input_ids, use_cache=False, **where, **asked)
    if router_losses is None or not routed:
        return outputs.last_hidden_state
    return router.hidden_states(causal_lm, outputs, share, router_losses, real_T)


def sequence_sums(token_logps_C: Tensor, bin: Bin) -> Tensor:
    """Summed log-probability of each sequence's completion [Q]."""
    if not len(bin.sequence_length_Q):
        return token_logps_C  # nothing as well, which `segment_reduce` does not take; it keeps the graph
    return torch.segment_reduce(
        token_logps_C.index_select(0, bin.incidence_entry_E), "sum", lengths=bin.sequence_length_Q
    )


def pair_logps(sums_Q: Tensor, bin: Bin | Layout) -> LogProbs:
    """What a loss takes: the sequences' sums and lengths, chosen and rejected of each pair of the bin."""
    chosen_P, rejected_P = bin.pairs_P2.unbind(1)
    return LogProbs(
        chosen_P=sums_Q.index_select(0, chosen_P),
        rejected_P=sums_Q.index_select(0, rejected_P),
        chosen_length_P=bin.sequence_length_Q[chosen_P],
        rejected_length_P=bin.sequence_length_Q[rejected_P],
    )


@torch.no_grad()
def check_head(model: nn.Module) -> None:
    """Raise TrainError unless the model's own forward gives the log-probabilities computed here.

    Models scale or cap their logits after the head, each under another name. The ones known here are followed; this
    finds the others, for the price of a forward pass of eight tokens. Call it once, when the weights are loaded.
    """
    causal_lm = unwrap(model)
    training = causal_lm.training
    causal_lm.eval()
    tokens_1T = torch.arange(1, 9, device=causal_lm.device)[None]
    logits_TV = causal_lm(input_ids=tokens_1T, use_cache=False).logits[0, :-1].float()
    hidden_TD = backbone(causal_lm)(input_ids=tokens_1T, use_cache=False).last_hidden_state[0, :-1]
    causal_lm.train(training)
    expected_T = logits_TV.log_softmax(-1).gather(1, tokens_1T[0, 1:, None])[:, 0]
    found_T = _head(causal_lm, hidden_TD, tokens_1T[0, 1:], CHUNK_LOGITS)
    tolerance = 1e-3 if logits_TV.dtype == hidden_TD.dtype == torch.float32 else 5e-2
    if not torch.allclose(found_T, expected_T, rtol=tolerance, atol=tolerance):
        raise TrainError(
            f"{type(causal_lm).__name__} changes its logits after the head in a way that prefkit does not know: "
            f"its own log-probabilities differ by {(found_T - expected_T).abs().max():.2g}."
        )


def _check_positions(model: nn.Module, bin: Bin) -> None:
    limit = position_limit(model)
    if limit is not None and bin.max_position >= limit:
        raise TrainError(
            f"a sequence of {bin.max_position + 1} tokens exceeds the {limit} up to which this model's rotary "
            f"embedding does not depend on the rest of the batch: set max_length = {limit} or less."
        )


def _call_as_forward(model: nn.Module, input_ids: Tensor, forward: Callable[[Any], Tensor]) -> Tensor:
    """Call `model`, wrappers and hooks and all, with `forward(causal_lm)` in place of the innermost model's forward."""
    causal_lm = unwrap(model)
    causal_lm.forward = lambda *_, **__: forward(causal_lm)
    try:
        return model(input_ids=input_ids)
    finally:
        del causal_lm.forward


def _sequence_paths(bin: Bin) -> list[Tensor]:
    """Offsets in the bin of each sequence's tokens."""
    own = torch.arange(bin.input_ids_1T.shape[1], device=bin.input_ids_1T.device).split(bin.segments.lengths)
    paths: list[Tensor] = []
    for tokens, depth in zip(own, bin.segments.depths, strict=True):
        paths.append(torch.cat([paths[-1][:depth], tokens]) if depth else tokens)
    ends = zip(bin.sequence_segment_Q.tolist(), bin.sequence_end_Q.tolist(), strict=True)
    return [paths[segment][: end + 1] for segment, end in ends]


def _head(causal_lm: Any, hidden_CD: Tensor, target_C: Tensor, chunk_logits: int, agreement: bool = False) -> Tensor:
    """Log-probabilities of the targets under the model's output head, and with `agreement` that too."""
    logps_C = _target_logps(causal_lm, hidden_CD, target_C, chunk_logits)
    return torch.stack([logps_C, _agreement(causal_lm, hidden_CD, logps_C, chunk_logits)]) if agreement else logps_C


@torch.no_grad()
def _agreement(causal_lm: Any, hidden_CD: Tensor, logps_C: Tensor, chunk_logits: int) -> Tensor:
    """``log p(target) - log sum_v p(v)^2``: how much likelier a token is than one that the model would draw.

    Zhou et al. 2024 (WPO, arXiv:2406.11827, eq. 2). The head is computed once more, so that its fused form need not
    know of this.
    """
    head, config = causal_lm.get_output_embeddings(), causal_lm.config.get_text_config()
    scale, cap = _logit_scale(config), getattr(config, "final_logit_softcapping", None)
    parts = [logps_C.new_zeros(0)]
    for part_CD in hidden_CD.split(max(1, chunk_logits // config.vocab_size)):
        logits_CV = _scaled_and_capped(head(part_CD), scale, cap)
        normaliser_C = logits_CV.logsumexp(-1)
        parts.append(logits_CV.mul_(2).logsumexp(-1) - 2 * normaliser_C)
    return logps_C - torch.cat(parts)


def _target_logps(causal_lm: Any, hidden_CD: Tensor, target_C: Tensor, chunk_logits: int) -> Tensor:
    head = causal_lm.get_output_embeddings()
    config = causal_lm.config.get_text_config()
    scale, cap = _logit_scale(config), getattr(config, "final_logit_softcapping", None)
    chunk = max(1, chunk_logits // config.vocab_size)
    if type(head) is not nn.Linear:
        # An adapter on the head, or whatever else it is: call it, and let checkpointing recompute it.
        chunks = zip(hidden_CD.split(chunk), target_C.split(chunk), strict=True)
        parts = [checkpoint(_module_logps, head, h, t, scale, cap, use_reentrant=False) for h, t in chunks]
        return torch.cat(parts) if parts else hidden_CD.new_zeros(0, dtype=torch.float32)
    device = hidden_CD.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight.dtype
    return _ChunkedLogps.apply(hidden_CD.to(dtype), head.weight, head.bias, target_C, scale, cap, chunk)


def _logit_scale(config: Any) -> float:
    """The factor between the head's output and the logits, under the names that architectures have given it."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):  # Cohere; Muse; Falcon-H1
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    scaling = getattr(config, "logits_scaling", None)  # HyperCLOVA X multiplies by it, Granite divides
    if scaling is None:
        return 1.0
    return float(scaling) if config.model_type == "hyperclovax" else 1 / scaling


def _module_logps(head: nn.Module, hidden_CD: Tensor, target_C: Tensor, scale: float, cap: float | None) -> Tensor:
    logits_CV = _scaled_and_capped(head(hidden_CD), scale, cap)
    return logits_CV.gather(1, target_C[:, None])[:, 0] - logits_CV.logsumexp(-1)


def _scaled_and_capped(logits_CV: Tensor, scale: float, cap: float | None) -> Tensor:
    """The logits that the model means, in float32 (float64 stays)."""
    logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
    if scale != 1.0:
        logits_CV = logits_CV * scale
    return logits_CV if cap is None else cap * torch.tanh(logits_CV / cap)


def _chunk_logits(
    hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, scale: float, cap: float | None
) -> Tensor:
    """The logits that the model means, of a linear head, computed in place: there is one copy, and no gradient."""
    logits_CV = F.linear(hidden_CD, weight_VD, bias_V)
    logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
    if scale != 1.0:
        logits_CV.mul_(scale)
    return logits_CV if cap is None else logits_CV.div_(cap).tanh_().mul_(cap)


class _ChunkedLogps(torch.autograd.Function):
    """log softmax(cap(scale (hidden W^T + b)))[target], a chunk of rows at a time in both directions.

    With p the softmax and g the incoming gradient, d/dlogits = g (onehot(target) - p); the cap and the scale multiply
    it by ``scale (1 - (logits / cap)^2)``, and the rest is the backward of a linear layer. Weight and bias are computed
    with in the dtype of the hidden states, and have their gradients in their own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_CD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        target_C: Tensor,
        scale: float,
        cap: float | None,
        chunk: int,
    ) -> Tensor:
        ctx.of_weight, ctx.of_bias = weight_VD.dtype, None if bias_V is None else bias_V.dtype
        weight_VD, bias_V = weight_VD.to(hidden_CD.dtype), None if bias_V is None else bias_V.to(hidden_CD.dtype)
        dtype = torch.promote_types(hidden_CD.dtype, torch.float32)
        logps_C = torch.empty(len(target_C), dtype=dtype, device=target_C.device)
        normaliser_C = torch.empty_like(logps_C)
        exps_CV: Tensor | None = None
        for start in range(0, len(target_C), chunk):
            rows = slice(start, start + chunk)
            del exps_CV  # before the next chunk's exist
            exps_CV = _chunk_logits(hidden_CD[rows], weight_VD, bias_V, scale, cap)
            targets_C1, highest_C1 = exps_CV.gather(1, target_C[rows, None]), exps_CV.amax(1, keepdim=True)
            sums_C1 = exps_CV.sub_(highest_C1).exp_().sum(1, keepdim=True)
            normaliser_C[rows] = (highest_C1 + sums_C1.log())[:, 0]
            logps_C[rows] = targets_C1[:, 0] - normaliser_C[rows]
        ctx.save_for_backward(hidden_CD, weight_VD, bias_V, target_C, normaliser_C)
        ctx.scale, ctx.cap, ctx.chunk = scale, cap, chunk
        ctx.last = (exps_CV, sums_C1) if exps_CV is not None and cap is None else None  # a cap asks for logits
        return logps_C

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_C: Tensor) -> tuple[Tensor | None, ...]:
        hidden_CD, weight_VD, bias_V, target_C, normaliser_C = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden_CD = torch.empty_like(hidden_CD) if needs_hidden else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=normaliser_C.dtype) if needs_weight else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=normaliser_C.dtype) if needs_bias else None
        for start in reversed(range(0, len(target_C), ctx.chunk)):
            rows = slice(start, start + ctx.chunk)
            grad_CV = _logits_gradient(ctx, rows, grad_C[rows, None])
            if grad_bias_V is not None:
                grad_bias_V.add_(grad_CV.sum(0))
            grad_CV = grad_CV.to(weight_VD.dtype)
            if grad_hidden_CD is not None:
                torch.mm(grad_CV, weight_VD, out=grad_hidden_CD[rows])
            if grad_weight_VD is not None:
                _add_product(grad_weight_VD, grad_CV, hidden_CD[rows])
            del grad_CV
        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD.to(ctx.of_weight)
        if grad_bias_V is not None:
            grad_bias_V = grad_bias_V.to(ctx.of_bias)
        return grad_hidden_CD, grad_weight_VD, grad_bias_V, None, None, None, None


def _logits_gradient(ctx: Any, rows: slice, grad_C1: Tensor) -> Tensor:
    """The gradient of the head's output for some rows, the last chunk or an earlier one."""
    hidden_CD, weight_VD, bias_V, target_C, normaliser_C = ctx.saved_tensors
    slope_CV = None
    if ctx.last is not None:
        (grad_CV, sums_C1), ctx.last = ctx.last, None
        grad_CV.mul_(-grad_C1 / sums_C1)
    else:
        grad_CV = _chunk_logits(hidden_CD[rows], weight_VD, bias_V, ctx.scale, ctx.cap)
        slope_CV = None if ctx.cap is None else grad_CV.div(ctx.cap).square_().neg_().add_(1)
        grad_CV.sub_(normaliser_C[rows, None]).exp_().mul_(-grad_C1)
    grad_CV.scatter_add_(1, target_C[rows, None], grad_C1)
    if slope_CV is not None:
        grad_CV.mul_(slope_CV)
    return grad_CV if ctx.scale == 1.0 else grad_CV.mul_(ctx.scale)


def _add_product(sum_VD: Tensor, grad_CV: Tensor, hidden_CD: Tensor) -> None:
    """Add ``grad^T hidden`` to a sum that may be of a larger dtype; in a smaller one, a block of rows at a time."""
    if sum_VD.dtype == hidden_CD.dtype:
        sum_VD.addmm_(grad_CV.T, hidden_CD)
        return
    block = max(1, BLOCK_WEIGHTS // hidden_CD.shape[1])
    for start in range(0, len(sum_VD), block):
        words = slice(start, start + block)
        sum_VD[words] += grad_CV[:, words].T @ hidden_CD
