"""What a phase optimises: log-probabilities of a bin -> the loss to call backward on, and the sums of its metrics.

The loss of a step is a mean over all its pairs, or over all its completion tokens in supervised fine-tuning. Each
bin's part is divided by the step's total, not by the bin's, so the gradients of the bins add up to exactly that mean,
however the step was packed. A loss that looks at the whole step is given all its bins as one (`two_pass.py`).

Shape suffixes: Q sequences of a bin, P pairs of a bin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prefkit.errors import TrainError, UsageError
from prefkit.manifest import Kind
from prefkit.resolve import Call
from prefkit.train import labelled, terms
from prefkit.train.arriving import Arriving
from prefkit.train.chat import Tokenising
from prefkit.train.examples import Examples
from prefkit.train.logps import pair_logps
from prefkit.train.losses import LogProbs, LossOutput, StepOutput, chosen_nll
from prefkit.train.losses.common import mean_logps
from prefkit.train.options import Phase
from prefkit.train.pack import Bin, Layout
from prefkit.train.stream import Step
from prefkit.train.terms import Weighted

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

States = Sequence[Tensor | None]  # what losses remember between steps, one a loss; empty before the first step


class BinLoss(NamedTuple):
    """`total` is this bin's part of the step's loss, and alone carries gradient.

    `figures_NP` has a row a name of `names`, the loss first, and a value a pair (in supervised fine-tuning, a
    sequence). `expected` is the sum that the losses would have if the policy were the reference; None where there is
    no reference. `states` are what the losses remember after the step, one a loss.
    """

    total: Tensor
    figures_NP: Tensor
    expected: Tensor | None
    states: States = ()


@dataclass(frozen=True)
class Given:
    """What a loss may ask for of P pairs: its positional parameters are names of these fields."""

    policy: LogProbs
    reference: LogProbs | None = None
    margins_P: Tensor | None = None  # chosen minus rejected score
    answers_P2: Tensor | None = None  # a number for each answer, the same wherever it stands: chosen, rejected
    mismatched_M: Tensor | None = None  # log-ratios of answers under prompts that they do not belong to
    state: Tensor | None = None  # what the loss returned as its state at the step before
    undamped: LogProbs | None = None  # of the policy, whatever `ld_alpha`


FIELDS = tuple(field.name for field in fields(Given))
OF_WHOLE_STEP = ("mismatched_M", "state")  # mean something for all pairs of a step alone


@dataclass(frozen=True)
class Term:
    """One loss with its options bound, its weight in the sum, and what its signature says of it."""

    weight: float
    loss: Callable[..., LossOutput | StepOutput]
    asks: Sequence[str]
    whole_step: bool

    @classmethod
    def of(cls, weight: float, call: Call) -> Term:
        """The loss at an address; UsageError if it asks for something that there is not."""
        asks, whole_step = terms.asks(call.address), terms.is_of_whole_step(call.address)
        for name in asks:
            if name not in FIELDS:
                raise UsageError(f"{call.address} asks for {name}; a loss is given {', '.join(FIELDS)}.")
            if name in OF_WHOLE_STEP and not whole_step:
                raise UsageError(
                    f"{call.address} asks for {name}, which only a loss of the whole step is given: let it return a "
                    "StepOutput, and say so: -> StepOutput."
                )
        if "mismatched_M" in asks and "reference" not in asks:
            raise UsageError(f"{call.address} asks for mismatched_M, which are log-ratios, but for no reference.")
        return cls(weight, call.function(), asks, whole_step)

    def __call__(self, given: Given, state: Tensor | None) -> LossOutput | StepOutput:
        given = replace(given, state=state)
        return self.loss(*(getattr(given, name) for name in self.asks))


@dataclass(frozen=True)
class Preference:
    """A weighted sum of losses of `prefkit.train.losses`; the rewards are the first one's.

    `margins` are those of every pair of the split that it is used on, if a loss asks for them; `public_of` tells, under
    `ld_alpha`, the sequences that are a pair's answers cut at the length of the shorter one. `labels`, where the split
    holds labelled answers in place of pairs, are those of every one of them (`labelled.py`).
    """

    terms: Sequence[Term]
    margins: Tensor | None = None
    wpo: bool = False
    ld_alpha: float | None = None
    length_normalisation: bool = False
    public_of: Callable[[np.ndarray], np.ndarray] | None = None
    labels: Tensor | None = None

    @classmethod
    def of(
        cls,
        losses: Sequence[Weighted],
        sft_weight: float = 0.0,
        *,
        wpo: bool = False,
        ld_alpha: float | None = None,
        length_normalisation: bool = False,
    ) -> Preference:
        """The losses that a pipeline file names, with the supervised term that may be added to them."""
        made = [Term.of(weight, call) for weight, call in losses]
        for term, (_, call) in zip(made, losses, strict=True):
            if call.is_external:
                check_shape(cls([term]), call.address)
        if sft_weight:
            made.append(Term(sft_weight, chosen_nll, ["undamped"], whole_step=False))
        return cls(made, wpo=wpo, ld_alpha=ld_alpha, length_normalisation=length_normalisation)

    def on(self, examples: Examples | Arriving, split: str) -> Preference:
        """The same objective for the pairs of one split; TrainError if a loss asks for scores that they have not."""
        if (labels := examples.labels()) is not None:
            return replace(self, labels=torch.from_numpy(labels))
        if self.ld_alpha is not None:
            self = replace(self, public_of=examples.public_of)
        if not self.asks_for("margins_P"):
            return self
        margins = torch.from_numpy(examples.margins())
        used = margins if examples.kept is None else margins[torch.from_numpy(examples.kept)]
        without = int((~(used > 0)).sum())
        if without:
            raise TrainError(
                f"the objective needs the scores of both answers, but {without:,} of {len(used):,} pairs of "
                f"the {split} split have none, or none that differ."
            )
        return replace(self, margins=margins)

    def asks_for(self, name: str) -> bool:
        """Whether one of the losses takes a parameter of this name."""
        return any(name in term.asks for term in self.terms)

    @property
    def takes_reference(self) -> bool:
        return self.asks_for("reference")

    @property
    def whole_step(self) -> bool:
        """Whether all pairs of a step must be judged at once."""
        return any(term.whole_step for term in self.terms)

    @property
    def names(self) -> Sequence[str]:
        """The figures of a pair, as `per_pair` gives them; of a labelled answer, as `per_answer` does."""
        plain, of_reference = (FIGURES, OF_REFERENCE) if self.labels is None else labelled.FIGURES
        return plain + of_reference if self.takes_reference else plain

    def judge(self, given: Given, states: States = (), weights_P: Tensor | None = None) -> tuple[LossOutput, States]:
        """The loss of each pair, times its weight if it has one, and what the losses remember.

        What is a function of the whole step has no loss of a single pair; each pair (or labelled answer) is given the
        mean.
        """
        outputs = [term(given, state) for term, state in zip_longest(self.terms, states)]
        values = [output[0].mean() if self.whole_step else output[0] for output in outputs]
        total = torch.stack([term.weight * value for term, value in zip(self.terms, values, strict=True)]).sum(0)
        losses_P = total.expand(
            len(given.policy.chosen_P) + (0 if self.labels is None else len(given.policy.rejected_P))
        )
        if weights_P is not None:
            losses_P = losses_P * weights_P
        kept = tuple(output.state if isinstance(output, StepOutput) else None for output in outputs)
        return LossOutput(losses_P, outputs[0].chosen_rewards_P, outputs[0].rejected_rewards_P), kept

    def given(self, logps_Q: Tensor, reference_Q: Tensor | None, pairs: Bin | Layout) -> Given:
        """All that the losses ask for, of the pairs of one bin or several."""
        mismatched_M = None
        if reference_Q is not None and self.asks_for("mismatched_M"):
            of_pair = torch.zeros_like(logps_Q, dtype=torch.bool).index_fill(0, pairs.pairs_P2.flatten(), True)
            mismatched_M = (logps_Q - reference_Q).detach()[~of_pair]
        return Given(
            policy=self.sides(logps_Q, pairs),
            reference=None if reference_Q is None else self.sides(reference_Q, pairs),
            margins_P=None if self.margins is None else self.margins[pairs.pair_rows_P.cpu()].to(logps_Q),
            answers_P2=pairs.sequence_rows_Q[pairs.pairs_P2],
            mismatched_M=mismatched_M,
            undamped=pair_logps(logps_Q, pairs),
        )

    def good(self, pairs: Bin | Layout) -> Tensor:
        """Which of some labelled answers are good."""
        assert self.labels is not None
        return self.labels[pairs.pair_rows_P.cpu()].to(pairs.pair_rows_P.device)

    def figures(self, output: LossOutput, given: Given, pairs: Bin | Layout) -> dict[str, Tensor]:
        """What is reported of the pairs or labelled answers of one bin or several."""
        output = output._replace(losses_P=output.losses_P.detach())
        if self.labels is None:
            return per_pair(output, given.policy, given.reference)
        return labelled.per_answer(output, given.policy, given.reference, self.good(pairs))

    def sides(self, logps_Q: Tensor, pairs: Bin | Layout) -> LogProbs:
        """Both answers' log-probabilities as the modifiers make them; lengths stay those of whole answers.

        Of labelled answers, the sides are the good and the bad ones.
        """
        if self.labels is None:
            sides = pair_logps(logps_Q, pairs)
        else:
            sides = labelled.sides(logps_Q, pairs.sequence_length_Q, pairs.pairs_P2[:, 0], self.good(pairs))
        if self.ld_alpha is not None and self.public_of is not None:
            sides = self.damped(sides, logps_Q, pairs)
        if self.length_normalisation:
            chosen_P, rejected_P = mean_logps(sides)
            sides = replace(sides, chosen_P=chosen_P, rejected_P=rejected_P)
        return sides

    def damped(self, whole: LogProbs, logps_Q: Tensor, pairs: Bin | Layout) -> LogProbs:
        """Under `ld_alpha`, tokens beyond the length of the shorter answer weigh less.

        ``log pi`` up to the public length plus ``ld_alpha`` times the rest (arXiv:2409.06411, eq. 9).
        """
        assert self.ld_alpha is not None
        assert self.public_of is not None
        rows_Q, order_Q = pairs.sequence_rows_Q.sort()
        wanted_P2 = torch.from_numpy(self.public_of(pairs.pair_rows_P.cpu().numpy())).to(rows_Q.device)
        public_P2 = logps_Q[order_Q[torch.searchsorted(rows_Q, wanted_P2)]]
        alpha = self.ld_alpha
        return replace(
            whole,
            chosen_P=alpha * whole.chosen_P + (1 - alpha) * public_P2[:, 0],
            rejected_P=alpha * whole.rejected_P + (1 - alpha) * public_P2[:, 1],
        )

    def of_bin(
        self,
        logps_Q: Tensor,
        reference_Q: Tensor | None,
        bin: Bin | Layout,
        step: Step,
        *,
        states: States = (),
        weights_Q: Tensor | None = None,
    ) -> BinLoss:
        """The part that a bin's pairs have in the mean over the step's pairs; of the whole step, that mean.

        `weights_Q` are how much each sequence is the policy's own; a pair weighs their product (WPO).
        """
        given = self.given(logps_Q, reference_Q, bin)
        weights_P = None if weights_Q is None else weights_Q[bin.pairs_P2].prod(1)
        output, kept = self.judge(given, states, weights_P)
        columns = self.figures(output, given, bin)
        return BinLoss(
            total=output.losses_P.sum() / step.examples,
            figures_NP=torch.stack([columns[name] for name in self.names]),
            expected=self.expected(reference_Q, bin, states, weights_P),
            states=kept,
        )

    def expected(
        self, reference_Q: Tensor | None, bin: Bin | Layout, states: States, weights_P: Tensor | None
    ) -> Tensor | None:
        """The sum that the losses would have if the policy were the reference."""
        if reference_Q is None:
            return None
        return self.judge(self.given(reference_Q, reference_Q, bin), states, weights_P)[0].losses_P.sum()


def check_shape(objective: Preference, address: str) -> None:
    """UsageError for a loss that fails, gives not one value a pair, or one that depends on the other pairs unsaid.

    Bins see a part of the step's pairs each, so such a loss would silently depend on `max_tokens`.
    """

    def of(pairs: slice) -> Tensor:
        policy, reference = (
            LogProbs(*(column[pairs] for column in (-base, -base.flip(0).sqrt(), base.round(), base.round() + 2)))
            for base in (torch.linspace(20.0, 60.0, 6), torch.linspace(22.0, 55.0, 6))
        )
        numbers = (torch.arange(6)[:, None] + torch.arange(2))[pairs]  # one ranking
        given = Given(
            policy, reference, torch.linspace(0.5, 3.0, 6)[pairs], numbers, torch.linspace(-1.0, 2.0, 5), None, policy
        )
        return objective.terms[0](given, None)[0]

    try:
        together, apart = of(slice(0, 6)), torch.cat([of(slice(0, 2)), of(slice(2, 6))])
        fits = objective.whole_step or (together.shape == (6,) and torch.allclose(together, apart))
    except Exception as error:
        raise UsageError(f"{address} failed on six pairs: {type(error).__name__}: {error}") from error
    if not fits:
        raise UsageError(
            f"{address}: a loss must give one value a pair, the same whatever pairs are beside it. If it looks at the "
            "whole step, let it return a StepOutput, and say so: -> StepOutput."
        )


@dataclass(frozen=True)
class Supervised:
    """Negative log-likelihood of the answers, a mean over the step's completion tokens."""

    takes_reference: bool = False
    wpo: bool = False
    names: Sequence[str] = ("loss",)

    def on(self, examples: Examples | Arriving, split: str) -> Supervised:
        """The same: it needs nothing of a split but its log-probabilities."""
        return self

    def of_bin(
        self, logps_Q: Tensor, reference_Q: Tensor | None, bin: Bin, step: Step, *, weights_Q: Tensor | None = None
    ) -> BinLoss:
        """The bin's part of the mean over the step's completion tokens."""
        # Metrics are divided by the step's examples; this mean is over tokens, hence the factor.
        losses_Q = -logps_Q.detach() * (step.examples / step.completion_tokens)
        return BinLoss(-logps_Q.sum() / step.completion_tokens, losses_Q[None], None)


def of_phase(phase: Phase, losses: list[Weighted]) -> Preference | Supervised:
    """What the phase optimises."""
    if not losses:
        return Supervised()
    return Preference.of(
        losses,
        phase.sft_weight,
        wpo=phase.wpo,
        ld_alpha=phase.ld_alpha,
        length_normalisation=phase.length_normalisation,
    )


def tokenising(phase: Phase, objective: Preference | Supervised, kind: Kind) -> Tokenising:
    """What the phase's tokens depend on besides the data, whose kind it needs to know."""
    if isinstance(objective, Supervised):
        return Tokenising(phase.max_length or None, phase.max_length_policy, phase.column)
    mismatched, public = objective.asks_for("mismatched_M"), phase.ld_alpha is not None
    labels = kind == "labels"
    return Tokenising(phase.max_length or None, phase.max_length_policy, None, mismatched, public, labels)


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
