"""NVIDIA's HelpSteer2: a prompt and one answer a row, rated by people on five aspects (arXiv:2406.08673).

Each aspect is a number from 0 to 4. Two rows share a prompt; rows of one prompt are united later, by the prompt. A
score is one aspect, or a weighted sum of them; the default weights are those that NVIDIA recommends for making one
reward of the five (model card of Llama3-70B-SteerLM-RM), and they count against verbosity.

Quirks that this source knows:

- About 29 % of the prompts are conversations, written into one text with "<extra_id_1>Assistant" and "<extra_id_1>User"
  on a line of their own between the turns.
- `disagreements/` holds a list of all annotators' ratings where the main files hold one number; `aggregate` makes
  one of it.
- `preference/` holds comparisons in other columns and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

import msgspec
from annotated_types import MinLen

from prefkit.errors import UsageError
from prefkit.pairs import scores
from prefkit.pairs.records import BadRow, Completion, Message, Rated
from prefkit.pairs.scores import How, Score

Aspect = Literal["helpfulness", "correctness", "coherence", "complexity", "verbosity"]
Rating = float | list[float | None] | None

WEIGHTS: Mapping[Aspect, float] = {
    "helpfulness": 0.65,
    "correctness": 0.8,
    "coherence": 0.45,
    "complexity": 0.55,
    "verbosity": -0.4,
}
TURN = re.compile(r"\n<extra_id_1>(User|Assistant)\n")


class Row(msgspec.Struct):
    prompt: str
    response: str | msgspec.UnsetType | None = msgspec.UNSET
    helpfulness: Rating = None
    correctness: Rating = None
    coherence: Rating = None
    complexity: Rating = None
    verbosity: Rating = None


def helpsteer2(
    row: Row,
    *,
    score: Literal["weights", "helpfulness", "correctness", "coherence", "complexity", "verbosity"] = "weights",
    weights: Annotated[Mapping[Aspect, float], MinLen(1)] = WEIGHTS,
    aggregate: How = "mean",
) -> Iterator[Rated]:
    """HelpSteer2's rows: a prompt and an answer that people rated on five aspects from 0 to 4."""
    if score != "weights" and weights != WEIGHTS:
        raise UsageError(f'[[build.inputs]] helpsteer2: weights have no effect with score = "{score}"; leave one out.')
    if row.response is msgspec.UNSET:
        raise BadRow("other_subset", 'no "response": only the files with one rated answer a row are read')
    prompt = _turns(row.prompt)
    rated = {str(name): _rating(name, getattr(row, name), aggregate) for name in WEIGHTS}
    aspects = [(name, given.score) for name, given in rated.items() if given.score is not None]
    used: Mapping[Any, float] = weights if score == "weights" else {score: 1.0}
    fault = next((rated[name] for name in used if rated[name].reject), Score(None))
    answer = Completion(0, row.response, scores.weigh(aspects, used), None, aspects, fault.reject, fault.detail)
    yield Rated(prompt, [answer], "helpsteer2", absolute=True)


def _turns(prompt: str) -> list[Message]:
    first, *parts = TURN.split(prompt)
    rest = zip(parts[::2], parts[1::2], strict=True)
    turns = [Message("user", first), *(Message(role.lower(), text) for role, text in rest)]
    if any(earlier.role == later.role for earlier, later in pairwise(turns)) or turns[-1].role != "user":
        raise BadRow("not_a_transcript", "the turns of the prompt do not alternate, or do not end with the user's")
    return turns


def _rating(name: str, value: Rating, how: How) -> Score:
    given = [rating for rating in (value if isinstance(value, list) else [value]) if rating is not None]
    for rating in given:
        if not 0 <= rating <= 4:
            raise BadRow("rating_out_of_range", f"{name} is {rating:g}, not from 0 to 4")
    found = scores.aggregate(given, how)
    return found._replace(detail=f"{name}: {found.detail}") if found.reject else found
