"""What a run's report says in words: each sentence where its figures support it, and not where they do not."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from prefkit.page.document import Finding
from prefkit.runs import record
from prefkit.runs.findings import duration, findings
from prefkit.runs.groups import differences, flat, grouped
from tests.runs.made import PHASE, SFT, dpo_lines, eval_line, sft_line, step_line, write_lines, write_run


def said(*folders: Path) -> list[Finding]:
    runs = [record.read(folder, folder.name) for folder in folders]
    return findings(runs, grouped(runs))


def about(found: list[Finding], words: str) -> list[tuple[bool, str]]:
    return [(one.look, one.text.replace("\u00a0", " ")) for one in found if words in one.text]


@pytest.mark.parametrize(
    ("after", "look", "words"),
    [
        (0.82, False, "rose from 0.5 to 0.820 [0.800, 0.840]."),
        (0.51, True, "went from 0.5 to 0.510 [0.490, 0.530], which the intervals do not tell apart."),
        (0.40, True, "fell from 0.5 to 0.400 [0.380, 0.420]."),
    ],
)
def test_accuracy_rose_or_fell_only_where_the_intervals_say_so(
    tmp_path: Path, after: float, look: bool, words: str
) -> None:
    found = said(write_run(tmp_path / "r", dpo_lines(40, {0: 0.5, 40: after})))
    assert about(found, "reward accuracy") == [(look, f"dpo: held-out reward accuracy {words}")]


def test_a_margin_that_grows_alone(tmp_path: Path) -> None:
    standing = {0: 0.5, 20: 0.70, 40: 0.80, 60: 0.81, 80: 0.80, 100: 0.805}
    found = said(write_run(tmp_path / "standing", dpo_lines(100, standing)))
    accuracy = "held-out accuracy has stood at 0.805 [0.785, 0.825]."
    expected = f"dpo: the held-out margin grew from 0.4000 to 1 since step 40, while {accuracy}"
    assert about(found, "margin grew") == [(True, expected)]
    rising = {0: 0.5, 20: 0.60, 40: 0.66, 60: 0.72, 80: 0.78, 100: 0.84}
    assert not about(said(write_run(tmp_path / "rising", dpo_lines(100, rising))), "margin grew")


def test_an_accuracy_of_one_may_lie_above_its_rounded_interval(tmp_path: Path) -> None:
    lines = dpo_lines(50, {0: 0.5, 10: 1.0, 20: 1.0, 30: 1.0, 40: 1.0, 50: 1.0})
    for line in lines:
        if line.get("eval_rewards/accuracies") == 1.0:
            line["eval_rewards/accuracies_high"] = 1.0 - 1e-16 - 1e-15
    assert about(said(write_run(tmp_path / "r", lines)), "margin grew from 0.1")


@pytest.mark.parametrize(
    ("losses", "look", "words"),
    [
        ([0.69, 0.5, 0.4], False, "fell from 0.6900 to 0.4000, its best."),
        ([0.69, 0.4, 0.41], False, "was best at step 10 (0.4000), and is 0.4100 now."),
        ([0.69, 0.4, 0.41, 0.43], True, "was best at step 10 (0.4000), and is 0.4300 now."),
        ([1.0, 1.000001, 1.00001], False, "did not change: 1.000."),
        ([0.69, 0.7, 0.8], True, "was best before the first step (0.6900), and is 0.8000 now."),
    ],
)
def test_the_best_held_out_loss(tmp_path: Path, losses: list[float], look: bool, words: str) -> None:
    lines = [eval_line("dpo", 10 * at, 0.7, eval_loss=loss) for at, loss in enumerate(losses)]
    assert about(said(write_run(tmp_path / "r", lines)), "held-out loss") == [(look, f"dpo: held-out loss {words}")]


def test_likelihood_slices_alarms_and_speed(tmp_path: Path) -> None:
    table = {
        "source": {
            "easy": {"pairs": 1500, "rewards/accuracies": 0.85},
            "hard": {"pairs": 500, "rewards/accuracies": 0.6},
        }
    }
    lines = [
        *dpo_lines(39, {0: 0.5}),
        step_line("dpo", 40, random.Random(0)),
        eval_line("dpo", 40, 0.8, eval_slices=table),
    ]
    alarm = {
        "phase": "dpo",
        "step": 20,
        "alarm": "displacement",
        "text": "chosen answers became less likely.",
        "figures": {},
    }
    found = said(write_run(tmp_path / "r", lines, alarms=(alarm,)))
    assert found[0] == Finding(True, "dpo: alarm displacement at step 20: chosen answers became less likely.")
    lost = "chosen answers of held-out pairs lost 4 nats each (20 % of their log-probability under the reference)."
    assert about(found, "nats") == [(False, f"dpo: {lost}")]
    (hard,) = about(found, "slice")
    assert hard[1].startswith("dpo: accuracy is lowest in the slice source hard: 0.600 [0.55")
    assert about(found, "data wait") == [(False, "dpo: data wait (reading and packing rows) took 3.0 % of the time.")]
    assert about(found, "clipped")[0][1].startswith("dpo: the gradient was clipped to 1 in ")
    waiting = [step_line("dpo", step, random.Random(0), data_wait=0.5) for step in range(1, 30)]
    for stream in (False, True):
        out = write_run(tmp_path / f"waits {stream}", waiting, (PHASE | {"stream": stream},))
        ((look, text),) = about(said(out), "data wait")
        assert (look, "stream = false" in text) == (True, stream)


def test_labelled_answers_are_not_called_pairs(tmp_path: Path) -> None:
    lines = dpo_lines(40, {0: 0.5, 40: 0.8})
    for line in lines:
        for name in [name for name in line if "accuracies" in name or "longer" in name]:
            del line[name]
    out = write_run(tmp_path / "r", lines, kind="labels")
    found = said(out)
    assert about(found, "good held-out answers lost 4 nats each")
    assert about(found, "answers and 3,0")
    assert not about(found, "pairs")


def test_pairs_seen_before_against_held_out_ones(tmp_path: Path) -> None:
    rng = random.Random(0)
    for epoch, expected in ((0.9, 0), (1.5, 1)):
        lines = [step_line("dpo", step, rng, epoch=epoch, **{"rewards/accuracies": 0.99}) for step in range(1, 41)]
        found = said(write_run(tmp_path / f"r{expected}", [*lines, eval_line("dpo", 40, 0.7)]))
        assert len(about(found, "seen before")) == expected, "in the first epoch all pairs are new"


def test_what_ended_a_run(tmp_path: Path) -> None:
    out = write_run(tmp_path / "r", dpo_lines(10), finished=False)
    (out / "dpo" / "not-finite.json").write_text('{"step": 11, "what": "the loss", "pairs": ["p"], "batch": ["p"]}')
    with open(out / "metrics.jsonl", "a") as file:
        file.write("{")
    found = said(out)
    assert [one.look for one in found[:2]] == [True, True]
    assert "dpo: the loss of step 11 was not finite; dpo/not-finite.json names the pairs." in found[0].text
    assert "ends in the middle of a line" in found[1].text


def test_without_evaluations_nothing_is_claimed_of_held_out_pairs(tmp_path: Path) -> None:
    lines = [*(sft_line(step) for step in range(1, 30)), *dpo_lines(30)]
    found = said(write_run(tmp_path / "r", lines, (SFT, PHASE)))
    assert not about(found, "held-out")
    assert about(found, "chosen answers of training pairs lost")
    assert not said(write_run(tmp_path / "empty", [], finished=False))


def test_runs_compared(tmp_path: Path) -> None:
    other: dict[str, Any] = PHASE | {"name": "simpo", "objective": "simpo", "beta": 2.0}
    a = write_run(tmp_path / "a", dpo_lines(100, {0: 0.5, 100: 0.80}))
    lines = dpo_lines(40, {0: 0.5, 40: 0.70}, phase="simpo")
    b = write_run(tmp_path / "b", lines, (other,), finished=False)
    found = said(a, b)
    for words, look, text in (
        ("options", False, "dpo / simpo: the options differ in name, objective, beta."),
        ("units", True, "dpo / simpo: with another objective and beta, losses, rewards and margins are in other units: "
                        "compare accuracies and log-probs."),
        ("steps so far", False, "dpo / simpo: steps so far: a 100, b 40 of 100."),
        ("ahead", False, "dpo / simpo: held-out reward accuracy: a 0.800 [0.780, 0.820] at step 100, "
                         "b 0.700 [0.680, 0.720] at step 40; a is ahead."),
    ):  # fmt: skip
        assert about(found, words) == [(look, text)]
    close = write_run(tmp_path / "c", dpo_lines(100, {0: 0.5, 100: 0.81}, seed=1))
    assert "the intervals of the first two overlap" in about(said(a, close), "accuracy")[0][1]
    assert about(said(a, close), "the options are the same")
    elsewhere = write_run(tmp_path / "d", dpo_lines(100, {0: 0.5, 100: 0.95}), data_hash="e" * 64)
    found = said(a, elsewhere)
    assert about(found, "2 data sets")[0][0]
    assert not about(found, "ahead"), "other pairs"


def test_phases_are_compared_by_name_and_else_by_kind(tmp_path: Path) -> None:
    ipo = PHASE | {"name": "ipo", "objective": "ipo"}
    phases = {"a": (SFT, PHASE), "b": (PHASE,), "c": (SFT, ipo), "d": (ipo, PHASE)}
    runs = [record.read(write_run(tmp_path / name, [], held), name) for name, held in phases.items()]
    groups = grouped(runs)
    assert [group.title for group in groups] == ["sft", "dpo / ipo", "ipo"]
    assert [[(m.run, m.phase.name) for m in group.members] for group in groups] == [
        [(0, "sft"), (2, "sft")],
        [(0, "dpo"), (1, "dpo"), (2, "ipo"), (3, "dpo")],
        [(3, "ipo")],
    ]


def test_differences_of_options() -> None:
    one, other = flat({"a": 1, "b": {"c": [1, 2], "d": {}}, "e": None}), flat({"a": 1, "b": {"c": [1, 3]}, "f": 2})
    assert one == {"a": 1, "b.c": [1, 2], "b.d": {}, "e": None}
    assert differences([one, other]) == {"b.c": [[1, 2], [1, 3]], "b.d": [{}, None], "f": [None, 2]}


def test_times_for_people() -> None:
    assert [duration(seconds) for seconds in (0.4, 61, 119, 150, 3599, 3700, 90000)] == [
        "0 s", "61 s", "119 s", "2 min", "1 h 0 min", "1 h 2 min", "25 h 0 min",
    ]  # fmt: skip


def test_a_log_without_lines_of_a_phase(tmp_path: Path) -> None:
    out = write_run(tmp_path / "r", [sft_line(1)], (SFT, PHASE), finished=False)
    write_lines(out / "alarms.jsonl", [])
    assert said(out)[0].text.startswith("sft: the gradient")
