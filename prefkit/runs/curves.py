"""Which curves there are of a phase: a chart for figures that belong together; of several runs, a chart a figure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from prefkit.page.curves import Line, Mark, figure, fitted
from prefkit.page.html import Html
from prefkit.runs.groups import Group
from prefkit.runs.record import Phase, Run, Slices

MARKS = 12  # alarms on a chart
SLICES = 6  # lines of a chart of slices


class Chart(NamedTuple):
    """Figures that share an axis; `include` are values that the axis holds in any case."""

    title: str
    figures: dict[str, str]  # name in the log -> name in the legend
    log: bool = False
    include: tuple[float, ...] = ()
    note: str = ""
    exact: bool = False


CHARTS = [
    Chart("Loss", {"loss": "loss"}, log=True),
    Chart("Reward accuracy", {"rewards/accuracies": "accuracy"}, include=(0.5, 1.0)),
    Chart("Reward margin", {"rewards/margins": "margin"}, include=(0.0,)),
    Chart("Rewards", {"rewards/chosen": "chosen", "rewards/rejected": "rejected"}, include=(0.0,)),
    Chart("Log-probs", {"logps/chosen": "chosen", "logps/rejected": "rejected"}, note="nats an answer"),
    Chart(
        "Away from the reference",
        {"logps/chosen_change": "change of chosen", "kl": "KL estimate"},
        include=(0.0,),
        note="nats an answer",
    ),
    Chart(
        "Prefers the longer answer",
        {"longer/policy": "policy", "longer/data": "data"},
        note="share of pairs",
    ),
    Chart("Gradient norm", {"grad_norm": "norm before clipping"}, log=True),
    Chart("Learning rate", {"learning_rate": "learning rate"}, include=(0.0,), exact=True),
    Chart("Pairs a second", {"pairs_per_second": "pairs/s"}, include=(0.0,)),
    Chart("Tokens a second", {"tokens_per_second": "tokens/s"}, include=(0.0,), note="computed"),
    Chart("Waiting for data", {"data_wait": "share of time"}, include=(0.0,)),
    Chart("Packing efficiency", {"packing_efficiency": "share of bins filled"}, include=(0.0,)),
    Chart("Sharing factor", {"sharing_factor": "full sequences / computed"}, include=(1.0,)),
]


def charts(group: Group, runs: Sequence[Run], name: str) -> list[Html]:
    """The charts of a group of phases, of all that is logged; none for a figure that no phase has."""
    phases = [member.phase for member in group.members]
    known = {figure for chart in CHARTS for figure in chart.figures}
    others = dict.fromkeys(one for phase in phases for one in phase.figures if one not in known)
    every = [*CHARTS, *(Chart(one, {one: one}) for one in others)]
    return [drawn for chart in every for drawn in drawings(chart, group, runs, name)]


def drawings(chart: Chart, group: Group, runs: Sequence[Run], name: str) -> Iterator[Html]:
    """A chart of one run; of several runs a chart a figure, all on the same axis."""
    lines = {
        figure: [line for member in group.members for line in _lines(chart, figure, member.phase, member.run, runs)]
        for figure in chart.figures
    }
    lines = {figure: some for figure, some in lines.items() if some}
    if not lines:
        return
    every = [line for some in lines.values() for line in some]
    axis = fitted(every, log=chart.log, include=chart.include)
    how: dict[str, Any] = {
        "value_axis": axis,
        "marks": marks(group, runs),
        "group": name,
        "note": chart.note,
        "exact": chart.exact,
    }
    if len(runs) == 1:
        yield figure(chart.title, every, **how)
        return
    for one, some in lines.items():
        title = chart.title if len(chart.figures) == 1 else f"{chart.title}: {chart.figures[one]}"
        yield figure(title, some, **how)


def _lines(chart: Chart, name: str, phase: Phase, run: int, runs: Sequence[Run]) -> Iterator[Line]:
    """The lines of a figure: of training, and of the held-out pairs."""
    if len(runs) == 1:
        colour, shown = list(chart.figures).index(name), chart.figures[name]
        shown = "training" if len(chart.figures) == 1 and len(phase.held_out(name).steps) else shown
        held_name = "held-out" if len(chart.figures) == 1 else f"{chart.figures[name]}, held-out"
    else:
        colour, shown = run, runs[run].label
        held_name = f"{runs[run].label}, held-out"
    trained, held = phase.column(name), phase.held_out(name)
    if len(trained.steps):
        yield Line(shown, trained.steps, trained.values, colour)
    if len(held.steps):
        yield Line(held_name, held.steps, held.values, colour, held.low, held.high, dots=True)


def marks(group: Group, runs: Sequence[Run]) -> list[Mark]:
    """The alarms of a group, by the numbers that `numbered` gives them."""
    found = []
    for member in group.members:
        for number, alarm in enumerate(member.phase.alarms[:MARKS], start=1):
            colour = None if len(runs) == 1 else member.run
            found.append(Mark(alarm["step"], str(number), f"{alarm['alarm']}: {alarm['text']}", colour))
    return found


def of_slices(phase: Phase, name: str) -> Iterator[Html]:
    """A chart of accuracy for each column of slices: of the evaluations, or of windows of training if those are few."""
    held = phase.held_out_slices
    tables = held if len(held) > 2 else phase.lines.slices
    note = "held-out pairs" if tables is held else "pairs of each window of training"
    for column in dict.fromkeys(one for _, table in tables for one in table):
        lines = []
        for place, value in enumerate(largest(tables[-1][1].get(column, {}))):
            steps, values = _slice(tables, column, value)
            if len(steps) > 1:
                lines.append(Line(value, steps, values, place))
        if lines:
            axis = fitted(lines, include=(1.0,))
            yield figure(f"Accuracy by {column}", lines, value_axis=axis, group=name, note=note)


def largest(values: Mapping[str, Mapping[str, float]], most: int = SLICES) -> list[str]:
    """The slices with the most pairs, as people order them."""
    return sorted(sorted(values, key=lambda value: -values[value]["pairs"])[:most], key=order)


def order(value: str) -> tuple[float, str]:
    """Slices of margins by their bounds, all others by name."""
    first = value.split(" ", 1)[0]
    if first in ("up", "above"):
        return (-math.inf if first == "up" else math.inf), value
    try:
        return float(first), value
    except ValueError:
        return 0.0, value


def _slice(tables: Sequence[Slices], column: str, value: str) -> tuple[np.ndarray, np.ndarray]:
    found = [(step, table.get(column, {}).get(value, {}).get("rewards/accuracies")) for step, table in tables]
    known = [(step, share) for step, share in found if share is not None]
    return np.array([step for step, _ in known], dtype=float), np.array([share for _, share in known], dtype=float)
