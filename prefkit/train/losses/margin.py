"""Losses of the margin ``d = c - r``: logistic ones, and others that only the difference of the log-ratios enters.

All but `odpo` take `f_divergence`: the term that an f-divergence leaves open cancels in the difference. Then ``c`` and
``r`` stand for ``f'(t)`` of both sides (`common.f_scores`); the rewards that are logged stay ``beta`` times log-ratios.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt, Lt
from torch import Tensor

from prefkit.train.losses.common import (
    FDivergence,
    FlipRate,
    LogProbs,
    LossOutput,
    NotNegative,
    Positive,
    f_log_ratios,
    log_ratios,
    logistic,
    rewards,
)


def sigmoid(
    policy: LogProbs,
    reference: LogProbs,
    *,
    beta: Positive = 0.1,
    label_smoothing: FlipRate = 0.0,
    f_divergence: FDivergence = "reverse_kl",
) -> LossOutput:
    """DPO: logistic regression on the margin of the log-ratios.

    ``-(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d)``, with ``e = label_smoothing``.

    ``e = 0`` is DPO (Rafailov et al. 2023, arXiv:2305.18290, eq. 7); ``e > 0`` is conservative DPO (Mitchell 2023),
    which takes a label to be flipped with probability ``e`` and so stops pushing once ``sigmoid(beta d) = 1 - e``.
    """
    chosen_P, rejected_P = f_log_ratios(policy, reference, f_divergence)
    losses_P = logistic(beta * (chosen_P - rejected_P), label_smoothing)
    return LossOutput(losses_P, *rewards(beta, *log_ratios(policy, reference)))


def sigmoid_norm(
    policy: LogProbs,
    reference: LogProbs,
    *,
    beta: Positive = 5.0,
    label_smoothing: FlipRate = 0.0,
    f_divergence: FDivergence = "reverse_kl",
) -> LossOutput:
    """Length-normalised DPO: log-ratios are averaged over the completion's tokens.

    ``-(1 - e) log sigmoid(beta (c / L_c - r / L_r)) - e log sigmoid(-beta (c / L_c - r / L_r))``

    Lambert et al. 2024 (Tulu 3, arXiv:2411.15124), whose ``beta`` of 5 is the default: per-token log-ratios
    are some hundred times smaller than sums, and ``beta`` is larger in turn.
    """
    margin_P = _mean_margin(policy, *f_log_ratios(policy, reference, f_divergence))
    losses_P = logistic(beta * margin_P, label_smoothing)
    return LossOutput(losses_P, *rewards(beta, *log_ratios(policy, reference)))


def robust(
    policy: LogProbs,
    reference: LogProbs,
    *,
    beta: Positive = 0.1,
    label_smoothing: FlipRate = 0.1,
    f_divergence: FDivergence = "reverse_kl",
) -> LossOutput:
    """Robust DPO: an unbiased estimate of the loss that clean labels would give, if a share of them is flipped.

    ``(-(1 - e) log sigmoid(beta d) + e log sigmoid(-beta d)) / (1 - 2 e)``, with ``e = label_smoothing``

    Chowdhury et al. 2024 (arXiv:2403.00409, eq. 12). Unlike cDPO it goes on pushing; a loss may be negative.
    """
    chosen_P, rejected_P = f_log_ratios(policy, reference, f_divergence)
    clean_P, flipped_P = (logistic(sign * beta * (chosen_P - rejected_P)) for sign in (1, -1))
    losses_P = ((1 - label_smoothing) * clean_P - label_smoothing * flipped_P) / (1 - 2 * label_smoothing)
    return LossOutput(losses_P, *rewards(beta, *log_ratios(policy, reference)))


def exo_pair(
    policy: LogProbs,
    reference: LogProbs,
    *,
    beta: Positive = 0.1,
    label_smoothing: Annotated[float, Gt(0), Lt(0.5)] = 1e-3,
    f_divergence: FDivergence = "reverse_kl",
) -> LossOutput:
    """EXO for pairs: the reverse KL divergence between the policy's preference and the smoothed label.

    ``q log(q / (1 - e)) + (1 - q) log((1 - q) / e)``, with ``q = sigmoid(beta d)`` and ``e = label_smoothing``

    Ji et al. 2024 (arXiv:2402.00856, eq. 16), whose ``e`` of 1e-3 is the default; 0 would make it infinite.
    """
    chosen_P, rejected_P = f_log_ratios(policy, reference, f_divergence)
    logits_P = beta * (chosen_P - rejected_P)
    smoothing = logits_P.new_tensor(label_smoothing)
    losses_P = logits_P.sigmoid() * (F.logsigmoid(logits_P) - torch.log1p(-smoothing))
    losses_P = losses_P + (-logits_P).sigmoid() * (F.logsigmoid(-logits_P) - smoothing.log())
    return LossOutput(losses_P, *rewards(beta, *log_ratios(policy, reference)))


def discopop(
    policy: LogProbs,
    reference: LogProbs,
    *,
    beta: Positive = 0.05,
    tau: Positive = 0.05,
    f_divergence: FDivergence = "reverse_kl",
) -> LossOutput:
    """DiscoPOP: the log-ratio modulated loss, a blend of the logistic and the exponential one that was found by search.

    ``-(1 - m) log sigmoid(beta d) + m exp(-beta d)``, with ``m = sigmoid(beta d / tau)``

    Lu et al. 2024 (arXiv:2406.08414, eq. 5), with their ``beta`` and ``tau``. It is not convex: where training begins,
    at d = 0, it falls towards the rejected answer if ``tau < (1 - log 2) / 3``, as theirs is, and towards the chosen
    one only beyond a hill, for these values at ``beta d = 0.07``.
    """
    chosen_P, rejected_P = f_log_ratios(policy, reference, f_divergence)
    logits_P = beta * (chosen_P - rejected_P)
    # m exp(-x) in one exponent: apart, they overflow to 0 times infinity for a large negative x.
    exponential_P = (F.logsigmoid(logits_P / tau) - logits_P).exp()
    losses_P = -(-logits_P / tau).sigmoid() * F.logsigmoid(logits_P) + exponential_P
    return LossOutput(losses_P, *rewards(beta, *log_ratios(policy, reference)))


def ipo(
    policy: LogProbs, reference: LogProbs, *, beta: Positive = 0.1, f_divergence: FDivergence = "reverse_kl"
) -> LossOutput:
    """IPO: regress the margin to a finite target instead of pushing it without bound.

    ``(c / L_c - r / L_r - 1 / (2 beta))^2``

    Azar et al. 2023 (arXiv:2310.12036, eq. 17), with ``beta`` for the paper's tau. Log-ratios are averaged over
    tokens, as the authors' own experiments did and TRL does; with sums the target would mean less for longer answers.
    """
    margin_P = _mean_margin(policy, *f_log_ratios(policy, reference, f_divergence))
    return LossOutput((margin_P - 1 / (2 * beta)).square(), *rewards(beta, *log_ratios(policy, reference)))


def hinge(
    policy: LogProbs, reference: LogProbs, *, beta: Positive = 0.1, f_divergence: FDivergence = "reverse_kl"
) -> LossOutput:
    """Hinge on the DPO margin: no gradient once a pair is separated by 1.

    ``max(0, 1 - beta d)``

    Liu et al. 2023 (RSO, arXiv:2309.06657), the hinge of SLiC on normalised likelihoods; the paper's gamma is
    ``beta``.
    """
    chosen_P, rejected_P = f_log_ratios(policy, reference, f_divergence)
    return LossOutput((1 - beta * (chosen_P - rejected_P)).relu(), *rewards(beta, *log_ratios(policy, reference)))


def odpo(
    policy: LogProbs, reference: LogProbs, margins_P: Tensor, *, beta: Positive = 0.1, alpha: NotNegative = 1.0
) -> LossOutput:
    """ODPO: DPO with an offset, so that the better an answer was rated, the further it is pushed ahead.

    ``-log sigmoid(beta d - alpha log(score_c - score_r))``

    Amini et al. 2024 (arXiv:2402.10571, eq. 8) with their logarithmic scaling and their ``alpha`` of 1. ``margins_P``
    are differences of the data set's scores, all above 0; a margin below 1 gives a negative offset.
    """
    chosen_P, rejected_P = log_ratios(policy, reference)
    losses_P = logistic(beta * (chosen_P - rejected_P) - alpha * margins_P.log())
    return LossOutput(losses_P, *rewards(beta, chosen_P, rejected_P))


def _mean_margin(policy: LogProbs, chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    return chosen_P / policy.chosen_length_P - rejected_P / policy.rejected_length_P
