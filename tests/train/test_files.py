"""Scratch folders of the dead are swept and those of the living are not; sums know every file again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prefkit.errors import TrainError
from prefkit.train import chat, files, tokenizer
from prefkit.train.chat import Tokenising
from prefkit.train.metrics import Silent
from tests.train.datasets_for_tests import toy_pairs, write_data_set

HOLD = """
import sys, time
from pathlib import Path
from prefkit.train.files import scratch
with scratch(Path(sys.argv[1])) as folder:
    print(folder.name, flush=True)
    time.sleep(60)
"""


def test_scratch_of_the_dead_is_swept_and_of_the_living_kept(tmp_path):
    holders = [
        subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    dead, living = (holder.stdout.readline().strip() for holder in holders)
    os.kill(holders[0].pid, signal.SIGKILL)
    holders[0].wait()
    assert {path.name for path in tmp_path.iterdir()} == {dead, living}
    with files.scratch(tmp_path) as mine:
        assert {path.name for path in tmp_path.iterdir()} == {living, mine.name}
    holders[1].kill()
    holders[1].wait()


def test_sums_are_those_of_sha256sum_and_find_damage(tmp_path):
    (tmp_path / "inner").mkdir()
    for name in ("a.bin", "inner/b.bin"):
        (tmp_path / name).write_bytes(os.urandom(100))
    files.write_sums(tmp_path)
    subprocess.run(["sha256sum", "--check", "--quiet", files.SUMS], cwd=tmp_path, check=True)
    assert files.damaged(tmp_path) is None
    (tmp_path / "inner" / "b.bin").write_bytes(os.urandom(100))
    assert files.damaged(tmp_path) == tmp_path / "inner" / "b.bin"
    (tmp_path / files.SUMS).unlink()
    assert files.damaged(tmp_path) == tmp_path / files.SUMS


@pytest.mark.parametrize("damage", ["cut", "flip", "counts"])
def test_damaged_tokens_are_named_and_made_again(tmp_path, damage):
    manifest = write_data_set(tmp_path / "d", toy_pairs(6), shards=2)
    words = tokenizer.train_bpe(tmp_path / "d", manifest, vocab_size=400)
    how = Tokenising(None, "truncate_completion", None)
    notes, progress = [], Silent()
    progress.note = notes.append

    def tokenise():
        return chat.tokenise(tmp_path / "d", manifest, "train", words, how, cache=tmp_path / "cache", progress=progress)

    store = tokenise()
    path = store.folder / "00001.arrow"
    whole, counts = path.read_bytes(), path.with_suffix(".json")
    if damage == "counts":
        counts.write_text(json.dumps({"sha256": "0", "counts": {}}))
    else:
        path.write_bytes(whole[:-8] if damage == "cut" else whole[:400] + bytes([whole[400] ^ 4]) + whole[401:])
    again = tokenise()
    assert notes == [f"{path}: damaged, so it is made again."]
    assert path.read_bytes() == whole
    assert again == store


def test_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, files.naming(tmp_path / "00000.arrow"):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(tmp_path / "00000.arrow")


def test_whole_folder_replaces_at_once(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(RuntimeError), files.whole_folder(target) as folder:
        (folder / "new").write_text("new")
        raise RuntimeError
    assert [p.name for p in target.iterdir()] == ["old"]
    with files.whole_folder(target) as folder:
        (folder / "new").write_text(json.dumps({}))
    assert sorted(p.name for p in target.iterdir()) == ["SHA256SUMS", "new"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_whole_folder_and_what_it_holds_are_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    flushed, rename = [], Path.rename
    monkeypatch.setattr(files, "flush", lambda path: flushed.append(path.name))

    def noted(self, target):
        flushed.append("renamed")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", noted)
    with files.whole_folder(tmp_path / "model") as folder:
        (folder / "part").mkdir()
        (folder / "part" / "weights").write_text("new")
    assert set(flushed[:4]) == {"part", "weights", "SHA256SUMS", "model.tmp"}
    assert flushed[4:] == ["renamed", tmp_path.name]


def test_whole_folder_clears_what_a_kill_between_its_renames_left(tmp_path):
    target = tmp_path / "model"
    for name in ("model.tmp", "model.old.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text("half")
    with files.whole_folder(target) as folder:
        (folder / "weights").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (target / "weights").read_text() == "new"


def test_rust_libraries_full_disk_is_one_sentence(tmp_path):
    said = r"model: cannot be written: .*No space left"
    with pytest.raises(TrainError, match=said), files.whole_folder(tmp_path / "model"):
        raise Exception("No space left on device (os error 28)")
    with pytest.raises(OSError, match="No space left") as caught, files.whole_folder(tmp_path / "model"):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(tmp_path / "model")
    assert not list(tmp_path.iterdir())
