"""A bucket: the prompts of a range of keys out of all read parts, and their answers, where they lie.

Text is written when raw rows are read (`read`), once more as pairs (`select`), and into the shards. The steps up to the
pairs carry where it lies: `at`, the place of a row in the tables of its bucket, whose order depends on nothing but the
parts. The files are memory-mapped, and a text is only touched by a step that looks at it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from prefkit.manifest import write_text_atomically
from prefkit.pairs import tables
from prefkit.pairs.batch import ANSWERS, PROMPTS
from prefkit.pairs.read import slices

# The columns that make pairs.
PROMPT_COLUMNS = [name for name in PROMPTS.names if name not in ("group", "absolute", "canonical")]
ANSWER_COLUMNS = [name for name in ANSWERS.names if name != "group"]


@dataclass(frozen=True)
class ReadPart:
    """A finished part: its folder, the number of its entry in [[build.inputs]], the ordinal of its first prompt, and
    the number of its raw file."""

    folder: Path
    entry: int
    first: int
    file: int


def save(path: Path, parts: Iterable[ReadPart]) -> None:
    """The parts in a file of their own, so that a task of a bucket carries a path and not a list of thousands.

    A file that is there is left as it is: its name must tell the parts. Their folders are named as they are seen from
    the one that all steps lie in, which may be another when a build goes on.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        listed = [(str(part.folder.relative_to(path.parents[1])), part.entry, part.first, part.file) for part in parts]
        write_text_atomically(path, json.dumps(listed))


@dataclass(frozen=True)
class Bucket:
    """Keys in [low, high) of the parts that are listed in a file that `save` wrote."""

    low: int
    high: int
    parts: Path

    def rows(
        self, prompts: Sequence[str] = PROMPT_COLUMNS, answers: Sequence[str] = ANSWER_COLUMNS
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """All prompts and answers of the bucket in the given columns of PROMPTS and ANSWERS, not in input order.

        Besides, `at` is their own place here, `ordinal` that of their prompt in the input, `file` and `entry` the
        numbers of their raw file and input.
        """
        of_prompts: list[pa.RecordBatch] = []
        of_answers: list[pa.RecordBatch] = []
        marks: list[tuple[int, int, int]] = []
        columns = ["group", *prompts], ["group", *answers]
        for folder, entry, first, file in json.loads(self.parts.read_text()):
            for mine in slices(self.parts.parents[1] / folder, self.low, self.high, *columns):
                of_prompts.append(mine[0])
                of_answers.append(mine[1])
                marks.append((first, file, entry))
        return _together(of_prompts, marks, PROMPTS, prompts), _together(of_answers, marks, ANSWERS, answers)


def _together(
    slices: Sequence[pa.RecordBatch], marks: Sequence[tuple[int, int, int]], whole: pa.Schema, columns: Sequence[str]
) -> pl.DataFrame:
    """Slices as one table. `marks` are of each the ordinal of its part's first prompt, its file and its entry."""
    lengths = [len(one) for one in slices]
    first, file, entry = (np.repeat(column, lengths) for column in np.array(marks, np.int64).reshape(-1, 3).T)
    kinds = tables.large(whole)
    kinds = pa.schema([kinds.field(name) for name in ("group", *columns)])
    table = pa.Table.from_batches(slices, kinds)
    texts = [name for name in columns if name == "response"]  # stay where they lie, in hundreds of slices
    together = tables.frame(table.drop_columns(texts).combine_chunks())
    return together.with_columns(pl.Series(name, table[name]) for name in texts).select(
        *columns,
        at=pl.int_range(pl.len()),
        ordinal=pl.col("group") + pl.Series(first),
        file=pl.Series(file),
        entry=pl.Series(entry, dtype=pl.Int32),
    )
