"""Ready-made pairs: a prompt, a chosen and a rejected answer a row, as most preference sets on the hub have them.

`prompt` is text or messages, or is missing, or not looked at (`prompt = ""`): then it is what both conversations share
from the start (their longest common prefix of turns). `chosen` and `rejected` are text, one message, or messages, with
or without the prompt in front. Scores are optional; where their columns are given, a missing score rejects the answer,
a tie rejects the pair later, and a chosen answer scored below the rejected one contradicts itself and is rejected here.
Numbers written as text count as well, since CSV has only text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prefkit.errors import UsageError
from prefkit.pairs.columns import Column, get, need, number, text
from prefkit.pairs.records import (
    BadRow,
    Completion,
    Rated,
    final_answer,
    messages,
    shared_turns,
    with_system,
    without_prompt,
)


def pairs(
    row: dict[str, Any],
    *,
    prompt: Column | None = "prompt",
    chosen: Column = "chosen",
    rejected: Column = "rejected",
    system: Column | None = None,
    chosen_score: Column | None = None,
    rejected_score: Column | None = None,
    chosen_model: Column | None = None,
    rejected_model: Column | None = None,
    source: str = "pairs",
    source_column: Column | None = None,
) -> Iterator[Rated]:
    """Rows of prompt, chosen and rejected under column names of your choice; a dot steps into a nested column."""
    if bool(chosen_score) != bool(rejected_score):
        raise UsageError("[[build.inputs]] pairs: chosen_score and rejected_score go together; name both columns.")
    head = messages(value, field=str(prompt), text_role="user") if (value := get(row, prompt)) is not None else None
    better = messages(need(row, chosen), field=chosen, text_role="assistant")
    worse = messages(need(row, rejected), field=rejected, text_role="assistant")
    if head is None:
        head = better[: min(shared_turns(better, worse), len(better) - 1, len(worse) - 1)]
        if not head:
            raise BadRow("prompts_differ", f'"{chosen}" and "{rejected}" share no first turn that could be the prompt')
    better, worse = without_prompt(head, better), without_prompt(head, worse)
    scores: tuple[float | None, float | None] = (1.0, 0.0)
    if chosen_score:
        scores = (
            number(get(row, chosen_score), field=str(chosen_score), written=True),
            number(get(row, rejected_score), field=str(rejected_score), written=True),
        )
        if scores[0] is not None and scores[1] is not None and scores[0] < scores[1]:
            raise BadRow("score_contradicts_label", f"chosen is scored {scores[0]:g}, rejected {scores[1]:g}")
    answers = [
        Completion(0, final_answer(better, field=chosen), scores[0], text(row, chosen_model)),
        Completion(1, final_answer(worse, field=rejected), scores[1], text(row, rejected_model)),
    ]
    yield Rated(with_system(text(row, system), head), answers, text(row, source_column) or source)
