"""Task 1: a part of a raw file -> its prompts, their answers, and what fell.

    rows.. decode -> source -> redact -> answers that are none -> filters -> language tags -> filters that need them
           -> decontaminate -> runs

Rows go through in batches of bounded size. What is left is written in runs: tables of bounded size, mostly one a part,
each sorted by the prompt's key, the first 64 bits of its id. So whoever needs the prompts of a range of keys finds them
as one slice of each run (`slices`), memory-mapped, in any file.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from prefkit import collector, schema
from prefkit.pairs import inputs, tables
from prefkit.pairs.batch import ANSWERS, PROMPTS, Tables, collect
from prefkit.pairs.canonical import canonical_texts
from prefkit.pairs.decode import Decoded, decode
from prefkit.pairs.decontaminate import Decontamination, Index
from prefkit.pairs.inputs import Part
from prefkit.pairs.language import language as tag_languages
from prefkit.pairs.listed import Listed
from prefkit.pairs.named import Unmet
from prefkit.pairs.packed import Packed, numbers_of
from prefkit.pairs.parts import uncache
from prefkit.pairs.rules import Rule, blamed, detail, rule
from prefkit.pairs.text import canonical
from prefkit.pairs.trimmed import trimmed
from prefkit.resolve import Call

BATCH_ROWS = 4000
BATCH_BYTES = 32 << 20
RUN_BYTES = 64 << 20  # at least, where there are rows enough: every run is one more slice for each bucket
OPEN_PARTS = 256  # with two files each; a process may open 1,024 where nothing else is said
LARGEST_SCORE = 1e30  # either way: a margin of such scores is a number in 32 bits, its square one in 64

# Rules that no pipeline can turn off: a pair needs answers that were given and rated.
ALWAYS = {
    "empty_response": Rule(pl.col("response").str.contains(r"\S")),
    "missing_score": Rule(pl.col("score").is_not_nan()),
    "score_too_large": Rule(pl.col("score").abs() <= LARGEST_SCORE, measure=pl.format("score: {}", "score")),
}
OF_PROMPT = {"prompt_id", "source", "prompt", "lang", "lang_prob", "langs"}


@dataclass(frozen=True)
class Reading:
    """How the rows of an input become candidates."""

    source: Call
    weights: dict[str, float] | None = None  # over aspects, to make the scores
    keep_aspects: bool = True  # whether a later step looks at them
    filters: Sequence[Call] = ()
    redact: Call | None = None
    language: Call | None = None
    evaluation: tuple[Path, Decontamination] | None = None  # the index of evaluation prompts, and how it is searched
    fold_case: bool = True
    run_bytes: int = RUN_BYTES
    let_go: bool = False  # of what was read, in the page cache


def read_part(folder: Path, part: Part, how: Reading) -> None:
    """Write prompts.arrow and answers.arrow (in runs), their keys, rejects.arrow and counts.json into `folder`."""
    with collector.paused():
        _read_part(folder, part, how)
    if how.let_go:
        inputs.let_go(part)


def _read_part(folder: Path, part: Part, how: Reading) -> None:
    rules = {call.name: rule(call) for call in how.filters}
    early = {name: one for name, one in rules.items() if not needs_language(one.keep)}
    late = {name: one for name, one in rules.items() if name not in early}
    index = Index(*how.evaluation) if how.evaluation else None
    counts = {"rows": 0, "candidates": 0, "groups": 0}
    unmet, listed = Unmet(how.source), Listed(how.filters)
    stream = decode(inputs.rows(part), how.source, part.file.name, unmet)
    reasons: Counter[tuple[Any, ...]] = Counter()
    with (
        writing_runs(folder, how.run_bytes) as runs,
        tables.even_writer(folder / "rejects.arrow", schema.REJECTS) as drop,
    ):
        for first in stream:
            some = itertools.chain([first], _batch(stream))
            batch = collect(some, part.file.name, how.weights, how.keep_aspects, how.fold_case, counts["groups"])
            listed.look(batch)
            batch = _redact(batch, how) if how.redact else batch
            counts["rows"] += batch.rows
            counts["candidates"] += batch.candidates
            counts["groups"] += len(batch.prompts)
            batch = _judge(batch, ALWAYS | early)
            batch = _tag(batch, how.language)
            batch = _judge(batch, late) if late else batch
            batch = _decontaminate(batch, index) if index else batch
            runs.add(batch.prompts, batch.answers)
            rejects = pl.concat(batch.rejects).sort("origin_row", "completion_index", maintain_order=True)
            reasons.update({tuple(reason): count for *reason, count in tables.count_reasons(rejects)})
            drop(rejects)
    by_reason = [[*reason, count] for reason, count in sorted(reasons.items())]
    facts = counts | {"runs": runs.lengths, "bytes": runs.bytes, "rejects": reasons.total(), "by_reason": by_reason}
    facts |= {"unmet": unmet.options, "listed": listed.facts()}
    (folder / "counts.json").write_text(json.dumps(facts))


def _batch(stream: Iterator[Decoded]) -> Iterator[Decoded]:
    """The next rows, less than BATCH_ROWS of them and up to BATCH_BYTES of text; none at the end."""
    size = 0
    for decoded in itertools.islice(stream, BATCH_ROWS - 1):
        yield decoded
        size += len(decoded.row.text)
        if size >= BATCH_BYTES:
            break


def needs_language(rule: pl.Expr) -> bool:
    """Whether a rule can only be judged after language tagging."""
    tags = {"lang", "lang_prob", "response_lang", "response_lang_prob"}
    return not tags.isdisjoint(rule.meta.root_names())


def _judge(batch: Tables, rules: dict[str, Rule]) -> Tables:
    """Apply rules to the answers; those that fail go to the rejects under the name of the first rule that they fail."""
    answers = batch.answers
    rejects = batch.rejects
    left = pl.repeat(True, len(answers), eager=True)
    for name, judged in rules.items():
        with blamed(name):
            verdict = _verdict(judged.keep, batch.prompts, answers)
            if not verdict.all():
                fallen = _with_prompt(answers.filter(left & ~verdict), batch.prompts, OF_PROMPT)
                rejects.append(tables.rejects(fallen, "filter", name, pl.lit(detail(judged, fallen))))
                left &= verdict
    return batch._replace(answers=answers.filter(left), rejects=rejects)


def _verdict(rule: pl.Expr, prompts: pl.DataFrame, answers: pl.DataFrame) -> pl.Series:
    """Whether each answer passes; a rule over columns of the prompt alone is judged once a prompt."""
    wanted = set(rule.meta.root_names())
    judged = rule.fill_null(False).alias("keep")
    if wanted and wanted <= OF_PROMPT:
        return prompts.with_columns(judged)["keep"].gather(answers["at"])
    return _with_prompt(answers, prompts, wanted & OF_PROMPT).with_columns(judged)["keep"]


def _with_prompt(answers: pl.DataFrame, prompts: pl.DataFrame, columns: set[str]) -> pl.DataFrame:
    return answers.with_columns(prompts[name].gather(answers["at"]) for name in columns)


def _redact(batch: Tables, how: Reading) -> Tables:
    """Without personal data, also in the text by which near-duplicates are found; ids stay those of the raw prompts."""
    assert how.redact
    prompts = how.redact.call(batch.prompts)
    plain = canonical_texts(Packed.of_column(prompt_texts(prompts)), how.fold_case)
    prompts = prompts.with_columns(canonical=plain.column())
    return batch._replace(prompts=prompts, answers=how.redact.call(batch.answers))


def _tag(batch: Tables, language: Call | None) -> Tables:
    """Language tags for the prompts that still have answers, and for the answers where asked for."""
    if language is None or batch.answers.is_empty():
        return batch
    wanted = batch.answers["at"].unique().sort()
    tags = _tags(prompt_texts(batch.prompts.select("prompt")[wanted]), language)
    places = pl.repeat(None, len(batch.prompts), dtype=pl.UInt32, eager=True).scatter(wanted, np.arange(len(wanted)))
    batch = batch._replace(prompts=batch.prompts.with_columns(tags.select(pl.all().gather(places))))
    if not language.options["responses"]:
        return batch
    tags = _tags(batch.answers["response"], language).drop("langs")
    named = tags.rename({"lang": "response_lang", "lang_prob": "response_lang_prob"})
    return batch._replace(answers=batch.answers.with_columns(named))


def _tags(texts: pl.Series, language: Call) -> pl.DataFrame:
    """Columns lang, lang_prob and langs."""
    found = tag_languages(Packed.of_column(texts), **language.options)
    several = language.options["k"] > 1
    best = [[{"lang": tag, "prob": prob} for tag, prob in tags] if several else None for tags in found.best]
    kinds = tables.empty(PROMPTS).select("lang", "lang_prob", "langs").schema
    return pl.DataFrame({"lang": found.languages, "lang_prob": found.probabilities, "langs": best}, kinds)


def _decontaminate(batch: Tables, index: Index) -> Tables:
    """Without the prompts that meet an evaluation item, by what their users say."""
    wanted = batch.answers["at"].unique().sort()
    turns = [
        [canonical(turn["content"]) for turn in prompt if turn["role"] == "user"]
        for prompt in batch.prompts["prompt"].gather(wanted).to_list()
    ]
    met = [(at, found) for at, found in zip(wanted, index.matches(turns), strict=True) if found]
    if not met:
        return batch
    rows = [(at, found.reason, index.describe(found)) for at, found in met]
    marks = pl.DataFrame(rows, {"at": pl.UInt32, "why": pl.String, "detail": pl.String}, orient="row")
    answers = batch.answers.join(marks, on="at", how="left", maintain_order="left")
    fallen = _with_prompt(answers.filter(pl.col("why").is_not_null()), batch.prompts, OF_PROMPT)
    batch.rejects.append(tables.rejects(fallen, "decontaminate", pl.col("why"), pl.col("detail")))
    return batch._replace(answers=answers.filter(pl.col("why").is_null()).drop("why", "detail"))


def prompt_texts(prompts: pl.DataFrame) -> pl.Series:
    """All turns of each prompt as one text."""
    return prompts["prompt"].list.eval(pl.element().struct.field("content")).list.join(" ")


@contextmanager
def writing_runs(folder: Path, run_bytes: int) -> Iterator[Runs]:
    """prompts.arrow and answers.arrow, a record batch a run, and prompts.npy and answers.npy, the keys they are sorted
    by."""
    with (
        tables.writer(folder / "prompts.arrow", PROMPTS, compression=None) as prompts,
        tables.writer(folder / "answers.arrow", ANSWERS, compression=None) as answers,
    ):
        runs = Runs(run_bytes, prompts, answers)
        yield runs
        runs.flush()
    for name, keys in zip(("prompts", "answers"), runs.keys, strict=True):
        np.save(folder / f"{name}.npy", np.concatenate([np.empty(0, np.uint64), *keys]))


class Runs:
    """Collects prompts and answers, and appends them in sorted runs of about `run_bytes`.

    `bytes` is about what their tables take: the same for the same rows, however they are cut.
    """

    def __init__(self, run_bytes: int, *append: Callable[[pl.DataFrame], None]):
        self.lengths: list[tuple[int, int]] = []
        self.bytes = 0
        self.keys: tuple[list[npt.NDArray[np.uint64]], ...] = ([], [])
        self._run_bytes = run_bytes
        self._append = append
        self._waiting: list[tuple[pl.DataFrame, pl.DataFrame]] = []
        self._size = 0

    def add(self, prompts: pl.DataFrame, answers: pl.DataFrame) -> None:
        """Prompts with answers; those without any are left out."""
        key = keys_of(prompts["prompt_id"])
        text = trimmed(pl.col("response")).hash()
        answers = answers.with_columns(text=text, key=pl.Series(key).gather(answers["at"]))
        prompts = prompts.with_columns(key=pl.Series(key))[answers["at"].unique().sort()]
        self._waiting.append((prompts, answers))
        self._size += _bytes(answers["response"]) + 2 * _bytes(prompts["canonical"]) + 100 * len(answers)
        if self._size >= self._run_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what was collected as one run."""
        if not self._waiting:
            return
        pair = [pl.concat(frames).sort("key", maintain_order=True) for frames in zip(*self._waiting, strict=True)]
        for frame, append, keys in zip(pair, self._append, self.keys, strict=True):
            append(frame)
            keys.append(frame["key"].to_numpy())
        if len(pair[0]):
            self.lengths.append((len(pair[0]), len(pair[1])))
        self.bytes += self._size
        self._waiting, self._size = [], 0


def _bytes(texts: pl.Series) -> int:
    return int(texts.str.len_bytes().sum())


def keys_of(prompt_ids: pl.Series) -> npt.NDArray[np.uint64]:
    """The first 64 bits of each prompt id."""
    return numbers_of(prompt_ids)[:, 0].copy()


def slices(
    folder: Path, low: int, high: int, *columns: Sequence[str]
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """Prompts and answers of a part whose key lies in [low, high), a pair of tables a run, without copying them.

    `columns` are those wanted of prompts and of answers. Ranges must be of one width, a power of two. Pages of the part
    that an earlier range read are let go of.
    """
    part = _open_part(folder, high - low)
    place = low // (high - low)
    for file in part.files:
        file.release()
    for run, cuts in enumerate(part.cuts):
        first, last = cuts[:, place], cuts[:, place + 1]
        if first[1] < last[1]:
            prompts, answers = (part.files[kind].rows(run, first[kind], last[kind], columns[kind]) for kind in range(2))
            yield prompts, answers


class OpenPart(NamedTuple):
    """A finished part, opened: its files of prompts and of answers, and where ranges of keys begin in each run."""

    files: tuple[tables.Mapped, tables.Mapped]
    cuts: list[npt.NDArray[np.int64]]  # a run: [2, ranges + 1], rows of prompts and of answers


def let_go(folder: Path) -> None:
    """Take the tables of a finished part out of the page cache: no later step reads them, and memory is short."""
    for name in ("prompts", "answers"):
        uncache(folder / f"{name}.arrow")


def close_parts() -> None:
    """Close the parts that this process holds open: the disk space of removed files is not free before."""
    _open_part.cache_clear()


@functools.lru_cache(maxsize=OPEN_PARTS)
def _open_part(folder: Path, width: int) -> OpenPart:
    """A part for ranges of `width` keys. Kept open, as each bucket asks for a range of each part."""
    bounds = np.array(range(0, 1 << 64, width), np.uint64)
    prompts, answers = (tables.array(folder / f"{name}.npy") for name in ("prompts", "answers"))
    cuts, begin = [], np.zeros(2, np.int64)
    for lengths in json.loads((folder / "counts.json").read_text())["runs"]:
        end = begin + lengths
        runs = (prompts[begin[0] : end[0]], answers[begin[1] : end[1]])
        cuts.append(np.stack([[*np.searchsorted(keys, bounds), len(keys)] for keys in runs]))
        begin = end
    return OpenPart((tables.Mapped(folder / "prompts.arrow"), tables.Mapped(folder / "answers.arrow")), cuts)
