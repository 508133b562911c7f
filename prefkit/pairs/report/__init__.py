"""report.html beside a finished data set, one file to look at the data with.

    sample    rows and rejects to look at                   figures   what is counted of every row; shares: intervals
    contents  all that was gathered                         fallen    one pass over the rejects
    findings  what the figures say, in sentences (words)
    page      all of it in one file (page.css, page.js), of the parts in `prefkit.page`; flow: what came, went and fell
    of_pairs  what is said and shown of pairs alone         of_labels the same of labels; parts: of both

It is made from the data set's files alone, or in a build from scans of the shards that were made when these were
written (see `prefkit.pairs.scan`), holds no time and no path, and is the same for the same data set. It costs about
0.8 s of CPU for 50,000 pairs with answers of 1,700 characters, half of it for decompressing them, which no build does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl
import pyarrow as pa

from prefkit import manifest
from prefkit.errors import DataError, one_line
from prefkit.pairs.publish import REPORT
from prefkit.pairs.report import findings, page
from prefkit.pairs.report.contents import gather


def write(
    folder: Path, path: Path | None = None, *, scratch: Path | None = None, scans: Mapping[str, Path] | None = None
) -> Path:
    """Write the report of a finished data set, by default into it; returns where.

    It is first written in `scratch`, on the same file system; by default beside its place. `scans`, by the paths of
    shards, are those that the build left (see `scan`). DataError where there is no data set, or one of conversations.
    """
    record = manifest.read(folder)
    if record.kind == "conversations":
        raise DataError(f"{folder}: holds conversations, of which there is no report: none of its rows fell.")
    for shard in record.shards:
        if not (folder / shard.path).is_file():
            raise DataError(f"{folder / shard.path}: missing. prefkit verify {folder} tells what is whole.")
    try:
        contents = gather(folder, record, scans or {})
    except (pl.exceptions.PolarsError, pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{folder}: no report, since a shard cannot be read ({one_line(error)}). prefkit verify tells which."
        ) from error
    path = path or folder / REPORT
    manifest.write_text_atomically(
        path, page.render(record, contents, findings.findings(record, contents.figures)), scratch=scratch
    )
    return path
