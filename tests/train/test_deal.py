"""Every tree once, every rank as many bins, no bin too large, and the load even."""

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefkit.train import policy
from prefkit.train.deal import deal, empty_bin
from prefkit.train.fill import pack
from tests.train.conftest import make_model

MAX_TOKENS = 100


@settings(max_examples=200)
@given(st.lists(st.integers(1, MAX_TOKENS), min_size=1, max_size=60), st.integers(1, 9))
@example([100], 8)
@example([51, 51, 51, 51, 49, 49, 49, 48], 3)
def test_every_tree_goes_to_one_rank(sizes, ranks):
    dealt = deal(sizes, MAX_TOKENS, ranks)
    assert sorted(i for bins in dealt for members in bins for i in members.tolist()) == list(range(len(sizes)))
    assert len(dealt) == ranks
    rounds = -(-len(pack(sizes, MAX_TOKENS)) // ranks)
    assert {len(bins) for bins in dealt} == {rounds}
    loads = np.array([[sum(sizes[i] for i in members) for members in bins] for bins in dealt])
    assert loads.max() <= MAX_TOKENS
    slowest = loads.max(0)  # of each round; the rounds fall, and no bin of a round exceeds one of the round before
    assert ranks == 1 or (loads.min(0)[:-1] >= slowest[1:]).all()


def test_one_rank_takes_the_bins_as_packed():
    sizes = [60, 50, 40, 30, 20, 10]
    (bins,) = deal(sizes, MAX_TOKENS, 1)
    assert [bin.tolist() for bin in bins] == [bin.tolist() for bin in pack(sizes, MAX_TOKENS)]


def test_work_is_even_where_it_can_be():
    sizes = np.random.default_rng(0).integers(5, 60, 400).tolist()
    dealt = deal(sizes, 10 * MAX_TOKENS, 7)
    loads = [[sum(sizes[i] for i in members) for members in bins] for bins in dealt]
    assert max(map(max, loads)) <= 1.02 * sum(sizes) / sum(map(len, loads))
    assert max(map(sum, loads)) <= 1.02 * sum(sizes) / 7
    assert [len(members) for bins in deal([10, 10, 10], MAX_TOKENS, 3) for members in bins] == [1, 1, 1]


def test_empty_bin_adds_exactly_nothing():
    for padded in (None, "as if recurrent"):
        ready = policy.ready(make_model("Qwen3"), dtype="float32")
        ready = policy.Policy(ready.model, ready.device, ready.dtype, padded)
        logps = ready.sequence_logps(empty_bin())
        assert logps.shape == (0,)
        logps.sum().backward()
        grads = {name: parameter.grad for name, parameter in ready.trained().items()}
        assert all(grad is not None and torch.count_nonzero(grad) == 0 for grad in grads.values())
