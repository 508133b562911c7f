"""What losses take and give, and the pieces that several of them share.

Symbols of all docstrings: for the chosen side, ``log pi`` is the summed log-probability of its completion tokens, ``L``
their number, ``c = log pi - log pi_ref`` the log-ratio; ``r`` is the same for the rejected side, and ``d = c - r``.

Shape suffixes: P pairs, N values of a loss that looks at the whole step.
"""

from dataclasses import dataclass
from math import inf
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import Tensor

Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
FlipRate = Annotated[float, Ge(0), Lt(0.5)]

# A number is the alpha of an alpha-divergence: 1 is the reverse, 0 the forward KL divergence.
FDivergence = Literal["reverse_kl", "forward_kl", "js_divergence"] | Annotated[float, Gt(-inf), Lt(inf)]
LARGEST_EXPONENT = 80.0  # exp of it is still a float32


@dataclass(frozen=True)
class LogProbs:
    """What one model says of P pairs: summed log-probabilities of the completions, and their lengths in tokens."""

    chosen_P: Tensor
    rejected_P: Tensor
    chosen_length_P: Tensor
    rejected_length_P: Tensor


class LossOutput(NamedTuple):
    """One loss a pair, a function of that pair alone. Losses carry gradient; rewards are detached."""

    losses_P: Tensor
    chosen_rewards_P: Tensor
    rejected_rewards_P: Tensor


class StepOutput(NamedTuple):
    """The losses of a step, N of them, whose mean is optimised; each may depend on all pairs.

    A loss with a `state` parameter gets there what it returned as `state` at the step before, None at first.
    """

    losses_N: Tensor
    chosen_rewards_P: Tensor
    rejected_rewards_P: Tensor
    state: Tensor | None = None


def log_ratios(policy: LogProbs, reference: LogProbs) -> tuple[Tensor, Tensor]:
    """``c`` and ``r`` of each pair."""
    return policy.chosen_P - reference.chosen_P, policy.rejected_P - reference.rejected_P


def mean_logps(policy: LogProbs) -> tuple[Tensor, Tensor]:
    """``log pi / L`` of both sides of each pair."""
    return policy.chosen_P / policy.chosen_length_P, policy.rejected_P / policy.rejected_length_P


def rewards(beta: float, chosen_P: Tensor, rejected_P: Tensor) -> tuple[Tensor, Tensor]:
    """What is logged: ``beta`` times both sides, detached."""
    return beta * chosen_P.detach(), beta * rejected_P.detach()


def logistic(logits_P: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """``-(1 - e) log sigmoid(logits) - e log sigmoid(-logits)``, with ``e = label_smoothing``."""
    return -(1 - label_smoothing) * F.logsigmoid(logits_P) - label_smoothing * F.logsigmoid(-logits_P)


def f_scores(log_ratio_P: Tensor, divergence: FDivergence) -> Tensor:
    """``f'(t)`` of the probability ratio ``t = exp(log_ratio)``: what takes the place of ``log t`` in f-DPO.

    With a penalty on another f-divergence than the reverse KL, the reward of an answer is ``beta f'(t)`` (Wang et al.
    2023, arXiv:2309.16240, theorem 1), up to a term that only cancels between two answers of one prompt:

    - reverse_kl ``log t``
    - forward_kl ``1 - 1/t``
    - js_divergence ``log 2t - log(1 + t)``
    - a number alpha ``(t^(alpha - 1) - 1) / (alpha - 1)``, which is reverse_kl in the limit 1 and forward_kl at 0

    (Factors and signs are those of TRL.) Exponents are cut at 80, so that float32 cannot overflow.
    """
    if divergence == "reverse_kl" or divergence == 1.0:
        return log_ratio_P
    if divergence == "js_divergence":
        return F.logsigmoid(log_ratio_P) + torch.log(log_ratio_P.new_tensor(2.0))
    power = (0.0 if isinstance(divergence, str) else divergence) - 1
    return torch.expm1((power * log_ratio_P).clamp(max=LARGEST_EXPONENT)) / power


def f_log_ratios(policy: LogProbs, reference: LogProbs, divergence: FDivergence) -> tuple[Tensor, Tensor]:
    """``c`` and ``r`` of each pair under an f-divergence: what losses of a difference ``c - r`` are made of."""
    chosen_P, rejected_P = log_ratios(policy, reference)
    return f_scores(chosen_P, divergence), f_scores(rejected_P, divergence)
