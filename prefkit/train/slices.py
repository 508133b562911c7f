"""The same figures by slice: source, language, margin of scores, difference of lengths.

    source, lang   what the data set says of a pair
    margin         quarters of the pairs by the margin of their scores, where there are scores
    length         whether the chosen answer has fewer tokens than the rejected one, alike (within a tenth), or more

In training a step is too few pairs to tell slices apart, so sums are kept over a window of steps (that of the alarms),
written with its last step, and begun anew: `slices/source/NAME/rewards/margins`. Within a window the policy moves,
as it does in any figure of training; `eval_slices/…` of an evaluation are of one policy. A column has at most LARGEST
values, the others together are "other". Sums go into checkpoints, so a resumed run writes the same figures.

Cost: 32 bytes a pair of the train split, and microseconds a step.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prefkit.train import parallel
from prefkit.train.arriving import Arriving
from prefkit.train.examples import UNKNOWN, Examples

SHOWN = ("rewards/accuracies", "rewards/margins", "logps/chosen_change")
LARGEST = 16
ALIKE = 0.1

Labels = dict[str, np.ndarray]


def of(examples: Examples | Arriving) -> Labels:
    """The slice of every pair, as text, in each column that tells pairs apart; nothing where there are no pairs.

    Lengths are not known of pairs that arrive while training goes on. Figures of labelled answers are means over those
    of one label, of which a slice has its own share, so there are none.
    """
    if examples.labels() is not None:
        return {}
    columns = {
        "source": examples.values("source"),
        "lang": examples.values("lang"),
        "margin": quarters(examples.margins()),
    }
    if isinstance(examples, Examples):
        if not len(examples.pairs()):
            return {}
        columns["length"] = compared(examples.lengths()[examples.pairs()])
    return {name: _largest(values) for name, values in columns.items() if len(set(values.tolist())) > 1}


def quarters(values: np.ndarray) -> np.ndarray:
    """In which quarter of the known values each one lies, as text that names the bounds; `UNKNOWN` for NaN."""
    known = np.isfinite(values)
    if not known.any():
        return np.full(len(values), UNKNOWN, dtype=object)
    bounds = np.unique(np.quantile(values[known], [0.25, 0.5, 0.75]))
    shown = [f"{bound:.3g}" for bound in bounds]
    names = [
        f"up to {shown[0]}",
        *(f"{a} to {b}" for a, b in itertools.pairwise(shown)),
        f"above {shown[-1]}",
    ]
    return np.where(known, np.array(names, dtype=object)[np.searchsorted(bounds, values)], UNKNOWN)


def compared(lengths: np.ndarray) -> np.ndarray:
    """How chosen and rejected [pairs, 2] compare, as text."""
    ratio = lengths[:, 0] / lengths[:, 1]
    return np.select([ratio < 1 - ALIKE, ratio > 1 + ALIKE], ["chosen shorter", "chosen longer"], "alike").astype(
        object
    )


def _largest(values: np.ndarray) -> np.ndarray:
    """The column with all but its largest slices put together."""
    names, counts = np.unique(values.astype(str), return_counts=True)
    if len(names) <= LARGEST:
        return values
    kept = names[np.argsort(-counts, kind="stable")[: LARGEST - 1]]
    return np.where(np.isin(values.astype(str), kept), values, "other")


def table(labels: Labels, figures: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Means of the shown figures (one value a pair each) by column and slice, with the number of pairs."""
    sums = Sums(labels, [name for name in SHOWN if name in figures])
    sums.add(np.arange(len(next(iter(figures.values())))), figures)
    return sums.taken()


def begun(examples: Examples | Arriving, names: Sequence[str], before: list[list[float]] | None) -> Sums | None:
    """Running sums over a train split, going on from those of a checkpoint, which the first rank takes.

    None where there are no slices, or none of `names` is shown of them.
    """
    labels, shown = of(examples), [name for name in SHOWN if name in names]
    if not labels or not shown:
        return None
    sums = Sums(labels, shown)
    if before is not None and parallel.is_first():
        sums.sums[:] = before
    return sums


class Sums:
    """Running sums of figures by slice."""

    def __init__(self, labels: Labels, names: Sequence[str]) -> None:
        self._names = list(names)
        self._values: list[tuple[str, str]] = []
        self._codes = []
        for column, values in labels.items():
            known, codes = np.unique(values.astype(str), return_inverse=True)
            self._codes.append(codes + len(self._values))
            self._values += [(column, str(value)) for value in known]
        self.sums = np.zeros((len(self._values), 1 + len(self._names)))  # pairs, and then each figure

    def add(self, pairs: np.ndarray, figures: Mapping[str, np.ndarray]) -> None:
        """Add figures of some pairs, by their numbers."""
        values = np.stack([np.ones(len(pairs)), *(figures[name] for name in self._names)], axis=1)
        for codes in self._codes:
            np.add.at(self.sums, codes[pairs], values)

    def taken(self) -> dict[str, Any]:
        """The means, as nested tables; all sums are 0 then."""
        result: dict[str, Any] = {}
        for (column, value), (pairs, *sums) in zip(self._values, self.sums.tolist(), strict=True):
            if pairs:
                means = {name: total / pairs for name, total in zip(self._names, sums, strict=True)}
                result.setdefault(column, {})[value] = {"pairs": int(pairs), **means}
        self.sums[:] = 0
        return result
