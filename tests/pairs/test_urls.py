"""Inputs by URL, through the real clients, from servers that fail: the rows are those of the local file."""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import random
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import zstandard

pytest.importorskip("aiohttp", reason="needs the clients: pip install 'prefkit[url]'")

from prefkit import urls
from prefkit.config import load_pipeline
from prefkit.errors import DataError, UsageError
from prefkit.extras import install
from prefkit.pairs import inputs
from prefkit.pairs.build import build_pairs
from tests.pairs import servers
from tests.pairs.raw import dirty_lines, write_lines
from tests.pairs.reader import CHUNK, read, read_elsewhere
from tests.pairs.servers import COMMIT, SIGNED, TOKEN, Server, serving

ROWS = [{"id": i, "text": f"line\n{'x' * (i * 37 % 211)}"} for i in range(1000)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows in every container, some in a folder of their own, and what is to be passed over."""
    folder = tmp_path_factory.mktemp("raw")
    text = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
    (folder / "some").mkdir()
    (folder / ".hidden").mkdir()
    (folder / "plain.jsonl").write_bytes(text)
    (folder / "array.json").write_text(json.dumps(ROWS))
    (folder / "table.csv").write_text(pd.DataFrame(ROWS).to_csv(index=False))
    pd.DataFrame(ROWS).to_parquet(folder / "rows.parquet", row_group_size=300)
    (folder / "some" / "packed.jsonl.gz").write_bytes(gzip.compress(text))
    (folder / "some" / "packed.jsonl.zst").write_bytes(zstandard.compress(text))
    (folder / ".hidden" / "more.jsonl").write_bytes(text)
    (folder / "notes.txt").write_text("not a raw file")
    return folder


@pytest.fixture(autouse=True)
def _small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "BLOCK", 16_384)
    monkeypatch.setattr(urls, "WAITS", (0.001, 0.001, 0.001))


@pytest.fixture
def http(folder: Path) -> Iterator[Server]:
    with serving(folder, servers.Handler) as server:
        yield server


FILES = ["plain.jsonl", "array.json", "table.csv", "rows.parquet", "some/packed.jsonl.gz", "some/packed.jsonl.zst"]
PLACES = [*FILES, "", "some", "*.jsonl", "some/*.zst"]


@pytest.mark.parametrize("place", PLACES)
def test_http_gives_the_rows_of_the_local_file(http: Server, folder: Path, place: str) -> None:
    found = read(f"{http.url}/{place}")
    assert found == read(str(folder / place))
    assert len(found) >= len(ROWS)


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("place", [place for place in FILES if "parquet" not in place])
def test_http_without_ranges(http: Server, folder: Path, place: str, sized: bool) -> None:
    http.ranges, http.sized = False, sized
    http.faults = ["", "drop", "503", "", "drop"]
    assert read(f"{http.url}/{place}") == read(str(folder / place))


@pytest.mark.parametrize("sized", [True, False])
def test_parquet_needs_ranges(http: Server, sized: bool) -> None:
    http.ranges, http.sized = False, sized
    with pytest.raises(DataError, match=r"rows\.parquet: its server .* Download the file"):
        read(f"{http.url}/rows.parquet")


@pytest.mark.parametrize("faults", [["503", "503"], ["drop"] * 3, ["", "", "drop", "429", "", "500"] * 5])
@pytest.mark.parametrize("place", FILES)
def test_http_with_failures_that_pass(http: Server, folder: Path, place: str, faults: list[str]) -> None:
    http.faults = list(faults)
    assert read(f"{http.url}/{place}") == read(str(folder / place))
    assert len(http.faults) < len(faults)


@pytest.mark.parametrize("fault", ["503", "drop"])
def test_failures_that_do_not_pass(http: Server, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    http.faults = [fault] * 100
    with pytest.raises(DataError, match=r"plain\.jsonl: the request failed \("):
        read(f"{http.url}/plain.jsonl")
    assert tuple(waited) == urls.WAITS


def test_a_stream_that_ends_early_is_no_end(http: Server, folder: Path) -> None:
    http.faults = ["short"] * 3
    assert read(f"{http.url}/plain.jsonl") == read(str(folder / "plain.jsonl"))
    http.ranges = http.sized = False
    found = inputs.index(inputs.RawFile(f"{http.url}/plain.jsonl", "plain.jsonl"), CHUNK)
    http.faults = ["", "", "short"]  # the first two only ask for the version and the size
    assert sum(1 for part in found.parts for _ in inputs.rows(part)) == len(ROWS)
    assert http.faults == []
    http.faults = ["short"] * 100
    with pytest.raises(DataError, match=r"plain\.jsonl: .* ends"):
        list(inputs.rows(found.parts[0]))


def test_only_the_bytes_of_a_part_are_fetched(http: Server, folder: Path) -> None:
    size = (folder / "plain.jsonl").stat().st_size
    found = inputs.index(inputs.RawFile(f"{http.url}/plain.jsonl", "plain.jsonl"), CHUNK)
    assert found.size == size and len(found.parts) > 3

    def fetched() -> list[tuple[int, int]]:
        ranges = [asked.removeprefix("bytes=").split("-") for method, _, asked in http.log if method == "GET" and asked]
        http.log.clear()
        return [(int(start), int(end) + 1) for start, end in ranges]

    def joined(ranges: list[tuple[int, int]]) -> tuple[int, int]:
        assert all(one[1] == other[0] for one, other in itertools.pairwise(ranges))
        return ranges[0][0], ranges[-1][1]

    assert joined(fetched()) == (0, size)
    for part in found.parts:
        list(inputs.rows(part))
        assert joined(fetched()) == (part.start, part.end)


def test_a_row_group_of_parquet_is_fetched_without_the_others(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = [{"text": rng.randbytes(500).hex()} for _ in range(4000)]
    pd.DataFrame(rows).to_parquet(tmp_path / "a.parquet", row_group_size=500)
    with serving(tmp_path, servers.Handler) as server:
        found = inputs.index(inputs.RawFile(f"{server.url}/a.parquet", "a.parquet"), 1)
        assert [part.first_row for part in found.parts] == list(range(1, 4000, 500))
        server.log.clear()
        assert [row.value for row in inputs.rows(found.parts[3])] == rows[1500:2000]
        ranges = [asked.removeprefix("bytes=").split("-") for _, _, asked in server.log if asked]
    fetched = sum(int(end) + 1 - int(start) for start, end in ranges)
    assert fetched < (tmp_path / "a.parquet").stat().st_size / 4


def test_a_remote_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with serving(tmp_path, servers.Handler) as server:
        found = inputs.index(inputs.RawFile(f"{server.url}/a.jsonl", "a.jsonl"), CHUNK)
        reading = inputs.rows(found.parts[1])
        next(reading)
        path.write_text("".join(json.dumps(row) + "\n" for row in reversed(ROWS)))
        with pytest.raises(DataError, match="changed since it was indexed"):
            list(reading)
        with pytest.raises(DataError, match="changed since it was indexed"):
            list(inputs.rows(found.parts[0]))


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        ("{server}/none.jsonl", UsageError, "none.jsonl: no such file"),
        ("{server}/none/*.jsonl", UsageError, "no such file"),
        ("{server}/notes.txt", UsageError, "no such file"),
        ("http://127.0.0.1:9/a.jsonl", DataError, "127.0.0.1:9/a.jsonl: the request failed (ConnectionRefusedError"),
        ("ftp://example.org/a.jsonl", UsageError, "the URLs that can be used"),
        ("hf://me/set/a.jsonl", UsageError, "hf://datasets/OWNER/NAME"),
    ],
)
def test_places_that_cannot_be(http: Server, url: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        read(url.format(server=http.url))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(UsageError, match=re.escape(f"needs aiohttp: {install('url')}")):
        read("https://example.org/a.jsonl")


def test_nothing_under_a_remote_output_is_taken_for_input(http: Server) -> None:
    found = inputs.expand([http.url], Path(), outside=f"{http.url}/some")
    assert [urls.components(str(place))[-1] for place in found] == FILES[1:2] + FILES[:1] + FILES[3:4] + FILES[2:3]


PIPELINE = '[build]\nchunk_bytes = 50000\n[[build.inputs]]\nuse = "ultrafeedback"\n[build.language]\n'


def test_secrets_of_a_signed_url_are_nowhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    write_lines(raw / "a.jsonl", dirty_lines(7, 200))
    (tmp_path / "p.toml").write_text(PIPELINE)
    with serving(raw, servers.Signed) as server:
        signed = f"{server.url}/a.jsonl?token={TOKEN}&X-Other=1"
        with_password = signed.replace("http://", f"http://me:{TOKEN}@")
        build = functools.partial(build_pairs, load_pipeline(str(tmp_path / "p.toml")))
        record = build(tmp_path / "remote", given=[with_password], keep_work=True)
        assert [file.path for file in record.inputs] == ["a.jsonl"]
        assert [shard.sha256 for shard in record.shards] == [
            shard.sha256 for shard in build(tmp_path / "local", given=[str(raw / "a.jsonl")]).shards
        ]
        messages = []
        for url in (signed.replace(TOKEN, "wrong" + TOKEN), signed.replace("a.jsonl", "b.jsonl")):
            with pytest.raises((DataError, UsageError)) as caught:
                read(url)
            messages.append(str(caught.value))
        server.faults = ["500"] * 100
        with pytest.raises(DataError) as caught:
            read(with_password)
        messages.append(str(caught.value))
    written = b"".join(path.read_bytes() for path in (tmp_path / "remote").rglob("*") if path.is_file())
    assert TOKEN.encode() not in written
    assert TOKEN not in "".join([*messages, *capfd.readouterr()])
    assert all("127.0.0.1" in message for message in messages)


def test_names_and_messages_hold_no_secret() -> None:
    url = f"https://me:{TOKEN}@example.org:8443/sets/a.jsonl?sig={TOKEN}#x"
    assert urls.shown(url) == "https://example.org:8443/sets/a.jsonl"
    (files,) = inputs.name_files([[url, Path("/data/a.jsonl"), "s3://bucket/b/a.jsonl"]])
    assert [file.name for file in files] == ["sets/a.jsonl", "data/a.jsonl", "b/a.jsonl"]
    text = f"GET https://me:{TOKEN}@h/p?sig={TOKEN} failed, url='http://h/p?{TOKEN}' and /path?a=b&t={TOKEN}"
    assert TOKEN not in urls.discreet(text)


FEW_PLACES = ["plain.jsonl", "rows.parquet", "some", "*.jsonl"]  # since these clients take their time


def test_the_hub(folder: Path) -> None:
    pytest.importorskip("huggingface_hub")
    wanted = [f"hf://datasets/me/set{'@main' * (i % 2)}/{place}" for i, place in enumerate(FEW_PLACES)]
    absent = [f"hf://datasets/me/{place}" for place in ("set/none.jsonl", "set@v9/a.jsonl", "other/a.jsonl")]
    with serving(folder, servers.Hub) as server:
        server.faults = ["", "503"]
        *found, none, revision, other = read_elsewhere([*wanted, *absent], HF_ENDPOINT=server.url, HF_TOKEN=TOKEN)
        (refused,) = read_elsewhere(wanted[:1], HF_ENDPOINT=server.url, HF_TOKEN="hf_wrong")
    assert [list(map(tuple, rows)) for rows in found] == [read(str(folder / place)) for place in FEW_PLACES]
    assert none.startswith("UsageError: hf://datasets/me/set/none.jsonl: no such file")
    assert revision == "NotFound: hf://datasets/me/set@v9/a.jsonl: not found."
    assert other == "NotFound: hf://datasets/me/other/a.jsonl: not found."
    assert {path.split("/")[5] for _, path, _ in server.log if "/resolve/" in path} == {COMMIT}
    assert "needs other credentials (401). They are taken from HF_TOKEN." in refused
    assert "hf_wrong" not in refused and SIGNED not in refused


def test_google_storage(folder: Path) -> None:
    pytest.importorskip("gcsfs")
    wanted = [f"gs://{folder.name}/{place}" for place in FEW_PLACES]
    absent = [f"gs://{folder.name}/none.jsonl", "gs://other/a.jsonl"]
    environment = {"FSSPEC_GS_TOKEN": "anon", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    with serving(folder.parent, servers.Google) as server:
        server.faults = ["", "503"]
        *found, none, bucket = read_elsewhere([*wanted, *absent], STORAGE_EMULATOR_HOST=server.url, **environment)
    assert [list(map(tuple, rows)) for rows in found] == [read(str(folder / place)) for place in FEW_PLACES]
    assert "no such file" in none and "no such file" in bucket


@pytest.fixture(scope="module")
def s3(folder: Path) -> Iterator[Any]:
    with servers.s3() as files:
        for path in folder.rglob("*"):
            if path.is_file():
                files.pipe_file(f"bucket/sets/{path.relative_to(folder).as_posix()}", path.read_bytes())
        files.pipe_file("bucket/sets2/beside.jsonl", b"{}")
        files.pipe_file("bucket/odd/a[1].jsonl", b'{"a": 1}')
        yield files


@pytest.mark.parametrize("place", PLACES)
def test_s3(s3: Any, folder: Path, place: str) -> None:
    assert read(f"s3://bucket/sets/{place}") == read(str(folder / place))


def test_s3_places_that_cannot_be(s3: Any) -> None:
    assert read("s3://bucket/odd/a[1].jsonl") == [("a[1].jsonl", 1, {"a": 1})]
    for place in ("bucket/none.jsonl", "bucket/none/*.jsonl", "no-bucket/a.jsonl"):
        with pytest.raises(UsageError, match="no such file"):
            read(f"s3://{place}")


def test_an_object_of_s3_that_changes_is_noticed(s3: Any) -> None:
    s3.pipe_file("bucket/changing.jsonl", b'{"a": 1}\n' * 3000)
    (file,) = inputs.name_files([inputs.expand(["s3://bucket/changing.jsonl"], Path())])[0]
    found = inputs.index(file, CHUNK)
    reading = inputs.rows(found.parts[0])
    next(reading)
    s3.pipe_file("bucket/changing.jsonl", b'{"a": 2}\n' * 3000)
    with pytest.raises(DataError, match="changed"):
        list(reading)
