"""Flags: pairs and prompts that a person wants out of a data set, each with a note, in a JSON Lines file.

    {"pair_id": "3fa9c1…", "note": "the rejected answer is the right one"}
    {"prompt_id": "91c07e…", "note": "no question at all"}

`prefkit view` writes such a file, `[build] exclude` takes it as a filter, and an editor or a script may do either.

Ids are hashes of text (`text`), so a flag holds over rebuilds, in other builds of the same raw rows, and whatever
becomes of seeds, splits, strategies and shards. A pair_id is that of prompt, chosen and rejected: another text, or the
answers the other way round, is another pair; in a data set of labels it is the answer_id, that of prompt and answer.
Prompts are compared case folded; without `fold_case` their ids, and those of their pairs, are others.

A file is small, since people wrote it, so a change writes it anew: one rename, by which a reader and a crash see all of
the old or all of the new flags. Processes that change one file wait for each other.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from prefkit.errors import DataError
from prefkit.manifest import write_text_atomically

KINDS = ("pair", "prompt")
ID_DIGITS = 32


class Flag(NamedTuple):
    """A pair or a prompt by its whole id, with a note, which may be empty."""

    kind: str  # one of KINDS
    id: str
    note: str


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    pair_id: str | None = None
    prompt_id: str | None = None
    note: str = ""


def read(path: Path) -> list[Flag]:
    """The flags of a file, in order. DataError for a line that is none, OSError where there is no file."""
    found = []
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            try:
                found.append(_flag(line))
            except (ValueError, msgspec.DecodeError) as error:
                raise DataError(
                    f'{path}, line {number}: no flag ({error}). A line is {{"pair_id": "…", "note": "…"}}, or '
                    "prompt_id in its place."
                ) from error
    return found


def _flag(line: bytes) -> Flag:
    given = msgspec.json.decode(line, type=_Line)
    ids = [(kind, one) for kind, one in zip(KINDS, (given.pair_id, given.prompt_id), strict=True) if one is not None]
    if len(ids) != 1:
        raise ValueError("it names both a pair_id and a prompt_id" if ids else "it names no pair_id and no prompt_id")
    ((kind, identity),) = ids
    if len(identity) != ID_DIGITS or set(identity) - set("0123456789abcdef"):
        raise ValueError(f"an id has {ID_DIGITS} hexadecimal digits in lower case, not {identity!r}")
    return Flag(kind, identity, given.note)


def put(path: Path, flag: Flag) -> list[Flag]:
    """Flag a pair or a prompt, or change its note; returns all flags, now in the file."""
    with _changing(path) as flags:
        return _write(path, [*_without(flags, flag.kind, flag.id), flag])


def take(path: Path, kind: str, identity: str) -> list[Flag]:
    """Take a flag back; returns those that are left, now in the file."""
    with _changing(path) as flags:
        return _write(path, _without(flags, kind, identity))


def _without(flags: Sequence[Flag], kind: str, identity: str) -> list[Flag]:
    return [flag for flag in flags if (flag.kind, flag.id) != (kind, identity)]


@contextmanager
def _changing(path: Path) -> Iterator[list[Flag]]:
    """The flags of a file, while nobody else changes it: its folder is locked, which leaves no file behind."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield read(path) if path.exists() else []
    finally:
        os.close(folder)


def _write(path: Path, flags: list[Flag]) -> list[Flag]:
    lines = [json.dumps({f"{flag.kind}_id": flag.id, "note": flag.note}, ensure_ascii=False) for flag in flags]
    write_text_atomically(path, "".join(f"{line}\n" for line in lines))
    return flags
