"""Evaluation of labelled answers: against scipy, simulations, and plain forwards of the model itself."""

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy.stats import mannwhitneyu

from prefkit.cli import main
from prefkit.train import evaluate, judged, run
from prefkit.train.render import render
from tests.train.datasets_for_tests import pipeline, toy_labels, write_data_set
from tests.train.test_evaluate import plain_logps
from tests.train.test_labelled import KTO


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A data set of labels, an SFT model, and a KTO model that started from it."""
    root = tmp_path_factory.mktemp("judged")
    rows = toy_labels(36)
    write_data_set(root / "d", rows[:48], rows[48:], kind="labels")
    sft = {"objective": "sft", "column": "completion", "learning_rate": 1e-3, "pairs_per_step": 8}
    run.train(pipeline(root / "d", sft, {**KTO, "epochs": 2}), data=root / "d", out=root / "r")
    return root / "d", root / "r" / "sft" / "model", root / "r" / "model", rows[48:]


def test_figures_against_plain_forwards_and_scipy(trained):
    data, start, model, rows = trained
    result = evaluate.evaluate(model, data=data, reference_model=start, beta=0.3)
    (own, _), (base, _) = (plain_logps(folder, rows, "completion") for folder in (model, start))
    rewards, good = 0.3 * (own - base), np.array([row["label"] for row in rows])
    assert (result["answers"], result["good"]) == (24, good.sum())
    assert 0 < good.sum() < 24
    area = mannwhitneyu(rewards[good], rewards[~good]).statistic / good.sum() / (~good).sum()
    assert result["rewards/auc"] == pytest.approx(area)
    assert area > 0.8  # it learned something
    assert result["rewards/accuracies"] == np.mean((rewards > 0) == good)
    assert result["rewards/chosen"] == pytest.approx(rewards[good].mean(), rel=1e-3)
    assert result["rewards/margins"] == pytest.approx(rewards[good].mean() - rewards[~good].mean(), rel=1e-3)
    assert result["loss"] == pytest.approx(np.log1p(np.exp(np.where(good, -rewards, rewards))).mean(), rel=1e-4)
    by_label = result["by_label"]
    assert by_label["good"]["answers"] + by_label["bad"]["answers"] == 24
    assert by_label["bad"]["rewards/accuracies"] == np.mean(rewards[~good] < 0)
    assert by_label["good"]["rewards/auc"] is by_label["good"]["rewards/rejected"] is None
    assert sum(row["answers"] for row in result["calibration"]["bins"]) == 24
    json.dumps(result, allow_nan=False)


def test_a_model_that_is_its_reference_is_a_coin(trained):
    data, start, *_ = trained
    result = evaluate.evaluate(start, data=data, reference_model=start)
    assert result["rewards/auc"] == result["rewards/accuracies"] == 0.5
    assert result["loss"] == pytest.approx(np.log(2))
    assert result["rewards/auc_low"] < 0.5 < result["rewards/auc_high"]


def test_two_models_side_by_side_and_the_tables(trained):
    data, start, model, _ = trained
    result = evaluate.evaluate(model, data=data, reference_model=start, against=start)
    found = result["differences"]
    assert found["answers"] == 24
    for name in ("rewards/auc", "rewards/accuracies", "loss"):
        assert found[name]["difference"] == pytest.approx(result[name] - result["against"][name])
        assert found[name]["low"] <= found[name]["difference"] <= found[name]["high"]
    assert found["rewards/auc"]["p"] < 0.01
    console = Console(file=io.StringIO(), width=160)
    render(result, console)
    text = " ".join(console.file.getvalue().split())  # titles fold at the width of their table
    assert "label good" in text and "AUC" in text and "24 answers" in text and "–" in text


def test_a_reference_is_asked_for(trained, capsys):
    data, start, *_ = trained
    assert main(["evaluate", str(start), "--data", str(data)]) == 2
    assert "holds labels" in (said := capsys.readouterr().err) and "--reference" in said


@settings(deadline=None)  # many tests share few cores
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40))
def test_the_area_is_the_statistic_of_mann_and_whitney(answers):
    rewards, good = np.array([r for r, _ in answers], float), np.array([g for _, g in answers])
    found = judged.area(rewards, good, np.arange(len(answers)))
    if good.all() or not good.any():
        assert set(found.values()) == {None}
        return
    area = mannwhitneyu(rewards[good], rewards[~good]).statistic / good.sum() / (~good).sum()
    assert found["rewards/auc"] == pytest.approx(area)
    assert judged.placements(rewards, good)[~good].mean() == pytest.approx(area)
    assert 0 <= found["rewards/auc_low"] <= area + 1e-9
    assert area - 1e-9 <= found["rewards/auc_high"] <= 1


def draw(rng, prompts, answers):
    """Rewards of answers, some good, to prompts that shift them: the answers of a prompt are alike."""
    shift = np.repeat(rng.normal(0, 1.0, prompts), answers)
    good = rng.random(prompts * answers) < 0.4
    return shift + rng.normal(0, 1, len(good)) + 0.8 * good, good, np.repeat(np.arange(prompts), answers)


def test_intervals_of_the_area_cover_the_truth_though_answers_share_prompts():
    rng, covered = np.random.default_rng(0), 0
    truth = judged.area(*draw(rng, 40_000, 4))["rewards/auc"]
    for _ in range(300):
        found = judged.area(*draw(rng, 60, 4))
        covered += found["rewards/auc_low"] <= truth <= found["rewards/auc_high"]
    assert 0.91 <= covered / 300 <= 0.985


def test_intervals_of_differences_cover_the_truth():
    rng, covered = np.random.default_rng(1), 0

    def two(prompts):
        rewards, good, of = draw(rng, prompts, 3)
        return [judged.columns(values, good) for values in (rewards, rewards + rng.normal(0, 1, len(good)))], of

    (one, other), of = two(40_000)
    truth = judged.differences(one, other, of)["rewards/auc"]["difference"]
    for _ in range(200):
        (one, other), of = two(60)
        moved = judged.placements(one["rewards"], one["good"]) - judged.placements(other["rewards"], one["good"])
        half = 1.96 * judged.variance_of_mean(moved, one["good"], of) ** 0.5
        covered += abs(moved[one["good"]].mean() - truth) <= half
    assert 0.90 <= covered / 200 <= 0.985


def test_one_answer_of_a_label_makes_nobody_sure():
    """Above all bad ones: as sure as one hit in one trial."""
    rewards, good = np.arange(50.0), np.arange(50) == 49
    found = judged.area(rewards, good, np.arange(50))
    assert found["rewards/auc"] == 1
    assert found["rewards/auc_low"] < 0.25
