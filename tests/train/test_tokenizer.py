"""Tokenizers: trained ones round-trip any text, templates are given or refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from prefkit.errors import TrainError, UsageError
from prefkit.train import tokenizer
from tests.train.datasets_for_tests import toy_pairs, write_data_set


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words") / "d"
    return tokenizer.train_bpe(folder, write_data_set(folder, toy_pairs(20)), vocab_size=300)


@settings(max_examples=50)
@given(text=st.text())
def test_any_text_round_trips(words, text):
    if not any(token in text for token in tokenizer.SPECIAL_TOKENS):
        assert words.decode(words(text, add_special_tokens=False)["input_ids"]) == text


def test_training_is_deterministic_and_survives_saving(words, tmp_path):
    manifest = write_data_set(tmp_path / "d", toy_pairs(20))
    again = tokenizer.train_bpe(tmp_path / "d", manifest, vocab_size=300)
    assert again.get_vocab() == words.get_vocab()
    assert len(words) == 300
    words.save_pretrained(tmp_path / "w")
    loaded = tokenizer.load_tokenizer(tmp_path / "w")
    chat = [{"role": "user", "content": "What is 3?"}, {"role": "assistant", "content": "It is."}]
    assert loaded.apply_chat_template(chat, tokenize=False) == "<|user|>What is 3?<|end|><|assistant|>It is.<|end|>"
    ids = loaded.apply_chat_template(chat, return_dict=True)["input_ids"]
    assert ids == words.apply_chat_template(chat, return_dict=True)["input_ids"]
    assert ids[-1] == loaded.eos_token_id
    assert ids.count(loaded.eos_token_id) == 2


def test_first_rows_only(tmp_path):
    rows = toy_pairs(3)
    manifest = write_data_set(tmp_path / "d", rows)
    texts = [text for batch in tokenizer._contents(tmp_path / "d", manifest, 2) for text in batch]
    assert len(texts) == 6
    assert rows[0]["chosen"][0]["content"] in texts
    assert rows[2]["chosen"][0]["content"] not in texts


def bare() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="</s>", bos_token="<s>")


def test_no_template_is_refused_with_the_mend(tmp_path):
    with pytest.raises(
        TrainError, match=r"has no chat template.*chat_template = .*evaluate --chat-template FILE.*plain"
    ):
        tokenizer.set_chat_template(bare(), None, tmp_path)


def test_templates_by_name_and_file(tmp_path):
    words = bare()
    tokenizer.set_chat_template(words, "plain", tmp_path)
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    assert words.apply_chat_template(chat, tokenize=False) == "<s>### User:\nHi\n\n### Assistant:\nYes</s>\n\n"
    prompt = words.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<s>### User:\nHi\n\n### Assistant:\n"
    (tmp_path / "my.jinja").write_text("{{ messages[0].content }}")
    tokenizer.set_chat_template(words, "my.jinja", tmp_path)
    assert words.apply_chat_template(chat, tokenize=False) == "Hi"
    with pytest.raises(UsageError, match=r'"plane" is neither a file nor a built-in template.*Did you mean "plain"'):
        tokenizer.set_chat_template(words, "plane", tmp_path)


def test_missing_tokenizer_is_one_sentence(tmp_path):
    with pytest.raises(TrainError, match=r"is no folder of a model: none of config\.json"):
        tokenizer.load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TrainError, match="no tokenizer can be loaded") as caught:
        tokenizer.load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
