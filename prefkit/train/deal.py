"""Who computes what: the trees of a step -> bins, and the bins -> ranks.

Sharded weights are gathered anew for every forward pass, by all ranks together, so all ranks must make the same number
of passes, and a pass takes as long as the largest of the bins that go through at once. Hence the bins are made so that
their number is a multiple of the ranks' and their sizes are alike, and then dealt in rounds of like sizes::

    sizes of 7 bins, 3 ranks      round 1     round 2     round 3
    90 80 70 60 50 40 30          90 80 70    40 50 60    30  -  -

Within a round the largest bin goes to the rank with the least to do so far (longest processing time first, Graham
1969). A rank that has no bin in a round passes an empty one, of one token and no sequence, whose loss and gradient are
exactly 0. That happens only where a step has fewer trees than ranks, or where trees fill their bins so tightly that no
more even packing was found.

Every rank deals for itself, from the sizes alone, and all come to the same result.
"""

from __future__ import annotations

import heapq

import numpy as np

from prefkit.train.fill import pack
from prefkit.train.pack import Bin, IntArray, Tree, collate

NOTHING: IntArray = np.zeros(0, dtype=np.int64)


def deal(sizes: list[int], max_tokens: int, ranks: int) -> list[list[IntArray]]:
    """For each rank its bins, as indices of `sizes`: equally many for all, some of them perhaps empty."""
    bins = pack(sizes, max_tokens)
    if ranks == 1:
        return [bins]
    rounds = -(-len(bins) // ranks)
    bins = _even(sizes, max_tokens, rounds * ranks) or bins
    bins += [NOTHING] * (rounds * ranks - len(bins))
    load = [sum(sizes[i] for i in members) for members in bins]
    largest_first = sorted(range(len(bins)), key=lambda b: -load[b])
    dealt: list[list[IntArray]] = [[] for _ in range(ranks)]
    total = [0] * ranks
    for first in range(0, len(bins), ranks):
        least_first = sorted(range(ranks), key=lambda rank: total[rank])
        for rank, b in zip(least_first, largest_first[first : first + ranks], strict=True):
            dealt[rank].append(bins[b])
            total[rank] += load[b]
    return dealt


def _even(sizes: list[int], max_tokens: int, count: int) -> list[IntArray] | None:
    """The trees in `count` bins of like sizes, each tree to the emptiest bin, largest first; None if one overflows."""
    members: list[list[int]] = [[] for _ in range(count)]
    emptiest = [(0, b) for b in range(count)]
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        size, b = heapq.heappop(emptiest)
        if size + sizes[i] > max_tokens:
            return None
        members[b].append(i)
        heapq.heappush(emptiest, (size + sizes[i], b))
    return [np.array(sorted(bin), dtype=np.int64) for bin in members]


def empty_bin() -> Bin:
    """One token of no sequence: a forward and backward pass that adds nothing to loss, gradient or metrics."""
    none, one = np.zeros(0, dtype=np.int32), np.zeros(1, dtype=np.int32)
    return collate(
        [
            Tree(
                tokens_T=one,
                positions_T=one,
                segment_start_S=one,
                segment_depth_S=one,
                entry_source_C=none,
                entry_target_C=none,
                incidence_entry_E=none,
                sequence_length_Q=none,
                sequence_segment_Q=none,
                sequence_end_Q=none,
                sequence_rows_Q=none,
                pairs_P2=none.reshape(0, 2),
                pair_rows_P=none,
            )
        ]
    )
