"""All that the page shows of a data set, gathered from its files."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from prefkit.manifest import Manifest
from prefkit.pairs import scan
from prefkit.pairs.engine import ahead, result
from prefkit.pairs.report import fallen, figures
from prefkit.pairs.report.fallen import Fallen
from prefkit.pairs.report.figures import Figures
from prefkit.pairs.report.sample import Prompts, Sample


class Contents(NamedTuple):
    """Figures, the largest groups of what fell, and rows and rejects to look at."""

    figures: Figures
    clusters: list[tuple[str, int]]  # the prompt of a cluster, rows that fell as near-duplicates of it
    hits: list[tuple[str, int]]  # evaluation item, candidates that met it
    rows: list[dict[str, Any]]
    rejects: list[dict[str, Any]]


def gather(folder: Path, record: Manifest, left: Mapping[str, Path]) -> Contents:
    """Read a finished data set: its rejects in a thread, and meanwhile its shards, or the scans that are `left` of them
    (see `scan.shards`)."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(_fallen, folder, record)
        sample = Sample(record.kind)
        shards = sample.of(ahead(scan.shards(folder, record, left), 1))
        gathered = figures.gather(record, figures.scales(folder, record), shards)
        fell, prompts = result(coming)
    clusters = [(prompts.find(name) or f"{name} (nothing is left of it)", count) for name, count in fell.clusters]
    return Contents(gathered, clusters, fell.hits, sample.rows(), prompts.of_rejects(fell.sample))


def _fallen(folder: Path, record: Manifest) -> tuple[Fallen, Prompts]:
    """What fell, and the prompts that it names."""
    fell = fallen.gather(folder, record)
    ids = {row[name] for row in fell.sample for name in ("prompt_id", "cluster_id") if row[name]}
    return fell, Prompts(folder, record, ids | {cluster for cluster, _ in fell.clusters})
