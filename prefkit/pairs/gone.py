"""What is to be said where nothing is left: of a raw file beside others, or of all.

A file of which every answer falls while it is read (a score_weights over an aspect that it has not, a wrong source, a
language that a filter takes out) hides in the counts, which are of all files together. So it is said once, with the
reason and a row.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from prefkit.manifest import StageReport
from prefkit.pairs import tables
from prefkit.pairs.engine import counts

if TYPE_CHECKING:
    from prefkit.pairs.steps import Source

Fate = tuple[str, bool, str]  # stage, whether it is a whole row, reason
EMPTY: Fate = ("read", True, "no rows")


def remarks(sources: Sequence[Source], read: Sequence[Path]) -> list[str]:
    """A sentence for each main reason why nothing is left of some files; none where nothing is left of all, since the
    build then ends with it. `read` are the folders of all parts, in order."""
    folders = iter(read)
    files = [(given.file.name, [next(folders) for _ in given.parts()]) for given in sources]
    by_fate: dict[Fate, list[tuple[str, list[Path]]]] = defaultdict(list)
    for name, parts in files:
        counted = [counts(folder) for folder in parts]
        if not any(count["runs"] for count in counted):
            fates: Counter[Fate] = Counter()
            for stage, reason, is_row, number in (each for count in counted for each in count["by_reason"]):
                fates[stage, is_row, reason] += number
            by_fate[max(fates, key=lambda fate: fates[fate], default=EMPTY)].append((name, parts))
    if sum(map(len, by_fate.values())) == len(files):
        return []
    return [_sentence(fate, lost) for fate, lost in sorted(by_fate.items())]


def _sentence(fate: Fate, lost: Sequence[tuple[str, list[Path]]]) -> str:
    (name, parts), more = lost[0], f" and {len(lost) - 1:,} more" if len(lost) > 1 else ""
    if fate == EMPTY:
        return f"{name}{more}: no rows."
    return f"{name}{more}: nothing is left once read. Most of it fell to {fate[2]}.{example(fate, parts)}"


def sentence(stages: Sequence[StageReport], folders: Sequence[Path]) -> str:
    """What to say of a build without a result: the main reasons, with an example from the rejects in `folders`."""
    rows, *_, made = stages
    if not rows.came_in:
        return f"no {made.unit}, since there are no rows: the input is empty."
    fates: Counter[Fate] = Counter()
    for one in stages:
        if one is not made:
            fates.update({(one.stage, one is rows, reason): count for reason, count in one.rejected.items()})
    main = fates.most_common(3)
    reasons = ", ".join(f"{reason} {count:,}" for (_, _, reason), count in main)
    left = f"no {made.unit} left of {rows.came_in:,} row{'s' * (rows.came_in != 1)}"
    return f"{left}. Most fell to: {reasons}.{example(main[0][0], folders)}"


def example(fate: Fate, folders: Sequence[Path]) -> str:
    """A sentence about one reject of a stage and reason, or nothing."""
    stage, is_row, reason = fate
    wanted = (pl.col("stage") == stage) & (pl.col("reason") == reason)
    wanted &= pl.col("completion_index").is_null() if is_row else pl.col("completion_index").is_not_null()
    for rows in (rows for folder in folders for rows in tables.read(folder / "rejects.arrow")):
        for found in rows.filter(wanted).head(1).iter_rows(named=True):
            detail = f": {found['detail']}" if found["detail"] else ""
            wrong_source = is_row and reason != "not_utf8"
            mend = " Is it the right source? prefkit init FILE tells which one reads a file." if wrong_source else ""
            return f" For example {found['origin_file']}, row {found['origin_row']}, {reason}{detail}.{mend}"
    return ""
