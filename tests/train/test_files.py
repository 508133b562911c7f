"""Scratch folders of the dead are swept and those of the living are not; sums know every file again."""

import json
import os
import signal
import subprocess
import sys

import pytest

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
