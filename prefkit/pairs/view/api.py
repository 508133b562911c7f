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

from prefkit import manifest, schema
from prefkit.errors import DataError, PrefkitError
from prefkit.pairs import flags, why
from prefkit.pairs.flags import KINDS, Flag
from prefkit.pairs.view import query
from prefkit.pairs.view.query import BadRequest, Found, Kept
from prefkit.pairs.view.table import Table

PAGE = 50
HEAD = 240  # characters of a text in a list
KEPT = 8  # queries whose rows are kept
CHOICES = 1000  # values of a column to choose from
LISTED = {
    "pairs": ["prompt", "pair_id", "prompt_id", "source", "lang", "margin", "chosen_model", "rejected_model"],
    "labels": ["prompt", "answer_id", "prompt_id", "source", "lang", "label", "completion_score", "completion_model"],
    "rejects": ["stage", "reason", "origin_file", "origin_row", "completion_index", "detail"],
}
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
    """A finished data set, and the file of flags that belongs to it. Its `kind` is pairs or labels.

    Flags are read again whenever their file changed, so an editor, or another viewer, may change them as well. Where
    the data set itself was replaced, everything is refused, since row numbers would mean other rows.
    """

    def __init__(self, folder: Path, flags_file: Path):
        self.record = manifest.read(folder)
        self.kind = self.record.kind
        if self.kind == "conversations":
            raise DataError(f"{folder}: holds conversations of prefkit adopt, not pairs; there is nothing to view.")
        for shard in self.record.shards:
            if not (folder / shard.path).is_file():
                raise DataError(f"{folder / shard.path}: missing. prefkit verify {folder} tells what is whole.")
        self.folder, self.flags_file = folder, flags_file
        self.kept = Table(folder, self.record, ("train", "test"))
        self.rejects = Table(folder, self.record, ("rejects",))
        self._id_of = {"pair": schema.IDS[self.kind], "prompt": "prompt_id"}  # by the kind of a flag
        self._state = _state(folder / manifest.FILE_NAME)
        self._queries: OrderedDict[Any, Found] = OrderedDict()
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        self._flags: tuple[Any, dict[tuple[str, str], str]] = (None, {})  # the flags, and which version of their file
        self.flags()

    def check(self) -> None:
        """Raises Changed where the data set was replaced or is being."""
        if _state(self.folder / manifest.FILE_NAME) != self._state:
            raise Changed(f"{self.folder}: was built anew. Start prefkit view again to see what it is now.")

    # ---- what is found ----

    def find_kept(self, given: Params, gone: Gone) -> Any:
        """A page of pairs, or labels: `rows`, and how many were `found`, which is all of them if `complete`."""
        return self._find(given, self.kind, gone)

    def find_rejects(self, given: Params, gone: Gone) -> Any:
        """The same of rejects."""
        return self._find(given, "rejects", gone)

    def count_kept(self, given: Params, gone: Gone) -> Any:
        """How many pairs, or labels, there are, which takes a look at all files."""
        return self._count(given, self.kind, gone)

    def count_rejects(self, given: Params, gone: Gone) -> Any:
        """The same of rejects."""
        return self._count(given, "rejects", gone)

    def _find(self, given: Params, kind: str, gone: Gone) -> Any:
        page = query.parse({"page": given["page"]} if "page" in given else {}, _Page).page
        found, numbers = self._found(given, kind, (page + 1) * PAGE + 1, gone)
        rows = self._table(kind).rows(numbers[page * PAGE : (page + 1) * PAGE].tolist(), LISTED[kind])
        listed = self._listed_reject if kind == "rejects" else self._listed_kept
        return {
            "rows": [listed(row) for row in rows],
            "found": len(numbers), "complete": found.complete, "page": page, "size": PAGE,
        }  # fmt: skip

    def _count(self, given: Params, kind: str, gone: Gone) -> Any:
        return {"found": len(self._found(given, kind, self._table(kind).total + 1, gone)[1])}

    def _table(self, kind: str) -> Table:
        return self.rejects if kind == "rejects" else self.kept

    def _found(self, given: Params, kind: str, count: int, gone: Gone) -> tuple[Found, Any]:
        asked = query.parse({name: value for name, value in given.items() if name != "page"}, query.KINDS[kind])
        held = frozenset(self.flags()) if isinstance(asked, Kept) and asked.flagged else frozenset()
        with self._lock:
            if (asked, held) not in self._queries:
                self._queries[asked, held] = Found(self._table(kind), asked, self._is_flagged(held))
            found = self._queries[asked, held]
            self._queries.move_to_end((asked, held))
            while len(self._queries) > KEPT:
                self._queries.popitem(last=False)
        try:
            return found, found.upto(count, gone)
        except DataError:  # what was found before it is not all
            with self._lock:
                self._queries.pop((asked, held), None)
            raise

    def _is_flagged(self, held: frozenset[tuple[str, str]]) -> pl.Expr:
        ids = {kind: pl.Series([identity for of, identity in held if of == kind], dtype=pl.String) for kind in KINDS}
        return pl.any_horizontal(pl.col(self._id_of[kind]).is_in(ids[kind]) for kind in KINDS)

    def _listed_kept(self, row: dict[str, Any]) -> dict[str, Any]:
        prompt = row.pop("prompt")
        noted = [note for note in self._flags_of(row).values() if note is not None]
        return _finite(row) | {"head": _cut(prompt[-1]["content"]), "flag": noted[0] if noted else None}

    def _listed_reject(self, row: dict[str, Any]) -> dict[str, Any]:
        return row | {"detail": _cut(row["detail"])}

    def _flags_of(self, row: Mapping[str, Any]) -> dict[str, str | None]:
        """The notes of the flags of a pair, or label, and of its prompt."""
        held = self.flags()
        return {kind: held.get((kind, row[self._id_of[kind]])) for kind in KINDS}

    # ---- one of them ----

    def one(self, given: Params, gone: Gone) -> Any:
        """All of a pair, or label, with the flags of it and of its prompt."""
        row = self._row(self.kept, given)
        return _finite(row) | {"flags": self._flags_of(row)}

    def reject(self, given: Params, gone: Gone) -> Any:
        """All of a reject, with the prompt of what is left of it, or else of its cluster, where there is one."""
        row = self._row(self.rejects, given)
        raw = row.pop("raw")
        prompts = {name: self._prompt(row[f"{name}_id"]) for name in ("prompt", "cluster")}
        return row | {
            "raw": raw.decode("utf-8", "backslashreplace") if raw is not None else None,
            "prompt": prompts["prompt"],
            "cluster_prompt": prompts["cluster"] if prompts["prompt"] is None else None,
        }

    def _prompt(self, identity: str | None) -> Any:
        """The messages of a prompt by its prompt_id, if a pair, or label, of it is left."""
        at = self.kept.first_match(pl.col("prompt_id") == identity) if identity else None
        return self.kept.rows([at], ["prompt"])[0]["prompt"] if at is not None else None

    def why(self, given: Params, gone: Gone) -> Any:
        """What `prefkit why` prints of a pair, or label."""
        identity = self._row(self.kept, given)[self._id_of["pair"]]
        return {"lines": list(why.lines(why.why(self.folder, identity)))}

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
        return {kind: self._counted(kind) for kind in (self.kind, "rejects")}

    def _counted(self, kind: str) -> Any:
        held = {}
        for name in query.EQUAL[query.KINDS[kind]]:
            counted = self._table(kind).counts(name)
            held[name] = {"values": counted[:CHOICES], "left_out": max(0, len(counted) - CHOICES)}
        return held

    # ---- flags ----

    def flags(self) -> dict[tuple[str, str], str]:
        """All flags as they stand in the file now: kind and id, and the note."""
        state = _state(self.flags_file)
        if state != self._flags[0]:
            found = flags.read(self.flags_file) if state else []
            self._flags = state, {(flag.kind, flag.id): flag.note for flag in found}
        return self._flags[1]

    def put_flag(self, given: Any) -> Any:
        """Flag a pair, or label, or all of its prompt."""
        asked = _body(given, _Put)
        row = self._row(self.kept, {"row": str(asked.row)})
        flags.put(self.flags_file, Flag(asked.kind, row[self._id_of[asked.kind]], " ".join(asked.note.split())))
        return self.about({}, lambda: False)

    def take_flag(self, given: Any) -> Any:
        """Take a flag back."""
        asked = _body(given, _Take)
        flags.take(self.flags_file, asked.kind, asked.id)
        return self.about({}, lambda: False)

    def about(self, given: Params, gone: Gone) -> Any:
        """How many rows and flags there are."""
        query.parse(given, _Nothing)
        return {self.kind: self.kept.total, "rejects": self.rejects.total, "flags": len(self.flags())}


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


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= HEAD else f"{text[:HEAD]}…"


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """The row without numbers that JSON has not: the margin of scores at both ends is infinite."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
