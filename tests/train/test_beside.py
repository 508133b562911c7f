"""Mismatched answers: each prompt with the one before's, in no pair, and seen by nothing but the losses that ask."""

import numpy as np
import pytest

from prefkit.train import chat, run, tokenizer
from prefkit.train.chat import Tokenising
from prefkit.train.examples import Examples
from prefkit.train.metrics import Silent
from prefkit.train.stream import make_step
from tests.train.datasets_for_tests import pipeline, toy_pairs, write_data_set
from tests.train.test_run import losses


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mismatch") / "d"
    rows = toy_pairs(12, answers=3)
    manifest = write_data_set(folder, rows[:30], rows[30:], shards=2)
    return folder, manifest, tokenizer.train_bpe(folder, manifest, vocab_size=400)


def examples_of(made, tmp_path, **how):
    data, manifest, words = made
    how = Tokenising(**{"max_length": None, "max_length_policy": "truncate_completion", "column": None} | how)
    return Examples.of(chat.tokenise(data, manifest, "train", words, how, cache=tmp_path / "c", progress=Silent()))


def test_each_prompt_has_the_answers_of_the_one_before(made, tmp_path):
    plain, extended = examples_of(made, tmp_path), examples_of(made, tmp_path, mismatched=True)
    assert plain.sequences == 30
    assert extended.sequences == 60
    assert (plain.counts() == extended.counts()).all()
    for own, more in zip(plain.shards, extended.shards, strict=True):
        for prompt in range(own.prompts):
            (mine, _), (before, _) = own.sequences_of(prompt), own.sequences_of((prompt - 1) % own.prompts)
            found, _ = more.sequences_of(prompt)
            assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(mine, found[:3], strict=True))
            for other, strange in zip(before, found[3:], strict=True):
                assert np.array_equal(strange.tokens[: strange.start], mine[0].tokens[: mine[0].start])
                assert np.array_equal(strange.tokens[strange.start :], other.tokens[other.start :])


def test_they_keep_to_max_length(made, tmp_path):
    examples = examples_of(made, tmp_path, max_length=24, mismatched=True)
    lengths = np.concatenate([np.diff(shard.token_offsets) for shard in examples.shards])
    assert lengths.max() == 24
    assert examples.lengths().min() >= 1


def test_they_stay_where_pairs_are_left_out(made, tmp_path):
    examples = examples_of(made, tmp_path, mismatched=True)
    kept = examples.keeping(np.arange(len(examples.pairs())) % 3 == 0)
    step = make_step(kept, np.arange(examples.prompts), 8192)
    (bin,) = step.bins
    assert step.examples == 10
    assert len(bin.sequence_rows_Q) - len(set(bin.pairs_P2.flatten().tolist())) == 30


def test_kto_runs_and_its_estimate_is_that_of_the_mismatched_answers(made, tmp_path):
    """At the start the policy is its reference, so the loss is 1/2; the curve does not depend on the cache's state."""
    data, *_ = made
    phase = {"name": "kto", "objective": "kto", "learning_rate": 3e-3, "pairs_per_step": 5, "epochs": 2}
    result = run.train(pipeline(data, phase), data=data, out=tmp_path / "r")
    assert losses(tmp_path / "r", "kto")[0] == pytest.approx(0.5)
    assert result["phases"]["kto"]["eval_after"]["eval_loss"] < 0.5
    live = {**phase, "reference": "live"}
    run.train(pipeline(data, live), data=data, out=tmp_path / "live")
    np.testing.assert_allclose(losses(tmp_path / "live", "kto"), losses(tmp_path / "r", "kto"), atol=1e-5)
