"""A real run's report.html: written at its end, its figures are those of the log, and of what the run was made from."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefkit import __version__, runs
from prefkit.cli import main
from prefkit.runs import record
from prefkit.train import alarms, claim, metrics, run, samples
from tests.runs.test_report import lines_drawn
from tests.train.datasets_for_tests import pipeline, toy_pairs, write_data_set

SFT = {"objective": "sft", "learning_rate": 1e-3, "pairs_per_step": 8}
DPO = {
    "name": "dpo",
    "objective": "sigmoid",
    "learning_rate": 3e-3,
    "pairs_per_step": 6,
    "eval_every": 4,
    "alarms": {"window": 2, "kl": 0.01},
    "samples": {"every": 4, "prompts": ["Is it so?"], "max_new_tokens": 4},
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    rows = toy_pairs(24, answers=3)
    write_data_set(folder / "data", rows[:54], rows[54:])
    run.train(pipeline(folder, SFT, DPO), data=folder / "data", out=folder / "r")
    return folder / "r"


def test_the_report_of_a_run_is_written_at_its_end(out: Path) -> None:
    text = (out / runs.REPORT).read_text("utf-8")
    lines = metrics.read(out, "dpo")
    drawn = lines_drawn(text)
    assert drawn[("Reward margin", "training")]["least"] == pytest.approx(
        [line["rewards/margins"] for line in lines if "loss" in line], rel=1e-5, abs=1e-9
    )
    assert drawn[("Reward margin", "held-out")]["mean"] == pytest.approx(
        [line["eval_rewards/margins"] for line in lines if "eval_loss" in line], rel=1e-5, abs=1e-9
    )
    assert ("Waiting for data", "share of time") in drawn
    first, *_, last = samples.read(out)
    for words in (
        "sft: finished after step ",
        "dpo: finished after step 9",
        "alarm kl at step ",
        f"prefkit {__version__}, python ",
        "the tokens of train",
        "Is it so?",
        f"step {first['step']}",
        f"step {last['step']}",
        "Accuracy by source",
        record.read(out, "r").record["data_hash"],
    ):
        assert words in text, words


def test_what_a_run_begins_with_is_on_record(out: Path) -> None:
    sft, dpo = record.read(out, "r").phases
    assert (sft.planned, dpo.planned) == (sft.step, dpo.step)
    assert dpo.begun is not None
    assert dpo.begun["made_from"].keys() >= {"the model it started from", "the tokenizer", "the tokens of test"}
    assert (dpo.begun["data"]["train"], dpo.begun["ranks"], bool(dpo.begun["device"])) == (54, 1, True)
    assert all(0 <= line["data_wait"] < 1 for line in metrics.read(out, "dpo") if "loss" in line)


def test_both_halves_of_this_agree_on_the_names_of_files() -> None:
    written = (claim.RECORD, metrics.FILE_NAME, alarms.FILE_NAME, samples.FILE_NAME, claim.LOCK)
    assert written == (record.RUN, record.METRICS, record.ALARMS, record.SAMPLES, record.LOCK)


def test_the_command_makes_it_again(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (out / runs.REPORT).read_bytes()
    assert main(["report", str(out)]) == 0
    assert (out / runs.REPORT).read_bytes() == before
    assert capsys.readouterr().out.split() == [str(out / runs.REPORT)]
