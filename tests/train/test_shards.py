"""Data sets at URLs: the same training, each fetched shard checked, and no more kept than allowed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prefkit import manifest, urls
from prefkit.errors import DataError, UsageError
from prefkit.train import evaluate, run, shards
from tests.pairs import servers
from tests.pairs.servers import COMMIT, TOKEN, serving
from tests.train.datasets_for_tests import pipeline, toy_pairs, write_data_set
from tests.train.test_run import DPO, lines

URL = "s3://bucket/sets/toy"


@pytest.fixture(scope="module")
def store():
    with servers.s3() as files:
        yield files


@pytest.fixture
def remote(store, tmp_path, monkeypatch):
    """A data set in a folder and the same one at URL; the list grows by each file that is fetched."""
    monkeypatch.setattr(urls, "WAITS", (0.001,) * 3)
    rows = toy_pairs(24, answers=3)
    write_data_set(tmp_path / "d", rows[:54], rows[54:], shards=4)
    if store.exists("bucket/sets"):
        store.rm("bucket/sets", recursive=True)
    for path in (tmp_path / "d").rglob("*.*"):
        if path.is_file():
            store.put_file(str(path), f"bucket/sets/toy/{path.relative_to(tmp_path / 'd')}")
    fetched = []
    whole = shards._fetch
    monkeypatch.setattr(shards, "_fetch", lambda data, shard: (fetched.append(shard.path), whole(data, shard))[1])
    return tmp_path / "d", fetched


def kept(out: Path) -> set[str]:
    return {path.name for path in out.rglob("data-*/data/*.parquet")}


def test_training_from_a_url_is_training_from_the_folder(remote, tmp_path):
    data, fetched = remote
    run.train(pipeline(tmp_path, DPO), data=data, out=tmp_path / "local")
    run.train(pipeline(tmp_path, DPO), data=URL, out=tmp_path / "far")
    assert lines(tmp_path / "far") == lines(tmp_path / "local")
    assert sorted(fetched) == sorted(shard.path for shard in manifest.read(data).shards)
    model = tmp_path / "local" / "model"
    found = [evaluate.evaluate(model, data=place) for place in (data, URL)]
    assert found[0] == found[1]


@pytest.mark.parametrize("url", ["https://me:{}@host/sets/toy", "https://host/sets/toy?sig={}"])
def test_a_url_with_a_secret_is_refused_before_it_is_kept(tmp_path, url):
    with pytest.raises(UsageError, match=r"https://host/sets/toy: the URL of a data set .* holds no") as caught:
        run.train(pipeline(tmp_path, DPO), data=url.format("hunter2"), out=tmp_path / "r")
    assert "hunter2" not in str(caught.value)
    assert not (tmp_path / "r").exists()


def test_no_more_is_kept_than_allowed(remote, tmp_path):
    data, fetched = remote
    run.train(pipeline(tmp_path, DPO), data=URL, out=tmp_path / "r", shard_cache=1e-6, max_steps=2)
    assert len(kept(tmp_path / "r")) == shards.ALWAYS_KEPT
    listed = manifest.read(data).shards
    one = max(shard.bytes for shard in listed)
    mirror = shards.mirror(URL, manifest.read(data), tmp_path / "m", 3.5 * one / shards.GIGABYTE)
    for number, shard in enumerate(listed):
        os.utime(shards.local(mirror, shard), ns=(number, number))
    assert kept(tmp_path / "m") == {Path(shard.path).name for shard in listed[2:]}
    fetched.clear()
    shards.local(mirror, listed[-1])
    assert fetched == []


def test_damage_of_a_kept_shard_is_found_and_mended(remote, tmp_path):
    data, fetched = remote
    record = manifest.read(data)
    mirror = shards.mirror(URL, record, tmp_path)
    path = shards.local(mirror, record.shards[0])
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert shards.local(mirror, record.shards[0]).read_bytes() == (data / record.shards[0].path).read_bytes()
    assert len(fetched) == 2


def test_damage_at_the_url_is_refused_and_named(store, remote, tmp_path):
    data, _ = remote
    name = manifest.read(data).shards[1].path
    store.pipe_file(f"bucket/sets/toy/{name}", (data / name).read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=rf"{URL}/{name}: not the bytes that the manifest lists"):
        run.train(pipeline(tmp_path, DPO), data=URL, out=tmp_path / "r")
    assert not (tmp_path / "r" / "metrics.jsonl").exists()


def test_what_is_no_data_set_is_refused(remote, tmp_path):
    with pytest.raises(DataError, match=r"s3://bucket/none/manifest\.json: not found, so there is no"):
        run.train(pipeline(tmp_path, DPO), data="s3://bucket/none", out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_lost_connections_cost_nothing_but_time(remote, tmp_path, monkeypatch):
    data, _ = remote
    with serving(data, servers.Handler) as server:
        record = shards.manifest_of(server.url)
        assert record == manifest.read(data)
        mirror = shards.mirror(server.url, record, tmp_path)
        server.faults += ["drop", "503", "short"]
        for shard in record.shards:
            assert shards.local(mirror, shard).read_bytes() == (data / shard.path).read_bytes()
        assert not server.faults


FETCH = """
import sys
from pathlib import Path
from prefkit.train import shards
url, folder = sys.argv[1], Path(sys.argv[2])
record = shards.manifest_of(url)
mirror = shards.mirror(url, record, folder)
for shard in record.shards:
    print(shards.local(mirror, shard))
"""


def test_the_hub_is_read_at_the_commit_of_the_beginning(remote, tmp_path):
    pytest.importorskip("huggingface_hub")
    data, _ = remote
    with serving(data, servers.Hub) as server:
        given = {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
        words = [sys.executable, "-c", FETCH, "hf://datasets/me/set", str(tmp_path)]
        done = subprocess.run(words, env={**os.environ, **given}, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr
        asked = {path.split("/")[5] for _, path, _ in server.log if "/resolve/" in path}
    assert asked == {COMMIT}
    for path, shard in zip(done.stdout.split(), manifest.read(data).shards, strict=True):
        assert Path(path).read_bytes() == (data / shard.path).read_bytes()
