"""Losses that look at all pairs of a step at once: to sort them, to keep a mean, to rank the answers of a prompt."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from prefkit.train.losses.common import (
    FlipRate,
    LogProbs,
    NotNegative,
    Positive,
    StepOutput,
    log_ratios,
    logistic,
    rewards,
)


def aot(policy: LogProbs, reference: LogProbs, *, beta: Positive = 0.1, label_smoothing: FlipRate = 0.0) -> StepOutput:
    """AOT: the policy's margins shall be larger than the reference's as distributions, not pair by pair.

    ``-(1 - e) log sigmoid(beta m_i) - e log sigmoid(-beta m_i)`` with ``m_i`` the i-th smallest ``log pi_c - log pi_r``
    of the policy minus the i-th smallest of the reference

    Melnyk et al. 2024 (arXiv:2406.05882, eq. 6 and 8): first order stochastic dominance, by optimal transport in one
    dimension, which is sorting.
    """
    of_policy_P, of_reference_P = ((side.chosen_P - side.rejected_P).sort().values for side in (policy, reference))
    losses_P = logistic(beta * (of_policy_P - of_reference_P), label_smoothing)
    return StepOutput(losses_P, *rewards(beta, *log_ratios(policy, reference)))


def aot_unpaired(
    policy: LogProbs, reference: LogProbs, *, beta: Positive = 0.1, label_smoothing: FlipRate = 0.0
) -> StepOutput:
    """AOT without pairs: the chosen answers' log-ratios shall be larger than the rejected ones' as distributions.

    ``-(1 - e) log sigmoid(beta m_i) - e log sigmoid(-beta m_i)`` with ``m_i`` the i-th smallest ``c`` minus the i-th
    smallest ``r``

    Melnyk et al. 2024 (arXiv:2406.05882, eq. 5 and 7).
    """
    chosen_P, rejected_P = log_ratios(policy, reference)
    losses_P = logistic(beta * (chosen_P.sort().values - rejected_P.sort().values), label_smoothing)
    return StepOutput(losses_P, *rewards(beta, chosen_P, rejected_P))


def bco(policy: LogProbs, reference: LogProbs, state: Tensor | None, *, beta: Positive = 0.1) -> StepOutput:
    """BCO: a classifier of single answers, good from bad, whose threshold is the running mean of the rewards.

    ``-log sigmoid(beta c - delta)`` of a good answer, ``-log sigmoid(-(beta r - delta))`` of a bad one

    Jung et al. 2024 (arXiv:2404.04656, eq. 10 and 11), in the form of TRL's BCO trainer (until 1.13), but without its
    weights by density ratio. ``delta`` is the mean reward of all answers of all steps, this step's included. ``state``
    is that mean and the number of answers in it.
    """
    chosen_P, rejected_P = log_ratios(policy, reference)
    kept, delta = running_mean(state, beta * torch.cat([chosen_P, rejected_P]))
    losses_N = torch.cat([logistic(beta * chosen_P - delta), logistic(delta - beta * rejected_P)])
    return StepOutput(losses_N, *rewards(beta, chosen_P, rejected_P), kept)


def bco_pair(policy: LogProbs, reference: LogProbs, state: Tensor | None, *, beta: Positive = 0.1) -> StepOutput:
    """BCO for pairs: both answers of a pair judged as `bco` does, and the two losses added.

    ``-log sigmoid(beta c - delta) - log sigmoid(-(beta r - delta))``

    Jung et al. 2024 (arXiv:2404.04656, eq. 10 and 11); twice the mean of `bco`. The ``bco_pair`` of TRL's DPO trainer
    is this without a ``delta``.
    """
    chosen_P, rejected_P = log_ratios(policy, reference)
    kept, delta = running_mean(state, beta * torch.cat([chosen_P, rejected_P]))
    losses_P = logistic(beta * chosen_P - delta) + logistic(delta - beta * rejected_P)
    return StepOutput(losses_P, *rewards(beta, chosen_P, rejected_P), kept)


def running_mean(state: Tensor | None, rewards_N: Tensor) -> tuple[Tensor, float]:
    """The mean of all rewards so far with those of a step: with their number, as the next state, and by itself."""
    mean, seen = torch.zeros(2, dtype=torch.float64) if state is None else state
    now = seen + len(rewards_N)
    mean = mean + (rewards_N.detach().double().cpu() - mean).sum() / now
    return torch.stack([mean, now]), mean.item()


def kto(
    policy: LogProbs,
    reference: LogProbs,
    mismatched_M: Tensor,
    *,
    beta: Positive = 0.1,
    desirable_weight: NotNegative = 1.0,
    undesirable_weight: NotNegative = 1.0,
) -> StepOutput:
    """KTO: each answer by itself against what the policy would gain on any answer, valued as people value losses.

    ``w_d (1 - sigmoid(beta (c - z)))`` of a desirable answer, ``w_u (1 - sigmoid(beta (z - r)))`` of an undesirable one

    Ethayarajh et al. 2024 (arXiv:2402.01306, eq. 8). ``z``, without gradient, estimates the policy's KL divergence from
    the reference: ``max(0, mean(mismatched_M))``, the log-ratios of answers under prompts that they do not belong to.
    """
    chosen_P, rejected_P = log_ratios(policy, reference)
    kl = mismatched_M.mean().clamp(min=0) if len(mismatched_M) else 0.0
    desirable_P = desirable_weight * (beta * (kl - chosen_P)).sigmoid()
    undesirable_P = undesirable_weight * (beta * (rejected_P - kl)).sigmoid()
    return StepOutput(torch.cat([desirable_P, undesirable_P]), *rewards(beta, chosen_P, rejected_P))


def apo_zero_unpaired(
    policy: LogProbs,
    reference: LogProbs,
    *,
    beta: Positive = 0.1,
    desirable_weight: NotNegative = 1.0,
    undesirable_weight: NotNegative = 1.0,
) -> StepOutput:
    """APO-zero without pairs: each answer by itself against the reference alone, good ones up and bad ones down.

    ``w_d (1 - sigmoid(beta c))`` of a desirable answer, ``w_u sigmoid(beta r)`` of an undesirable one

    D'Oosterlinck et al. 2024 (arXiv:2408.06266), in the form of TRL's KTOTrainer: `kto` without the estimate ``z``, so
    no answers under foreign prompts are computed.
    """
    chosen_P, rejected_P = log_ratios(policy, reference)
    desirable_P = desirable_weight * (-beta * chosen_P).sigmoid()
    undesirable_P = undesirable_weight * (beta * rejected_P).sigmoid()
    return StepOutput(torch.cat([desirable_P, undesirable_P]), *rewards(beta, chosen_P, rejected_P))


def plackett_luce(policy: LogProbs, reference: LogProbs, answers_P2: Tensor, *, beta: Positive = 0.1) -> StepOutput:
    """Plackett-Luce DPO: each answer of a ranking is the best of itself and all that rank below it.

    ``-log(exp(beta c_k) / sum_j exp(beta c_j))`` for each answer k that beats others, j over itself and those; ``c_j``
    is the log-ratio of answer j

    Rafailov et al. 2023 (arXiv:2305.18290, appendix A.3, eq. 20): summed over the K - 1 places of a ranking, it is
    the negative log-likelihood of that ranking; here it is a mean over places. What answer k beats follows from the
    pairs, which ``answers_P2`` gives as numbers of answers, directly or over others in between: `listwise` and
    `all_pairs` say the same of a ranking. For one pair of a prompt it is DPO.
    """
    chosen_P, rejected_P = log_ratios(policy, reference)
    ratios = torch.cat([chosen_P, rejected_P])
    place = {answer: at for at, answer in enumerate(answers_P2.T.flatten().tolist())}
    beaten = everything_beaten(answers_P2.tolist())
    widest = max((len(below) for below in beaten.values()), default=0)
    rows = [[place[k], *(place[j] for j in below)] for k, below in beaten.items()]
    index_NK = torch.tensor([row + [-1] * (1 + widest - len(row)) for row in rows], device=ratios.device)
    scores_NK = (beta * ratios[index_NK]).masked_fill(index_NK < 0, -torch.inf)
    losses_N = scores_NK.logsumexp(1) - scores_NK[:, 0]
    return StepOutput(losses_N, *rewards(beta, chosen_P, rejected_P))


def everything_beaten(pairs: Iterable[Iterable[int]]) -> dict[int, list[int]]:
    """For each answer that is chosen in some (chosen, rejected), all that it beats, also by way of others."""
    directly: dict[int, set[int]] = defaultdict(set)
    for chosen, rejected in pairs:
        directly[chosen].add(rejected)
    beaten = {}
    for answer in list(directly):
        found, ahead = set(), set(directly[answer])
        while ahead:
            at = ahead.pop()
            found.add(at)
            ahead |= directly.get(at, set()) - found
        beaten[answer] = sorted(found - {answer})
    return beaten
