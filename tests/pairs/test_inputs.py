"""Every container gives the same rows with the same numbers, however it is cut."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.errors import DataError, UsageError
from prefkit.pairs import inputs
from prefkit.pairs.inputs import RawFile

ROWS = [{"id": i, "text": "x" * (i * 37 % 211)} for i in range(50)]
LINES = [json.dumps(row).encode() for row in ROWS]


def read_all(path: Path, chunk_bytes: int = 1 << 20) -> list[tuple[int, object]]:
    file = RawFile(str(path), path.name)
    parts = inputs.index(file, chunk_bytes).parts
    rows = [row for part in parts for row in inputs.rows(part)]
    return [(row.number, row.value if row.value is not None else json.loads(row.text)) for row in rows]


def test_all_containers_hold_the_same_rows(tmp_path: Path) -> None:
    text = b"\n".join(LINES) + b"\n"
    (tmp_path / "a.jsonl").write_bytes(text)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(text))
    (tmp_path / "array.json").write_bytes(b" \n" + json.dumps(ROWS, indent=2).encode())
    (tmp_path / "array.json.gz").write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    (tmp_path / "lines.json").write_bytes(text.rstrip())
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=7)
    expected = list(enumerate(ROWS, 1))
    for path in tmp_path.iterdir():
        assert read_all(path) == expected, path.name
        assert read_all(path, chunk_bytes=100) == expected, path.name


@given(
    st.lists(st.sampled_from([b"", b" ", b"{}", b'{"a": "' + b"b" * 500 + b'"}', b"broken\xff"]), max_size=60),
    st.integers(1, 3000),
)
@settings(max_examples=60, deadline=None)
def test_cuts_change_neither_numbers_nor_lines(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], chunk: int
) -> None:
    path = tmp_path_factory.mktemp("cuts") / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    found = inputs.index(RawFile(str(path), "a.jsonl"), chunk)
    rows = [(row.number, row.text) for part in found.parts for row in inputs.rows(part)]
    assert rows == [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_empty_files_have_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "b.json").write_text("[]")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b""))
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}), tmp_path / "d.parquet")
    for path in tmp_path.iterdir():
        assert read_all(path) == [], path.name


def test_byte_order_mark_and_carriage_returns(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n')
    assert read_all(tmp_path / "a.jsonl") == [(1, {"a": 1}), (2, {"a": 2})]


def test_files_folders_and_globs_in_order(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "b/1.parquet", "b/deep/3.json.gz", "a/x.jsonl", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = inputs.expand(["b", "a/*.jsonl"], tmp_path)
    expected = ["b/1.parquet", "b/2.jsonl", "b/deep/3.json.gz", "a/x.jsonl"]
    assert [file.relative_to(tmp_path).as_posix() for file in found] == expected
    assert inputs.expand(["b"], tmp_path, outside=tmp_path / "b" / "deep") == found[:2]


def test_names_are_as_short_as_keeps_them_apart() -> None:
    def names(*groups: list[str]) -> list[list[str]]:
        return [[file.name for file in group] for group in inputs.name_files([[Path(p) for p in g] for g in groups])]

    assert names(["/x/a.jsonl"], ["/y/b.jsonl"]) == [["a.jsonl"], ["b.jsonl"]]
    assert names(["/home/me/s1/train.jsonl"], ["/data/s2/train.jsonl"]) == [["s1/train.jsonl"], ["s2/train.jsonl"]]
    assert names(["/a/b/c.jsonl", "/d/b/c.jsonl", "/d/b/e.jsonl"]) == [["a/b/c.jsonl", "d/b/c.jsonl", "d/b/e.jsonl"]]
    with pytest.raises(UsageError, match="twice"):
        names(["/x/a.jsonl"], ["/x/a.jsonl"])


def test_a_folder_in_brackets_is_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "[raw]").mkdir()
    (tmp_path / "[raw]" / "a.jsonl").touch()
    assert len(inputs.expand(["*.jsonl"], tmp_path / "[raw]")) == 1


@pytest.mark.parametrize(
    ("given", "words"), [("none.jsonl", "no such file"), ("a.txt", "not JSONL"), ("*.nope", "no such"), ("", "no such")]
)
def test_inputs_that_cannot_be(tmp_path: Path, given: str, words: str) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(UsageError, match=words):
        inputs.expand([given], tmp_path)


def test_arrays_that_are_json_only_to_python(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"a": NaN}, {"a": "\\ud800"}, {"a": 1}]')
    assert [number for number, _ in read_all(tmp_path / "a.json")] == [1, 2, 3]


def test_a_line_that_begins_with_a_bracket_makes_no_array_of_jsonl(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('[1]\n{"a": 1}\n')
    assert read_all(tmp_path / "a.jsonl") == [(1, [1]), (2, {"a": 1})]


def test_suffixes_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "A.JSONL.GZ").write_bytes(gzip.compress(b'{"a": 1}\n'))
    assert read_all(tmp_path / "A.JSONL.GZ") == [(1, {"a": 1})]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.jsonl.gz", gzip.compress(b"\n".join(LINES))[:-20]),
        ("no.jsonl.gz", b"hello"),
        ("cut.jsonl.zst", zstandard.compress(b"\n".join(LINES))[:-9]),
        ("cut.json", b'[{"a": 1}, {"a"'),
        ("no.parquet", b"PAR1 hello PAR1"),
    ],
)
def test_damaged_containers_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        read_all(tmp_path / name)
