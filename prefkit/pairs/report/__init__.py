"""`prefkit report`: report.html beside a finished data set, one file to look at the data with.

    figures   one pass over the shards                      findings  what the figures say
    sample    pairs and rejects to look at                  flow      what came, went on and fell
    page      all of it in one file (page.css, page.js), of the parts in `prefkit.page`

It is made from the data set's files alone, holds no time and no path, and is the same for the same data set. It reads
all texts once, to measure them, so it is a command of its own and not a part of the build.
"""

from __future__ import annotations

from pathlib import Path

from prefkit import manifest
from prefkit.errors import DataError
from prefkit.pairs.publish import REPORT
from prefkit.pairs.report import figures, findings, page, sample


def write(folder: Path, path: Path | None = None) -> Path:
    """Write the report of a finished data set, by default into it; returns where.

    DataError where there is no data set, or one without pairs.
    """
    record = manifest.read(folder)
    if record.kind != "pairs":
        tells = (
            "Its README.md tells where the rows went, and prefkit view shows them."
            if record.kind == "labels"
            else "None of its rows fell."
        )
        raise DataError(f"{folder}: holds {record.kind}, not pairs, of which alone a report is drawn. {tells}")
    for shard in record.shards:
        if not (folder / shard.path).is_file():
            raise DataError(f"{folder / shard.path}: missing. prefkit verify {folder} tells what is whole.")
    gathered = figures.gather(folder, record)
    shown = {"pairs": sample.pairs(folder, record), "rejects": sample.rejects(folder, record)}
    cluster_prompts = sample.prompts(folder, record, {cluster for cluster, _ in gathered.clusters})
    path = path or folder / REPORT
    said = findings.findings(record, gathered)
    manifest.write_text_atomically(path, page.render(record, gathered, said, cluster_prompts, shown))
    return path
