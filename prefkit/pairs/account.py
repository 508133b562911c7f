"""The account of a build: of all rows, candidates and pairs, how many came into each stage, fell there and went on."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.errors import DataError
from prefkit.manifest import InputFile, Manifest, StageReport
from prefkit.pairs import gone
from prefkit.pairs.engine import counts
from prefkit.pairs.extend import Before

if TYPE_CHECKING:
    from prefkit.pairs.steps import Source


def account(
    planned: Manifest,
    sources: Sequence[Source],
    read: Sequence[Path],
    selected: Sequence[Path],
    before: Before,
    remarks: Sequence[str],
) -> Manifest:
    """Add to a manifest what happened to every row and candidate, also before, and remarks. DataError where nothing is
    left, with the main reasons."""
    reads, selects = [counts(folder) for folder in read], [counts(folder) for folder in selected]
    stages = _stages(planned.kind, reads, selects)
    if before.record:
        stages = [_sum(*both) for both in zip(before.record.stages, stages, strict=True)]
    if not stages[-1].went_out:
        raise DataError(" ".join([gone.sentence(stages, [*read, *selected]), *remarks]))
    remarks = list(dict.fromkeys([*(before.record.remarks if before.record else []), *remarks]))  # each once
    return dataclasses.replace(planned, inputs=_rows_of_files(planned, sources, reads), stages=stages, remarks=remarks)


def _stages(kind: str, reads: Sequence[Any], selects: Sequence[Any]) -> list[StageReport]:
    """What became of the rows, of their candidates, and of the pairs (or labels) that were made of these."""
    fallen: dict[tuple[str, bool], Counter[str]] = defaultdict(Counter)
    for part in [*reads, *selects]:
        for stage, reason, is_row, count in part["by_reason"]:
            fallen[stage, is_row][reason] += count
    stages = [_report("read", "rows", sum(part["rows"] for part in reads), fallen["read", True])]
    left = sum(part["candidates"] for part in reads)
    for stage in ("read", "filter", "decontaminate", "dedupe", "binarize"):
        stages.append(_report(stage, "candidates", left, fallen[stage, False]))
        left = stages[-1].went_out
    lost = _total(part["lost"] for part in selects)
    kept = sum(part["train"] + part["test"] for part in selects)
    return [*stages, _report("binarize", kind, kept + lost.total(), lost)]


def _sum(old: StageReport, new: StageReport) -> StageReport:
    """A stage of a build that was added to another."""
    return _report(new.stage, new.unit, old.came_in + new.came_in, _total([old.rejected, new.rejected]))


def _report(stage: str, unit: str, came_in: int, rejected: Counter[str]) -> StageReport:
    return StageReport(stage, unit, came_in, dict(sorted(rejected.items())), came_in - rejected.total())


def _total(each: Iterable[dict[str, int]]) -> Counter[str]:
    """The sums of some counts, without those that are 0."""
    total: Counter[str] = Counter()
    for one in each:
        total.update(one)
    return +total


def _rows_of_files(planned: Manifest, sources: Sequence[Source], reads: Sequence[Any]) -> list[InputFile]:
    each = iter(reads)
    totals = [sum(next(each)["rows"] for _ in given.parts()) for given in sources]
    new = planned.inputs[-len(sources) :]
    counted = [dataclasses.replace(file, rows=total) for file, total in zip(new, totals, strict=True)]
    return [*planned.inputs[: -len(sources)], *counted]
