"""The gradient of losses that look at the whole step (`losses/whole_step.py`), exact however the step is packed.

The log-probabilities of all bins come first, without gradient. The loss is a function of them alone; its gradient with
respect to them is taken once. Then each bin goes through the model again and sends its part of that gradient backward:
by the chain rule the sum is the gradient of the loss, and no more than one bin's activations exist at a time.

On several ranks each computes its own bins' log-probabilities and tells them to all; all judge the whole step alike.

Cost: one forward pass more than other losses need, about a third of a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor

from prefkit.train import parallel
from prefkit.train.objective import BinLoss, Preference, States
from prefkit.train.pack import Bin, Layout
from prefkit.train.policy import Policy
from prefkit.train.stream import Step


def backward(
    objective: Preference,
    policy: Policy,
    reference: Callable[[Bin], Tensor] | None,
    step: Step,
    states: States,
) -> BinLoss:
    """Add the gradient of the step's loss to the parameters; returns the loss and the figures of its pairs."""
    bins = [bin.to(policy.device) for bin in step.bins]
    seeds, logps = [], []
    for bin in bins:
        seeds.append(random_state(policy.device))
        with torch.no_grad():
            logps.append(policy.sequence_logps(bin))
    of_ranks = parallel.all_rows(torch.cat(logps))
    logps_Q = torch.cat(of_ranks).requires_grad_()
    references = None if reference is None else parallel.all_rows(torch.cat([reference(bin) for bin in bins]))
    reference_Q = None if references is None else torch.cat(references)
    everything = of_all_ranks(Layout.of(bins))
    result = objective.of_bin(logps_Q, reference_Q, everything, step, states=states)
    (grad_Q,) = torch.autograd.grad(result.total, logps_Q)
    mine_Q = grad_Q.split([len(part) for part in of_ranks])[parallel.rank()]
    for bin, seed, grad in zip(bins, seeds, mine_Q.split([len(part) for part in logps]), strict=True):
        set_random_state(policy.device, seed)  # LoRA's dropout must fall as it did before
        policy.sequence_logps(bin).backward(grad)
    return part_of(result, everything.pair_rows_P, torch.cat([bin.pair_rows_P for bin in bins]))


def of_all_ranks(mine: Layout) -> Layout:
    """The sequences and pairs of the whole step."""
    columns = [parallel.all_rows(getattr(mine, field.name)) for field in fields(Layout)]
    return Layout.of([Layout(*of_rank) for of_rank in zip(*columns, strict=True)])


def part_of(result: BinLoss, rows_P: Tensor, mine_P: Tensor) -> BinLoss:
    """What this rank adds to the sums over all ranks: the figures of its pairs, as its bins have them.

    `rows_P` are those of the whole step, sorted as a layout has them.
    """
    expected = result.expected
    return result._replace(
        total=result.total.detach(),
        figures_NP=result.figures_NP[:, torch.searchsorted(rows_P, mine_P)],
        expected=expected if expected is None or parallel.is_first() else torch.zeros_like(expected),
    )


def random_state(device: torch.device) -> Tensor:
    """The state of the device's random generator."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_random_state(device: torch.device, state: Tensor) -> None:
    """Put the device's random generator back to a state."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
