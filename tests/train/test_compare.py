"""Two models side by side, calibration, RewardBench: against closed forms, simulations and RewardBench's own rule."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from prefkit.cli import main
from prefkit.errors import DataError
from prefkit.train import compare, evaluate, reward_bench, run
from prefkit.train.render import render
from tests.train.datasets_for_tests import pipeline, toy_pairs, write_data_set


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A data set, an SFT model, and a DPO model that started from it."""
    root = tmp_path_factory.mktemp("compare")
    rows = toy_pairs(24, answers=3)
    write_data_set(root / "d", rows[:54], rows[54:])
    phases = [
        {"objective": "sft", "learning_rate": 3e-3, "pairs_per_step": 8},
        {"name": "dpo", "objective": "sigmoid", "learning_rate": 1e-3, "pairs_per_step": 6},
    ]
    run.train(pipeline(root / "d", *phases), data=root / "d", out=root / "r")
    return root / "d", root / "r" / "sft" / "model", root / "r" / "model"


# The bootstrap


def test_interval_of_independent_pairs_is_that_of_the_normal_distribution():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.3, 1.0, 900), rng.normal(0.0, 1.0, 900)
    found = compare.differences({"x": first}, {"x": second}, np.arange(900))["x"]
    apart = first - second
    half = 1.96 * apart.std() / 30
    assert found["difference"] == pytest.approx(apart.mean())
    assert (found["low"], found["high"]) == pytest.approx((apart.mean() - half, apart.mean() + half), abs=0.15 * half)
    assert found["p"] < 0.01


def test_copies_of_pairs_do_not_make_it_surer():
    """Six pairs a prompt that are right or wrong together are worth one: the interval stays as wide."""
    rng = np.random.default_rng(1)
    values = rng.normal(0.1, 1.0, 300)
    one = compare.differences({"x": values}, {"x": np.zeros(300)}, np.arange(300))["x"]
    six = compare.differences({"x": np.repeat(values, 6)}, {"x": np.zeros(1800)}, np.repeat(np.arange(300), 6))["x"]
    assert six == pytest.approx(one)


def test_intervals_over_clustered_pairs_cover_the_truth(monkeypatch):
    monkeypatch.setattr(compare, "DRAWS", 300)
    rng, covered = np.random.default_rng(2), 0
    prompts = np.repeat(np.arange(60), 4)
    for trial in range(200):
        hard = rng.normal(0, 1, 60)[:, None]  # for both models, and for each in its own way
        first, second = (hard + rng.normal(0, 0.7, (60, 1)) + rng.normal(0, 0.5, (60, 4)) for _ in range(2))
        found = compare.differences({"x": first.ravel() + 0.2}, {"x": second.ravel()}, prompts, seed=trial)["x"]
        covered += found["low"] <= 0.2 <= found["high"]
    assert covered / 200 > 0.89


def test_equal_models_differ_by_nothing():
    values = np.random.default_rng(3).normal(size=50)
    found = compare.differences({"x": values}, {"x": values}, np.arange(50))["x"]
    assert found == {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


# Calibration


def test_a_model_that_says_what_is_so_is_calibrated():
    rng = np.random.default_rng(4)
    margins = np.abs(rng.normal(0, 2, 200_000))
    right = rng.random(len(margins)) < 1 / (1 + np.exp(-margins))
    found = compare.calibration(np.where(right, margins, -margins))
    assert found["expected_calibration_error"] < 0.01
    surer = compare.calibration(np.where(right, 3 * margins, -3 * margins))
    assert surer["expected_calibration_error"] > 0.05
    assert all(row["said"] > row["right"] for row in surer["bins"][2:])


@settings(deadline=None)  # many tests share few cores
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=80))
def test_every_pair_is_in_the_bin_of_its_certainty(margins):
    found = compare.calibration(np.array(margins))
    assert sum(row["pairs"] for row in found["bins"]) == len(margins)
    for row in found["bins"]:
        assert row["from"] - 1e-9 <= row["said"] <= row["to"] + 1e-9
    right = sum(row["right"] * row["pairs"] for row in found["bins"])
    assert right == pytest.approx(sum(1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in margins))


# RewardBench


def bench_rows() -> list[dict]:
    subsets = [subset for section in reward_bench.SECTIONS.values() for subset in section]
    return [
        {"id": n, "prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "no " * (n % 5 + 1), "subset": subset}
        for n, subset in enumerate([*subsets, *subsets[:7], "math-prm", "hep-cpp"])
    ]


def test_sections_are_weighted_as_rewardbench_does():
    """Its own counts, with a fixed accuracy for each subset, by its rule: math as much as all code."""
    counts = dict.fromkeys((f"hep-{x}" for x in ("cpp", "go", "java", "js", "python", "rust")), 164)
    counts |= {"alpacaeval-easy": 100, "mt-bench-med": 40, "math-prm": 447}
    accuracies = {name: (number + 1) / 10 for number, name in enumerate(counts)}
    by_source = {name: {"pairs": counts[name], "x": accuracies[name]} for name in counts}
    found = reward_bench.sections({**by_source, "other": {"pairs": 9, "x": 0.0}}, "x")
    code = sum(accuracies[name] for name in counts if name.startswith("hep")) / 6
    chat = (100 * accuracies["alpacaeval-easy"] + 40 * accuracies["mt-bench-med"]) / 140
    assert found["Reasoning"] == pytest.approx((code + accuracies["math-prm"]) / 2)
    assert found["Chat"] == pytest.approx(chat)
    assert found["score"] == pytest.approx((found["Reasoning"] + found["Chat"]) / 2)
    assert reward_bench.sections({"ultrachat": {"pairs": 1, "x": 1.0}}, "x") is None


def test_sections_that_a_file_has_nothing_of_are_said(trained, tmp_path):
    _, start, model = trained
    path = tmp_path / "bench.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in bench_rows()[:11]))
    result = evaluate.evaluate(model, data=path, reference_model=start)
    render(result, console := Console(file=io.StringIO(), width=200))
    assert console.file.getvalue().count("no pairs") == 2 and "mean of 2" in console.file.getvalue()


@pytest.mark.parametrize("form", ["jsonl", "parquet", "messages", "mixed"])
def test_a_benchmark_file_is_evaluated_whole(trained, tmp_path, form):
    _, start, model = trained
    rows = bench_rows()
    if form in ("messages", "mixed"):
        every = 2 if form == "mixed" else 1
        rows[::every] = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows[::every]]
    path = tmp_path / f"bench.{'parquet' if form == 'parquet' else 'jsonl'}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = evaluate.evaluate(model, data=path, reference_model=start)
    assert result["pairs"] == len(rows)
    assert set(result["by_source"]) == {row["subset"] for row in rows}
    scores = result["reward_bench"]
    assert set(scores) == {"accuracy", "score", *reward_bench.SECTIONS}
    chat = [result["by_source"][name] for name in reward_bench.SECTIONS["Chat"]]
    mean = sum(row["pairs"] * row["rewards/accuracies"] for row in chat) / sum(row["pairs"] for row in chat)
    assert scores["Chat"] == pytest.approx(mean)


@pytest.mark.parametrize("answer", [["Yes.", "Sure."], None, 7])
def test_rows_of_another_format_are_named(tmp_path, answer):
    path = tmp_path / "bench.jsonl"
    path.write_text(json.dumps({"prompt": "Hi", "chosen": answer, "rejected": "No.", "subset": "x"}) + "\n")
    with pytest.raises(DataError, match=r"bench\.jsonl, row 1: chosen is neither text nor messages"):
        reward_bench.as_data_set(path, tmp_path / "d")
    path.write_text('{"prompt": "Hi", "chosen": "Yes.", "reject": "No."}')
    with pytest.raises(DataError, match=r'row 1: no "rejected"\. Columns: prompt, chosen, reject\.'):
        reward_bench.as_data_set(path, tmp_path / "d")
    for text, words in (("[", "row 1: not JSON"), ("\n7\n", "row 1: not an object")):
        path.write_text(text)
        with pytest.raises(DataError, match=words):
            reward_bench.as_data_set(path, tmp_path / "e")
    path.write_bytes(b"\xff")
    with pytest.raises(DataError, match="neither Parquet nor JSONL"):
        reward_bench.as_data_set(path, tmp_path / "e")


# All together


def test_two_models_side_by_side(trained, capsys):
    data, start, model = trained
    result = evaluate.evaluate(model, data=data, reference_model=start, against=start)
    json.dumps(result)
    found = result["differences"]
    assert found["pairs"] == result["pairs"]
    for name in ("rewards/accuracies", "loss", "logps/chosen"):
        assert found[name]["difference"] == pytest.approx(result[name] - result["against"][name], abs=1e-9)
        assert found[name]["low"] <= found[name]["difference"] <= found[name]["high"]
    assert {"by_source", "by_lang"} <= set(result)
    console = Console(file=io.StringIO(), width=160)
    render(result, console)
    for text in ("calibration", "minus", "rewards/accuracies", "certainty"):
        assert text in console.file.getvalue()
    command = ["evaluate", str(model), "--data", str(data), "--against", str(start), "--json"]
    assert main(command) == 0
    assert "logps/accuracies" in json.loads(capsys.readouterr().out)["differences"]


def test_only_pairs_that_both_can_read_are_compared(trained):
    data, start, model = trained
    how = {"data": data, "max_length": 30, "max_length_policy": "drop"}
    found = evaluate.evaluate(model, **how, against=start)
    assert 0 < found["differences"]["pairs"] <= found["pairs"]
    one, other = (
        evaluate.Measured({"x": np.array(values)}, np.arange(3), {}, pairs, {}, labelled=False)
        for values, pairs in (([1.0, 2.0, 3.0], [(0, 1), (0, 2), (0, 4)]), ([9.0, 1.0, 1.0], [(0, 3), (0, 4), (0, 1)]))
    )
    assert evaluate.side_by_side(one, other)["x"]["difference"] == pytest.approx((0.0 + 2.0) / 2)
    assert evaluate.side_by_side(one, other)["pairs"] == 2
