"""How a row becomes candidates, or a reject with its reason: decoding, odd JSON, and text that is none."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from prefkit import schema
from prefkit.errors import UsageError
from prefkit.pairs import batch, inputs, read, tables
from prefkit.resolve import Call, check

PAIRS = check("prefkit.pairs.sources.pairs:pairs", {}, "test")


def read_lines(
    folder: Path, *lines: str, source: Call = PAIRS, run_bytes: int = read.RUN_BYTES
) -> tuple[pl.DataFrame, dict[int, str]]:
    """Answers with their prompts in input order, and the reason by line of what was rejected."""
    path = folder / "raw.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    (part,) = inputs.index(inputs.RawFile(str(path), "raw.jsonl"), 1 << 20).parts
    (folder / "part").mkdir()
    read.read_part(folder / "part", part, read.Reading(source, run_bytes=run_bytes))
    runs = list(read.slices(folder / "part", 0, 1 << 64, batch.PROMPTS.names, batch.ANSWERS.names))
    kinds = zip(zip(*runs, strict=True), (batch.PROMPTS, batch.ANSWERS), strict=True)
    prompts, answers = (tables.frame(pa.Table.from_batches(some, tables.large(kind))) for some, kind in kinds)
    found = answers.join(prompts.drop("origin_file", "origin_row"), on="group", maintain_order="left")
    fallen = pl.concat([tables.empty(schema.REJECTS), *tables.read(folder / "part" / "rejects.arrow")])
    return found.sort("group", maintain_order=True), dict(fallen.select("origin_row", "reason").iter_rows())


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


def test_slices_of_a_part_are_ranges_of_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "BATCH_ROWS", 7)
    everything, _ = read_lines(tmp_path, *(row(f"prompt {i}") for i in range(50)), run_bytes=2000)
    assert len(json.loads((tmp_path / "part" / "counts.json").read_text())["runs"]) > 3
    borders = range(0, (1 << 64) + 1, 1 << 61)
    columns = ["group", "prompt_id"], ["group", "response"]
    pieces = [
        [tuple(map(pl.from_arrow, run)) for run in read.slices(tmp_path / "part", low, high, *columns)]
        for low, high in pairwise(borders)
    ]
    for (low, high), piece in zip(pairwise(borders), pieces, strict=True):
        for prompts, answers in piece:
            assert all(low <= int(identity[:16], 16) < high for identity in prompts["prompt_id"])
            assert set(prompts["group"]) == set(answers["group"])
    found = pl.concat([answers for piece in pieces for _, answers in piece]).sort("group", maintain_order=True)
    assert found["group"].to_list() == everything["group"].to_list() == [i // 2 for i in range(100)]
    assert found["response"].to_list() == ["x", "y"] * 50


def test_a_source_of_whole_files_sees_rows_that_belong_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "threads.py").write_text(
        "from collections.abc import Sequence\n"
        "from prefkit.pairs.records import BadRow, Completion, Message, Numbered, Rated\n"
        "def threads(rows: Sequence[Numbered]):\n"
        "    questions = {row.value['id']: row for row in rows if 'q' in row.value}\n"
        "    for key, question in questions.items():\n"
        "        mine = [row for row in rows if row.value.get('to') == key]\n"
        "        yield BadRow('not_an_answer', 'a question', question.number)\n"
        "        if mine:\n"
        "            yield Rated([Message('user', question.value['q'])], [Completion(0, row.value['a'],"
        " row.value['s'], row=row.number) for row in mine], 'threads')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    lines = ['{"id": 1, "q": "first"}', '{"to": 2, "a": "x", "s": 1}', "broken", '{"id": 2, "q": "second"}']
    lines += ['{"to": 1, "a": "y", "s": 2}', '{"to": 2, "a": "z", "s": 0}', '{"to": 9, "a": "lost", "s": 0}']
    found, reasons = read_lines(tmp_path, *lines, source=check("threads:threads", {}, "test"))
    assert found.select("group", "response", "origin_row").rows() == [(0, "x", 2), (0, "z", 6), (1, "y", 5)]
    expected = {1: "not_an_answer", 3: "not_json", 4: "not_an_answer", 7: "no_completions"}
    assert reasons == expected


def test_a_source_without_annotations_gets_a_dict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_source.py").write_text(
        "from prefkit.pairs.records import Completion, Message, Rated\n"
        "def mine(row):\n"
        "    yield Rated([Message('user', row['q'])], [Completion(0, 'a', 2.0), Completion(1, 'b', 1.0)], 'mine')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    candidates, _ = read_lines(tmp_path, '{"q": "hello"}', source=check("my_source:mine", {}, "test"))
    assert candidates["source"].to_list() == ["mine", "mine"]


def test_long_prompts_with_many_answers_overflow_nothing(tmp_path: Path) -> None:
    """Two copies of 2 MB in 1,100 candidates: 2.2 GB, were each to hold its prompt."""
    many = [{"response": f"answer {i}", "overall_score": i + 0.5} for i in range(1100)]
    line = json.dumps({"instruction": "word " * 400_000, "completions": many})
    source = check("prefkit.pairs.sources.ultrafeedback:ultrafeedback", {}, "test")
    candidates, reasons = read_lines(tmp_path, line, source=source)
    assert (len(candidates), reasons) == (1100, {})


@pytest.mark.parametrize(
    "body",
    [
        "raise KeyError('x')",
        "yield 5",
        *(
            f"yield Rated([Message('user', {prompt})], [Completion({index}, {answer}, {score}, {model})], {source})"
            for prompt, index, answer, score, model, source in [
                ("'q'", "0", "'a'", "'high'", "None", "'s'"),
                ("'q'", "0", "5", "1", "None", "'s'"),
                ("'q'", "0", "'a'", "1", "5", "'s'"),
                ("'q'", "2**31", "'a'", "1", "None", "'s'"),
                ("'q'", "-1", "'a'", "1", "None", "'s'"),
                ("'q'", "None", "'a'", "1", "None", "'s'"),
                ("'q'", "0", "'a'", "1", "None", "None"),
                (r"'\ud800'", "0", "'a'", "1", "None", "'s'"),
                ("'q'", "0", r"'\ud800'", "1", "None", "'s'"),
                ("5", "0", "'a'", "1", "None", "'s'"),
            ]
        ),
    ],
)
def test_a_source_from_outside_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    name = f"failing_source_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(
        f"from prefkit.pairs.records import Completion, Message, Rated\ndef mine(row):\n    {body}\n    yield\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=rf"{name}:mine failed at raw\.jsonl, row 1"):
        read_lines(tmp_path, "{}", source=check(f"{name}:mine", {}, "test"))


@pytest.mark.parametrize(
    ("signature", "words"),
    [
        ("", "a source takes a row as its first parameter"),
        ("*, row=1", "a source takes a row as its first parameter"),
        ("row: A | B", "a source says that its rows are .*, which nothing can be read as"),
    ],
)
def test_a_source_from_outside_that_takes_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signature: str, words: str
) -> None:
    name = f"odd_source_{len(signature)}"
    (tmp_path / f"{name}.py").write_text(
        "import msgspec\n"
        "class A(msgspec.Struct):\n    x: int\n"
        "class B(msgspec.Struct):\n    y: int\n"
        f"def mine({signature}):\n    yield\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=words):
        read_lines(tmp_path, "{}", source=check(f"{name}:mine", {}, "test"))
