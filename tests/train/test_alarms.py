"""Each alarm fires on a curve that has its fault, and keeps silent on a healthy one."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.errors import TrainError, UsageError
from prefkit.train import alarms, metrics, options, run
from prefkit.train.alarms import Alarms, History, Watch
from prefkit.train.metrics import Silent
from tests.train.datasets_for_tests import pipeline, toy_pairs, write_data_set
from tests.train.test_run import DPO, KillAt, Killed

PAIRS = 64
STEPS = 400


def curves(steps: int = STEPS, seed: int = 0, **faults) -> list[dict]:
    """Lines of a healthy run over `steps` steps, with the noise of a step; `faults` are curves over time in [0, 1].

    Accuracy and margin rise and level off; chosen answers lose a little; length is preferred as by the raters.
    """
    rng = np.random.default_rng(seed)
    lines = []
    for step in range(1, steps + 1):
        t = step / steps
        rise = 1 - np.exp(-5 * t)
        line = {
            "loss": 0.69 - 0.2 * rise,
            "rewards/accuracies": 0.5 + 0.25 * rise,
            "rewards/margins": 0.8 * rise,
            "logps/chosen_change": -6 * rise,
            "kl": 9 * rise,
            "longer/data": 0.56,
            "longer/policy": 0.5 + 0.09 * rise,
        }
        line |= {name: curve(t) for name, curve in faults.items()}
        longer = rng.binomial(PAIRS, line["longer/data"]) / PAIRS - line["longer/data"]  # policy and data see one batch
        for name in ("longer/policy", "longer/data"):
            line[name] += longer
        line["rewards/accuracies"] = rng.binomial(PAIRS, line["rewards/accuracies"]) / PAIRS
        for name in ("rewards/margins", "logps/chosen_change", "kl"):
            line[name] += rng.normal(0, abs(line[name]) / 8 + 0.02)
        line["logps/chosen"] = -240 + rng.normal(0, 8) + line["logps/chosen_change"]
        lines.append({"phase": "dpo", "step": step, "pairs": PAIRS, **line})
    return lines


def alarms_of(lines, folder, **how) -> list[dict]:
    """What the alarms write about these lines."""
    watch = Watch(folder, "dpo", Alarms(**how), [])
    for line in lines:
        watch.see(line)
    path = folder / alarms.FILE_NAME
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@settings(deadline=None)  # many tests share few cores
@given(seed=st.integers(0, 10_000), steps=st.sampled_from([15, 60, STEPS]))
def test_a_healthy_run_is_left_in_peace(tmp_path_factory, seed, steps):
    assert alarms_of(curves(steps, seed), tmp_path_factory.mktemp("healthy")) == []


FAULTS = {
    "displacement": {"logps/chosen_change": lambda t: -60 * t},
    "saturation": {"rewards/margins": lambda t: 0.3 * np.exp(6 * t)},
    "length": {"longer/policy": lambda t: 0.5 + 0.4 * t},
    "kl": {"kl": lambda t: 300 * t},
}


@pytest.mark.parametrize("name", FAULTS)
@settings(deadline=None, derandomize=True)  # the same seeds each time: of thousands, noise rings a second alarm at 2472
@given(seed=st.integers(0, 10_000))
def test_a_fault_is_found_and_no_other_one(tmp_path_factory, name, seed):
    found = alarms_of(curves(seed=seed, **FAULTS[name]), tmp_path_factory.mktemp(name))
    assert {line["alarm"] for line in found} == {name}
    assert all(line["step"] % 20 == 0 and line["figures"] for line in found)


@pytest.mark.parametrize("name", FAULTS)
def test_an_alarm_can_be_moved_and_switched_off(tmp_path, name):
    lines = curves(**FAULTS[name])
    (normal,) = alarms_of(lines, tmp_path)
    (tmp_path / alarms.FILE_NAME).unlink()
    (later,) = alarms_of(lines, tmp_path, **{name: 1.4 * getattr(Alarms(), name)})
    assert later["step"] > normal["step"]
    (tmp_path / alarms.FILE_NAME).unlink()
    assert alarms_of(lines, tmp_path, **{name: False}) == []


def test_it_speaks_again_only_after_it_was_silent(tmp_path):
    wave = {"kl": lambda t: 150 if int(t * 4) % 2 else 10}
    assert [line["step"] for line in alarms_of(curves(**wave), tmp_path)] == [120, 320]
    (tmp_path / alarms.FILE_NAME).unlink()
    ripple = {"kl": lambda t: 150 if int(t * 20) % 2 else 10}
    assert [line["step"] for line in alarms_of(curves(**ripple), tmp_path)] == [40]


def test_a_policy_that_knows_nothing_does_not_exploit_length(tmp_path):
    """It prefers the longer answer in half of the pairs, more often than raters who like short ones."""
    short = {"longer/data": lambda t: 0.3, "longer/policy": lambda t: 0.5, "rewards/accuracies": lambda t: 0.5}
    short["rewards/margins"] = lambda t: 0.0
    assert alarms_of(curves(**short), tmp_path) == []


@settings(deadline=None)  # many tests share few cores
@given(st.lists(st.floats(0.1, 1.0), min_size=1, max_size=12), st.integers(1, 4))
def test_overfitting_counts_evaluations_since_the_best(losses, patience):
    found = alarms.overfitting(History(eval_losses=losses), patience)
    assert (found is not None) == (losses.index(min(losses)) < len(losses) - patience)


@settings(deadline=None)  # many tests share few cores
@given(st.lists(st.tuples(st.integers(1, 50), st.floats(-5, 5)), min_size=1, max_size=30))
def test_means_are_those_over_all_pairs(steps):
    lines = [{"pairs": pairs, "kl": value} for pairs, value in steps]
    each = np.repeat([value for _, value in steps], [pairs for pairs, _ in steps])
    assert alarms.means(lines)["kl"] == pytest.approx(each.mean(), abs=1e-9)
    assert alarms.means(lines)["pairs"] == len(each)


def test_reading_the_log_again_gives_the_same_file(tmp_path):
    lines = curves(**FAULTS["kl"], **FAULTS["length"])
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
        (folder / alarms.FILE_NAME).write_text('{"phase": "sft", "step": 9, "alarm": "overfitting"}\n')
    assert len(alarms_of(lines, whole)) == 3
    for until in (130, 310, 70):
        alarms_of(lines[:until], cut)
    watch = Watch(cut, "dpo", Alarms(), lines[:250])
    for line in lines[250:]:
        watch.see(line)
    assert (cut / alarms.FILE_NAME).read_bytes() == (whole / alarms.FILE_NAME).read_bytes()


# In a run

HURRIED = {**DPO, "learning_rate": 5e-3, "epochs": 2, "eval_every": 4, "checkpoint_every": 5}
EAGER = {"window": 3, "displacement": 0.01, "kl": 1.0, "length": False, "saturation": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "d"
    rows = toy_pairs(24, answers=3)
    contrary = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[54:]]
    write_data_set(folder, rows[:54], contrary)  # what is learned makes the held-out loss worse
    return folder


def test_a_run_that_goes_too_far_says_so_and_resumes_to_the_same_alarms(data, tmp_path):
    table = pipeline(data, {**HURRIED, "alarms": EAGER})
    notes, progress = [], Silent()
    progress.note = notes.append
    run.train(table, data=data, out=tmp_path / "whole", progress=progress)
    whole = (tmp_path / "whole" / alarms.FILE_NAME).read_bytes()
    found = [json.loads(line) for line in whole.splitlines()]
    assert "kl" in {line["alarm"] for line in found}
    for line in found:
        assert any(f"step {line['step']}, alarm {line['alarm']}: " in note for note in notes)
    for step in (2, found[0]["step"], found[0]["step"] + 1):
        out = tmp_path / f"killed at {step}"
        with pytest.raises(Killed):
            run.train(table, data=data, out=out, progress=KillAt(step))
        run.train(table, data=data, out=out, resume=True)
        assert (out / alarms.FILE_NAME).read_bytes() == whole


@pytest.mark.parametrize("name", ["kl", "overfitting"])
def test_an_alarm_may_end_the_phase(data, tmp_path, name):
    """Weights, report and a resumed run are those of a phase that was meant to end there."""
    how = {**EAGER, "overfitting": 2, "stop": [name]}
    if name == "overfitting":
        how |= {"kl": False, "displacement": False}
    else:
        how["overfitting"] = False
    table = pipeline(data, {**HURRIED, "epochs": 2, "alarms": how})
    report = run.train(table, data=data, out=tmp_path / "r")["phases"]["dpo"]
    (last,) = [json.loads(line) for line in (tmp_path / "r" / alarms.FILE_NAME).read_text().splitlines()][-1:]
    assert last["alarm"] == name
    assert report["steps"] == report["last_step"]["step"] == report["eval_after"]["step"] == last["step"] < 18
    (tmp_path / "r" / "dpo" / "phase.json").unlink()
    before = metrics.read(tmp_path / "r")
    run.train(table, data=data, out=tmp_path / "r", resume=True)
    assert metrics.read(tmp_path / "r") == before


def test_early_stopping_needs_a_test_split(tmp_path):
    write_data_set(tmp_path / "d", toy_pairs(12))
    table = pipeline(tmp_path, {**HURRIED, "alarms": {"stop": ["overfitting"]}})
    with pytest.raises(TrainError, match='stop names "overfitting", which is seen on a test split'):
        run.train(table, data=tmp_path / "d", out=tmp_path / "r")


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        ({"objective": "simpo", "alarms": {"kl": 3}}, '"kl" has nothing to look at'),
        ({"objective": "sft", "alarms": {"stop": ["length"]}}, '"length" has nothing to look at'),
        ({"objective": "ipo", "alarms": {"kl": False, "stop": ["kl"]}}, 'stop names "kl", which is switched off'),
        ({"objective": "ipo", "alarms": {"lenght": 0.2}}, 'unknown option "lenght".*Did you mean "length"'),
        ({"objective": "ipo", "alarms": {"kl": -1}}, "option kl"),
        ({"objective": "ipo", "alarms": {"stop": ["nan"]}}, "option stop"),
    ],
)
def test_options_are_checked(data, phase, message):
    with pytest.raises(UsageError, match=message):
        run.check(pipeline(data, phase))


def test_options_show_which_alarms_are_on(data):
    simpo, sft = run.check(pipeline(data, {"objective": "simpo"}, {"objective": "sft"})).phases
    assert (simpo.alarms["kl"], simpo.alarms["length"], sft.alarms["length"]) == (False, 0.1, False)
    assert sft.alarms["overfitting"] == 3
    assert set(options.ALARMS_NEED) | {"overfitting", "window", "stop"} == set(sft.alarms)
