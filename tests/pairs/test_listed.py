"""A name in the list of a filter that nothing has is said: it denies nothing, or allows nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefkit.config import load_pipeline
from prefkit.errors import DataError
from prefkit.manifest import Manifest
from prefkit.pairs import listed
from prefkit.pairs.build import build_pairs

ROWS = [
    {"prompt": f"What is {n} good for?", "chosen": f"For {n}.", "rejected": f"No {n}.", "of": of, "by": by}
    for n, (of, by) in enumerate([("truthful_qa", "m1"), ("flan", "m2"), ("evol", None), ("flan", "m1")] * 3)
]


def build(
    folder: Path, *filters: dict[str, Any], cut: int = 1000, rows: list[dict[str, Any]] = ROWS, **limit: int
) -> Manifest:
    (folder / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    lines = ["[[build.filters]]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in one.items()) for one in filters]
    names = 'source_column = "of"\nchosen_model = "by"\n' if rows else ""
    text = f'[build]\nchunk_bytes = {cut}\n[[build.inputs]]\nuse = "pairs"\n{names}' + "\n".join(lines)
    (folder / "p.toml").write_text(text)
    given = [str(folder / "a.jsonl")]
    return build_pairs(
        load_pipeline(folder / "p.toml"), folder / "out", given=given, overwrite=True, with_report=False, **limit
    )


@pytest.mark.parametrize("cut", [1, 1000, 100_000])
def test_what_was_not_met_is_said_with_the_likely_name(tmp_path: Path, cut: int) -> None:
    denied = {"use": "sources", "deny": ["truthfulqa", "flan"]}
    allowed = {"use": "models", "deny": ["gpt", "m1"]}
    assert build(tmp_path, denied, allowed, cut=cut).remarks == [
        '[[build.filters]] sources: no row that was read has the source "truthfulqa". Did you mean "truthful_qa"?',
        '[[build.filters]] models: no row that was read has the model "gpt". There are m1, m2.',
    ]


def test_names_that_are_met_are_not_said_also_behind_other_filters(tmp_path: Path) -> None:
    first = {"use": "prompt_length", "min_characters": 20}  # the last two rows, of evol and flan
    assert build(tmp_path, first, {"use": "sources", "deny": ["truthful_qa"]}).remarks == []
    assert build(tmp_path, {"use": "sources", "allow": ["flan", "evol"]}).remarks == []


def test_where_nothing_is_left_the_error_says_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'has the source "fan" or "xyz"\. Did you mean "flan"\?'):
        build(tmp_path, {"use": "sources", "allow": ["xyz", "fan"]})
    with pytest.raises(DataError, match=r'has the model "m1"\. None has any\.'):
        build(tmp_path, {"use": "models", "allow": ["m1"]}, rows=[{**row, "by": None} for row in ROWS])
    with pytest.raises(DataError, match="the input is empty") as error:
        build(tmp_path, {"use": "sources", "allow": ["flan"]}, rows=[])
    assert "flan" not in str(error.value)


def test_what_was_said_before_is_not_said_again(tmp_path: Path) -> None:
    said = build(tmp_path, {"use": "sources", "deny": ["truthfulqa"]}).remarks
    rows = [row | {"prompt": f"{row['prompt']} Really?"} for row in ROWS]
    (tmp_path / "b.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    added = build_pairs(tmp_path / "p.toml", tmp_path / "two", given=tmp_path / "b.jsonl", onto=tmp_path / "out")
    assert added.remarks == said and len(said) == 1


def test_a_limit(tmp_path: Path) -> None:
    (said,) = build(tmp_path, {"use": "sources", "deny": ["evol"]}, limit=2).remarks
    assert said.startswith('[[build.filters]] sources: no row that was read has the source "evol"')


@pytest.mark.parametrize("cut", [1, 100_000])
def test_of_very_many_names_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    monkeypatch.setattr(listed, "MOST", 2)
    (said,) = build(tmp_path, {"use": "sources", "deny": ["truthfulqa"]}, cut=cut).remarks
    assert said == '[[build.filters]] sources: no row that was read has the source "truthfulqa".'
