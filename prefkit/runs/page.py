"""The page of one run, or of several compared: its sections from what `record` read."""

from __future__ import annotations

from collections.abc import Sequence

from prefkit.page.curves import how_drawn
from prefkit.page.document import document, findings, nav, read, section
from prefkit.page.html import Html, tag
from prefkit.runs import curves, tables
from prefkit.runs.findings import findings as found_in
from prefkit.runs.groups import Group, grouped
from prefkit.runs.record import Run

NOTE = "Brackets are 95 % intervals over held-out pairs; pairs of one prompt count as what they are worth."


def render(runs: Sequence[Run], *, live: bool = False) -> str:
    """The whole HTML file; one that is `live` asks the server that it came from for what is new."""
    groups = grouped(runs)
    names = ", ".join(run.label for run in runs)
    title = f"Training report: {names}" if len(runs) == 1 else f"Training report: {names} compared"
    places = [("findings", "Findings"), *((f"phase-{at}", group.title) for at, group in enumerate(groups))]
    places += [("alarms", "Alarms"), ("options", "Options"), ("identity", "Identity")]
    sections = [
        findings(found_in(runs, groups), NOTE),
        *(_phase(group, runs, f"phase-{at}") for at, group in enumerate(groups)),
        section("alarms", "Alarms", tables.alarms(groups, runs)),
        section("options", "Options", tables.options(groups, runs)),
        section("identity", "Identity", tables.identity(runs)),
    ]
    scripts = [read("prefkit.page", "curves.js"), *([read(__package__, "live.js")] if live else [])]
    return document(
        title,
        tag("a", "To the findings", href="#findings", class_="skip"),
        tag("header", tag("h1", title), tables.progress(runs), id="header"),
        tag("p", "Live.", id="live") if live else None,
        nav(places),
        tag("main", *sections),
        style=read(__package__, "page.css"),
        script="\n".join(scripts),
        connects=live,
    )


def _phase(group: Group, runs: Sequence[Run], name: str) -> Html:
    drawn = curves.charts(group, runs, name)
    longest = max(member.phase.step for member in group.members)
    by_slice = list(curves.of_slices(group.members[0].phase, name)) if len(runs) == 1 else []
    of_slices = list(tables.slices(group, runs))
    held_out = tables.evaluations(group, runs)
    return section(
        name,
        group.title,
        tag("p", how_drawn(longest), class_="quiet"),
        tag("div", *drawn, class_="charts") if drawn else tag("p", "Nothing has been logged yet."),
        tag("h3", "Held-out evaluations") if held_out else None,
        held_out,
        tag("h3", "Slices") if of_slices else None,
        tag("div", *by_slice, class_="charts") if by_slice else None,
        tag("div", *of_slices, class_="two") if of_slices else None,
        tables.samples(group, runs),
        tables.account(group.members[0].phase) if len(runs) == 1 else None,
    )
