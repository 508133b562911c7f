"""Sampling: which examples a phase may take, how often an epoch takes a prompt, and when its turn comes.

    filters      `sources`, `langs`, `min_margin` of a phase: other examples are never taken
    weights      `source_weights`, `lang_weights`: how many times an epoch takes a prompt, on average over the epochs
    caps         `source_caps`, `lang_caps`: at most so many examples of a source or language an epoch, the first ones
                 in the epoch's order, which differs from epoch to epoch
    curriculum   `easy_first` or `hard_first`: an epoch goes by margin, and is shuffled only where margins are equal

Examples are pairs, or answers in supervised fine-tuning. A filter judges examples; all else goes by whole prompts,
whose source and language are those of their first example.

With weight w a prompt is taken floor(w (e + 1) + u) - floor(w e + u) times in epoch e, where u in [0, 1) is a hash of
seed and prompt: 2.5 is two or three times an epoch and five times in any two, 0.5 every other epoch, a different half
of the prompts each time. These are weights of sampling and not of the loss: the expected gradient is the same, but a
step stays the plain mean of its examples, so losses that look at a whole step keep their meaning.

Margins of different sources are on different scales, so a curriculum goes by the quantile of a prompt's mean margin
among the prompts of its source: easy pairs (large margins) of all sources come together.

All of it is a function of seed, epoch and data. What is left out or repeated is counted (`Plan.account`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from prefkit.errors import TrainError, UsageError, did_you_mean
from prefkit.train.arriving import Arriving, Index
from prefkit.train.examples import Examples, running
from prefkit.train.options import Phase

OPTIONS = (  # of a phase
    "sources",
    "langs",
    "min_margin",
    "source_weights",
    "lang_weights",
    "source_caps",
    "lang_caps",
    "curriculum",
)
COPY = 40  # bits of a prompt's number; what stands above tells its copies in an epoch apart


def select(examples: Examples | Arriving, phase: Phase) -> tuple[Examples | Arriving, Sampling]:
    """The examples that a phase's filters let through, and how its epochs draw from them.

    UsageError if a source or language that an option names is not there, TrainError if a curriculum lacks margins.
    """
    values = {"source": examples.values("source"), "lang": examples.values("lang")}
    learned = examples.labels() if phase.objective == "sft" else None  # of a stream; else the store has good ones alone
    kept, fallen = keep(values, examples.margins(), phase, learned)
    first = running(examples.counts())[:-1]
    of_prompts = {name: column[first] for name, column in values.items()}
    examples = examples.keeping(kept)
    weights, caps = _weights_and_caps(phase, of_prompts)
    turn = None
    if phase.curriculum is not None:
        left = examples.counts() > 0
        turn = np.zeros(len(left))  # of no prompt that filters leave nothing of
        turn[left] = turns(phase.curriculum, mean_margins(examples)[left], of_prompts["source"][left])
    return examples, Sampling(weights, caps, turn, fallen)


def _weights_and_caps(phase: Phase, of_prompts: Mapping[str, np.ndarray]) -> tuple[np.ndarray | None, tuple[Cap, ...]]:
    """What `Sampling` has of a phase's options, by the source and language of each prompt."""
    weights, caps = None, []
    for name, values in of_prompts.items():
        given, limits = getattr(phase, f"{name}_weights"), getattr(phase, f"{name}_caps")
        if given is not None:
            of_each = weights_of(f"{phase.name}: {name}_weights", given, values)
            weights = of_each if weights is None else of_each * weights
        if limits is not None:
            caps.append(cap_of(f"{phase.name}: {name}_caps", limits, values))
    return weights, tuple(caps)


def looks_at_rows(phase: Phase) -> bool:
    """Whether anything of this is asked for."""
    return any(getattr(phase, option) is not None for option in OPTIONS)


def check(phase: Phase, index: Sequence[Index]) -> tuple[np.ndarray, Sampling]:
    """What `select` would refuse, by an index of the shards: before there are tokens.

    Returns the examples of each prompt as far as the index tells, and how epochs draw from them, without their order.
    Rows that cannot be used within max_length count. Fine-tuning takes an answer once, however many rows it is in, so
    a prompt that has good rows counts as one example there, unless the data come as a stream of rows. Raises what
    `select` raises.
    """
    values = {name: np.concatenate([one.values[name] for one in index]) for name in ("source", "lang")}
    margins = -np.diff(np.concatenate([one.scores for one in index]), axis=1)[:, 0]
    labels = np.concatenate([one.labels for one in index])
    learned = labels if phase.objective == "sft" and len(labels) else None
    kept, fallen = keep(values, margins, phase, learned)
    before = running([one.rows for one in index])
    first = np.concatenate([one.first + start for one, start in zip(index, before[:-1], strict=True)])
    ends = np.append(first, len(kept))
    weights, caps = _weights_and_caps(phase, {name: column[first] for name, column in values.items()})
    counts = np.diff(running(kept)[ends])
    if phase.curriculum is not None:
        of_rows = np.repeat(np.ones(len(first)) if weights is None else weights, np.diff(ends))
        _check_margins(phase.curriculum, margins[kept & (of_rows > 0)], "pairs are")
    if phase.objective == "sft" and not phase.stream:
        counts = np.minimum(counts, 1)
    return counts, Sampling(weights, caps, filtered=fallen)


def nothing_left(phase: Phase, counts: np.ndarray) -> TrainError:
    """What is said where no epoch takes any of the prompts that have `counts` examples."""
    smallest = counts[counts > 0].min(initial=np.iinfo(np.int64).max)
    capped = (phase.source_caps, phase.lang_caps) != (None, None) and 1 < smallest <= counts.max(initial=0)
    hint = f" A cap takes prompts whole, and the smallest has {smallest:,} examples." if capped else ""
    return TrainError(f"{phase.name}: filters, weights and caps leave nothing to train on.{hint}")


def told(account: Mapping[str, int]) -> str:
    """The account of an epoch (`Plan.account`) in one line for people; empty if each example is taken once."""
    rest = [f"{count:,} {what.replace('_', ' ')}" for what, count in account.items() if "by" in what and count]
    return f"{account['taken']:,} of {account['examples']:,} examples ({', '.join(rest)})" if rest else ""


def keep(
    values: Mapping[str, np.ndarray], margins: np.ndarray, phase: Phase, labels: np.ndarray | None = None
) -> tuple[np.ndarray, dict[str, int]]:
    """Which examples the filters let through, as a mask, and how many fell by each filter, the first that they met.

    `labels` are given where fine-tuning learns from good answers alone.
    """
    kept = np.ones(len(margins), dtype=bool)
    fallen: dict[str, int] = {}

    def judge(name: str, good: np.ndarray) -> None:
        fallen[f"left_out_by_{name}"] = int((kept & ~good).sum())
        kept[~good] = False

    for name, wanted in (("source", phase.sources), ("lang", phase.langs)):
        if wanted is not None:
            _check_known(f"{phase.name}: {name}s", wanted, values[name])
            judge(f"{name}s", np.isin(values[name].astype(str), wanted))
    if phase.min_margin is not None:
        judge("min_margin", margins >= phase.min_margin)  # also those without scores
    if labels is not None:
        judge("label", labels)
    return kept, {name: count for name, count in fallen.items() if count}


def mean_margins(examples: Examples | Arriving) -> np.ndarray:
    """The mean margin of each prompt's examples; 0 for a prompt that has none left."""
    counts, margins = examples.counts(), examples.margins()
    kept = np.ones(len(margins), dtype=bool) if examples.kept is None else examples.kept
    prompt = np.repeat(np.arange(len(counts)), counts)
    return np.bincount(prompt, margins[kept], minlength=len(counts)) / np.maximum(counts, 1)


@dataclass(frozen=True)
class Cap:
    """At most `limits[g]` examples an epoch of the prompts whose `groups` is g."""

    groups: np.ndarray
    limits: np.ndarray


@dataclass(frozen=True)
class Sampling:
    """What an epoch takes of the prompts, by arrays over them; the default takes each once, shuffled."""

    weights: np.ndarray | None = None
    caps: tuple[Cap, ...] = ()
    turn: np.ndarray | None = None  # the curriculum: lower comes first
    filtered: dict[str, int] = field(default_factory=dict)  # how many examples fell before, by filter

    def times(self, prompts: int, seed: int, epoch: int) -> np.ndarray:
        """How many times this epoch takes each prompt."""
        if self.weights is None:
            return np.ones(prompts, dtype=np.int64)
        offset = _hashed(np.arange(prompts), seed, salt=3) / 2.0**64
        ends = [np.floor(self.weights * end + offset) for end in (epoch, epoch + 1)]
        return (ends[1] - ends[0]).astype(np.int64)

    def capped(self, order: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """The prompts of an epoch without those that exceed a cap; `counts` are the examples of each prompt."""
        for cap in self.caps:
            fits = np.ones(len(order), dtype=bool)
            for group, limit in enumerate(cap.limits):
                mine = np.flatnonzero(cap.groups[order] == group)
                fits[mine] = np.cumsum(counts[order[mine]]) <= limit
            order = order[fits]
        return order

    def in_turn(self, order: np.ndarray) -> np.ndarray:
        """The same prompts as the curriculum wants them."""
        return order if self.turn is None else order[np.argsort(self.turn[order], kind="stable")]


def weights_of(name: str, weights: Mapping[str, float], values: np.ndarray) -> np.ndarray:
    """The weight of each prompt by its source or language; 1 for those that are not named."""
    _check_known(name, weights, values)
    return np.array([weights.get(value, 1.0) for value in values])


def cap_of(name: str, caps: int | Mapping[str, int], values: np.ndarray) -> Cap:
    """A cap by source or language: one number for each of them, or numbers for some."""
    if not isinstance(caps, int):
        _check_known(name, caps, values)
    known, groups = np.unique(values.astype(str), return_inverse=True)
    no_limit = np.iinfo(np.int64).max
    limits = [caps if isinstance(caps, int) else caps.get(str(value), no_limit) for value in known]
    return Cap(groups, np.array(limits, dtype=np.int64))


def turns(curriculum: str, margins: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """The turn of each prompt in [0, 1] by its mean margin: quantiles within its source, equal margins sharing one."""
    _check_margins(curriculum, margins, "prompts have pairs")
    known, groups = np.unique(sources.astype(str), return_inverse=True)
    quantiles = np.zeros(len(margins))
    for group in range(len(known)):
        mine = np.sort(margins[groups == group])
        below, up_to = (np.searchsorted(mine, margins[groups == group], side) for side in ("left", "right"))
        quantiles[groups == group] = (below + up_to) / (2 * len(mine))
    return quantiles if curriculum == "hard_first" else 1 - quantiles


def shuffled(values: np.ndarray, seed: int, epoch: int, *, salt: int) -> np.ndarray:
    """`values` sorted by a hash of each with the seed, the epoch and the salt.

    A hash (splitmix64) and not a library's random generator, whose stream may change between versions.
    """
    return values[np.argsort(_hashed(values, seed, epoch, salt=salt), kind="stable")]


def repeated(prompts: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Each prompt as often as `times` says, its copies told apart by the bits above COPY."""
    first = np.repeat(np.cumsum(times) - times, times)
    return np.repeat(prompts, times) + ((np.arange(len(first)) - first) << COPY)


def _hashed(values: np.ndarray, *key: int, salt: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        mixed: np.uint64 | np.ndarray = np.uint64(0)
        for part in (*key, salt):
            mixed = _splitmix(mixed ^ np.uint64(part))
        return np.asarray(_splitmix(_splitmix(values.astype(np.uint64)) ^ mixed))


def _splitmix(value: np.ndarray | np.uint64) -> np.ndarray | np.uint64:
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _check_margins(curriculum: str, margins: np.ndarray, which: str) -> None:
    missing = int(np.isnan(margins).sum())
    if missing:
        raise TrainError(
            f'curriculum = "{curriculum}" goes by margin, but {missing:,} of {len(margins):,} {which} without scores. '
            "Leave the curriculum out, or those pairs, with min_margin = 0."
        )


def _check_known(option: str, named: Collection[str], values: np.ndarray) -> None:
    known = set(values.tolist())
    for name in named:
        if name not in known:
            raise UsageError(f'{option}: the train split has nothing of "{name}".{did_you_mean(name, known)}')
