"""Streaming: the same training as with tokens made before, wherever the shards are, and without waiting for all."""

import os
import threading

import numpy as np
import pytest

from prefkit import manifest, urls
from prefkit.errors import DataError, TrainError, UsageError
from prefkit.train import arriving, chat, metrics, run, shards, splits, standing
from prefkit.train.options import check
from tests.pairs import servers
from tests.train.datasets_for_tests import pair, pipeline, toy_pairs, write_data_set
from tests.train.ranks_for_tests import on_ranks, start
from tests.train.test_run import DPO, SFT, KillAt, Killed, lines
from tests.train.test_sampling import SAMPLED, scored_pairs

URL = "s3://bucket/sets/stream"
LIVE = {**DPO, "reference": "live", "shuffle_window": 2, "epochs": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arriving") / "d"
    rows = toy_pairs(24, answers=3)
    write_data_set(folder, rows[:54], rows[54:], shards=5)
    return folder


@pytest.fixture(scope="module")
def base(data, tmp_path_factory):
    """A model with its tokenizer, so that no run has to read the shards for one."""
    out = tmp_path_factory.mktemp("base")
    run.train(pipeline(out, SFT), data=data, out=out / "r", max_steps=1)
    return str(out / "r" / "model")


@pytest.fixture
def remote(data, monkeypatch):
    """The data set at URL."""
    monkeypatch.setattr(urls, "WAITS", (0.001,))
    with servers.s3() as store:
        for path in [data / "manifest.json", *(data / "data").iterdir()]:
            store.put_file(str(path), f"{URL}/{path.relative_to(data)}")
        yield store


def known(out) -> list[dict]:
    """The metrics of a run without the slices by length, which a stream does not know beforehand."""
    found = lines(out)
    for line in found:
        line.get("slices", {}).pop("length", None)
    return found


def streamed(data, out, base, *phases, **options):
    return run.train(pipeline(out.parent, *phases, path=base), data=data, out=out, **options)


@pytest.mark.parametrize(
    "phase",
    [
        LIVE,
        {**LIVE, "lora": {"r": 2}},
        {**LIVE, "ld_alpha": 0.5, "wpo": True},
        {**LIVE, "objective": [{"use": "kto"}, {"use": "odpo"}, {"use": "plackett_luce"}]},
        {**SFT, "column": "prompt", "shuffle_window": 1},
    ],
)
def test_streaming_changes_nothing_where_all_rows_can_be_used(data, base, tmp_path, phase):
    if phase.get("column"):
        data = tmp_path / "d"
        turns = [[("user", "Hi"), ("assistant", f"Yes {n}.")] for n in range(20)]
        rows = [
            pair(f"{n}", "x", "y", prompt=[{"role": role, "content": text} for role, text in turn])
            for n, turn in enumerate(turns)
        ]
        write_data_set(data, rows, shards=3)
    streamed(data, tmp_path / "before", base, phase)
    streamed(data, tmp_path / "while", base, {**phase, "stream": True}, cache=tmp_path / "empty")
    assert known(tmp_path / "while") == known(tmp_path / "before")
    assert len(lines(tmp_path / "while")) >= 3


def train_on_rank(data, out, base, resume):
    """What each rank does; ranks share a cache, and tokenise each shard once."""
    made = []
    whole = chat.write_shard
    chat.write_shard = lambda *given: (made.append(given[1].path), whole(*given))[1]
    phase = {**LIVE, "epochs": 1, "stream": True, "checkpoint_every": 2}
    try:
        streamed(data, out, base, phase, cache=out / "cache", resume=resume, progress=None if resume else KillAt(3))
    finally:
        (out / f"made-{os.getpid()}").write_text("\n".join(made))


def test_two_ranks_stream_the_same_steps(data, base, tmp_path):
    streamed(data, tmp_path / "one", base, {**LIVE, "epochs": 1})
    for process in start(2, train_on_rank, data, tmp_path / "two", base, False, said=tmp_path / "killed"):
        process.join(120)
        assert process.exitcode
    on_ranks(2, train_on_rank, data, tmp_path / "two", base, True, said=tmp_path / "said")
    steps = [[line["loss"] for line in lines(tmp_path / name) if "loss" in line] for name in ("two", "one")]
    np.testing.assert_allclose(*steps, atol=1e-6)
    made = [name for path in (tmp_path / "two").glob("made-*") for name in path.read_text().splitlines()]
    assert sorted(made) == sorted(shard.path for shard in manifest.read(data).shards)


def test_killed_and_resumed_elsewhere_from_a_url_is_the_same(data, base, remote, tmp_path, monkeypatch):
    phase = {**LIVE, "stream": True, "checkpoint_every": 2}
    streamed(data, tmp_path / "whole", base, phase)
    with pytest.raises(Killed):
        streamed(URL, tmp_path / "far", base, phase, progress=KillAt(13), cache=tmp_path / "one", shard_cache=1e-6)
    made = []
    whole = chat.write_shard
    monkeypatch.setattr(chat, "write_shard", lambda *given: (made.append(given[1].path), whole(*given))[1])
    streamed(URL, tmp_path / "far", base, phase, resume=True, cache=tmp_path / "two")
    assert lines(tmp_path / "far") == lines(tmp_path / "whole")
    assert made.count("data/test-00000.parquet") == 1


def test_first_step_waits_for_its_own_shards_alone(data, base, tmp_path, monkeypatch):
    """The other shards are only let through once the first step is done."""
    stepped, made = threading.Event(), []
    whole = chat.write_shard

    def slow(data_, shard, *rest):
        if shard.split == "train" and len(made) >= 2:
            assert stepped.wait(60), "the first step waits for more than its window"
        whole(data_, shard, *rest)
        made.append(shard.path)

    class Tell(metrics.Silent):
        def update(self, stage, done, total, detail=""):
            if stage == "dpo" and done == 1:
                stepped.set()

    monkeypatch.setattr(chat, "write_shard", slow)
    phase = {**LIVE, "stream": True, "shuffle_window": 1}
    streamed(data, tmp_path / "r", base, phase, cache=tmp_path / "c", progress=Tell())
    assert len(made) == len(set(made)) == 6
    counts = standing.read_report(tmp_path / "r" / "dpo" / "phase.json")["tokens"]
    assert (counts["rows"], counts["examples"]) == (54, 54)


def test_only_shards_that_steps_read_are_fetched(data, base, remote, tmp_path, monkeypatch):
    fetched = []
    whole = shards._fetch
    monkeypatch.setattr(shards, "_fetch", lambda data, shard: (fetched.append(shard.path), whole(data, shard))[1])
    phase = {**LIVE, "stream": True, "shuffle_window": 1}
    streamed(URL, tmp_path / "r", base, phase, cache=tmp_path / "c", max_steps=1)
    assert len([path for path in fetched if "train" in path]) == 1


def test_rows_that_cannot_be_used_make_steps_smaller_and_are_counted(base, tmp_path):
    rows = toy_pairs(20)
    for row in rows[::4]:
        row["chosen"] = [{"role": "assistant", "content": "much too long " * 60}]
    write_data_set(tmp_path / "d", rows, shards=3)
    phase = {**LIVE, "stream": True, "epochs": 1, "max_length": 80, "max_length_policy": "drop"}
    notes = []
    told = metrics.Silent()
    told.note = notes.append
    result = streamed(tmp_path / "d", tmp_path / "r", base, phase, progress=told)
    assert result["phases"]["dpo"]["tokens"]["too_long"] == 5
    assert "dpo, train: 15 examples of 20 rows (5 too long)" in notes
    assert sum(line["pairs"] for line in lines(tmp_path / "r") if "loss" in line) == 15
    with pytest.raises(TrainError, match=r"none of its 1 prompts can be used .* Raise pairs_per_step"):
        streamed(tmp_path / "d", tmp_path / "s", base, {**phase, "pairs_per_step": 1})


def test_sampling_of_a_stream_is_that_of_the_whole(base, tmp_path):
    write_data_set(tmp_path / "d", scored_pairs(), shards=4)
    phase = {**SAMPLED, "reference": "live"}
    before = streamed(tmp_path / "d", tmp_path / "before", base, phase)
    after = streamed(tmp_path / "d", tmp_path / "while", base, {**phase, "stream": True}, cache=tmp_path / "c")
    assert before["phases"]["dpo"]["epochs"] == after["phases"]["dpo"]["epochs"]
    assert known(tmp_path / "while") == known(tmp_path / "before")


def test_resumed_after_its_last_step_a_stream_needs_no_shard(data, base, tmp_path):
    phase = {**LIVE, "stream": True, "epochs": 1}
    whole = streamed(data, tmp_path / "r", base, phase, cache=tmp_path / "c")["phases"]["dpo"]
    (tmp_path / "r" / "dpo" / "phase.json").unlink()  # as if killed between the last checkpoint and the export
    again = streamed(data, tmp_path / "r", base, phase, cache=tmp_path / "empty", resume=True)["phases"]["dpo"]
    assert (again["steps"], again["last_step"]) == (whole["steps"], whole["last_step"])


def test_a_prompt_whose_kept_rows_cannot_be_used_is_left_out(base, tmp_path):
    """Its other row could be, but falls by a filter."""
    rows = toy_pairs(12)
    for number, row in enumerate(list(rows)[:4]):
        long = [{"role": "assistant", "content": "much too long " * 60}]
        rows.insert(2 * number, {**row, "chosen": long, "pair_id": f"long {number}", "source": "kept"})
        row["source"] = "fallen"
    for row in rows[8:]:
        row["source"] = "kept"
    write_data_set(tmp_path / "d", rows)
    limits = {"max_length": 80, "max_length_policy": "drop", "sources": ["kept"], "pairs_per_step": 6}
    streamed(tmp_path / "d", tmp_path / "r", base, {**LIVE, **limits, "stream": True, "epochs": 1})
    assert sum(line["pairs"] for line in lines(tmp_path / "r") if "loss" in line) == 8


def test_damage_in_the_background_ends_the_run_in_one_sentence(data, base, remote, tmp_path):
    last = manifest.read(data).of_split("train")[-1].path
    for name in ("00000", "00001", "00002", "00003", "00004"):
        path = f"data/train-{name}.parquet"
        content = (data / path).read_bytes()
        at = content.index(b"PAR1") + 30  # in the first column's data, of which the index reads nothing
        remote.pipe_file(f"{URL}/{path}", content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert last.endswith("00004.parquet")
    with pytest.raises(DataError, match=r"data/train-0000\d\.parquet: not the bytes that the manifest lists"):
        streamed(URL, tmp_path / "r", base, {**LIVE, "stream": True}, cache=tmp_path / "c")


def test_index_that_a_shard_contradicts_is_refused(data, base, tmp_path, monkeypatch):
    whole = arriving.read_index

    def other(*given):
        index = whole(*given)
        index[2].scores[0] = 7
        return index

    monkeypatch.setattr(splits, "read_index", other)
    with pytest.raises(DataError, match=r"train-00002\.parquet: not the rows that its index told of"):
        streamed(data, tmp_path / "r", base, {**LIVE, "stream": True}, cache=tmp_path / "c")


def test_stream_needs_a_live_reference(tmp_path):
    with pytest.raises(UsageError, match='Set reference = "live"'):
        check(pipeline(tmp_path, {**DPO, "stream": True}))
    check(pipeline(tmp_path, {"objective": "simpo", "stream": True}, {**SFT, "stream": True}))


def test_numbers_lead_back_to_the_shard(data, base, tmp_path):
    from prefkit.train import tokenizer
    from prefkit.train.chat import Tokenising

    words, record = tokenizer.load_tokenizer(base), manifest.read(data)
    listed, how = record.of_split("train"), Tokenising(None, "truncate_completion", None)
    store = chat.new_store(listed, "train", words, how, tmp_path)
    store.folder.mkdir()
    supply = arriving.Supply(data, listed, arriving.read_index(data, listed), words, how, store, lambda longest: None)
    examples = arriving.Arriving(supply)
    supply.begin(range(5))
    pairs, sequences = [], set()
    for prompt in range(18):
        (tree,) = examples.trees(prompt, 10_000)
        pairs += [examples.origin_of_pair(int(row)) for row in tree.pair_rows_P]
        sequences |= {examples.origin_of_sequence(int(row))[0] for row in tree.sequence_rows_Q}
    supply.close()
    assert pairs == [(number, row) for number, shard in enumerate(listed) for row in range(shard.rows)]
    assert sequences == set(range(5))
    assert chat.open_store(store.folder, store.key) is not None, "all shards came, so the token store is finished"
    np.testing.assert_array_equal(examples.counts(), 3)
