"""The report's sample: rows and rejects to look at, the same for equal data sets.

Rows are those of the lowest ids, which are hashes, so they are a uniform sample whatever the order of the shards; they
and the prompts of rejects are taken from what `scan` reads anyway. Rejects carry no text; where a row of the
same prompt, or of its near-duplicates, stands in the data set, its prompt is shown.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from prefkit import schema
from prefkit.manifest import Manifest
from prefkit.pairs.report import scan

ROWS = 200
CHARACTERS = 4000  # of a text; the rest is counted


class Sample:
    """Rows of a data set to show, and the prompts that have one of `ids` as their own or their cluster's."""

    def __init__(self, folder: Path, record: Manifest, ids: Iterable[str]):
        self._sides, self._id = schema.SIDES[record.kind], schema.IDS[record.kind]
        self._rows: list[dict[str, Any]] = []
        self._prompts: dict[str, str] = {}
        self._of_clusters: dict[str, str] = {}
        paths = [folder / shard.path for shard in scan.data(record)]
        lowest = pl.scan_parquet(paths).select(pl.col(self._id).bottom_k(ROWS)).collect(engine="streaming")
        asked = sorted(ids)
        self.shown = pl.col(self._id) <= lowest[self._id].max()
        self.named = pl.col("prompt_id").is_in(asked) | pl.col("cluster_id").is_in(asked)

    def of(self, shards: Iterable[tuple[str, pl.DataFrame]]) -> Iterator[tuple[str, pl.DataFrame]]:
        """The same shards, after their rows that were `shown` or `named` are in the sample."""
        for split, rows in shards:
            self._rows += [row | {"split": split} for row in rows["row"].drop_nulls()]
            for names in rows["names"].drop_nulls():
                self._prompts.setdefault(names["prompt_id"], _said(names["prompt"]))
                self._of_clusters.setdefault(names["cluster_id"], _said(names["prompt"]))
            yield split, rows.drop("row", "names")

    def prompt(self, name: str | None) -> str | None:
        """The prompt of that id, or one of that cluster."""
        return self._prompts.get(name or "") or self._of_clusters.get(name or "")

    def rows(self) -> list[dict[str, Any]]:
        """The rows with their texts, cut to CHARACTERS."""
        return [self._row(row) for row in sorted(self._rows, key=lambda row: str(row[self._id]))]

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        return {name: _finite(value) for name, value in row.items()} | {
            name: _said(row[name]) for name in ("prompt", *self._sides)
        }

    def rejects(self, rejects: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rejects with the prompts that are known."""
        return [self._reject(row) for row in rejects]

    def _reject(self, row: dict[str, Any]) -> dict[str, Any]:
        raw, detail, cluster = row["raw"], row["detail"], row["cluster_id"]
        prompt = self._prompts.get(row["prompt_id"])
        return {name: value for name, value in row.items() if name != "cluster_id"} | {
            "raw": None if raw is None else _cut(raw.decode("utf-8", "replace")),
            "detail": None if detail is None else _cut(detail),
            "prompt": prompt,
            "cluster_prompt": self.prompt(cluster) if prompt is None else None,
        }


def _finite(value: Any) -> Any:
    """A margin of scores at both ends is infinite, and no JSON."""
    return min(value, sys.float_info.max) if isinstance(value, float) else value


def _said(messages: list[dict[str, str]]) -> str:
    """Messages as one text; the role of a single one goes without saying."""
    if len(messages) == 1:
        return _cut(messages[0]["content"])
    return _cut("\n\n".join(f"{message['role']}: {message['content']}" for message in messages))


def _cut(text: str) -> str:
    left = len(text) - CHARACTERS
    return text if left <= 0 else f"{text[:CHARACTERS]}… ({left:,} more characters)"
