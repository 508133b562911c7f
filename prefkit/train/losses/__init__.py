"""Preference losses, one pure function each.

A loss maps the policy's log-probabilities of P pairs, and the reference's, to one value a pair. A function without
a ``reference`` parameter needs no reference model, and none is run for it. Keyword-only parameters are the options
of a pipeline file. Nothing here averages: the trainer divides by the number of pairs of the step, so the gradient
is the same however the step is cut into bins. A loss whose value for one pair depends on
the others (a sort, a running mean) is refused.

Rewards are what is logged, not optimised: ``beta * c`` and ``beta * r`` for every loss with a reference, the implicit
reward of DPO, in which form TRL logs them too, so that curves of different losses and trainers can be compared.
"""

from prefkit.train.losses.common import LogProbs, LossOutput
from prefkit.train.losses.margin import discopop, exo_pair, hinge, ipo, robust, sigmoid, sigmoid_norm
from prefkit.train.losses.reference_free import cpo, orpo, simpo
from prefkit.train.losses.sides import apo_down, apo_zero, nca_pair, sppo_hard

__all__ = [
    "LogProbs",
    "LossOutput",
    "apo_down",
    "apo_zero",
    "cpo",
    "discopop",
    "exo_pair",
    "hinge",
    "ipo",
    "nca_pair",
    "orpo",
    "robust",
    "sigmoid",
    "sigmoid_norm",
    "simpo",
    "sppo_hard",
]
