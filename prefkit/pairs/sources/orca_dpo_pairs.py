"""Orca DPO pairs: GPT's answer to an Orca question against a small model's (Intel), or as two judged answers (Argilla).

Intel/orca_dpo_pairs has `system`, `question`, `chosen` and `rejected`; nobody compared the two, GPT's answer is
simply called chosen. argilla/distilabel-intel-orca-dpo-pairs had GPT-4 rate both from 1 to 10: `input` is the question,
`rating[i]` belongs to `generations[i]`, and `status` says whether chosen and rejected were swapped, left unchanged, or
tie. Where a row has ratings, they are the scores, so ties are rejected and a margin can be asked for; a row whose
rating failed (null) has no scores. Without them, chosen scores 1 and rejected 0. Only Argilla's says which questions
are of GSM8K's training set (`in_gsm8k_train`); Intel's rows do not tell, so `gsm8k = "reject"` takes none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from prefkit.pairs.records import BadRow, Completion, Message, Rated

STATUS = ("tie", "swapped", "unchanged")


class Row(msgspec.Struct):
    chosen: str
    rejected: str
    question: str | None = None
    input: str | None = None
    system: str | None = None
    status: str | None = None
    generations: list[str] | None = None
    rating: list[float] | msgspec.UnsetType | None = msgspec.UNSET
    in_gsm8k_train: bool | None = None


def orca_dpo_pairs(
    row: Row, *, gsm8k: Literal["keep", "reject"] = "keep", source: str = "orca_dpo_pairs"
) -> Iterator[Rated]:
    """Orca DPO pairs: a system prompt, a question, a chosen and a rejected answer; rated in Argilla's version."""
    question = row.input if row.question is None else row.question
    if question is None:
        raise BadRow("missing_column", 'the row has neither "question" nor "input"')
    if row.in_gsm8k_train and gsm8k == "reject":
        raise BadRow("in_gsm8k_train", "the question is of GSM8K's training set")
    system = [Message("system", row.system)] if row.system and row.system.strip() else []
    better, worse = _scores(row)
    answers = [Completion(0, row.chosen, better), Completion(1, row.rejected, worse)]
    yield Rated([*system, Message("user", question)], answers, source)


def _scores(row: Row) -> tuple[float | None, float | None]:
    if row.rating is None:
        return None, None
    if row.status is not None and row.status not in STATUS:
        raise BadRow("no_label", f'status is "{row.status[:40]}", none of {", ".join(STATUS)}')
    if row.rating is msgspec.UNSET:
        return (0.5, 0.5) if row.status == "tie" else (1.0, 0.0)
    rated = dict(zip(row.generations or [], row.rating, strict=False))
    if len(row.rating) != len(row.generations or []) or not {row.chosen, row.rejected} <= rated.keys():
        raise BadRow("ratings_do_not_match", "the ratings do not belong to the chosen and the rejected answer")
    better, worse = rated[row.chosen], rated[row.rejected]
    if better < worse or (row.status == "tie" and better > worse):
        raise BadRow("score_contradicts_label", f"status {row.status}, but chosen rated {better:g}, rejected {worse:g}")
    return better, worse
