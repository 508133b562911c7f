"""Values of a raw row by column name, for sources whose columns are options.

A path names a column; a dot steps into nested objects. A column whose own name holds the dot goes first, since
tables that were flattened have such names. What is absent is None; what is of another type is a BadRow.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

from prefkit.pairs.records import BadRow


@dataclass(frozen=True)
class Names:
    """What is said of an option whose value names a column: of the row, or of each item of the list in the column that
    the option `within` names, where that is given."""

    within: str = ""


# The types of such options, by which `named` knows them; the second is for sources that may read a list of answers.
Column = Annotated[str, Names()]
AnswerColumn = Annotated[str, Names(within="completions")]

DECIMAL = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*", re.ASCII | re.IGNORECASE)
LABELS = {"true": True, "1": True, "false": False, "0": False}


def get(row: Mapping[str, Any], path: str | None) -> Any:
    """The value at `path`, or None where there is none."""
    if path is None or path in row:
        return row[path] if path is not None else None
    value: Any = row
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def has(row: Mapping[str, Any], path: str) -> bool:
    """Whether there is a column at `path`, whatever stands in it."""
    if path in row:
        return True
    value: Any = row
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return False
        value = value[key]
    return True


def need(row: Mapping[str, Any], path: str) -> Any:
    """The value at `path`; BadRow with the columns that there are, where it is absent or null."""
    value = get(row, path)
    if value is None:
        found = f'"{path}" is null' if has(row, path) else f'no "{path}"'
        raise BadRow("missing_column", f"{found}; the row has {', '.join(map(told, list(row)[:12])) or 'no columns'}")
    return value


def told(name: str) -> str:
    """The name of a column as it may stand in a sentence, in quotes where it begins or ends with white space."""
    return name if name.strip() == name != "" else f'"{name}"'


def text(row: Mapping[str, Any], path: str | None) -> str | None:
    """The text at `path`, or None; BadRow where it is something else."""
    value = get(row, path)
    if value is not None and not isinstance(value, str):
        raise BadRow("wrong_type", f'"{path}" is not text')
    return value


def label_of(value: Any) -> bool | None:
    """Whether a label says good: true or false, 1 or 0, also as text; None where it is none of these."""
    if isinstance(value, str):
        return LABELS.get(value.strip().lower())
    return bool(value) if isinstance(value, int) and value in (0, 1) else None


def number(value: Any, *, field: str, written: bool = False) -> float | None:
    """A finite number (decimals of Parquet are some); None where it is null, NaN or infinite; BadRow where it is none.

    With `written`, decimal numbers in text count as well and empty text is null: all that CSV has.
    """
    if written and isinstance(value, str):
        return _decimal(value, field)
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | None):
        raise BadRow("wrong_type", f'"{field}" is not a number')
    try:
        return float(value) if value is not None and math.isfinite(value) else None
    except OverflowError:
        raise BadRow("wrong_type", f'"{field}" is a number too large for a score') from None


def _decimal(value: str, field: str) -> float | None:
    if not value.strip():
        return None
    if DECIMAL.fullmatch(value) and math.isfinite(result := float(value)):
        return result
    raise BadRow("not_a_number", f'"{field}" is {value[:40]!r}, not a number')
