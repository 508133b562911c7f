"""Arrow tables between tasks: written in batches, memory-mapped when read, handed to polars without a copy."""

from __future__ import annotations

import functools
import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

BATCH_ROWS = 1000


@contextmanager
def writer(
    path: Path, table_schema: pa.Schema, compression: str | None = "lz4", batch_rows: int | None = None
) -> Iterator[Callable[[pl.DataFrame], None]]:
    """A function that appends rows, as one record batch or in batches of `batch_rows`, to a new Arrow IPC file.

    Uncompressed tables can be sliced without reading the rest. Texts have 64-bit offsets, so that no batch is too
    large for them. Rows are cut after they are Arrow, since polars hands over all of a nested column with any slice.
    """
    options = pa.ipc.IpcWriteOptions(compression=compression)
    large_schema = large(table_schema)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, large_schema, options=options) as file:

        def append(rows: pl.DataFrame) -> None:
            if not rows.is_empty():
                file.write_table(rows.select(large_schema.names).to_arrow().combine_chunks(), batch_rows)

        yield append


def read(path: Path) -> Iterator[pl.DataFrame]:
    """The record batches of an Arrow IPC file, one by one."""
    with pa.memory_map(str(path)) as source:
        file = pa.ipc.open_file(source)
        for number in range(file.num_record_batches):
            yield frame(pa.Table.from_batches([file.get_batch(number)]))


class Mapped:
    """An Arrow IPC file of which record batches are read in part, mapped into memory once."""

    def __init__(self, path: Path):
        self._memory = map_file(path)
        file = pa.ipc.open_file(pa.py_buffer(self._memory))
        self._batches = [file.get_batch(number) for number in range(file.num_record_batches)]

    def rows(self, batch: int, first: int, last: int, columns: Sequence[str]) -> pa.RecordBatch:
        """Rows [first, last) of one record batch, in some of its columns."""
        return self._batches[batch].select(list(columns)).slice(first, last - first)

    def release(self) -> None:
        """Let go of the pages that were read; they come back when they are touched again."""
        self._memory.madvise(mmap.MADV_DONTNEED)


def map_file(path: Path) -> mmap.mmap:
    """A file that is not empty, mapped into memory to be read."""
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def array(path: Path) -> npt.NDArray[Any]:
    """An .npy file mapped into memory: `np.load(path, mmap_mode="r")` as a plain array and in half its time."""
    with open(path, "rb") as file:
        np.lib.format.read_magic(file)
        shape, is_fortran, kind = np.lib.format.read_array_header_1_0(file)
        return np.ndarray(shape, kind, map_file(path), file.tell(), order="F" if is_fortran else "C")


@contextmanager
def even_writer(path: Path, table_schema: pa.Schema) -> Iterator[Callable[[pl.DataFrame], None]]:
    """As `writer`, but in record batches of BATCH_ROWS whatever it is given, so that `read_rows` finds any slice."""
    waiting = [empty(table_schema)]
    with writer(path, table_schema, batch_rows=BATCH_ROWS) as append:

        def add(rows: pl.DataFrame) -> None:
            together = pl.concat([*waiting, rows.select(table_schema.names)])
            whole = len(together) // BATCH_ROWS * BATCH_ROWS
            append(together[:whole])
            waiting[:] = [together[whole:]]

        yield add
        append(waiting[0])


def write(path: Path, rows: pl.DataFrame, table_schema: pa.Schema) -> None:
    """A whole table in uncompressed record batches of BATCH_ROWS."""
    with writer(path, table_schema, compression=None, batch_rows=BATCH_ROWS) as append:
        append(rows)


def write_whole(path: Path, rows: pl.DataFrame, table_schema: pa.Schema) -> None:
    """A table as one uncompressed record batch, which `read` maps into memory without a copy."""
    with writer(path, table_schema, compression=None) as append:
        append(rows)


def read_whole(path: Path, table_schema: pa.Schema) -> pl.DataFrame:
    """A table that may have no record batch."""
    return pl.concat([empty(table_schema), *read(path)])


def read_rows(path: Path, first: int, last: int) -> Iterator[pl.DataFrame]:
    """Rows [first, last) of a table in batches of BATCH_ROWS, touching only the batches that hold them."""
    with pa.memory_map(str(path)) as source:
        file = pa.ipc.open_file(source)
        for number in range(first // BATCH_ROWS, -(-last // BATCH_ROWS) if last > first else 0):
            start = number * BATCH_ROWS
            batch = file.get_batch(number)
            wanted = batch.slice(max(first - start, 0), min(last - start, len(batch)) - max(first - start, 0))
            yield frame(pa.Table.from_batches([wanted]))


@functools.cache
def large(table_schema: pa.Schema) -> pa.Schema:
    """The schema as polars writes it: with 64-bit offsets."""
    return empty(table_schema).to_arrow().schema


def frame(table: pa.Table) -> pl.DataFrame:
    """Arrow to polars."""
    result = pl.from_arrow(table)
    assert isinstance(result, pl.DataFrame)
    return result


def arrow(rows: pl.DataFrame, table_schema: pa.Schema) -> pa.Table:
    """Polars to Arrow, in exactly the given columns and types."""
    return rows.select(table_schema.names).to_arrow().cast(table_schema)


def rejects(candidates: pl.DataFrame, stage: str, reason: str | pl.Expr, detail: str | pl.Expr) -> pl.DataFrame:
    """Candidates as rows of REJECTS; `cluster_id` where they have one."""
    known = "cluster_id" in candidates.columns
    return candidates.select(
        stage=pl.lit(stage),
        reason=pl.lit(reason) if isinstance(reason, str) else reason,
        origin_file="origin_file",
        origin_row="origin_row",
        completion_index="completion_index",
        prompt_id="prompt_id",
        cluster_id=pl.col("cluster_id") if known else pl.lit(None, pl.String),
        detail=text(detail),
        raw=pl.lit(None, pl.Binary),
    )


def count_reasons(rejects: pl.DataFrame) -> list[tuple[str, str, bool, int]]:
    """Stage, reason, whether it is a whole row, and how many, of rows of REJECTS."""
    return rejects.group_by("stage", "reason", pl.col("completion_index").is_null()).len().sort(pl.all()).rows()


def text(value: str | pl.Expr) -> pl.Expr:
    """A column of one text, null for the empty one; an expression as it is."""
    return pl.lit(value or None, pl.String) if isinstance(value, str) else value


def empty(table_schema: pa.Schema) -> pl.DataFrame:
    """No rows of a table."""
    return frame(pa.Table.from_batches([], table_schema))  # `empty_table` would import pandas
