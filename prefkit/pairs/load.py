"""A finished data set as a table: a polars LazyFrame over exactly the shards that its manifest lists.

Why a LazyFrame: polars is what half one is written in, so nobody has to install more for it; a query over a large data
set reads only the columns and row groups that it needs; and it converts without copying (``.collect().to_arrow()``).
For `datasets` no function is needed: ``datasets.load_dataset(DIR)`` reads the folder by its card.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import polars as pl

from prefkit import manifest, urls
from prefkit.errors import DataError, UsageError

Split = Literal["train", "test", "rejects"]


def load_pairs(data: Path | str, split: Split = "train") -> pl.LazyFrame:
    """The rows of a split of a finished data set, in the order of its shards; nothing is read yet.

    A row is a pair, with the columns of `prefkit.schema.PAIRS`: `prompt`, `chosen` and `rejected` are lists of
    ``{role, content}``, scores and `margin` are in the unit of the raw ratings. (Of a data set of labels, an answer,
    with those of `prefkit.schema.LABELS`.) The rows of ``split="rejects"`` are
    those of `prefkit.schema.REJECTS`.

    Raises DataError where there is no finished data set, a shard is missing or has another size than the manifest says
    (`prefkit verify` looks at every byte), or the split is empty; UsageError for a URL or an unknown split.
    """
    if urls.is_url(str(data)):
        raise UsageError(
            f"{urls.shown(str(data))}: load_pairs reads a local folder. Download it first, or use "
            'polars.scan_parquet(URL + "/data/train-*.parquet").'
        )
    if split not in ("train", "test", "rejects"):
        raise UsageError(f'split = "{split}": it is "train", "test" or "rejects".')
    folder = Path(data)
    listed = manifest.read(folder).of_split(split)
    if not listed:
        raise DataError(f"{folder}: the data set has no {split} split.")
    for shard in listed:
        path = folder / shard.path
        if not path.is_file() or path.stat().st_size != shard.bytes:
            what = "not the file" if path.is_file() else "missing, though it is one"
            raise DataError(f"{path}: {what} that the manifest lists. Build the data set again.")
    return pl.scan_parquet([folder / shard.path for shard in listed], glob=False)
