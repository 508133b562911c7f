"""Terms that may be added to any loss, apart from ``losses.py`` because they are no losses by themselves."""

from prefkit.train.losses import LogProbs, LossOutput


def add_sft(output: LossOutput, policy: LogProbs, *, sft_weight: float) -> LossOutput:
    """Add ``sft_weight * (-log pi_c / L_c)`` to each pair's loss, which keeps chosen answers likely.

    Pang et al. 2024 (Iterative Reasoning Preference Optimization, arXiv:2404.19733): the negative log-likelihood of
    the chosen answer, a mean over its own tokens. Every pair weighs the same, long or short, as it does in the loss
    that this is added to, and a pair's term does not depend on its neighbours. TRL's ``sft`` is instead a mean over
    all chosen tokens of a device's micro-batch; the two agree when the chosen answers are equally long.
    """
    losses_P = output.losses_P - sft_weight * policy.chosen_P / policy.chosen_length_P
    return output._replace(losses_P=losses_P)
