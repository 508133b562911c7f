"""UltraFeedback as released: an instruction a row, four completions with GPT-4's ratings (arXiv:2310.01377).

Quirks that this source knows (github.com/OpenBMB/UltraFeedback, and its issue #8):

- A rating is text, and "N/A" in about 5 % of honesty. Aspects without a rating are left out; 0 is off the scale of
  1 to 5 and counts as no rating.
- Some annotations are lists of ratings (several rubric scores); the aspect is their mean.
- 2,628 completions carry an overall score of 10 that meant 1. The maintainers' rule decides by the mean of the
  aspect ratings: up to 2 it was a 1, above 4 it was a 10, in between nobody knows, and the completion is rejected.
- Every completion was generated under its own system prompt. The usual binarisations compare across them and drop
  the system prompt; `system_prompt = "keep"` compares only completions that were given the same one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from prefkit.pairs.columns import DECIMAL
from prefkit.pairs.records import BadRow, Completion, Message, Rated, with_system


class Annotation(msgspec.Struct):
    rating: Any = msgspec.field(default=None, name="Rating")


class Answer(msgspec.Struct):
    response: str | None = None
    model: str | None = None
    custom_system_prompt: str | None = None
    overall_score: float | str | None = None
    fine_grained_score: float | str | None = msgspec.field(default=None, name="fine-grained_score")
    annotations: dict[str, Annotation | list[Annotation | None] | str | None] | None = None

    def aspects(self) -> list[tuple[str, float]]:
        """What was rated, and how."""
        return [(name, rating) for name, value in (self.annotations or {}).items() if (rating := _rating(value))]


class Row(msgspec.Struct):
    instruction: str
    completions: list[Answer]
    source: str = "ultrafeedback"


def ultrafeedback(
    row: Row,
    *,
    score: Literal["overall", "fine_grained", "mean_aspects"] = "overall",
    repair_tens: bool = True,
    system_prompt: Literal["drop", "keep"] = "drop",
) -> Iterator[Rated]:
    """UltraFeedback's raw rows: an instruction, and completions rated overall and by aspect."""
    if not row.completions:
        raise BadRow("no_completions", "the row lists no completions")
    answers = row.completions
    completions = [_completion(index, answer, score, repair_tens) for index, answer in enumerate(answers)]
    if system_prompt == "drop":
        yield Rated([Message("user", row.instruction)], completions, row.source, absolute=True)
        return
    systems = [answer.custom_system_prompt or None for answer in answers]
    for system in dict.fromkeys(systems):
        prompt = with_system(system, [Message("user", row.instruction)])
        mine = [one for one, own in zip(completions, systems, strict=True) if own == system]
        yield Rated(prompt, mine, row.source, absolute=True)


def _completion(index: int, answer: Answer, score: str, repair_tens: bool) -> Completion:
    if score == "mean_aspects":
        value = _mean(answer.aspects())
    else:
        value = _number(answer.overall_score if score == "overall" else answer.fine_grained_score)
    reject = detail = None
    if score == "overall" and repair_tens and value == 10:
        mean = _mean(answer.aspects())
        if mean is None or 2 < mean <= 4:
            seen = "no aspect is rated" if mean is None else f"the aspects' mean is {mean:g}"
            reject, detail = "ambiguous_ten", f"an overall score of 10 may have meant 1, and {seen}"
        elif mean <= 2:
            value = 1.0
    return Completion(index, answer.response, value, answer.model, answer.aspects, reject, detail)


def _mean(aspects: list[tuple[str, float]]) -> float | None:
    return math.fsum([rating for _, rating in aspects]) / len(aspects) if aspects else None


def _rating(annotation: Annotation | list[Annotation | None] | str | None) -> float | None:
    """The rating of one aspect, or None where it is missing, "N/A", or not above 0."""
    if isinstance(annotation, Annotation):
        rating = _number(annotation.rating)
        return rating if rating is not None and rating > 0 else None
    if isinstance(annotation, list):
        ratings = [rating for item in annotation if (rating := _rating(item)) is not None]
        return math.fsum(ratings) / len(ratings) if ratings else None
    return None


def _number(value: Any) -> float | None:
    """A finite number, also written as text; None for "N/A" and the like."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return _written(value)
    try:
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else None
    except OverflowError:  # an integer that no float holds
        return None


@functools.lru_cache(maxsize=1024)  # ratings are a few texts, a million times
def _written(text: str) -> float | None:
    return _number(float(text)) if DECIMAL.fullmatch(text) else None
