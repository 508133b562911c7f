"""Bins: everything in one, none too full, and as few as an exhaustive search finds where that can be had."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from prefkit.train.fill import best_fit, fewest, fullest, pack

SIZES = st.lists(st.integers(1, 50), max_size=40)


def by_size(sizes):
    return sorted(range(len(sizes)), key=lambda i: -sizes[i])


@given(SIZES)
def test_bins_hold_everything_and_are_full_enough(sizes):
    bins = pack(sizes, 50)
    assert sorted(i for members in bins for i in members.tolist()) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in members) <= 50 for members in bins)
    assert fewest(sizes, 50) <= len(bins) <= len(best_fit(sizes, by_size(sizes), 50))
    assert len(bins) < 2 * sum(sizes) / 50 + 1, "any two bins of a best-fit packing exceed one bin together"


@given(st.lists(st.integers(1, 12), max_size=9), st.integers(0, 40))
def test_the_fullest_bin_is_the_one_that_trying_all_finds(sizes, room):
    chosen = fullest(sizes, room)
    sums = [sum(some) for n in range(len(sizes) + 1) for some in itertools.combinations(sizes, n)]
    assert len(set(chosen)) == len(chosen)
    assert sum(sizes[at] for at in chosen) == max(total for total in sums if total <= room)


def optimum(sizes, room):
    """The least number of bins, by trying every assignment."""
    best = len(sizes)

    def place(at, loads):
        nonlocal best
        if len(loads) >= best:
            return
        if at == len(sizes):
            best = len(loads)
            return
        for b in range(len(loads)):
            if loads[b] + sizes[at] <= room:
                place(at + 1, [*loads[:b], loads[b] + sizes[at], *loads[b + 1 :]])
        place(at + 1, [*loads, sizes[at]])

    place(0, [])
    return best


@given(st.lists(st.integers(1, 10), max_size=8))
def test_few_trees_take_at_most_one_bin_more_than_they_must(sizes):
    assert optimum(sizes, 10) <= len(pack(sizes, 10)) <= optimum(sizes, 10) + 1


def test_best_fit_decreasing_by_hand():
    # 9; 7 opens the second; 4 fits none of them and opens the third; 3 fits the second best, 2 the third, 1 the first.
    assert [bin.tolist() for bin in pack([1, 2, 3, 4, 7, 9], 10)] == [[0, 5], [2, 4], [1, 3]]
    assert [bin.tolist() for bin in pack([5, 5, 5, 5], 10)] == [[0, 1], [2, 3]]


def test_bins_are_filled_to_the_token_where_best_fit_leaves_gaps():
    sizes = [5, 4, 4, 3, 2, 2]
    assert len(best_fit(sizes, by_size(sizes), 10)) == 3
    assert [[sizes[i] for i in bin] for bin in pack(sizes, 10)] == [[5, 3, 2], [4, 4, 2]]
