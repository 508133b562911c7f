"""Mixtures of experts whose tensors have no values: how many of their parameters a token uses, and what it computes.

A router sends each token to k of E experts, whose weights transformers holds in one tensor of E matrices and multiplies
by a grouped product, for which tensors without storage do not know which rows are whose. For what is measured it does
not matter: here each token goes k times through the first expert. Shapes, FLOPs and what stays alive for the backward
pass are those of `grouped_mm_experts_forward` of transformers.

Models whose experts are modules of their own, looped over by hand, are not found here, and cannot be measured.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

MARKS = ("num_experts", "has_gate", "has_bias", "is_transposed")  # of what transformers.use_experts_implementation made


def of(model: Any) -> list[Any]:
    """The modules that hold the experts of each layer."""
    return [module for module in model.modules() if all(hasattr(module, mark) for mark in MARKS)]


def let_measure(model: Any) -> None:
    """Let the experts of a model that has no values compute as described above, for good."""
    for module in of(model):
        module.forward = partial(through_first, module)


def parameters_active(model: Any) -> int:
    """The parameters that a token uses, as `let_measure` has seen it sent to experts: all but the other experts'."""
    idle = sum(
        p.numel() // experts.num_experts * (experts.num_experts - experts.chosen)
        for experts in of(model)
        for p in experts.parameters()
        if len(p) == experts.num_experts
    )
    return sum(p.numel() for p in model.parameters()) - idle


def through_first(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """The sum of k weighted results for each token, [tokens, width]."""
    experts.chosen = chosen = top_k_index.shape[-1]
    ids, order = top_k_index.flatten().sort()

    def product(rows: Tensor, name: str) -> Tensor:
        weight = getattr(experts, name)[0]
        with torch.autocast(rows.device.type, enabled=False):  # which the grouped product does not know
            result = rows.to(weight.dtype) @ (weight if experts.is_transposed else weight.T)
        return result.add_(getattr(experts, f"{name}_bias")[ids]) if experts.has_bias else result

    rows = hidden_states[order // chosen]
    if experts.has_gate:
        rows = experts._apply_gate(product(rows, "gate_up_proj"))
    else:
        rows = experts.act_fn(product(rows, "up_proj"))
    rows = product(rows, "down_proj")
    if getattr(experts, "has_post_expert_norm", False):
        rows = experts.post_expert_norm(rows)
    rows = rows * top_k_weights.flatten()[order, None]
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return rows[back].view(len(hidden_states), chosen, -1).sum(1).to(hidden_states.dtype)
