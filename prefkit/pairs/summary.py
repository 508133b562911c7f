"""What `prefkit build-pairs` prints: the plan of a dry run, and the account at the end."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prefkit.manifest import Manifest
from prefkit.pairs import inputs
from prefkit.pairs.options import Options


def print_plan(options: Options, out: str, workers: int | None, limit: int | None) -> None:
    """The checked options with all defaults, the files, and where the result would go."""
    console = Console(soft_wrap=True, highlight=False)
    console.print_json(json.dumps(options.shown() | {"chunk_bytes": options.chunk_bytes}))
    files = [file for given in options.inputs for file in given.files]
    sizes = [inputs.size(file) for file in files]
    size = sum(sizes)
    parts = sum(max(1, -(-size // options.chunk_bytes)) for size in sizes)
    of_each = f", the first {limit:,} rows of each" if limit else ""
    plural = {number: "s" * (number != 1) for number in (len(files), parts)}
    console.print(
        f"reads {len(files)} file{plural[len(files)]}, {size:,} bytes{of_each}, in about {parts} part{plural[parts]} "
        f"with {workers or 'all'} workers",
        markup=False,
    )
    console.print(f"writes to {out}; nothing was written now", markup=False)


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
