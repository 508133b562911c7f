"""`prefkit export`: what is written beside the records, whose folder OUT is, and the command."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefkit import manifest
from prefkit.cli import main
from prefkit.errors import DataError, UsageError
from prefkit.pairs import export, formats
from tests.pairs.chats import build, conversations, lines, shards


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("chats"), conversations())


def test_who_wants_a_data_set_and_is_given_an_export_is_told(
    chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    export.export(chats, Path(out), format="trl")
    for command in (
        ["verify", out],
        ["why", out, "raw.jsonl:1"],
        ["view", out],
        ["report", out],
        ["export", out, "--format", "kto", "--out", out],
    ):
        assert main(command) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"prefkit: {out}: an export of prefkit for another trainer"), command
        assert "Give " in said
    assert main(["verify", str(chats)]) == 0


def test_equal_data_sets_give_equal_bytes(tmp_path: Path) -> None:
    rows = conversations()
    first, second = build(tmp_path / "a", rows), build(tmp_path / "b", rows[::-1])
    for data in (first, second):
        export.export(data, data.parent / "out", format="kto")
    sides = [{p.name: p.read_bytes() for p in (data.parent / "out").iterdir()} for data in (first, second)]
    assert sides[0].keys() == sides[1].keys() == {"train.jsonl", "test.jsonl", "README.md", "export.json"}
    assert sides[0]["train.jsonl"] == sides[1]["train.jsonl"]
    again = export.export(first, first.parent / "out", format="kto", overwrite=True)
    assert {p.name: p.read_bytes() for p in (first.parent / "out").iterdir()} == sides[0]
    for name, facts in again["files"].items():
        assert manifest.file_sha256(first.parent / "out" / name) == facts["sha256"]


@pytest.mark.parametrize("format", export.names())
def test_what_is_said_about_use_names_only_files_that_are_there(chats: Path, tmp_path: Path, format: str) -> None:
    made = export.export(chats, tmp_path / "out", format=format, split="train")
    assert list(made["splits"]) == ["train"]
    said = export.report(made, tmp_path / "out")
    assert str(tmp_path / "out" / "train.jsonl") in said
    assert "test.jsonl" not in said
    assert not {"{out}", "{train}", "{test}"} & set(said.split())
    readme = (tmp_path / "out" / "README.md").read_text()
    assert str(tmp_path) not in readme
    assert yaml.safe_load(readme.split("---")[1])["configs"][0]["data_files"] == [
        {"split": "train", "path": "train.jsonl"}
    ]
    assert inspect.getdoc(getattr(formats, format.replace("-", "_")))


@pytest.mark.parametrize("format", ["axolotl", "nemo-rl", "nemo-rl-rankings", "llamafactory"])
@pytest.mark.parametrize("splits", [["train"], ["train", "test"]])
def test_the_configuration_that_is_printed_is_yaml(format: str, splits: list[str]) -> None:
    said = export.usage(format, splits, "/o")
    block = [line[4:] for line in said.splitlines() if line.startswith("    ")]
    read = yaml.safe_load("\n".join(block))
    if format == "axolotl":
        assert read["datasets"][0]["path"] == "/o/train.jsonl"
        assert read["datasets"][0]["roles"] == {role: [role] for role in ("system", "user", "assistant", "tool")}
        assert ("test_datasets" in read) == ("test" in splits)
    elif format == "llamafactory":
        assert read["dataset_dir"] == "/o"
        assert (read["dataset"], read.get("eval_dataset")) == (
            "prefkit_train",
            "prefkit_test" * ("test" in splits) or None,
        )
    else:
        assert read["data"]["train"] == {"data_path": "/o/train.jsonl", "split": "train"}
        assert ("validation" in read["data"]) == ("test" in splits)


def test_out_is_never_taken_from_someone_else(chats: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def refused(words: str, **more: Any) -> None:
        with pytest.raises(UsageError, match=words):
            export.export(chats, out, format="trl", **more)

    out.write_text("mine")
    refused("is a file")
    out.unlink()
    out.mkdir()
    (out / "mine.txt").touch()
    refused("no export of prefkit", overwrite=True)
    (out / "mine.txt").unlink()
    export.export(chats, out, format="trl")
    refused("holds an export. Add --overwrite")
    (out / "mine.txt").touch()
    refused("mine.txt: is not of an export", overwrite=True)
    (out / "mine.txt").unlink()
    export.export(chats, out, format="llamafactory", overwrite=True)
    assert {path.name for path in out.iterdir()} == {
        "train.jsonl", "test.jsonl", "README.md", "dataset_info.json", "export.json"
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "no scratch folder is left"
    with pytest.raises(UsageError, match="lies in the data set"):
        export.export(chats, chats / "data" / "out", format="trl")
    with pytest.raises(UsageError, match='Did you mean "axolotl"'):
        export.export(chats, out, format="axolotle", overwrite=True)


def test_a_failed_export_leaves_the_earlier_one(chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export.export(chats, tmp_path / "out", format="trl")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def full(path: Path) -> Any:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(export, "_facts", full)
    with pytest.raises(OSError, match="No space"):
        export.export(chats, tmp_path / "out", format="jsonl", overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_changed_shard_is_not_exported(tmp_path: Path) -> None:
    data = build(tmp_path, conversations(3))
    shard = data / manifest.read(data).of_split("train")[0].path
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with pytest.raises(DataError, match="missing or changed"):
        export.export(data, tmp_path / "out", format="trl")
    with pytest.raises(DataError, match="no manifest"):
        export.export(tmp_path, tmp_path / "out", format="trl")
    assert not (tmp_path / "out").exists()


def test_the_command(chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main(["export", str(chats), "--format", "axolotl", "--out", out]) == 0
    printed = capsys.readouterr().out
    assert f"{out}/train.jsonl: " in printed
    assert "type: chat_template.default" in printed
    assert main(["export", str(chats), "--format", "axolotl", "--out", out, "--overwrite", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    mistakes = {
        "give --format and --out, --push-to-hub": [],
        "go together": ["--format", "trl"],
        "--private and --revision go with": ["--format", "trl", "--out", f"{out}2", "--private"],
        "pushed whole": ["--push-to-hub", "me/it", "--leave-out"],
        'Did you mean "llamafactory"': ["--format", "lamafactory", "--out", f"{out}2"],
    }
    for words, arguments in mistakes.items():
        assert main(["export", str(chats), *arguments]) == 2
        assert words in capsys.readouterr().err


def test_a_split_of_which_nothing_is_left_has_no_file(
    chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import load_dataset

    test = {pair["pair_id"] for pair in shards(chats, "test")}

    def picky(pairs: Any) -> Any:
        """A format that holds no pair of the test split."""
        yield from (
            formats.LeftOut("odd", "it") if pair["pair_id"] in test else {"id": pair["pair_id"]} for pair in pairs
        )

    picky.__module__ = formats.__name__
    monkeypatch.setattr(formats, "trl", picky)
    made = export.export(chats, tmp_path / "out", format="trl", leave_out=True)
    assert made["splits"]["test"] == {"rows": len(test), "records": 0, "left_out": {"odd": len(test)}}
    assert "test.jsonl" not in made["files"]
    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert loaded["train"].to_list() == lines(tmp_path / "out" / "train.jsonl")
    assert list(loaded) == ["train"]
