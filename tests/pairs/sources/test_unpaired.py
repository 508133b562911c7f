"""Unpaired feedback: one answer and its label, in the shapes that they come in."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from prefkit.pairs.text import prompt_id
from tests.pairs.sources.reading import one, only, rated, read, turns

FOUND = read("unpaired", "unpaired")


def test_the_fixture_is_read_as_it_should_be() -> None:
    assert [only(FOUND[number]).score for number in range(1, 7)] == [1, 0, 1, 0, 1, None]
    assert [only(FOUND[number]).response for number in (1, 3, 4, 5)] == ["Chat.", "Chien.", "Perro.", "Oiseau."]
    assert [FOUND[number] for number in range(7, 11)] == ["not_a_label"] * 2 + ["missing_column"] * 2
    assert all(rated(FOUND[number]).absolute for number in range(1, 7))


def test_prompts_are_equal_however_they_are_written() -> None:
    assert turns(FOUND[3]) == turns(FOUND[4]) == [("user", "Translate “dog” into French.")]
    assert [role for role, _ in turns(FOUND[5])] == ["user", "assistant", "user"]


def test_columns_by_option() -> None:
    row = {"q": "Q", "a": {"text": "A"}, "up": False, "sys": "S", "by": "model-a", "set": "app"}
    found = one(
        "unpaired", row, prompt="q", completion="a.text", label="up", system="sys", model="by", source_column="set"
    )
    assert turns(found) == [("system", "S"), ("user", "Q")]
    assert (only(found).score, only(found).model, rated(found).source) == (0, "model-a", "app")


def test_labels_that_are_none() -> None:
    for label in ("yes", "1.0", 1.0, -1, [True], {"up": True}):
        assert one("unpaired", {"prompt": "Q", "completion": "A", "label": label}) == "not_a_label"


def test_labels_as_csv_has_them() -> None:
    for text, score in (("True", 1), ("false", 0), (" 1 ", 1), ("0", 0), ("", None)):
        assert only(one("unpaired", {"prompt": "Q", "completion": "A", "label": text})).score == score


def test_answers_that_are_none() -> None:
    question = [{"role": "user", "content": "Q"}]
    assert one("unpaired", {"completion": question * 2, "label": True}) == "not_one_answer"
    assert one("unpaired", {"prompt": "Q", "completion": question, "label": True}) == "not_one_answer"
    assert one("unpaired", {"prompt": "Q", "completion": [], "label": True}) == "not_one_answer"


def test_real_conversations(real_data: Path) -> None:
    raw = json.loads((real_data / "llamafactory" / "kto_en_demo.json").read_text(encoding="utf-8"))
    found = read("unpaired", raw, completion="messages")
    labels = Counter(only(answer).score for answer in found.values())
    assert labels == {1.0: sum(row["label"] for row in raw), 0.0: sum(not row["label"] for row in raw)}
    for row, answer in zip(raw, found.values(), strict=True):
        assert [*turns(answer), ("assistant", only(answer).response)] == [
            (turn["role"], turn["content"]) for turn in row["messages"]
        ]
    both = Counter(json.dumps(row["messages"][:-1]) for row in raw)
    ids = Counter(prompt_id(rated(answer).prompt) for answer in found.values())
    assert sorted(ids.values()) == sorted(both.values()), "rows of one prompt meet under one id"
