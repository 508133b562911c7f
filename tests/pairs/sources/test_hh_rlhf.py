"""HH transcripts."""

from __future__ import annotations

import pytest

from prefkit.pairs.records import BadRow
from prefkit.pairs.sources.hh_rlhf import Row, hh_rlhf


def test_transcripts_become_turns() -> None:
    start = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: how: are you?\n\nand\n\nAssistant:"
    (rated,) = hh_rlhf(Row(start + " well", start + " "))
    assert [(turn.role, turn.content) for turn in rated.prompt] == [
        ("user", "hi"), ("assistant", "hello"), ("user", "how: are you?\n\nand"),
    ]  # fmt: skip
    assert [(answer.response, answer.score) for answer in rated.completions] == [("well", 1.0), ("", 0.0)]


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ("\n\nHuman: a\n\nAssistant: x", "\n\nHuman: b\n\nAssistant: y", "prompts_differ"),
        ("\n\nHuman: a\n\nAssistant: x\n\nHuman: b", "\n\nHuman: a\n\nAssistant: y", "not_a_transcript"),
        ("hello", "\n\nHuman: a\n\nAssistant: y", "not_a_transcript"),
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant: x", "\n\nHuman: a\n\nAssistant: y", "roles_do_not_alternate"),
    ],
)
def test_what_is_no_comparison_of_answers(chosen: str, rejected: str, reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        list(hh_rlhf(Row(chosen, rejected)))
    assert caught.value.reason == reason
