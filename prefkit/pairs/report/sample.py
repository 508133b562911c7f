"""The report's sample: rows and rejects to look at, the same for equal data sets.

Rows are those of the lowest ids, which are hashes, so they are a uniform sample whatever the order of the shards.
Rejects carry no text; where a row of the same prompt, or of its near-duplicates, stands in the data set, its prompt is
shown.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from prefkit import schema
from prefkit.manifest import Manifest
from prefkit.pairs import scan

CHARACTERS = 4000  # of a text; the rest is counted


class Prompts:
    """The texts of the prompts that have one of `ids` as their own or their cluster's."""

    def __init__(self, folder: Path, record: Manifest, ids: Iterable[str]):
        self._of: dict[str, str] = {}
        self._of_clusters: dict[str, str] = {}
        asked = sorted(ids)
        named = pl.col("prompt_id").is_in(asked) | pl.col("cluster_id").is_in(asked)
        for shard in scan.data(record) if asked else []:
            rows = pl.scan_parquet(folder / shard.path).filter(named).select("prompt_id", "cluster_id", "prompt")
            for prompt_id, cluster_id, prompt in rows.collect(engine="streaming").iter_rows():
                self._of.setdefault(prompt_id, _said(prompt))
                self._of_clusters.setdefault(cluster_id, _said(prompt))

    def find(self, name: str | None) -> str | None:
        """The prompt of that id, or one of that cluster."""
        return self._of.get(name or "") or self._of_clusters.get(name or "")

    def of_rejects(self, rejects: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rejects with the prompts that are known."""
        return [self._of_reject(row) for row in rejects]

    def _of_reject(self, row: dict[str, Any]) -> dict[str, Any]:
        raw, detail, cluster = row["raw"], row["detail"], row["cluster_id"]
        prompt = self._of.get(row["prompt_id"])
        return {name: value for name, value in row.items() if name != "cluster_id"} | {
            "raw": None if raw is None else _cut(raw.decode("utf-8", "replace")),
            "detail": None if detail is None else _cut(detail),
            "prompt": prompt,
            "cluster_prompt": self.find(cluster) if prompt is None else None,
        }


class Sample:
    """Rows of a data set to show, of what is scanned of its shards."""

    def __init__(self, kind: str):
        self._sides, self._id = schema.SIDES[kind], schema.IDS[kind]
        self._rows: list[dict[str, Any]] = []

    def of(self, shards: Iterable[tuple[str, pl.DataFrame]]) -> Iterator[tuple[str, pl.DataFrame]]:
        """The same scans of shards, after the rows of the lowest ids are in the sample."""
        for split, rows in shards:
            self._rows += [row | {"split": split} for row in rows["row"].drop_nulls()]
            self._rows = sorted(self._rows, key=lambda row: str(row[self._id]))[: scan.ROWS]
            yield split, rows.drop("row")

    def rows(self) -> list[dict[str, Any]]:
        """The rows with their texts, cut to CHARACTERS."""
        return [
            {name: _finite(value) for name, value in row.items()}
            | {name: _said(row[name]) for name in ("prompt", *self._sides)}
            for row in self._rows
        ]


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
