"""Templates of four families and some unruly ones: tokens, boundaries, and what max_length does to them."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefkit.errors import TrainError
from prefkit.train import chat, template
from prefkit.train.chat import Tokenising
from prefkit.train.examples import Examples
from prefkit.train.metrics import Silent
from tests.train.datasets_for_tests import pair, write_data_set
from tests.train.templates import (
    DEAF,
    FAMILIES,
    GEMMA,
    LLAMA3,
    MISTRAL,
    NO_THINKING,
    QWEN,
    THINKING,
    tokenizer_of_families,
)

SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [
    {"role": "user", "content": "What is two and two?"},
    {"role": "assistant", "content": "It is four."},
    {"role": "user", "content": "And three more? Think about it, think about it well."},
]
ANSWERS = {"chosen": "It is seven, of course.", "rejected": "No idea at all."}


@pytest.fixture(scope="module")
def base():
    return tokenizer_of_families([message["content"] for message in TURNS] * 9)


@pytest.fixture
def words(base):
    """The tokenizer, whose template the test may set."""
    yield base
    base.chat_template = None


def said(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


def store_of(folder, rows, words, max_length=None, policy="truncate_completion", column=None):
    manifest = write_data_set(folder, rows)
    how = Tokenising(max_length, policy, column)
    return chat.tokenise(folder, manifest, "train", words, how, cache=folder / "cache", progress=Silent())


def sequences_of(store) -> list:
    views = Examples.of(store).shards
    return [sequence for view in views for prompt in range(view.prompts) for sequence in view.sequences_of(prompt)[0]]


def ids_of(words, messages: list[dict], *, open_turn: bool) -> list[int]:
    """What transformers itself makes of a conversation."""
    made = words.apply_chat_template(messages, add_generation_prompt=open_turn, return_dict=True)
    return made["input_ids"]


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_transformers_with_one_bos_and_one_end(tmp_path, words, family, turns, system):
    words.chat_template, end = FAMILIES[family]
    prompt = ([SYSTEM] if system else []) + TURNS[-turns:]
    store = store_of(tmp_path / "d", [pair("p", *ANSWERS.values(), prompt=prompt)], words)
    merges = system and family == "Gemma"
    assert store.counts["system_merged"] == merges
    if merges:
        prompt = [{**prompt[1], "content": f"{SYSTEM['content']}\n\n{prompt[1]['content']}"}, *prompt[2:]]
    for sequence, answer in zip(sequences_of(store), ANSWERS.values(), strict=True):
        tokens = sequence.tokens.tolist()
        assert tokens == ids_of(words, prompt + said(answer), open_turn=False)
        assert tokens[: sequence.start] == ids_of(words, prompt, open_turn=True)
        assert words.decode(tokens[sequence.start :]).strip() == answer + end.strip()
        assert tokens.count(words.bos_token_id) == (family != "Qwen")
        assert tokens.count(words.eos_token_id) == (family == "Mistral") * (1 + turns // 2)
        assert (SYSTEM["content"] in words.decode(tokens[: sequence.start])) == system
    assert store.counts["boundary_moved"] == 0


def test_default_system_message_gives_way_to_a_given_one(tmp_path, words):
    words.chat_template = QWEN
    rows = [pair("p", *ANSWERS.values(), prompt=prompt) for prompt in (TURNS, [SYSTEM, *TURNS])]
    for number, row in enumerate(rows):
        text = words.decode(sequences_of(store_of(tmp_path / str(number), [row], words))[0].tokens)
        assert ("You are a helpful assistant." in text) == (number == 0)


def test_system_message_that_vanishes_is_counted(tmp_path, words):
    words.chat_template = DEAF
    rows = [pair("p", *ANSWERS.values(), prompt=[SYSTEM, *TURNS]), pair("q", *ANSWERS.values(), prompt=TURNS)]
    store = store_of(tmp_path / "d", rows, words)
    assert (store.counts["system_left_out"], store.counts["examples"]) == (1, 2)
    assert "1 system left out" in store.summary


def test_several_turns_in_a_completion(tmp_path, words):
    words.chat_template = LLAMA3
    more = [*said("Seven."), {"role": "user", "content": "Sure?"}, *said("Yes.")]
    store = store_of(tmp_path / "d", [pair("p", "", "No.", prompt=TURNS, chosen=more)], words)
    sequence = sequences_of(store)[0]
    assert words.decode(sequence.tokens[sequence.start :]).startswith("Seven.<|eot_id|>")
    assert sequence.tokens.tolist() == ids_of(words, TURNS + more, open_turn=False)


def test_prompt_that_an_answer_rewrites_is_left_out(tmp_path, words):
    """Mistral's system message moves to the last user message, out of the prompt if the completion has one."""
    words.chat_template = MISTRAL
    more = [*said("Seven."), {"role": "user", "content": "Sure?"}, *said("Yes.")]
    rows = [
        pair("p", "", "No.", prompt=[SYSTEM, *TURNS], chosen=more),
        pair("q", "", "No.", prompt=TURNS, chosen=more),
    ]
    store = store_of(tmp_path / "d", rows, words)
    assert (store.counts["prompt_rewritten"], store.counts["examples"]) == (1, 1)


def test_answer_that_the_template_cuts_is_left_out(tmp_path, words):
    thought = "<think>\nTwo and two and three.\n</think>\n\nSeven."
    rows = [pair("p", thought, "No idea.", prompt=TURNS), pair("q", *ANSWERS.values(), prompt=TURNS)]
    words.chat_template = NO_THINKING
    store = store_of(tmp_path / "a", rows, words)
    assert (store.counts["answer_rewritten"], store.counts["examples"]) == (1, 1)
    assert store.counts["boundary_moved"] == 1  # the opened thought is no answer's beginning
    words.chat_template = THINKING
    store = store_of(tmp_path / "b", rows, words)
    assert (store.counts["answer_rewritten"], store.counts["examples"]) == (0, 2)
    assert "Two and two and three." in words.decode(sequences_of(store)[0].tokens)


def test_each_turn_of_sft_keeps_its_thinking_and_none_before(tmp_path, words):
    words.chat_template = THINKING
    thoughts = ["Easy.", "Two more."]
    messages = [
        SYSTEM,
        TURNS[0],
        *said(f"<think>\n{thoughts[0]}\n</think>\n\nFour."),
        {"role": "user", "content": "And two?"},
        *said(f"<think>\n{thoughts[1]}\n</think>\n\nSix."),
    ]
    store = store_of(tmp_path / "d", [pair("p", "x", "y", prompt=messages)], words, column="prompt")
    texts = [(words.decode(s.tokens[: s.start]), words.decode(s.tokens[s.start :])) for s in sequences_of(store)]
    assert [text for _, text in texts] == [
        f"<think>\n{thought}\n</think>\n\n{answer}<|im_end|>\n"
        for thought, answer in zip(thoughts, ("Four.", "Six."), strict=True)
    ]
    assert thoughts[0] not in texts[1][0]
    assert "Four." in texts[1][0]


def test_sft_of_every_family_learns_all_assistant_turns(tmp_path, words):
    for number, (text, end) in enumerate(FAMILIES.values()):
        words.chat_template = text
        rows = [pair("p", "x", "y", prompt=[*TURNS, *said("Seven.")])]
        store = store_of(tmp_path / str(number), rows, words, column="prompt")
        learned = [words.decode(s.tokens[s.start :]).strip() for s in sequences_of(store)]
        assert learned == [f"It is four.{end.strip()}", f"Seven.{end.strip()}"]


LONG = [SYSTEM, *TURNS, *said("Yes, one moment."), {"role": "user", "content": "one two three four five six " * 4}]


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_is_cut_by_turns_and_then_by_the_beginning_of_the_last(tmp_path, words, family):
    words.chat_template, end = FAMILIES[family]
    row = pair("p", *ANSWERS.values(), prompt=LONG)
    whole = max(len(sequence.tokens) for sequence in sequences_of(store_of(tmp_path / "whole", [row], words)))
    for taken in (1, 20, 45, 70):
        store = store_of(tmp_path / str(taken), [row], words, whole - taken, "truncate_prompt_start")
        assert (store.counts["prompt_cut"], store.counts["examples"]) == (1, 1)
        for sequence, answer in zip(sequences_of(store), ANSWERS.values(), strict=True):
            text = words.decode(sequence.tokens)
            assert len(sequence.tokens) <= whole - taken
            assert words.decode(sequence.tokens[sequence.start :]).strip() == answer + end.strip()
            assert SYSTEM["content"] in text
            assert TURNS[0]["content"] not in text
            assert (sequence.tokens[0] == words.bos_token_id) == (family != "Qwen")
            user = text.split(answer)[0]
            assert user.rstrip().count("five six") > 0  # the end of the last message stays
    store = store_of(tmp_path / "none", [row], words, 20, "truncate_prompt_start")
    assert (store.counts["completion_too_long"], store.counts["examples"]) == (1, 0)


def test_pairs_of_a_prompt_share_its_cut(tmp_path, words):
    words.chat_template = LLAMA3
    texts = ["one", "one two three", "one two three four five"]
    rows = [pair("p", texts[a], texts[b], prompt=LONG) for a in range(3) for b in range(a + 1, 3)]
    store = store_of(tmp_path / "d", rows, words, 60, "truncate_prompt_start")
    assert store.counts["prompt_cut"] == 3
    assert store.counts["sequences"] == 3
    starts = {sequence.start for sequence in sequences_of(store)}
    assert len(starts) == 1
    assert max(len(sequence.tokens) for sequence in sequences_of(store)) in range(56, 61)  # and no shorter than need be


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    policy=st.sampled_from(["truncate_completion", "truncate_prompt_start", "drop"]),
    texts=st.lists(st.tuples(*[st.text("ab é\n", max_size=25)] * 5, st.booleans()), min_size=1, max_size=6),
    max_length=st.integers(2, 90),
)
def test_within_max_length_every_row_is_whole_or_counted(tmp_path_factory, words, family, policy, texts, max_length):
    words.chat_template, _ = FAMILIES[family]
    rows = []
    for first, between, last, good, bad, system in texts:
        turns = [{"role": "user", "content": first}, *said(between), {"role": "user", "content": last}]
        rows.append(pair(first + last, good, bad, prompt=[SYSTEM] * system + turns))
    store = store_of(tmp_path_factory.mktemp("d") / "d", rows, words, max_length, policy)
    counts = store.counts
    unused = "prompt_too_long completion_too_long too_long empty_completion same_after_cut prompt_rewritten".split()
    assert counts["rows"] == len(rows) == counts["examples"] + sum(counts[name] for name in unused)
    assert counts["answer_rewritten"] == 0
    ends = (
        words.eos_token_id,
        *(words.convert_tokens_to_ids(t) for t in ("<|eot_id|>", "<|im_end|>", "<end_of_turn>")),
    )
    whole = {
        tuple(ids_of(words, template.into_user(row["prompt"]) if family == "Gemma" else row["prompt"], open_turn=True))
        for row in rows
    }
    for sequence in sequences_of(store):
        assert 1 <= sequence.start < len(sequence.tokens) <= max_length
        tokens = sequence.tokens.tolist()
        if policy != "truncate_prompt_start":
            assert tuple(tokens[: sequence.start]) in whole
        if policy == "truncate_completion" and len(tokens) == max_length:
            continue  # may be cut anywhere
        assert any(token in ends for token in tokens[-2:])  # the end of the turn, at most a line break behind it


def test_cut_completion_gets_no_end(tmp_path, words):
    for number, (text, _) in enumerate(FAMILIES.values()):
        words.chat_template = text
        rows = [pair("p", "one two three " * 60, "four five six " * 60, prompt=TURNS[:1])]
        store = store_of(tmp_path / str(number), rows, words, 120)
        assert store.counts["completion_cut"] == 1
        for sequence in sequences_of(store):
            assert len(sequence.tokens) == 120
            assert not set(sequence.tokens[sequence.start :].tolist()) & set(words.all_special_ids)
            assert "<" not in words.decode(sequence.tokens[sequence.start :])


def test_error_policy_names_shard_and_row(tmp_path, words):
    words.chat_template = GEMMA
    rows = [pair("a", "b", "c"), pair("a " * 60, "b", "c")]
    with pytest.raises(TrainError, match=r"data/train-00000\.parquet, row 1: \d+ tokens, more than max_length = 20"):
        store_of(tmp_path / "d", rows, words, 20, "error")


def test_messages_that_differ_in_the_names_of_their_parts_alone_are_rendered_apart(words):
    words.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}|{% endfor %}"
    messages = [{"role": "user", "content": "assistant"}, {"content": "user", "role": "assistant"}]
    texts = template.render(words, [[message] for message in messages], open_turn=False)
    assert texts == ["user: assistant|", "assistant: user|"]


def test_common_prefix():
    assert template.common_prefix(np.array([1, 2, 3]), np.array([1, 2])) == 2
    assert template.common_prefix(np.array([1, 2, 3]), np.array([1, 5, 3])) == 1
    assert template.common_prefix(np.array([2]), np.array([1])) == 0
