"""RewardBench: its files as a data set to evaluate on, and its section scores (arXiv:2403.13787).

A file in its format has columns `prompt`, `chosen`, `rejected` (texts, or message lists) and `subset`, as JSONL or
Parquet. Nothing of it is left out, deduplicated or cut in another order: a benchmark stays whole. Subsets become
sources, so figures come by subset.

The score of a section is the mean accuracy of its subsets weighted by their pairs, but `math-prm` counts as 984 pairs
instead of its 447, as much as the code subsets together; the score is the mean of the sections (github.com/allenai/
reward-bench, rewardbench/constants.py and utils.py). A pair that a model finds exactly alike counts half, where
RewardBench counts it as wrong. The prior sets of the paper are no part of the released file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prefkit import manifest
from prefkit.errors import DataError, one_line
from prefkit.manifest import Manifest, Shard, file_sha256
from prefkit.schema import PAIRS

SECTIONS = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        "mt-bench-hard",
        "llmbar-natural",
        "llmbar-adver-neighbor",
        "llmbar-adver-GPTInst",
        "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ),
    "Safety": (
        "refusals-dangerous",
        "refusals-offensive",
        "xstest-should-refuse",
        "xstest-should-respond",
        "donotanswer",
    ),
    "Reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
}
COUNTS_AS = {"math-prm": 984 / 447}  # pairs


def as_data_set(file: Path, folder: Path) -> Manifest:
    """Write a RewardBench-format file to `folder` as a data set with one split, test; returns its manifest.

    DataError for a file that cannot be read, or a row that is not in the format.
    """
    rows = _rows(file)
    pairs = [_pair(row, f"{file}, row {number}") for number, row in enumerate(rows, start=1)]
    (folder / "data").mkdir(parents=True)
    path = folder / "data" / "test-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(sorted(pairs, key=lambda pair: pair["prompt_id"]), schema=PAIRS), path)
    shard = Shard(f"data/{path.name}", "test", len(pairs), path.stat().st_size, file_sha256(path))
    made = Manifest(file.name, "", [], {}, {}, [], [], [shard])
    manifest.write_text_atomically(folder / manifest.FILE_NAME, manifest.dump(made))
    return made


def _rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a file; a column of JSONL may hold text in some and messages in others."""
    try:
        if file.suffix == ".parquet":
            return list(pq.read_table(file).to_pylist())
        lines = [line for line in file.read_text("utf-8").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: neither Parquet nor JSONL that can be read ({one_line(error)}).") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"{file}, row {number}: not JSON ({one_line(error)}).") from error
        if not isinstance(rows[-1], dict):
            raise DataError(f"{file}, row {number}: not an object with columns.")
    return rows


def _pair(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A row of PAIRS."""
    if lacking := [name for name in ("prompt", "chosen", "rejected") if name not in row]:
        raise DataError(f'{where}: no "{lacking[0]}". Columns: {", ".join(map(str, row))}.')
    prompt, *answers = (
        _messages(row.get(name), role, f"{where}: {name}")
        for name, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant"))
    )
    key = json.dumps(prompt, ensure_ascii=False).encode()
    return dict.fromkeys(PAIRS.names) | {
        "prompt": prompt,
        "chosen": answers[0],
        "rejected": answers[1],
        "prompt_id": hashlib.sha256(key).hexdigest()[:32],
        "pair_id": str(row.get("id", where)),
        "source": row.get("subset"),
    }


def _messages(value: object, role: str, where: str) -> list[dict[str, str]]:
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, list) and value and all(isinstance(item, dict) and item.keys() >= MESSAGE for item in value):
        return [{key: str(item[key]) for key in ("role", "content")} for item in value]
    raise DataError(
        f"{where} is neither text nor messages, but {str(value)[:60]!r}. Lists of answers, as in RewardBench 2, become "
        "pairs with: prefkit build-pairs reward-bench FILE --out DIR."
    )


MESSAGE = {"role", "content"}


def missing(scores: Mapping[str, Any]) -> list[str]:
    """The sections of which no subset was there; the score is the mean of the others."""
    return [section for section in SECTIONS if section not in scores]


def sections(by_source: Mapping[str, Mapping[str, Any]], accuracy: str) -> dict[str, float] | None:
    """The section scores that figures by source give, and their mean; None if no source is a subset of RewardBench."""
    scores = {}
    for section, subsets in SECTIONS.items():
        known = [subset for subset in subsets if subset in by_source]
        weights = [by_source[subset]["pairs"] * COUNTS_AS.get(subset, 1.0) for subset in known]
        if known:
            right = sum(w * by_source[subset][accuracy] for w, subset in zip(weights, known, strict=True))
            scores[section] = right / sum(weights)
    return {**scores, "score": sum(scores.values()) / len(scores)} if scores else None
