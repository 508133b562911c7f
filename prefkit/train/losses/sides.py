"""Losses that judge each side of a pair by itself, so that chosen answers also get likelier, and not only likelier
than the rejected ones."""

import torch.nn.functional as F

from prefkit.train.losses.common import LogProbs, LossOutput, Positive, log_ratios, rewards


def nca_pair(policy: LogProbs, reference: LogProbs, *, beta: Positive = 0.1) -> LossOutput:
    """NCA for pairs: noise contrastive alignment of each answer against the reference.

    ``-log sigmoid(beta c) - 1/2 log sigmoid(-beta c) - 1/2 log sigmoid(-beta r)``

    Chen et al. 2024 (arXiv:2402.05369, table 1): it holds up the likelihood of chosen answers.
    """
    chosen_P, rejected_P = log_ratios(policy, reference)
    losses_P = -F.logsigmoid(beta * chosen_P) - 0.5 * F.logsigmoid(-beta * chosen_P)
    losses_P = losses_P - 0.5 * F.logsigmoid(-beta * rejected_P)
    return LossOutput(losses_P, *rewards(beta, chosen_P, rejected_P))


def sppo_hard(policy: LogProbs, reference: LogProbs, *, beta: Positive = 1e-3) -> LossOutput:
    """SPPO with hard labels: regress both log-ratios to the equilibrium of a game of two players.

    ``(c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2``

    Wu et al. 2024 (arXiv:2405.00675, eq. 4.7, with a probability of winning of 1 and 0), ``beta`` for ``1 / eta``; the
    paper's ``eta`` of 1000 is the default.
    """
    chosen_P, rejected_P = log_ratios(policy, reference)
    losses_P = (chosen_P - 0.5 / beta).square() + (rejected_P + 0.5 / beta).square()
    return LossOutput(losses_P, *rewards(beta, chosen_P, rejected_P))


def apo_zero(policy: LogProbs, reference: LogProbs, *, beta: Positive = 0.1) -> LossOutput:
    """APO-zero: chosen answers get likelier, rejected ones less likely; for answers better than the model's own.

    ``1 - sigmoid(beta c) + sigmoid(beta r)``

    D'Oosterlinck et al. 2024 (arXiv:2408.06266, eq. 7).
    """
    chosen_P, rejected_P = log_ratios(policy, reference)
    losses_P = (-beta * chosen_P).sigmoid() + (beta * rejected_P).sigmoid()
    return LossOutput(losses_P, *rewards(beta, chosen_P, rejected_P))


def apo_down(policy: LogProbs, reference: LogProbs, *, beta: Positive = 0.1) -> LossOutput:
    """APO-down: both get less likely, rejected ones more so; for answers worse than the model's own.

    ``sigmoid(beta c) + 1 - sigmoid(beta d)``

    D'Oosterlinck et al. 2024 (arXiv:2408.06266, eq. 8).
    """
    chosen_P, rejected_P = log_ratios(policy, reference)
    losses_P = (beta * chosen_P).sigmoid() + (-beta * (chosen_P - rejected_P)).sigmoid()
    return LossOutput(losses_P, *rewards(beta, chosen_P, rejected_P))
