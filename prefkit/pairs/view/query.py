"""What is asked for -> the numbers of the rows that are, as few files looked at as a page needs.

A request's parameters become polars expressions over named columns: values are compared, never written into a query's
text, so there is nothing to inject into. Texts are searched case-insensitively, each word for itself, or a "phrase in
quotes"; all of them must occur.

Rows come in the order of the data set, or sorted by a column, equal ones in the order of the data set, and those
without a value last. So pages neither lose nor repeat a row. Without a sort, only as many files are looked at as give
the page asked for; what was found is kept for the next page and for the count.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import polars as pl

from prefkit import schema
from prefkit.page.serve import Gone
from prefkit.pairs.select import text_of
from prefkit.pairs.view.table import Numbers, Table

MOST_WORDS = 20
BEGINNING = re.compile("[0-9a-f]{4,32}")  # of an id
Text = Annotated[str, msgspec.Meta(max_length=2000)]


class BadRequest(Exception):
    """A request that means nothing; the sentence says why."""


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every table can be asked for. An empty text is a value like any other; None asks for nothing.

    `none` names columns, with commas between, that must hold no value; `id` is the beginning of an id.
    """

    text: Text = ""
    id: Text | None = None
    none: Text = ""
    sort: str | None = None
    order: Literal["ascending", "descending"] | None = None

    def __post_init__(self) -> None:
        if self.order and not self.sort:
            raise ValueError("order goes with sort")
        if self.id is not None and not BEGINNING.fullmatch(self.id):
            raise ValueError("an id is asked for by its first 4 to 32 hexadecimal digits")


class Kept(Asked, frozen=True, kw_only=True):
    """What pairs and labels can be asked for. `least` and `most` are bounds of the margin, or of a label's score."""

    source: Text | None = None
    lang: Text | None = None
    split: Literal["train", "test"] | None = None
    least: float | None = None
    most: float | None = None
    within: str | None = None  # where the text is looked for; None: everywhere
    flagged: Literal["yes", "no"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(bound is not None and math.isnan(bound) for bound in (self.least, self.most)):
            raise ValueError("least or most is no number")


class OfPairs(Kept, frozen=True, kw_only=True):
    """What pairs can be asked for besides."""

    strategy: Text | None = None
    chosen_model: Text | None = None
    rejected_model: Text | None = None
    within: Literal["prompt", "chosen", "rejected"] | None = None
    sort: Literal["margin", "chosen_score", "rejected_score", "lang_prob", "source", "lang"] | None = None


class OfLabels(Kept, frozen=True, kw_only=True):
    """What labelled answers can be asked for besides."""

    label: bool | None = None
    completion_model: Text | None = None
    within: Literal["prompt", "completion"] | None = None
    sort: Literal["completion_score", "lang_prob", "source", "lang"] | None = None


class OfRejects(Asked, frozen=True, kw_only=True):
    """What rejects can be asked for. Their text is the detail and the raw row."""

    stage: Text | None = None
    reason: Text | None = None
    origin_file: Text | None = None
    sort: Literal["origin_row", "reason"] | None = None


Query = OfPairs | OfLabels | OfRejects
KINDS: dict[str, type[Query]] = {"pairs": OfPairs, "labels": OfLabels, "rejects": OfRejects}
EQUAL: dict[type[Query], tuple[str, ...]] = {
    OfPairs: ("source", "lang", "strategy", "chosen_model", "rejected_model"),
    OfLabels: ("source", "lang", "completion_model", "label"),
    OfRejects: ("stage", "reason", "origin_file"),
}
IDS: dict[type[Query], tuple[str, ...]] = {
    OfPairs: ("pair_id", "prompt_id", "cluster_id"),
    OfLabels: ("answer_id", "prompt_id", "cluster_id"),
    OfRejects: ("prompt_id", "cluster_id"),
}


def parse(given: Mapping[str, str], kind: type[Any]) -> Any:
    """The parameters of a request as a struct of this kind; BadRequest that names the parameter."""
    try:
        return msgspec.convert(dict(given), kind, strict=False)
    except msgspec.ValidationError as error:
        raise BadRequest(f"The request cannot be read: {error}.") from error


def rule(asked: Query, flagged: pl.Expr) -> pl.Expr | None:
    """Which rows are asked for, as an expression; None for all. `flagged` says which rows are flagged."""
    kind = type(asked)
    rules = [pl.col(name) == value for name in EQUAL[kind] if (value := getattr(asked, name)) is not None]
    for name in filter(None, asked.none.split(",")):
        if name not in EQUAL[kind]:
            raise BadRequest(f'The request cannot be read: none has no "{name}", only {", ".join(EQUAL[kind])}.')
        rules.append(pl.col(name).is_null())
    if asked.id is not None:
        begins = [pl.col(name).is_between(pl.lit(asked.id), pl.lit(asked.id.ljust(32, "f"))) for name in IDS[kind]]
        rules.append(pl.any_horizontal(begins))
    if isinstance(asked, Kept):
        bounded = pl.col("margin" if isinstance(asked, OfPairs) else "completion_score")
        rules += [bounded >= asked.least] if asked.least is not None else []
        rules += [bounded <= asked.most] if asked.most is not None else []
        rules += [flagged if asked.flagged == "yes" else ~flagged] if asked.flagged else []
    rules += [pl.any_horizontal(_holding(asked, word)) for word in words(asked.text)]
    return pl.all_horizontal(rules) if rules else None


def words(text: str) -> list[str]:
    """The words and the phrases in quotes of a search."""
    found = [phrase or word for phrase, word in re.findall(r'"([^"]+)"|([^\s"]+)', text)]
    if len(found) > MOST_WORDS:
        raise BadRequest(f"{len(found)} words are too many to search for at once; {MOST_WORDS} are the most.")
    return found


def _holding(asked: Query, word: str) -> list[pl.Expr]:
    """Whether a word stands in each of the texts, in any case: as a pattern in which every character is an escape."""
    pattern = "(?i)" + "".join(f"\\x{{{ord(character):x}}}" for character in word)

    def holds(text: pl.Expr) -> pl.Expr:
        return text.str.contains(pattern).fill_null(False)

    if isinstance(asked, OfRejects):
        return [holds(pl.col("detail")), holds(pl.col("raw").map_batches(_decoded, pl.String))]
    sides = schema.SIDES["pairs" if isinstance(asked, OfPairs) else "labels"]
    turn = holds(pl.element().struct.field("content"))
    return [
        *([pl.col("prompt").list.eval(turn).list.any()] if asked.within in (None, "prompt") else []),
        *(holds(text_of(side)) for side in sides if asked.within in (None, side)),
    ]


def _decoded(raw: pl.Series) -> pl.Series:
    """Raw rows as text, also those that are no UTF-8, which polars would refuse to cast."""
    return pl.Series([one and one.decode("utf-8", "replace") for one in raw], dtype=pl.String)


class Found:
    """The rows that a query finds, in order, as far as somebody asked for them."""

    def __init__(self, table: Table, asked: Query, flagged: pl.Expr):
        self.complete = False
        self._rows: list[Numbers] = []
        self._lock = threading.Lock()
        split = asked.split if isinstance(asked, Kept) else None
        shards = [n for n, shard in enumerate(table.shards) if split in (None, shard.split)]
        keep = rule(asked, flagged)
        self._coming = _sorted(table, shards, keep, asked) if asked.sort else _in_order(table, shards, keep)

    def upto(self, count: int, gone: Callable[[], bool]) -> Numbers:
        """At least the first `count` of the rows, if there are as many. Raises Gone where nobody waits for them."""
        with self._lock:
            while not self.complete and sum(map(len, self._rows)) < count:
                if gone():
                    raise Gone
                found = next(self._coming, None)
                self.complete = found is None
                self._rows += [found] if found is not None and len(found) else []
            self._rows = [np.concatenate(self._rows)] if self._rows else []
            return self._rows[0] if self._rows else np.empty(0, np.uint32)


def _in_order(table: Table, shards: list[int], keep: pl.Expr | None) -> Iterator[Numbers]:
    for number in shards:
        if keep is None:
            yield np.arange(table.first[number], table.first[number + 1], dtype=np.uint32)
        else:
            yield table.matches(number, keep)["row"].to_numpy()


def _sorted(table: Table, shards: list[int], keep: pl.Expr | None, asked: Query) -> Iterator[Numbers]:
    assert asked.sort
    found = []
    for number in shards:
        found.append(table.matches(number, pl.lit(True) if keep is None else keep, asked.sort))
        yield np.empty(0, np.uint32)
    if found:
        descending = asked.order == "descending"
        yield (
            pl.concat(found)
            .sort(asked.sort, descending=descending, nulls_last=True, maintain_order=True)["row"]
            .to_numpy()
        )
