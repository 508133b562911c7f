"""Preference losses, one pure function each.

A loss maps the policy's log-probabilities of P pairs, and the reference's, to one value a pair. A function without
a ``reference`` parameter needs no reference model, and none is run for it. Keyword-only parameters are the options
of a pipeline file. Nothing here averages: the trainer divides by the number of pairs of the step, so the gradient
is the same however the step is cut into bins. A loss whose value for one pair depends on
the others (a sort, a running mean) is refused.

Symbols: for the chosen side, ``log pi`` is the summed log-probability of its completion tokens, ``L`` their number,
``c = log pi - log pi_ref`` the log-ratio; ``r`` is the same for the rejected side, and ``d = c - r``.

Rewards are what is logged, not optimised: ``beta * c`` and ``beta * r`` for every loss with a reference, the implicit
reward of DPO, in which form TRL logs them too, so that curves of different losses and trainers can be compared.

Shape suffix: P pairs.
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch.nn.functional as F
from annotated_types import Ge, Gt, Lt
from torch import Tensor

Positive = Annotated[float, Gt(0)]
FlipRate = Annotated[float, Ge(0), Lt(0.5)]


@dataclass(frozen=True)
class LogProbs:
    """What one model says of P pairs: summed log-probabilities of the completions, and their lengths in tokens."""

    chosen_P: Tensor
    rejected_P: Tensor
    chosen_length_P: Tensor
    rejected_length_P: Tensor


class LossOutput(NamedTuple):
    """Losses carry gradient; rewards are detached."""

    losses_P: Tensor
    chosen_rewards_P: Tensor
    rejected_rewards_P: Tensor


def sigmoid(
    policy: LogProbs, reference: LogProbs, *, beta: Positive = 0.1, label_smoothing: FlipRate = 0.0
) -> LossOutput:
    """DPO: logistic regression on the margin of the log-ratios.

    ``-(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d)``, with ``e = label_smoothing``.

    ``e = 0`` is DPO (Rafailov et al. 2023, arXiv:2305.18290, eq. 7); ``e > 0`` is conservative DPO (Mitchell 2023),
    which takes a label to be flipped with probability ``e`` and so stops pushing once ``sigmoid(beta d) = 1 - e``.
    """
    chosen_P, rejected_P = _log_ratios(policy, reference)
    return LossOutput(_logistic(beta * (chosen_P - rejected_P), label_smoothing), *_rewards(beta, chosen_P, rejected_P))


def sigmoid_norm(
    policy: LogProbs, reference: LogProbs, *, beta: Positive = 5.0, label_smoothing: FlipRate = 0.0
) -> LossOutput:
    """Length-normalised DPO: log-ratios are averaged over the completion's tokens.

    ``-(1 - e) log sigmoid(beta (c / L_c - r / L_r)) - e log sigmoid(-beta (c / L_c - r / L_r))``

    Lambert et al. 2024 (Tulu 3, arXiv:2411.15124), whose ``beta`` of 5 is the default: per-token log-ratios
    are some hundred times smaller than sums, and ``beta`` is larger in turn.
    """
    chosen_P, rejected_P = _log_ratios(policy, reference)
    margin_P = chosen_P / policy.chosen_length_P - rejected_P / policy.rejected_length_P
    return LossOutput(_logistic(beta * margin_P, label_smoothing), *_rewards(beta, chosen_P, rejected_P))


def ipo(policy: LogProbs, reference: LogProbs, *, beta: Positive = 0.1) -> LossOutput:
    """IPO: regress the margin to a finite target instead of pushing it without bound.

    ``(c / L_c - r / L_r - 1 / (2 beta))^2``

    Azar et al. 2023 (arXiv:2310.12036, eq. 17), with ``beta`` for the paper's tau. Log-ratios are averaged over
    tokens, as the authors' own experiments did and TRL does; with sums the target would mean less for longer answers.
    """
    chosen_P, rejected_P = _log_ratios(policy, reference)
    margin_P = chosen_P / policy.chosen_length_P - rejected_P / policy.rejected_length_P
    return LossOutput((margin_P - 1 / (2 * beta)).square(), *_rewards(beta, chosen_P, rejected_P))


def hinge(policy: LogProbs, reference: LogProbs, *, beta: Positive = 0.1) -> LossOutput:
    """Hinge on the DPO margin: no gradient once a pair is separated by 1.

    ``max(0, 1 - beta d)``

    Liu et al. 2023 (RSO, arXiv:2309.06657), the hinge of SLiC on normalised likelihoods; the paper's gamma is
    ``beta``.
    """
    chosen_P, rejected_P = _log_ratios(policy, reference)
    return LossOutput((1 - beta * (chosen_P - rejected_P)).relu(), *_rewards(beta, chosen_P, rejected_P))


def simpo(
    policy: LogProbs, *, beta: Positive = 2.0, gamma: Annotated[float, Ge(0)] = 1.0, label_smoothing: FlipRate = 0.0
) -> LossOutput:
    """SimPO: no reference model, length-normalised rewards, a target margin gamma.

    ``-(1 - e) log sigmoid(m) - e log sigmoid(-m)`` with ``m = beta (log pi_c / L_c - log pi_r / L_r) - gamma``

    Meng et al. 2024 (arXiv:2405.14734, eq. 6). The reward is ``beta log pi / L``, the one that the loss optimises:
    there is no reference to take a log-ratio against. The default ``gamma / beta`` of 0.5 is the authors' advice.
    """
    chosen_P = policy.chosen_P / policy.chosen_length_P
    rejected_P = policy.rejected_P / policy.rejected_length_P
    losses_P = _logistic(beta * (chosen_P - rejected_P) - gamma, label_smoothing)
    return LossOutput(losses_P, *_rewards(beta, chosen_P, rejected_P))


def _log_ratios(policy: LogProbs, reference: LogProbs) -> tuple[Tensor, Tensor]:
    return policy.chosen_P - reference.chosen_P, policy.rejected_P - reference.rejected_P


def _rewards(beta: float, chosen_P: Tensor, rejected_P: Tensor) -> tuple[Tensor, Tensor]:
    return beta * chosen_P.detach(), beta * rejected_P.detach()


def _logistic(logits_P: Tensor, label_smoothing: float) -> Tensor:
    return -(1 - label_smoothing) * F.logsigmoid(logits_P) - label_smoothing * F.logsigmoid(-logits_P)
