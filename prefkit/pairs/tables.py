"""Arrow tables between tasks: written in batches, memory-mapped when read, handed to polars without a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pyarrow as pa

BATCH_ROWS = 1000


@contextmanager
def writer(path: Path, table_schema: pa.Schema) -> Iterator[Callable[[pl.DataFrame], None]]:
    """A function that appends rows, as one record batch, to a new Arrow IPC file.

    Buffers are lightly compressed; texts have 64-bit offsets, so that no batch is too large for them.
    """
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    large = empty(table_schema).to_arrow().schema
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, large, options=options) as file:

        def append(rows: pl.DataFrame) -> None:
            if not rows.is_empty():
                file.write_table(rows.select(large.names).to_arrow().combine_chunks())

        yield append


def read(path: Path) -> Iterator[pl.DataFrame]:
    """The record batches of an Arrow IPC file, one by one."""
    with pa.memory_map(str(path)) as source:
        file = pa.ipc.open_file(source)
        for number in range(file.num_record_batches):
            yield frame(pa.Table.from_batches([file.get_batch(number)]))


def write(path: Path, rows: pl.DataFrame, table_schema: pa.Schema) -> None:
    """A whole table in record batches of BATCH_ROWS, so that `read_rows` finds any slice of it."""
    with writer(path, table_schema) as append:
        for batch in rows.iter_slices(BATCH_ROWS):
            append(batch)


def read_rows(path: Path, first: int, last: int) -> Iterator[pl.DataFrame]:
    """Rows [first, last) of a table that `write` wrote, touching only the batches that hold them."""
    with pa.memory_map(str(path)) as source:
        file = pa.ipc.open_file(source)
        for number in range(first // BATCH_ROWS, -(-last // BATCH_ROWS) if last > first else 0):
            start = number * BATCH_ROWS
            batch = file.get_batch(number)
            wanted = batch.slice(max(first - start, 0), min(last - start, len(batch)) - max(first - start, 0))
            yield frame(pa.Table.from_batches([wanted]))


def frame(table: pa.Table) -> pl.DataFrame:
    """Arrow to polars."""
    result = pl.from_arrow(table)
    assert isinstance(result, pl.DataFrame)
    return result


def arrow(rows: pl.DataFrame, table_schema: pa.Schema) -> pa.Table:
    """Polars to Arrow, in exactly the given columns and types."""
    return rows.select(table_schema.names).to_arrow().cast(table_schema)


def rejects(candidates: pl.DataFrame, stage: str, reason: str | pl.Expr, detail: str | pl.Expr) -> pl.DataFrame:
    """Candidates as rows of REJECTS."""
    return candidates.select(
        stage=pl.lit(stage),
        reason=pl.lit(reason) if isinstance(reason, str) else reason,
        origin_file="origin_file",
        origin_row="origin_row",
        completion_index="completion_index",
        prompt_id="prompt_id",
        detail=text(detail),
        raw=pl.lit(None, pl.Binary),
    )


def text(value: str | pl.Expr) -> pl.Expr:
    """A column of one text, null for the empty one; an expression as it is."""
    return pl.lit(value or None, pl.String) if isinstance(value, str) else value


def empty(table_schema: pa.Schema) -> pl.DataFrame:
    """No rows of a table."""
    return frame(table_schema.empty_table())
