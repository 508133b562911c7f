"""Names of sources and models that a filter lists, and that nothing has.

`deny = ["truthfulqa"]` lets every row of truthful_qa pass, and an allowed name that is misspelt takes its rows out, so
a name that was not met is said. That is a remark and no error, since one list may serve many raw files.

Each batch of rows is looked at, before any filter, until all names were met; that costs microseconds. The names that
there are instead are kept to tell the likely one, unless they are so many that they are none of a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefkit.errors import nearest
from prefkit.pairs.batch import Tables
from prefkit.pairs.engine import counts
from prefkit.resolve import Call

COLUMNS = {"prefkit.pairs.filters:sources": "source", "prefkit.pairs.filters:models": "model"}
MOST = 1000  # names of a column that are kept
SHOWN = 10

Facts = dict[str, dict[str, list[str]]]


class Listed:
    """The names in the lists of such filters that were not met yet, and those that were, by column."""

    def __init__(self, filters: Sequence[Call]):
        self.left = {
            COLUMNS[call.address]: {*(call.options["allow"] or []), *(call.options["deny"] or [])}
            for call in filters
            if call.address in COLUMNS
        }
        self.met: dict[str, set[str]] = {column: set() for column in self.left}

    def look(self, batch: Tables) -> None:
        """Look at the prompts and answers of a batch."""
        for column, left in self.left.items():
            if left:
                there = (batch.prompts if column == "source" else batch.answers)[column].unique().drop_nulls()
                left.difference_update(there)
                if len(self.met[column]) <= MOST:
                    self.met[column].update(there)

    def facts(self) -> Facts:
        """What a part tells of it, for `remarks`; of too many names, none but that they are too many."""
        met = {column: sorted(names)[: MOST + 1] for column, names in self.met.items()}
        return {"left": {column: sorted(names) for column, names in self.left.items()}, "met": met}


def remarks(read: Sequence[Path]) -> list[str]:
    """A sentence for each column of which listed names were not met; `read` are the folders of all parts."""
    parts: list[Facts] = [found["listed"] for folder in read if (found := counts(folder))["groups"]]
    said = []
    for column in parts[0]["left"] if parts else ():
        left = sorted(set.intersection(*(set(part["left"][column]) for part in parts)))
        if left:
            met = set.union(*(set(part["met"][column]) for part in parts))
            listed = " or ".join(f'"{name}"' for name in left)
            said.append(
                f"[[build.filters]] {column}s: no row that was read has the {column} {listed}.{_mend(left, met)}"
            )
    return said


def _mend(left: Sequence[str], met: set[str]) -> str:
    """The likely names, or those that there are."""
    if not met:
        return " None has any."
    known = sorted(met) if len(met) <= MOST else []
    likely = "".join(nearest(name, known) for name in left)
    others = f" There are {', '.join(known[:SHOWN])}{', …' * (len(known) > SHOWN)}." if known else ""
    return likely or others
