"""Task 6: sorted pairs (or labels) of all buckets -> Parquet shards, the same bytes whatever the parts were.

Shard i of n holds the prompts whose seeded hash lies in the i-th n-th of its range, sorted by that hash: the order is
random with respect to the input and needs no shuffle. Each part is already sorted, so a shard reads only its rows.

The bytes are fixed by feeding the writer exact row groups of equal size with fixed settings. zstd, by default at level
1 (level 3 makes files an eighth smaller, in half as much time again); dictionaries only on columns that repeat; a page
index for readers that skip; content-defined chunking, so that a re-upload of a changed data set moves only what
changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from annotated_types import Ge, Le, Lt

from prefkit import schema
from prefkit.manifest import file_sha256
from prefkit.pairs import scan, tables
from prefkit.pairs.select import PART, SORT

REPEATING = [
    "prompt.list.element.role", "chosen.list.element.role", "rejected.list.element.role",
    "completion.list.element.role", "source", "chosen_model", "rejected_model", "completion_model", "completion_file",
    "strategy", "lang", "origin_file", "stage", "reason",
]  # fmt: skip
REJECTS_A_FILE = 200_000
ROW_GROUP_OF_REJECTS = 20_000


def split(*, test: Annotated[float, Ge(0), Lt(1)] = 0.02, seed: int = 0) -> tuple[float, int]:
    """Hold out a share of the near-duplicate clusters as the test split, by a seeded hash."""
    return test, seed


def shards(
    *,
    pairs_per_shard: Annotated[int, Ge(1)] = 25_000,
    row_group: Annotated[int, Ge(1)] = 2_500,
    compression_level: Annotated[int, Ge(1), Le(22)] = 1,
) -> tuple[int, int, int]:
    """Size of the Parquet files and of their row groups, in pairs (or labels), and the level of their compression by
    zstd."""
    return pairs_per_shard, row_group, compression_level


def write_shard(
    folder: Path, parts: Sequence[Path], kind: str, test: bool, number: int, count: int, row_group: int, level: int
) -> None:
    """Write shard `number` of `count` of a split as data.parquet, what it holds as shard.json, and its scan for the
    report."""
    low, high = (number << 64) // count, ((number + 1) << 64) // count
    pieces = [piece for part in parts for piece in _slice(part, test, low, high)]
    rows = pl.concat([tables.empty(PART[kind]), *pieces]).sort(SORT[kind])
    write_rows(folder, rows, schema.TABLES[kind], row_group, level)
    scan.scan(rows.lazy(), kind).write_ipc(folder / scan.FILE, compat_level=pl.CompatLevel.oldest())


def _slice(part: Path, test: bool, low: int, high: int) -> Iterator[pl.DataFrame]:
    """The rows of a part's rows.arrow that belong to one split and whose order lies in [low, high)."""
    begin, end = np.searchsorted(tables.array(part / "test.npy"), [test, test + 1])
    order = tables.array(part / "order.npy")[begin:end]
    first = begin + np.searchsorted(order, np.uint64(low))
    last = end if high == 1 << 64 else begin + np.searchsorted(order, np.uint64(high))
    yield from tables.read_rows(part / "rows.arrow", int(first), int(last))


def write_rejects(folder: Path, parts: Sequence[Path], counts: Sequence[int], number: int, level: int) -> None:
    """Write rejects file `number`: its REJECTS_A_FILE rows of the rejects of finished tasks, `counts` of each, in
    order."""
    low, high = number * REJECTS_A_FILE, (number + 1) * REJECTS_A_FILE
    pieces = [tables.empty(schema.REJECTS)]
    base = 0
    for part, count in zip(parts, counts, strict=True):
        first, last = max(low - base, 0), min(high - base, count)
        if first < last:
            pieces += tables.read_rows(part / "rejects.arrow", first, last)
        base += count
    write_rows(folder, pl.concat(pieces), schema.REJECTS, ROW_GROUP_OF_REJECTS, level)


def write_rows(folder: Path, rows: pl.DataFrame, table_schema: pa.Schema, row_group: int, level: int) -> None:
    """Write a whole file as data.parquet, and what it holds as shard.json."""
    path = folder / "data.parquet"
    with pq.ParquetWriter(
        path,
        table_schema,
        compression="zstd",
        compression_level=level,
        use_dictionary=[column for column in REPEATING if column.partition(".")[0] in table_schema.names],
        write_page_index=True,
        use_content_defined_chunking=True,
    ) as writer:
        whole = tables.arrow(rows, table_schema).combine_chunks()
        for first in range(0, len(whole), row_group):
            writer.write_table(whole.slice(first, row_group))
    facts: dict[str, Any] = {"rows": len(rows), "bytes": path.stat().st_size, "sha256": file_sha256(path)}
    (folder / "shard.json").write_text(json.dumps(facts))
