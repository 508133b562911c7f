"""`prefkit adopt`: plain conversations become a data set that trains, or the run says which row is none."""

import json
import os

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefkit import adopt, manifest
from prefkit.cli import main
from prefkit.errors import DataError, UsageError
from prefkit.manifest import file_sha256
from prefkit.pairs.verify import verify
from prefkit.pairs.why import why
from tests.pairs.test_verify import forge

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def chat(number: int, turns: int = 2) -> dict:
    """A conversation of some questions and answers, behind a system message."""
    messages = [{"role": "system", "content": "Be brief."}]
    for turn in range(turns):
        messages += [
            {"role": "user", "content": f"What is {number} and {turn}?"},
            {"role": "assistant", "content": f"It is {number + turn}."},
        ]
    return {"messages": messages, "lang": "en", "id": number}


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_are_kept_in_order_and_split_by_content(tmp_path, monkeypatch):
    monkeypatch.setattr(adopt, "ROWS_A_SHARD", 20)
    rows = [chat(number % 60) for number in range(70)]  # the last ten repeat the first
    first = jsonl(tmp_path / "first.jsonl", rows[:30])
    second = tmp_path / "second.parquet"
    pq.write_table(pa.Table.from_pylist(rows[30:]), second)
    made = adopt.adopt([first, second], tmp_path / "out", test=0.3)
    assert manifest.read(tmp_path / "out") == made
    found = {"train": [], "test": []}
    for shard in made.shards:
        path = tmp_path / "out" / shard.path
        assert (shard.sha256, shard.bytes) == (file_sha256(path), path.stat().st_size)
        assert path.name.endswith(f"-of-{len(made.of_split(shard.split)):05d}.parquet")
        found[shard.split] += pq.read_table(path).to_pylist()
    assert 5 < len(found["test"]) < 40
    assert len(found["train"]) + len(found["test"]) == 70
    wanted = [row["messages"] for row in rows]
    for split in found.values():
        positions = [wanted.index(row["messages"]) for row in split]
        assert [at for at in positions if positions.count(at) == 1] == sorted(
            at for at in positions if positions.count(at) == 1
        )
    assert not {row["pair_id"] for row in found["train"]} & {row["pair_id"] for row in found["test"]}
    row = found["train"][0]
    assert row["prompt"] == row["messages"][:-1]
    assert {row["source"] for split in found.values() for row in split} == {"first", "second"}
    assert [(one.path, one.rows) for one in made.inputs] == [("first.jsonl", 30), ("second.parquet", 40)]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"messages": [', r"bad\.jsonl:2: not JSON"),
        ("[1]", r"bad\.jsonl:2: not an object"),
        ('{"text": "x"}', r'bad\.jsonl:2: no "messages"\. Columns: text\. Say which has it by --column\.'),
        ('{"messages": "x"}', r'bad\.jsonl:2: "messages" is no list of messages\.'),
        ('{"messages": [{"role": "user"}]}', r"bad\.jsonl:2: a message lacks role or content"),
        ('{"messages": [{"role": "user", "content": "a"}]}', r"bad\.jsonl:2: no assistant message"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', r"bad\.jsonl:2: no assistant message"),
        (
            '{"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}',
            r'bad\.jsonl:2: a message has "tool_calls"',
        ),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\\ud800"}]}',
            r"bad\.jsonl:2: half of a surrogate pair, which is no text",
        ),
    ],
)
def test_row_that_is_no_conversation_is_named(tmp_path, row, said):
    (tmp_path / "bad.jsonl").write_text(json.dumps(chat(1)) + "\n" + row + "\n")
    with pytest.raises(DataError, match=said):
        adopt.adopt([tmp_path / "bad.jsonl"], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl"]


def test_what_is_in_the_way_stays(tmp_path):
    (tmp_path / "new.tmp").mkdir()  # a name that somebody may have given
    (tmp_path / "new.tmp" / "mine").touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="not empty"):
        adopt.adopt([jsonl(tmp_path / "a.jsonl", [chat(1)])], tmp_path / "out")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "x"
    with pytest.raises(UsageError, match=r"reads \.jsonl and \.parquet"):
        adopt.adopt([tmp_path / "a.csv"], tmp_path / "new")
    (tmp_path / "b.parquet").write_text("no Parquet")
    with pytest.raises(DataError, match=r"b\.parquet: cannot be read as Parquet"):
        adopt.adopt([tmp_path / "b.parquet"], tmp_path / "new")
    adopt.adopt([tmp_path / "a.jsonl"], tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.parquet", "new", "new.tmp", "out"]
    assert (tmp_path / "new.tmp" / "mine").exists()


def test_verify_looks_at_files_rows_and_splits(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [chat(n) for n in range(40)])
    adopt.adopt([path], tmp_path / "d", test=0.4)
    assert verify(tmp_path / "d") == []
    train, test = (next((tmp_path / "d" / "data").glob(f"{split}-*")) for split in ("train", "test"))
    whole = train.read_bytes()
    train.write_bytes(whole[:-1])
    assert any("bytes, but the manifest says" in problem for problem in verify(tmp_path / "d"))
    train.write_bytes(whole)
    forge(tmp_path / "d", "train", lambda rows: rows.slice(1), kind="conversations")
    assert any("40 rows came in, but the shards hold 39" in problem for problem in verify(tmp_path / "d"))
    of_test = pl.read_parquet(test)
    forge(tmp_path / "d", "train", lambda rows: pl.concat([rows, of_test.head(1)]), kind="conversations")
    assert any("1 conversations stand in train and in test" in problem for problem in verify(tmp_path / "d"))
    with pytest.raises(DataError, match="there is nothing to ask"):
        why(tmp_path / "d", "a.jsonl:1")


def test_adopted_conversations_train_on_all_assistant_turns(tmp_path, capsys):
    pytest.importorskip("torch")
    jsonl(tmp_path / "chats.jsonl", [chat(number) for number in range(24)])
    data = tmp_path / "data"
    assert main(["adopt", str(tmp_path / "chats.jsonl"), "--out", str(data), "--test", "0.2"]) == 0
    said = capsys.readouterr().out
    made = manifest.read(data)
    assert f"{made.rows('train')} conversations to train on, {made.rows('test')} to test on" in said
    (tmp_path / "sft.toml").write_text(
        """
        [model]
        tokenizer = { vocab_size = 300 }
        [model.config]
        model_type = "llama"
        hidden_size = 32
        intermediate_size = 64
        num_hidden_layers = 1
        num_attention_heads = 4
        num_key_value_heads = 2
        [[train]]
        objective = "sft"
        column = "messages"
        pairs_per_step = 8
        samples = { every = 3, prompts = 1, max_new_tokens = 2 }
        """
    )
    assert (
        main(["train", str(tmp_path / "sft.toml"), "--data", str(data), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    )
    report = json.loads((tmp_path / "run" / "sft" / "phase.json").read_text())
    assert report["tokens"]["rows"] == made.rows("train")
    assert report["tokens"]["examples"] == 2 * made.rows("train")
    assert report["eval_after"]["eval_loss"] < report["eval_before"]["eval_loss"]
