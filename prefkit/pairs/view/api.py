"""What the page asks for, as functions from parameters to what becomes JSON; no HTTP here (see `routes`)."""

from __future__ import annotations

import functools
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import polars as pl

from prefkit import manifest
from prefkit.errors import DataError, PrefkitError
from prefkit.pairs import flags, why
from prefkit.pairs.flags import KINDS, Flag
from prefkit.pairs.view import query
from prefkit.pairs.view.query import BadRequest, Found, OfPairs, OfRejects
from prefkit.pairs.view.table import Table

PAGE = 50
HEAD = 240  # characters of a text in a list
KEPT = 8  # queries whose rows are kept
CHOICES = 1000  # values of a column to choose from
OF_PAIRS = ["prompt", "pair_id", "prompt_id", "source", "lang", "margin", "chosen_model", "rejected_model"]
OF_REJECTS = ["stage", "reason", "origin_file", "origin_row", "completion_index", "detail"]
Params = Mapping[str, str]
Row = Annotated[int, msgspec.Meta(ge=0)]
Gone = Callable[[], bool]


class Changed(PrefkitError):
    """The data set is not the one any more that is being looked at."""


class _Page(msgspec.Struct, forbid_unknown_fields=True):
    page: Annotated[int, msgspec.Meta(ge=0, le=10**8)] = 0


class _One(msgspec.Struct, forbid_unknown_fields=True):
    row: Row


class _Put(msgspec.Struct, forbid_unknown_fields=True):
    row: Row
    kind: Literal["pair", "prompt"]
    note: Annotated[str, msgspec.Meta(max_length=2000)] = ""


class _Take(msgspec.Struct, forbid_unknown_fields=True):
    kind: Literal["pair", "prompt"]
    id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]


class Browser:
    """A finished data set, and the file of flags that belongs to it.

    Flags are read again whenever their file changed, so an editor, or another viewer, may change them as well. Where
    the data set itself was replaced, everything is refused, since row numbers would mean other rows.
    """

    def __init__(self, folder: Path, flags_file: Path):
        self.record = manifest.read(folder)
        if self.record.kind != "pairs":
            raise DataError(f"{folder}: holds {self.record.kind}, not pairs, which alone can be viewed.")
        for shard in self.record.shards:
            if not (folder / shard.path).is_file():
                raise DataError(f"{folder / shard.path}: missing. prefkit verify {folder} tells what is whole.")
        self.folder, self.flags_file = folder, flags_file
        self.pairs = Table(folder, self.record, ("train", "test"))
        self.rejects = Table(folder, self.record, ("rejects",))
        self._state = _state(folder / manifest.FILE_NAME)
        self._kept: OrderedDict[Any, Found] = OrderedDict()
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        self._held: tuple[Any, dict[tuple[str, str], str]] = (None, {})  # the flags, and which version of their file
        self.flags()

    def check(self) -> None:
        """Raises Changed where the data set was replaced or is being."""
        if _state(self.folder / manifest.FILE_NAME) != self._state:
            raise Changed(f"{self.folder}: was built anew. Start prefkit view again to see what it is now.")

    # ---- what is found ----

    def find_pairs(self, given: Params, gone: Gone) -> Any:
        """A page of pairs: `rows`, and how many were `found`, which is all of them if `complete`."""
        return self._find(given, OfPairs, gone)

    def find_rejects(self, given: Params, gone: Gone) -> Any:
        """The same of rejects."""
        return self._find(given, OfRejects, gone)

    def count_pairs(self, given: Params, gone: Gone) -> Any:
        """How many pairs there are, which takes a look at all files."""
        return self._count(given, OfPairs, gone)

    def count_rejects(self, given: Params, gone: Gone) -> Any:
        """The same of rejects."""
        return self._count(given, OfRejects, gone)

    def _find(self, given: Params, kind: type[Any], gone: Gone) -> Any:
        page = query.parse({"page": given["page"]} if "page" in given else {}, _Page).page
        found, numbers = self._found(given, kind, (page + 1) * PAGE + 1, gone)
        shown = [int(number) for number in numbers[page * PAGE : (page + 1) * PAGE]]
        if kind is OfPairs:
            held = self.flags()
            rows = [_listed_pair(row, held) for row in self.pairs.rows(shown, OF_PAIRS)]
        else:
            rows = [row | {"detail": _cut(row["detail"])} for row in self.rejects.rows(shown, OF_REJECTS)]
        return {"rows": rows, "found": len(numbers), "complete": found.complete, "page": page, "size": PAGE}

    def _count(self, given: Params, kind: type[Any], gone: Gone) -> Any:
        total = (self.pairs if kind is OfPairs else self.rejects).total
        return {"found": len(self._found(given, kind, total + 1, gone)[1])}

    def _found(self, given: Params, kind: type[Any], count: int, gone: Gone) -> tuple[Found, Any]:
        asked = query.parse({name: value for name, value in given.items() if name != "page"}, kind)
        held = frozenset(self.flags()) if kind is OfPairs and asked.flagged else frozenset()
        with self._lock:
            if (asked, held) not in self._kept:
                table = self.pairs if kind is OfPairs else self.rejects
                self._kept[asked, held] = Found(table, asked, _is_flagged(held))
            found = self._kept[asked, held]
            self._kept.move_to_end((asked, held))
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        try:
            return found, found.upto(count, gone)
        except DataError:  # what was found before it is not all
            with self._lock:
                self._kept.pop((asked, held), None)
            raise

    # ---- one of them ----

    def pair(self, given: Params, gone: Gone) -> Any:
        """All of a pair, with the flags of it and of its prompt."""
        row = self._row(self.pairs, given)
        held = self.flags()
        return _finite(row) | {"flags": {kind: held.get((kind, row[f"{kind}_id"])) for kind in KINDS}}

    def reject(self, given: Params, gone: Gone) -> Any:
        """All of a reject, with the prompt of a pair of its prompt, or else of its cluster, where there is one."""
        row = self._row(self.rejects, given)
        raw = row.pop("raw")
        prompts = {name: self._prompt(row[f"{name}_id"]) for name in ("prompt", "cluster")}
        return row | {
            "raw": raw.decode("utf-8", "backslashreplace") if raw is not None else None,
            "prompt": prompts["prompt"],
            "cluster_prompt": prompts["cluster"] if prompts["prompt"] is None else None,
        }

    def _prompt(self, identity: str | None) -> Any:
        """The messages of a prompt by its prompt_id, if a pair of it is left."""
        at = self.pairs.first_match(pl.col("prompt_id") == identity) if identity else None
        return self.pairs.rows([at], ["prompt"])[0]["prompt"] if at is not None else None

    def why(self, given: Params, gone: Gone) -> Any:
        """What `prefkit why` prints of a pair."""
        return {"lines": list(why.lines(why.why(self.folder, self._row(self.pairs, given)["pair_id"])))}

    def why_reject(self, given: Params, gone: Gone) -> Any:
        """What `prefkit why` prints of the raw row of a reject."""
        row = self._row(self.rejects, given)
        return {"lines": list(why.lines(why.why(self.folder, f"{row['origin_file']}:{row['origin_row']}")))}

    def _row(self, table: Table, given: Params) -> dict[str, Any]:
        number = query.parse(given, _One).row
        if number >= table.total:
            raise BadRequest(f"There is no row {number}; the last is {table.total - 1}.")
        return table.rows([number])[0]

    # ---- what there is to choose from ----

    def choices(self, given: Params, gone: Gone) -> Any:
        """Of each column to filter by its values with their numbers of rows, the most first, and how many were cut."""
        query.parse(given, _Nothing)
        with self._counting:
            return self._choices

    @functools.cached_property
    def _choices(self) -> Any:
        held: dict[str, Any] = {"pairs": {}, "rejects": {}}
        for kind, table in (("pairs", self.pairs), ("rejects", self.rejects)):
            for name in query.EQUAL[OfPairs if kind == "pairs" else OfRejects]:
                counted = table.counts(name)
                held[kind][name] = {"values": counted[:CHOICES], "left_out": max(0, len(counted) - CHOICES)}
        return held

    # ---- flags ----

    def flags(self) -> dict[tuple[str, str], str]:
        """All flags as they stand in the file now: kind and id, and the note."""
        state = _state(self.flags_file)
        if state != self._held[0]:
            found = flags.read(self.flags_file) if state else []
            self._held = state, {(flag.kind, flag.id): flag.note for flag in found}
        return self._held[1]

    def put_flag(self, given: Any) -> Any:
        """Flag a pair, or all pairs of its prompt."""
        asked = _body(given, _Put)
        row = self._row(self.pairs, {"row": str(asked.row)})
        flags.put(self.flags_file, Flag(asked.kind, row[f"{asked.kind}_id"], " ".join(asked.note.split())))
        return self.about({}, lambda: False)

    def take_flag(self, given: Any) -> Any:
        """Take a flag back."""
        asked = _body(given, _Take)
        flags.take(self.flags_file, asked.kind, asked.id)
        return self.about({}, lambda: False)

    def about(self, given: Params, gone: Gone) -> Any:
        """How many rows and flags there are."""
        query.parse(given, _Nothing)
        return {"pairs": self.pairs.total, "rejects": self.rejects.total, "flags": len(self.flags())}


class _Nothing(msgspec.Struct, forbid_unknown_fields=True):
    pass


def _body(given: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(given, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise BadRequest(f"The request cannot be read: {error}.") from error


def _state(path: Path) -> Any:
    """What tells one version of a file from another; None without a file."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _is_flagged(held: frozenset[tuple[str, str]]) -> pl.Expr:
    ids = {kind: [identity for of, identity in held if of == kind] for kind in KINDS}
    return pl.any_horizontal(pl.col(f"{kind}_id").is_in(pl.Series(ids[kind], dtype=pl.String)) for kind in KINDS)


def _listed_pair(row: dict[str, Any], held: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    prompt = row.pop("prompt")
    noted = [note for kind in KINDS if (note := held.get((kind, row[f"{kind}_id"]))) is not None]
    return _finite(row) | {"head": _cut(prompt[-1]["content"]), "flag": noted[0] if noted else None}


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= HEAD else f"{text[:HEAD]}…"


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """The row without numbers that JSON has not: the margin of scores at both ends is infinite."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
