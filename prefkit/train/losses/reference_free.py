"""Losses without a reference model. Their rewards are ``beta`` times what they compare, since there is no log-ratio."""

import torch
from torch import Tensor

from prefkit.train.losses.common import (
    FlipRate,
    LogProbs,
    LossOutput,
    NotNegative,
    Positive,
    logistic,
    mean_logps,
    rewards,
)


def simpo(
    policy: LogProbs, *, beta: Positive = 2.0, gamma: NotNegative = 1.0, label_smoothing: FlipRate = 0.0
) -> LossOutput:
    """SimPO: no reference model, length-normalised rewards, a target margin gamma.

    ``-(1 - e) log sigmoid(m) - e log sigmoid(-m)`` with ``m = beta (log pi_c / L_c - log pi_r / L_r) - gamma``

    Meng et al. 2024 (arXiv:2405.14734, eq. 6). The reward is ``beta log pi / L``, the one that the loss optimises.
    The default ``gamma / beta`` of 0.5 is the authors' advice.
    """
    chosen_P, rejected_P = mean_logps(policy)
    losses_P = logistic(beta * (chosen_P - rejected_P) - gamma, label_smoothing)
    return LossOutput(losses_P, *rewards(beta, chosen_P, rejected_P))


def cpo(
    policy: LogProbs, *, beta: Positive = 0.1, label_smoothing: FlipRate = 0.0, alpha: NotNegative = 1.0
) -> LossOutput:
    """CPO: DPO with a uniform reference, and a term that keeps chosen answers likely.

    ``-(1 - e) log sigmoid(m) - e log sigmoid(-m) - alpha log pi_c / L_c`` with ``m = beta (log pi_c - log pi_r)``

    Xu et al. 2024 (arXiv:2401.08417, eq. 3 and 5); ``alpha`` is TRL's ``cpo_alpha``. The last term is a mean over the
    tokens of the pair's own chosen answer, as `sft_weight` adds it; TRL takes one over those of a micro-batch.
    """
    margin_P = beta * (policy.chosen_P - policy.rejected_P)
    losses_P = logistic(margin_P, label_smoothing) - alpha * policy.chosen_P / policy.chosen_length_P
    return LossOutput(losses_P, *rewards(beta, policy.chosen_P, policy.rejected_P))


def orpo(policy: LogProbs, *, beta: Positive = 0.1) -> LossOutput:
    """ORPO: supervised fine-tuning with a penalty on the odds ratio; needs no model that was fine-tuned before.

    ``-log pi_c / L_c - beta log sigmoid(log odds_c - log odds_r)`` with ``odds = p / (1 - p)``, ``log p = log pi / L``

    Hong et al. 2024 (arXiv:2403.07691, eq. 6 and 7), ``beta`` for the paper's lambda. The first term is over the
    tokens of the answer; TRL's is over those of the prompt as well, and a mean over a micro-batch.
    """
    chosen_P, rejected_P = mean_logps(policy)
    log_odds_ratio_P = _log_odds(chosen_P) - _log_odds(rejected_P)
    return LossOutput(beta * logistic(log_odds_ratio_P) - chosen_P, *rewards(beta, chosen_P, rejected_P))


def chosen_nll(undamped: LogProbs) -> LossOutput:
    """The chosen answer's negative log-likelihood, a mean over its tokens: the term that `sft_weight` adds.

    ``-log pi_c / L_c``

    Pang et al. 2024 (Iterative Reasoning Preference Optimization, arXiv:2404.19733): it keeps chosen answers likely.
    Every pair weighs the same, long or short, as it does in the loss that this is added to, and a pair's term depends
    neither on its neighbours nor on `ld_alpha`. TRL's ``sft`` is instead a mean over all chosen tokens of a device's
    micro-batch; the two agree when the chosen answers are equally long.
    """
    chosen_P, rejected_P = mean_logps(undamped)
    return LossOutput(-chosen_P, *rewards(1.0, chosen_P, rejected_P))


def _log_odds(logp_P: Tensor) -> Tensor:
    """``log(p / (1 - p))`` of a log-probability; of one that rounding made 0, the largest that the dtype tells from it.

    Short answers that a model is sure of come to exactly 0, where the odds are infinite and their gradient is NaN.
    """
    logp_P = logp_P.clamp(max=-torch.finfo(logp_P.dtype).eps)
    return logp_P - torch.log(-torch.expm1(logp_P))
