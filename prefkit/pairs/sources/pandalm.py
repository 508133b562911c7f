"""PandaLM's test set: two tuned models' answers to an instruction, and three people's votes (arXiv:2306.05087).

A vote is 1 or 2 for the better answer, 0 for a tie. The votes of a row become one by `aggregate`: the label that most
gave, or the one that all gave; where there is none, both answers are rejected as `annotators_split` or
`annotators_disagree`. An agreed tie scores both answers 0.5, and the pipeline rejects it as `tied`. A few answers are
not text but JSON `true`. `cmp_key` names the models, first and second answer's in this order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from prefkit.pairs import scores
from prefkit.pairs.records import BadRow, Completion, Message, Rated

BY_VOTE = {0: (0.5, 0.5), 1: (1.0, 0.0), 2: (0.0, 1.0)}


class Row(msgspec.Struct):
    instruction: str
    response1: Any
    response2: Any
    annotator1: int
    annotator2: int
    annotator3: int
    input: str | None = None
    cmp_key: str | None = None


def pandalm(
    row: Row, *, aggregate: Literal["majority", "unanimous"] = "majority", source: str = "pandalm"
) -> Iterator[Rated]:
    """PandaLM's test set: an instruction, two answers, and three people's votes for one of them or a tie."""
    votes = [row.annotator1, row.annotator2, row.annotator3]
    if not BY_VOTE.keys() >= set(votes):
        raise BadRow("no_label", f"the votes are {votes}, not 0, 1 or 2")
    agreed = scores.aggregate(votes, aggregate)
    marks = (None, None) if agreed.score is None else BY_VOTE[int(agreed.score)]
    models = (row.cmp_key or "").split("_")
    answers = [
        Completion(index, text, marks[index], models[index] if len(models) == 2 else None)
        if isinstance(text, str)
        else Completion(index, None, reject="not_text", detail=f"the answer is of type {type(text).__name__}")
        for index, text in enumerate((row.response1, row.response2))
    ]
    if agreed.reject:
        answers = [replace(answer, reject=agreed.reject, detail=agreed.detail) for answer in answers]
    question = f"{row.instruction}\n\n{row.input}" if row.input else row.instruction
    yield Rated([Message("user", question)], answers, source)
