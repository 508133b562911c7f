"""Tree attention on CUDA: one variable-length flash call a layer, over all segments of a bin.

The kernel takes queries and keys as two packed rows, cut at offsets of their own, with a causal mask that is aligned
bottom-right in each piece: exactly what a segment needs, whose queries are the last of its path. Queries stay as the
bin has them; keys and values are gathered along each path by one index, which is made once a bin and serves all layers.
Grouped heads and sliding windows are the kernel's own arguments.

Cost beside the kernel: ``sum(depths)`` more rows of keys and values, read and written once forward; in the backward
pass their gradients are added up where they came from, atomically, so that two runs may differ in the last bit. With no
call a segment, launch overhead does not grow with the number of completions.

The kernel is torch's `varlen_attn`, else flash-attn's `flash_attn_varlen_func`. Both compute in 16 bits, without
dropout, soft caps or sinks, and for head widths that are multiples of 8 up to 256; `attend` is asked only for those.

Shape suffixes: T tokens, M keys of all paths, S segments, H heads, D width of a head.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from prefkit.train.pack import Segments, paths

DTYPES = (torch.bfloat16, torch.float16)
WIDEST_HEAD = 256
OLDEST_DEVICE = (8, 0)  # compute capability


@dataclass(frozen=True)
class Layout:
    """Where the kernel finds queries and keys of each segment, on the device."""

    key_index_M: Tensor | None  # the token of each key; None if every token is a key once, in order
    query_offsets: Tensor  # int32 [S + 1]
    key_offsets: Tensor  # int32 [S + 1]
    most_queries: int
    most_keys: int


Kernel = Callable[[Tensor, Tensor, Tensor, Layout, float, int | None], Tensor]


def layout_of(segments: Segments, device: torch.device) -> Layout:
    """The layout of a bin's segments, made by the first layer that asks."""
    found = segments.layouts.get(device)
    if found is None:
        found = segments.layouts[device] = _make_layout(segments, device)
    return found


def _make_layout(segments: Segments, device: torch.device) -> Layout:
    lengths, depths = segments.lengths, segments.depths
    keys = [length + depth for length, depth in zip(lengths, depths, strict=True)]
    starts = list(itertools.accumulate(lengths[:-1], initial=0))

    def on_device(array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        # Pinned memory is copied without waiting for what the device still computes.
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    def offsets(counts: list[int]) -> Tensor:
        return on_device(np.cumsum([0, *counts], dtype=np.int32))

    index_M = np.concatenate(paths(starts, depths, sum(lengths))).astype(np.int64) if any(depths) else None
    return Layout(
        key_index_M=None if index_M is None else on_device(index_M),
        query_offsets=offsets(lengths),
        key_offsets=offsets(keys),
        most_queries=max(lengths),
        most_keys=max(keys),
    )


def fits(query_BHTD: Tensor, dropout: float) -> bool:
    """Whether the kernel can compute these queries."""
    rows, width = query_BHTD.shape[0], query_BHTD.shape[-1]
    return query_BHTD.dtype in DTYPES and rows == 1 and width % 8 == 0 and width <= WIDEST_HEAD and not dropout


def attend(
    query_1HTD: Tensor, key_1HTD: Tensor, value_1HTD: Tensor, segments: Segments, scale: float, window: int | None
) -> Tensor:
    """Attention of each segment to its path: [1, T, H, D]."""
    layout = layout_of(segments, query_1HTD.device)
    query_THD, key_THD, value_THD = (states[0].transpose(0, 1) for states in (query_1HTD, key_1HTD, value_1HTD))
    if layout.key_index_M is not None:
        key_THD = key_THD.index_select(0, layout.key_index_M)
        value_THD = value_THD.index_select(0, layout.key_index_M)
    kernel = find_kernel()
    assert kernel is not None, "`missing` was asked before"
    return kernel(query_THD, key_THD, value_THD, layout, scale, window)[None]


def missing(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why there is no kernel for this device and dtype, as a phrase for the user; None if there is one."""
    if device.type != "cuda":
        return f"it needs a CUDA device, and this is {device.type}"
    if torch.cuda.get_device_capability(device) < OLDEST_DEVICE:
        return f"it needs compute capability 8.0, which {torch.cuda.get_device_name(device)} has not"
    if dtype not in DTYPES:
        return 'it computes in 16 bits, so it needs dtype = "bfloat16"'
    return None if find_kernel() else "neither this torch has varlen_attn, nor is flash-attn installed"


@functools.cache
def find_kernel() -> Kernel | None:
    """torch's kernel, or flash-attn's, or None."""
    if find_spec("torch.nn.attention.varlen"):
        from torch.nn.attention.varlen import varlen_attn

        if {"enable_gqa", "window_size"} <= inspect.signature(varlen_attn).parameters.keys():  # torch >= 2.11
            return by_torch
    return by_flash_attn if find_spec("flash_attn") else None


def by_torch(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, window: int | None) -> Tensor:
    from torch.nn.attention import varlen

    output = varlen.varlen_attn(
        query,
        key,
        value,
        layout.query_offsets,
        layout.key_offsets,
        layout.most_queries,
        layout.most_keys,
        scale=scale,
        window_size=(_keys_before(window), 0),
        enable_gqa=True,
    )
    assert isinstance(output, Tensor), "nothing beside it was asked for"
    return output


def by_flash_attn(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, window: int | None
) -> Tensor:
    import flash_attn

    return flash_attn.flash_attn_varlen_func(
        query,
        key,
        value,
        layout.query_offsets,
        layout.key_offsets,
        layout.most_queries,
        layout.most_keys,
        softmax_scale=scale,
        causal=True,
        window_size=(_keys_before(window), 0),
    )


def _keys_before(window: int | None) -> int:
    """Both kernels count a window without the query's own position; -1 is no window."""
    return -1 if window is None else window - 1
