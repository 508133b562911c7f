"""Curves by step as inline SVG: every value faintly, their trailing mean boldly, few values with intervals as dots.

A curve of more than POINTS values is drawn from POINTS stretches of steps: the least and the greatest value of each, so
that no peak is lost, and the trailing mean at its end. The same numbers stand in the element's data attributes, where
`curves.js` finds them for its crosshair, and some of them in a table behind the chart, which is its text alternative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from prefkit.page.charts import table
from prefkit.page.html import Html, join, tag

WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 62, 472, 16, 218  # of the plot, in the units of the SVG
POINTS = 240
SMOOTHED = 25  # a trailing mean goes over one of so many parts of the steps
WIDE_RATIO = 30  # from the least to the greatest value, from which on a logarithmic axis shows more
ROWS = 8  # of the table behind a chart, and as many of what has dots
COLOURS = 8


class Line(NamedTuple):
    """Values by step in one of COLOURS colours; `dots` for few values that are each a measurement of their own."""

    name: str
    steps: np.ndarray
    values: np.ndarray
    colour: int = 0
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    dots: bool = False


class Mark(NamedTuple):
    """Something that happened at a step: its number in a list elsewhere on the page, and what it is."""

    step: int
    label: str
    text: str
    colour: int | None = None


class Axis(NamedTuple):
    """Values from `low` to `high`; their logarithms if `log`."""

    low: float
    high: float
    log: bool = False

    def share(self, values: np.ndarray) -> np.ndarray:
        """Where values lie, between 0 and 1; NaN where they have no place."""
        if self.log:
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.log(values / self.low) / math.log(self.high / self.low)
        return (values - self.low) / (self.high - self.low)


class Points(NamedTuple):
    """What is drawn of a line: steps, the trailing mean at each, the least and greatest value since the one before
    (both the value itself where every step has a point), and the interval at the step."""

    steps: np.ndarray
    mean: np.ndarray
    least: np.ndarray
    greatest: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None


def figure(
    title: str,
    lines: Sequence[Line],
    *,
    marks: Sequence[Mark] = (),
    value_axis: Axis | None = None,
    group: str = "",
    note: str = "",
    exact: bool = False,
) -> Html:
    """A chart of lines that share their axes; crosshairs of charts of one `group` move together. An axis that is not
    given fits the values; values that are `exact` are no measurements, and need no mean."""
    axis = value_axis or fitted(lines)
    longest = max((len(line.steps) for line in lines if not line.dots), default=0)
    window = 1 if exact else smoothed_over(longest)
    steps = Axis(0.0, max([1.0, *(float(line.steps[-1]) for line in lines if len(line.steps))]))
    reduced = [points(line, 1 if line.dots else window) for line in lines]
    drawn = [_line(line, held, steps, axis) for line, held in zip(lines, reduced, strict=True)]
    said = "; ".join(_in_words(line, held) for line, held in zip(lines, reduced, strict=True))
    svg = tag(
        "svg",
        *_grid(steps, axis),
        *(_mark(mark, steps) for mark in marks),
        *drawn,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{title} by step. {said}",
        data_last=f"{steps.high:.0f}",
    )
    notes = ", ".join(one for one in (note, "logarithmic" if axis.log else "") if one)
    caption = tag("figcaption", title, tag("small", notes) if notes else None)
    entries = [_entry(line, held) for line, held in zip(lines, reduced, strict=True)]
    legend = tag("p", *entries, tag("span", class_="at"), class_="legend")
    behind = tag("details", tag("summary", "Numbers"), _numbers(title, lines, reduced))
    return tag("figure", caption, legend, svg, behind, class_="curves", data_group=group or None)


def fitted(lines: Sequence[Line], *, log: bool = False, include: Sequence[float] = ()) -> Axis:
    """The axis that holds all values, and those to `include`; logarithmic if `log` is wanted and worth it."""
    parts = [part for line in lines for part in (line.values, line.low, line.high) if part is not None]
    values = np.concatenate([np.asarray(include, dtype=float), *parts]) if parts else np.array([0.0])
    values = values[np.isfinite(values)]
    if not len(values):
        return Axis(0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    if log and low > 0 and high > WIDE_RATIO * low:
        return Axis(low, high, log=True)
    if low == high:
        return Axis(low - (0.05 * abs(low) or 1.0), high + (0.05 * abs(high) or 1.0))
    margin = 0.05 * (high - low)
    ends = {float(value) for value in include}
    return Axis(low if low in ends else low - margin, high if high in ends else high + margin)


def trailing_mean(values: np.ndarray, window: int) -> np.ndarray:
    """At each place the mean of the finite values among the last `window`; NaN where there are none."""
    known = np.isfinite(values)
    sums, counts = (np.concatenate([[0.0], np.cumsum(part)]) for part in (np.where(known, values, 0.0), known))
    first = np.maximum(0, np.arange(1, len(values) + 1) - window)
    with np.errstate(invalid="ignore"):
        return (sums[1:] - sums[first]) / (counts[1:] - counts[first])


def smoothed_over(longest: int) -> int:
    """How many steps the trailing mean of a chart goes over, by those of its longest line."""
    return max(1, longest // SMOOTHED)


def how_drawn(longest: int) -> str:
    """What is bold and what is faint in charts whose longest line has so many steps, in words."""
    window = smoothed_over(longest)
    if window == 1:
        return ""
    stretch = f"every step, in stretches of {-(-longest // POINTS):,}" if longest > POINTS else "every step"
    return f"Bold: mean of the last {window:,} steps. Faint: {stretch}."


def points(line: Line, window: int) -> Points:
    """What is drawn of a line, at most POINTS points."""
    mean = trailing_mean(line.values, window)
    if len(line.steps) <= POINTS:
        return Points(line.steps, mean, line.values, line.values, line.low, line.high)
    starts = np.linspace(0, len(line.steps), POINTS + 1).astype(int)[:-1]
    ends = np.append(starts[1:], len(line.steps)) - 1
    least, greatest = np.fmin.reduceat(line.values, starts), np.fmax.reduceat(line.values, starts)
    low, high = (None if end is None else end[ends] for end in (line.low, line.high))
    return Points(line.steps[ends], mean[ends], least, greatest, low, high)


def number(value: float) -> str:
    """A figure for people: four digits that count, thousands with commas, a true minus sign."""
    if not math.isfinite(value):
        return "–"
    size, value = abs(value), value + 0.0  # of −0 as well
    if size >= 1000 or value == int(value):
        text = f"{value:,.0f}"
    elif size >= 1e-3:
        text = f"{value:.{max(0, 3 - math.floor(math.log10(size)))}f}"
    else:
        mantissa, power = f"{value:.2e}".split("e")
        text = f"{float(mantissa):g}e{int(power)}"
    return text.replace("-", "−") if "e" not in text else text


def ticks(axis: Axis) -> list[float]:
    """Round values within an axis: three to six, or the powers of ten."""
    if axis.log:
        powers = range(math.ceil(math.log10(axis.low)), math.floor(math.log10(axis.high)) + 1)
        every = -(-len(powers) // 5) or 1
        return [10.0**power for power in powers][::every] or [axis.low, axis.high]
    rough = (axis.high - axis.low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if rough <= power * factor * 1.0001)
    first, last = math.ceil(axis.low / step - 1e-9), math.floor(axis.high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _x(steps: Axis, values: np.ndarray) -> np.ndarray:
    return LEFT + steps.share(values) * (RIGHT - LEFT)


def _y(axis: Axis, values: np.ndarray) -> np.ndarray:
    return BOTTOM - axis.share(values) * (BOTTOM - TOP)


def _path(x: np.ndarray, y: np.ndarray) -> str:
    """SVG path data of a line that is broken where a value has no place."""
    parts, pen = [], "M"
    for here, there in zip(x.tolist(), y.tolist(), strict=True):
        if math.isfinite(there):
            parts.append(f"{pen}{here:.1f} {there:.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(parts)


def _line(line: Line, held: Points, steps: Axis, axis: Axis) -> Html:
    x = _x(steps, held.steps)
    every = bool(np.array_equal(held.least, held.greatest, equal_nan=True))
    data = {"data_name": line.name, "data_x": _listed(held.steps), "data_mean": _listed(held.mean)}
    data |= {"data_least": _listed(held.least)} | ({} if every else {"data_greatest": _listed(held.greatest)})
    if held.low is not None and held.high is not None:
        data |= {"data_low": _listed(held.low), "data_high": _listed(held.high)}
    if line.dots:
        return tag("g", *_dots(held, every, x, axis), class_=f"held line-{line.colour % COLOURS}", **data)
    ends = np.stack([held.least, held.greatest], axis=1).reshape(-1)  # up and down within each stretch
    raw = _path(x, _y(axis, held.least)) if every else _path(np.repeat(x, 2), _y(axis, ends))
    mean = _path(x, _y(axis, held.mean))
    faint = tag("path", d=raw, class_="raw") if raw != mean else None
    return tag("g", faint, tag("path", d=mean, class_="mean"), class_=f"line-{line.colour % COLOURS}", **data)


def _dots(held: Points, every: bool, x: np.ndarray, axis: Axis) -> list[Html]:
    """A thin line between measurements, their intervals, and a dot each where every one has its place."""
    y = _y(axis, held.mean)
    drawn = [tag("path", d=_path(x, y), class_="between")] if len(x) > 2 else []
    if held.low is not None and held.high is not None:
        ends = zip(x.tolist(), _y(axis, held.low).tolist(), _y(axis, held.high).tolist(), strict=True)
        drawn.append(tag("path", d="".join(f"M{at:.1f} {low:.1f}V{high:.1f}" for at, low, high in ends)))
    for at, there in zip(x.tolist(), y.tolist(), strict=True):
        if every and math.isfinite(there):
            drawn.append(tag("circle", cx=f"{at:.1f}", cy=f"{there:.1f}", r=4))
    return drawn


def _listed(values: np.ndarray) -> str:
    """Numbers for the script: six digits, with spaces between; `-` where there is none."""
    return " ".join(f"{value:.6g}" if math.isfinite(value) else "-" for value in values.tolist())


def _grid(steps: Axis, axis: Axis) -> list[Html]:
    drawn = []
    for value in ticks(axis):
        y = float(_y(axis, np.array(value)))
        drawn.append(tag("line", x1=LEFT, x2=RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}"))
        drawn.append(tag("text", _tick(value), x=LEFT - 6, y=f"{y + 4:.1f}", text_anchor="end"))
    for value in [one for one in ticks(steps) if one == int(one)]:
        x = float(_x(steps, np.array(value)))
        drawn.append(tag("text", f"{value:,.0f}", x=f"{x:.1f}", y=HEIGHT - 12, text_anchor="middle"))
    return drawn


def _tick(value: float) -> str:
    """A round value in few characters: 0.25, 2e-4, 10k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):,.6g}{letter}".replace("-", "−")
    if 0 < abs(value) < 1e-3:
        mantissa, power = f"{value:.5e}".split("e")
        return f"{float(mantissa):g}e{int(power)}"
    return f"{value:,.6g}".replace("-", "−")


def _mark(mark: Mark, steps: Axis) -> Html:
    x = float(_x(steps, np.array(float(mark.step))))
    colour = "" if mark.colour is None else f" line-{mark.colour % COLOURS}"
    rule = tag("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=TOP, y2=BOTTOM)
    label = tag("text", mark.label, x=f"{x:.1f}", y=TOP - 4, text_anchor="middle")
    return tag("g", tag("title", f"step {mark.step:,}: {mark.text}"), rule, label, class_=f"mark{colour}")


def _entry(line: Line, held: Points) -> Html:
    """A line's place in the legend, with its last value, which the crosshair replaces by that at its step."""
    last = number(float(held.mean[-1])) if len(held.mean) else "–"
    if line.dots:
        shape = join(tag("line", x1=0, x2=18, y1=5, y2=5, class_="between"), tag("circle", cx=9, cy=5, r=4))
    else:
        shape = tag("line", x1=0, x2=18, y1=5, y2=5, class_="mean")
    colour = f"held line-{line.colour % COLOURS}" if line.dots else f"line-{line.colour % COLOURS}"
    drawn = tag("svg", tag("g", shape, class_=colour), viewBox="0 0 18 10", class_="stroke", aria_hidden="true")
    return tag("span", drawn, f" {line.name} ", tag("output", last))


def _in_words(line: Line, held: Points) -> str:
    known = held.mean[np.isfinite(held.mean)]
    if not len(known):
        return f"{line.name}: no values"
    first, last, least, greatest = (number(float(x)) for x in (known[0], known[-1], known.min(), known.max()))
    return f"{line.name}: from {first} to {last}, between {least} and {greatest}"


def _numbers(title: str, lines: Sequence[Line], reduced: Sequence[Points]) -> Html:
    """Some rows of each line, evenly spread, with the first and the last."""
    rows: dict[float, list[Any]] = {}
    for place, held in enumerate(reduced):
        if not len(held.steps):
            continue
        for at in np.unique(np.linspace(0, len(held.steps) - 1, min(ROWS, len(held.steps))).round().astype(int)):
            row = rows.setdefault(float(held.steps[at]), ["–"] * len(lines))
            row[place] = number(float(held.mean[at]))
            if held.low is not None and held.high is not None:
                row[place] += f" [{number(float(held.low[at]))}, {number(float(held.high[at]))}]"
    body = [[f"{step:,.0f}", *cells] for step, cells in sorted(rows.items())]
    return table(["step", *(line.name for line in lines)], body, title)
