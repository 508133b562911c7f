"""`prefkit report RUN`: what a run of `prefkit train` says, in one page; of several runs, side by side.

    record    what RUN holds, also while it goes on       findings  what the figures say
    groups    which phases of runs belong together        tables    evaluations, slices, samples, options, identity
    curves    which curves there are of a phase           page      all of it in one file (page.css)
    watch     the page of runs that go on, served (live.js)

It reads JSON and JSONL alone, with neither torch nor the model, so it answers at once and anywhere. A run of 100,000
steps (70 MB of metrics) takes some seconds and its page 1 MB, since curves are drawn from at most 240 stretches of
steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefkit.errors import DataError
from prefkit.manifest import write_text_atomically
from prefkit.runs import page, record

REPORT, COMPARISON = "report.html", "comparison.html"


def write(folders: Sequence[Path], path: Path | None = None) -> Path:
    """Write the report of one run, or of several compared; by default into the first. Returns where.

    DataError where there is no run, or a file of it is damaged.
    """
    runs = [record.read(folder, label) for folder, label in zip(folders, record.labels(folders), strict=True)]
    for folder, run in zip(folders, runs, strict=True):
        if run.state == "waiting":
            raise DataError(f"{folder}: no {record.RUN}, so there is no run to report.")
    path = path or folders[0] / (REPORT if len(runs) == 1 else COMPARISON)
    write_text_atomically(path, page.render(runs))
    return path
