"""The files of the token store: damaged ones are made again, two processes may write them, and templates may fail."""

import datetime
import threading

import numpy as np
import pytest

from prefkit.errors import TrainError
from prefkit.train import chat, reference, template, tokenizer
from prefkit.train.chat import Tokenising
from prefkit.train.examples import Examples
from prefkit.train.metrics import Silent
from prefkit.train.store import is_whole
from tests.train.datasets_for_tests import toy_pairs, write_data_set

ALL = Tokenising(None, "truncate_completion", None)


@pytest.fixture
def made(tmp_path):
    """A data set of two shards, and a tokenizer."""
    manifest = write_data_set(tmp_path / "d", toy_pairs(10), shards=2)
    return tmp_path / "d", manifest, tokenizer.train_bpe(tmp_path / "d", manifest, vocab_size=400)


def tokenise(made, cache, progress=None):
    data, manifest, words = made
    return chat.tokenise(data, manifest, "train", words, ALL, cache=cache, progress=progress or Silent())


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("name", ["00001.arrow", "00001.json", "store.json"])
@pytest.mark.parametrize("size", [0, 20])
def test_damaged_files_are_made_again(made, tmp_path, name, finished, size):
    store = tokenise(made, tmp_path / "cache")
    before = {path.name: path.read_bytes() for path in store.folder.iterdir()}
    with open(store.folder / name, "r+b") as file:
        file.truncate(size)
    if not finished:
        (store.folder / "store.json").unlink()
    again = tokenise(made, tmp_path / "cache")
    assert {path.name: path.read_bytes() for path in again.folder.iterdir()} == before
    assert Examples.of(again).sequences == store.counts["sequences"]


def test_two_writers_do_not_meet(made, tmp_path):
    """Each waits for the other in the middle of its work, so that their files are written at the same time."""
    together = threading.Barrier(2)
    errors, stores = [], []

    class Meet(Silent):
        def update(self, stage, done, total, detail=""):
            together.wait(20)

    def work():
        try:
            stores.append(tokenise(made, tmp_path / "cache", Meet()))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert stores[0] == stores[1]
    assert sorted(path.suffix for path in stores[0].folder.iterdir()) == [".arrow"] * 2 + [".json"] * 3


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reference, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        reference._write(tmp_path / "00000.safetensors", np.zeros(1, np.float32))
    assert not list(tmp_path.iterdir())
    assert not is_whole(tmp_path / "00000.arrow")


def test_date_of_a_template_is_frozen(made):
    words = made[2]
    words.chat_template = "{{ strftime_now('%Y-%m-%d') }} {{ messages[0].content }}"
    text = template.render(words, [[{"role": "user", "content": "Hi"}]], open_turn=False)
    assert text == [f"{datetime.date(2024, 7, 26)} Hi"]


@pytest.mark.parametrize("text", ["{{ messages[0].content + 1 }}", "{% for %}", "{{ 1 / 0 }}", "{{ a.b.c }}"])
def test_failing_template_is_one_sentence(made, text):
    made[2].chat_template = text
    with pytest.raises(TrainError, match="the chat template refuses a conversation") as caught:
        template.render(made[2], [[{"role": "user", "content": "Hi"}]], open_turn=False)
    assert "\n" not in str(caught.value)


def test_template_that_is_not_text_is_refused(made, tmp_path):
    (tmp_path / "t.jinja").write_bytes(b"\xff\xfe{{ messages }}")
    with pytest.raises(TrainError, match=r"t\.jinja: not UTF-8"):
        tokenizer.set_chat_template(made[2], "t.jinja", tmp_path)


@pytest.mark.parametrize("text", ["", "{", '{"version": "1.0"}'])
def test_damaged_tokenizer_is_one_sentence(made, tmp_path, text):
    made[2].save_pretrained(tmp_path / "words")
    (tmp_path / "words" / "tokenizer.json").write_text(text)
    with pytest.raises(TrainError, match="no tokenizer can be loaded") as caught:
        tokenizer.load_tokenizer(tmp_path / "words")
    assert "\n" not in str(caught.value)


def test_counts_add_up_and_the_longest_is_the_longest_of_all(made, tmp_path):
    store = tokenise(made, tmp_path / "cache")
    shards = Examples.of(store).shards
    assert store.counts["longest"] == max(int(np.diff(shard.token_offsets).max()) for shard in shards)
    assert store.counts["tokens"] == sum(len(shard.tokens) for shard in shards)
    assert store.counts["rows"] == store.counts["examples"] == 10
