"""Anthropic's HH-RLHF: two transcripts a row that differ in the assistant's last answer (arXiv:2204.05862).

A transcript is text in which "\\n\\nHuman:" and "\\n\\nAssistant:" begin the turns. The label is a human's choice,
with no score, so the chosen answer counts 1 and the rejected 0. A few rows compare answers to different
conversations; those are no preference over answers and are rejected.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import msgspec

from prefkit.pairs.records import BadRow, Completion, Message, Rated

TURN = re.compile(r"\n\n(Human|Assistant):")
ROLE = {"Human": "user", "Assistant": "assistant"}


class Row(msgspec.Struct):
    chosen: str
    rejected: str


def hh_rlhf(row: Row, *, source: str = "hh_rlhf") -> Iterator[Rated]:
    """HH-RLHF's rows: a chosen and a rejected transcript with Human and Assistant turns."""
    chosen, rejected = _turns(row.chosen, "chosen"), _turns(row.rejected, "rejected")
    prompt = chosen[:-1]
    if prompt != rejected[:-1]:
        raise BadRow("prompts_differ", "the two transcripts differ before the last answer")
    answers = [Completion(0, chosen[-1].content, 1.0), Completion(1, rejected[-1].content, 0.0)]
    yield Rated(prompt, answers, source)


def _turns(transcript: str, field: str) -> list[Message]:
    before, *parts = TURN.split(transcript)
    turns = [Message(ROLE[role], text.strip()) for role, text in zip(parts[::2], parts[1::2], strict=True)]
    if before.strip() or len(turns) < 2 or turns[-1].role != "assistant":
        raise BadRow("not_a_transcript", f'"{field}" does not begin with a Human turn and end with an Assistant turn')
    for earlier, later in pairwise(turns):
        if earlier.role == later.role:
            raise BadRow("roles_do_not_alternate", f'"{field}" has two {later.role} turns in a row')
    return turns
