"""Preference losses, one pure function each.

A loss maps log-probabilities of P pairs to one value a pair. The names of its positional parameters say what it asks
for: ``policy`` and ``reference``, the log-probabilities of both models; ``margins_P``, the pairs' differences of
scores; and what `prefkit.train.objective.Given` names besides. A function without a ``reference`` parameter needs no
reference model, and none is run for it. Keyword-only parameters are the options of a pipeline file.

What it returns says how it is run. Most give a `LossOutput`, in which the value of a pair is a function of that pair
alone: they are given a bin at a time, in one pass. Some look at all pairs of a step, to sort them or to keep a mean:
they are annotated ``-> StepOutput``, and given the whole step, which costs a second forward pass.

Nothing here averages over pairs: the trainer divides by the number of pairs of the step, so the gradient is the same
however the step is cut into bins.

Rewards are what is logged, not optimised: ``beta * c`` and ``beta * r`` for every loss with a reference, the implicit
reward of DPO, in which form TRL logs them too, so that curves of different losses and trainers can be compared.
"""

from prefkit.train.losses.common import LogProbs, LossOutput, StepOutput
from prefkit.train.losses.margin import discopop, exo_pair, hinge, ipo, odpo, robust, sigmoid, sigmoid_norm
from prefkit.train.losses.reference_free import chosen_nll, cpo, orpo, simpo
from prefkit.train.losses.sides import apo_down, apo_zero, nca_pair, sppo_hard
from prefkit.train.losses.whole_step import aot, aot_unpaired, apo_zero_unpaired, bco, bco_pair, kto, plackett_luce

__all__ = [
    "LogProbs",
    "LossOutput",
    "StepOutput",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "apo_zero_unpaired",
    "bco",
    "bco_pair",
    "chosen_nll",
    "cpo",
    "discopop",
    "exo_pair",
    "hinge",
    "ipo",
    "kto",
    "nca_pair",
    "odpo",
    "orpo",
    "plackett_luce",
    "robust",
    "sigmoid",
    "sigmoid_norm",
    "simpo",
    "sppo_hard",
]
