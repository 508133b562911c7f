"""Ready-made pairs: a prompt, a chosen and a rejected answer a row, as most preference sets on the hub have them.

`prompt` is text or messages, or is missing: then it is what both conversations share from the start (their longest
common prefix of turns). `chosen` and `rejected` are text, one message, or messages, with or without the prompt in
front. Scores are optional; where their columns are given, a missing score rejects the answer, a tie rejects
the pair later, and a chosen answer scored below the rejected one contradicts itself and is rejected here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from prefkit.pairs.records import BadRow, Completion, Message, Rated, final_answer, messages, shared_turns


def pairs(
    row: dict[str, Any],
    *,
    prompt: str | None = "prompt",
    chosen: str = "chosen",
    rejected: str = "rejected",
    system: str | None = None,
    chosen_score: str | None = None,
    rejected_score: str | None = None,
    chosen_model: str | None = None,
    rejected_model: str | None = None,
    source: str = "pairs",
    source_column: str | None = None,
) -> Iterator[Rated]:
    """Rows of prompt, chosen and rejected under column names of your choice; a dot steps into a nested column."""
    head = messages(value, field=str(prompt), text_role="user") if (value := _get(row, prompt)) is not None else None
    better = messages(_need(row, chosen), field=chosen, text_role="assistant")
    worse = messages(_need(row, rejected), field=rejected, text_role="assistant")
    if head is None:
        head = better[: min(shared_turns(better, worse), len(better) - 1, len(worse) - 1)]
        if not head:
            raise BadRow("prompts_differ", f'"{chosen}" and "{rejected}" share no first turn that could be the prompt')
    better, worse = _after(head, better), _after(head, worse)
    if (text := _text(row, system)) and (not head or head[0].role != "system"):
        head = [Message("system", text), *head]
    scores: tuple[float | None, float | None] = (1.0, 0.0)
    if chosen_score or rejected_score:
        scores = _score(row, chosen_score), _score(row, rejected_score)
        if scores[0] is not None and scores[1] is not None and scores[0] < scores[1]:
            raise BadRow("score_contradicts_label", f"chosen is scored {scores[0]:g}, rejected {scores[1]:g}")
    answers = [
        Completion(0, final_answer(better, field=chosen), scores[0], _text(row, chosen_model)),
        Completion(1, final_answer(worse, field=rejected), scores[1], _text(row, rejected_model)),
    ]
    yield Rated(head, answers, _text(row, source_column) or source)


def _after(head: Sequence[Message], turns: list[Message]) -> list[Message]:
    """`turns` without the prompt, where they repeat it."""
    return turns[len(head) :] if shared_turns(head, turns) == len(head) else turns


def _get(row: dict[str, Any], path: str | None) -> Any:
    if path is None:
        return None
    value: Any = row
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _need(row: dict[str, Any], path: str) -> Any:
    value = _get(row, path)
    if value is None:
        raise BadRow("missing_column", f'no "{path}"; the row has {", ".join(list(row)[:12]) or "no columns"}')
    return value


def _text(row: dict[str, Any], path: str | None) -> str | None:
    value = _get(row, path)
    if value is not None and not isinstance(value, str):
        raise BadRow("wrong_type", f'"{path}" is not text')
    return value


def _score(row: dict[str, Any], path: str | None) -> float | None:
    value = _get(row, path)
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise BadRow("wrong_type", f'"{path}" is not a number')
    try:
        return value if value is None else float(value)
    except OverflowError:
        raise BadRow("wrong_type", f'"{path}" is a number too large for a score') from None
