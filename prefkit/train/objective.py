"""What a phase optimises: log-probabilities of a bin -> the loss to call backward on, and the sums of its metrics.

The loss of a step is a mean over all its pairs, or over all its completion tokens in supervised fine-tuning. Each
bin's part is divided by the step's total, not by the bin's, so the gradients of the bins add up to exactly that mean,
however the step was packed.

Shape suffixes: Q sequences of a bin, P pairs of a bin.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from prefkit import resolve
from prefkit.errors import UsageError
from prefkit.resolve import Call
from prefkit.train.logps import pair_logps
from prefkit.train.losses import LogProbs, LossOutput
from prefkit.train.modifiers import add_sft
from prefkit.train.pack import Bin
from prefkit.train.stream import Step

FIGURES = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
    "longer/data",
    "longer/policy",
)
OF_REFERENCE = ("logps/chosen_change", "kl")  # where there is a reference


class BinLoss(NamedTuple):
    """`total` is this bin's part of the step's loss, and alone carries gradient.

    `figures_NP` has a row a name of `names`, the loss first, and a value a pair (in supervised fine-tuning, a
    sequence). `expected` is the sum that the losses would have if the policy were the reference; None where there is
    no reference.
    """

    total: Tensor
    figures_NP: Tensor
    expected: Tensor | None


@dataclass(frozen=True)
class Preference:
    """A loss of `prefkit.train.losses`, and the supervised term that may be added to it."""

    loss: Callable[..., LossOutput]
    takes_reference: bool
    sft_weight: float

    @property
    def names(self) -> Sequence[str]:
        """The figures of a pair, as `per_pair` gives them."""
        return FIGURES + OF_REFERENCE if self.takes_reference else FIGURES

    @classmethod
    def of(cls, call: Call, sft_weight: float) -> Preference:
        """The loss that a pipeline file names."""
        takes_reference = "reference" in inspect.signature(resolve.load(call.address)).parameters
        made = cls(call.function(), takes_reference, sft_weight)
        if call.is_external:
            check_per_pair(made, call.address)
        return made

    def of_pairs(self, policy: LogProbs, reference: LogProbs | None) -> LossOutput:
        """The loss of each pair with the supervised term."""
        output = self.loss(policy, reference) if self.takes_reference else self.loss(policy)
        return add_sft(output, policy, sft_weight=self.sft_weight) if self.sft_weight else output

    def of_bin(self, logps_Q: Tensor, reference_Q: Tensor | None, bin: Bin, step: Step) -> BinLoss:
        """The bin's part of the mean over the step's pairs."""
        policy = pair_logps(logps_Q, bin)
        reference = None if reference_Q is None else pair_logps(reference_Q, bin)
        output = self.of_pairs(policy, reference)
        columns = per_pair(LossOutput(output.losses_P.detach(), *output[1:]), policy, reference)
        expected = None if reference is None else self.of_pairs(reference, reference).losses_P.sum()
        return BinLoss(
            total=output.losses_P.sum() / step.examples,
            figures_NP=torch.stack([columns[name] for name in self.names]),
            expected=expected,
        )


def check_per_pair(objective: Preference, address: str) -> None:
    """UsageError for a loss that gives not one value a pair, or whose value of a pair depends on the other pairs.

    Bins see a part of the step's pairs each, so such a loss would silently depend on `max_tokens`.
    """

    def of(pairs: slice) -> Tensor:
        policy, reference = (
            LogProbs(*(column[pairs] for column in (-base, -base.flip(0).sqrt(), base.round(), base.round() + 2)))
            for base in (torch.linspace(20.0, 60.0, 6), torch.linspace(22.0, 55.0, 6))
        )
        return objective.of_pairs(policy, reference if objective.takes_reference else None).losses_P

    try:
        together, apart = of(slice(0, 6)), torch.cat([of(slice(0, 2)), of(slice(2, 6))])
        fits = together.shape == (6,) and torch.allclose(together, apart)
    except Exception as error:
        raise UsageError(f"{address} failed on six pairs: {type(error).__name__}: {error}") from error
    if not fits:
        raise UsageError(f"{address}: a loss must give one value a pair, and the same whatever pairs are beside it.")


@dataclass(frozen=True)
class Supervised:
    """Negative log-likelihood of the answers, a mean over the step's completion tokens."""

    takes_reference: bool = False
    names: Sequence[str] = ("loss",)

    def of_bin(self, logps_Q: Tensor, reference_Q: Tensor | None, bin: Bin, step: Step) -> BinLoss:
        """The bin's part of the mean over the step's completion tokens."""
        # Metrics are divided by the step's examples; this mean is over tokens, hence the factor.
        losses_Q = -logps_Q.detach() * (step.examples / step.completion_tokens)
        return BinLoss(-logps_Q.sum() / step.completion_tokens, losses_Q[None], None)


def per_pair(output: LossOutput, policy: LogProbs, reference: LogProbs | None) -> dict[str, Tensor]:
    """What is reported of pairs, one value a pair; `prefkit.train.metrics` says what each figure is.

    An exact tie of rewards counts half, where TRL counts it as wrong.
    """
    right_P = preferred(output.chosen_rewards_P, output.rejected_rewards_P)
    longer_P = preferred(policy.chosen_length_P, policy.rejected_length_P)
    figures = {
        "loss": output.losses_P,
        "rewards/chosen": output.chosen_rewards_P,
        "rewards/rejected": output.rejected_rewards_P,
        "rewards/accuracies": right_P,
        "rewards/margins": output.chosen_rewards_P - output.rejected_rewards_P,
        "logps/chosen": policy.chosen_P.detach(),
        "logps/rejected": policy.rejected_P.detach(),
        "longer/data": longer_P.to(right_P.dtype),
        "longer/policy": right_P * longer_P + (1 - right_P) * (1 - longer_P),
    }
    if reference is not None:
        chosen_P, rejected_P = policy.chosen_P - reference.chosen_P, policy.rejected_P - reference.rejected_P
        figures |= {"logps/chosen_change": chosen_P.detach(), "kl": -(chosen_P + rejected_P).detach() / 2}
    return figures


def preferred(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """1 where chosen is larger, 0 where it is smaller, 1/2 where both are equal."""
    return ((chosen_P - rejected_P).sign() + 1) / 2
