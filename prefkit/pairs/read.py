"""Task 1: a part of a raw file -> candidates, rejects, and the sketches of its prompts.

    rows.. decode -> source -> always-on rules -> filters -> language tags -> filters that need them -> sketch

Rows go through in batches of bounded size, so memory does not depend on the size of the part. Everything that a later,
global step needs is a few fixed-width arrays a prompt (`*.npy`, memory-mapped there); text stays in this part's files.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from prefkit import schema
from prefkit.errors import UsageError
from prefkit.pairs import inputs, minhash, tables
from prefkit.pairs.inputs import Part, RawRow
from prefkit.pairs.language import language as tag_languages
from prefkit.pairs.records import BadRow, Rated
from prefkit.pairs.text import canonical, prompt_id
from prefkit.resolve import Call, load

BATCH_ROWS = 2000
BATCH_BYTES = 32 << 20

# A part's candidates carry the number of their prompt within the part, counted over surviving prompts.
PART_CANDIDATES = schema.CANDIDATES.append(pa.field("group", pa.int64()))

# Rules that no pipeline can turn off, with the detail of their rejects: a pair needs two different answers that were
# given and rated, and whose ratings say which is better.
TEXT = pl.col("response").str.strip_chars()
FIRST_RULES: dict[str, tuple[pl.Expr, str | pl.Expr]] = {
    "empty_response": (TEXT.str.len_chars() > 0, ""),
    "missing_score": (pl.col("score").is_finite(), ""),
}
LAST_RULES: dict[str, tuple[pl.Expr, str | pl.Expr]] = {
    "identical_responses": (
        pl.col("score").n_unique().over("group", TEXT) == 1,
        pl.lit("another answer to the prompt is the same text with another score"),
    ),
    "repeated_response": (
        pl.col("completion_index") == pl.col("completion_index").first().over("group", TEXT),
        pl.lit("an earlier answer to the prompt is the same text with the same score"),
    ),
    "too_few_candidates": (pl.len().over("group") >= 2, ""),
    "tied": (pl.col("score").n_unique().over("group") > 1, pl.format("all answers that are left score {}", "score")),
}


@dataclass(frozen=True)
class Sketching:
    """How near-duplicates are looked for: see `minhash`."""

    ngram: int
    permutations: npt.NDArray[np.uint32]  # [2, permutations]


def read_part(
    folder: Path, part: Part, source: Call, filters: list[Call], language: Call | None, sketching: Sketching
) -> None:
    """Write candidates.arrow, rejects.arrow, the arrays of the prompts (*.npy) and counts.json into `folder`."""
    decode = _decoder(source, part.file.name)
    rules: dict[str, tuple[pl.Expr, str | pl.Expr]] = {call.name: (call.call(), shown(call)) for call in filters}
    early = {name: rule for name, rule in rules.items() if not needs_language(rule[0])}
    late = {name: rule for name, rule in rules.items() if name not in early}
    rows_read = answers = prompts = 0
    sketches: list[Sketch] = []
    with (
        tables.writer(folder / "candidates.arrow", PART_CANDIDATES) as keep,
        tables.writer(folder / "rejects.arrow", schema.REJECTS) as drop,
    ):
        stream = inputs.rows(part)
        while rows := _batch(stream):
            batch = _decode_rows(rows, part.file.name, decode)
            rows_read += len(rows)
            answers += batch.answers
            rejects = [batch.rejected()]
            candidates = _judge(batch.candidates(), FIRST_RULES | early, rejects)
            candidates = _judge(_tag(candidates, language), late | LAST_RULES, rejects)
            candidates = candidates.with_columns(group=pl.col("group").rle_id().cast(pl.Int64) + prompts)
            sketches.append(_sketch(candidates.unique("group", keep="first", maintain_order=True), sketching))
            prompts += len(sketches[-1].origin_rows)
            keep(candidates)
            for fallen in rejects:
                drop(fallen)
    _save(folder, sketches, sketching)
    (folder / "counts.json").write_text(json.dumps({"rows": rows_read, "candidates": answers, "prompts": prompts}))


def _batch(stream: Iterator[RawRow]) -> list[RawRow]:
    """The next rows, up to BATCH_ROWS of them or BATCH_BYTES of text; none at the end."""
    rows: list[RawRow] = []
    size = 0
    while len(rows) < BATCH_ROWS and size < BATCH_BYTES and (row := next(stream, None)) is not None:
        rows.append(row)
        size += len(row.text)
    return rows


def needs_language(rule: pl.Expr) -> bool:
    """Whether a rule can only be judged after language tagging."""
    return not {"lang", "lang_prob"}.isdisjoint(rule.meta.root_names())


def shown(call: Call) -> str:
    """A rule's options in words: the detail of its rejects."""
    return ", ".join(f"{name}={value!r}" for name, value in call.options.items())


def _decoder(source: Call, file: str) -> Callable[[RawRow], list[Rated]]:
    """A function from a raw row to the source's prompts.

    It raises BadRow for whatever is wrong with the row, and UsageError where a source from outside prefkit fails.
    """
    function = source.function()
    row_parameter = next(iter(inspect.signature(load(source.address)).parameters))
    kind = get_type_hints(load(source.address)).get(row_parameter, dict[str, Any])
    json_decoder = msgspec.json.Decoder(kind)

    def decode(row: RawRow) -> list[Rated]:
        try:
            value = msgspec.convert(row.value, kind) if row.value is not None else json_decoder.decode(row.text)
        except UnicodeDecodeError as error:
            raise BadRow("not_utf8", f"{error.reason} at byte {error.start} of a text") from error
        except msgspec.ValidationError as error:
            raise BadRow("wrong_type", str(error)) from error
        except RecursionError as error:
            raise BadRow("not_json", "it is nested too deeply") from error
        except msgspec.DecodeError as error:
            value = _with_nan(row.text, kind, error)
        try:
            return _checked(list(function(value)))
        except BadRow:
            raise
        except Exception as error:
            if not source.is_external:
                raise
            what = f"{type(error).__name__}: {error}"
            raise UsageError(f"{source.address} failed at {file}, row {row.number}: {what}") from error

    return decode


def _checked(found: list[Rated]) -> list[Rated]:
    """What a source must yield for a row: BadRow where the row gave less, TypeError where the source is wrong."""
    if not found or not all(rated.completions for rated in found):
        raise BadRow("no_completions", "the row holds a prompt without completions")
    for rated in found:
        if not any(canonical(message.content) for message in rated.prompt):
            raise BadRow("empty_prompt", "the prompt has no text")
        if rated.prompt[-1].role not in ("user", "tool"):
            raise BadRow("prompt_without_question", f"the prompt ends with a turn of the {rated.prompt[-1].role}")
        for answer in rated.completions:
            if not isinstance(answer.score, int | float | None) or not isinstance(answer.response, str | None):
                raise TypeError(f"a completion with score {answer.score!r} and response of {type(answer.response)}")
    indices = [answer.index for rated in found for answer in rated.completions]
    if len(set(indices)) < len(indices):
        raise TypeError("two completions of a row have the same index")
    return found


def _with_nan(text: bytes, kind: Any, error: msgspec.DecodeError) -> Any:
    """Python's json writes NaN and Infinity, which are not JSON; read such a line, and leave the value to the rules."""
    try:
        if b"NaN" not in text and b"Infinity" not in text:
            raise ValueError
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # ValueError for a lone surrogate, which is no text
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as wrong:
        raise BadRow("wrong_type", str(wrong)) from wrong
    except ValueError:
        raise BadRow("not_json", str(error)) from error


class Batch:
    """Columns under construction: the candidates and rejects of some raw rows, each prompt held once."""

    def __init__(self, file: str):
        self.file = file
        self.answers = 0
        self._prompts: list[list[dict[str, str]]] = []
        self._columns: dict[str, list[Any]] = {name: [] for name in PART_CANDIDATES.names if name != "prompt"}
        self._rejects: dict[str, list[Any]] = {name: [] for name in schema.REJECTS.names}

    def add(self, rated: Rated, row: int) -> None:
        """One prompt of raw row `row`, with its completions."""
        group = len(self._prompts)
        self._prompts.append([message._asdict() for message in rated.prompt])
        identity = prompt_id(rated.prompt)
        self.answers += len(rated.completions)
        for answer in rated.completions:
            if answer.reject:
                self.reject(answer.reject, row, answer.detail, completion_index=answer.index, prompt_id=identity)
                continue
            values = {
                "prompt_id": identity,
                "source": rated.source,
                "completion_index": answer.index,
                "response": answer.response,
                "model": answer.model,
                "score": answer.score,
                "aspects": [{"name": name, "score": score} for name, score in answer.aspects],
                "origin_file": self.file,
                "origin_row": row,
                "lang": None,
                "lang_prob": None,
                "group": group,
            }
            for name, value in values.items():
                self._columns[name].append(value)

    def reject(self, reason: str, row: int, detail: str | None, **rest: Any) -> None:
        """A raw row, or one completion of it, that its source refused."""
        values = {"stage": "read", "reason": reason, "origin_file": self.file, "origin_row": row, "detail": detail}
        for name, column in self._rejects.items():
            column.append((values | rest).get(name))

    def candidates(self) -> pl.DataFrame:
        arrays = {name: pa.array(values, PART_CANDIDATES.field(name).type) for name, values in self._columns.items()}
        rows = tables.frame(pa.table(arrays))
        prompts = tables.frame(pa.table({"prompt": pa.array(self._prompts, schema.MESSAGES)}))
        return rows.with_columns(prompts["prompt"].gather(rows["group"])).select(PART_CANDIDATES.names)

    def rejected(self) -> pl.DataFrame:
        return tables.frame(pa.table(self._rejects, schema=schema.REJECTS))


def _decode_rows(rows: list[RawRow], file: str, decode: Callable[[RawRow], list[Rated]]) -> Batch:
    batch = Batch(file)
    for row in rows:
        try:
            for rated in decode(row):
                batch.add(rated, row.number)
        except BadRow as bad:
            batch.reject(bad.reason, row.number, bad.detail, raw=row.text or None)
    return batch


def _judge(
    candidates: pl.DataFrame, rules: dict[str, tuple[pl.Expr, str | pl.Expr]], rejects: list[pl.DataFrame]
) -> pl.DataFrame:
    """Apply rules in order; what fails one goes to `rejects` under its name, once."""
    for name, (rule, detail) in rules.items():
        try:
            verdict = candidates.select(rule.fill_null(False).alias("keep"))["keep"]
        except pl.exceptions.PolarsError as error:
            raise UsageError(f"[[build.filters]] {name} failed: {error}") from error
        if not verdict.all():
            marked = candidates.with_columns(detail=tables.text(detail))
            rejects.append(tables.rejects(marked.filter(~verdict), "filter", name, pl.col("detail")))
            candidates = candidates.filter(verdict)
    return candidates


def _tag(candidates: pl.DataFrame, language: Call | None) -> pl.DataFrame:
    if language is None or candidates.is_empty():
        return candidates
    prompts = candidates.unique("group", keep="first", maintain_order=True)
    tags, probabilities = tag_languages(_texts(prompts), **language.options)
    tagged = pl.DataFrame(
        {"group": prompts["group"], "lang": tags, "lang_prob": probabilities},
        schema={"group": pl.Int64, "lang": pl.String, "lang_prob": pl.Float32},
    )
    joined = candidates.drop("lang", "lang_prob").join(tagged, on="group", how="left", maintain_order="left")
    return joined.select(PART_CANDIDATES.names)


def _texts(prompts: pl.DataFrame) -> list[str]:
    """All turns of each prompt as one text."""
    return prompts["prompt"].list.eval(pl.element().struct.field("content")).list.join(" ").to_list()


class Sketch(NamedTuple):
    """What the global steps need to know of some prompts."""

    prompt_ids: npt.NDArray[np.uint64]  # [prompts, 2]: the 128 bits
    origin_rows: npt.NDArray[np.int64]
    shingles: minhash.U64
    counts: npt.NDArray[np.int64]  # shingles of each prompt
    signatures: npt.NDArray[np.uint32]  # [permutations, prompts]


def _sketch(prompts: pl.DataFrame, sketching: Sketching) -> Sketch:
    hashes, offsets = minhash.shingles([canonical(text) for text in _texts(prompts)], sketching.ngram)
    signatures = minhash.signatures(hashes, offsets, sketching.permutations).T
    ids = np.frombuffer(bytes.fromhex("".join(prompts["prompt_id"])), ">u8").astype(np.uint64).reshape(-1, 2)
    return Sketch(ids, prompts["origin_row"].to_numpy(), hashes, np.diff(offsets), signatures)


def _save(folder: Path, sketches: list[Sketch], sketching: Sketching) -> None:
    nothing = np.empty((sketching.permutations.shape[1], 0), np.uint32)
    empty = Sketch(np.empty((0, 2), np.uint64), np.empty(0, int), np.empty(0, np.uint64), np.empty(0, int), nothing)
    for name in Sketch._fields:
        arrays = [getattr(sketch, name) for sketch in [empty, *sketches]]
        whole = np.concatenate(arrays, axis=1 if name == "signatures" else 0)
        np.save(folder / f"{name}.npy", np.ascontiguousarray(whole))
