"""Columns under construction: the prompts and answers of some raw rows, as two tables, and the rows that are none.

A prompt stands once, however many answers it has; `at` of an answer is the row of its prompt. Nested columns are built
from flat lists, which is several times faster than from dicts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from prefkit import schema
from prefkit.pairs import tables
from prefkit.pairs.decode import Decoded
from prefkit.pairs.records import Aspects, Rated
from prefkit.pairs.scores import weigh
from prefkit.pairs.text import identity

# `group` numbers the prompts of a part in input order. An answer's prompt is the one of its group.
PROMPTS = pa.schema(
    [
        ("group", pa.int64()),
        ("absolute", pa.bool_()),
        *[schema.CANDIDATES.field(name) for name in ("prompt_id", "source", "prompt")],
        *[schema.CANDIDATES.field(name) for name in ("origin_file", "origin_row", "lang", "lang_prob", "langs")],
        ("canonical", pa.string()),  # text of all turns, by which near-duplicates are found
    ]
)
ANSWERS = pa.schema(
    [
        ("group", pa.int64()),
        *[schema.CANDIDATES.field(name) for name in ("completion_index", "response", "model", "score", "aspects")],
        *[schema.CANDIDATES.field(name) for name in ("origin_file", "origin_row")],
        *[schema.CANDIDATES.field(name) for name in ("response_lang", "response_lang_prob")],
        ("text", pa.uint64()),  # hash of the response without outer white space: tells the answers of a set apart
    ]
)

LANGUAGE = pa.struct([("lang", pa.large_string()), ("prob", pa.float32())])


class Tables(NamedTuple):
    """Prompts, their answers (with `at`, the row of the prompt), rejects so far, and what was counted."""

    prompts: pl.DataFrame
    answers: pl.DataFrame
    rejects: list[pl.DataFrame]
    rows: int
    candidates: int


def collect(
    decoded: Iterable[Decoded],
    file: str,
    weights: Mapping[str, float] | None,
    keep_aspects: bool,
    fold_case: bool,
    first_group: int,
) -> Tables:
    """The tables of some decoded rows. `weights` over aspects, where given, make the scores; without `keep_aspects`
    that column stays empty."""
    batch = _Columns(file, weights, keep_aspects, fold_case)
    rows = 0
    for row, found, bad in decoded:
        rows += 1
        for rated in found:
            batch.add(rated, row.number)
        if bad is not None:
            batch.reject(bad.reason, row.number, bad.detail, raw=row.text or None)
    return Tables(batch.prompts(first_group), batch.answers(first_group), [batch.rejected()], rows, batch.count)


_NO_ASPECTS: Aspects = ()


class _Columns:
    def __init__(self, file: str, weights: Mapping[str, float] | None, keep_aspects: bool, fold_case: bool):
        self.file = file
        self.weights = weights
        self.keep_aspects = keep_aspects
        self.fold_case = fold_case
        self.count = 0
        self._prompts: list[tuple[str, str, str, bool, int, int]] = []
        self._turns: list[tuple[str, str]] = []
        self._answers: list[tuple[int, int, str | None, str | None, float | None, int, int]] = []
        self._aspects: list[tuple[str, float]] = []
        self._rejects: list[dict[str, Any]] = []

    def add(self, rated: Rated, row: int) -> None:
        """One prompt of raw row `row`, with its completions."""
        at = len(self._prompts)
        prompt_id, canonical = identity(rated.prompt, self.fold_case)
        self._turns += rated.prompt
        self._prompts.append((prompt_id, canonical, rated.source, rated.absolute, row, len(rated.prompt)))
        self.count += len(rated.completions)
        for answer in rated.completions:
            stands = row if answer.row is None else answer.row
            if answer.reject:
                self.reject(answer.reject, stands, answer.detail, completion_index=answer.index, prompt_id=prompt_id)
                continue
            score, aspects = answer.score, _NO_ASPECTS
            if self.keep_aspects or self.weights is not None:
                aspects = answer.aspects() if callable(answer.aspects) else answer.aspects
            if self.weights is not None:
                score = weigh(aspects, self.weights)
            if self.keep_aspects:
                self._aspects += aspects
            count = len(aspects) if self.keep_aspects else 0
            self._answers.append((at, answer.index, answer.response, answer.model, score, stands, count))

    def reject(self, reason: str, row: int, detail: str | None, **rest: Any) -> None:
        """A raw row, or one completion of it, that its source refused."""
        self._rejects.append(
            {"stage": "read", "reason": reason, "origin_file": self.file, "origin_row": row, "detail": detail} | rest
        )

    def prompts(self, first_group: int) -> pl.DataFrame:
        identities, canonical, sources, absolute, rows, turns = _transposed(self._prompts, 6)
        roles, contents = _transposed(self._turns, 2)
        messages = pa.StructArray.from_arrays([_texts(roles), _texts(contents)], ["role", "content"])
        nothing = pa.nulls(len(identities), pa.large_string())
        return _frame(
            group=pa.array(np.arange(first_group, first_group + len(identities))),
            absolute=pa.array(absolute, pa.bool_()),
            prompt_id=_texts(identities),
            source=_texts(sources),
            prompt=pa.LargeListArray.from_arrays(_offsets(turns), messages),
            origin_file=_constant(self.file, len(identities)),
            origin_row=pa.array(rows, pa.int64()),
            lang=nothing,
            lang_prob=nothing.cast(pa.float32()),
            langs=pa.nulls(len(identities), pa.large_list(LANGUAGE)),
            canonical=_texts(canonical),
        )

    def answers(self, first_group: int) -> pl.DataFrame:
        at, indices, responses, models, scores, rows, counts = _transposed(self._answers, 7)
        names, values = _transposed(self._aspects, 2)
        aspects = pa.StructArray.from_arrays([_texts(names), pa.array(values, pa.float64())], ["name", "score"])
        nothing = pa.nulls(len(at), pa.large_string())
        prompts = np.array(at, np.int64)
        return _frame(
            group=pa.array(prompts + first_group),
            at=pa.array(prompts.astype(np.uint32)),
            completion_index=pa.array(indices, pa.int32()),
            response=_texts(responses),
            model=_texts(models),
            score=pa.array(scores, pa.float64()),
            aspects=pa.LargeListArray.from_arrays(_offsets(counts), aspects),
            origin_file=_constant(self.file, len(at)),
            origin_row=pa.array(rows, pa.int64()),
            response_lang=nothing,
            response_lang_prob=nothing.cast(pa.float32()),
        )

    def rejected(self) -> pl.DataFrame:
        return tables.frame(pa.Table.from_pylist(self._rejects, schema=schema.REJECTS))


def _transposed(rows: list[Any], width: int) -> list[Any]:
    return list(zip(*rows, strict=True)) if rows else [()] * width


def _texts(values: Any) -> pa.Array:
    return pa.array(values, pa.large_string())


def _constant(text: str, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(text, pa.large_string()), count)


def _offsets(counts: Any) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(np.array(counts, np.int64))]).astype(np.int64))


def _frame(**columns: pa.Array) -> pl.DataFrame:
    return tables.frame(pa.table(columns))
