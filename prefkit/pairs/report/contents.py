"""All that the page shows of a data set, gathered from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from prefkit.manifest import Manifest
from prefkit.pairs.engine import ahead
from prefkit.pairs.report import fallen, figures, scan
from prefkit.pairs.report.figures import Figures
from prefkit.pairs.report.sample import Sample


class Contents(NamedTuple):
    """Figures, the largest groups of what fell, and rows and rejects to look at."""

    figures: Figures
    clusters: list[tuple[str, int]]  # the prompt of a cluster, rows that fell as near-duplicates of it
    hits: list[tuple[str, int]]  # evaluation item, candidates that met it
    rows: list[dict[str, Any]]
    rejects: list[dict[str, Any]]


def gather(folder: Path, record: Manifest) -> Contents:
    """Read a finished data set: its rejects first, then its shards, which have prompts of these."""
    fell = fallen.gather(folder, record)
    ids = {row[name] for row in fell.sample for name in ("prompt_id", "cluster_id") if row[name]}
    sample = Sample(folder, record, ids | {cluster for cluster, _ in fell.clusters})
    shards = sample.of(ahead(scan.shards(folder, record, sample.shown, sample.named), 1))
    gathered = figures.gather(record, figures.scales(folder, record), shards)
    clusters = [(sample.prompt(name) or f"{name} (nothing is left of it)", count) for name, count in fell.clusters]
    return Contents(gathered, clusters, fell.hits, sample.rows(), sample.rejects(fell.sample))
