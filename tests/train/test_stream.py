"""The plan: each epoch every prompt once, whole prompts, a function of seed and epoch alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.train import chat, stream, tokenizer
from prefkit.train.chat import Tokenising
from prefkit.train.examples import Examples
from prefkit.train.metrics import Silent
from prefkit.train.stream import Plan
from tests.train.datasets_for_tests import pair, toy_pairs, write_data_set


@st.composite
def plans(draw):
    shards = draw(st.lists(st.integers(0, 12), min_size=1, max_size=5))
    counts = draw(st.lists(st.integers(1, 6), min_size=sum(shards), max_size=sum(shards)))
    return Plan(
        shards=tuple(shards),
        counts=np.array(counts, dtype=np.int64),
        pairs_per_step=draw(st.integers(1, 9)),
        epochs=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 3)),
        window=draw(st.integers(1, 6)),
    )


@given(plans())
def test_each_epoch_has_every_prompt_once_in_whole_steps(plan):
    at = 0
    for epoch, bounds in enumerate(plan.bounds):
        steps = [plan.prompts(at + n) for n in range(len(bounds) - 1)]
        assert sorted(p for step in steps for p in step) == list(range(sum(plan.shards)))
        for n, step in enumerate(steps):
            last = n == len(steps) - 1
            assert plan.counts[step].sum() >= plan.pairs_per_step or last
            assert plan.counts[step[:-1]].sum() < plan.pairs_per_step  # no prompt more than needed
        at += len(steps)
        if steps:
            assert plan.epoch(at) == epoch + 1
    assert at == plan.steps


@given(plans(), st.integers(0, 1000))
def test_any_step_can_be_asked_for_first(plan, number):
    if plan.steps:
        number %= plan.steps
        other = Plan(plan.shards, plan.counts, plan.pairs_per_step, plan.epochs, plan.seed, plan.window)
        in_turn = [plan.prompts(n) for n in range(number + 1)][-1]
        np.testing.assert_array_equal(in_turn, other.prompts(number))


def plan_of(shards=(40, 40, 40), **changes) -> Plan:
    settings = {"pairs_per_step": 8, "epochs": 2, "seed": 0, "window": 2} | changes
    return Plan(shards, np.ones(sum(shards), dtype=np.int64), **settings)


def order(plan: Plan, epoch: int) -> list[int]:
    per_epoch = plan.steps // plan.epochs
    return [int(p) for n in range(per_epoch) for p in plan.prompts(epoch * per_epoch + n)]


def test_epochs_and_seeds_differ():
    assert order(plan_of(), 0) != order(plan_of(), 1)
    assert order(plan_of(), 0) != order(plan_of(seed=1), 0)
    assert order(plan_of(), 0) == order(plan_of(epochs=1), 0)


def test_window_mixes_shards_and_bounds_how_many():
    first_steps = order(plan_of(window=2), 0)[:80]
    assert len({p // 40 for p in first_steps}) == 2
    assert len({p // 40 for p in first_steps[:20]}) == 2
    assert len({p // 40 for p in order(plan_of(window=1), 0)[:40]}) == 1


def test_order_does_not_change_between_versions():
    """A resumed run relies on it, so a change here must be a decision."""
    assert order(plan_of(shards=(6, 6)), 0) == GOLDEN


GOLDEN = [11, 9, 3, 2, 1, 6, 5, 10, 7, 4, 0, 8]


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream") / "d"
    manifest = write_data_set(folder, toy_pairs(14, answers=3), shards=3)
    words = tokenizer.train_bpe(folder, manifest, vocab_size=400)
    how = Tokenising(None, "truncate_completion", None)
    store = chat.tokenise(folder, manifest, "train", words, how, cache=folder / "c", progress=Silent())
    return Examples.of(store)


@settings(max_examples=20)
@given(st.integers(0, 3000))
def test_bins_hold_each_pair_of_the_step_once(examples, extra):
    largest_pair = max(tree.size for n in range(examples.prompts) for tree in examples.trees(n, 10_000))
    max_tokens = largest_pair + extra
    prompts = np.array([3, 0, 11, 7])
    step = stream.make_step(examples, prompts, max_tokens)
    rows = np.concatenate([bin.pair_rows_P.numpy() for bin in step.bins])
    base = np.concatenate([[0], np.cumsum(examples.counts())])
    assert sorted(rows) == sorted(row for p in prompts for row in range(base[p], base[p + 1]))
    assert step.examples == len(rows) == 12
    assert all(bin.input_ids_1T.shape[1] <= max_tokens for bin in step.bins)
    pairs = examples.pairs()
    for bin in step.bins:
        np.testing.assert_array_equal(bin.sequence_rows_Q[bin.pairs_P2].numpy(), pairs[bin.pair_rows_P.numpy()])
        np.testing.assert_array_equal(bin.sequence_length_Q.numpy(), examples.lengths()[bin.sequence_rows_Q.numpy()])


def test_small_bins_split_a_prompt_but_no_pair(examples):
    tree = examples.trees(2, 10_000)[0]
    parts = examples.trees(2, tree.size - 1)
    assert len(parts) > 1
    assert sorted(row for part in parts for row in part.pair_rows_P) == sorted(tree.pair_rows_P)
    step = stream.make_step(examples, np.array([2]), tree.size - 1)
    assert step.examples == 3


def test_rows_lead_back_to_the_shard(examples):
    for number in range(len(examples.pairs())):
        shard, row = examples.origin_of_pair(number)
        local = number - examples.pair_base[shard]
        assert examples.shards[shard].pair_rows[local] == row
    seen = {examples.origin_of_sequence(n)[0] for n in range(examples.sequences)}
    assert seen == {0, 1, 2}


def test_examples_know_source_language_and_scores(tmp_path):
    rows = [
        pair("a", "good", "bad", chosen_score=3.0, rejected_score=1.0, source="x", lang="de"),
        pair("b", "good", "bad", source=None, lang=None),
        pair("b", "good", "worse", chosen_score=3.0, rejected_score=2.5, source="y", lang="en"),
    ]
    manifest = write_data_set(tmp_path / "d", rows, shards=2)
    words = tokenizer.train_bpe(tmp_path / "d", manifest, vocab_size=400)

    def examples_of(column):
        how = Tokenising(None, "truncate_completion", column)
        return Examples.of(
            chat.tokenise(tmp_path / "d", manifest, "train", words, how, cache=tmp_path, progress=Silent())
        )

    pairs = examples_of(None)
    assert pairs.values("source").tolist() == ["x", "unknown", "y"]
    assert pairs.values("lang").tolist() == ["de", "unknown", "en"]
    np.testing.assert_array_equal(pairs.scores(), [[3, 1], [np.nan, np.nan], [3, 2.5]])
    np.testing.assert_array_equal(pairs.margins(), [2, np.nan, 0.5])
    answers = examples_of("rejected")
    assert answers.values("source").tolist() == ["x", "unknown", "y"]
    assert len(answers.margins()) == answers.sequences == 3
    assert examples_of("chosen").values("source").tolist() == ["x", "unknown"]  # one answer in both pairs of "b"
