"""Every container gives the same rows with the same numbers, however it is cut."""

from __future__ import annotations

import csv
import glob
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prefkit.errors import DataError, UsageError
from prefkit.pairs import arrays, foreign, inputs, parts
from prefkit.pairs.inputs import RawFile, RawRow

ROWS = [{"id": i, "text": "x" * (i * 37 % 211)} for i in range(50)]
LINES = [json.dumps(row).encode() for row in ROWS]


def raw_rows(path: Path, chunk_bytes: int = 1 << 20) -> list[RawRow]:
    found = inputs.index(RawFile(str(path), path.name), chunk_bytes)
    return [row for part in found.parts for row in inputs.rows(part)]


def read_all(path: Path, chunk_bytes: int = 1 << 20) -> list[tuple[int, object]]:
    rows = raw_rows(path, chunk_bytes)
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


def is_foreign(path: Path) -> bool:
    try:
        foreign.refuse(RawFile(str(path), path.name))
    except DataError:
        return True
    return False


LINE = st.sampled_from(
    [b"", b" ", b"{}", b"\r", b"a\rb", b"\0", b"nul\0nul\r", b"x" * 700, b"broken\xff", b"\xef\xbb\xbf"]
)


@given(st.lists(LINE | st.binary(max_size=30), max_size=60), st.integers(1, 3000))
@settings(max_examples=100, deadline=None)
def test_cuts_change_neither_numbers_nor_lines(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], chunk: int
) -> None:
    path = tmp_path_factory.mktemp("cuts") / "a.jsonl"
    content = b"\n".join(lines)
    path.write_bytes(content)
    assume(not is_foreign(path))
    found = inputs.index(RawFile(str(path), "a.jsonl"), chunk)
    rows = [(row.number, row.text.strip()) for part in found.parts for row in inputs.rows(part)]
    split = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert rows == [(number, line.strip()) for number, line in enumerate(split, 1) if line.strip()]
    assert found.sha256 == hashlib.sha256(content).hexdigest()
    assert [part.first_row for part in found.parts] == [content[: part.start].count(b"\n") + 1 for part in found.parts]
    assert inputs.whole(found.parts).first_row == 1
    assert [(row.number, row.text.strip()) for row in inputs.rows(inputs.whole(found.parts))] == rows


def test_a_line_of_megabytes_among_small_ones(tmp_path: Path) -> None:
    long = json.dumps({"a": "x" * 5_000_000}).encode()
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([b'{"a": 1}', long, b'{"a": 2}', long]))
    assert [(row.number, len(row.text.strip())) for row in raw_rows(path, 1 << 16)] == [
        (1, 8),
        (2, len(long)),
        (3, 8),
        (4, len(long)),
    ]


def test_a_line_beyond_the_longest_costs_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "LONGEST_ROW", 5000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b"x" * 2_000_000 + b'\n{"a": 2}\n' + b"y" * 5000)
    for chunk in (1000, 1 << 20):
        rows = raw_rows(path, chunk)
        assert [(row.number, row.problem[0] if row.problem else None) for row in rows] == [
            (1, None),
            (2, "too_long"),
            (3, None),
            (4, "too_long"),
        ]
        assert rows[1].problem is not None and "2,000,001 bytes" in rows[1].problem[1]


TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(list('",\n\r\0 ')), max_size=12)


@given(
    st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(TEXT, min_size=n, max_size=n), max_size=12)),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.sampled_from([("a.csv", ","), ("a.tsv", "\t"), ("a.csv.gz", ",")]),
)
@settings(max_examples=100, deadline=None)
def test_what_csv_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], end: str, bom: bool, kind: tuple[str, str]
) -> None:
    names = [f"column {i}" for i in range(len(rows[0]) if rows else 2)]
    text = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if end == "\n" else csv.QUOTE_MINIMAL  # else the writer forgets to quote a lone \r
    csv.writer(text, delimiter=kind[1], lineterminator=end, quoting=quoting).writerows([names, *rows])
    content = text.getvalue().encode("utf-8-sig" if bom else "utf-8")
    path = tmp_path_factory.mktemp("csv") / kind[0]
    path.write_bytes(gzip.compress(content) if kind[0].endswith("gz") else content)
    found = raw_rows(path)
    assert [row.value for row in found] == [dict(zip(names, row, strict=True)) for row in rows]
    assert [row.number for row in found] == list(range(1, len(rows) + 1))
    body = content.decode("utf-8-sig").partition(end)[2]
    assert "".join(row.text.decode() for row in found) == body, "the bytes of every record are kept"


def test_csv_as_pandas_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes('prompt,"the ""answer""",score\r\n"two\r\nlines",“è”,3\r\n\r\n,"a, b",\r\nlast,x,1'.encode())
    expected = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
    assert [row.value for row in raw_rows(path)] == expected
    assert [row.number for row in raw_rows(path)] == [1, 2, 3]


def test_a_broken_record_costs_itself_alone(tmp_path: Path) -> None:
    records = [b"p1,a1", b"p2", b"p3,a3,more", b'"p4\nstill p4",a4', b'"p5"x,a5', b"p\xff6,a6", b'"p7', b"p8,a8"]
    path = tmp_path / "a.csv"
    path.write_bytes(b"\n".join([b"prompt,answer", *records[:-2]]))
    rows = raw_rows(path)
    assert [row.text.strip() for row in rows] == records[:-2]
    assert [row.problem and row.problem[0] for row in rows] == [None, "not_csv", "not_csv", None, "not_csv", "not_utf8"]
    assert rows[3].value == {"prompt": "p4\nstill p4", "answer": "a4"} and rows[3].number == 4
    path.write_bytes(b"\n".join([b"prompt,answer", *records]))
    *_, last = raw_rows(path)
    assert (last.number, last.text) == (7, b'"p7\np8,a8'), "a quote that is never closed takes the rest"
    assert last.problem == ("not_csv", "unexpected end of data")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a,b,a\n1,2,3\n", "two columns 'a'"),
        (b"a,\xff\n1,2\n", "no text"),
        (b'a,"b\n1,2\n', "header"),
        (b"a;b\n1;2\n", "as if ';' stood between"),
    ],
)
def test_headers_that_cannot_be(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=words):
        raw_rows(tmp_path / "a.csv")


COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "it's all.csv"])
@pytest.mark.parametrize("encoding", ["UTF-16", "UTF-16LE", "UTF-16BE", "UTF-32", "UTF-32LE", "UTF-32BE"])
def test_text_in_another_encoding_is_refused_as_a_whole_and_the_command_mends_it(
    tmp_path: Path, name: str, encoding: str, compression: str
) -> None:
    line = '{"prompt": "ein", "response": "größer 漢"}\n'
    path = tmp_path / f"{name}{compression}"
    path.write_bytes(COMPRESS[compression](line.encode(encoding)))
    with pytest.raises(DataError, match=f"text in {encoding}, "):
        inputs.first_rows(RawFile(str(path), name), 1)
    with pytest.raises(DataError, match=f"text in {encoding}, ") as refused:
        raw_rows(path)
    command = str(refused.value).partition("Convert it: ")[2]
    assert f"iconv -f {encoding} -t UTF-8 " in command
    tools = {"iconv", {"": "iconv", ".gz": "gzip", ".zst": "zstd"}[compression]}
    if all(map(shutil.which, tools)):
        subprocess.run(command, shell=True, cwd=tmp_path, check=True)
        with parts.open_text(RawFile(str(tmp_path / f"utf8-{path.name}"), name)) as converted:
            assert converted.read().decode("utf-8-sig") == line


def test_a_compressed_file_that_ends_too_early_is_said_to_be_incomplete(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(os.urandom(1000))[:500])
    with pytest.raises(DataError, match=r"cannot be read to its end .* Is the file complete?"):
        raw_rows(tmp_path / "a.jsonl.gz")


@pytest.mark.parametrize(
    ("content", "words"),
    [(gzip.compress(b"{}"), r"end in .gz"), (zstandard.compress(b"{}"), r"end in .zst"), (b"PAR1", "Parquet")],
    ids=["gzip", "zstandard", "Parquet"],
)
def test_a_file_of_another_kind_than_its_name_says_is_refused_as_a_whole(
    tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=words):
        raw_rows(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "a.json",
            json.dumps({"data": ROWS}, indent=1).encode(),
            "an object over several lines, and no rows. Where it only",
        ),
        ("a.jsonl", json.dumps(ROWS[0], indent=4).encode() * 2, "an object over several lines, and no rows"),
        (
            "a.ndjson.gz",
            gzip.compress(b"\xef\xbb\xbf{\r\n\t" + LINES[0][1:]),
            "an object over several lines, and no rows",
        ),
        ("a.jsonl", json.dumps(ROWS).encode(), r"a JSON array; its name should end in \.json\.$"),
        ("a.jsonl.zst", zstandard.compress(json.dumps(ROWS, indent=2).encode()), r"should end in \.json\.zst\.$"),
        ("a.jsonl.gz", b"\n".join(LINES), "not compressed by gzip, which its name says"),
        ("a.csv.zst", b"a,b\n1,2\n", "not compressed by zstd, which its name says"),
    ],
)
def test_json_that_is_no_rows_and_what_is_not_compressed_are_refused_as_a_whole(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    for read in (raw_rows, lambda path: inputs.first_rows(RawFile(str(path), name), 1)):
        with pytest.raises(DataError, match=words):
            read(tmp_path / name)


@pytest.mark.parametrize("line", [b"[1, 2]", b'["{"]', b"{", b"{}", b'{ "a": 1 }', b"[]"])
def test_a_first_line_that_is_no_row_costs_itself_alone(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([line, *LINES]))
    assert [row.text.strip() for row in raw_rows(tmp_path / "a.jsonl")] == [line, *LINES]


@pytest.mark.parametrize("begin", [b"\xff\xfe", b"\0\0", b"\x1f\x8b", b"\xef\xbb\xbf"])
def test_a_damaged_first_row_costs_itself_alone(tmp_path: Path, begin: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(begin + b"".join(line + b"\n" for line in LINES))
    assert [row.text.strip() for row in raw_rows(tmp_path / "a.jsonl")][1:] == LINES[1:]


def test_a_value_that_cannot_be_read_costs_its_row_of_parquet_alone(tmp_path: Path) -> None:
    ends = pa.array([0, 1, 3, 4], pa.int32()).buffers()[1]
    texts = pa.StringArray.from_buffers(3, ends, pa.py_buffer(b"a\xff\xfeb"))
    days = pa.array([2**62, 0, None], pa.int64()).cast(pa.timestamp("us"))
    pq.write_table(pa.table({"text": texts, "day": days}), tmp_path / "a.parquet")
    rows = raw_rows(tmp_path / "a.parquet")
    assert [row.problem and row.problem[0] for row in rows] == ["wrong_type", "not_utf8", None]
    assert [row.number for row in rows] == [1, 2, 3] and rows[2].value == {"text": "b", "day": None}


def test_two_columns_of_one_name_in_parquet_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], ["a", "a"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="two columns 'a'"):
        raw_rows(tmp_path / "a.parquet")


def test_a_field_without_end_is_no_text_but_a_lost_quote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "LONGEST_ROW", 1000)
    (tmp_path / "a.csv").write_bytes(b'a,b\n1,2\n"3,' + b"4\n" * 1000)
    with pytest.raises(DataError, match=r"record 2 .* never closed"):
        raw_rows(tmp_path / "a.csv")


JSON = st.recursive(
    st.none() | st.floats() | st.text(st.sampled_from(list('a"\\,[]{}\né\0'))),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.sampled_from('a"\\,[]{}')), inner),
    max_leaves=15,
)


@given(
    st.lists(JSON), st.integers(1, 9), st.integers(1, 60), st.sampled_from([None, 1]), st.sampled_from(["", "\ufeff"])
)
@settings(max_examples=60, deadline=None)
def test_arrays_are_cut_between_their_items(
    tmp_path_factory: pytest.TempPathFactory, items: list[Any], block: int, chunk: int, indent: int | None, before: str
) -> None:
    path = tmp_path_factory.mktemp("array") / "a.json"
    path.write_text(before + " " + json.dumps(items, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "BLOCK", block)
        found = inputs.index(RawFile(str(path), "a.json"), chunk)
        rows = [row for part in found.parts for row in inputs.rows(part)]
        assert [row.text for row in inputs.rows(inputs.whole(found.parts))] == [row.text for row in rows]
    assert repr([json.loads(row.text) for row in rows]) == repr(items)  # NaN is not equal to itself
    assert [row.number for row in rows] == list(range(1, len(items) + 1))
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_bad_item_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content in (b'[{"a": 1}, {"a": tru}, "\xff", {"a": 2} {"b": 3}, , {"a": 4},]', b'[\n{"a": 1}\n]'):
        path.write_bytes(content)
        expected = [item.strip() for item in content.strip(b"[]").split(b",")]
        for chunk in (1, 20, 1000):
            rows = raw_rows(path, chunk)
            assert [(row.number, row.text) for row in rows] == [(n, item) for n, item in enumerate(expected, 1) if item]


@pytest.mark.parametrize("content", [b'[{"a": 1}', b'[{"a": "1]', b"[1] [2]", b'[{"a": 1}]]', b"[{]", b"["])
def test_arrays_that_are_not_closed(tmp_path: Path, content: bytes) -> None:
    for name, text in (("a.json", content), ("b.json.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(text)
        with pytest.raises(DataError, match=f"{name}: not a JSON array"):
            raw_rows(tmp_path / name)


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.jsonl.zst", "a.csv"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    row = '{"text": "%s"}' % ("some words and an escape\\\\n " * 40)
    if name.endswith("csv"):
        content = "text\n" + ('"' + "some words,\nand more " * 50 + '"\n') * 40_000
    else:
        content = "[" + ",\n".join([row] * 40_000) + "]" if ".json." in f"{name}." else (row + "\n") * 40_000
    write = {"gz": lambda text: gzip.compress(text, 1), "zst": zstandard.compress}.get(name.split(".")[-1], bytes)
    (tmp_path / name).write_bytes(write(content.encode()))
    program = (
        "import resource, sys; from prefkit.pairs import inputs\n"
        "import pyarrow; peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; before = peak()\n"
        "found = inputs.index(inputs.RawFile(sys.argv[1], 'a'), 1 << 20)\n"
        "rows = sum(1 for part in found.parts for row in inputs.rows(part))\n"
        "print(rows, peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / name)], capture_output=True, text=True, check=True
    )
    rows, kilobytes = map(int, done.stdout.split())
    assert rows == 40_000 and kilobytes < 25_000, f"{kilobytes} kB for {len(content):,} bytes"


def test_a_file_that_changes_between_index_and_reading_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(LINES))
    found = inputs.index(RawFile(str(path), "a.jsonl"), 500)
    reading = inputs.rows(found.parts[1])
    next(reading)
    path.write_bytes(b"\n".join(reversed(LINES)))
    with pytest.raises(DataError, match="changed since it was indexed"):
        list(inputs.rows(found.parts[0]))
    with pytest.raises(DataError, match="changed since it was indexed"):
        list(reading)


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


def test_a_glob_ends_where_links_lead_in_circles(tmp_path: Path) -> None:
    for name in ("a.jsonl", "x/b.jsonl", "x/y/c.jsonl", "x/y/d.csv", "x/.hidden/e.jsonl"):
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / name).write_text("{}\n")
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "f.jsonl").write_text("{}\n")
    plain = {
        pattern: [tmp_path / name for name in sorted(glob.glob(pattern, root_dir=tmp_path, recursive=True))]
        for pattern in ("raw/**/*.jsonl", "raw/**/y/*", "r*/x/**/[cd].*", "raw/**/x/**/*.csv", "**/f.jsonl")
    }
    for name, target in {"up": "..", "x/up": "..", "x/y/top": "../../..", "x/y/self": ".", "off": "../far"}.items():
        (tmp_path / "raw" / name).symlink_to(target)
    plain["raw/**/*.jsonl"] = sorted([*plain["raw/**/*.jsonl"], tmp_path / "raw/off/f.jsonl"])
    plain["raw/x/y/top/raw/**/d.csv"] = [tmp_path / "raw/x/y/top/raw/x/y/d.csv"]
    for pattern, files in plain.items():
        assert inputs.expand([pattern], tmp_path) == files, pattern
        assert inputs.expand([str(tmp_path / pattern)], Path()) == files, pattern
    with pytest.raises(UsageError, match=r"no such file, folder with raw files, or glob with a match"):
        inputs.expand(["raw/**/nothing.jsonl"], tmp_path)


def test_a_folder_gives_what_links_lead_to_once(tmp_path: Path) -> None:
    for name in ("raw/a/1.jsonl", "raw/.hidden/2.jsonl", "elsewhere/deep/3.jsonl", "one/4.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    links = {
        "raw/out": "../elsewhere",
        "raw/out2": "../elsewhere/deep",  # read as out/deep
        "raw/latest": "a",
        "raw/a/up": "..",
        "elsewhere/back": "../raw",
        "elsewhere/loop": "loop",
        "raw/5.jsonl": "../one/4.jsonl",
        "raw/gone.jsonl": "nowhere.jsonl",
        "raw/gone": "nowhere",
    }
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    found = [str(path.relative_to(tmp_path / "raw")) for path in map(Path, inputs.expand(["raw"], tmp_path))]
    assert found == ["5.jsonl", "a/1.jsonl", "out/deep/3.jsonl"]


def test_a_folder_that_may_not_be_read_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raw" / "locked").mkdir(parents=True)
    (tmp_path / "raw" / "a.jsonl").touch()
    scandir = os.scandir

    def locked(path: Any) -> Any:  # root may read any folder
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(PermissionError, match="locked"):
        inputs.expand(["raw"], tmp_path)


def test_a_path_may_start_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "raw.jsonl").touch()
    assert inputs.expand(["~/raw.jsonl", "~/*.jsonl"], Path("/elsewhere")) == [tmp_path / "raw.jsonl"] * 2


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


def test_a_folder_whose_raw_files_do_not_count_is_told_from_none(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.jsonl").touch()
    with pytest.raises(UsageError, match="out: a folder without raw files; hidden ones, and those in --out"):
        inputs.expand(["out"], tmp_path, tmp_path / "out")


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


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_the_first_part_is_known_before_the_last_is_read(tmp_path: Path, name: str) -> None:
    rows = [json.dumps({"row": i, "text": "x" * 1000}) for i in range(5000)]
    text = "[" + ",".join(rows) + "]" if name.endswith(".json") else "\n".join(rows)
    (tmp_path / name).write_text(text)
    index = inputs.Index(RawFile(str(tmp_path / name), name), 100_000)
    first = next(index.parts())
    assert json.loads(next(iter(inputs.rows(first))).text)["row"] == 0
    (tmp_path / name).write_text(text + " " * 7)
    with pytest.raises(DataError, match="changed while it was indexed"):
        index.finish()


def test_a_part_is_known_by_the_file_up_to_its_end(tmp_path: Path) -> None:
    """So parts of a log that has grown are those of before, but for the last."""
    lines = [json.dumps({"row": i}) for i in range(1000)]
    path = tmp_path / "log.jsonl"
    found = []
    for count in (700, 1000):
        path.write_text("\n".join(lines[:count]) + "\n")
        found.append(inputs.index(RawFile(str(path), path.name), 2000).parts)
    before, after = ([part.identity for part in parts] for parts in found)
    assert len(before) > 2
    assert before[:-1] == after[: len(before) - 1]
    assert len(set(after)) == len(after)
    path.write_text("\n".join([lines[0].replace("0", "7"), *lines[1:]]) + "\n")
    assert not set(after) & {part.identity for part in inputs.index(RawFile(str(path), path.name), 2000).parts}
