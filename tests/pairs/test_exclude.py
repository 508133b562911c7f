"""`[build] exclude`: what is flagged falls and is accounted for, all else stays; and the file of flags itself."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit import manifest
from prefkit.cli import main
from prefkit.errors import DataError, UsageError
from prefkit.manifest import Manifest
from prefkit.pairs import flags
from prefkit.pairs.build import build_pairs
from prefkit.pairs.flags import Flag
from prefkit.pairs.verify import verify
from tests.pairs.kills import killed_at
from tests.pairs.raw import dirty_lines, write_lines
from tests.pairs.test_build import contents, pairs_of, pipeline, rejects_of
from tests.pairs.test_extend import TEXT as ONTO

TEXT = """
[build]
exclude = "flags.jsonl"
language = false
chunk_bytes = 30_000
[[build.inputs]]
use = "ultrafeedback"
[build.dedupe]
permutations = 16
[build.binarize]
use = "all_pairs"
[build.split]
test = 0.2
[build.shards]
pairs_per_shard = 200
"""
PLAIN = TEXT.replace('exclude = "flags.jsonl"\n', "")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("raw") / "raw.jsonl", dirty_lines(250))


@pytest.fixture(scope="module")
def whole(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    build_pairs(pipeline(folder, text=PLAIN), folder / "out", given=[str(raw)])
    return folder / "out"


def flag(folder: Path, *lines: dict[str, str], name: str = "flags.jsonl") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def build(folder: Path, raw: Path, *overrides: str, workers: int = 1) -> Manifest:
    chosen = pipeline(folder, *overrides, text=TEXT)
    record = build_pairs(chosen, folder / "out", given=[str(raw)], workers=workers, overwrite=True, keep_work=True)
    assert verify(folder / "out") == []
    return record


def lost(record: Manifest) -> dict[str, int]:
    return next(stage for stage in record.stages if stage.unit == "pairs").rejected


def candidates(pairs: pl.DataFrame) -> set[tuple[str, int, int]]:
    names = [[f"{side}_{part}" for part in ("file", "row", "index")] for side in ("chosen", "rejected")]
    return {row for columns in names for row in pairs.select(columns).iter_rows()}


def test_flagged_pairs_and_prompts_fall_with_their_notes_and_nothing_else(
    raw: Path, whole: Path, tmp_path: Path
) -> None:
    before = pairs_of(whole)
    rng = random.Random(0)
    pairs = rng.sample(before["pair_id"].sort().to_list(), 40)
    prompts = rng.sample(before["prompt_id"].unique().sort().to_list(), 10)
    notes = {name: f"no good: {number} “{name[:3]}”" for number, name in enumerate([*pairs, *prompts])}
    lines = [{"pair_id": name, "note": notes[name]} for name in pairs]
    lines += [{"prompt_id": name, "note": notes[name]} for name in prompts]
    flag(tmp_path, *lines)
    record = build(tmp_path, raw)
    expected = before.filter(~pl.col("pair_id").is_in(pairs) & ~pl.col("prompt_id").is_in(prompts))
    assert pairs_of(tmp_path / "out").equals(expected), "all others stand as they did, in their order"
    assert lost(record)["flagged"] == len(before) - len(expected) > 40
    assert record.remarks == []
    fallen = rejects_of(tmp_path / "out").filter(pl.col("reason") == "flagged")
    names = ["origin_file", "origin_row", "completion_index"]
    assert set(fallen.select(names).iter_rows()) == candidates(before) - candidates(expected) != set()
    kinds = {f"prompt_id: {notes[name]}" for name in prompts} | {f"pair_id: {notes[name]}" for name in pairs}
    assert set(fallen["detail"]) <= kinds
    of_prompts = fallen.filter(pl.col("prompt_id").is_in(prompts))
    assert {f"prompt_id: {notes[name]}" for name in prompts} <= set(of_prompts["detail"])


def test_bytes_do_not_depend_on_workers(raw: Path, whole: Path, tmp_path: Path) -> None:
    one = pairs_of(whole)["pair_id"].sort()[7]
    outs = []
    for folder, workers, chunk in ((tmp_path / "a", 1, 30_000), (tmp_path / "b", 2, 9_000)):
        flag(folder, {"pair_id": one})
        build(folder, raw, f"build.chunk_bytes={chunk}", workers=workers)
        files = contents(folder / "out").items()
        outs.append({name: data for name, data in files if not name.startswith((".work", "README", "manifest"))})
    assert outs[0] == outs[1]


def test_changed_flags_redo_this_step_and_what_follows(raw: Path, whole: Path, tmp_path: Path) -> None:
    ids = pairs_of(whole)["pair_id"].sort()

    def folders() -> dict[str, set[str]]:
        steps = (tmp_path / "out" / ".work").iterdir()
        return {step.name: {task.name for task in step.iterdir()} for step in steps if step.is_dir()}

    flag(tmp_path, {"pair_id": ids[0], "note": "x"})
    first = build(tmp_path, raw)
    made = folders()
    again = build(tmp_path, raw)
    assert folders() == made, "nothing to do: nothing done"
    assert again == first
    flag(tmp_path, {"pair_id": ids[1], "note": "x"})
    build(tmp_path, raw)
    changed = {step for step, tasks in folders().items() if tasks != made[step]}
    assert changed == {"exclude", "write", "flags"}
    assert ids[0] in pairs_of(tmp_path / "out")["pair_id"]
    assert ids[1] not in pairs_of(tmp_path / "out")["pair_id"]


def test_killed_anywhere_it_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_lines(tmp_path / "raw.jsonl", dirty_lines(60))
    build_pairs(pipeline(tmp_path, text=PLAIN), tmp_path / "plain", given=[str(raw)], workers=1)
    flag(tmp_path, *({"pair_id": name, "note": "x"} for name in pairs_of(tmp_path / "plain")["pair_id"].sort()[:9]))
    chosen, out = pipeline(tmp_path, text=TEXT), tmp_path / "out"
    build_pairs(chosen, out, given=[str(raw)], workers=1)
    expected = contents(out)
    change, halfway = 3, 0
    while True:
        shutil.rmtree(out)
        killed = killed_at(monkeypatch, change, lambda: build_pairs(chosen, out, given=[str(raw)], workers=1))
        halfway += bool(list(out.glob(".work/exclude/*"))) and not (out / "manifest.json").exists()
        build_pairs(chosen, out, given=[str(raw)], workers=1)
        assert contents(out) == expected
        if not killed:
            break
        change += 12
    assert halfway > 1, "some of the kills must fall behind the step for this to mean anything"


def test_a_finished_data_set_of_other_flags_is_another_one(raw: Path, whole: Path, tmp_path: Path) -> None:
    one, other = pairs_of(whole)["pair_id"].sort()[:2]
    flag(tmp_path, {"pair_id": one})
    chosen = pipeline(tmp_path, text=TEXT)
    build_pairs(chosen, tmp_path / "out", given=[str(raw)])
    before = contents(tmp_path / "out")
    build_pairs(chosen, tmp_path / "out", given=[str(raw)])
    assert contents(tmp_path / "out") == before
    flag(tmp_path, {"pair_id": other})
    with pytest.raises(UsageError, match="--overwrite"):
        build_pairs(chosen, tmp_path / "out", given=[str(raw)])


def test_flags_beside_the_data_outlive_a_rebuild_in_place(raw: Path, tmp_path: Path) -> None:
    build_pairs(pipeline(tmp_path, text=PLAIN), tmp_path / "out", given=[str(raw)])
    one = pairs_of(tmp_path / "out")["pair_id"].sort()[3]
    flag(tmp_path / "out", {"pair_id": one, "note": "wrong"})
    assert verify(tmp_path / "out") == []
    record = build(tmp_path, raw, "build.exclude=out/flags.jsonl")
    assert lost(record)["flagged"] == 1
    assert flags.read(tmp_path / "out" / "flags.jsonl") == [Flag("pair", one, "wrong")]


def test_quotas_are_filled_by_others(raw: Path, whole: Path, tmp_path: Path) -> None:
    cap = "build.inputs.0.cap=50"
    build_pairs(pipeline(tmp_path / "capped", cap, text=PLAIN), tmp_path / "capped" / "out", given=[str(raw)])
    gone = pairs_of(tmp_path / "capped" / "out")["pair_id"].to_list()
    flag(tmp_path, *({"pair_id": name} for name in gone))
    record = build(tmp_path, raw, cap)
    left = pairs_of(tmp_path / "out")
    assert len(left) == 50
    assert not set(left["pair_id"]) & set(gone)
    assert lost(record)["flagged"] == 50
    assert lost(record)["cap"] == len(pairs_of(whole)) - 100


def test_flags_that_meet_nothing_are_said(
    raw: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    standing = pairs_of(whole).sort("margin", "pair_id")
    filtered, met = standing["pair_id"][0], standing["pair_id"][-1]
    flag(tmp_path, *({"pair_id": name} for name in (met, filtered, "0" * 32)), {"prompt_id": "1" * 32})
    path = tmp_path / "test.toml"
    path.write_text(TEXT + '[[build.filters]]\nuse = "min_margin"\nmargin = 1\n')
    assert main(["build-pairs", str(path), str(raw), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    said = f"exclude: 3 of 4 flags met no pair: pair {filtered}, pair {'0' * 32}, prompt {'1' * 32}."
    assert said in capsys.readouterr().out
    assert manifest.read(tmp_path / "out").remarks[0].startswith(said)
    assert said in (tmp_path / "out" / "README.md").read_text()


def test_ids_outlive_other_seeds_splits_shards_and_strategies(raw: Path, whole: Path, tmp_path: Path) -> None:
    everything = pairs_of(whole).select("pair_id", "chosen", "rejected")
    options = ["build.binarize.use=best_vs_worst", "build.split.seed=9", "build.split.test=0.4"]
    build_pairs(pipeline(tmp_path, *options, text=PLAIN), tmp_path / "out", given=[str(raw)])
    other = pairs_of(tmp_path / "out").select("pair_id", "chosen", "rejected")
    both = other.join(everything, on="pair_id")
    assert 0 < len(other) == len(both) < len(everything)
    assert (both["chosen"] == both["chosen_right"]).all()
    assert (both["rejected"] == both["rejected_right"]).all()


def test_everything_flagged_is_an_error_that_says_so(raw: Path, whole: Path, tmp_path: Path) -> None:
    flag(tmp_path, *({"prompt_id": name} for name in pairs_of(whole)["prompt_id"].unique()))
    with pytest.raises(DataError, match=r"no pairs left.*flagged"):
        build(tmp_path, raw)


def test_pairs_of_the_data_set_before_cannot_be_excluded(raw: Path, tmp_path: Path) -> None:
    lines = raw.read_bytes().split(b"\n")
    old, new = (write_lines(tmp_path / f"{name}.jsonl", lines[at::2]) for at, name in enumerate(("old", "new")))
    chosen = pipeline(tmp_path, text=ONTO)
    build_pairs(chosen, tmp_path / "one", given=[str(old)])
    build_pairs(chosen, tmp_path / "two", given=[str(new)], onto=tmp_path / "one")
    standing = pairs_of(tmp_path / "one")["pair_id"].sort()[0]
    fresh = min(set(pairs_of(tmp_path / "two")["pair_id"]) - set(pairs_of(tmp_path / "one")["pair_id"]))
    chosen = pipeline(tmp_path, "build.exclude=flags.jsonl", text=ONTO)
    flag(tmp_path, {"pair_id": fresh}, {"pair_id": standing})
    with pytest.raises(UsageError, match=f"pair {standing} stands in"):
        build_pairs(chosen, tmp_path / "three", given=[str(new)], onto=tmp_path / "one")
    flag(tmp_path, {"pair_id": fresh})
    record = build_pairs(chosen, tmp_path / "three", given=[str(new)], onto=tmp_path / "one")
    assert verify(tmp_path / "three") == []
    assert record.remarks == []
    assert set(pairs_of(tmp_path / "two")["pair_id"]) - set(pairs_of(tmp_path / "three")["pair_id"]) == {fresh}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "no flag"),
        ('{"note": "x"}', "names no pair_id and no prompt_id"),
        (f'{{"pair_id": "{"0" * 32}", "prompt_id": "{"0" * 32}"}}', "both"),
        ('{"pair_id": "abc"}', "32 hexadecimal digits"),
        (f'{{"pair_id": "{"A" * 32}"}}', "32 hexadecimal digits"),
        (f'{{"pair_id": "{"0" * 32}", "why": "x"}}', "unknown field"),
        (f'{{"pair_id": "{"0" * 32}", "note": "\\ud800"}}', "no flag"),
        (f'{{"pair_id": "{"0" * 32}", "note": 3}}', "note"),
    ],
)
def test_a_line_that_is_no_flag_is_named(
    raw: Path, tmp_path: Path, line: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flags.jsonl").write_text(f'\n{{"pair_id": "{"0" * 32}"}}\n{line}\n')
    pipeline(tmp_path, text=TEXT)
    arguments = ["build-pairs", str(tmp_path / "test.toml"), str(raw), "--out", str(tmp_path / "out"), "--dry-run"]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "flags.jsonl, line 3: no flag" in said
    assert says in said


@pytest.mark.parametrize("value", ["3", "[]", '""', "[3]", '"elsewhere.jsonl"', '["flags.jsonl", "flags.jsonl"]'])
def test_what_names_no_file_of_flags_is_refused(raw: Path, tmp_path: Path, value: str) -> None:
    flag(tmp_path)
    with pytest.raises(UsageError, match=r"exclude|given twice"):
        build(tmp_path, raw, f"build.exclude={value}")


def test_several_files_and_an_empty_one(raw: Path, whole: Path, tmp_path: Path) -> None:
    one, other = pairs_of(whole)["pair_id"].sort()[:2]
    flag(tmp_path, {"pair_id": one, "note": "a"}, {"pair_id": other})
    flag(tmp_path, {"pair_id": one, "note": "b"}, {"pair_id": one, "note": "a"}, name="of others.jsonl")
    flag(tmp_path, name="none.jsonl")
    record = build(tmp_path, raw, 'build.exclude=["flags.jsonl", "of others.jsonl", "none.jsonl"]')
    assert lost(record)["flagged"] == 2
    assert set(record.options["exclude"]) == {"flags.jsonl", "of others.jsonl", "none.jsonl"}
    record = build(tmp_path, raw, "build.exclude=none.jsonl")
    assert "flagged" not in lost(record)
    assert record.data_hash == manifest.read(whole).data_hash


# The file


IDS = [f"{number:032x}" for number in range(4)]
CHANGES = st.lists(
    st.tuples(st.booleans(), st.sampled_from(flags.KINDS), st.sampled_from(IDS), st.text(max_size=6)), max_size=12
)


@given(CHANGES)
@settings(max_examples=30, deadline=None)
def test_the_file_is_a_dictionary(tmp_path_factory: pytest.TempPathFactory, changes: list) -> None:
    path, held = tmp_path_factory.mktemp("flags") / "flags.jsonl", {}
    for put, kind, identity, note in changes:
        held.pop((kind, identity), None)
        if put:
            held[kind, identity] = note
        now = flags.put(path, Flag(kind, identity, note)) if put else flags.take(path, kind, identity)
        assert now == flags.read(path) == [Flag(*name, said) for name, said in held.items()]


def test_a_kill_at_any_change_of_the_file_system_loses_no_older_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, change = tmp_path / "flags.jsonl", 1
    flags.put(path, Flag("pair", IDS[0], "old"))
    while killed_at(monkeypatch, change, lambda: flags.put(path, Flag("pair", IDS[1], "new"))):  # type: ignore[arg-type,return-value]
        assert flags.read(path)[0] == Flag("pair", IDS[0], "old")
        change += 1
    assert change > 2, "there was something to die at"
    assert flags.read(path) == [Flag("pair", IDS[0], "old"), Flag("pair", IDS[1], "new")]
    assert flags.take(path, "pair", IDS[1]) == [Flag("pair", IDS[0], "old")]


def _put_some(path: Path, first: int) -> None:
    for number in range(first, first + 25):
        flags.put(path, Flag("pair", f"{number:032x}", ""))


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    path = tmp_path / "flags.jsonl"
    writers = [context.Process(target=_put_some, args=(path, first)) for first in (0, 100)]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    assert len(flags.read(path)) == 50
