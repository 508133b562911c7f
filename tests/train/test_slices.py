"""Slices: every pair is in one of each column, sums are those of the pairs, and a resumed run goes on with them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.train import metrics, run, slices
from tests.train.datasets_for_tests import pipeline, toy_pairs, write_data_set
from tests.train.test_run import DPO, KillAt, Killed, lines

PHASE = {**DPO, "checkpoint_every": 2, "eval_every": 4, "alarms": {"window": 4}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "d"
    rows = toy_pairs(24, answers=3)
    for number, row in enumerate(rows):
        row |= {"chosen_score": float(number % 7), "rejected_score": -1.0, "lang": "en" if number % 5 else "de"}
    write_data_set(folder, rows[:54], rows[54:])
    return folder


@settings(deadline=None)  # many tests share few cores
@given(st.lists(st.one_of(st.floats(-9, 9), st.just(float("nan"))), min_size=1, max_size=60))
def test_quarters_hold_what_they_say(values):
    values = np.array(values)
    for value, label in zip(values, slices.quarters(values), strict=True):
        if np.isnan(value):
            assert label == "unknown"
        else:
            bounds = [float(word) for word in label.split() if word not in ("up", "to", "above")]
            near = 0.01 * abs(value) + 1e-9  # three digits are shown
            assert not label.startswith("up to") or value <= bounds[0] + near + 0.01 * abs(bounds[0])
            assert not label.startswith("above") or value >= bounds[0] - near - 0.01 * abs(bounds[0])


@settings(deadline=None)  # many tests share few cores
@given(st.integers(1, 40), st.integers(1, 40))
def test_lengths_compared(chosen, rejected):
    (label,) = slices.compared(np.array([[chosen, rejected]]))
    is_alike = 10 * abs(chosen - rejected) <= rejected  # 11 / 10 - 1 is more than 0.1 in floats
    assert label == ("alike" if is_alike else f"chosen {'longer' if chosen > rejected else 'shorter'}")


@settings(deadline=None)  # many tests share few cores
@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(-5, 5)), min_size=1, max_size=50), st.integers(1, 9))
def test_sums_are_those_of_the_pairs_however_they_came(pairs, step):
    labels = np.array([label for label, _ in pairs], dtype=object)
    values = np.array([value for _, value in pairs])
    sums = slices.Sums({"source": labels}, ["rewards/margins"])
    for first in range(0, len(pairs), step):
        rows = np.arange(first, min(first + step, len(pairs)))
        sums.add(rows, {"rewards/margins": values[rows]})
    for label, row in sums.taken()["source"].items():
        assert row["pairs"] == (labels == label).sum()
        assert row["rewards/margins"] == pytest.approx(values[labels == label].mean(), abs=1e-9)
    assert sums.taken() == {}


def test_many_sources_become_a_few_and_the_rest():
    values = np.array([f"s{n}" for n in range(40) for _ in range(40 - n)], dtype=object)
    kept = slices._largest(values)
    assert len(set(kept)) == slices.LARGEST
    assert {f"s{n}" for n in range(15)} | {"other"} == set(kept)


def test_a_run_writes_them_once_a_window_and_for_each_evaluation(data, tmp_path):
    run.train(pipeline(data, PHASE), data=data, out=tmp_path / "whole")
    found = lines(tmp_path / "whole")
    trained = {line["step"]: line["slices"] for line in found if "slices" in line}
    assert sorted(trained) == [4, 8, 9]
    steps = {line["step"]: line for line in found if "loss" in line}
    for end, window in ((4, range(1, 5)), (8, range(5, 9)), (9, [9])):
        assert set(trained[end]) == {"source", "lang", "margin"}  # all chosen answers are the shorter ones
        pairs = sum(steps[n]["pairs"] for n in window)
        for figure in slices.SHOWN:
            mean = sum(steps[n][figure] * steps[n]["pairs"] for n in window) / pairs
            for column in trained[end].values():
                assert sum(row["pairs"] for row in column.values()) == pairs
                total = sum(row[figure] * row["pairs"] for row in column.values())
                assert total / pairs == pytest.approx(mean, abs=1e-5)
    evaluations = [line for line in found if "eval_loss" in line]
    for line in evaluations:
        for column in line["eval_slices"].values():
            total = sum(row["rewards/margins"] * row["pairs"] for row in column.values())
            assert total / line["eval_pairs"] == pytest.approx(line["eval_rewards/margins"], abs=1e-6)
    assert "slices/lang/de/rewards/margins" in dict(metrics.scalars(found[4]))


@pytest.mark.parametrize("step", [3, 7])
def test_a_window_that_was_cut_goes_on(data, tmp_path, step):
    run.train(pipeline(data, PHASE), data=data, out=tmp_path / "whole")
    with pytest.raises(Killed):
        run.train(pipeline(data, PHASE), data=data, out=tmp_path / "cut", progress=KillAt(step))
    run.train(pipeline(data, PHASE), data=data, out=tmp_path / "cut", resume=True)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
