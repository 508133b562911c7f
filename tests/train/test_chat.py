"""The token store: TRL's boundary, every row accounted for, nothing reused that should not be."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from prefkit.errors import DataError, TrainError
from prefkit.train import chat, tokenizer
from prefkit.train.chat import Tokenising
from prefkit.train.examples import Examples
from prefkit.train.metrics import Silent
from tests.train.datasets_for_tests import pair, toy_pairs, write_data_set

ALL = Tokenising(None, "truncate_completion", None)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words") / "data"
    manifest = write_data_set(folder, toy_pairs(20))
    return tokenizer.train_bpe(folder, manifest, vocab_size=400)


def store_of(folder: Path, rows: list[dict], words, how=ALL, shards=1):
    manifest = write_data_set(folder, rows, shards=shards)
    return chat.tokenise(folder, manifest, "train", words, how, cache=folder / "cache", progress=Silent())


def read_pairs(store) -> list[tuple[list[int], list[int], int]]:
    """Chosen tokens, rejected tokens and start of every pair, in the order of the store."""
    rows = []
    for view in Examples.of(store).shards:
        for prompt in range(view.prompts):
            sequences, _ = view.sequences_of(prompt)
            for chosen, rejected in view.pairs_of(prompt)[0]:
                assert sequences[chosen].start == sequences[rejected].start
                rows.append(
                    (sequences[chosen].tokens.tolist(), sequences[rejected].tokens.tolist(), sequences[chosen].start)
                )
    return rows


def trl_pairs(rows: list[dict], words, max_length: int | None) -> list[tuple[list[int], list[int], int]]:
    """The same from TRL's own preparation and collator."""
    datasets = pytest.importorskip("datasets")
    trl = pytest.importorskip("trl.trainer.dpo_trainer")
    columns = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]
    arguments = SimpleNamespace(dataset_num_proc=None, max_length=max_length, truncation_mode="keep_start")
    prepared = trl.DPOTrainer._prepare_dataset(None, datasets.Dataset.from_list(columns), words, arguments, "train")
    collator = trl.DataCollatorForPreference(pad_token_id=0, max_length=max_length)
    result = []
    for example in prepared:
        batch = collator.torch_call([example])
        sides = [ids[mask == 1].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        # TRL shifts the mask by one: a first token that is completion has no prediction either.
        start = max(1, int(batch["completion_mask"][0].argmax()))
        result.append((*sides, start))
    return result


@pytest.mark.parametrize("kind", ["own", "plain", "header changes", "header begins"])
@pytest.mark.parametrize("max_length", [None, 44])
def test_tokens_and_boundary_are_those_of_trl(tmp_path, words, kind, max_length):
    templates = {
        "own": tokenizer.SPECIAL_TEMPLATE,
        "plain": tokenizer.TEMPLATES["plain"],
        # The generation prompt is not what stands before a completion, as in templates with an empty thought.
        "header changes": "{% for m in messages %}<|{{m.role}}|>{{m.content}}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>think:{% endif %}",
        # The generation prompt is how some answers begin: each side has its own common prefix with it.
        "header begins": "{% for m in messages %}<|{{m.role}}|>{{m.content}}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>It{% endif %}",
    }
    rows = [*toy_pairs(12, 3), pair("A " * 40, "long", "prompt"), pair("Hi.", "thin " * 50, "this")]
    two_turns = [*rows[0]["chosen"], {"role": "user", "content": "And?"}, *rows[1]["chosen"]]
    rows += [pair("Two turns.", "", "b", chosen=two_turns)]
    before, words.chat_template = words.chat_template, templates[kind]
    try:
        store = store_of(tmp_path / "d", rows, words, Tokenising(max_length, "truncate_completion", None))
        expected = trl_pairs(rows, words, max_length)
    finally:
        words.chat_template = before
    # A pair that max_length makes equal teaches nothing: prefkit counts it and leaves it out, TRL trains on it.
    expected = [row for row in expected if row[0] != row[1]]
    assert read_pairs(store) == expected
    if kind == "header changes":
        assert store.counts["boundary_moved"] == len(rows)
    if max_length:
        assert store.counts["prompt_too_long"] >= 1
        assert store.counts["completion_cut"] >= 1


def test_tokens_are_those_of_trl_on_real_pairs(tmp_path):
    data = Path(__file__).parents[2].parent / "shared" / "data" / "ultrafeedback_binarized" / "train_1000.jsonl"
    model = Path(__file__).parents[2].parent / "shared" / "tokenizers" / "minimind_6400"
    if not data.exists() or not model.exists():
        pytest.skip(f"needs {data} and {model}")
    with open(data, encoding="utf-8") as file:
        raw = [json.loads(line) for line, _ in zip(file, range(80), strict=False)]
    rows = [pair(r["prompt"], r["chosen"], r["rejected"]) for r in raw if r["chosen"] != r["rejected"]]
    real = tokenizer.load_tokenizer(model)
    store = store_of(tmp_path / "d", rows, real, Tokenising(512, "truncate_completion", None))
    assert read_pairs(store) == [row for row in trl_pairs(rows, real, 512) if row[0] != row[1]]


@settings(max_examples=25, deadline=None)
@given(
    texts=st.lists(st.tuples(*[st.text("ab é\n", max_size=12)] * 3), min_size=1, max_size=8),
    max_length=st.integers(2, 30),
    policy=st.sampled_from(["truncate_completion", "truncate_prompt_start", "drop"]),
)
def test_every_row_is_used_or_counted(tmp_path_factory, words, texts, max_length, policy):
    rows = [pair(*text) for text in texts]
    store = store_of(tmp_path_factory.mktemp("d") / "d", rows, words, Tokenising(max_length, policy, None))
    unused = ("prompt_too_long", "completion_too_long", "too_long", "empty_completion", "same_after_cut")
    assert store.counts["rows"] == len(rows)
    assert store.counts["examples"] + sum(store.counts[name] for name in unused) == len(rows)
    for chosen, rejected, start in read_pairs(store):
        assert 1 <= start < len(chosen) <= max_length
        assert start < len(rejected) <= max_length


def test_completions_shared_by_pairs_are_stored_once(tmp_path, words):
    store = store_of(tmp_path / "d", toy_pairs(6, answers=4), words)
    assert store.counts["examples"] == 6 * 6
    assert store.counts["sequences"] == 6 * 4


def test_error_policy_names_the_row(tmp_path, words):
    with pytest.raises(TrainError, match=r"row 1: .* more than max_length = 20"):
        store_of(tmp_path / "d", [pair("a", "b", "c"), pair("a " * 60, "b", "c")], words, Tokenising(20, "error", None))


def test_sft_learns_each_distinct_answer_once(tmp_path, words):
    store = store_of(tmp_path / "d", toy_pairs(5, answers=3), words, Tokenising(None, "truncate_completion", "chosen"))
    assert store.counts["rows"] == 15
    assert store.counts["examples"] == 10  # the best answer stands in two pairs of each prompt
    assert store.counts["repeated"] == 5


def test_sft_on_a_message_column_learns_every_assistant_turn(tmp_path, words):
    turns = [("user", "Hi"), ("assistant", "Hello."), ("user", "Sum?"), ("assistant", "It is 4.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    lonely = [{"role": "user", "content": "nobody answers"}]
    store = store_of(
        tmp_path / "d",
        [pair("p", "x", "y", prompt=messages), pair("q", "x", "y", prompt=lonely)],
        words,
        Tokenising(None, "truncate_completion", "prompt"),
    )
    view = Examples.of(store).shards[0]
    sequences, _ = view.sequences_of(0)
    assert [words.decode(s.tokens[s.start :]) for s in sequences] == ["Hello.<|end|>", "It is 4.<|end|>"]
    assert view.tree_tokens[0] == len(sequences[1].tokens)  # the first turn is a prefix of the second
    assert store.counts["no_answer"] == 1


def test_changed_options_or_bytes_give_another_store(tmp_path, words):
    rows = toy_pairs(4)
    first = store_of(tmp_path / "a", rows, words)
    assert first.key == store_of(tmp_path / "b", rows, words).key
    assert first.key != store_of(tmp_path / "c", rows[1:], words).key
    assert first.key != store_of(tmp_path / "d", rows, words, Tokenising(8, "truncate_completion", None)).key
    before, words.chat_template = words.chat_template, words.chat_template + " "
    try:
        assert first.key != store_of(tmp_path / "e", rows, words).key
    finally:
        words.chat_template = before


def test_interrupted_store_goes_on(tmp_path, words, monkeypatch):
    folder = tmp_path / "d"
    manifest = write_data_set(folder, toy_pairs(9), shards=3)
    how = {"cache": folder / "cache", "progress": Silent()}
    whole = chat.write_shard
    calls = []

    def dies_at_second(*arguments):
        calls.append(arguments[1].path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        whole(*arguments)

    monkeypatch.setattr(chat, "write_shard", dies_at_second)
    with pytest.raises(KeyboardInterrupt):
        chat.tokenise(folder, manifest, "train", words, ALL, **how)
    store = chat.tokenise(folder, manifest, "train", words, ALL, **how)
    assert calls == [f"data/train-{n:05d}.parquet" for n in (0, 1, 1, 2)]
    assert store.counts["examples"] == 9
    left = store.folder / "writing-left"  # by a kill in the last thing that writing does
    left.mkdir()
    chat.tokenise(folder, manifest, "train", words, ALL, **how)
    assert len(calls) == 4
    assert not left.exists()


def test_changed_shard_is_refused(tmp_path, words):
    folder = tmp_path / "d"
    manifest = write_data_set(folder, toy_pairs(3))
    path = folder / manifest.shards[0].path
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError, match="not the bytes"):
        chat.tokenise(folder, manifest, "train", words, ALL, cache=folder / "cache", progress=Silent())


def test_template_that_refuses_is_quoted(tmp_path, words):
    rows = [pair("p", "a", "b", prompt=[{"role": "tool", "content": "result"}])]
    with pytest.raises(TrainError, match=r"knows system, user and assistant, not tool.*result"):
        store_of(tmp_path / "d", rows, words)


def test_a_tokenizer_is_the_same_however_it_was_loaded(tmp_path):
    """With the Hub in reach and without, so that a run resumes offline, and ranks of which one is offline agree."""
    manifest = write_data_set(tmp_path / "d", toy_pairs(10))
    tokenizer.train_bpe(tmp_path / "d", manifest, vocab_size=400).save_pretrained(tmp_path / "words")
    online, offline = (AutoTokenizer.from_pretrained(tmp_path / "words", local_files_only=True) for _ in range(2))
    online.init_kwargs |= {"local_files_only": False, "is_local": False}  # as transformers notes, and saves
    assert chat.tokenizer_hash(online) == chat.tokenizer_hash(offline)
    offline.add_special_tokens({"bos_token": "<|begin|>"})
    assert chat.tokenizer_hash(online) != chat.tokenizer_hash(offline)
