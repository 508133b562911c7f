"""`export --push-to-hub` with huggingface_hub's own client, against a hub on this machine that keeps what it gets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefkit import manifest
from prefkit.cli import main
from prefkit.config import load_pipeline
from prefkit.extras import install
from prefkit.pairs.build import build_pairs
from prefkit.pairs.verify import verify
from tests.conftest import PROJECT
from tests.pairs.raw import dirty_lines, write_lines
from tests.pairs.stub_hub import TOKEN, Hub, serve

pytest.importorskip("huggingface_hub")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running hub; the client finds no login and no cache of ours."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with serve() as running:
        yield running


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("hub"), "build.shards.pairs_per_shard=20")


def make(folder: Path, *changes: str) -> Path:
    raw = write_lines(folder / "raw.jsonl", dirty_lines(120))
    build_pairs(load_pipeline("ultrafeedback", ["build.split.test=0.3", *changes]), folder / "data", given=[str(raw)])
    return folder / "data"


def run(hub: Hub, *arguments: object, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: huggingface_hub reads its environment once, when it is imported."""
    home = {"HF_HOME": os.environ["HF_HOME"], "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    ours = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | home
    command = [sys.executable, "-m", "prefkit", "export", *map(str, arguments)]
    ours |= {"HF_TOKEN": token} if token else {}
    done = subprocess.run(command, capture_output=True, text=True, env=ours, cwd=PROJECT)
    assert not token or token not in done.stdout + done.stderr, "a token is never printed"
    return done


def fails(hub: Hub, code: int, *arguments: object, token: str | None = TOKEN) -> str:
    done = run(hub, *arguments, "--quiet", token=token)
    assert (done.returncode, done.stdout) == (code, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def files(folder: Path) -> dict[str, bytes]:
    """What a push sends: neither hidden files nor the sketches, which serve only builds on this machine."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith((".", "sketches/"))}


def test_a_data_set_arrives_as_it_is(hub: Hub, data: Path, tmp_path: Path) -> None:
    (data / ".cache").mkdir(exist_ok=True)
    (data / ".cache" / "tokens").write_text("stays here")
    done = run(hub, data, "--push-to-hub", "me/pairs", "--private")
    assert done.returncode == 0, done.stderr
    repo = hub.repos["me/pairs"]
    there = {name: bytes_ for name, bytes_ in repo.branches["main"].items() if name != ".gitattributes"}
    assert there == files(data)
    assert sum(name.startswith("data/train-") for name in there) > 1
    assert repo.private
    assert repo.commits == [
        f"prefkit {manifest.read(data).versions['prefkit']}: data set {manifest.read(data).data_hash}"
    ]
    assert f"pushed: {hub.url}/datasets/me/pairs/commit/{repo.sha('main')}" in done.stdout
    for name, content in there.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert verify(tmp_path) == []


def test_a_second_push_replaces_the_first_in_one_commit(hub: Hub, data: Path, tmp_path: Path) -> None:
    assert run(hub, data, "--push-to-hub", "me/pairs").returncode == 0
    repo = hub.repos["me/pairs"]
    assert not repo.private
    repo.branches["main"]["LICENSE"] = b"by hand"
    sent = len(hub.requests)
    assert run(hub, data, "--push-to-hub", "me/pairs").returncode == 0
    assert len(repo.commits) == 1, "nothing changed, so nothing is committed"
    assert not any("PUT" in request or "/commit/" in request for request in hub.requests[sent:])
    other = make(tmp_path, "build.shards.pairs_per_shard=1000", "build.split.seed=1")
    assert run(hub, other, "--push-to-hub", "me/pairs").returncode == 0
    assert len(repo.commits) == 2
    there = {name: bytes_ for name, bytes_ in repo.branches["main"].items() if name != ".gitattributes"}
    assert there == files(other) | {"LICENSE": b"by hand"}


def test_an_export_goes_to_a_branch(hub: Hub, data: Path, tmp_path: Path) -> None:
    assert run(hub, data, "--push-to-hub", "me/pairs").returncode == 0
    before = dict(hub.repos["me/pairs"].branches["main"])
    out = tmp_path / "out"
    made = run(hub, data, "--format", "trl", "--out", out, "--push-to-hub", "me/pairs", "--revision", "for-trl")
    assert made.returncode == 0, made.stderr
    branches = hub.repos["me/pairs"].branches
    assert branches["main"] == before
    assert branches["for-trl"] == files(out) | {".gitattributes": b""}
    assert manifest.read(data).data_hash in hub.repos["me/pairs"].commits[-1]
    assert "trl export" in hub.repos["me/pairs"].commits[-1]
    assert run(hub, out, "--push-to-hub", "me/other").returncode == 0, "an export can be pushed later, too"
    assert hub.repos["me/other"].branches["main"] == files(out) | {".gitattributes": b""}


def test_mistakes(hub: Hub, data: Path, tmp_path: Path) -> None:
    assert "no Hugging Face token" in fails(hub, 2, data, "--push-to-hub", "me/pairs", token=None)
    assert "does not accept your token" in fails(hub, 2, data, "--push-to-hub", "me/pairs", token="hf_expired")
    assert "may not write there" in fails(hub, 2, data, "--push-to-hub", "someone/pairs")
    hub.broken = "/commit/"
    assert "500" in fails(hub, 1, data, "--push-to-hub", "me/pairs")
    assert hub.repos["me/pairs"].commits == []
    hub.broken = ""
    assert "is public" in fails(hub, 2, data, "--push-to-hub", "me/pairs", "--private")
    assert hub.repos["me/pairs"].commits == []
    out = tmp_path / "out"
    export = ("--format", "trl", "--out", out)
    assert "no Hugging Face token" in fails(hub, 2, data, *export, "--push-to-hub", "me/pairs", token=None)
    assert not out.exists(), "what cannot be pushed is found out before the work is done"


def test_a_hub_that_cannot_be_reached(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    nowhere = Hub(url="http://127.0.0.1:9")
    assert "--push-to-hub me/pairs failed: " in fails(nowhere, 1, data, "--push-to-hub", "me/pairs")


def test_a_damaged_data_set_is_not_pushed(hub: Hub, tmp_path: Path) -> None:
    data = make(tmp_path)
    shard = data / manifest.read(data).of_split("rejects")[0].path
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "missing or changed" in fails(hub, 1, data, "--push-to-hub", "me/pairs")
    assert "no manifest" in fails(hub, 1, tmp_path, "--push-to-hub", "me/pairs")
    assert hub.repos == {}


@pytest.mark.parametrize("repo", ["me/-pairs", "me/my/pairs", "me/pairs!", "pairs"])
def test_names_that_cannot_be(data: Path, capsys: pytest.CaptureFixture[str], repo: str) -> None:
    assert main(["export", str(data), "--push-to-hub", repo]) == 2
    assert repo in capsys.readouterr().err


def test_without_huggingface_hub(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["export", str(data), "--push-to-hub", "me/pairs"]) == 2
    assert install("hub") in capsys.readouterr().err
