"""Token trees and bins: compute every distinct token prefix once, then fill fixed-size batches with the trees.

The sequences that a step needs of one prompt (prompt + completion, one for each distinct completion of its pairs)
share tokens: the prompt at least, often the beginnings of completions, and whole contexts in multi-turn data. Laid
into a trie, every shared prefix stands once. Attention along the path from the root makes each position see exactly
the tokens that it would see in a sequence of its own, so log-probabilities and gradients do not change.

Building. Sort the sequences lexicographically and take the longest common prefix (LCP) of each with the one before.
That prefix is in the trie already, so a sequence adds only its tokens after the LCP, and the concatenation of what
each adds is the trie in depth-first order::

    sorted sequences      LCP   adds          the trie, and the segments it is cut into
    p q r  a b c d          0   pqrabcd       [p q r a b c d]      segment 0 at depth 0
    p q r  a b x y          5   xy                     [x y]       segment 1 at depth 5
    p q r  z                3   z                [z]               segment 2 at depth 3

What one sequence adds is a *segment*: a run of consecutive tokens at consecutive positions. By the definition of the
LCP its path is the first ``depth`` tokens of the path of the segment before it, then its own: depths are all there is
to know about the shape of a tree. There is one segment for each leaf, fewer than a trie has nodes, and the longest
part, the prompt with the first completion, needs nothing but plain causal attention.

The last token of a shared prefix predicts several targets. A token of the trie is determined by the token before it on
its path and by its own id, so a distinct (hidden state, target) is the same thing as a token of the trie: there is one
log-probability to compute for each trie token that belongs to a completion (an *entry*), and a sequence is a list of
entries.

Cost: O(total tokens) of memcmp-speed sorting and comparison in numpy, plus some 10 microseconds of Python a sequence.
`tests/benchmarks/train.py --case packing` measures about 20M tokens/s for trees of four long completions.

A tree that is larger than a bin is split along its pairs, for some microseconds a pair and part. `prefkit.train.fill`
says which trees share a bin.

Shape suffixes: T tokens, S segments, C entries, Q sequences, E (entry, sequence) incidences, P pairs.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from prefkit.errors import TrainError

IntArray = NDArray[np.integer[Any]]


class Sequence(NamedTuple):
    """Prompt and completion as one run of tokens; log-probabilities are wanted for ``tokens[start:]``."""

    tokens: IntArray  # int32
    start: int  # 1 <= start < len(tokens): the first token has no prediction, an empty completion no log-probability


@dataclass(frozen=True)
class Tree:
    """The trie of the sequences of one prompt. Offsets (``*_start``, ``entry_source``, ...) count within this tree."""

    tokens_T: IntArray
    positions_T: IntArray
    segment_start_S: IntArray  # first token of a segment; it ends where the next one starts
    segment_depth_S: IntArray  # how much of the path before it continues; 0: nothing
    entry_source_C: IntArray  # the token whose hidden state predicts the entry
    entry_target_C: IntArray  # the token id that it predicts
    incidence_entry_E: IntArray  # entries of sequence 0 in order, then of sequence 1, ...
    sequence_length_Q: IntArray  # completion tokens, so entries, of each sequence
    sequence_segment_Q: IntArray  # where the sequence's last token stands, and its position:
    sequence_end_Q: IntArray  # together its path, for whoever needs the sequence back
    sequence_rows_Q: IntArray  # the caller's identifiers
    pairs_P2: IntArray  # chosen, rejected among the tree's sequences; no rows for SFT
    pair_rows_P: IntArray  # the caller's identifiers

    @property
    def size(self) -> int:
        """Tokens of the trie: what the forward pass costs."""
        return len(self.tokens_T)

    @property
    def separate_tokens(self) -> int:
        """Tokens if each pair were two sequences of its own, without padding: what sharing is measured against."""
        return int((self.sequence_end_Q[self.pairs_P2] + 1).sum())


def tree_size(sequences: Seq[Sequence]) -> int:
    """Tokens of the trie of these sequences, without building it."""
    tokens, _, prefix = _sorted_with_lcp(sequences)
    return sum(map(len, tokens)) - sum(prefix)


def build_tree(sequences: Seq[Sequence], pairs: ArrayLike, *, pair_rows: ArrayLike, sequence_rows: ArrayLike) -> Tree:
    """The trie of `sequences`; `pairs` are (chosen, rejected) indices into them. Identical sequences may repeat."""
    assert all(1 <= start < len(tokens) for tokens, start in sequences), "a completion needs a prompt and a token"
    tokens, order, prefix = _sorted_with_lcp(sequences)
    start_S, depth_S, leaf_Q = _segments(list(map(len, tokens)), prefix)
    tokens_T = np.concatenate([row[shared:] for row, shared in zip(tokens, prefix, strict=True)])
    path_S = paths(start_S, depth_S, len(tokens_T))

    # The token before, on the path: the one to the left, except at a segment's first token. (-1 for a root: no entry.)
    previous_T = np.arange(-1, len(tokens_T) - 1, dtype=np.int32)
    positions_T = np.arange(len(tokens_T), dtype=np.int32)
    for path, start, depth in zip(path_S, start_S, depth_S, strict=True):
        positions_T[start : start + len(path) - depth] += depth - start
        previous_T[start] = path[depth - 1] if depth else -1

    segment_Q = np.empty(len(sequences), dtype=np.int32)
    segment_Q[order] = leaf_Q
    targets = [
        path_S[s][sequence.start : len(sequence.tokens)] for s, sequence in zip(segment_Q, sequences, strict=True)
    ]
    targets_E = np.concatenate(targets)
    wanted_T = np.zeros(len(tokens_T), dtype=bool)
    wanted_T[targets_E] = True
    entry_T = np.cumsum(wanted_T, dtype=np.int32) - 1
    return Tree(
        tokens_T=tokens_T,
        positions_T=positions_T,
        segment_start_S=np.array(start_S, dtype=np.int32),
        segment_depth_S=np.array(depth_S, dtype=np.int32),
        entry_source_C=previous_T[wanted_T],
        entry_target_C=tokens_T[wanted_T],
        incidence_entry_E=entry_T[targets_E],
        sequence_length_Q=np.array([len(target) for target in targets], dtype=np.int32),
        sequence_segment_Q=segment_Q,
        sequence_end_Q=np.array([len(sequence.tokens) - 1 for sequence in sequences], dtype=np.int32),
        sequence_rows_Q=np.asarray(sequence_rows, dtype=np.int64),
        pairs_P2=np.asarray(pairs, dtype=np.int32).reshape(-1, 2),
        pair_rows_P=np.asarray(pair_rows, dtype=np.int64),
    )


def paths(start_S: list[int], depth_S: list[int], size: int) -> list[NDArray[np.int32]]:
    """Offsets of the tokens from the root to the end of each segment."""
    found: list[NDArray[np.int32]] = []
    for start, end, depth in zip(start_S, [*start_S[1:], size], depth_S, strict=True):
        own = np.arange(start, end, dtype=np.int32)
        found.append(np.concatenate([found[-1][:depth], own]) if depth else own)
    return found


def _sorted_with_lcp(sequences: Seq[Sequence]) -> tuple[list[NDArray[np.int32]], list[int], list[int]]:
    """Sorted token arrays, their original indices, and the LCP of each with the one before (0 for the first)."""
    # Big-endian bytes of non-negative integers sort like the integers, and bytes compare at the speed of memcmp.
    keys = [sequence.tokens.astype(">u4").tobytes() for sequence in sequences]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    tokens = [np.asarray(sequences[i].tokens, dtype=np.int32) for i in order]
    prefix = [0]
    for before, row in itertools.pairwise(tokens):
        overlap = min(len(before), len(row))
        differs = before[:overlap] != row[:overlap]
        first = int(differs.argmax()) if overlap else 0
        prefix.append(first if overlap and differs[first] else overlap)
    return tokens, order, prefix


def _segments(lengths: list[int], prefix: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Cut the trie of sorted sequences into segments: start and depth of each, and each sequence's segment."""
    start: list[int] = []
    depth: list[int] = []
    leaf: list[int] = []
    size = 0
    before = -1  # length of the sequence before; no LCP equals it at first
    for length, shared in zip(lengths, prefix, strict=True):
        # A sequence that begins with the whole one before continues its segment: same run, no new attention call.
        if shared != before:
            start.append(size)
            depth.append(shared)
        leaf.append(len(start) - 1)
        size += length - shared
        before = length
    return start, depth, leaf


def split_tree(
    sequences: Seq[Sequence],
    pairs: ArrayLike,
    *,
    pair_rows: ArrayLike,
    sequence_rows: ArrayLike,
    max_tokens: int,
    along: ArrayLike | None = None,
) -> list[Tree]:
    """One tree, or where it would exceed `max_tokens` several, each with some of the pairs and all that they need.

    Both sides of a pair stay together; tokens that two parts need stand in both. Each pair goes to the part that it
    enlarges least, or to a new one if it fits in none. `along` are further sequences of each pair, which stay with it.
    Sequences in no pair are placed one by one in the same way.
    Raises TrainError for a pair that exceeds `max_tokens` by itself.
    """
    pairs_P2 = np.asarray(pairs, dtype=np.int32).reshape(-1, 2)
    pair_rows_P, sequence_rows_Q = np.asarray(pair_rows), np.asarray(sequence_rows)
    if tree_size(sequences) <= max_tokens:
        return [build_tree(sequences, pairs_P2, pair_rows=pair_rows_P, sequence_rows=sequence_rows_Q)]
    of_pairs = pairs_P2 if along is None else np.concatenate([pairs_P2, np.asarray(along)], axis=1)
    lone = sorted(set(range(len(sequences))) - set(of_pairs.ravel().tolist()))
    names = [*(f"pair {row}" for row in pair_rows_P), *(f"sequence {sequence_rows_Q[q]}" for q in lone)]
    groups = [*of_pairs.tolist(), *([q] for q in lone)]
    trees = []
    for part in _split(sequences, groups, names, max_tokens):
        members = sorted({q for g in part for q in groups[g]})
        kept = [g for g in part if g < len(pairs_P2)]
        trees.append(
            build_tree(
                [sequences[q] for q in members],
                np.searchsorted(members, pairs_P2[kept]),
                pair_rows=pair_rows_P[kept],
                sequence_rows=sequence_rows_Q[members],
            )
        )
    return trees


def _split(sequences: Seq[Sequence], groups: list[list[int]], names: list[str], max_tokens: int) -> list[list[int]]:
    """Deal `groups` of sequences, by index, to parts whose trie has at most `max_tokens` tokens.

    A sequence adds to a trie its tokens after the longest LCP with one that is there, and that is one of its neighbours
    in sorted order. So a part is known by the ranks of its sequences among all, in order, and by its size.
    """
    tokens, order, prefix = _sorted_with_lcp(sequences)
    rank_Q = np.argsort(order).tolist()
    common = _lcp_of_any(list(map(len, tokens)), prefix)

    def growth(inside: list[int], ranks: list[int]) -> int:
        """Tokens that the sequences of `ranks` add to the trie of those `inside`."""
        total = 0
        for at, rank in enumerate(ranks):
            place = bisect.bisect_left(inside, rank)
            near = [*inside[max(place - 1, 0) : place + 1], *ranks[max(at - 1, 0) : at]]
            total += len(tokens[rank]) - max((common(other, rank) for other in near), default=0)
        return total

    parts: list[list[int]] = []
    members: list[list[int]] = []
    sizes: list[int] = []
    for g, group in enumerate(groups):
        ranks = sorted({rank_Q[q] for q in group})
        grown = [growth(inside, ranks) for inside in members]
        fitting = [i for i, more in enumerate(grown) if sizes[i] + more <= max_tokens]
        if fitting:
            best = min(fitting, key=grown.__getitem__)
            parts[best].append(g)
            sizes[best] += grown[best]
            for rank in ranks:
                bisect.insort(members[best], rank)
            continue
        size = growth([], ranks)
        if size > max_tokens:
            raise TrainError(
                f"{names[g]} has {size} tokens, more than max_tokens = {max_tokens}: raise that, or lower max_length."
            )
        parts.append([g])
        members.append(ranks)
        sizes.append(size)
    return parts


def _lcp_of_any(lengths: list[int], prefix: list[int]) -> Callable[[int, int], int]:
    """The LCP of any two sorted sequences, by rank: the least of the LCPs of neighbours between them.

    `rows[k][i]` is the least of the 2 ** k values from i on, and two such runs cover any range.
    """
    rows = [prefix]
    while 2 * (half := 1 << len(rows) - 1) <= len(prefix):
        rows.append(np.minimum(rows[-1][:-half], rows[-1][half:]).tolist())

    def common(one: int, other: int) -> int:
        low, high = min(one, other), max(one, other)
        if low == high:
            return lengths[low]
        level = (high - low).bit_length() - 1
        return min(rows[level][low + 1], rows[level][high + 1 - (1 << level)])

    return common


@dataclass(frozen=True)
class Segments:
    """Which tokens see which, as attention needs it: plain integers, so that no layer waits for a device.

    Segment s is `lengths[s]` consecutive tokens. Its path is the first `depths[s]` tokens of the path of the segment
    before it, then its own; at depth 0 something new begins.
    """

    lengths: list[int]
    depths: list[int]
    layouts: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)  # what attention keeps of them


@dataclass(frozen=True)
class Bin:
    """Some trees as one row of tokens, with what attention, the head and the loss must know. Offsets are global."""

    input_ids_1T: Tensor
    position_ids_1T: Tensor
    segments: Segments
    entry_source_C: Tensor
    entry_target_C: Tensor
    incidence_entry_E: Tensor
    sequence_length_Q: Tensor
    sequence_segment_Q: Tensor
    sequence_end_Q: Tensor
    sequence_rows_Q: Tensor
    pairs_P2: Tensor
    pair_rows_P: Tensor
    max_position: int
    share: float = 1.0  # of the step's tokens

    def to(self, device: torch.device | str) -> Bin:
        """The same bin with its tensors on `device`."""
        values = {column.name: getattr(self, column.name) for column in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in values.items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class Layout:
    """The sequences and pairs of one bin or several, without their tokens; fields mean what they mean in `Bin`."""

    sequence_length_Q: Tensor
    sequence_rows_Q: Tensor
    pairs_P2: Tensor
    pair_rows_P: Tensor

    @classmethod
    def of(cls, bins: Seq[Bin | Layout]) -> Layout:
        """All sequences of some bins in turn; pairs in the order of their rows, whatever bins they stand in."""
        shifts = _offsets([len(bin.sequence_length_Q) for bin in bins])
        pairs_P2 = torch.cat([bin.pairs_P2 + shift for bin, shift in zip(bins, shifts, strict=True)])
        pair_rows_P = torch.cat([bin.pair_rows_P for bin in bins])
        order_P = pair_rows_P.argsort(stable=True)
        return cls(
            torch.cat([bin.sequence_length_Q for bin in bins]),
            torch.cat([bin.sequence_rows_Q for bin in bins]),
            pairs_P2[order_P],
            pair_rows_P[order_P],
        )


def collate(trees: Seq[Tree]) -> Bin:
    """Put trees side by side; they do not see each other."""

    def joined(name: str, shifts: list[int] | None = None) -> IntArray:
        parts = [getattr(tree, name) for tree in trees]
        if shifts is not None:
            parts = [part + shift for part, shift in zip(parts, shifts, strict=True)]
        return np.concatenate(parts)

    def tensor(array: IntArray) -> Tensor:
        return torch.from_numpy(array.astype(np.int64, copy=False))

    token_shift = _offsets([tree.size for tree in trees])
    entry_shift = _offsets([len(tree.entry_source_C) for tree in trees])
    segment_shift = _offsets([len(tree.segment_start_S) for tree in trees])
    sequence_shift = _offsets([len(tree.sequence_length_Q) for tree in trees])
    start_S = joined("segment_start_S", token_shift)
    positions_T = joined("positions_T")
    return Bin(
        input_ids_1T=tensor(joined("tokens_T"))[None],
        position_ids_1T=tensor(positions_T)[None],
        segments=Segments(
            lengths=np.diff(start_S, append=len(positions_T)).tolist(),
            depths=joined("segment_depth_S").tolist(),
        ),
        entry_source_C=tensor(joined("entry_source_C", token_shift)),
        entry_target_C=tensor(joined("entry_target_C")),
        incidence_entry_E=tensor(joined("incidence_entry_E", entry_shift)),
        sequence_length_Q=tensor(joined("sequence_length_Q")),
        sequence_segment_Q=tensor(joined("sequence_segment_Q", segment_shift)),
        sequence_end_Q=tensor(joined("sequence_end_Q")),
        sequence_rows_Q=tensor(joined("sequence_rows_Q")),
        pairs_P2=tensor(joined("pairs_P2", sequence_shift)),
        pair_rows_P=tensor(joined("pair_rows_P")),
        max_position=int(positions_T.max()),
    )


def _offsets(sizes: list[int]) -> list[int]:
    return [0, *itertools.accumulate(sizes[:-1])]
