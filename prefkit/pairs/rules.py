"""A rule as it is applied: what it keeps, and what is said of what it rejects.

The detail of a reject begins with the rule's options. Then it tells what the rule measured, where its filter returns a
`Measured`; else, of each column that the rule looks at, the value, or the length of a text that is not short. Rejects
are published with the data set, so a detail quotes nothing that [build.redact] would replace, whether a pipeline asks
for that or not. A measure is taken again, of the rejected rows alone, which costs less than keeping all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import polars as pl

from prefkit.errors import UsageError
from prefkit.pairs.redact import KINDS, replace
from prefkit.pairs.scores import on_paper
from prefkit.resolve import Call

LONGEST_VALUE = 60  # bytes of a text that is quoted
MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))


class Measured(NamedTuple):
    """What a filter returns that has a measure to show: `keep` is true of what stays, `measure` a text."""

    keep: pl.Expr
    measure: pl.Expr


class Rule(NamedTuple):
    """`keep` is true of what stays; `options` in words and `measure` are what is said of a row that falls.

    In place of all that, `told` is the whole detail, and may look at rows that stay.
    """

    keep: pl.Expr
    options: str = ""
    measure: pl.Expr | None = None
    told: pl.Expr | None = None


def rule(call: Call) -> Rule:
    """The rule that a filter returns."""
    made: Any = call.call()
    keep, measure = made if isinstance(made, Measured) else (made, None)
    return Rule(keep, ", ".join(f"{name}={value!r}" for name, value in call.options.items()), measure)


@contextmanager
def blamed(name: str) -> Iterator[None]:
    """UsageError that names the filter where polars fails at what it asks."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        raise UsageError(f"[[build.filters]] {name} failed: {error}") from error


def detail(broken: Rule, rows: pl.DataFrame) -> pl.Series:
    """What is said of each row that a rule rejects, without personal data."""
    said = [pl.lit(broken.options)] if broken.options else []
    said += _values(broken.keep, rows) if broken.measure is None else [broken.measure]
    together = pl.concat_str(said, separator="; ", ignore_nulls=True) if said else pl.lit(None, pl.String)
    return replace(rows.with_columns(detail=together)["detail"], KINDS)


def _values(keep: pl.Expr, rows: pl.DataFrame) -> list[pl.Expr]:
    """The columns that an expression looks at: the value, or the length of a text. Messages count as the text of all
    their turns."""
    shown: list[pl.Expr] = []
    for name in sorted(set(keep.meta.root_names()) & set(rows.columns)):
        column, kind = pl.col(name), rows.schema[name]
        if kind == MESSAGES:
            column, kind = column.list.eval(pl.element().struct.field("content")).list.join("\n"), pl.String()
        if kind.is_nested():
            value = pl.format("{} entries", column.list.len()) if kind == pl.List else pl.lit("…")
        elif kind == pl.String:
            length = pl.format("{} characters", column.str.len_chars())
            value = pl.when(column.str.len_bytes() > LONGEST_VALUE).then(length).otherwise(column)
        else:  # 4.1 - 3.1 as on paper, not as 0.9999999999999996
            value = (on_paper(column) if kind == pl.Float64 else column).cast(pl.String)
        shown.append(pl.format(f"{name}: {{}}", value.fill_null("missing")))
    return shown
