"""How a row becomes candidates, or a reject with its reason: decoding, odd JSON, and text that is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from prefkit import schema
from prefkit.pairs import dedupe, inputs, minhash, read, tables
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
    assert shapes["bands"] == (minhash.bands_and_rows(0.7, 128)[0], 3)


def test_a_source_without_annotations_gets_a_dict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_source.py").write_text(
        "from prefkit.pairs.records import Completion, Message, Rated\n"
        "def mine(row):\n"
        "    yield Rated([Message('user', row['q'])], [Completion(0, 'a', 2.0), Completion(1, 'b', 1.0)], 'mine')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    candidates, _ = read_lines(tmp_path, '{"q": "hello"}', source=check("my_source:mine", {}, "test"))
    assert candidates["source"].to_list() == ["mine", "mine"]
