"""Columns under construction: the prompts and answers of some raw rows, as two tables, and the rows that are none.

A prompt stands once, however many answers it has; `at` of an answer is the row of its prompt. Nested columns are built
from flat lists, which is several times faster than from dicts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from prefkit import schema
from prefkit.pairs.canonical import canonical_texts, identities
from prefkit.pairs.decode import Decoded
from prefkit.pairs.packed import Packed
from prefkit.pairs.records import Aspects, BadRow, Rated
from prefkit.pairs.redact import KINDS, replace
from prefkit.pairs.scores import weigh

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

LANGUAGES = pl.List(pl.Struct({"lang": pl.String, "prob": pl.Float32}))


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
            batch.reject(bad, row.number, row.text)
    return batch.tables(first_group, rows)


_NO_ASPECTS: Aspects = ()


class _Columns:
    def __init__(self, file: str, weights: Mapping[str, float] | None, keep_aspects: bool, fold_case: bool):
        self.file = file
        self.weights = weights
        self.keep_aspects = keep_aspects
        self.fold_case = fold_case
        self.count = 0
        self._prompts: list[tuple[str, bool, int, int]] = []
        self._turns: list[tuple[str, str]] = []
        self._answers: list[tuple[int, int, str | None, str | None, float | None, int, int]] = []
        self._aspects: list[tuple[str, float]] = []
        self._rejects: list[tuple[str, int, str | None, int | None, int | None, bytes | None]] = []

    def add(self, rated: Rated, row: int) -> None:
        """One prompt of raw row `row`, with its completions."""
        at = len(self._prompts)
        self._turns += rated.prompt
        self._prompts.append((rated.source, rated.absolute, row, len(rated.prompt)))
        self.count += len(rated.completions)
        for answer in rated.completions:
            stands = row if answer.row is None else answer.row
            if answer.reject:
                self._rejects.append((answer.reject, stands, answer.detail, answer.index, at, None))
                continue
            score, aspects = answer.score, _NO_ASPECTS
            if self.keep_aspects or self.weights is not None:
                aspects = answer.aspects() if callable(answer.aspects) else answer.aspects
            if self.weights is not None:
                score = weigh(aspects, self.weights)
                if score is None:
                    missing = ("missing_aspect", stands, _lacking(aspects, self.weights), answer.index, at, None)
                    self._rejects.append(missing)
                    continue
            if self.keep_aspects:
                self._aspects += aspects
            count = len(aspects) if self.keep_aspects else 0
            self._answers.append((at, answer.index, answer.response, answer.model, score, stands, count))

    def reject(self, bad: BadRow, row: int, text: bytes) -> None:
        """A raw row that its source refused."""
        self._rejects.append((bad.reason, row, bad.detail, None, None, text.strip() or None))

    def tables(self, first_group: int, rows: int) -> Tables:
        """All that was added, as tables."""
        prompts = self._prompt_table(first_group)
        rejects = self._reject_table(prompts["prompt_id"])
        return Tables(prompts, self._answer_table(first_group), [rejects], rows, self.count)

    def _prompt_table(self, first_group: int) -> pl.DataFrame:
        sources, absolute, rows, turns = _transposed(self._prompts, 4)
        roles, contents = _transposed(self._turns, 2)
        speakers, texts = _texts(roles), _texts(contents)
        plain = canonical_texts(Packed.of_column(texts), self.fold_case)
        ids, canonical = identities(speakers, plain, turns)
        messages = pa.StructArray.from_arrays([speakers.to_arrow(), texts.to_arrow()], ["role", "content"])
        return pl.DataFrame(
            {
                "group": np.arange(first_group, first_group + len(ids)),
                "absolute": pl.Series(absolute, dtype=pl.Boolean),
                "prompt_id": ids,
                "source": _texts(sources),
                "prompt": pl.from_arrow(pa.LargeListArray.from_arrays(_offsets(turns), messages)),
                "origin_row": pl.Series(rows, dtype=pl.Int64),
                "canonical": canonical.column(),
            }
        ).with_columns(
            origin_file=pl.lit(self.file),
            lang=pl.lit(None, pl.String),
            lang_prob=pl.lit(None, pl.Float32),
            langs=pl.lit(None, LANGUAGES),
        )

    def _answer_table(self, first_group: int) -> pl.DataFrame:
        at, indices, responses, models, scores, rows, counts = _transposed(self._answers, 7)
        names, values = _transposed(self._aspects, 2)
        aspects = [_texts(names).to_arrow(), pl.Series(values, dtype=pl.Float64).to_arrow()]
        lists = pa.LargeListArray.from_arrays(_offsets(counts), pa.StructArray.from_arrays(aspects, ["name", "score"]))
        prompts = np.array(at, np.int64)
        return pl.DataFrame(
            {
                "group": prompts + first_group,
                "at": prompts.astype(np.uint32),
                "completion_index": pl.Series(indices, dtype=pl.Int32),
                "response": _texts(responses),
                "model": _texts(models),
                "score": pl.Series(scores, dtype=pl.Float64, strict=False),
                "aspects": pl.from_arrow(lists),
                "origin_row": pl.Series(rows, dtype=pl.Int64),
            }
        ).with_columns(
            origin_file=pl.lit(self.file),
            response_lang=pl.lit(None, pl.String),
            response_lang_prob=pl.lit(None, pl.Float32),
        )

    def _reject_table(self, prompt_ids: pl.Series) -> pl.DataFrame:
        """Rows and answers that their source refused; an answer's prompt is the `at`-th."""
        reasons, rows, details, indices, at, raw = _transposed(self._rejects, 6)
        found = pl.DataFrame(
            {
                "reason": _texts(reasons),
                "origin_row": pl.Series(rows, dtype=pl.Int64),
                "completion_index": pl.Series(indices, dtype=pl.Int32),
                "prompt_id": prompt_ids.gather(pl.Series(at, dtype=pl.UInt32)),
                "detail": replace(_texts(details), KINDS),  # as of rules
                "raw": pl.Series(raw, dtype=pl.Binary),
            }
        ).with_columns(stage=pl.lit("read"), origin_file=pl.lit(self.file), cluster_id=pl.lit(None, pl.String))
        return found.select(schema.REJECTS.names)


def _lacking(aspects: Aspects, weights: Mapping[str, float]) -> str:
    rated = dict(aspects)
    lacking = [name for name in weights if name not in rated]
    return f"score_weights asks for {', '.join(lacking)}; rated are {', '.join(rated) or 'no aspects'}"


def _transposed(rows: list[Any], width: int) -> list[Any]:
    return list(zip(*rows, strict=True)) if rows else [()] * width


# polars builds columns from Python's values several times faster than Arrow does, which also imports pandas for that.
def _texts(values: Sequence[str | None]) -> pl.Series:
    return pl.Series(values, dtype=pl.String)


def _offsets(counts: Sequence[int]) -> pa.Array:
    return pl.Series(np.cumsum([0, *counts], dtype=np.int64)).to_arrow()
