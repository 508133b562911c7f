"""Columns by path, and numbers that are numbers."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefkit.pairs import columns
from prefkit.pairs.records import BadRow

ROW: dict[str, Any] = {"a": {"b": {"c": 1}, "d": None}, "a.d": 2, "e": "text", "f": [1]}


@pytest.mark.parametrize(
    ("path", "value"),
    [("a.b.c", 1), ("a.d", 2), ("e", "text"), ("a.x", None), ("e.x", None), ("f.0", None), ("", None), (None, None)],
)
def test_paths(path: str | None, value: Any) -> None:
    assert columns.get(ROW, path) == value


def test_what_must_be_there() -> None:
    assert columns.need(ROW, "a.b.c") == 1
    with pytest.raises(BadRow, match=r'missing_column: no "g"; the row has a, a\.d, e, f'):
        columns.need(ROW, "g")
    with pytest.raises(BadRow, match=r'missing_column: "a\.d" is null; the row has a$'):
        columns.need({"a": {"d": None}}, "a.d")
    with pytest.raises(BadRow, match=r'no "b"; the row has a, " b", ""$'):
        columns.need({"a": 1, " b": 2, "": 3}, "b")
    with pytest.raises(BadRow, match='wrong_type: "f" is not text'):
        columns.text(ROW, "f")


@given(st.floats() | st.integers())
def test_numbers(value: float) -> None:
    try:
        expected = float(value) if math.isfinite(value) else None
    except OverflowError:
        with pytest.raises(BadRow, match="too large"):
            columns.number(value, field="x")
    else:
        assert columns.number(value, field="x") == expected


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_written_by_python_is_read_back(value: float) -> None:
    assert columns.number(repr(value), field="x", written=True) == value


@pytest.mark.parametrize("value", [True, [1], {"x": 1}, "1"])
def test_what_is_no_number(value: Any) -> None:
    with pytest.raises(BadRow, match="wrong_type"):
        columns.number(value, field="x")


def test_decimals_of_parquet_are_numbers() -> None:
    assert columns.number(Decimal("4.10"), field="x") == 4.1
    assert columns.number(Decimal("NaN"), field="x") is None
