"""Trees into bins: as few bins of `max_tokens` as two ways find, as a function of the sizes alone.

Best fit decreasing is quick, and often needs no more bins than the tokens would fill without a gap. Where it needs
more, bins are filled one after another: with the largest tree that is left, and those of the rest that fill it best.
Which these are is a subset-sum problem, solved exactly: bit s of an integer says whether some trees have s tokens
together, and a further tree shifts the bits by its size. Trees are taken up from the largest on until the bin is full
to the token, so small ones remain for the last bins. (One bin at a time with the least slack: Gupta and Ho 1999, "A
new heuristic algorithm for the one-dimensional bin-packing problem".) The way with fewer bins is taken.

A bin that is not full costs no computation, since nothing is padded: it is a forward and a backward pass more than the
tokens need. Below `ceil(tokens / max_tokens)` bins nothing can go, so of a step with few tokens the last bin is partly
empty whatever the packing.

Cost: some milliseconds for 30 bins of 400 trees, where the second way is tried.
"""

from __future__ import annotations

import bisect

import numpy as np
from numpy.typing import ArrayLike

from prefkit.train.pack import IntArray


def pack(sizes: ArrayLike, max_tokens: int) -> list[IntArray]:
    """Indices of `sizes` in bins whose sum is at most `max_tokens`; every size must fit."""
    sizes_N = np.asarray(sizes, dtype=np.int64)
    assert not len(sizes_N) or sizes_N.max() <= max_tokens, "split_tree comes before pack"
    order, values = np.argsort(-sizes_N, kind="stable").tolist(), sizes_N.tolist()
    bins = best_fit(values, order, max_tokens)
    if len(bins) > fewest(values, max_tokens):
        bins = min(bins, one_by_one(values, order, max_tokens), key=len)
    return [np.array(sorted(members), dtype=np.int64) for members in bins]


def fewest(sizes: list[int], max_tokens: int) -> int:
    """Fewer bins than this cannot hold so many tokens."""
    return -(-sum(sizes) // max_tokens)


def best_fit(sizes: list[int], order: list[int], max_tokens: int) -> list[list[int]]:
    """Each in turn into the fullest bin that has room for it; ties go to the earliest bin."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, bin), sorted
    for i in order:
        at = bisect.bisect_left(room, (sizes[i], -1))
        if at < len(room):
            free, target = room.pop(at)
        else:
            free, target = max_tokens, len(bins)
            bins.append([])
        bins[target].append(i)
        bisect.insort(room, (free - sizes[i], target))
    return bins


def one_by_one(sizes: list[int], order: list[int], max_tokens: int) -> list[list[int]]:
    """The first that is left, with those of the others that leave the least room in its bin."""
    bins: list[list[int]] = []
    left = list(order)
    while left:
        first, *others = left
        with_it = fullest([sizes[i] for i in others], max_tokens - sizes[first])
        bins.append([first, *(others[at] for at in with_it)])
        taken = set(bins[-1])
        left = [i for i in others if i not in taken]
    return bins


def fullest(sizes: list[int], room: int) -> list[int]:
    """Positions of sizes that have the largest sum within `room`."""
    within = (1 << (room + 1)) - 1
    sums = [1]  # for the first sizes, none at first: bit s is set where some of them sum to s
    for size in sizes:
        if sums[-1] >> room:
            break
        sums.append((sums[-1] | sums[-1] << size) & within)
    total = sums[-1].bit_length() - 1
    chosen = []
    for at in reversed(range(len(sums) - 1)):
        if not sums[at] >> total & 1:
            chosen.append(at)
            total -= sizes[at]
    return chosen
