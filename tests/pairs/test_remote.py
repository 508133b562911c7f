"""A data set at a URL: whatever happens, there is a manifest only if all of its files are there."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefkit import manifest, urls
from prefkit.errors import DataError, UsageError
from prefkit.manifest import Manifest, Shard
from prefkit.pairs import remote
from tests.pairs import servers
from tests.pairs.servers import serving

URL = "s3://bucket/sets/mine"


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    with servers.s3() as files:
        yield files


@pytest.fixture(autouse=True)
def _empty(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "WAITS", (0.001,))
    if store.exists("bucket/sets"):
        store.rm("bucket/sets", recursive=True)


def data_set(folder: Path, text: str, shards: int) -> Manifest:
    """A folder as a build leaves it: files by their names, and a manifest that knows them."""
    names = [f"data/train-{n:05d}-of-{shards:05d}.parquet" for n in range(shards)]
    names.append("rejects/rejects-00000-of-00001.parquet")
    listed: list[Shard] = []
    for name in names:
        content = f"{text} {name}".encode()
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        listed.append(
            Shard(name, name.split("/")[1].split("-")[0], 1, len(content), hashlib.sha256(content).hexdigest())
        )
    (folder / "README.md").write_text(f"card of {text}")
    (folder / "report.html").write_text(f"report of {text}")
    record = Manifest("p", "", [], {"text": text}, {"prefkit": "0"}, [], [], listed)
    (folder / "manifest.json").write_text(manifest.dump(record))
    return record


def present(store: Any) -> dict[str, bytes]:
    store.invalidate_cache()
    found = store.find("bucket/sets/mine")
    return {name.removeprefix("bucket/sets/mine/"): store.cat_file(name) for name in found}


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_data_set_arrives_in_whole_with_its_manifest_last(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = data_set(tmp_path, "one", 3)
    assert remote.read_manifest(URL) is None
    sent: list[str] = []
    put = store.put_file
    monkeypatch.setattr(store, "put_file", lambda path, place: (sent.append(place), put(path, place))[1])
    sizes: list[int] = []
    assert remote.upload(tmp_path, URL + "/", on_sent=sizes.append)
    assert present(store) == content(tmp_path)
    assert remote.read_manifest(URL) == record
    assert sent[-1] == f"{URL}/manifest.json" and len(sent) == 7
    assert sum(sizes) == sum(len(text) for name, text in content(tmp_path).items() if name != "manifest.json")
    assert not remote.upload(tmp_path, URL), "it is there already"
    assert len(sent) == 7
    store.rm_file("bucket/sets/mine/report.html")
    assert not remote.upload(tmp_path, URL)
    assert present(store) == content(tmp_path), "a report that is there by now is sent after it"


def test_another_data_set_is_only_replaced_with_leave(store: Any, tmp_path: Path) -> None:
    data_set(tmp_path / "old", "old", 3)
    data_set(tmp_path / "new", "new", 1)
    remote.upload(tmp_path / "old", URL)
    store.pipe_file("bucket/sets/mine/notes.txt", b"mine")
    with pytest.raises(UsageError, match=f"{URL}: holds a finished data set of other inputs"):
        remote.upload(tmp_path / "new", URL)
    assert present(store) == content(tmp_path / "old") | {"notes.txt": b"mine"}
    assert remote.upload(tmp_path / "new", URL, overwrite=True)
    assert present(store) == content(tmp_path / "new") | {"notes.txt": b"mine"}


def test_a_data_set_without_a_report_leaves_none_of_the_old_one(store: Any, tmp_path: Path) -> None:
    data_set(tmp_path / "old", "old", 3)
    data_set(tmp_path / "new", "new", 3)
    (tmp_path / "new" / "report.html").unlink()
    remote.upload(tmp_path / "old", URL)
    assert remote.upload(tmp_path / "new", URL, overwrite=True)
    assert present(store) == content(tmp_path / "new")


def test_a_page_of_that_name_alone_is_somebody_elses(store: Any) -> None:
    store.pipe_file("bucket/sets/mine/report.html", b"mine")
    with pytest.raises(UsageError, match=r"report\.html: is not of a data set of prefkit"):
        remote.check(URL)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("before", [True, False])
def test_stopped_at_any_change_there_is_no_manifest_of_half_a_data_set(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    olds, news = data_set(tmp_path / "old", "old", 3), data_set(tmp_path / "new", "new", 2)
    for fatal in itertools.count():
        _reset(store, tmp_path)
        calls = itertools.count()

        def dying(change: Callable[..., Any], fatal: int = fatal, calls: Iterator[int] = calls) -> Callable[..., Any]:
            def call(*args: Any) -> Any:
                last = next(calls) == fatal
                if last and before:
                    raise Killed
                result = change(*args)
                if last:
                    raise Killed
                return result

            return call

        with monkeypatch.context() as patch:
            for name in ("put_file", "rm_file"):
                patch.setattr(store, name, dying(getattr(store, name)))
            try:
                remote.upload(tmp_path / "new", URL, overwrite=True)
                died = False
            except Killed:
                died = True
        found, there = remote.read_manifest(URL), present(store)
        assert found in (None, olds, news)
        if found is not None:
            assert there == content(tmp_path / ("old" if found == olds else "new"))
        assert remote.upload(tmp_path / "new", URL, overwrite=True) is (found != news)
        assert present(store) == content(tmp_path / "new")
        if not died:
            break
    assert fatal == 1 + 5 + 3 + 1, "the old manifest, five files, three of the old, the manifest"


def _reset(store: Any, tmp_path: Path) -> None:
    if store.exists("bucket/sets"):
        store.rm("bucket/sets", recursive=True)
    remote.upload(tmp_path / "old", URL)


def test_a_file_that_was_not_stored_in_whole(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_set(tmp_path, "one", 2)
    monkeypatch.setattr(store, "put_file", lambda path, place: store.pipe_file(place, b"cut"))
    with pytest.raises(DataError, match="was not stored in whole"):
        remote.upload(tmp_path, URL)
    assert "manifest.json" not in present(store)


def test_what_is_not_ours_is_left_alone(store: Any, tmp_path: Path) -> None:
    data_set(tmp_path, "one", 1)
    store.pipe_file("bucket/sets/mine/data/thesis.parquet", b"years of work")
    with pytest.raises(UsageError, match=r"data/thesis\.parquet: is not of a data set of prefkit"):
        remote.upload(tmp_path, URL, overwrite=True)
    store.rm_file("bucket/sets/mine/data/thesis.parquet")
    remote.upload(tmp_path, URL)
    store.pipe_file("bucket/sets/mine/rejects/mine.txt", b"x")
    with pytest.raises(UsageError, match=r"rejects/mine\.txt"):
        remote.upload(tmp_path, URL, overwrite=True)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://bucket", "--out takes a folder, s3://BUCKET/PREFIX"),
        ("https://user:word@example.org/x?y=z", "https://example.org/x: --out takes"),
        ("s3://no-such-bucket/sets", "s3://no-such-bucket: there is no such bucket"),
    ],
)
def test_outputs_that_cannot_be(store: Any, url: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        remote.check(url)


GOOGLE = """
import sys
from pathlib import Path
from prefkit import manifest
from prefkit.errors import UsageError
from prefkit.pairs import remote

old, new = Path(sys.argv[1]), Path(sys.argv[2])
assert remote.upload(old, "gs://bucket/mine")
assert remote.read_manifest("gs://bucket/mine") == manifest.read(old)
try:
    remote.upload(new, "gs://bucket/mine")
except UsageError as error:
    print(error)
assert remote.upload(new, "gs://bucket/mine", overwrite=True)
assert remote.read_manifest("gs://bucket/mine") == manifest.read(new)
try:
    remote.check("gs://other/mine")
except UsageError as error:
    print(error)
"""


def test_google_storage(tmp_path: Path) -> None:
    """In a process of its own: gcsfs decides when it is imported whether it speaks gRPC, which the stub does not."""
    pytest.importorskip("gcsfs", reason="needs gcsfs: pip install 'prefkit[url]'")
    for name, pairs in (("old", 3), ("new", 1)):
        data_set(tmp_path / name, name, pairs)
    (tmp_path / "google" / "bucket").mkdir(parents=True)
    with serving(tmp_path / "google", servers.Google) as server:
        settings = {
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "STORAGE_EMULATOR_HOST": server.url,
            "FSSPEC_GS": '{"token": "anon"}',
        }
        command = [sys.executable, "-c", GOOGLE, str(tmp_path / "old"), str(tmp_path / "new")]
        done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "holds a finished data set" in first
    assert second.startswith("gs://other: there is no such bucket")
    assert content(tmp_path / "google" / "bucket" / "mine") == content(tmp_path / "new")


def test_a_damaged_manifest_is_named_and_can_be_replaced(store: Any, tmp_path: Path) -> None:
    store.pipe_file("bucket/sets/mine/manifest.json", b'{"format": 2}')
    with pytest.raises(DataError, match=r"s3://bucket/sets/mine/manifest\.json: damaged"):
        remote.read_manifest(URL)
    record = data_set(tmp_path, "one", 1)
    assert remote.upload(tmp_path, URL, overwrite=True)
    assert remote.read_manifest(URL) == record


def test_the_work_folder_belongs_to_its_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert remote.work_folder(URL).is_relative_to(tmp_path)
    assert remote.work_folder(URL) == remote.work_folder(URL + "/") != remote.work_folder("s3://other/sets/mine")
