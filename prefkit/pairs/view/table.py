"""The rows of a data set by their number, straight from its Parquet files.

A table is the pairs (train, then test) or the rejects, in the order of the manifest; its rows are numbered from 0
through all files. A scan looks at the columns that a rule names, a file at a time and a row group at a time within
it; the texts of a page are then read from the row groups that hold its rows. So memory holds some row groups and, of
what was found, four bytes a row, however large the data set.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from prefkit.errors import DataError, one_line
from prefkit.manifest import Manifest, Shard
from prefkit.pairs import tables

Numbers = npt.NDArray[np.uint32]
MOST_FOOTERS = 1000  # of files, kept: some 50 kB each


class Table:
    """Some splits of a data set. `splits` gives them their order."""

    def __init__(self, folder: Path, record: Manifest, splits: Sequence[str]):
        self.shards: list[Shard] = [shard for split in splits for shard in record.of_split(split)]
        self.first = list(accumulate((shard.rows for shard in self.shards), initial=0))
        self._folder = folder
        self._footer = functools.lru_cache(MOST_FOOTERS)(self._read_footer)

    @property
    def total(self) -> int:
        """Number of rows."""
        return self.first[-1]

    def scan(self, number: int) -> pl.LazyFrame:
        """A file, with the column `row` that numbers the table's rows."""
        path = self._folder / self.shards[number].path
        return pl.scan_parquet(path, row_index_name="row", row_index_offset=self.first[number], glob=False)

    def matches(self, number: int, rule: pl.Expr, sort: str | None = None) -> pl.DataFrame:
        """The column `row`, and the one to sort by, of the rows of a file that a rule keeps."""
        columns = [pl.col("row").cast(pl.UInt32), *([pl.col(sort)] if sort else [])]
        return collect(self.scan(number).filter(rule).select(columns))

    def first_match(self, rule: pl.Expr) -> int | None:
        """The first row that a rule keeps."""
        for number in range(len(self.shards)):
            if len(found := self.matches(number, rule)):
                return int(found["row"][0])
        return None

    def counts(self, column: str) -> list[tuple[Any, int]]:
        """The distinct values of a column, each with its number of rows, the most first."""
        of_files = [collect(self.scan(number).group_by(column).len()) for number in range(len(self.shards))]
        if not of_files:
            return []
        together = pl.concat(of_files).group_by(column).agg(pl.col("len").sum())
        return together.sort("len", column, descending=[True, False]).rows()

    def rows(self, numbers: Sequence[int], columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Rows by their numbers, in that order, with their `split`; all columns without a choice of them."""
        wanted: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for place, number in enumerate(numbers):
            shard = bisect_right(self.first, number) - 1
            group, within = self._group(shard, number - self.first[shard])
            wanted.setdefault((shard, group), []).append((within, place))
        found: list[dict[str, Any]] = [{}] * len(numbers)
        for (shard, group), rows in wanted.items():
            held = tables.frame(self._read(shard, group, columns))[[within for within, _ in rows]]
            split = self.shards[shard].split
            for (_, place), row in zip(rows, held.to_dicts(), strict=True):
                found[place] = row | {"row": int(numbers[place]), "split": split}
        return found

    def _group(self, shard: int, within: int) -> tuple[int, int]:
        """The row group that holds a row of a file, and the row's place in it."""
        footer = self._footer(shard)
        for group in range(footer.num_row_groups):
            rows = footer.row_group(group).num_rows
            if within < rows:
                return group, within
            within -= rows
        raise DataError(f"{self.shards[shard].path}: has fewer rows than the manifest says. See prefkit verify.")

    def _read(self, shard: int, group: int, columns: Sequence[str] | None) -> pa.Table:
        try:
            with pq.ParquetFile(self._folder / self.shards[shard].path, metadata=self._footer(shard)) as file:
                return file.read_row_group(group, columns=list(columns) if columns else None)
        except (OSError, pa.ArrowInvalid) as error:
            raise _unreadable(error) from error

    def _read_footer(self, shard: int) -> pq.FileMetaData:
        try:
            return pq.read_metadata(self._folder / self.shards[shard].path)
        except (OSError, pa.ArrowInvalid) as error:
            raise _unreadable(error) from error


def collect(rows: pl.LazyFrame) -> pl.DataFrame:
    """The rows, with DataError for a file that cannot be read."""
    try:
        return rows.collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> DataError:
    return DataError(f"a file of the data set cannot be read ({one_line(error)}). See prefkit verify.")
