"""What the sections of the page are made of, whatever the rows are."""

from __future__ import annotations

from typing import Any

from prefkit.page.charts import histogram, table, whisker
from prefkit.page.html import Html, tag
from prefkit.pairs.report.figures import HALF_OCTAVES, Figures
from prefkit.pairs.report.shares import Share
from prefkit.pairs.report.words import interval

MOST_ROWS = 30  # of a table of sources, languages or models
Section = tuple[str, str, Html]  # its id, its name in the menu, and itself


def scores(figures: Figures, title: str, sides: tuple[str, str]) -> Html:
    """Histograms of the scores of two kinds of answers."""
    shown = [(side, bins(figures, f"{side}_score")) for side in sides]
    return histogram(title, shown, figures.scales["score"].label, "score about")


def lengths(figures: Figures, sides: tuple[str, str]) -> Html:
    """Histograms of the lengths of two kinds of answers."""
    shown = [(side, bins(figures, f"{side}_chars")) for side in sides]
    return histogram("Length of answers, in characters", shown, _characters, "characters from")


def bins(figures: Figures, name: str) -> dict[int, int]:
    """The counts of a histogram."""
    return {int(key): sum(splits.values()) for key, splits in figures.counts[name].items() if key is not None}


def _characters(key: int) -> str:
    """The least length of a bin, to two digits."""
    least = max(0, round(2 ** (key / HALF_OCTAVES)) - 1)
    return f"{least / 1000:.1f}k" if least >= 1000 else str(least)


def share_table(head: list[str], shown: list[tuple[str, Share]], caption: str) -> Html:
    """A share a row, with its interval, drawn, and what it is a share of."""
    rows = [[name, interval(one), whisker(one.value, one.low, one.high), f"{one.total:,}"] for name, one in shown]
    return table(head, rows, caption)


def first(shares: dict[str, Any]) -> list[tuple[str, Any]]:
    """As many as a table shows."""
    return list(shares.items())[:MOST_ROWS]


def with_parts(whole: Any, shares: dict[str, Any]) -> list[tuple[str, Any]]:
    """All, and then each part, where there are several."""
    return [("all", whole), *(first(shares) if len(shares) > 1 else [])]


def left_out(rows: Any) -> Html | None:
    """How many a table does not show."""
    left = len(rows) - MOST_ROWS
    return tag("p", f"{left:,} smaller ones are not shown.", class_="quiet") if left > 0 else None
