"""Curves: what is drawn is what was given, few points are drawn of many values, and axes are round."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefkit.page import curves
from prefkit.page.curves import Axis, Line, Mark, figure, fitted, number, points, ticks, trailing_mean
from tests.pages import Outline

VALUES = st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), min_size=1, max_size=60)


@given(VALUES, st.integers(1, 20))
def test_the_trailing_mean_is_that_of_the_last_values(values: list[float], window: int) -> None:
    found = trailing_mean(np.array(values), window)
    for at in range(len(values)):
        last = [value for value in values[max(0, at + 1 - window) : at + 1] if not math.isnan(value)]
        if last:
            assert found[at] == pytest.approx(sum(last) / len(last), rel=1e-9, abs=1e-4)
        else:
            assert math.isnan(found[at])


@given(st.integers(1, 2000), st.integers(0, 2**31))
def test_points_are_few_and_keep_every_peak(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    line = Line("x", np.arange(1.0, count + 1), rng.normal(size=count))
    held = points(line, 1)
    assert len(held.steps) == min(count, curves.POINTS)
    assert held.steps[-1] == count
    assert held.least.min() == line.values.min()
    assert held.greatest.max() == line.values.max()
    starts = np.append(0, held.steps[:-1]).astype(int)
    for first, last, least, greatest in zip(starts, held.steps.astype(int), held.least, held.greatest, strict=True):
        assert (least, greatest) == (line.values[first:last].min(), line.values[first:last].max())


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_some_round_values_within_the_axis(low: float, size: float) -> None:
    axis = Axis(low, low + max(size, abs(low) * 1e-6))
    found = ticks(axis)
    assert 2 <= len(found) <= 7
    steps = np.diff(found)
    assert axis.low - 1e-3 * steps[0] <= found[0] < found[-1] <= axis.high + 1e-3 * steps[0]
    assert np.allclose(steps, steps[0], rtol=1e-3)
    assert f"{steps[0]:.2e}"[:4] in ("1.00", "2.00", "2.50", "5.00"), steps[0]


def test_logarithmic_ticks_are_powers_of_ten() -> None:
    assert ticks(Axis(0.02, 3000, log=True)) == pytest.approx([0.1, 1, 10, 100, 1000])
    assert len(ticks(Axis(1e-9, 1e9, log=True))) <= 6


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-0.0, "0"), (3.0, "3"), (-1.5, "−1.500"), (12345.6, "12,346"), (0.00012345, "1.23e-4"),
     (2e-7, "2e-7"), (123.456, "123.5"), (math.nan, "–"), (math.inf, "–"), (-2000.4, "−2,000"), (0.5, "0.5000")],
)  # fmt: skip
def test_numbers_for_people(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.25, "0.25"), (-2.5, "−2.5"), (2e-4, "2e-4"), (7500.0, "7,500"), (10_000.0, "10k"),
     (-250_000.0, "−250k"), (2.5e6, "2.5M"), (1e10, "10G"), (-1e-5, "-1e-5")],
)  # fmt: skip
def test_ticks_are_short(value: float, text: str) -> None:
    assert curves._tick(value) == text


def test_axes_hold_all_values_and_are_logarithmic_only_where_it_shows_more() -> None:
    wide = Line("x", np.arange(3.0), np.array([0.1, 1.0, 500.0]))
    assert fitted([wide], log=True) == Axis(0.1, 500.0, log=True)
    assert not fitted([wide]).log
    assert not fitted([wide._replace(values=np.array([0.0, 1.0, 500.0]))], log=True).log, "0 has no logarithm"
    narrow = fitted([wide._replace(values=np.array([0.5, 0.6, 0.9]))], include=(0.5, 1.0), log=True)
    assert narrow == Axis(0.5, 1.0)
    assert fitted([wide._replace(values=np.array([math.nan] * 3))]) == Axis(0.0, 1.0)
    for value in (2.0, 0.0, -3.0):
        flat = fitted([wide._replace(values=np.array([value] * 3))], include=(value,))
        assert flat.low < value < flat.high
        assert ticks(flat)


def test_what_has_no_value_breaks_the_line_and_the_page_says_what_it_draws() -> None:
    steps = np.arange(1.0, 6.0)
    line = Line("<b>", steps, np.array([1.0, 2.0, math.nan, 4.0, math.inf]))
    held = Line(
        "held", np.array([2.0, 4.0]), np.array([1.5, 3.0]), 1, np.array([1.0, 2.5]), np.array([2.0, 3.5]), dots=True
    )
    text = figure("Loss & co", [line, held], marks=[Mark(3, "1", 'an "alarm"')], group="g")
    outline = Outline(text)
    drawn = {given["data-name"]: given for _, given in outline.elements if "data-name" in given}
    assert drawn["<b>"]["data-least"] == "1 2 - 4 -"
    assert (drawn["held"]["data-mean"], drawn["held"]["data-low"], drawn["held"]["data-high"]) == (
        "1.5 3",
        "1 2.5",
        "2 3.5",
    )
    paths = [given["d"] for name, given in outline.elements if name == "path" and given.get("class") == "mean"]
    assert paths[0] is not None
    assert paths[0].count("M") == 2, "two pieces"
    assert "nan" not in text
    assert "inf" not in text
    (svg,) = [given for name, given in outline.elements if name == "svg" and given.get("role") == "img"]
    said = "<b>: from 1 to 4, between 1 and 4; held: from 1.500 to 3, between 1.500 and 3"
    assert svg["aria-label"] == f"Loss & co by step. {said}"
    assert "1.500 [1, 2]" in text, "the table has the interval"
    assert figure("empty", []).count("<tr>") == 1
