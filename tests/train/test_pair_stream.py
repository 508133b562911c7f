"""The stream of a user's own loop: every pair once an epoch, where it stands, and what it refuses."""

from itertools import chain

import numpy as np
import pytest

import prefkit
from prefkit import manifest
from prefkit.errors import DataError, TrainError, UsageError
from prefkit.train.tokenizer import train_bpe
from tests.train.datasets_for_tests import pair, toy_pairs, write_data_set


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream") / "d"
    rows = toy_pairs(24, answers=3)
    write_data_set(folder, rows[:60], rows[60:], shards=3)
    return folder


@pytest.fixture(scope="module")
def words(data):
    return train_bpe(data, manifest.read(data), vocab_size=400)


def pairs_of(step):
    return sorted(row for bin in step.bins for row in bin.pair_rows_P.tolist())


def test_every_pair_comes_once_an_epoch_whatever_the_bins(data, words):
    streams = [prefkit.PairStream(data, words, pairs_per_step=7, epochs=2, max_tokens=m) for m in (200, 5000)]
    small, large = ([pairs_of(step) for step in stream] for stream in streams)
    assert small == large
    assert len(small) == len(streams[0]) == streams[0].step
    half = len(small) // 2
    assert sorted(chain(*small[:half])) == sorted(chain(*small[half:])) == list(range(60))
    assert small[:half] != small[half:]
    assert all(step.examples == len(pairs_of(step)) for step in prefkit.PairStream(data, words, pairs_per_step=7))


def test_margins_are_those_of_the_rows_that_load_pairs_gives(data, words):
    stream = prefkit.PairStream(data, words)
    rows = prefkit.load_pairs(data).collect()
    assert stream.summary == "train: 60 examples of 60 rows"
    np.testing.assert_array_equal(stream.margins, rows["margin"].to_numpy())
    bin = next(iter(stream)).bins[0]
    chosen, _ = bin.pairs_P2[0].tolist()
    entries = bin.incidence_entry_E.split(bin.sequence_length_Q.tolist())[chosen]
    said = words.decode(bin.entry_target_C[entries], skip_special_tokens=True)
    assert said == rows["chosen"][bin.pair_rows_P[0].item()][0]["content"]


def test_it_goes_on_where_a_state_stood_and_with_other_bins(data, words):
    whole = [pairs_of(step) for step in prefkit.PairStream(data, words, pairs_per_step=7, epochs=2)]
    first = prefkit.PairStream(data, words, pairs_per_step=7, epochs=2)
    for _step in first:
        if first.step == 9:
            break
    state = first.state_dict()
    second = prefkit.PairStream(data, words, pairs_per_step=7, epochs=2, max_tokens=300)
    second.load_state_dict(state)
    assert [pairs_of(step) for step in second] == whole[9:]
    for other in ({"seed": 1}, {"pairs_per_step": 8}, {"max_length": 30}, {"sources": ["odd"]}):
        stream = prefkit.PairStream(data, words, **{"pairs_per_step": 7, "epochs": 2, **other})
        with pytest.raises(TrainError, match="another stream"):
            stream.load_state_dict(state)


def test_sampling_is_that_of_a_phase(data, words):
    stream = prefkit.PairStream(data, words, sources=["odd"], min_margin=0.75)
    rows = prefkit.load_pairs(data).collect()
    wanted = [n for n, row in enumerate(rows.iter_rows(named=True)) if row["source"] == "odd" and row["margin"] > 0.75]
    assert sorted(chain(*map(pairs_of, stream))) == wanted


def test_what_it_refuses(data, words, tmp_path):
    with pytest.raises(UsageError, match='unknown option "sorces"'):
        prefkit.PairStream(data, words, sorces=["odd"])
    with pytest.raises(UsageError, match="pairs_per_step"):
        prefkit.PairStream(data, words, pairs_per_step=0)
    with pytest.raises(UsageError, match="local folder"):
        prefkit.PairStream("s3://bucket/d", words)
    with pytest.raises(DataError, match="no such folder"):
        prefkit.PairStream(tmp_path / "none", words)
    with pytest.raises(TrainError, match='no split "tset"'):
        prefkit.PairStream(data, words, split="tset")
    with pytest.raises(UsageError, match='PairStream: sources: the train split has nothing of "ood"'):
        prefkit.PairStream(data, words, sources=["ood"])
    with pytest.raises(TrainError, match="more than max_tokens = 10"):
        prefkit.PairStream(data, words, max_tokens=10)
    write_data_set(tmp_path / "long", [pair("long " * 300, "yes", "no")])
    with pytest.raises(TrainError, match=r"nothing to train on is left of .*1 prompt too long"):
        prefkit.PairStream(tmp_path / "long", words, max_length=100)
    template, words.chat_template = words.chat_template, None
    try:
        with pytest.raises(TrainError, match="no chat_template"):
            prefkit.PairStream(data, words)
    finally:
        words.chat_template = template
