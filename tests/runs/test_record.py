"""Reading RUN as it stands: torn lines, logs that are cut back, damaged files, who is training."""

from __future__ import annotations

import fcntl
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.errors import DataError
from prefkit.runs import record
from tests.runs.made import PHASE, SFT, dpo_lines, eval_line, sft_line, step_line, write_run


def test_columns_and_evaluations_are_those_of_the_log(tmp_path: Path) -> None:
    lines = [*(sft_line(step) for step in range(1, 31)), *dpo_lines(50, {0: 0.5, 25: 0.7, 50: 0.8})]
    run = record.read(write_run(tmp_path / "r", lines, (SFT, PHASE)), "r")
    assert (run.state, run.torn, [phase.name for phase in run.phases]) == ("finished", False, ["sft", "dpo"])
    for phase in run.phases:
        mine = [line for line in lines if line["phase"] == phase.name and "loss" in line]
        for name in (*phase.figures, "epoch", "pairs"):
            curve = phase.column(name)
            assert curve.steps.tolist() == [line["step"] for line in mine]
            assert curve.values.tolist() == [line[name] for line in mine]
    dpo = run.phases[1]
    held = dpo.held_out("rewards/accuracies")
    assert held.steps.tolist() == [0, 25, 50]
    assert held.values.tolist() == [0.5, 0.7, 0.8]
    assert held.low is not None
    assert held.low.tolist() == [0.5, 0.7 - 0.02, 0.8 - 0.02], "before the first step it is one half by definition"
    assert dpo.held_out("loss").low is None
    assert len(dpo.column("nothing of the kind").steps) == 0
    assert (dpo.step, dpo.planned, run.phases[0].is_sft) == (50, 100, True)


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 10_000), max_size=6), data=st.data())
def test_a_log_read_as_it_grows_is_the_log_read_at_once(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("log") / "metrics.jsonl"
    whole = "".join(json.dumps(line) + "\n" for line in dpo_lines(20, {0: 0.5, 20: 0.8})).encode()
    log = record.Log(path)
    log.read_on()
    for cut in sorted(min(cut, len(whole)) for cut in cuts):
        path.write_bytes(whole[:cut])
        log.read_on()
        assert log.torn == (whole[:cut] != b"" and not whole[:cut].endswith(b"\n"))
        columns = [lines.columns.get("loss", ([], []))[0] for lines in log.phases.values()]
        evaluations = [lines.evaluations for lines in log.phases.values()]
        assert sum(map(len, (*columns, *evaluations))) == whole[:cut].count(b"\n")
    resumed = data.draw(st.integers(0, 20))  # a resumed run repeats its lines, with other speeds
    kept = b"".join(whole.splitlines(keepends=True)[:resumed])
    again = "".join(json.dumps(line) + "\n" for line in dpo_lines(20, {0: 0.5, 20: 0.8}, seed=1)).encode()
    path.write_bytes(kept + b"".join(again.splitlines(keepends=True)[resumed:]))
    log.read_on()
    fresh = record.Log(path)
    fresh.read_on()
    assert log.phases == fresh.phases


def test_a_log_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    out = write_run(tmp_path / "r", dpo_lines(10))
    log = record.Log(out / "metrics.jsonl")
    log.read_on()
    (out / "metrics.jsonl").unlink()
    log.read_on()
    assert log.phases == {}


def test_the_state_of_a_run(tmp_path: Path) -> None:
    assert record.read(tmp_path, "r").state == "waiting"
    out = write_run(tmp_path / "r", dpo_lines(10), finished=False)
    assert record.read(out, "r").state == "stopped"
    with open(out / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert record.read(out, "r").state == "training"
    assert record.read(out, "r").state == "stopped"
    with open(out / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # looking left nothing held
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"phase": "dpo", "step": 11, "lo')
    run = record.read(out, "r")
    assert (run.torn, run.phases[0].step) == (True, 10)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("metrics.jsonl", "{}\n", "metrics.jsonl, line 1: no line of metrics"),
        ("metrics.jsonl", '{"phase": "dpo", "step": 1}\n[1]\n', "metrics.jsonl, line 2: no line of metrics"),
        ("metrics.jsonl", "\0\0\0\n", "metrics.jsonl, line 1"),
        ("run.json", "{", "run.json: damaged"),
        ("run.json", "[]", "run.json: damaged"),
        ("run.json", "{}", r"run.json: damaged, or of another version of prefkit \(no options\)"),
        ("run.json", '{"options": {}, "data_hash": ""}', "run.json: not the record of a run"),
        ("dpo/phase.json", '{"tokens": {}}', r"phase.json: damaged, or of another version of prefkit \(no epochs\)"),
        ("alarms.jsonl", "{\n", "alarms.jsonl: damaged"),
        ("samples.jsonl", "[1]\n", "samples.jsonl: damaged"),
        ("dpo/begun.json", "no", "begun.json: damaged"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, text: str, words: str) -> None:
    out = write_run(tmp_path / "r", dpo_lines(10))
    (out / name).write_text(text)
    with pytest.raises(DataError, match=words):
        record.read(out, "r")


def test_labels_tell_runs_apart() -> None:
    assert record.labels([Path("runs/a"), Path("runs/b")]) == ["a", "b"]
    assert record.labels([Path("a/run"), Path("b/run")]) == ["a/run", "b/run"]
    assert record.labels([Path("/x/a/run")]) == ["run"]


def test_lines_of_any_figures_are_taken(tmp_path: Path) -> None:
    rng = random.Random(0)
    odd = {"router_loss": 1.5, "of a plugin": 2, "slices": {"source": {"a": {"pairs": 3, "rewards/accuracies": 1.0}}}}
    lines = [step_line("dpo", 1, rng, loss=float("nan")), step_line("dpo", 2, rng, **odd), eval_line("dpo", 2, 0.5)]
    phase = record.read(write_run(tmp_path / "r", lines), "r").phases[0]
    assert np.isnan(phase.column("loss").values[0])
    assert phase.column("router_loss") == (np.array([2.0]), np.array([1.5]), None, None)
    assert phase.lines.slices[0][1]["source"]["a"]["pairs"] == 3
