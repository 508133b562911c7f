"""A data set built onto another against one build from all files; what was there before stays as it was."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefkit import manifest
from prefkit.cli import main
from prefkit.config import Pipeline
from prefkit.errors import DataError, UsageError
from prefkit.manifest import Manifest
from prefkit.pairs import dedupe, extend, redact, why
from prefkit.pairs.build import build_pairs
from prefkit.pairs.verify import verify
from tests.pairs.kills import states
from tests.pairs.raw import WORDS, dirty_lines, write_lines
from tests.pairs.test_build import contents, pairs_of, pipeline, rejects_of, shingles

TEXT = """
[build]
language = false
[[build.inputs]]
use = "ultrafeedback"
[build.dedupe]
threshold = 0.6
ngram = 3
permutations = 64
[build.split]
test = 0.3
[build.shards]
pairs_per_shard = 40
"""


def build(chosen: Pipeline, out: Path, *files: Path, onto: Path | None = None, **options: Any) -> Manifest:
    record = build_pairs(chosen, out, given=[str(file) for file in files], onto=onto, **options)
    assert verify(out) == []
    return record


def thirds(folder: Path, count: int = 240, seed: int = 4) -> list[Path]:
    """Three raw files whose rows share prompts: equal and similar ones within each and across."""
    lines = dirty_lines(count, seed)
    return [write_lines(folder / f"{name}.jsonl", lines[at::3]) for at, name in enumerate("abc")]


def survivors(out: Path) -> dict[str, str]:
    """The cluster of each prompt that has a pair."""
    return dict(pairs_of(out).select("prompt_id", "cluster_id").iter_rows())


def worst_across(out: Path) -> float:
    grams = [[shingles(p[0]["content"]) for p in pairs_of(out, split)["prompt"]] for split in ("train", "test")]
    assert all(grams), "both sides must have pairs for this to mean anything"
    return max(len(a & b) / len(a | b) for a in grams[0] for b in grams[1])


def clusters_on_both_sides(out: Path) -> set[str]:
    return set(pairs_of(out, "train")["cluster_id"]) & set(pairs_of(out, "test")["cluster_id"])


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """one from a, two = one + b, three = two + c, and `all` from the three files at once."""
    folder = tmp_path_factory.mktemp("chain")
    a, b, c = thirds(folder)
    chosen = pipeline(folder, text=TEXT)
    build(chosen, folder / "one", a)
    build(chosen, folder / "two", b, onto=folder / "one")
    build(chosen, folder / "three", c, onto=folder / "two", workers=2)
    build(chosen, folder / "all", a, b, c)
    return folder


def test_new_prompts_survive_as_in_one_build_from_all_files(chain: Path) -> None:
    whole, grown, one = (survivors(chain / name) for name in ("all", "three", "one"))
    assert whole.items() <= grown.items()
    only_here = grown.keys() - whole.keys()
    assert only_here <= survivors(chain / "two").keys(), "only what was published before may be kept on top"
    assert len(one) < len(survivors(chain / "two")) < len(grown)
    columns = ["pair_id", "cluster_id", "chosen_file", "chosen_row", "rejected_row", "chosen_score", "margin"]
    together = pairs_of(chain / "three").filter(pl.col("prompt_id").is_in(list(whole))).select(columns)
    assert together.sort("pair_id").equals(pairs_of(chain / "all").select(columns).sort("pair_id"))
    for split in ("train", "test"):
        ids = pairs_of(chain / "all", split)["pair_id"]
        assert set(ids) <= set(pairs_of(chain / "three", split)["pair_id"])


def test_the_account_is_that_of_all_files(chain: Path) -> None:
    grown, whole = manifest.read(chain / "three"), manifest.read(chain / "all")
    assert [(f.path, f.rows, f.sha256) for f in grown.inputs] == [(f.path, f.rows, f.sha256) for f in whole.inputs]
    early = {"read", "filter"}
    assert [s for s in grown.stages if s.stage in early] == [s for s in whole.stages if s.stage in early]
    fell = rejects_of(chain / "three").filter(pl.col("stage") == "dedupe")
    across = fell.filter((pl.col("origin_file") == "c.jsonl") & pl.col("detail").str.contains("^[ab].jsonl, row"))
    assert set(across["reason"]) == {"exact_duplicate", "near_duplicate"}
    lines = {name: (chain / f"{name}.jsonl").read_bytes().split(b"\n") for name in "abc"}
    exact = across.filter(pl.col("reason") == "exact_duplicate")
    for row, detail in exact.select("origin_row", "detail").iter_rows():
        mine = json.loads(lines["c"][row - 1])["instruction"]
        twin = json.loads(lines[detail[0]][int(detail.split()[2]) - 1])["instruction"]
        assert mine.casefold() == twin.casefold()


def test_what_was_before_stays_byte_for_byte(chain: Path) -> None:
    for old, new in (("one", "two"), ("two", "three")):
        before, after = contents(chain / old), contents(chain / new)
        for name, data in before.items():
            if name not in {"manifest.json", "README.md", "report.html"}:
                assert after[name] == data
                assert os.path.samefile(chain / old / name, chain / new / name)
    assert len(list((chain / "three" / "data").glob("train-*-of-*-g2.parquet"))) == 1
    assert {path.name for path in (chain / "three" / "sketches").iterdir()} == {"g0", "g1", "g2"}


def test_the_manifests_make_a_chain(chain: Path) -> None:
    record = manifest.read(chain / "three")
    assert [one.inputs for one in record.generations] == [1, 2]
    for name, one in zip(("one", "two"), record.generations, strict=True):
        old = manifest.read(chain / name)
        assert one.manifest_sha256 == hashlib.sha256((chain / name / "manifest.json").read_bytes()).hexdigest()
        assert (one.data_hash, one.options) == (old.data_hash, old.options)
    forged = json.loads((chain / "three" / "manifest.json").read_text())
    forged["generations"][1]["shards"] = 1
    copy = chain / "forged"
    shutil.copytree(chain / "three", copy)
    (copy / "manifest.json").write_text(json.dumps(forged))
    assert any("generation 1" in problem for problem in verify(copy))


def test_datasets_reads_all_shards_by_the_card(chain: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset(str(chain / "three"), cache_dir=str(tmp_path))
    for split in ("train", "test"):
        assert sorted(found[split]["pair_id"]) == sorted(pairs_of(chain / "three", split)["pair_id"])


def test_no_similar_prompts_on_different_sides(chain: Path) -> None:
    assert worst_across(chain / "three") < 0.6
    assert not clusters_on_both_sides(chain / "three")


def test_kept_duplicates_go_to_the_side_of_the_old_ones(tmp_path: Path) -> None:
    a, b, c = thirds(tmp_path, 360, 6)
    keep = pipeline(tmp_path, "build.dedupe.action=keep", text=TEXT)
    build(keep, tmp_path / "one", a)
    build(keep, tmp_path / "two", b, onto=tmp_path / "one")
    build(keep, tmp_path / "three", c, onto=tmp_path / "two")
    assert worst_across(tmp_path / "three") < 0.6
    assert not clusters_on_both_sides(tmp_path / "three")
    old, grown = pairs_of(tmp_path / "one"), pairs_of(tmp_path / "three")
    new = grown.filter(pl.col("chosen_file") == "c.jsonl")
    assert new.filter(pl.col("prompt_id").is_in(old["prompt_id"].to_list())).height > 1, "equal prompts are kept"
    near = new.filter(~pl.col("prompt_id").is_in(old["prompt_id"].to_list()))
    assert near.filter(pl.col("cluster_id").is_in(old["cluster_id"].to_list())).height > 3


def words_row(first: int, last: int) -> bytes:
    text = " ".join(WORDS[first:last])
    answers = [{"response": f"answer {score}", "overall_score": score} for score in (1.0, 4.0)]
    return json.dumps({"instruction": text, "completions": answers}).encode()


@pytest.mark.parametrize("direct", [True, False])
def test_a_prompt_that_joins_two_sides_is_rejected(tmp_path: Path, direct: bool) -> None:
    """Words 0-14 and 14-28 are in old prompts of different sides; new ones have 0-28, or half of them each."""
    text = '[[build.inputs]]\nuse = "ultrafeedback"\n[build]\nlanguage = false\n[build.dedupe]\naction = "keep"\n'
    text += "ngram = 1\nthreshold = 0.3\npermutations = 64\n[build.split]\ntest = 0.5\nseed = SEED\n"
    old = write_lines(tmp_path / "old.jsonl", [words_row(0, 14), words_row(14, 28), words_row(28, 48)])
    new = [words_row(0, 28)] if direct else [words_row(4, 18), words_row(10, 24)]
    later = write_lines(tmp_path / "new.jsonl", [*new, words_row(28, 47)])
    outcomes = set()
    for seed in range(6):
        chosen, folder = pipeline(tmp_path, text=text.replace("SEED", str(seed))), tmp_path / str(seed)
        try:
            build(chosen, folder / "one", old)
        except DataError:
            continue
        sides = {row: split for split in ("train", "test") if list((folder / "one/data").glob(f"{split}-*"))
                 for row in pairs_of(folder / "one", split)["chosen_row"]}  # fmt: skip
        build(chosen, folder / "two", later, onto=folder / "one")
        same = sides[1] == sides[2]
        outcomes.add(same)
        fell = rejects_of(folder / "two") if list((folder / "two/rejects").iterdir()) else None
        if same:
            assert fell is None
            clusters = pairs_of(folder / "two").filter(pl.col("chosen_file") == "new.jsonl")["cluster_id"]
            first = pairs_of(folder / "two").filter(
                (pl.col("chosen_row") == 1) & (pl.col("chosen_file") == "old.jsonl")
            )
            assert (clusters == first["cluster_id"][0]).sum() == len(new)
        else:
            assert fell is not None
            assert set(fell["origin_row"]) == set(range(1, len(new) + 1))
            assert fell["detail"].str.contains("joins train and test prompts").all()
        if len(outcomes) == 2:
            break
    assert outcomes == {True, False}


def test_old_prompts_that_a_new_one_brings_together_both_stay(tmp_path: Path) -> None:
    """The one difference to a build from all files, where the second of them would fall."""
    text = '[[build.inputs]]\nuse = "ultrafeedback"\n[build]\nlanguage = false\nsplit = { test = 0.0 }\n'
    text += "[build.dedupe]\nngram = 1\nthreshold = 0.3\npermutations = 64\n"
    old = write_lines(tmp_path / "old.jsonl", [words_row(0, 14), words_row(14, 28)])
    new = write_lines(tmp_path / "new.jsonl", [words_row(0, 28), words_row(28, 48)])
    chosen = pipeline(tmp_path, text=text)
    build(chosen, tmp_path / "one", old)
    build(chosen, tmp_path / "two", new, onto=tmp_path / "one")
    build(chosen, tmp_path / "all", old, new)
    rows = [set(pairs_of(tmp_path / name).select("chosen_file", "chosen_row").rows()) for name in ("all", "two")]
    assert rows[0] == {("old.jsonl", 1), ("new.jsonl", 2)}
    assert rows[1] == rows[0] | {("old.jsonl", 2)}


def test_the_old_text_is_not_read_again(chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All bytes of the old Parquet files are made nonsense of the same size, and nobody notices before `verify`."""
    shutil.copytree(chain / "one", tmp_path / "one")
    for path in [*(tmp_path / "one" / "data").iterdir(), *(tmp_path / "one" / "rejects").iterdir()]:
        path.write_bytes(b"x" * path.stat().st_size)
    chosen = pipeline(chain, text=TEXT)
    build_pairs(
        chosen, tmp_path / "two", given=[str(chain / "b.jsonl")], onto=tmp_path / "one", with_report=False
    )  # the report is of the whole
    expected = contents(chain / "two")
    for name, data in contents(tmp_path / "two").items():
        if name.endswith("-g1.parquet") or name.startswith("sketches/"):
            assert data == expected[name]
    assert verify(tmp_path / "two") != []


def test_sketches_do_not_depend_on_chunks_buckets_or_ranges(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefkit.pairs.steps.BUCKET_BYTES", 20_000)
    monkeypatch.setattr(dedupe, "KEYS_A_TASK", 17)
    chosen = pipeline(tmp_path, "build.chunk_bytes=9000", "build.dedupe.permutations=16", text=TEXT)
    one = pipeline(tmp_path / "one", "build.dedupe.permutations=16", text=TEXT)
    build(chosen, tmp_path / "cut", chain / "a.jsonl")
    build(chosen, tmp_path / "cut2", chain / "b.jsonl", onto=tmp_path / "cut")
    monkeypatch.undo()
    build(one, tmp_path / "whole", chain / "a.jsonl")
    build(one, tmp_path / "whole2", chain / "b.jsonl", onto=tmp_path / "whole")
    ours, theirs = data_and_sketches(tmp_path / "cut2"), data_and_sketches(tmp_path / "whole2")
    assert ours == theirs
    keys = np.load(tmp_path / "cut2" / "sketches/g0/band_keys.npy")
    assert (keys[:, 1:] >= keys[:, :-1]).all()
    assert len(list((tmp_path / "cut2" / "sketches/g0").glob("shingles-*.npy"))) > 1


def data_and_sketches(out: Path) -> dict[str, bytes]:
    """All files but the texts about them; the shingles of a generation, which lie in the files of its buckets, as
    one."""
    found: dict[str, bytes] = {}
    for name, data in sorted(contents(out).items()):
        if "/shingles-" in name:
            values = np.load(out / name).tobytes()
            found[name.partition("-")[0]] = found.get(name.partition("-")[0], b"") + values
        elif not name.endswith((".json", ".md")):
            found[name] = data
    return found


def test_files_of_sketches_do_not_depend_on_chunks(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many buckets there are does not, either."""
    monkeypatch.setattr("prefkit.pairs.steps.BUCKET_BYTES", 20_000)
    found = []
    for chunk in (5_000, 20_000, 1 << 20):
        chosen = pipeline(tmp_path / f"{chunk}", f"build.chunk_bytes={chunk}", text=TEXT)
        build(chosen, tmp_path / f"out{chunk}", chain / "a.jsonl")
        found.append(contents(tmp_path / f"out{chunk}" / "sketches"))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) > 10


def test_copies_where_links_are_impossible(chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.link

    def link(source: Path, target: Path) -> None:
        if ".work" not in Path(source).parts:
            raise OSError(18, "Invalid cross-device link")
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    build(pipeline(chain, text=TEXT), tmp_path / "two", chain / "b.jsonl", onto=chain / "one")
    assert contents(tmp_path / "two") == contents(chain / "two")
    assert not os.path.samefile(chain / "one/sketches/g0/ids.npy", tmp_path / "two/sketches/g0/ids.npy")


def test_a_finished_one_is_left_and_nothing_new_is_no_error(chain: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (chain / "two").rglob("*")}
    build(pipeline(chain, text=TEXT), chain / "two", chain / "b.jsonl", onto=chain / "one")
    assert {path: path.stat().st_mtime_ns for path in (chain / "two").rglob("*")} == before
    with pytest.raises(UsageError, match="--overwrite"):
        build(pipeline(chain, text=TEXT), chain / "two", chain / "b.jsonl")
    again = write_lines(tmp_path / "again.jsonl", [b"", *(chain / "b.jsonl").read_bytes().split(b"\n")])
    record = build(pipeline(chain, text=TEXT), tmp_path / "out", again, onto=chain / "two")
    assert record.data_hash == manifest.read(chain / "two").data_hash
    assert record.stages[0].came_in > manifest.read(chain / "two").stages[0].came_in


def test_what_does_not_fit_is_refused(chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = pipeline(chain, text=TEXT)
    refused: list[tuple[Pipeline, Path, Path, Path, str]] = [
        (pipeline(tmp_path, "build.dedupe.threshold=0.7", text=TEXT), chain / "one", tmp_path / "o", chain / "b.jsonl",
         r"\[build.dedupe\] threshold: 0.7 here, but 0.6 in"),
        (pipeline(tmp_path / "s", "build.split.seed=9", text=TEXT), chain / "one", tmp_path / "o", chain / "b.jsonl",
         r"\[build.split\] seed"),
        (pipeline(tmp_path / "r", "build.redact.kinds=['ip']", text=TEXT), chain / "one", tmp_path / "o",
         chain / "b.jsonl", r"\[build.redact\] kinds: \['ip'\] here, but None in"),
        (chosen, chain / "two", tmp_path / "o", chain / "a.jsonl", r"already in .*two, as a.jsonl"),
        (chosen, chain / "one", chain / "one", chain / "b.jsonl", "a folder apart"),
        (chosen, chain / "one", chain / "one" / "in", chain / "b.jsonl", "a folder apart"),
    ]  # fmt: skip
    for given_pipeline, onto, out, file, words in refused:
        with pytest.raises(UsageError, match=words):
            build(given_pipeline, out, file, onto=onto)
        assert not (tmp_path / "o").exists()
    monkeypatch.setattr(extend, "PROBES", ("as if sketches were others",))
    with pytest.raises(UsageError, match="this version makes others"):
        build(chosen, tmp_path / "o", chain / "b.jsonl", onto=chain / "one")


def test_why_of_a_prompt_that_was_there_before(tmp_path: Path) -> None:
    """It has no cluster, since it fell as a duplicate before near-duplicates were looked for."""
    line = json.dumps({"prompt": "What is it?", "chosen": "This.", "rejected": "That."}).encode()
    a, b = (write_lines(tmp_path / name, [line.replace(b"This", name.encode())]) for name in ("a.jsonl", "b.jsonl"))
    chosen = pipeline(tmp_path, text='[[build.inputs]]\nuse = "pairs"\n')
    build(chosen, tmp_path / "one", a)
    build(chosen, tmp_path / "two", b, onto=tmp_path / "one")
    told = list(why.lines(why.why(tmp_path / "two", "b.jsonl:1")))
    assert "exact_duplicate (a.jsonl, row 1 of the data set before is the same prompt)" in told[2]
    assert told[-1] == "no cluster: all of it fell before near-duplicates were looked for"


def test_other_patterns_of_personal_data_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, _ = thirds(tmp_path)
    chosen = pipeline(tmp_path, "build.redact.kinds=['email']", text=TEXT)
    build(chosen, tmp_path / "one", a)
    build(chosen, tmp_path / "two", b, onto=tmp_path / "one")
    words = "its personal data was replaced by prefkit .*, and this version has other patterns; build it again"
    with monkeypatch.context() as patched:
        patched.setitem(redact.PATTERNS, "ip", redact.PATTERNS["ip"]._replace(exact=redact.PATTERNS["phone"].exact))
        build(chosen, tmp_path / "others", b, onto=tmp_path / "one")  # the kinds that are asked for are the same
    for changes in (
        {"exact": redact.PATTERNS["email"].exact + "(?!;)"},
        {"hint": "@"},
        {"is_personal": lambda address: not address.startswith("jane")},
    ):
        with monkeypatch.context() as patched, pytest.raises(UsageError, match=words):
            patched.setitem(redact.PATTERNS, "email", redact.PATTERNS["email"]._replace(**changes))
            build(chosen, tmp_path / "three", b, onto=tmp_path / "one")
    with pytest.raises(UsageError, match=r"\[build.redact\] kinds: None here, but \['email'\] in"):
        build(pipeline(tmp_path, text=TEXT), tmp_path / "three", b, onto=tmp_path / "one")
    record = json.loads((tmp_path / "one" / "manifest.json").read_text())
    del record["options"]["redact"]["patterns_sha256"]  # by a version that did not record them
    (tmp_path / "one" / "manifest.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=words):
        build(chosen, tmp_path / "three", b, onto=tmp_path / "one")


@pytest.mark.parametrize("call", ["_is_someones_email", "_is_someones_phone", "_is_public"])
def test_the_fingerprint_of_patterns_tells_each_last_word_on_a_match(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = redact.fingerprint(redact.KINDS)
    for answer in (True, False):
        for kind, pattern in list(redact.PATTERNS.items()):
            if pattern.is_personal.__name__ == call:
                with monkeypatch.context() as patched:
                    patched.setitem(
                        redact.PATTERNS, kind, pattern._replace(is_personal=lambda _, answer=answer: answer)
                    )
                    assert redact.fingerprint(redact.KINDS) != before
    assert redact.fingerprint(redact.KINDS) == before


def test_damaged_and_missing_sketches(chain: Path, tmp_path: Path) -> None:
    shutil.copytree(chain / "one", tmp_path / "one")
    chosen, b = pipeline(chain, text=TEXT), chain / "b.jsonl"
    ids = tmp_path / "one/sketches/g0/ids.npy"
    data = bytearray(ids.read_bytes())
    data[-1] ^= 1
    ids.write_bytes(bytes(data))
    assert verify(tmp_path / "one") == [
        "sketches/g0/ids.npy: its SHA-256 is not the manifest's, so its content changed."
    ]
    with pytest.raises(DataError, match=r"ids\.npy: its SHA-256"):
        build(chosen, tmp_path / "two", b, onto=tmp_path / "one")
    shutil.rmtree(tmp_path / "one" / "sketches")
    assert verify(tmp_path / "one") == []
    with pytest.raises(DataError, match="has no sketches"):
        build(chosen, tmp_path / "two", b, onto=tmp_path / "one")
    next((tmp_path / "one/data").iterdir()).unlink()
    with pytest.raises(DataError, match="no sketches"):
        build(chosen, tmp_path / "two", b, onto=tmp_path / "one")
    assert not (tmp_path / "two").exists()


def test_files_of_the_same_name_get_longer_ones(chain: Path, tmp_path: Path) -> None:
    (tmp_path / "day2").mkdir()
    shutil.copy(chain / "b.jsonl", tmp_path / "day2" / "a.jsonl")
    record = build(pipeline(chain, text=TEXT), tmp_path / "out", tmp_path / "day2" / "a.jsonl", onto=chain / "one")
    assert [file.path for file in record.inputs] == ["a.jsonl", "day2/a.jsonl"]
    assert "day2/a.jsonl" in set(pairs_of(tmp_path / "out")["chosen_file"])


def test_killed_at_any_change_of_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, _ = thirds(tmp_path, 60)
    chosen = pipeline(tmp_path, "build.dedupe.permutations=8", "build.dedupe.threshold=0.9", text=TEXT)
    build(chosen, tmp_path / "one", a)
    build(chosen, tmp_path / "expected", b, onto=tmp_path / "one")
    old, expected = contents(tmp_path / "one"), contents(tmp_path / "expected")

    out = tmp_path / "out"

    def extend_one() -> dict[str, bytes]:
        build_pairs(chosen, out, given=[str(b)], onto=tmp_path / "one")
        return contents(out)

    left = states(monkeypatch, out, tmp_path / "left", extend_one)
    assert len(left) > 100
    for death, state in enumerate(left[::2]):
        shutil.rmtree(out)
        state.rename(out)
        if (out / "manifest.json").exists():
            assert verify(out) == [], death
        assert extend_one() == expected, death
    assert contents(tmp_path / "one") == old


def test_the_command_says_what_is_new(chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.toml").write_text(TEXT)
    out = tmp_path / "out"
    arguments = ["build-pairs", str(tmp_path / "p.toml"), str(chain / "b.jsonl"), "--onto", str(chain / "one")]
    assert main([*arguments, "--out", str(out), "--workers", "1", "--dry-run"]) == 0
    assert not out.exists()
    assert main([*arguments, "--out", str(out), "--workers", "1"]) == 0
    before = len(pairs_of(chain / "one"))
    assert f"{before:,} pairs of before + {len(pairs_of(out)) - before:,} new" in capsys.readouterr().out
    assert main([*arguments, "--out", str(tmp_path / "o"), "--set", "build.dedupe.ngram=4", "--dry-run"]) == 2


@given(st.integers(0, 10_000), st.integers(1, 59), st.sampled_from(["drop", "keep"]))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_dirt_in_any_two_pieces(tmp_path_factory: pytest.TempPathFactory, seed: int, cut: int, action: str) -> None:
    folder = tmp_path_factory.mktemp("any")
    lines = dirty_lines(60, seed)
    random.Random(seed).shuffle(lines)
    a, b = (write_lines(folder / name, some) for name, some in (("a.jsonl", lines[:cut]), ("b.jsonl", lines[cut:])))
    text = TEXT.replace("permutations = 64", f'permutations = 32\naction = "{action}"')
    chosen = pipeline(folder, text=text)
    try:
        build(chosen, folder / "one", a)
    except DataError:  # nothing left of a few lines
        return
    build(chosen, folder / "two", b, onto=folder / "one")
    assert not list((folder / "two/data").glob("test-*")) or not clusters_on_both_sides(folder / "two")
    if action == "drop":
        build(chosen, folder / "all", a, b)
        whole, grown, one = (survivors(folder / name) for name in ("all", "two", "one"))
        assert whole.items() <= grown.items()
        assert grown.keys() - whole.keys() <= one.keys()
