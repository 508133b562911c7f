"""`verify` finds what a damaged, cut or forged data set has wrong."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from prefkit import manifest, schema
from prefkit.config import load_pipeline
from prefkit.errors import DataError
from prefkit.pairs import tables
from prefkit.pairs.build import build_pairs
from prefkit.pairs.verify import verify
from tests.pairs.raw import dirty_lines, write_lines


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "p.toml").write_text('[build]\nsplit = { test = 0.3 }\n[[build.inputs]]\nuse = "ultrafeedback"\n')
    raw = write_lines(tmp_path / "raw.jsonl", dirty_lines(120))
    build_pairs(load_pipeline(str(tmp_path / "p.toml")), tmp_path / "out", given=[str(raw)])
    assert verify(tmp_path / "out") == []
    return tmp_path / "out"


def forge(out: Path, split: str, change: Callable[[pl.DataFrame], pl.DataFrame], kind: str = "pairs") -> None:
    """Rewrite the one shard of a split, with hash and size in the manifest made to fit."""
    record = manifest.read(out)
    (shard,) = record.of_split(split)
    rows = change(pl.read_parquet(out / shard.path))
    pq.write_table(tables.arrow(rows, schema.TABLES["rejects" if split == "rejects" else kind]), out / shard.path)
    fitted = dataclasses.replace(
        shard,
        rows=len(rows),
        bytes=(out / shard.path).stat().st_size,
        sha256=manifest.file_sha256(out / shard.path),
    )
    shards = [fitted if one == shard else one for one in record.shards]
    (out / "manifest.json").write_text(manifest.dump(dataclasses.replace(record, shards=shards)))


def found(out: Path, words: str) -> bool:
    return any(words in problem for problem in verify(out))


def test_a_missing_a_cut_a_changed_and_a_foreign_file(out: Path) -> None:
    path = next((out / "data").glob("train-*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert found(out, "bytes, but the manifest says")
    path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    assert found(out, "SHA-256")
    path.unlink()
    assert found(out, "missing")
    path.write_bytes(whole)
    (out / "data" / "extra.parquet").touch()
    assert found(out, "extra.parquet: not in the manifest")


def test_a_pair_that_was_taken_out(out: Path) -> None:
    forge(out, "train", lambda rows: rows.slice(1))
    assert found(out, "pairs by its stages")
    assert found(out, "conservation")


def test_a_reject_that_was_taken_out_put_in_twice_or_renamed(out: Path) -> None:
    rejects = next((out / "rejects").glob("*"))
    whole = pl.read_parquet(rejects)
    forge(out, "rejects", lambda rows: rows.slice(1))
    assert found(out, "conservation")
    forge(out, "rejects", lambda rows: pl.concat([whole, whole.slice(0, 1)]))
    assert found(out, "rejected twice")
    forge(out, "rejects", lambda rows: whole.with_columns(reason=pl.lit("because")))
    assert found(out, "because of")


def test_pairs_that_are_no_preference(out: Path) -> None:
    forge(out, "train", lambda rows: rows.with_columns(chosen_score="rejected_score", margin=pl.lit(0.0)))
    assert found(out, "not scored above")
    forge(out, "train", lambda rows: rows.with_columns(margin=pl.lit(5.5)))
    assert found(out, "difference of the scores")
    forge(out, "train", lambda rows: rows.with_columns(chosen="rejected"))
    assert found(out, "same text")


def test_a_leak(out: Path) -> None:
    cluster = pl.read_parquet(out / "data" / "test-*.parquet")["cluster_id"][0]
    forge(out, "train", lambda rows: rows.with_columns(cluster_id=pl.lit(cluster)))
    assert found(out, "leak: 1 clusters")


def test_a_manifest_that_does_not_add_up(out: Path) -> None:
    table = json.loads((out / "manifest.json").read_text())
    table["stages"][1]["went_out"] += 1
    (out / "manifest.json").write_text(json.dumps(table))
    assert found(out, "does not add up")


@pytest.mark.parametrize(("text", "words"), [("{", "damaged"), ('{"format": 99}', "format 99"), ("{}", "damaged")])
def test_a_manifest_that_cannot_be_read(out: Path, text: str, words: str) -> None:
    (out / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=words):
        verify(out)


def test_no_data_set_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no manifest"):
        verify(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        verify(tmp_path / "none")
