"""Every shipped pipeline on rows of its data set: whole, deterministic, resumable, and no cluster on both sides."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from prefkit.config import Pipeline, load_pipeline, shipped, shipped_pipelines
from prefkit.pairs.build import build_pairs
from prefkit.pairs.verify import verify
from prefkit.schema import IDS
from tests.pairs.kills import killed_at
from tests.pairs.test_build import contents, pairs_of

FIXTURES = Path(__file__).parent / "fixtures"
BUILDING = [name for name in shipped_pipelines() if "build" in load_pipeline(name).table]  # others are training's alone
SAME_DATA = {"llama3-8b-ultrafeedback": "ultrafeedback", "kto": "unpaired"}


@pytest.fixture
def raw(name: str, tmp_path: Path) -> Path:
    """Rows of the data set that the pipeline reads: its fixture, or the beginning of the demo's own file."""
    path = FIXTURES / f"{SAME_DATA.get(name, name).replace('-', '_')}.jsonl"
    if name != "demo":
        return path
    with gzip.open(shipped("data") / "demo.jsonl.gz", "rb") as file:
        (tmp_path / "demo.jsonl").write_bytes(b"".join(line for line, _ in zip(file, range(150), strict=False)))
    return tmp_path / "demo.jsonl"


@pytest.fixture
def pipeline(name: str) -> Pipeline:
    return load_pipeline(name, ["build.split.test=0.4"])


def data_of(out: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(out).items() if name.endswith(".parquet")}


@pytest.mark.parametrize("name", BUILDING)
def test_whole_deterministic_and_resumed(
    name: str, raw: Path, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tmp_path / "expected"
    record = build_pairs(pipeline, expected, given=[str(raw)])
    assert verify(expected) == []  # conservation, real preferences, no leak
    assert record.rows("train") + record.rows("test") == len(pairs_of(expected))
    rows = [line for line in raw.read_bytes().splitlines() if line.strip()]
    assert record.inputs[0].rows == len(rows)

    in_pieces = load_pipeline(name, [*pipeline.overrides, "build.chunk_bytes=700"])
    assert killed_at(monkeypatch, 25, lambda: build_pairs(in_pieces, tmp_path / "again", given=[str(raw)]))
    assert not (tmp_path / "again" / "manifest.json").exists()
    build_pairs(in_pieces, tmp_path / "again", given=[str(raw)])
    assert data_of(tmp_path / "again") == data_of(expected)


@pytest.mark.parametrize("name", BUILDING)
def test_the_rows_twice_give_the_pairs_once(name: str, raw: Path, pipeline: Pipeline, tmp_path: Path) -> None:
    """A second copy of every row, in another file, adds rejects and nothing else."""
    record = build_pairs(pipeline, tmp_path / "once", given=[str(raw)])
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(raw.read_bytes())
    build_pairs(pipeline, tmp_path / "twice", given=[str(raw), str(copy)])
    assert verify(tmp_path / "twice") == []
    once, twice = (set(pairs_of(tmp_path / out)[IDS[record.kind]]) for out in ("once", "twice"))
    assert once == twice


def test_every_pipeline_names_licence_and_cautions() -> None:
    for name in shipped_pipelines():
        text = (shipped("pipelines") / f"{name}.toml").read_text(encoding="utf-8")
        comments = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
        assert "Caution" in comments, name
        assert (
            name == "demo"
            or "licen" in comments.lower()
            or any(known in comments for known in ("MIT", "Apache", "CC", "ODC", "Llama"))
        ), name


def test_fixtures_hold_quirks(tmp_path: Path) -> None:
    """A fixture of nothing but good rows would prove little."""
    for name in ("ultrafeedback", "hh-rlhf", "ultrafeedback-binarized"):
        raw = FIXTURES / f"{name.replace('-', '_')}.jsonl"
        record = build_pairs(load_pipeline(name), tmp_path / name, given=[str(raw)])
        reasons = {reason for stage in record.stages for reason in stage.rejected}
        assert len(reasons - {"not_selected"}) >= 3, (name, reasons)
        assert json.loads(raw.read_text().splitlines()[0])
