"""The objective of a `[[train]]` phase -> the losses that it names, checked: one, or a weighted sum.

    objective = "sigmoid"                   its options stand in the phase's own table
    objective = [                           a sum, as in MPO (Wang et al. 2024, arXiv:2411.10442)
      { use = "sigmoid", weight = 0.8 },
      { use = "bco_pair", weight = 0.2, beta = 0.2 },
    ]

What a loss is run with follows from its signature. The names of its positional parameters say what it asks for (the
fields of `prefkit.train.objective.Given`): without `reference`, no reference model is run. What it returns says how it
is run: a loss annotated `-> StepOutput` gets all pairs of a step at once, any other is a function of each pair alone,
and gets a bin at a time.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from prefkit import resolve
from prefkit.errors import UsageError, did_you_mean, one_line
from prefkit.resolve import Call
from prefkit.train.losses import LogProbs, StepOutput

HOME = "prefkit.train.losses"


class Weighted(NamedTuple):
    """One loss of an objective; a phase that names a single loss has one, of weight 1."""

    weight: float
    call: Call


def asks(address: str) -> list[str]:
    """What the loss at an address is given, in order."""
    parameters = inspect.signature(resolve.load(address)).parameters.values()
    return [p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]


def is_of_whole_step(address: str) -> bool:
    """Whether the loss at an address looks at all pairs of a step at once."""
    try:
        return get_type_hints(resolve.load(address)).get("return") is StepOutput
    except NameError as error:
        raise UsageError(f'"{address}": its annotations cannot be read: {error}.') from error


def check_sums(losses: list[Weighted], where: str) -> None:
    """UsageError for a loss that normalises lengths itself, or compares pairs with other sequences' sums."""
    for _, call in losses:
        if "mismatched_M" in asks(call.address):
            raise UsageError(f"{where}: length_normalisation is not defined for {call.name}.")
        try:
            alike = torch.equal(_probed(call, 1.0), _probed(call, 2.0))
        except Exception as error:  # a loss of somebody else may fail in any way
            raise UsageError(f"{where}: {call.address} failed on a pair: {one_line(error)}") from error
        if not alike:
            raise UsageError(f"{where}: length_normalisation has no effect on {call.name}, which has its own.")


def _probed(call: Call, length: float) -> Tensor:
    """The loss of one pair whose answers are so long, all else fixed."""
    one = torch.ones(1)
    policy, reference = (LogProbs(-one * a, -one * b, length * one, length * one) for a, b in ((2.0, 3.0), (4.0, 3.5)))
    given = {"policy": policy, "undamped": policy, "reference": reference, "margins_P": one, "state": None}
    given["answers_P2"] = torch.arange(2)[None]
    return call.function()(*(given[name] for name in asks(call.address)))[0]


def without_effect(found: list[str]) -> dict[str, str]:
    """Options of a phase that the losses at these addresses leave without effect or meaning, and why."""
    why = {}
    if not any("reference" in asks(address) for address in found):
        why["reference"] = why["reference_sync"] = "its loss takes none"
    if any(is_of_whole_step(address) for address in found):
        why["wpo"] = "a loss of the whole step has no loss of a single pair to weigh"
    beyond_pairs = {"answers_P2", "mismatched_M"}
    if any("policy" in asks(a) and ("reference" not in asks(a) or beyond_pairs & {*asks(a)}) for a in found):
        why["ld_alpha"] = "it is defined for losses of pairs with a reference"
    return why


def addresses(objective: str | list[Any], where: str) -> list[str]:
    """The address of every loss that an objective names; none for "sft"."""
    if isinstance(objective, str):
        return [] if objective == "sft" else [_find(objective, where)]
    if not objective:
        raise UsageError(f'{where}: objective = [] names no loss. Write for example objective = "sigmoid".')
    if not all(isinstance(entry, Mapping) and isinstance(entry.get("use"), str) for entry in objective):
        raise UsageError(f'{where}: objective: write each loss of a sum as {{ use = "sigmoid", weight = 1.0 }}.')
    return [_find(entry["use"], where) for entry in objective]


def weighted(objective: str | list[Any], given: Mapping[str, Any], where: str) -> list[Weighted]:
    """The checked losses of an objective; `given` are the options that stand in the phase's table."""
    found = addresses(objective, where)
    if isinstance(objective, str):
        return [Weighted(1.0, resolve.check(address, given, where)) for address in found]
    return [_of_entry(entry, address, where) for entry, address in zip(objective, found, strict=True)]


def _of_entry(entry: Mapping[str, Any], address: str, where: str) -> Weighted:
    weight = entry.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise UsageError(f"{where}: objective {entry['use']}: weight must be a number above 0, not {weight!r}.")
    options = {key: value for key, value in entry.items() if key not in ("use", "weight")}
    return Weighted(float(weight), resolve.check(address, options, f"{where}: objective {entry['use']}"))


def _find(name: str, where: str) -> str:
    losses = resolve.functions_of(importlib.import_module(HOME))
    if name == "sft":
        raise UsageError(f'{where}: objective "sft" is a phase of its own. In a sum, write sft_weight instead.')
    if name.lower() == "dpo":
        raise UsageError(f'{where}: DPO\'s loss goes by the name "sigmoid", as in TRL: objective = "sigmoid".')
    if ":" not in name and name not in losses:
        raise UsageError(f'{where}: there is no objective "{name}".{did_you_mean(name.lower(), ["sft", *losses])}')
    return resolve.find(name, HOME, where)
