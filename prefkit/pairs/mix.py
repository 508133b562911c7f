"""Quotas over the pairs of all inputs: caps, the weights of a mix, and a bound on the share of longer chosen answers.

    select ─▶ quotas ─▶ mix            only where a quota is asked for
    a task    one task   a task
    a bucket             a bucket

In turn: each input's `cap`; then its `weight`, its share of the largest mix that repeats nothing; then over all that
is left `max_longer_share`. Each is a number of pairs of one kind, and those stay that come first by a seeded hash of
their prompt. So pairs of a prompt stay or go together (they share a token tree in training), but for the last prompt,
of which the first pairs in input order stay; the choice depends on no cut of the input and no number of workers; and
without `max_longer_share`, what a smaller cap keeps, a larger one keeps too. Quotas count train and test together, as
the hash draws evenly from both; `max_longer_share`, coming last, may shift the shares of the mix.

Labels have quotas as pairs have, but no longer answer.

The one task reads three numbers a pair and gives one threshold a quota: about 33 bytes a pair at its peak. A task of
`mix` holds the pairs of its bucket.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from annotated_types import Ge, Gt, Le, MinLen

from prefkit.errors import DataError
from prefkit.pairs import select, tables
from prefkit.pairs.engine import RunTasks, Task, key
from prefkit.pairs.select import PART, scrambled
from prefkit.pairs.text import uniform

REASONS = ("cap", "mix_weight", "length_balance")
Bools = npt.NDArray[np.bool_]


class Entry(NamedTuple):
    """What an entry of [[build.inputs]] says of itself beside its source and files."""

    cap: int | None
    weight: float | None
    score_weights: dict[str, float] | None


def entry(
    *,
    cap: Annotated[int, Ge(1)] | None = None,
    weight: Annotated[float, Gt(0)] | None = None,
    score_weights: Annotated[dict[str, float], MinLen(1)] | None = None,
) -> Entry:
    """Of an input: at most how many pairs, its weight in the mix, and weights over aspects that make its scores."""
    return Entry(cap, weight, score_weights)


def balance(*, max_longer_share: Annotated[float, Ge(0), Le(1)] | None = None) -> float | None:
    """Limit the share of pairs whose chosen answer is the longer one, in characters, against length bias.

    Pairs whose chosen answer is longer fall, at random, until the share holds over the whole data set. Answers that
    are rated higher tend to be longer, and models learn that in place of quality: Singhal et al. 2023
    (arXiv:2310.03716) for reward models, Park et al. 2024 (arXiv:2403.19159) for DPO.
    """
    return max_longer_share


class Quotas(NamedTuple):
    """All quotas of a build; the names of the inputs are for messages."""

    inputs: list[str]
    caps: list[int | None]
    weights: list[float | None]  # of all inputs, or of none
    max_longer_share: float | None
    seed: int

    def asked_for(self) -> bool:
        """Whether there is any quota."""
        return any(one is not None for one in [*self.caps, *self.weights, self.max_longer_share])


class Marks(NamedTuple):
    """What decides about pairs, in their order. Equal draws are of one prompt, and stand in one bucket."""

    draw: npt.NDArray[np.uint64]  # seeded hash of the prompt: the lowest stay
    entry: npt.NDArray[np.int32]
    longer: Bools  # whether chosen is the longer answer


class Cut(NamedTuple):
    """A quota as a threshold: pairs of a higher draw fall, and of the draw itself all but the first `ties`."""

    reason: str
    detail: str
    entry: int | None  # whose pairs; None: all pairs whose chosen answer is the longer one
    draw: int
    ties: int


def trim(selected: list[Path], kind: str, quotas: Quotas, work: Path, run: RunTasks) -> list[Path]:
    """Run both steps over finished buckets of pairs; the folders of the trimmed ones, or the same without a quota."""
    if not quotas.asked_for():
        return selected
    folder = work / "quotas" / key([bucket.name for bucket in selected], quotas)
    run("quotas", [Task(folder, find_cuts, (selected, quotas))])
    tasks = [
        Task(work / "mix" / key(number, folder.name), trim_bucket, (bucket, kind, folder, quotas.seed))
        for number, bucket in enumerate(selected)
    ]
    run("mix", tasks)
    return [task.folder for task in tasks]


def find_cuts(folder: Path, selected: Sequence[Path], quotas: Quotas) -> None:
    """Write cuts.json: the quotas that take something away, in turn."""
    marks = Marks(*map(np.concatenate, zip(*(_marks(bucket, quotas.seed) for bucket in selected), strict=True)))
    left = np.ones(len(marks.draw), np.bool_)
    cuts: list[Cut] = []

    def keep(quota: int, reason: str, option: str, entry: int | None) -> None:
        draws = marks.draw[_concerned(entry, marks, left)]
        if quota < len(draws):
            draws.partition(quota)
            ties = quota - np.count_nonzero(draws[:quota] < draws[quota])
            detail = f"{option}: {quota:,} of {len(draws):,} pairs are kept"
            cuts.append(Cut(reason, detail, entry, int(draws[quota]), int(ties)))
            np.logical_and(left, ~_fallen(cuts[-1], marks, left), out=left)

    for number, cap in enumerate(quotas.caps):
        if cap is not None:
            keep(cap, "cap", f"cap={cap}", number)
    counts = np.bincount(marks.entry[left], minlength=len(quotas.caps)).tolist()
    for number, share in enumerate(_shares(counts, quotas)):
        keep(share, "mix_weight", f"weight={quotas.weights[number]}", number)
    if quotas.max_longer_share is not None:
        most = _most_longer(marks.longer[left], quotas.max_longer_share)
        keep(most, "length_balance", f"max_longer_share={quotas.max_longer_share}", None)
    (folder / "cuts.json").write_text(json.dumps(cuts))


def _shares(counts: Sequence[int], quotas: Quotas) -> Iterator[int]:
    """How many pairs of each input make the largest mix in the proportions of the weights, in exact fractions."""
    weights = [Fraction(str(weight)) for weight in quotas.weights if weight is not None]
    if not weights or not sum(counts):
        return
    if 0 in counts:
        raise DataError(
            f"[[build.inputs]] {quotas.inputs[counts.index(0)]} has a weight, but none of its pairs are left, so there "
            "is no mix in the given proportions. Take out this entry, or all weights."
        )
    total = min(count / weight for count, weight in zip(counts, weights, strict=True))
    yield from (int(total * weight) for weight in weights)


def _most_longer(longer: Bools, share: float) -> int:
    """The largest number of longer ones that is at most a share of them and all others."""
    part = Fraction(str(share))
    others = int(np.count_nonzero(~longer))
    return len(longer) if part == 1 else int(part * others / (1 - part))


def _marks(bucket: Path, seed: int) -> Marks:
    order, entries, longer = (np.load(bucket / f"{name}.npy") for name in ("order", "entry", "longer"))
    return Marks(scrambled(order ^ np.uint64(uniform(str(seed), "mix"))), entries, longer)


def _concerned(entry: int | None, marks: Marks, left: Bools) -> Bools:
    return left & (marks.longer if entry is None else marks.entry == entry)


def _fallen(cut: Cut, marks: Marks, left: Bools) -> Bools:
    """Which of the pairs that are left fall to a cut."""
    concerned = _concerned(cut.entry, marks, left)
    ties = concerned & (marks.draw == np.uint64(cut.draw))
    return (concerned & (marks.draw > np.uint64(cut.draw))) | (ties & (np.cumsum(ties) > cut.ties))


def trim_bucket(folder: Path, bucket: Path, kind: str, quotas: Path, seed: int) -> None:
    """Write a bucket of `select` anew, without the pairs that fall; candidates in no other pair go to the rejects."""
    cuts = [Cut(*fields) for fields in json.loads((quotas / "cuts.json").read_text())]
    pairs = tables.read_whole(bucket / "rows.arrow", PART[kind])
    marks = _marks(bucket, seed)
    left = np.ones(len(pairs), np.bool_)
    took = np.full(len(pairs), len(cuts))  # the number of the cut that took each pair; the last: none
    for number, cut in enumerate(cuts):
        gone = _fallen(cut, marks, left)
        left &= ~gone
        took[gone] = number
    fates = pl.DataFrame(
        {"lost": [*(cut.reason for cut in cuts), None], "detail": [*(cut.detail for cut in cuts), None]},
        schema={"lost": pl.String, "detail": pl.String},
    )
    select.trim(folder, kind, bucket, pairs, fates[took], REASONS)
