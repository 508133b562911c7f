"""Token store -> the plan: which prompts make up step n, and the bins that the trainer computes for it.

The order is a function of (seed, epoch, data): shards in seeded order, the prompts of each window of shards shuffled
together, and then cut into steps. A step takes whole prompts until it holds at least `pairs_per_step` examples, which
are pairs, or answers in supervised fine-tuning. Nothing in it depends on the bins, on `max_tokens` or on how many
processes share the work, so the state of the stream is one number, the step: resuming replays nothing and skips
nothing, in the middle of an epoch too. The last step of an epoch may be smaller; it is trained on, not dropped.

The shuffle sorts by a hash (splitmix64) and not by a library's random generator, whose stream may change between
versions.

Cost: 8 bytes a prompt for the order of one epoch. Rows are read by memory map when their step comes; the window
bounds how far apart on disk the rows of a step can lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from prefkit.train.pack import Bin, Sequence, Tree, collate, pack, split_tree
from prefkit.train.store import Store


class Examples:
    """The prompts of a token store, numbered through all shards, as arrays mapped from disk."""

    def __init__(self, shards: list[ShardView]) -> None:
        self.shards = shards
        self.prompt_base = _running([shard.prompts for shard in self.shards])
        self.sequence_base = _running([len(shard.starts) for shard in self.shards])
        self.pair_base = _running([len(shard.pair_rows) for shard in self.shards])

    @classmethod
    def of(cls, store: Store) -> Examples:
        """All shards of a token store."""
        return cls([ShardView(pa.memory_map(str(store.folder / name))) for name in store.files])

    def shard(self, number: int) -> Examples:
        """One shard, numbered by itself."""
        return Examples([self.shards[number]])

    @property
    def sequences(self) -> int:
        """How many distinct sequences there are: the length of an array of their log-probabilities."""
        return int(self.sequence_base[-1])

    @property
    def prompts(self) -> int:
        return int(self.prompt_base[-1])

    def counts(self) -> np.ndarray:
        """Examples of each prompt: its pairs, or its sequences where there are no pairs."""
        return np.concatenate([np.zeros(0, np.int64), *(shard.counts() for shard in self.shards)])

    def tree_tokens(self) -> np.ndarray:
        """Tokens of each prompt's tree."""
        return np.concatenate([np.zeros(0, np.int32), *(shard.tree_tokens for shard in self.shards)])

    def trees(self, prompt: int, max_tokens: int) -> list[Tree]:
        """The token trees of a prompt: one, or more to fit `max_tokens`; rows are numbered through all shards."""
        shard, local = self._locate(prompt)
        view = self.shards[shard]
        sequences, first = view.sequences_of(local)
        pairs, first_pair = view.pairs_of(local)
        return split_tree(
            sequences,
            pairs,
            pair_rows=np.arange(len(pairs)) + first_pair + self.pair_base[shard],
            sequence_rows=np.arange(len(sequences)) + first + self.sequence_base[shard],
            max_tokens=max_tokens,
        )

    def sequences_of(self, prompts: np.ndarray) -> np.ndarray:
        """Numbers of all sequences of some prompts."""
        offsets = np.concatenate(
            [shard.sequence_offsets[:-1] + base for shard, base in zip(self.shards, self.sequence_base, strict=False)]
            + [[self.sequences]]
        ).astype(np.int64)
        spans = [np.arange(offsets[prompt], offsets[prompt + 1]) for prompt in prompts]
        return np.concatenate([np.zeros(0, np.int64), *spans])

    def origin_of_pair(self, pair: int) -> tuple[int, int]:
        """Shard, and row in it, of a pair."""
        shard = int(np.searchsorted(self.pair_base, pair, side="right")) - 1
        return shard, int(self.shards[shard].pair_rows[pair - self.pair_base[shard]])

    def origin_of_sequence(self, sequence: int) -> tuple[int, int]:
        """Shard, and first row in it, of a sequence."""
        shard = int(np.searchsorted(self.sequence_base, sequence, side="right")) - 1
        return shard, int(self.shards[shard].sequence_rows[sequence - self.sequence_base[shard]])

    def pairs(self) -> np.ndarray:
        """Chosen and rejected sequence of every pair, as [pairs, 2]."""
        parts = [shard.pair_sequences() + base for shard, base in zip(self.shards, self.sequence_base, strict=False)]
        return np.concatenate([np.zeros((0, 2), np.int64), *parts])

    def lengths(self) -> np.ndarray:
        """Completion tokens of every sequence."""
        return np.concatenate([np.zeros(0, np.int64), *(shard.lengths() for shard in self.shards)])

    def values(self, name: str) -> np.ndarray:
        """`source` or `lang` of every example as text ("unknown" where the data set says none).

        Examples are numbered like pairs (so `bin.pair_rows_P` picks those of a bin), or in supervised fine-tuning like
        sequences.
        """
        return np.concatenate([np.zeros(0, object), *(shard.values(name) for shard in self.shards)])

    def scores(self) -> np.ndarray:
        """`chosen_score` and `rejected_score` of every example, as [examples, 2]; NaN where there is none."""
        return np.concatenate([np.zeros((0, 2)), *(shard.scores for shard in self.shards)])

    def margins(self) -> np.ndarray:
        """Chosen minus rejected score of every example; NaN where there is none."""
        return -np.diff(self.scores(), axis=1)[:, 0]

    def _locate(self, prompt: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self.prompt_base, prompt, side="right")) - 1
        return shard, int(prompt - self.prompt_base[shard])


class ShardView:
    """The columns of one file of the token store as plain arrays; nothing is copied from the memory map."""

    def __init__(self, source: pa.MemoryMappedFile) -> None:
        batch = pa.ipc.open_file(source).get_batch(0)
        sequences, pairs = batch.column("sequences"), batch.column("pairs")
        tokens = sequences.values.field("tokens")
        self.prompts = batch.num_rows
        self.tree_tokens = batch.column("tree_tokens").to_numpy()
        self.sequence_offsets = sequences.offsets.to_numpy()
        self.token_offsets = tokens.offsets.to_numpy()
        self.tokens = tokens.values.to_numpy()
        self.starts = sequences.values.field("start").to_numpy()
        self.sequence_rows = sequences.values.field("row").to_numpy()
        self.pair_offsets = pairs.offsets.to_numpy()
        self.pair_rows = pairs.values.field("row").to_numpy()
        self.pair_sides = np.stack([pairs.values.field(side).to_numpy() for side in ("chosen", "rejected")], axis=1)
        self.examples = batch.column("examples").values
        scores = [self.examples.field(name) for name in ("chosen_score", "rejected_score")]
        self.scores = np.stack([score.to_numpy(zero_copy_only=False) for score in scores], axis=1)  # null: NaN

    def counts(self) -> np.ndarray:
        """Pairs, or if there are none at all sequences, of each prompt."""
        return np.diff(self.pair_offsets if len(self.pair_rows) else self.sequence_offsets).astype(np.int64)

    def values(self, name: str) -> np.ndarray:
        column = self.examples.field(name)
        words = np.array([*column.dictionary.to_pylist(), "unknown"], dtype=object)
        return words[column.indices.fill_null(len(words) - 1).to_numpy()]

    def sequences_of(self, prompt: int) -> tuple[list[Sequence], int]:
        first, end = self.sequence_offsets[prompt : prompt + 2]
        return [
            Sequence(self.tokens[self.token_offsets[at] : self.token_offsets[at + 1]], int(self.starts[at]))
            for at in range(first, end)
        ], int(first)

    def pairs_of(self, prompt: int) -> tuple[np.ndarray, int]:
        first, end = self.pair_offsets[prompt : prompt + 2]
        return self.pair_sides[first:end], int(first)

    def pair_sequences(self) -> np.ndarray:
        """Chosen and rejected sequence of every pair, numbered within the shard."""
        first = np.repeat(self.sequence_offsets[:-1], np.diff(self.pair_offsets))
        return self.pair_sides.astype(np.int64) + first[:, None]

    def lengths(self) -> np.ndarray:
        return np.diff(self.token_offsets) - self.starts


@dataclass(frozen=True)
class Plan:
    """The steps of a whole phase.

    `shards` are the numbers of prompts of each shard, `counts` the examples of each prompt.
    """

    shards: tuple[int, ...]
    counts: np.ndarray
    pairs_per_step: int
    epochs: int
    seed: int
    window: int

    @cached_property
    def bounds(self) -> list[list[int]]:
        """For each epoch, where its steps start in its order, and where the last one ends."""
        return [self._cut(self._order(epoch)) for epoch in range(self.epochs)]

    @cached_property
    def steps(self) -> int:
        """Steps of all epochs."""
        return sum(len(bounds) - 1 for bounds in self.bounds)

    def prompts(self, step: int) -> np.ndarray:
        """Numbers of the prompts of step `step`, from 0."""
        epoch, within = self._place(step)
        if self._current[0] != epoch:
            self._current[:] = [epoch, self._order(epoch)]
        bounds = self.bounds[epoch]
        return self._current[1][bounds[within] : bounds[within + 1]]

    def prompts_until(self, steps: int) -> np.ndarray:
        """The prompts of the first `steps` steps, each once."""
        return np.unique(np.concatenate([self.prompts(step) for step in range(steps)]))

    def epoch(self, steps_done: int) -> float:
        """How many epochs the first `steps_done` steps are, with fraction."""
        if steps_done == 0:
            return 0.0
        epoch, within = self._place(steps_done - 1)
        return epoch + (within + 1) / (len(self.bounds[epoch]) - 1)

    @cached_property
    def _current(self) -> list:
        return [-1, np.zeros(0, np.int64)]  # the epoch whose order is in memory, and that order

    def _place(self, step: int) -> tuple[int, int]:
        for epoch, bounds in enumerate(self.bounds):
            if step < len(bounds) - 1:
                return epoch, step
            step -= len(bounds) - 1
        raise AssertionError(f"the plan has {self.steps} steps")

    def _order(self, epoch: int) -> np.ndarray:
        base = _running(self.shards)
        shards = _shuffled(np.arange(len(self.shards)), self.seed, epoch, salt=1)
        windows = [shards[first : first + self.window] for first in range(0, len(shards), self.window)]
        parts = [np.concatenate([np.arange(base[s], base[s + 1]) for s in sorted(window)]) for window in windows]
        return np.concatenate([np.zeros(0, np.int64), *(_shuffled(p, self.seed, epoch, salt=2) for p in parts)])

    def _cut(self, order: np.ndarray) -> list[int]:
        total = _running(self.counts[order])
        bounds = [0]
        while bounds[-1] < len(order):
            end = np.searchsorted(total, total[bounds[-1]] + self.pairs_per_step, side="left")
            bounds.append(min(int(end), len(order)))
        return bounds


@dataclass(frozen=True)
class Step:
    """The bins of one optimiser step, and what they add up to."""

    bins: list[Bin]
    examples: int
    completion_tokens: int
    tokens: int
    separate_tokens: int


def make_step(examples: Examples, prompts: np.ndarray, max_tokens: int) -> Step:
    """Read the rows of some prompts, build their trees, and pack them into bins of at most `max_tokens`."""
    trees = [tree for prompt in prompts for tree in examples.trees(int(prompt), max_tokens)]
    bins = [collate([trees[i] for i in members]) for members in pack([tree.size for tree in trees], max_tokens)]
    pairs = sum(len(tree.pairs_P2) for tree in trees)
    return Step(
        bins=bins,
        examples=pairs or sum(len(tree.sequence_rows_Q) for tree in trees),
        completion_tokens=sum(int(tree.sequence_length_Q.sum()) for tree in trees),
        tokens=sum(tree.size for tree in trees),
        separate_tokens=sum(tree.separate_tokens if pairs else int((tree.sequence_end_Q + 1).sum()) for tree in trees),
    )


def _running(counts: object) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.asarray(counts, dtype=np.int64))]).astype(np.int64)


def _shuffled(values: np.ndarray, seed: int, epoch: int, *, salt: int) -> np.ndarray:
    """`values` sorted by a hash of each with the seed, the epoch and the salt."""
    with np.errstate(over="ignore"):
        key: np.uint64 | np.ndarray = np.uint64(0)
        for part in (seed, epoch, salt):
            key = _splitmix(key ^ np.uint64(part))
        return values[np.argsort(_splitmix(_splitmix(values.astype(np.uint64)) ^ key), kind="stable")]


def _splitmix(value: np.ndarray | np.uint64) -> np.ndarray | np.uint64:
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
