"""A reference that follows the policy: TR-DPO (Gorbatovski et al. 2024, arXiv:2404.09656).

Every so many steps the live reference becomes ``alpha policy + (1 - alpha) reference``, parameter by parameter: the
paper's soft update for alpha below 1, its hard one for 1. So the policy may go farther from where it started than a
fixed reference allows. The moved weights are a state of the run, and go into its checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le

from prefkit.train import parallel
from prefkit.train.policy import Policy


@dataclass(frozen=True, kw_only=True)
class Sync:
    """`reference_sync = { … }` of a phase; TRL's defaults."""

    every: Annotated[int, Ge(1)] = 512  # steps from one move to the next
    alpha: Annotated[float, Gt(0), Le(1)] = 0.6  # the policy's share in the new reference


@torch.no_grad()
def move(reference: Policy, policy: Policy, alpha: float) -> None:
    """Move the reference towards the policy; on several ranks each moves what it holds."""
    for target, source in zip(reference.model.parameters(), policy.model.parameters(), strict=True):
        parallel.local(target).lerp_(parallel.local(source), alpha)
