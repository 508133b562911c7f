"""Options as a pipeline file has them: what is written is read back, and lines for people fit the terminal."""

import io
import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from prefkit.toml import LEAST_WIDTH, as_toml, in_words, print_options

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = TEXT | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=8)


@given(VALUES)
def test_a_value_is_read_back_as_it_was(value: Any) -> None:
    assert tomllib.loads(f"value = {as_toml(value)}")["value"] == value


def test_keys_are_quoted_only_where_they_must_be() -> None:
    assert as_toml({"r": 16, "a b": "x", "": (1, 2)}) == '{ r = 16, "a b" = "x", "" = [1, 2] }'


def test_what_has_no_value_is_named_at_the_end() -> None:
    assert in_words({"a": 1, "b": None, "c": False, "d": None}) == "a = 1, c = false; without b, d"
    assert in_words({"a": None}) == "without a"
    assert in_words({}) == ""


@given(
    st.lists(
        st.tuples(st.text("abc [", max_size=14), st.dictionaries(st.text("xyz_", min_size=1), SCALARS)), min_size=1
    ),
    st.integers(20, 200),
)
def test_lines_fit_and_hold_everything(rows: list[tuple[str, dict[str, Any]]], width: int) -> None:
    printed = io.StringIO()
    print_options([(name, in_words(options)) for name, options in rows], Console(file=printed, width=width))
    margin = max(len(name) for name, _ in rows) + 2
    lines = printed.getvalue().split("\n")[:-1]
    assert all(len(line) <= margin + max(LEAST_WIDTH, width - margin) for line in lines)
    assert "".join("".join(line[margin:].split()) for line in lines) == "".join(
        "".join(in_words(options).split()) for _, options in rows
    )


def test_a_key_and_its_value_stand_on_one_line() -> None:
    printed = io.StringIO()
    options = {f"option_{number}": number for number in range(40)}
    print_options([("[[train]] dpo", in_words(options))], Console(file=printed, width=60))
    text = printed.getvalue()
    assert text.startswith("[[train]] dpo  option_0 = 0, option_1 = 1, ")
    assert all(f"option_{number} = {number}" in text for number in range(40))
    assert text.count("\n") > 5
