"""Rules: one function a rule, its options in, a polars expression out; true keeps.

A rule over the columns of CANDIDATES judges each candidate, before duplicates are looked for; one that needs a column
of PAIRS (`margin`, `chosen`, …) judges each pair. Which of the two follows from the columns that the expression
names, so a rule is nothing but its expression. An expression must judge each row by itself, or within its `group`: rows
come in batches whose borders mean nothing. The function's name is the reject reason. A null verdict rejects: a
rule that cannot be decided was not passed.

Lengths are in characters (Unicode code points), which needs no tokenizer and means the same in every language.
"""

from __future__ import annotations

from typing import Annotated

import polars as pl
from pydantic import Field

Count = Annotated[int, Field(ge=0)]


def prompt_length(*, min_characters: Count = 1, max_characters: Count = 20_000) -> pl.Expr:
    """Keep prompts whose turns together have between min_characters and max_characters."""
    return _message_characters("prompt").is_between(min_characters, max_characters)


def response_length(*, min_characters: Count = 1, max_characters: Count = 20_000) -> pl.Expr:
    """Keep responses with between min_characters and max_characters, outer white space not counted."""
    return pl.col("response").str.strip_chars().str.len_chars().is_between(min_characters, max_characters)


def sources(*, allow: list[str] | None = None, deny: list[str] | None = None) -> pl.Expr:
    """Keep rows by the name of their source: those in allow (if given), none in deny."""
    allowed = pl.lit(True) if allow is None else pl.col("source").is_in(allow)
    return allowed & ~pl.col("source").is_in(deny or [])


def languages(*, allow: list[str], min_probability: Annotated[float, Field(ge=0, le=1)] = 0.5) -> pl.Expr:
    """Keep prompts tagged as one of the allowed languages with at least min_probability."""
    return pl.col("lang").is_in(allow) & (pl.col("lang_prob") >= min_probability)


def min_margin(*, margin: Annotated[float, Field(ge=0)]) -> pl.Expr:
    """Keep pairs whose chosen answer is scored at least margin above the rejected one."""
    return pl.col("margin") >= margin


def _message_characters(column: str) -> pl.Expr:
    return pl.col(column).list.eval(pl.element().struct.field("content").str.len_chars()).list.sum()
