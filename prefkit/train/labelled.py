"""Labelled answers: learning from single answers that are good or bad, on data sets of labels (`schema.LABELS`).

An answer is an example whose two sides are one sequence, and whose label stands beside it, where a pair's scores stand.
So trees, bins, the plan, ranks, the cache of the reference and resuming know nothing of labels, and the answers to a
prompt share its tokens. Only where losses begin do both kinds part: of P labelled answers they get a `LogProbs` whose
chosen side is the C good ones and whose rejected side is the R = P - C bad ones, in the order of their examples.

A loss that takes the two sides apart is defined there without a change, such as `kto`; one that compares the sides of a
pair is not. Which is which is found by asking: each loss of a phase is given three good answers and two bad ones.

Figures are TRL's: `rewards/chosen` and `logps/chosen` are means over a step's good answers, `…/rejected` over its bad
ones, `rewards/margins` the difference of both means. A step without any of one label has 0 there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prefkit.errors import UsageError
from prefkit.manifest import Kind
from prefkit.resolve import Call
from prefkit.train import terms
from prefkit.train.arriving import Arriving
from prefkit.train.examples import Examples
from prefkit.train.losses import LogProbs, LossOutput, StepOutput
from prefkit.train.options import Phase, TrainOptions
from prefkit.train.terms import Weighted

FIGURES = (  # and those where there is a reference
    ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"),
    ("logps/chosen_change", "kl"),
)
OF_PAIRS = ("min_margin", "curriculum", "sft_weight", "ld_alpha", "wpo")  # options of a phase that need pairs
ALARMS_OF_PAIRS = ("saturation", "length")
MOST_WEIGHT = 4 / 3  # of good answers, in units of that of bad ones


def check(options: TrainOptions, kind: Kind) -> None:
    """UsageError for a phase that the answers of a data set of labels cannot train."""
    for phase, losses in zip(options.phases, options.losses, strict=True):
        if kind == "labels" and losses:
            _check_phase(phase, losses, f"{options.path}: [[train]] {phase.name}")


def _check_phase(phase: Phase, losses: Sequence[Weighted], where: str) -> None:
    where += ": the data set holds labels, not pairs, so"
    for name in OF_PAIRS:
        if getattr(phase, name):
            raise UsageError(f"{where} {name} has no effect.")
    for name in (phase.alarms or {}).get("stop", ()):
        if name in ALARMS_OF_PAIRS:
            raise UsageError(f'{where} alarms: stop names "{name}", which has nothing to look at.')
    for _, call in losses:
        if not takes_labels(call):
            raise UsageError(
                f"{where} {call.name}, which compares the answers of a pair, is not defined. "
                "Take kto, bco or apo_zero_unpaired."
            )


def takes_labels(call: Call) -> bool:
    """Whether a loss gives one value for each of three good and two bad answers, in one step."""
    good, bad = torch.linspace(-5.0, -3.0, 3), torch.linspace(-6.0, -4.0, 2)
    sides = LogProbs(good, bad, torch.full((3,), 4.0), torch.full((2,), 5.0))
    given = {"policy": sides, "reference": sides, "undamped": sides, "mismatched_M": good, "state": None}
    asked = terms.asks(call.address)
    if not given.keys() >= {*asked} or not terms.is_of_whole_step(call.address):
        return False
    try:
        output = call.function()(*(given[name] for name in asked))
    except Exception:  # sides of different sizes, which a loss of pairs does not expect
        return False
    return isinstance(output, StepOutput) and output.losses_N.shape == (5,)


def sides(logps_Q: Tensor, lengths_Q: Tensor, answers_P: Tensor, good_P: Tensor) -> LogProbs:
    """The good answers as the chosen, the bad ones as the rejected side; `answers_P` are their sequences."""
    good, bad = answers_P[good_P], answers_P[~good_P]
    return LogProbs(logps_Q[good], logps_Q[bad], lengths_Q[good], lengths_Q[bad])


def per_answer(output: LossOutput, policy: LogProbs, reference: LogProbs | None, good_P: Tensor) -> dict[str, Tensor]:
    """What is reported, a value an answer, whose mean over all answers is the mean over those of its label."""

    def of(label_P: Tensor, values: Tensor) -> Tensor:
        column_P = torch.zeros(len(good_P), dtype=values.dtype, device=values.device)
        return column_P.masked_scatter(label_P, values.detach() * (len(good_P) / max(1, len(values))))

    rewards = of(good_P, output.chosen_rewards_P), of(~good_P, output.rejected_rewards_P)
    figures = {
        "loss": output.losses_P,
        "rewards/chosen": rewards[0],
        "rewards/rejected": rewards[1],
        "rewards/margins": rewards[0] - rewards[1],
        "logps/chosen": of(good_P, policy.chosen_P),
        "logps/rejected": of(~good_P, policy.rejected_P),
    }
    if reference is not None:
        changes = policy.chosen_P - reference.chosen_P, policy.rejected_P - reference.rejected_P
        everything_P = torch.zeros_like(rewards[0]).masked_scatter(good_P, changes[0].detach())
        everything_P = everything_P.masked_scatter(~good_P, changes[1].detach())
        figures |= {"logps/chosen_change": of(good_P, changes[0]), "kl": -everything_P}
    return figures


def counted(examples: Examples | Arriving) -> tuple[int, int]:
    """How many good and how many bad answers the examples that are kept have; none where there are no labels."""
    labels = examples.labels()
    if labels is None:
        return 0, 0
    kept = labels if examples.kept is None else labels[examples.kept]
    return int(kept.sum()), int((~kept).sum())


def balance(good: int, bad: int, losses: Sequence[Weighted]) -> str:
    """What to say of the weights of a loss that weighs good and bad answers; empty if they are in balance.

    Good answers shall weigh 1 to 4/3 times what bad ones do, all together (Ethayarajh et al. 2024, arXiv:2402.01306,
    eq. 8, with the bounds of TRL's KTOTrainer).
    """
    for _, call in losses:
        desirable, undesirable = (call.options.get(f"{name}_weight") for name in ("desirable", "undesirable"))
        if not (good and bad and desirable and undesirable):
            continue
        ratio = desirable * good / (undesirable * bad)
        if not 1 <= ratio <= MOST_WEIGHT:
            least, most = desirable / ratio, undesirable * ratio
            return (
                f"{good:,} desirable and {bad:,} undesirable answers, which weigh {ratio:.2f} to 1. Between 1 and 4/3 "
                f"is advised: desirable_weight {least:.3g} to {least * MOST_WEIGHT:.3g}, or undesirable_weight "
                f"{most / MOST_WEIGHT:.3g} to {most:.3g}."
            )
    return ""
