"""Token trees against a trie made of Python sets."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefkit.errors import TrainError
from prefkit.train.pack import Sequence, build_tree, collate, split_tree, tree_size
from tests.train.conftest import sequence_lists, tree_of


def sequence(tokens, start):
    return Sequence(np.array(tokens, dtype=np.int32), start)


def prefixes(sequences):
    return {tuple(tokens[: i + 1].tolist()) for tokens, _ in sequences for i in range(len(tokens))}


def paths(bin):
    """Tokens and positions of every path, by the meaning of `Segments`."""
    result = []
    offset = 0
    for length, depth in zip(bin.segments.lengths, bin.segments.depths, strict=True):
        result.append((result[-1][:depth] if depth else []) + list(range(offset, offset + length)))
        offset += length
    return result


def check_bin(bin, sequences):
    """Every sequence stands in the bin once, at its positions, and its entries are its completion."""
    tokens, positions = bin.input_ids_1T[0].tolist(), bin.position_ids_1T[0].tolist()
    incidences = iter(bin.incidence_entry_E.tolist())
    bin_paths = paths(bin)
    for q, (expected, start) in enumerate(sequences):
        path = bin_paths[bin.sequence_segment_Q[q]][: bin.sequence_end_Q[q] + 1]
        assert [tokens[i] for i in path] == expected.tolist()
        assert [positions[i] for i in path] == list(range(len(expected)))
        entries = [next(incidences) for _ in range(bin.sequence_length_Q[q])]
        assert bin.entry_target_C[entries].tolist() == expected[start:].tolist()
        assert bin.entry_source_C[entries].tolist() == path[start - 1 : -1]
    assert not list(incidences)


@given(sequence_lists())
def test_a_tree_holds_each_distinct_prefix_once(sequences):
    tree = tree_of(sequences)
    assert tree.size == tree_size(sequences) == len(prefixes(sequences))
    wanted = {p for tokens, start in sequences for p in prefixes([(tokens, 0)]) if len(p) > start}
    assert len(tree.entry_target_C) == len(wanted)
    check_bin(collate([tree]), sequences)


@given(st.lists(sequence_lists(), min_size=1, max_size=4))
def test_trees_in_a_bin_keep_to_themselves(lists):
    bin = collate([tree_of(sequences) for sequences in lists])
    check_bin(bin, list(itertools.chain(*lists)))
    assert bin.max_position == max(len(s.tokens) for s in itertools.chain(*lists)) - 1
    assert bin.segments.depths.count(0) == sum(len({int(s.tokens[0]) for s in sequences}) for sequences in lists)


@pytest.mark.parametrize(
    ("sequences", "size", "segments", "entries"),
    [
        ([([1, 2, 3, 4], 2), ([1, 2, 3, 4], 2)], 4, 1, 2),  # identical
        ([([1, 2, 3, 4], 2), ([1, 2, 3], 2)], 4, 1, 2),  # one a prefix of the other
        ([([1, 2, 3, 4], 1), ([1, 2, 3, 4], 3)], 4, 1, 3),  # the same tokens, another start
        ([([1, 2, 3], 2), ([1, 2, 4], 2), ([1, 2, 5], 2)], 5, 3, 3),  # one hidden state, three targets
        ([([1, 2, 3, 4, 5], 2), ([1, 2, 3, 4, 6], 2), ([1, 2, 7], 2)], 7, 3, 5),  # completions that share a beginning
        ([([1, 2], 1), ([3, 4], 1)], 4, 2, 2),  # nothing shared
    ],
)
def test_small_trees(sequences, size, segments, entries):
    sequences = [sequence(*s) for s in sequences]
    tree = tree_of(sequences)
    assert (tree.size, len(tree.segment_start_S), len(tree.entry_target_C)) == (size, segments, entries)
    check_bin(collate([tree]), sequences)


def test_separate_tokens_counts_both_sides_of_each_pair():
    tree = tree_of([sequence([1, 2, 3], 2), sequence([1, 2, 4, 5], 2), sequence([1, 2, 6], 2)], [(0, 1), (0, 2)])
    assert tree.size == 6
    assert tree.separate_tokens == 3 + 4 + 3 + 3


@given(sequence_lists(), st.integers(0, 20))
def test_split_keeps_every_pair_and_lone_sequence(sequences, slack):
    count = len(sequences)
    pairs = [(i, j) for i in range(count - 1) for j in range(i)]  # the last sequence stands in no pair
    largest = max([tree_size([sequences[q] for q in pair]) for pair in pairs] + [len(s.tokens) for s in sequences])
    limit = largest + slack
    rows = np.arange(count) + 100
    trees = split_tree(sequences, pairs, pair_rows=range(len(pairs)), sequence_rows=rows, max_tokens=limit)
    assert all(tree.size <= limit for tree in trees)
    found = [
        (int(row), *(int(tree.sequence_rows_Q[side]) - 100 for side in pair))
        for tree in trees
        for row, pair in zip(tree.pair_rows_P, tree.pairs_P2, strict=True)
    ]
    assert sorted(found) == [(row, *pair) for row, pair in enumerate(pairs)]
    assert {int(q) for tree in trees for q in tree.sequence_rows_Q} == set(rows.tolist())
    for tree in trees:
        check_bin(collate([tree]), [sequences[q - 100] for q in tree.sequence_rows_Q])


def split_by_definition(sequences, pairs, limit):
    """Each pair to the part that it enlarges least, with every trie built anew; lone sequences after the pairs."""
    size = lambda members: len(prefixes([sequences[q] for q in members]))  # noqa: E731
    parts = []
    lone = set(range(len(sequences))) - {q for pair in pairs for q in pair}
    for group in [*map(set, pairs), *({q} for q in sorted(lone))]:
        fitting = [part for part in parts if size(part | group) <= limit]
        if fitting:
            min(fitting, key=lambda part: size(part | group) - size(part)).update(group)
        else:
            parts.append(group)
    return [sorted(part) for part in parts]


@given(st.lists(sequence_lists(), min_size=1, max_size=4), st.data(), st.integers(0, 20))
def test_split_goes_by_what_a_pair_adds_to_a_part(lists, data, slack):
    sequences = list(itertools.chain(*lists))
    index = st.integers(0, len(sequences) - 1)
    pairs = data.draw(st.lists(st.tuples(index, index), max_size=12))
    limit = slack + max(
        tree_size([sequences[q] for q in group]) for group in [*pairs, *([q] for q in range(len(sequences)))]
    )
    rows = range(len(sequences))
    trees = split_tree(sequences, pairs, pair_rows=range(len(pairs)), sequence_rows=rows, max_tokens=limit)
    whole = tree_size(sequences) <= limit
    assert [tree.sequence_rows_Q.tolist() for tree in trees] == (
        [list(rows)] if whole else split_by_definition(sequences, pairs, limit)
    )


def test_split_repeats_the_prompt_and_puts_pairs_that_share_a_side_together():
    prompt = list(range(10, 20))
    sequences = [sequence([*prompt, *[c] * 10], 10) for c in range(4)]
    pairs = [(0, 1), (2, 3), (0, 2), (1, 0)]
    trees = split_tree(sequences, pairs, pair_rows=[5, 6, 7, 8], sequence_rows=range(4), max_tokens=30)
    assert [tree.pair_rows_P.tolist() for tree in trees] == [[5, 8], [6], [7]]
    assert [tree.size for tree in trees] == [30, 30, 30]


def test_a_pair_that_fits_no_bin_is_named():
    sequences = [sequence([1, 2, 3, 4], 1), sequence([1, 5, 6, 7], 1)]
    with pytest.raises(TrainError, match="pair 42 has 7 tokens, more than max_tokens = 6"):
        split_tree(sequences, [(0, 1)], pair_rows=[42], sequence_rows=[0, 1], max_tokens=6)


def test_a_bin_moves_to_a_device_whole():
    bin = collate([tree_of([sequence([1, 2, 3], 1), sequence([1, 2, 4], 2)])])
    moved = bin.to("meta")
    assert moved.entry_target_C.device.type == moved.input_ids_1T.device.type == "meta"
    assert moved.segments == bin.segments


def test_numbers_of_pairs_may_be_zero():
    tree = build_tree([sequence([1, 2, 3], 1)], [], pair_rows=[], sequence_rows=[0])
    assert collate([tree, tree]).pairs_P2.shape == (0, 2)
