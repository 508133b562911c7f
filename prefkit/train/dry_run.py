"""What `prefkit train --dry-run` found, for people: a table of the phases, and all options below it.

Options stand as a pipeline file writes them, those that are given in it apart from those that have their default.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prefkit.config import Pipeline, tables
from prefkit.runs.findings import duration
from prefkit.toml import in_words, print_options
from prefkit.train.options import TrainOptions


def render(pipeline: Pipeline, options: TrainOptions, planned: list[dict[str, Any]], console: Console) -> None:
    """Print what `estimate.plan` returned, and the options that it was asked with."""
    console.print(_phases(f"{pipeline.name}: {planned[0]['rows']:,} rows to train on", planned))
    for entry in planned:
        if "memory_gib" not in entry:
            console.print(f"{entry['phase']}: estimates: {entry['estimate']}", markup=False, soft_wrap=True)
    print_options(_options(pipeline, options.table()), console)
    console.print("Nothing was written now.")


def _phases(title: str, planned: list[dict[str, Any]]) -> Table:
    """A column a phase, a row a figure that one of them has."""
    table = Table(title=escape(title), title_justify="left")
    table.add_column("", overflow="fold")
    for entry in planned:
        table.add_column(entry["phase"], justify="right", overflow="fold")
    parts = dict.fromkeys(name for entry in planned for name in entry.get("memory_gib", {}) if name != "total")
    for figures in zip(*(_figures(entry, list(parts)) for entry in planned), strict=True):
        if any(value for _, value in figures):
            table.add_row(figures[0][0], *(escape(value or "–") for _, value in figures))
    return table


def _figures(entry: dict[str, Any], parts: list[str]) -> Iterator[tuple[str, str]]:
    """Every figure that a phase may have, by name; empty where it has none. `parts` are those of memory."""
    objective, memory = entry["objective"], entry.get("memory_gib", {})
    parameters, seconds = entry.get("parameters"), 3600 * entry.get("hours", 0)

    def number(name: str, *, unlike: int | None = None) -> str:
        return f"{entry[name]:,}" if name in entry and entry[name] != unlike else ""

    yield "objective", objective if isinstance(objective, str) else " + ".join(term["use"] for term in objective)
    yield "epochs", number("epochs")
    yield "examples a step", number("pairs_per_step")
    yield "steps, at most", number("steps")
    yield "reference", entry["reference"] or ""
    yield "parameters", number("parameters")
    yield "  active a token", number("active", unlike=parameters)
    yield "  that learn", number("learning", unlike=parameters)
    yield "tokens", number("tokens")
    yield "GiB of memory", f"{memory['total']:.3g}" if memory else ""
    for name in parts:
        yield f"  {name}", f"{memory[name]:.3g}" if memory.get(name) else ""
    yield "FLOPs", f"{entry['flops']:.1e}" if memory else ""
    yield "time", (duration(seconds) if seconds >= 1 else "below 1 s") if memory else ""
    yield "  at TFLOP/s", f"{entry['at_tflops']:g}" if memory else ""


def _options(pipeline: Pipeline, checked: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What the pipeline file gives, and below what has its default."""
    yield "[model]", in_words(checked["model"])
    for phase, written in zip(checked["train"], tables(pipeline.table, "train", str(pipeline.path)), strict=True):
        options = {key: value for key, value in phase.items() if key != "name"}
        given = {key: value for key, value in options.items() if key in written}
        yield f"[[train]] {phase['name']}", in_words(given)
        yield "  by default", in_words({key: value for key, value in options.items() if key not in given})
