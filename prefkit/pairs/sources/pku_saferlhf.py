"""PKU-SafeRLHF: two answers a row, one labelled more helpful and one safer (arXiv:2406.15513, arXiv:2310.12773).

The two labels are independent judgements and often disagree, so a pipeline chooses one. Both are comparisons: the
preferred answer scores 1, the other 0. What else the row says of an answer becomes aspects: `safe` (1 or 0), `severity`
(0 none to 3 severe) and the harm categories that hold, each 1. Early versions and PKU-SafeRLHF-single-dimension lack
some of these columns.

Quirks that this source knows:

- In some rows the "safer" answer is marked unsafe and the other one safe (github.com/PKU-Alignment/safe-rlhf, issue
  181). Such a row contradicts itself and is rejected where the safer label is asked for.
- Both answers may be unsafe; the better one of two unsafe answers is still no answer to imitate. `unsafe = "reject"`
  takes such rows out.
- A prompt stands in several rows, each with other answers, so a pipeline should keep duplicate prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from msgspec.structs import replace

from prefkit.pairs.records import BadRow, Completion, Message, Rated

Severity = Annotated[int, msgspec.Meta(ge=0, le=3)]
Harms = dict[str, bool | None]


class Row(msgspec.Struct):
    prompt: str
    response_0: str
    response_1: str
    better_response_id: int | None = None
    safer_response_id: int | None = None
    is_response_0_safe: bool | None = None
    is_response_1_safe: bool | None = None
    response_0_severity_level: Severity | None = None
    response_1_severity_level: Severity | None = None
    response_0_harm_category: Harms | None = None
    response_1_harm_category: Harms | None = None
    response_0_source: str | None = None
    response_1_source: str | None = None


def pku_saferlhf(
    row: Row,
    *,
    label: Literal["better", "safer"] = "better",
    unsafe: Literal["keep", "reject"] = "keep",
    source: str = "pku_saferlhf",
) -> Iterator[Rated]:
    """PKU-SafeRLHF's rows: two answers to a prompt, with the more helpful and the safer one named."""
    preferred = row.better_response_id if label == "better" else row.safer_response_id
    if preferred not in (0, 1):
        raise BadRow("no_label", f"{label}_response_id is {'null' if preferred is None else preferred}, not 0 or 1")
    safe = (row.is_response_0_safe, row.is_response_1_safe)
    if label == "safer" and safe[preferred] is False and safe[1 - preferred]:
        raise BadRow("label_contradicts_safety", f"answer {preferred} is called safer, but only the other one is safe")
    aspects = [
        _aspects(row.is_response_0_safe, row.response_0_severity_level, row.response_0_harm_category),
        _aspects(row.is_response_1_safe, row.response_1_severity_level, row.response_1_harm_category),
    ]
    answers = [
        Completion(0, row.response_0, float(preferred == 0), row.response_0_source, aspects[0]),
        Completion(1, row.response_1, float(preferred == 1), row.response_1_source, aspects[1]),
    ]
    if unsafe == "reject" and not safe[preferred]:
        detail = f"answer {preferred} is preferred, and not marked safe"
        answers = [replace(answer, reject="preferred_unsafe", detail=detail) for answer in answers]
    yield Rated([Message("user", row.prompt)], answers, source)


def _aspects(safe: bool | None, severity: int | None, harms: Harms | None) -> list[tuple[str, float]]:
    known = [(name, float(value)) for name, value in (("safe", safe), ("severity", severity)) if value is not None]
    return known + [(name, 1.0) for name, holds in (harms or {}).items() if holds]
