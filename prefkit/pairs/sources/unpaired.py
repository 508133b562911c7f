"""Unpaired feedback, as KTO takes it (arXiv:2402.01306): a prompt, one answer and a thumb up or down a row.

`prompt` is text or messages; where a row has none, the last turn of `completion` is the answer and what stands before
it the prompt (one conversation a row, as LLaMA-Factory has it). A label is true or false, 1 or 0, or one of these four
written as text in any case, since CSV has only text; nothing else is taken for one.

Answers to one prompt from several rows are united later, and a prompt with both labels gives pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prefkit.pairs.columns import Column, get, label_of, need, text
from prefkit.pairs.records import BadRow, Completion, Rated, final_answer, messages, with_system, without_prompt


def unpaired(
    row: dict[str, Any],
    *,
    prompt: Column = "prompt",
    completion: Column = "completion",
    label: Column = "label",
    system: Column | None = None,
    model: Column | None = None,
    source: str = "unpaired",
    source_column: Column | None = None,
) -> Iterator[Rated]:
    """Rows of prompt, completion and label (good or bad) under column names of your choice, as for KTO."""
    turns = messages(need(row, completion), field=completion, text_role="assistant")
    if (given := get(row, prompt)) is not None:
        head = messages(given, field=prompt, text_role="user")
        turns = without_prompt(head, turns)
    else:
        head, turns = turns[:-1], turns[-1:]
        if not head:
            raise BadRow("missing_column", f'no "{prompt}", and "{completion}" is not a conversation that holds it')
    answer = Completion(0, final_answer(turns, field=completion), _label(get(row, label), label), text(row, model))
    yield Rated(with_system(text(row, system), head), [answer], text(row, source_column) or source, absolute=True)


def _label(value: Any, field: str) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    good = label_of(value)
    if good is None:
        raise BadRow("not_a_label", f'"{field}" is {value!r:.40}, not true or false')
    return float(good)
