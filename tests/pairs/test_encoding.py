"""Rows that are not UTF-8 and look like Windows-1252 are said once, with a command that mends them."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from prefkit.config import load_pipeline
from prefkit.errors import DataError
from prefkit.manifest import Manifest
from prefkit.pairs.build import build_pairs
from prefkit.pairs.encoding import is_western

PIPELINE = """
[build]
[[build.inputs]]
use = "pairs"
"""
WORDS = ["größer", "déjà vu", "señor", "“quoted”", "plain", "3 €", "smørrebrød", "coração"]
LINES = [
    json.dumps(
        {"prompt": f"What is {word} {n}?", "chosen": f"It is {word} {n}.", "rejected": f"No idea about {n}."},
        ensure_ascii=False,
    )
    for n, word in enumerate(WORDS * 5)
]
FALLEN = sum(not line.isascii() for line in LINES)
TEXT = "".join(f"{line}\n" for line in LINES)


def build(folder: Path, *given: Path, **options: int) -> Manifest:
    (folder / "p.toml").write_text(PIPELINE)
    pipeline = load_pipeline(folder / "p.toml", [f"build.{name}={value}" for name, value in options.items()])
    return build_pairs(pipeline, folder / "out", given=list(map(str, given)), overwrite=True)


@pytest.mark.parametrize("name", ["western text.jsonl", "western.jsonl.gz"])
def test_they_are_said_once_and_the_command_mends_them(tmp_path: Path, name: str) -> None:
    content = TEXT.encode("cp1252")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    (tmp_path / "good.jsonl").write_text(TEXT.replace("What", "Where"), encoding="utf-8")
    record = build(tmp_path, tmp_path / name, tmp_path / "good.jsonl")
    assert record.stages[0].rejected == {"not_utf8": FALLEN}
    (said,) = record.remarks
    assert said.startswith(f"{FALLEN} rows of {name}: not UTF-8, as if in CP1252. Convert and build again: ")
    assert build(tmp_path, tmp_path / name, tmp_path / "good.jsonl", chunk_bytes=2000).remarks == [said]
    if not shutil.which("iconv"):
        return
    subprocess.run(said.partition("build again: ")[2], shell=True, cwd=tmp_path, check=True)
    record = build(tmp_path, tmp_path / f"utf8-{name}")
    assert record.stages[0].rejected == {} and record.remarks == []
    assert record.rows("train") + record.rows("test") == len(LINES)


def test_several_files_are_one_sentence(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(TEXT.replace("What", name).encode("cp1252"))
    (said,) = build(tmp_path, tmp_path / "a.jsonl", tmp_path / "b.jsonl").remarks
    assert said.startswith(f"{2 * FALLEN} rows of a.jsonl and 1 more: not UTF-8")


def test_no_command_is_given_that_would_spoil_rows_in_utf8(tmp_path: Path) -> None:
    damaged = TEXT.encode() + LINES[0].encode("cp1252")
    (tmp_path / "a.jsonl").write_bytes(damaged)
    record = build(tmp_path, tmp_path / "a.jsonl")
    assert record.stages[0].rejected == {"not_utf8": 1} and record.remarks == []


def test_where_no_row_is_left_the_error_says_it(tmp_path: Path) -> None:
    lines = [line for line in LINES if not line.isascii()]
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines).encode("cp1252"))
    with pytest.raises(DataError, match=r"as if in CP1252.*iconv -f CP1252") as error:
        build(tmp_path, tmp_path / "a.jsonl")
    assert "right source" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        b"ascii alone",
        b"random \xff\xfe \x81\x8d\x90",
        "größer, señor, smørrebrød".encode() + b" \xff",  # UTF-8 with one damaged byte
        "Где ближайшая станция?".encode("koi8-r"),
        "Где ближайшая станция?".encode("cp1251"),
        "最寄りの駅はどこですか".encode("shift-jis"),
        "最近的车站在哪里".encode("gb18030"),
        "größer".encode("utf-16"),
    ],
)
def test_other_bytes_do_not_look_like_it(text: bytes) -> None:
    assert not is_western([text])


@pytest.mark.parametrize("text", ["Ça coûte 3 €", "“größer”", "¿Dónde está el niño?"])
def test_western_text_does(text: str) -> None:
    assert is_western([text.encode("cp1252")])
