"""Ready-made pairs in the shapes that they come in."""

from __future__ import annotations

from typing import Any

import pytest

from prefkit.errors import UsageError
from prefkit.pairs.records import BadRow, Message, Rated
from prefkit.pairs.sources.pairs import pairs


def one(row: dict[str, Any], **options: Any) -> Rated:
    return next(iter(pairs(row, **options)))


def talk(*turns: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


def texts(rated: Rated) -> tuple[list[str], list[str | None]]:
    return [message.content for message in rated.prompt], [answer.response for answer in rated.completions]


def test_strings() -> None:
    assert texts(one({"prompt": "Q", "chosen": "good", "rejected": "bad"})) == (["Q"], ["good", "bad"])


def test_explicit_messages_with_and_without_the_prompt_in_front() -> None:
    short = {"prompt": talk("Q"), "chosen": talk("Q", "good")[1:], "rejected": talk("Q", "bad")[1:]}
    long = {"prompt": talk("Q"), "chosen": talk("Q", "good"), "rejected": talk("Q", "bad")}
    mixed = {"prompt": "Q", "chosen": talk("Q", "good"), "rejected": talk("Q", "bad")}
    assert texts(one(short)) == texts(one(long)) == texts(one(mixed)) == (["Q"], ["good", "bad"])


def test_an_implicit_prompt_is_the_longest_common_prefix_of_turns() -> None:
    row = {"chosen": talk("a", "b", "c", "good"), "rejected": talk("a", "b", "c", "bad")}
    assert texts(one(row)) == (["a", "b", "c"], ["good", "bad"])


def test_an_implicit_prompt_leaves_identical_answers_to_the_rules() -> None:
    row = {"chosen": talk("a", "same"), "rejected": talk("a", "same")}
    assert texts(one(row)) == (["a"], ["same", "same"])


def test_sharegpt_and_typed_content_parts() -> None:
    row = {
        "conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Q"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"role": "assistant", "content": [{"type": "text", "value": "b"}, {"type": "text", "text": "ad"}]},
    }
    rated = one(row, prompt="conversations")
    assert rated.prompt == [Message("system", "S"), Message("user", "Q")]
    assert texts(rated)[1] == ["good", "bad"]


def test_columns_scores_and_models_by_option() -> None:
    row = {"q": "Q", "sys": "S", "a": {"x": "good"}, "b": "bad", "m": {"ca": 4, "cb": 2.5}, "by": "gpt", "from": "set"}
    rated = one(
        row, prompt="q", system="sys", chosen="a.x", rejected="b", chosen_score="m.ca", rejected_score="m.cb",
        chosen_model="by", source_column="from",
    )  # fmt: skip
    assert [answer.score for answer in rated.completions] == [4, 2.5]
    assert rated.completions[0].model == "gpt"
    assert rated.source == "set"
    assert rated.prompt[0] == Message("system", "S")


def test_a_system_column_goes_in_front_of_every_kind_of_prompt() -> None:
    for row in (
        {"prompt": "Q", "chosen": talk("Q", "good"), "rejected": talk("Q", "bad")},
        {"prompt": talk("Q"), "chosen": "good", "rejected": "bad"},
        {"chosen": talk("Q", "good"), "rejected": talk("Q", "bad")},
    ):
        assert texts(one(row | {"sys": "S"}, system="sys")) == (["S", "Q"], ["good", "bad"])


def test_without_score_columns_the_label_is_the_score() -> None:
    assert [a.score for a in one({"prompt": "Q", "chosen": "a", "rejected": "b"}).completions] == [1.0, 0.0]


def test_a_missing_score_is_not_guessed() -> None:
    row = {"prompt": "Q", "chosen": "a", "rejected": "b", "s": 3}
    assert [a.score for a in one(row, chosen_score="s", rejected_score="t").completions] == [3, None]


@pytest.mark.parametrize(
    ("row", "options", "reason"),
    [
        ({"prompt": "Q", "chosen": "a"}, {}, "missing_column"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, {}, "wrong_type"),
        ({"prompt": "Q", "chosen": True, "rejected": "b"}, {}, "wrong_type"),
        ({"chosen": talk("x", "a"), "rejected": talk("y", "b")}, {}, "prompts_differ"),
        ({"chosen": "a", "rejected": "b"}, {}, "prompts_differ"),
        ({"prompt": "Q", "chosen": talk("Q", "a", "more", "b"), "rejected": talk("Q", "c")}, {}, "not_one_answer"),
        ({"prompt": "Q", "chosen": [], "rejected": "b"}, {}, "not_one_answer"),
        ({"prompt": [{"role": "boss", "content": "Q"}], "chosen": "a", "rejected": "b"}, {}, "unknown_role"),
        ({"prompt": [{"role": "user", "content": None}], "chosen": "a", "rejected": "b"}, {}, "wrong_type"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "chosen": "a", "rejected": "b"},
            {},
            "not_text",
        ),
        (
            {
                "prompt": "Q",
                "chosen": {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]},
                "rejected": "b",
            },
            {},
            "not_text",
        ),
        (
            {"prompt": "Q", "chosen": "a", "rejected": "b", "s": 1, "t": 2},
            {"chosen_score": "s", "rejected_score": "t"},
            "score_contradicts_label",
        ),
        (
            {"prompt": "Q", "chosen": "a", "rejected": "b", "s": "high"},
            {"chosen_score": "s", "rejected_score": "s"},
            "not_a_number",
        ),
        (
            {"prompt": "Q", "chosen": "a", "rejected": "b", "s": 10**400},
            {"chosen_score": "s", "rejected_score": "s"},
            "wrong_type",
        ),
    ],
)
def test_bad_rows_say_why(row: dict[str, Any], options: dict[str, str], reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        one(row, **options)
    assert caught.value.reason == reason
    assert caught.value.detail


def test_a_score_for_one_side_alone_is_refused() -> None:
    with pytest.raises(UsageError, match="chosen_score and rejected_score go together"):
        list(pairs({"prompt": "q", "chosen": "a", "rejected": "b"}, chosen_score="s"))
