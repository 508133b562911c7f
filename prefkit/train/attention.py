"""Tree attention: each token of a packed bin sees its own path, and nothing else.

A bin (`prefkit.train.pack`) is one row of tokens, cut into segments. A segment continues a prefix of the path of the
segment before it, so its queries see ``depth`` keys of that path and, causally, themselves: attention with n queries
and ``m = depth + n`` keys whose causal mask is aligned bottom-right. That is one call of scaled dot-product attention
(SDPA) a segment, with a mask of n x m; on a CPU one a block of queries. No T x T mask is made, and different trees of a
bin cost each other nothing. The first segment of a tree, the prompt with a completion, has no gathered keys and takes
the plain causal kernel where it is one call.

The keys of a path are built by recursion, ``path(s) = path(s - 1)[:depth] + own(s)``.
Queries, keys and values are cut by one ``split`` each, whose backward is one concatenation; slicing a segment at a time
would write a gradient of the size of the whole bin for every segment. The copies of shared keys are the price of
needing no special kernel: ``sum(depths)`` rows a layer, a few percent of the bin's activations.

On CUDA, in 16 bits, all segments are one call of a variable-length flash kernel instead (`attention_varlen`). Which of
the two a model takes is the name of its attention implementation, chosen once by `choose`; what the kernel cannot
compute (soft caps, sinks, dropout) takes SDPA or the plain softmax there too.

The function is registered with transformers' ``AttentionInterface``, and the segments travel through the model's
forward as a keyword argument. Since transformers builds masks only for the implementations it knows, none is built
here (nor is its packed-sequence detection run), so everything that a model says by its mask must be said by arguments:
``sliding_window``, ``softcap`` and ``s_aux`` are honoured, whatever else is not understood is refused. Soft caps and
sinks are outside SDPA's vocabulary and take a plain softmax, n x m scores a segment.

Without segments every row of the batch is a sequence of its own, causal, padded at the right if at all. That is the
reference that trees are tested against.

Shape suffixes: B batch, H heads, N queries, M keys, D width of a head, T tokens.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from prefkit.errors import TrainError
from prefkit.train import attention_varlen
from prefkit.train.pack import Segments, Sequence, build_tree, collate

NAME = "prefkit_tree"
VARLEN_NAME = "prefkit_tree_varlen"
Kernel = Literal["auto", "varlen", "sdpa"]

# Arguments that reach every attention function and say nothing about who attends to whom.
_HARMLESS = {
    "position_ids",
    "position_embeddings",
    "cache_position",
    "use_cache",
    "output_attentions",
    "output_router_logits",
    "is_causal",
}
BLOCK_QUERIES = 128  # about how many a CPU takes at a time
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}


# Segments differ from bin to bin: compiled layers break here instead of being traced again for each.
@torch.compiler.disable
def tree_attention(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Segments | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    varlen: bool = False,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of each segment to its path, as transformers calls it: returns [B, T, H, D] and no weights.

    With `varlen` by the variable-length kernel, where it can.
    """
    window = _window(module, others)
    _refuse_unknown(module, attention_mask, others)
    tokens = query_BHTD.shape[2]
    if key_BHTD.shape[2] != tokens:
        raise TrainError(
            f"{NAME} attention is for training and has no key-value cache; call the model with use_cache=False."
        )
    if segments is None:
        segments = Segments(lengths=[tokens], depths=[0])
    scale = query_BHTD.shape[-1] ** -0.5 if scaling is None else scaling
    device = query_BHTD.device.type
    if torch.is_autocast_enabled(device):
        # Rotated queries and keys come in float32; autocast casts them for SDPA, but knows nothing of other kernels.
        dtype = torch.get_autocast_dtype(device)
        query_BHTD, key_BHTD, value_BHTD = query_BHTD.to(dtype), key_BHTD.to(dtype), value_BHTD.to(dtype)
    if varlen and softcap is None and s_aux is None and attention_varlen.fits(query_BHTD, dropout):
        return attention_varlen.attend(query_BHTD, key_BHTD, value_BHTD, segments, scale, window), None

    queries = query_BHTD.split(segments.lengths, dim=2)
    keys = list(key_BHTD.split(segments.lengths, dim=2))
    values = list(value_BHTD.split(segments.lengths, dim=2))
    outputs = []
    for s, depth in enumerate(segments.depths):
        if depth:
            keys[s] = torch.cat([keys[s - 1][:, :, :depth], keys[s]], dim=2)
            values[s] = torch.cat([values[s - 1][:, :, :depth], values[s]], dim=2)
        outputs += _attend(queries[s], keys[s], values[s], scale, dropout, window, softcap, s_aux, segments.layouts)
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _attend(
    query_BHND: Tensor,
    key_BHMD: Tensor,
    value_BHMD: Tensor,
    scale: float,
    dropout: float,
    window: int | None,
    softcap: float | None,
    sinks_H: Tensor | None,
    kept: dict[Any, Any],
) -> list[Tensor]:
    """N queries at the end of a path of M keys; query i sees the keys up to M - N + i, the last `window` of them.

    On a CPU in blocks of queries, each with the keys that it can see: scores of hidden ones are computed too. Masks are
    `kept` as long as the bin.
    """
    n, m = query_BHND.shape[2], key_BHMD.shape[2]
    window = None if window is None or m <= window else window
    fused = softcap is None and sinks_H is None
    blocks = max(1, round(n / BLOCK_QUERIES)) if query_BHND.device.type == "cpu" else 1
    if fused and n == m and window is None and blocks == 1:
        grouped = query_BHND.shape[1] != key_BHMD.shape[1]
        return [
            F.scaled_dot_product_attention(
                query_BHND, key_BHMD, value_BHMD, is_causal=True, dropout_p=dropout, scale=scale, enable_gqa=grouped
            )
        ]
    # SDPA's fast kernels take grouped heads or a mask, not both.
    groups = query_BHND.shape[1] // key_BHMD.shape[1]
    key_BHMD, value_BHMD = _repeat_heads(key_BHMD, groups), _repeat_heads(value_BHMD, groups)
    outputs = []
    for first, last in itertools.pairwise(m - n + n * block // blocks for block in range(blocks + 1)):
        # No query of the block reaches further back than the first one's window.
        seen = slice(0 if window is None else max(0, first - window + 1), last)
        states = query_BHND[:, :, first - m + n : last - m + n], key_BHMD[:, :, seen], value_BHMD[:, :, seen]
        mask_NM = _mask(last - first, seen.stop - seen.start, window, query_BHND, kept)
        if fused:
            output = F.scaled_dot_product_attention(*states, attn_mask=mask_NM, dropout_p=dropout, scale=scale)
        else:
            output = _softmax_attention(*states, mask_NM, scale, dropout, softcap, sinks_H)
        outputs.append(output)
    return outputs


def _softmax_attention(
    query_BHND: Tensor,
    key_BHMD: Tensor,
    value_BHMD: Tensor,
    mask_NM: Tensor,
    scale: float,
    dropout: float,
    softcap: float | None,
    sinks_H: Tensor | None,
) -> Tensor:
    """Attention by its definition, for what SDPA has no argument for."""
    scores_BHNM = query_BHND @ key_BHMD.transpose(2, 3) * scale
    if softcap is not None:
        scores_BHNM = softcap * torch.tanh(scores_BHNM / softcap)
    scores_BHNM = scores_BHNM + mask_NM
    if sinks_H is None:
        weights_BHNM = scores_BHNM.softmax(-1, dtype=torch.float32)
    else:
        # A sink is one more key that takes weight and returns nothing.
        sinks_BHN1 = sinks_H.view(1, -1, 1, 1).expand(*scores_BHNM.shape[:3], 1).to(scores_BHNM.dtype)
        weights_BHNM = torch.cat([scores_BHNM, sinks_BHN1], -1).softmax(-1, dtype=torch.float32)[..., :-1]
    weights_BHNM = F.dropout(weights_BHNM.to(query_BHND.dtype), dropout)
    return weights_BHNM @ value_BHMD


def _mask(n: int, m: int, window: int | None, like: Tensor, kept: dict[Any, Any]) -> Tensor:
    """[n, m] to be added to scores: 0 where the last n of m positions see one, causally and within the window."""
    if window is None and n < 2 * BLOCK_QUERIES:  # a part of one mask: query i sees the first `width + 1 + i` keys
        width = 1 << (m - 1).bit_length()
        key = ("mask", width, like.dtype, like.device)
        if key not in kept:
            kept[key] = _hidden(2 * BLOCK_QUERIES, width + 2 * BLOCK_QUERIES, None, like)
        return kept[key][:n, width - m + n : width + n]
    return _hidden(n, m, window, like)


@torch.inference_mode(False)  # a mask that is kept may serve a backward pass later
def _hidden(n: int, m: int, window: int | None, like: Tensor) -> Tensor:
    distance_NM = torch.arange(m - n, m, device=like.device)[:, None] - torch.arange(m, device=like.device)
    hidden_NM = distance_NM < 0 if window is None else (distance_NM < 0) | (distance_NM >= window)
    return torch.zeros(n, m, dtype=like.dtype, device=like.device).masked_fill_(hidden_NM, float("-inf"))


def _repeat_heads(states_BHMD: Tensor, groups: int) -> Tensor:
    return states_BHMD if groups == 1 else states_BHMD.repeat_interleave(groups, dim=1)


def _window(module: nn.Module, others: dict[str, Any]) -> int | None:
    """The layer's sliding window, refusing models that express theirs by the mask alone."""
    if "sliding_window" in others:
        return others.pop("sliding_window")
    config = getattr(module, "config", None)
    if getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True):
        raise TrainError(f"{type(module).__name__} has a sliding window and does not tell its attention function.")
    return None


def _refuse_unknown(module: nn.Module, attention_mask: Tensor | None, others: dict[str, Any]) -> None:
    name = type(module).__name__
    if attention_mask is not None:
        raise TrainError(f"{name} makes an attention mask of its own, which a token tree would have to follow.")
    if others.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise TrainError(f"{name} is not causal: a completion would change its prompt.")
    unknown = [key for key, value in others.items() if key not in _HARMLESS and value is not None]
    if unknown:
        raise TrainError(f"{name} passes {', '.join(unknown)} to its attention, which token trees do not know.")


AttentionInterface.register(NAME, tree_attention)
AttentionInterface.register(VARLEN_NAME, functools.partial(tree_attention, varlen=True))


def choose(kernel: Kernel, device: torch.device, dtype: torch.dtype) -> str:
    """The implementation's name for what a pipeline file asks; "auto" is the variable-length kernel where there is one.

    TrainError where "varlen" is asked for and cannot be had, or gives another result than SDPA.
    """
    reason = None if kernel == "sdpa" else attention_varlen.missing(device, dtype)
    if kernel == "varlen" and reason:
        raise TrainError(f'attention = "varlen" cannot be had: {reason}.')
    if kernel == "sdpa" or reason:
        return NAME
    error = kernel_error(device, dtype)
    if error > KERNEL_TOLERANCE:
        raise TrainError(
            f"the variable-length attention of this machine differs from scaled dot products by {error:.1e}: "
            'set attention = "sdpa", and please report this.'
        )
    return VARLEN_NAME


KERNEL_TOLERANCE = 3e-2  # two sums of 16-bit numbers in different orders, and their gradients


def kernel_error(device: torch.device, dtype: torch.dtype) -> float:
    """How far the kernel is from SDPA on a small tree, relative, in values and gradients, with a window and without."""
    segments = Segments(lengths=[70, 9, 1, 40, 33], depths=[0, 50, 58, 13, 0])
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, sum(segments.lengths), 64) for heads in (4, 2, 2)]
    states = [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]
    pull = torch.randn(1, sum(segments.lengths), 4, 64, generator=generator).to(device, dtype)
    errors = []
    for window in (None, 20):
        results = []
        for varlen in (False, True):
            extra: dict[str, Any] = {"sliding_window": window, "segments": segments, "varlen": varlen}
            with torch.enable_grad():
                output, _ = tree_attention(nn.Module(), *states, None, **extra)
                results.append([output.detach(), *torch.autograd.grad(output, states, pull)])
        for expected, found in zip(*results, strict=True):
            errors.append((found - expected).float().norm() / expected.float().norm())
    return _worst(torch.stack(errors)).max().item()


def _worst(errors: Tensor) -> Tensor:
    """Errors of which NaN is the largest, since no comparison finds it."""
    return errors.nan_to_num(nan=torch.inf)


def enable(model: nn.Module, name: str = NAME) -> None:
    """Make `model` compute its attention along token trees. Call after `supports` found nothing against it."""
    unwrap(model).set_attn_implementation(name)


def unwrap(model: nn.Module) -> Any:
    """The transformers model inside a peft model, or the model itself."""
    inner: Any = model
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def backbone(causal_lm: Any) -> Any:
    """The layers below the output head: token ids in, `last_hidden_state` out."""
    inner = causal_lm.base_model
    if inner is causal_lm:
        raise TrainError(f"{type(causal_lm).__name__} does not say which of its modules lies below its output head.")
    return inner


def supports(model: nn.Module) -> str | None:
    """None if token trees give this model's own result, else the reason why not, as a phrase for the user.

    What the configuration tells is asked first. Then a tree of a few tokens goes through the model and is compared with
    its own attention, since an architecture can say things in its code that no configuration shows. Weights must be
    loaded; the model is left as it was.
    """
    causal_lm = unwrap(model)
    config = causal_lm.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or []) - _KNOWN_LAYERS
    name = type(causal_lm).__name__
    if getattr(causal_lm.config, "is_encoder_decoder", False):
        return f"{name} is an encoder-decoder"
    if getattr(causal_lm, "_is_stateful", False):
        return f"{name} has recurrent layers, which read tokens in one order only"
    if layers:
        return f"{name} has layers of type {', '.join(sorted(layers))}"
    if not getattr(causal_lm, "_supports_attention_backend", False) or not causal_lm._can_set_attn_implementation():
        return f"{name} does not use transformers' attention interface"
    if any(getattr(peft, "is_prompt_learning", False) for peft in getattr(model, "peft_config", {}).values()):
        return "prompt-learning adapters put virtual tokens before every row"
    return _probe(causal_lm)


def position_limit(model: nn.Module) -> int | None:
    """How long a sequence may be before the model's rotary embedding depends on what else is in the batch, or None.

    "dynamic" and "longrope" scaling choose their frequencies by the largest position of the whole batch once it exceeds
    the original context, so log-probabilities would change with the packing. Up to there they are constant.
    """
    config = unwrap(model).config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    tables = [table for table in rope.values() if isinstance(table, dict)] or [rope]  # one a kind of layers, or one
    limits = [
        table["original_max_position_embeddings"] if kind == "longrope" else config.max_position_embeddings
        for table in tables
        if (kind := table.get("rope_type")) in ("dynamic", "longrope")
    ]
    return min(limits, default=None)


@torch.no_grad()
def _probe(causal_lm: Any) -> str | None:
    """Compare a small tree with the same two sequences under the model's own attention."""
    vocabulary = causal_lm.config.get_text_config().vocab_size
    prompt, chosen, rejected = ((torch.arange(7) * step + step) % vocabulary for step in (3, 5, 7))
    rows = torch.stack([torch.cat([prompt, chosen]), torch.cat([prompt, rejected])])
    sequences = [Sequence(row.numpy(), len(prompt)) for row in rows]
    bin = collate([build_tree(sequences, [(0, 1)], pair_rows=[0], sequence_rows=[0, 1])]).to(causal_lm.device)
    own, training = causal_lm.config._attn_implementation, causal_lm.training
    layers = backbone(causal_lm)
    causal_lm.eval()
    try:
        expected_2LD = layers(input_ids=rows.to(causal_lm.device), use_cache=False).last_hidden_state
        causal_lm.set_attn_implementation(NAME)
        tree = layers(
            input_ids=bin.input_ids_1T, position_ids=bin.position_ids_1T, segments=bin.segments, use_cache=False
        )
    except TrainError as refusal:
        return str(refusal)
    finally:
        causal_lm.set_attn_implementation(own)
        causal_lm.train(training)
    # Hidden states that predict a completion token, of both sequences in turn.
    found_ED = tree.last_hidden_state[0, bin.entry_source_C[bin.incidence_entry_E]].float()
    expected_ED = expected_2LD[:, len(prompt) - 1 : -1].flatten(0, 1).float()
    error_E = _worst((found_ED - expected_ED).norm(dim=-1) / expected_ED.norm(dim=-1))
    # Half precision rounds, and may send a token of a mixture to another expert: a median, not a maximum.
    tolerance = 1e-3 if expected_2LD.dtype == torch.float32 else 5e-2
    if error_E.median() > tolerance:
        return f"token trees change the hidden states of {type(causal_lm).__name__} by {error_E.median():.1e}"
    return None
