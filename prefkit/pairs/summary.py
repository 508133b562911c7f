"""What `prefkit build-pairs` prints: the plan of a dry run, and the account at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prefkit.manifest import Manifest
from prefkit.pairs import inputs
from prefkit.pairs.options import Options
from prefkit.toml import as_toml, in_words, print_options


def plan(options: Options, out: str, workers: int | None, limit: int | None) -> dict[str, Any]:
    """The checked options with all defaults, the files, and where the result would go, as JSON-able data."""
    sizes = [inputs.size(file) for given in options.inputs for file in given.files]
    return {
        "options": options.shown() | {"chunk_bytes": options.chunk_bytes},
        "plan": {
            "files": len(sizes),
            "bytes": sum(sizes),
            "rows_of_each": limit,
            "parts": sum(max(1, -(-size // options.chunk_bytes)) for size in sizes),
            "workers": workers,
            "out": out,
        },
    }


def print_plan(found: dict[str, Any], console: Console) -> None:
    """What `plan` found, for people: the options of each step, and what would be read."""
    print_options(_steps(found["options"]), console)
    of = found["plan"]
    of_each = f", the first {of['rows_of_each']:,} rows of each" if of["rows_of_each"] else ""
    plural = {number: "s" * (number != 1) for number in (of["files"], of["parts"])}
    console.print(
        f"reads {of['files']} file{plural[of['files']]}, {of['bytes']:,} bytes{of_each}, in about {of['parts']} "
        f"part{plural[of['parts']]} with {of['workers'] or 'all'} workers",
        markup=False,
        soft_wrap=True,
    )
    console.print(f"writes to {of['out']}; nothing was written now", markup=False, soft_wrap=True)


def _steps(options: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each step and its options, after the function that it uses, if that goes by another name."""
    for name, held in options.items():
        for number, step in enumerate(held if isinstance(held, list) and held else [held]):
            yield name if number == 0 else "", _written(name, step)


def _written(name: str, step: Any) -> str:
    if not isinstance(step, dict):
        return as_toml(step) if step else "off"
    use = step.get("use", name)
    function = use.rpartition(":")[2] if use.startswith("prefkit.") else use
    paths = {"paths": list(step["paths"])} if "paths" in step else {}
    options = {key: step[key] for key in step if key != "use" and not key.endswith("_sha256")}  # not for people
    said = in_words(options | paths)
    return ": ".join(part for part in (function if function != name else "", said) if part)


def print_record(record: Manifest, out: str | Path, seconds: float, console: Console) -> None:
    """A table of what came in, what fell at which stage and why, and what went out."""
    table = Table(title=None, header_style="bold")
    for name, justify in (
        ("stage", "left"),
        ("unit", "left"),
        ("in", "right"),
        ("rejected", "left"),
        ("", "right"),
        ("out", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for stage in record.stages:
        reasons = sorted(stage.rejected.items(), key=lambda item: -item[1]) or [("–", 0)]
        for number, (reason, count) in enumerate(reasons):
            first = number == 0
            table.add_row(
                stage.stage if first else "",
                stage.unit if first else "",
                f"{stage.came_in:,}" if first else "",
                escape(reason),
                f"{count:,}" if count else "",
                f"{stage.went_out:,}" if first else "",
            )
    console.print(table)
    for remark in record.remarks:
        console.print(remark, markup=False, soft_wrap=True)
    train, test = record.rows("train"), record.rows("test")
    if record.generations:
        files = [shard for shard in record.shards[: record.generations[-1].shards] if shard.split != "rejects"]
        before = sum(shard.rows for shard in files)
        console.print(f"{_number(before, record.kind)} of before + {train + test - before:,} new", markup=False)
    console.print(
        f"{_number(train + test, record.kind)} ({train:,} train, {test:,} test) in {out}, {seconds:.1f} s",
        markup=False,
        soft_wrap=True,
    )


def _number(count: int, kind: str) -> str:
    return f"{count:,} {kind.removesuffix('s') if count == 1 else kind}"
