"""The load balance of mixtures of experts: the auxiliary loss that a model's configuration asks for.

With E experts of which each token takes k, f_e the share of (token, layer) pairs that went to expert e, counted once
for each of the k, and P_e the mean of the router's probability for it (Fedus et al. 2021, arXiv:2101.03961, eq. 4-6):

    router loss = E sum_e f_e P_e        1 x k where all experts are used alike

as transformers adds it to a model's own loss, times `router_aux_loss_coef`, where the configuration says
`output_router_logits = true`. Real tokens count, each token of a tree once; padding does not.

f and P are those of a bin, and a bin counts by its share of the step's tokens. A mean over bins of products of means is
not the product over the step: with this loss, unlike any other, `max_tokens` changes the result a little, as the size
of a batch does in any other trainer.

The loss does not pass through the preference loss: it hangs on the hidden states that the head sees, whose backward
pass sends its gradient along, once a bin.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prefkit.errors import TrainError


def weight(causal_lm: Any) -> float:
    """How much the router loss counts in the model's own loss; 0 if its configuration does not ask for it."""
    config = causal_lm.config.get_text_config()
    asked = getattr(config, "output_router_logits", False)
    return float(getattr(config, "router_aux_loss_coef", 0.0) or 0.0) if asked else 0.0


def load_balance(causal_lm: Any, router_logits: tuple[Tensor, ...], real_T: Tensor | None = None) -> Tensor:
    """The router loss of some tokens, by the logits [T, E] of each layer; `real_T` is False for padding."""
    top_k = causal_lm.config.get_text_config().num_experts_per_tok
    experts, rows = router_logits[0].shape[-1], 0
    taken_E = sums_E = router_logits[0].new_zeros(experts, dtype=torch.float32)
    for logits_TE in router_logits:
        probabilities_TE = (logits_TE if real_T is None else logits_TE[real_T]).float().softmax(-1)
        choices = probabilities_TE.topk(top_k, dim=-1).indices.flatten()
        taken_E = taken_E.scatter_add(0, choices, torch.ones_like(choices, dtype=torch.float32))
        sums_E = sums_E + probabilities_TE.sum(0)
        rows += len(probabilities_TE)
    return experts * (taken_E / rows * sums_E / rows).sum()


@torch.no_grad()
def check(causal_lm: Any) -> None:
    """TrainError unless the model's own router loss, if it is asked for, is the one computed here."""
    if not weight(causal_lm):
        return
    tokens_1T = torch.arange(1, 9, device=causal_lm.device)[None]
    own = causal_lm(input_ids=tokens_1T, output_router_logits=True, use_cache=False)
    found = load_balance(causal_lm, own.router_logits)
    if not torch.allclose(found, own.aux_loss.float(), rtol=1e-3, atol=1e-5):
        raise TrainError(
            f"{type(causal_lm).__name__} has a router loss that prefkit does not know: its own is "
            f"{float(own.aux_loss):.4g}, not {float(found):.4g}. Set output_router_logits to false in its "
            "config.json to train without one."
        )


class _Attach(torch.autograd.Function):
    """Gives back `values`; in the backward pass `loss` gets the gradient 1, whatever that of `values` is."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, loss: Tensor) -> Tensor:
        ctx.of_loss = torch.ones_like(loss)
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, ctx.of_loss


def hidden_states(causal_lm: Any, outputs: Any, share: float, losses: list[Tensor], real_T: Tensor | None) -> Tensor:
    """The last hidden states, on which the router loss of these tokens hangs, as `share` of the step's.

    What it adds to the step's router loss is put into `losses`.
    """
    loss = share * load_balance(causal_lm, outputs.router_logits, real_T)
    losses.append(loss.detach())
    return _Attach.apply(outputs.last_hidden_state, weight(causal_lm) * loss)
