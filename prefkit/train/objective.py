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


class BinLoss(NamedTuple):
    """`total` is this bin's part of the step's loss; `losses` has one value an example, `sums` one a name of `names`.

    Only `total` carries gradient. `expected` is the sum that `losses` would have if the policy were the reference; None
    where there is no reference.
    """

    total: Tensor
    losses: Tensor
    sums: Tensor
    expected: Tensor | None


@dataclass(frozen=True)
class Preference:
    """A loss of `prefkit.train.losses`, and the supervised term that may be added to it."""

    loss: Callable[..., LossOutput]
    takes_reference: bool
    sft_weight: float
    names: Sequence[str] = (
        "loss",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
    )

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
        losses_P = output.losses_P.detach()
        columns = per_pair(LossOutput(losses_P, *output[1:]), policy)
        expected = None if reference is None else self.of_pairs(reference, reference).losses_P.sum()
        return BinLoss(
            total=output.losses_P.sum() / step.examples,
            losses=losses_P,
            sums=torch.stack([columns[name].sum() for name in self.names]),
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
        losses_Q = -logps_Q.detach()
        # Metrics are divided by the step's examples; this mean is over tokens, hence the factor.
        mean = losses_Q.sum() / step.completion_tokens
        return BinLoss(-logps_Q.sum() / step.completion_tokens, losses_Q, (mean * step.examples)[None], None)


def per_pair(output: LossOutput, policy: LogProbs) -> dict[str, Tensor]:
    """What is reported of pairs, one value a pair.

    An exact tie of rewards counts half, where TRL counts it as wrong.
    """
    return {
        "loss": output.losses_P,
        "rewards/chosen": output.chosen_rewards_P,
        "rewards/rejected": output.rejected_rewards_P,
        "rewards/accuracies": preferred(output.chosen_rewards_P, output.rejected_rewards_P),
        "rewards/margins": output.chosen_rewards_P - output.rejected_rewards_P,
        "logps/chosen": policy.chosen_P.detach(),
        "logps/rejected": policy.rejected_P.detach(),
    }


def preferred(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """1 where chosen is larger, 0 where it is smaller, 1/2 where both are equal."""
    return ((chosen_P - rejected_P).sign() + 1) / 2
