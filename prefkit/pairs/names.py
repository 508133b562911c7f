"""Column names that people give to prompts, answers and scores, and the options of a source that follow from them.

Names are compared without case, and "-" and " " count as "_"; a dotted name reaches into nested objects. The first name
of a list that a table has is taken, but for scores: where several columns are numbers and go by names of scores, none
is better than another, unless one is called just that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from prefkit.pairs.columns import DECIMAL, get, label_of

PROMPT = (
    "prompt instruction question query input context problem user_input user prompt_text messages conversation "
    "conversations"
)
CHOSEN = (
    "chosen:rejected preferred:rejected preferred:dispreferred accepted:rejected better:worse winner:loser win:lose "
    "good:bad positive:negative best:worst w:l"
)
BESIDE = {"model", "name", "score", "rating", "reward", "id", "index"}  # what is said of an answer is none
RESPONSE = "response answer completion output reply generation model_output text content"
RESPONSES = "completions responses answers outputs candidates generations replies"
SCORE = (
    "score rating reward overall_score overall total quality stars grade mark points preference_score human_score "
    "helpfulness correctness coherence accuracy relevance"
)
CERTAIN = ("score", "rating", "overall_score", "reward")  # of several, the first of these is the one
LABEL = "label thumbs_up thumbs liked is_good good desirable accepted is_correct correct feedback"
MODEL = "model model_name generator by"
SYSTEM = "system system_prompt"
COLUMN_OPTIONS = (  # of the sources for any table
    "prompt response completions score chosen rejected chosen_score rejected_score completion label model system"
).split()
SOURCE = "source dataset subset"


@dataclass(frozen=True)
class Proposal:
    """Options of a source; of `unclear` ones, the columns among which a person must choose."""

    options: dict[str, Any]
    unclear: Mapping[str, Sequence[str]] = field(default_factory=dict)


class Columns:
    """The columns of some rows, found by usual names, or as the options that are `given` say."""

    def __init__(self, tables: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> None:
        self.tables = tables
        self.given = given
        self.paths = list(dict.fromkeys(path for table in tables for path in _paths(table)))

    def named(self, usual: str, kinds: tuple[type, ...] = (str, list, dict)) -> list[str]:
        """Columns that go by one of the usual names and hold values of these types, in the order of the names."""
        return [
            path
            for name in usual.split()
            for path in self.paths
            if _plain(path.rpartition(".")[2]) == name and self.holds(path, kinds)
        ]

    def top(self, usual: str, kinds: tuple[type, ...] = (str, list, dict)) -> list[str]:
        """The same, without what is nested."""
        return [path for path in self.named(usual, kinds) if any(path in table for table in self.tables)]

    def meant(self, option: str, usual: str, kinds: tuple[type, ...] = (str, list, dict)) -> list[str]:
        """Columns that an option may mean: the one that is given, or those of usual names that are not nested."""
        return [self.given[option]] if option in self.given else self.top(usual, kinds)

    def items(self, path: str) -> list[dict[str, Any]]:
        """The objects in a column of lists."""
        lists = [value for value in self.values(path) if isinstance(value, list)]
        return [item for items in lists for item in items if isinstance(item, dict)]

    def inner_paths(self) -> list[str]:
        """Columns of the objects that lists hold, by their names within these."""
        return list(dict.fromkeys(name for path in self.paths for name in Columns(self.items(path), {}).paths))

    def told(self) -> list[str]:
        """The columns as a person would be told of them: nested ones in place of what holds them."""
        leaves = [path for path in self.paths if not any(other.startswith(f"{path}.") for other in self.paths)]
        within = {path: Columns(self.items(path), {}).told() for path in leaves}
        return [f"{path} (a list of {', '.join(inner)})" if (inner := within[path]) else path for path in leaves]

    def values(self, path: str) -> list[Any]:
        """What stands in a column, without nulls."""
        return [value for table in self.tables if (value := get(table, path)) is not None]

    def holds(self, path: str, kinds: tuple[type, ...]) -> bool:
        """Whether most of what stands in a column is of these types."""
        values = self.values(path)
        return 2 * sum(isinstance(value, kinds) for value in values) > len(values)

    def numbers(self, usual: str = SCORE) -> list[str]:
        """Columns of numbers, also written as text, or of lists of them, by usual names of scores."""
        return [path for path in self.named(usual, (object,)) if 2 * sum(map(_is_number, self.values(path))) > 0]


def of_pairs(columns: Columns) -> Iterator[Proposal]:
    """Options of the source `pairs`: both answers by name, the prompt by name or as what both share."""
    for chosen, rejected in _sides(columns):
        more = _of_pair_scores(columns, chosen, rejected) | _others(columns, model=False)
        for side, name in (("chosen", chosen), ("rejected", rejected)):
            models = columns.top(f"{_plain(name)}_model {_plain(name)}_model_name model_{_plain(name)}", (str,))
            more |= {f"{side}_model": models[0]} if models else {}
        for prompt in [*columns.meant("prompt", PROMPT), *([] if "prompt" in columns.given else [""])]:
            yield Proposal({"prompt": prompt, "chosen": chosen, "rejected": rejected, **more})


def _sides(columns: Columns) -> Iterator[tuple[str, str]]:
    """Two columns whose names differ in one word, as chosen_text and rejected_text do; the shortest names first."""
    if {"chosen", "rejected"} <= columns.given.keys():
        yield columns.given["chosen"], columns.given["rejected"]
        return
    for good, bad in (both.split(":") for both in CHOSEN.split()):
        for path in sorted(columns.paths, key=len):
            words = _plain(path).split("_")
            partner = path.lower().replace(good, bad)
            partners = [other for other in columns.paths if other.lower() == partner]
            sides = [path, *partners]
            texts = all(columns.holds(side, (str, list, dict)) for side in sides)
            if good in words and not BESIDE & set(words) and len(sides) == 2 and texts:
                yield path, partners[0]


def _of_pair_scores(columns: Columns, chosen: str, rejected: str) -> dict[str, Any]:
    """Columns of both scores, if at least half of the rows have them: a pair without would be rejected."""
    for pattern in ("{}_score", "score_{}", "{}_rating", "rating_{}", "{}_reward"):
        scores = [columns.numbers(pattern.format(_plain(name))) for name in (chosen, rejected)]
        if all(scores) and 2 * len(columns.values(scores[0][0])) >= len(columns.tables):
            return {"chosen_score": scores[0][0], "rejected_score": scores[1][0]}
    return {}


def of_unpaired(columns: Columns) -> Iterator[Proposal]:
    """Options of the source `unpaired`: a label that is true or false, or 1 or 0, and nothing else."""
    for label in columns.meant("label", LABEL, (bool, int, str)):
        values = columns.values(label)
        if 4 * sum(label_of(value) is not None for value in values) < 3 * len(values):
            continue  # a scale
        for completion in columns.meant("completion", f"{RESPONSE} messages conversation conversations"):
            prompts = [path for path in columns.meant("prompt", PROMPT) if path != completion]
            for prompt in [{"prompt": path} for path in prompts] or [{}]:  # the turns before the answer may be it
                yield Proposal({**prompt, "completion": completion, "label": label} | _others(columns))


def of_ratings(columns: Columns) -> Iterator[Proposal]:
    """Options of the source `ratings`: an answer a row, a list of answers as objects, or lists side by side."""
    for prompt in columns.meant("prompt", PROMPT):
        for completions in columns.meant("completions", RESPONSES, (list,)):
            within = Columns(columns.items(completions), columns.given)
            for response in within.meant("response", RESPONSE, (str,)):
                named = {"prompt": prompt, "completions": completions, "response": response}
                yield from _scored(within, named, _others(within, outside=columns))
        if "completions" not in columns.given:
            answers = [*columns.meant("response", RESPONSE), *columns.meant("response", RESPONSES, (list,))]
            for response in [path for path in dict.fromkeys(answers) if path != prompt]:
                yield from _scored(columns, {"prompt": prompt, "response": response}, _others(columns))


def _scored(columns: Columns, named: dict[str, Any], others: dict[str, Any]) -> Iterator[Proposal]:
    """With the column of the scores; unclear if there are several, and none is called just score."""
    if "score" in columns.given:
        yield Proposal(named | others)
        return
    plurals = " ".join(f"{name}s" for name in SCORE.split())
    scores = [path for path in columns.numbers(f"{SCORE} {plurals}") if path not in named.values()]
    certain = [path for path in scores if _plain(path).removesuffix("s") in CERTAIN]
    chosen = (certain or scores)[:1]
    unclear = {"score": scores} if len(scores) > 1 and not certain else {}
    for score in chosen:
        lists = [value for value in columns.values(score) if isinstance(value, list)]
        aggregate = {"aggregate": "mean"} if lists and not columns.holds(str(named["response"]), (list,)) else {}
        yield Proposal(named | {"score": score} | aggregate | others, unclear)
    ranks = columns.numbers("rank ranking") if not chosen else []
    for rank in ranks[:1]:  # 1 is best, and says nothing beyond its row
        yield Proposal(named | {"score": rank, "higher_is_better": False, "absolute": False} | others)


def _others(columns: Columns, *, model: bool = True, outside: Columns | None = None) -> dict[str, Any]:
    """Columns that a source takes besides; `columns` are those of an answer, `outside` those of its row."""
    row = outside or columns
    found = {
        "model": columns.top(MODEL, (str, list)) if model else [],
        "system": row.top(SYSTEM, (str,)),
        "source_column": row.top(SOURCE, (str,)),
    }
    return {option: paths[0] for option, paths in found.items() if paths}


def _paths(table: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """Names of the columns, and dotted those of what is nested in them."""
    for name, value in table.items():
        yield f"{before}{name}"
        if isinstance(value, dict) and before.count(".") < 3:
            yield from _paths(value, f"{before}{name}.")


def _plain(name: str) -> str:
    return name.rpartition(".")[2].lower().replace("-", "_").replace(" ", "_")


def _is_number(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(_is_number, value))
    if isinstance(value, str):
        return DECIMAL.fullmatch(value) is not None
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)
