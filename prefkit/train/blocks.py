"""The decoder's layers: compiled, and their activations kept or recomputed, within a budget of memory.

Most of what training holds beside weights and optimiser are the activations that the layers keep for the backward pass.
A layer can keep them in three ways:

    none      everything that autograd saves                   no recomputation
    matmuls   results of matrix products and attention         norms, activations and rotations again: bytes, few FLOPs
              (not of experts: grouped products are changed in place, so a mixture computes its experts again)
    full      the layer's input                                the layer's forward again: a third more FLOPs

With a budget, each layer gets the cheapest way that fits: as many as possible move from `full` to `matmuls`, and if all
have, from `matmuls` to `none`. What a layer holds is measured, not modelled: tokens go through the model, and the
bytes are counted that are alive while its result is (tensor storages, so the figure is the same on any device). A few
tokens of two lengths tell weights' copies in another precision, which no token adds to. The bytes a token are those of
a sequence as long as the longest, at a forward pass of it a level: scores of soft caps and masks of windows grow with
the length, so that a small Gemma 2 holds four times as much a token at 4,096 tokens as at 128.

`torch.compile` sees one layer at a time, with any number of tokens; attention over token trees stands outside of its
graphs, since segments differ from bin to bin. So the number of compilations does not grow with the bins, and layers
share them. Recomputation is around the compiled layer. Inside, the compiler itself decides what to keep of the work
between matrix products, so `matmuls` has no meaning there and is refused.

Layers are changed by giving the instance a `forward` of its own; hooks that wrap the module (FSDP) stay around it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from transformers.modeling_layers import GradientCheckpointingLayer

from prefkit.errors import TrainError
from prefkit.train.attention import backbone, unwrap

Level = Literal["none", "matmuls", "full"]
Autocast = Callable[[], AbstractContextManager[Any]]
Keeping = Level | Annotated[float, Gt(0)]  # or GiB for the activations of a bin

GIB = 2**30
PROBE_TOKENS = 64
MATMULS = (
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "torch_attn::_varlen_attn",
    "flash_attn::_flash_attn_varlen_forward",
)


def prepare(
    model: Any, keeping: Keeping, *, compiled: bool, max_tokens: int, longest: int, autocast: Autocast
) -> str | None:
    """Compile the layers if asked, and let them keep what `keeping` says; returns a sentence about a budget.

    `longest` are the tokens of the longest sequence in a bin of `max_tokens`. Call it when the adapter is on and
    parameters know whether they learn. `autocast` is how the model computes. TrainError for a budget that the layers'
    inputs alone exceed, or a model whose layers cannot be told apart.
    """
    if keeping == "none" and not compiled:
        return None
    layers = decoder_layers(model)
    note = None
    if isinstance(keeping, str):
        levels: list[Level] = [keeping] * len(layers)
    else:
        held = partial(bytes_a_token, model, autocast, longest)
        levels, note = within_budget(model, layers, keeping * GIB, max_tokens, held, matmuls=not compiled)
    for layer, level in zip(layers, levels, strict=True):
        if compiled:
            layer.forward = torch.compile(layer.forward, dynamic=True)
        keep(layer, level)
    return note


def decoder_layers(model: Any) -> list[Any]:
    """The repeated blocks of a transformers model; TrainError if it has none that can be recomputed."""
    causal_lm = unwrap(model)
    found = [module for module in backbone(causal_lm).modules() if isinstance(module, GradientCheckpointingLayer)]
    inner = {id(part) for layer in found for part in layer.modules() if part is not layer}
    layers = [layer for layer in found if id(layer) not in inner]
    if not layers:
        raise TrainError(
            f"{type(causal_lm).__name__} does not tell its layers, so activation_checkpointing and compile are not "
            "possible."
        )
    return layers


def keep(layer: Any, level: Level) -> None:
    """Let a layer keep what `level` says for the backward pass; evaluation and its result are as before."""
    if level == "none":
        return
    forward = layer.forward
    options: dict[str, Any] = {"use_reentrant": False}
    if level == "matmuls":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _matmul_operators())

    def recomputed(*args: Any, **kwargs: Any) -> Any:
        if layer.training and torch.is_grad_enabled():
            return checkpoint(forward, *args, **options, **kwargs)
        return forward(*args, **kwargs)

    layer.forward = recomputed


def plain(model: nn.Module) -> None:
    """Undo `prepare`; a copy of a model must, since its layers' `forward` would still be the original's."""
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            vars(module).pop("forward", None)


def within_budget(
    model: Any, layers: list[Any], budget: float, max_tokens: int, bytes_a_token: Callable[[], float], *, matmuls: bool
) -> tuple[list[Level], str]:
    """What each layer keeps, so that a bin of `max_tokens` holds at most `budget` bytes, and a sentence about it."""
    probed = layers[len(layers) // 2 :][:2]  # neighbours, since kinds alternate; the others are taken to be like them

    def of_bin(level: Level) -> float:
        for layer in layers:
            keep(layer, level if layer in probed else "full")
        held = bytes_a_token()
        plain(model)
        return held * max_tokens

    least = of_bin("full")
    if least > budget:
        raise TrainError(
            f"activation_checkpointing = {budget / GIB:g} (GiB): a bin of max_tokens = {max_tokens} needs "
            f"{least / GIB:.3g} GiB even if every layer is recomputed. Raise the one or lower the other."
        )
    cost: dict[Level, float] = {"full": 0.0, "none": (of_bin("none") - least) / len(probed)}
    if matmuls:
        cost["matmuls"] = (of_bin("matmuls") - least) / len(probed)
    levels = distribute(len(layers), budget - least, cost)
    held = least + sum(cost[level] for level in levels)
    counts = ", ".join(f"{levels.count(level)} {level}" for level in cost if level in levels)
    return levels, f"activations of a bin: {held / GIB:.3g} GiB of {budget / GIB:g}; recomputation of layers: {counts}"


def distribute(layers: int, room: float, cost: dict[Level, float]) -> list[Level]:
    """The cheapest recomputation that fits: `cost` are the bytes that a layer keeps more than with `full`."""
    everything, middle = cost["none"], cost.get("matmuls", 0.0)
    rest: Level = "full"
    if 0 < middle < everything:
        if layers * middle > room:
            return _some(layers, int(room / middle), "matmuls", "full")
        rest, room, everything = "matmuls", room - layers * middle, everything - middle
    return _some(layers, layers if everything <= 0 else int(room / everything), "none", rest)


def _some(layers: int, count: int, level: Level, rest: Level) -> list[Level]:
    return [level if i < count else rest for i in range(layers)]


def bytes_a_token(model: Any, autocast: Autocast, longest: int = 0) -> float:
    """Bytes of activations that one more token makes the model's layers hold until the backward pass."""
    return bytes_held(model, autocast, longest)[1]


def bytes_held(model: Any, autocast: Autocast, longest: int = 0) -> tuple[float, float]:
    """Bytes that the layers hold until the backward pass, however few the tokens are; and more for each token, in a
    sequence of `longest` tokens, or of a few."""
    training, layers = model.training, backbone(unwrap(model))
    vocabulary = model.get_input_embeddings().num_embeddings
    longest = max(longest, 2 * PROBE_TOKENS)
    tokens_1T = (torch.arange(longest, device=model.device) * 7 % vocabulary)[None]

    def forward(tokens: int) -> Tensor:
        with autocast():  # one for each call, since it keeps copies of the weights
            return layers(input_ids=tokens_1T[:, :tokens], use_cache=False)[0]

    model.train()
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        lengths = (PROBE_TOKENS, 2 * PROBE_TOKENS, longest)
        less, more, most = (held_bytes(partial(forward, tokens)) for tokens in lengths)
    model.train(training)
    fixed = 2 * less - more
    return fixed, (most - fixed) / longest


def held_bytes(forward: Callable[[], Tensor]) -> int:
    """Bytes of all tensors that were made by `forward` and are alive as long as its result is, the result included."""
    made: dict[int, tuple[StorageWeakRef, int]] = {}
    older: set[int] = set()  # storages that were there before: weights, of which views are made

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            older.update(storage._cdata for storage in _storages((args, kwargs)) if storage._cdata not in made)
            result = func(*args, **(kwargs or {}))
            for storage in _storages(result):
                if storage._cdata not in older:
                    made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
            return result

    with torch.enable_grad(), Watch():
        result = forward()
    held = sum(size for reference, size in made.values() if not reference.expired())
    del result
    return held


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor)]


def _matmul_operators() -> list[Any]:
    """The operators of MATMULS that are there; the ones of packages exist when these are imported."""
    found = []
    for name in MATMULS:
        namespace, operator = name.split("::")
        if hasattr(getattr(torch.ops, namespace), operator):
            found.append(getattr(getattr(torch.ops, namespace), operator).default)
    return found
