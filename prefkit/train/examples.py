"""The examples of a split: a token store, opened, with all prompts, sequences and pairs numbered through its shards.

Columns are arrays mapped from disk; rows are read when their step comes. An *example* is what a step counts: a pair,
or an answer in supervised fine-tuning.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from prefkit.train.pack import Sequence, Tree, split_tree
from prefkit.train.store import Store

UNKNOWN = "unknown"  # the source or language where the data set names none


class Examples:
    """The prompts of a token store, numbered through all shards, as arrays mapped from disk.

    `kept`, a mask over examples, says which of them trees and counts consist of; without it all. It changes no number.
    """

    def __init__(self, shards: list[ShardView], kept: np.ndarray | None = None) -> None:
        self.shards = shards
        self.kept = kept
        self.prompt_base = running([shard.prompts for shard in self.shards])
        self.sequence_base = running([len(shard.starts) for shard in self.shards])
        self.pair_base = running([len(shard.pair_rows) for shard in self.shards])

    @classmethod
    def of(cls, store: Store) -> Examples:
        """All shards of a token store."""
        return cls([ShardView(pa.memory_map(str(store.folder / name))) for name in store.files])

    def keeping(self, kept: np.ndarray) -> Examples:
        """The same prompts with trees of the examples in the mask `kept` alone."""
        return Examples(self.shards, kept)

    def shard(self, number: int) -> Examples:
        """One whole shard, numbered by itself."""
        return Examples([self.shards[number]])

    @property
    def shard_prompts(self) -> tuple[int, ...]:
        """Prompts of each shard."""
        return tuple(shard.prompts for shard in self.shards)

    @property
    def sequences(self) -> int:
        """How many distinct sequences there are: the length of an array of their log-probabilities."""
        return int(self.sequence_base[-1])

    @property
    def prompts(self) -> int:
        return int(self.prompt_base[-1])

    def counts(self) -> np.ndarray:
        """Examples of each prompt: its pairs, or its sequences where there are no pairs."""
        counts = np.concatenate([np.zeros(0, np.int64), *(shard.counts() for shard in self.shards)])
        if self.kept is None:
            return counts
        return np.diff(running(self.kept)[running(counts)])

    def tree_tokens(self) -> np.ndarray:
        """Tokens of each prompt's tree."""
        return np.concatenate([np.zeros(0, np.int32), *(shard.tree_tokens for shard in self.shards)])

    def check_fit(self, max_tokens: int) -> None:
        """TrainError for a pair that fits no bin of `max_tokens`."""
        for prompt in np.flatnonzero(self.tree_tokens() > max_tokens):
            self.trees(int(prompt), max_tokens)  # which splits the tree, as far as it can

    def tree_sizes(self, prompt: int, max_tokens: int) -> list[int]:
        """Tokens of each of `trees`; the prompt's rows are read only where examples are left out or a tree is split."""
        shard, local = self._locate(prompt)
        size = int(self.shards[shard].tree_tokens[local])
        if self.kept is None and size <= max_tokens:
            return [size]
        return [tree.size for tree in self.trees(prompt, max_tokens)]

    def counts_of(self, prompt: int) -> Counts:
        """What a prompt adds to a step; its tokens are not read."""
        members = self._members(prompt)
        lengths = np.array([len(sequence.tokens) for sequence in members.sequences], dtype=np.int64)
        return Counts(
            pairs=len(members.pairs),
            sequences=len(lengths),
            completion_tokens=int(lengths.sum()) - sum(sequence.start for sequence in members.sequences),
            sequence_tokens=int(lengths.sum()),
            pair_tokens=int(lengths[members.pairs].sum() - lengths[_twice(members.pairs)].sum()),
        )

    def trees(self, prompt: int, max_tokens: int) -> list[Tree]:
        """The token trees of a prompt: one, or more to fit `max_tokens`; rows are numbered through all shards."""
        return split_tree(**self._members(prompt)._asdict(), max_tokens=max_tokens)

    def _members(self, prompt: int) -> Members:
        shard, local = self._locate(prompt)
        view = self.shards[shard]
        sequences, first = view.sequences_of(local)
        pairs, first_pair = view.pairs_of(local)
        along = view.public_of(local)
        pair_rows = np.arange(len(pairs)) + first_pair + self.pair_base[shard]
        sequence_rows = np.arange(len(sequences)) + first + self.sequence_base[shard]
        if self.kept is not None:
            stays = self.kept[pair_rows if len(pairs) else sequence_rows]
            groups = np.concatenate([pairs, along], axis=1)
            of_no_pair = np.setdiff1d(np.arange(len(sequences)), groups)  # other prompts' answers
            used = np.union1d(groups[stays], of_no_pair) if len(pairs) else np.flatnonzero(stays)
            sequences, sequence_rows = [sequences[at] for at in used], sequence_rows[used]
            if len(pairs):
                pairs, along = np.hsplit(np.searchsorted(used, groups[stays]), 2)
                pair_rows = pair_rows[stays]
        return Members(sequences, pairs, pair_rows, sequence_rows, along)

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
        parts = [
            shard.of_pairs(shard.pair_sides) + base
            for shard, base in zip(self.shards, self.sequence_base, strict=False)
        ]
        return np.concatenate([np.zeros((0, 2), np.int64), *parts])

    def public_of(self, pairs: np.ndarray) -> np.ndarray:
        """The sequences that are these pairs' answers cut at the length of the shorter one, as [pairs, 2]."""
        return self._public[pairs]

    @cached_property
    def _public(self) -> np.ndarray:
        parts = [shard.of_pairs(shard.public) + b for shard, b in zip(self.shards, self.sequence_base, strict=False)]
        return np.concatenate([np.zeros((0, 2), np.int64), *parts])

    def lengths(self) -> np.ndarray:
        """Completion tokens of every sequence."""
        return np.concatenate([np.zeros(0, np.int64), *(shard.lengths() for shard in self.shards)])

    def values(self, name: str) -> np.ndarray:
        """`source` or `lang` of every example as text (`UNKNOWN` where the data set says none).

        Examples are numbered like pairs (so `bin.pair_rows_P` picks those of a bin), or in supervised fine-tuning like
        sequences.
        """
        return np.concatenate([np.zeros(0, object), *(shard.values(name) for shard in self.shards)])

    def scores(self) -> np.ndarray:
        """`chosen_score` and `rejected_score` of every example, as [examples, 2]; NaN where there is none."""
        return np.concatenate([np.zeros((0, 2)), *(shard.scores for shard in self.shards)])

    def labels(self) -> np.ndarray | None:
        """The label of every example; None where they have none."""
        parts = [shard.labels for shard in self.shards]
        return None if any(part is None for part in parts) else np.concatenate([np.zeros(0, bool), *parts])

    def margins(self) -> np.ndarray:
        """Chosen minus rejected score of every example; NaN where there is none."""
        return -np.diff(self.scores(), axis=1)[:, 0]

    def _locate(self, prompt: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self.prompt_base, prompt, side="right")) - 1
        return shard, int(prompt - self.prompt_base[shard])


class Members(NamedTuple):
    """What is kept of a prompt, as `split_tree` takes it; rows are numbered through all shards."""

    sequences: list[Sequence]
    pairs: np.ndarray
    pair_rows: np.ndarray
    sequence_rows: np.ndarray
    along: np.ndarray


class Counts(NamedTuple):
    """How much there is of some prompts; `pair_tokens` takes both sides of every pair for sequences of their own, and a
    labelled answer for one."""

    pairs: int
    sequences: int
    completion_tokens: int
    sequence_tokens: int
    pair_tokens: int


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
        self.pair_sides = _sides(pairs.values)
        public = batch.column("public").values
        self.public = _sides(public) if len(public) else self.pair_sides
        self.examples = batch.column("examples").values
        scores = [self.examples.field(name) for name in ("chosen_score", "rejected_score")]
        self.scores = np.stack([score.to_numpy(zero_copy_only=False) for score in scores], axis=1)  # null: NaN
        labels = self.examples.field("label")
        self.labels = None if labels.null_count else labels.to_numpy(zero_copy_only=False)

    def counts(self) -> np.ndarray:
        """Pairs, or if there are none at all sequences, of each prompt."""
        return np.diff(self.pair_offsets if len(self.pair_rows) else self.sequence_offsets).astype(np.int64)

    def values(self, name: str) -> np.ndarray:
        column = self.examples.field(name)
        words = np.array([*column.dictionary.to_pylist(), UNKNOWN], dtype=object)
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

    def public_of(self, prompt: int) -> np.ndarray:
        return self.public[slice(*self.pair_offsets[prompt : prompt + 2])]

    def of_pairs(self, sides: np.ndarray) -> np.ndarray:
        """Two sequences of every pair, as numbers within its prompt, numbered within the shard."""
        first = np.repeat(self.sequence_offsets[:-1], np.diff(self.pair_offsets))
        return sides.astype(np.int64) + first[:, None]

    def lengths(self) -> np.ndarray:
        return np.diff(self.token_offsets) - self.starts


def running(counts: object) -> np.ndarray:
    """0 and the running sum: where each of some consecutive parts starts, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(np.asarray(counts, dtype=np.int64))]).astype(np.int64)


def _twice(pairs: np.ndarray) -> np.ndarray:
    """The sequences that are both sides of a pair: labelled answers."""
    return pairs[pairs[:, 0] == pairs[:, 1], 0]


def _sides(pairs: pa.StructArray) -> np.ndarray:
    return np.stack([pairs.field(side).to_numpy() for side in ("chosen", "rejected")], axis=1)
