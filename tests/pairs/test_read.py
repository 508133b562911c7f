"""How a row becomes candidates, or a reject with its reason: decoding, odd JSON, and text that is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from prefkit import schema
from prefkit.errors import UsageError
from prefkit.pairs import dedupe, inputs, read, tables
from prefkit.resolve import Call, check

PAIRS = check("prefkit.pairs.sources.pairs:pairs", {}, "test")


def read_lines(folder: Path, *lines: str, source: Call = PAIRS) -> tuple[pl.DataFrame, dict[int, str]]:
    """Candidates, and the reason by line of what was rejected."""
    path = folder / "raw.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    (part,) = inputs.index(inputs.RawFile(str(path), "raw.jsonl"), 1 << 20).parts
    (folder / "part").mkdir()
    read.read_part(folder / "part", part, source, [], None, dedupe.dedupe().sketching)
    found = [tables.empty(read.PART_CANDIDATES), *tables.read(folder / "part" / "candidates.arrow")]
    fallen = pl.concat([tables.empty(schema.REJECTS), *tables.read(folder / "part" / "rejects.arrow")])
    return pl.concat(found), dict(fallen.select("origin_row", "reason").iter_rows())


def row(prompt: str, rest: str = "") -> str:
    return f'{{"prompt": "{prompt}", "chosen": "x", "rejected": "y"{rest}}}'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (row("lone \\ud800 surrogate"), "not_json"),
        (row("lone \\ud800 surrogate", ', "q": NaN'), "not_json"),
        (row("two rows") + row("on a line"), "not_json"),
        (row("too large", ', "q": 1e999'), "wrong_type"),
        ("[1, 2]", "wrong_type"),
        ("NaN", "wrong_type"),
        (row(" \\n "), "empty_prompt"),
        ('{"prompt": [], "chosen": "x", "rejected": "y"}', "empty_prompt"),
        ('{"x": ' + "[" * 100_000 + "]" * 100_000 + "}", "not_json"),
        ('{"prompt": [{"role": ["a"], "content": "b"}], "chosen": "x", "rejected": "y"}', "unknown_role"),
        ('{"prompt": [{"role": "system", "content": "b"}], "chosen": "x", "rejected": "y"}', "prompt_without_question"),
    ],
)
def test_what_cannot_be_read_is_rejected_alone(tmp_path: Path, line: str, reason: str) -> None:
    candidates, reasons = read_lines(tmp_path, row("before"), line, row("after"))
    assert reasons == {2: reason}
    assert candidates["origin_row"].to_list() == [1, 1, 3, 3]


def test_what_is_odd_but_right_is_kept_as_it_is(tmp_path: Path) -> None:
    lines = [row("null \\u0000 byte"), row("NaN", ', "q": [NaN, Infinity]'), row("pair \\ud83d\\ude00"), row("ﬁ Ａ  é")]
    candidates, reasons = read_lines(tmp_path, *lines)
    assert reasons == {}
    texts = candidates["prompt"].list.first().struct.field("content").to_list()[::2]
    assert texts == ["null \0 byte", "NaN", "pair 😀", "ﬁ Ａ  é"]


def test_the_arrays_of_the_prompts_fit_the_candidates(tmp_path: Path) -> None:
    candidates, _ = read_lines(tmp_path, row("one"), "broken", row("two words"), row("three words here"))
    part = tmp_path / "part"
    assert candidates["group"].to_list() == [0, 0, 1, 1, 2, 2]
    shapes = {name: np.load(part / f"{name}.npy").shape for name in read.Sketch._fields}
    assert shapes["prompt_ids"] == (3, 2)
    assert shapes["origin_rows"] == shapes["counts"] == (3,)
    assert shapes["signatures"] == (128, 3)


def test_a_source_without_annotations_gets_a_dict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_source.py").write_text(
        "from prefkit.pairs.records import Completion, Message, Rated\n"
        "def mine(row):\n"
        "    yield Rated([Message('user', row['q'])], [Completion(0, 'a', 2.0), Completion(1, 'b', 1.0)], 'mine')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    candidates, _ = read_lines(tmp_path, '{"q": "hello"}', source=check("my_source:mine", {}, "test"))
    assert candidates["source"].to_list() == ["mine", "mine"]


def answers(*answers: tuple[str, float]) -> str:
    completions = [{"response": text, "overall_score": score} for text, score in answers]
    return json.dumps({"instruction": "What is it?", "completions": completions})


@pytest.mark.parametrize(
    ("given", "kept", "reasons"),
    [
        ([("a", 3), ("b", 2)], [0, 1], set()),
        ([("a", 3), (" a ", 2), ("b", 1), ("c", 0)], [2, 3], {"identical_responses"}),
        ([("a", 3), ("a", 3), ("b", 1)], [0, 2], {"repeated_response"}),
        ([("a", 3), ("a", 2), ("b", 1)], [], {"identical_responses", "too_few_candidates"}),
        ([("a", 3), ("b", 3), ("c", 3)], [], {"tied"}),
        ([("a", 3), ("", 2), ("c", 3)], [], {"tied", "empty_response"}),
    ],
)
def test_answers_that_contradict_themselves_or_say_nothing(
    tmp_path: Path, given: list[tuple[str, float]], kept: list[int], reasons: set[str]
) -> None:
    source = check("prefkit.pairs.sources.ultrafeedback:ultrafeedback", {}, "test")
    candidates, _ = read_lines(tmp_path, answers(*given), source=source)
    fallen = pl.concat(tables.read(tmp_path / "part" / "rejects.arrow")) if reasons else None
    assert candidates["completion_index"].to_list() == kept
    assert (set(fallen["reason"]) if fallen is not None else set()) == reasons


def test_long_prompts_with_many_answers_overflow_nothing(tmp_path: Path) -> None:
    """Two copies of 2 MB in 1,100 candidates: 2.2 GB, were each to hold its prompt."""
    many = [{"response": f"answer {i}", "overall_score": i + 0.5} for i in range(1100)]
    line = json.dumps({"instruction": "word " * 400_000, "completions": many})
    source = check("prefkit.pairs.sources.ultrafeedback:ultrafeedback", {}, "test")
    candidates, reasons = read_lines(tmp_path, line, source=source)
    assert (len(candidates), reasons) == (1100, {})


@pytest.mark.parametrize(
    "body",
    ["raise KeyError('x')", "yield 5", "yield Rated([Message('user', 'q')], [Completion(0, 'a', 'high')], 's')"],
)
def test_a_source_from_outside_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    name = f"failing_source_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(
        f"from prefkit.pairs.records import Completion, Message, Rated\ndef mine(row):\n    {body}\n    yield\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=rf"{name}:mine failed at raw\.jsonl, row 1"):
        read_lines(tmp_path, "{}", source=check(f"{name}:mine", {}, "test"))
