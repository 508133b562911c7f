"""Charts as inline SVG, each with its numbers in a table beside or behind it, which is its text alternative."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prefkit.page.html import Html, tag

WIDTH, HEIGHT, FOOT = 480, 190, 28  # of a histogram, in the units of its SVG
TICKS = 6
LEAST_PLACES = 6  # for bars
CHARACTER = 10  # width of a character, on a phone
Bins = dict[int, int]


def histogram(title: str, series: Sequence[tuple[str, Bins]], label: Callable[[int], str], of: str) -> Html:
    """Bars of one or two series over the same bins, side by side; the table behind it has all numbers."""
    keys = sorted({key for _, bins in series for key in bins})
    aside = max(0, LEAST_PLACES - keys[-1] + keys[0]) // 2  # so that few bars are not as wide as the page
    places = range(keys[0] - aside, keys[-1] + 1 + aside)
    highest = max(max(bins.values(), default=0) for _, bins in series) or 1
    slot = WIDTH / len(places)
    wide = slot * 0.86 / len(series)
    bars = [
        tag(
            "rect",
            tag("title", f"{name} {label(key)}: {bins[key]:,}"),
            class_=f"series-{number}",
            x=f"{(key - places[0] + 0.07) * slot + number * wide:.1f}",
            y=f"{HEIGHT - FOOT - bins[key] / highest * (HEIGHT - FOOT - 8):.1f}",
            width=f"{wide:.1f}",
            height=f"{max(1.0, bins[key] / highest * (HEIGHT - FOOT - 8)):.1f}",
        )
        for number, (name, bins) in enumerate(series)
        for key in sorted(bins)
    ]
    every = -(-len(places) // TICKS)
    ticks = [
        _tick(label(key), (key - places[0] + 0.5) * slot)
        for key in places[every // 2 :: every]
        if keys[0] <= key <= keys[-1]
    ]
    foot = tag("line", x1=0, x2=WIDTH, y1=HEIGHT - FOOT, y2=HEIGHT - FOOT)
    drawn = tag(
        "svg", *bars, foot, *ticks, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=f"{title}: histogram"
    )
    legend = tag("p", *(key(number, name) for number, (name, _) in enumerate(series)), class_="legend")
    rows = [[label(key), *(f"{bins.get(key, 0):,}" for _, bins in series)] for key in keys]
    behind = tag("details", tag("summary", "Numbers"), table([of, *(name for name, _ in series)], rows))
    return tag("figure", tag("figcaption", title), legend if len(series) > 1 else None, drawn, behind)


def _tick(text: str, x: float) -> Html:
    """A number below the bars, within the edges of the SVG."""
    half = len(text) * CHARACTER / 2
    return tag("text", text, x=f"{min(max(x, half), WIDTH - half):.1f}", y=HEIGHT - 8, text_anchor="middle")


def key(number: int, name: str) -> Html:
    """An entry of a legend: a square in the colour of a series, and its name."""
    square = tag("rect", width=10, height=10, class_=f"series-{number}")
    return tag("span", tag("svg", square, viewBox="0 0 10 10", class_="key", aria_hidden="true"), f" {name} ")


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], caption: str | None = None) -> Html:
    """A table that scrolls by itself where it is too wide; all but the first column are numbers."""
    body = [tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:])) for row in rows]
    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption) if caption else None,
            tag("thead", tag("tr", *(tag("th", name, scope="col") for name in head))),
            tag("tbody", *body),
        ),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=caption or str(head[0]),
    )


def bar(value: float) -> Html:
    """A bar for a table's cell, of a value between 0 and 1; the number stands in another cell."""
    drawn = tag("rect", class_="series-0", width=f"{100 * value:.1f}", height=10)
    back = tag("rect", class_="track", width=100, height=10)
    return tag("svg", back, drawn, viewBox="0 0 100 10", class_="bar", aria_hidden="true", preserveAspectRatio="none")


def whisker(value: float, low: float, high: float) -> Html:
    """A share with its interval, on a line from 0 to 1 with a mark at one half."""
    return tag(
        "svg",
        tag("rect", class_="track", width=100, height=10),
        tag("line", x1=50, x2=50, y1=0, y2=10, class_="half"),
        tag(
            "rect", class_="series-0 spread", y=3, height=4,
            x=f"{100 * low:.1f}", width=f"{max(0.8, 100 * (high - low)):.1f}",
        ),
        tag("rect", class_="series-0", x=f"{max(0.0, 100 * value - 0.8):.1f}", width=1.6, height=10),
        viewBox="0 0 100 10", class_="bar", aria_hidden="true", preserveAspectRatio="none",
    )  # fmt: skip
