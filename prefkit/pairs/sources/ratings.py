"""Ratings under any column names: prompt, response and score, from JSONL, CSV or Parquet.

A row holds

- one answer: `{"prompt": …, "response": …, "score": …}`; rows of one prompt are united later, by the prompt;
- a list of answers: `completions` names it, and `response`, `score`, `model` and `aspects` are columns of its items; or
- lists side by side: `response` and `score` are lists of one length, and so are the aspects and `model`, unless one
  model gave all answers.

A score is a finite number, also written as text, since CSV has nothing else; empty text is no score. A list in its
place is several annotators' scores, which `aggregate` makes one of. Nothing is guessed: an answer whose score is
something else is rejected, and the others of its row stay. An aspect that is no number is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from prefkit.pairs import scores
from prefkit.pairs.columns import AnswerColumn, Column, get, need, number, text
from prefkit.pairs.records import BadRow, Completion, Rated, messages, with_system
from prefkit.pairs.scores import How, Score


def ratings(
    row: dict[str, Any],
    *,
    prompt: Column = "prompt",
    response: AnswerColumn = "response",
    score: AnswerColumn = "score",
    model: AnswerColumn | None = None,
    system: Column | None = None,
    completions: Column | None = None,
    aspects: dict[str, AnswerColumn] | None = None,
    aggregate: How | None = None,
    higher_is_better: bool = True,
    absolute: bool = True,
    source: str = "ratings",
    source_column: Column | None = None,
) -> Iterator[Rated]:
    """Rows of prompt, response and score, or of lists of them, under column names of your choice.

    `aspects` maps names to columns. `absolute = false` says that scores compare only within a row, as ranks do.
    """
    head = messages(need(row, prompt), field=prompt, text_role="user")
    columns = aspects or {}

    def completion(index: int, item: Any) -> Completion:
        if not isinstance(item, dict):
            raise BadRow("wrong_type", "an answer is not an object with columns")
        rated = _score(get(item, score), score, aggregate)
        value = rated.score if rated.score is None or higher_is_better else 0.0 - rated.score
        found = [(name, _score(get(item, path), path, aggregate).score) for name, path in columns.items()]
        known = [(name, rating) for name, rating in found if rating is not None]
        by = text(item, model) or None
        return Completion(index, text(item, response), value, by, known, rated.reject, rated.detail)

    answers = []
    for index, item in enumerate(_items(row, completions, response, model, [score, *columns.values()])):
        try:
            answers.append(completion(index, item))
        except BadRow as bad:
            answers.append(Completion(index, None, reject=bad.reason, detail=bad.detail))
    if not answers:
        raise BadRow("no_completions", "the row lists no answers")
    yield Rated(with_system(text(row, system), head), answers, text(row, source_column) or source, absolute)


def _items(
    row: dict[str, Any], completions: str | None, response: str, model: str | None, others: Sequence[str]
) -> Sequence[Any]:
    """The answers of a row, each as a row of its own."""
    if completions is not None:
        items = need(row, completions)
        if not isinstance(items, list):
            raise BadRow("wrong_type", f'"{completions}" is not a list of answers')
        return items
    texts = need(row, response)
    if not isinstance(texts, list):
        return [row]
    lists = {path: get(row, path) for path in others} | {response: texts}
    if model is not None:
        models = get(row, model)
        lists[model] = models if isinstance(models, list) else [models] * len(texts)
    for path, values in lists.items():
        if values is not None and (not isinstance(values, list) or len(values) != len(texts)):
            raise BadRow("lengths_differ", f'"{path}" is not a list of {len(texts)}, as "{response}" is')
    return [{path: values[i] for path, values in lists.items() if values is not None} for i in range(len(texts))]


def _score(value: Any, field: str, how: How | None) -> Score:
    """A number, or one made of a list of several annotators' numbers; a reject where it is neither."""
    try:
        if not isinstance(value, list):
            return Score(number(value, field=field, written=True))
        given = [number(item, field=field, written=True) for item in value]
    except BadRow as bad:
        return Score(None, bad.reason, bad.detail)
    if how is None:
        return Score(None, "several_scores", f'"{field}" is a list; say with aggregate how to make one score of it')
    return scores.aggregate([item for item in given if item is not None], how)
