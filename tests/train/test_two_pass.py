"""Losses of the whole step: the gradient is that of one pass over all pairs, whatever the bins."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from prefkit.resolve import Call
from prefkit.train import metrics, policy, run, two_pass
from prefkit.train.adapters import Lora
from prefkit.train.fill import pack
from prefkit.train.metrics import TIMING
from prefkit.train.objective import Preference, Term
from prefkit.train.pack import Sequence, collate
from prefkit.train.stream import Step
from prefkit.train.terms import Weighted
from tests.train.conftest import make_model, tree_of
from tests.train.datasets_for_tests import pipeline, toy_pairs, write_data_set
from tests.train.test_run import KillAt, Killed

OF_WHOLE_STEP = ["aot", "aot_unpaired", "apo_zero_unpaired", "bco", "bco_pair", "kto", "plackett_luce"]


def trees_of_prompts(prompts=5):
    """Four answers a prompt, in pairs of neighbouring ranks, and one in no pair, numbered through all prompts."""
    rng, trees = np.random.default_rng(0), []
    for n in range(prompts):
        prompt, *answers = (rng.integers(3, 61, size) for size in (6, 4, 7, 5, 3, 6))
        sequences = [Sequence(np.r_[prompt, answer].astype(np.int32), 6) for answer in answers]
        tree = tree_of(sequences, [(2, 0), (0, 3), (3, 1)])
        trees.append(replace(tree, pair_rows_P=tree.pair_rows_P + 3 * n, sequence_rows_Q=tree.sequence_rows_Q + 5 * n))
    return trees


def step_of(trees, max_tokens):
    bins = [collate([trees[i] for i in members]) for members in pack([tree.size for tree in trees], max_tokens)]
    return Step(bins, sum(len(tree.pairs_P2) for tree in trees), 0, sum(tree.size for tree in trees), 0)


def reference_of(bin):
    return -torch.rand(100, generator=torch.Generator().manual_seed(3)).mul(30)[bin.sequence_rows_Q]


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("terms", [*([name] for name in OF_WHOLE_STEP), ["sigmoid", "aot", "bco_pair"]])
def test_the_gradient_is_that_of_one_pass_over_all_pairs(terms):
    ready = policy.ready(make_model("Llama"), dtype="float32")
    calls = [Weighted(0.5 + i, Call(f"prefkit.train.losses:{name}", {})) for i, name in enumerate(terms)]
    objective, trees = Preference.of(calls), trees_of_prompts()
    step = step_of(trees, 10_000)
    (bin,) = step.bins
    whole = objective.of_bin(ready.sequence_logps(bin), reference_of(bin), bin, step)
    whole.total.backward()
    expected = gradient(ready.model)
    for max_tokens in (40, 70, 10_000):
        ready.model.zero_grad()
        step = step_of(trees, max_tokens)
        assert len(step.bins) == {40: 5, 70: 3, 10_000: 1}[max_tokens]
        result = two_pass.backward(objective, ready, reference_of, step, ())
        assert result.total.item() == pytest.approx(whole.total.item(), rel=1e-5)
        torch.testing.assert_close(gradient(ready.model), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
        rows_P = torch.cat([bin.pair_rows_P for bin in step.bins])  # figures come as the bins have their pairs
        torch.testing.assert_close(result.figures_NP, whole.figures_NP[:, rows_P], rtol=1e-4, atol=1e-4)


def test_bins_alone_would_give_another_gradient():
    """Else the test above could not fail."""
    ready, trees = policy.ready(make_model("Llama"), dtype="float32"), trees_of_prompts()
    objective = Preference.of([Weighted(1.0, Call("prefkit.train.losses:aot", {"beta": 1.0}))])
    two_pass.backward(objective, ready, reference_of, step_of(trees, 40), ())
    expected = gradient(ready.model)
    ready.model.zero_grad()
    for bin in step_of(trees, 40).bins:
        objective.of_bin(ready.sequence_logps(bin), reference_of(bin), bin, step_of(trees, 40)).total.backward()
    assert (gradient(ready.model) - expected).norm() > 0.05 * expected.norm()


def test_dropout_of_lora_falls_the_same_way_twice():
    """Where one pass would do, two give its gradient exactly, dropout and all."""
    ready = policy.add_lora(policy.ready(make_model("Llama"), dtype="float32"), Lora(r=4, dropout=0.4))
    for name, parameter in ready.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ready.model.train()
    term = Term.of(1.0, Call("prefkit.train.losses:sigmoid", {}))
    step, found = step_of(trees_of_prompts(), 40), []
    for whole in (False, True):
        ready.model.zero_grad()
        objective = Preference([replace(term, whole_step=whole)])
        torch.manual_seed(7)
        if whole:
            two_pass.backward(objective, ready, reference_of, step, ())
        else:
            for bin in step.bins:
                objective.of_bin(ready.sequence_logps(bin), reference_of(bin), bin, step).total.backward()
        found.append(gradient(ready.model))
    assert (found[0] - found[1]).norm() < 1e-5 * found[0].norm()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole_step") / "d"
    rows = toy_pairs(20, answers=3)
    write_data_set(folder, rows[:48], rows[48:], shards=2)
    return folder


def logged(out):
    return [{k: v for k, v in line.items() if k not in TIMING} for line in metrics.read(out)]


@pytest.mark.parametrize("objective", OF_WHOLE_STEP)
def test_bins_do_not_change_a_run(data, tmp_path, objective):
    phase = {"name": "p", "objective": objective, "learning_rate": 1e-3, "pairs_per_step": 12, "epochs": 2}
    lines = {}
    for size in (90, 8192):
        run.train(pipeline(data, {**phase, "max_tokens": size}), data=data, out=tmp_path / str(size))
        lines[size] = logged(tmp_path / str(size))
    assert any(line.get("num_tokens", 0) > 180 for line in lines[90])
    for small, large in zip(lines[90], lines[8192], strict=True):
        for name in {"loss", "grad_norm", "eval_loss", "rewards/margins"} & small.keys():
            assert small[name] == pytest.approx(large[name], rel=1e-3, abs=1e-5), name


def test_what_a_loss_remembers_is_resumed_bitwise(data, tmp_path):
    sum_of_losses = [{"use": "sigmoid", "weight": 0.5}, {"use": "bco_pair", "weight": 1.5, "beta": 0.2}]
    phase = {"name": "p", "objective": sum_of_losses, "learning_rate": 3e-3, "pairs_per_step": 6, "checkpoint_every": 2}
    run.train(pipeline(data, phase), data=data, out=tmp_path / "whole")
    with pytest.raises(Killed):
        run.train(pipeline(data, phase), data=data, out=tmp_path / "killed", progress=KillAt(6, "p"))
    run.train(pipeline(data, phase), data=data, out=tmp_path / "killed", resume=True)
    assert logged(tmp_path / "killed") == logged(tmp_path / "whole")
    (state,) = (tmp_path / "killed" / "p" / "checkpoints").glob("*8/state.json")
    assert '"memory": [null, [' in state.read_text()
