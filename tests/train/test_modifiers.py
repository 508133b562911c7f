"""Modifiers that need more of a model than sums: against plain forwards, and whatever the bins."""

import numpy as np
import pytest
import torch

from prefkit.train import metrics, policy, run
from prefkit.train.metrics import TIMING
from prefkit.train.pack import Sequence, collate
from tests.train.conftest import make_model, tree_of
from tests.train.datasets_for_tests import pipeline, toy_pairs, write_data_set

DPO = {"name": "dpo", "objective": "sigmoid", "learning_rate": 1e-3, "pairs_per_step": 6}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modifiers") / "d"
    rows = toy_pairs(14, answers=3)
    write_data_set(folder, rows[:36], rows[36:], shards=2)
    return folder


def logged(out):
    return [{k: v for k, v in line.items() if k not in TIMING} for line in metrics.read(out)]


def losses(out):
    return [line["loss"] for line in metrics.read(out) if "loss" in line]


def assert_bins_do_not_matter(data, folder, phase):
    for size in (90, 8192):
        run.train(pipeline(data, {**phase, "max_tokens": size}), data=data, out=folder / str(size))
    small, large = (logged(folder / size) for size in ("90", "8192"))
    assert any(line.get("packing_efficiency", 0) < 0.1 for line in large), "there is room for the whole step"
    for left, right in zip(small, large, strict=True):
        for name in {"loss", "grad_norm", "eval_loss", "rewards/margins"} & left.keys():
            assert left[name] == pytest.approx(right[name], rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "Granite"])
@pytest.mark.parametrize("padded", [None, "it is a test"])
def test_weights_of_wpo_against_full_logits(name, padded):
    """Per token log p minus the log of the expected p of a token that the model would draw; a mean, exponentiated."""
    ready = policy.ready(make_model(name), dtype="float32")
    ready = policy.Policy(ready.model, ready.device, ready.dtype, padded)
    rows = [[5, 6, 7, 8, 9], [5, 6, 7, 10], [5, 6, 11, 12, 13, 14]]
    bin = collate([tree_of([Sequence(np.array(row, dtype=np.int32), 2) for row in rows])])
    own = ready.model.config._attn_implementation
    if padded:
        ready.model.set_attn_implementation("sdpa" if name == "Llama" else "eager")
    sums, weights = ready.weighted_logps(bin)
    assert sums.requires_grad
    assert not weights.requires_grad
    torch.testing.assert_close(sums, ready.sequence_logps(bin))
    ready.model.set_attn_implementation("eager")
    for row, weight in zip(rows, weights, strict=True):
        logps = ready.model(torch.tensor([row])).logits[0, 1:-1].log_softmax(-1)
        picked = logps[range(len(row) - 2), row[2:]] - logps.exp().square().sum(-1).log()
        assert weight.item() == pytest.approx(picked.mean().exp().item(), rel=1e-4)
    ready.model.set_attn_implementation(own)


def test_wpo_runs_whatever_the_bins(data, tmp_path):
    assert_bins_do_not_matter(data, tmp_path, {**DPO, "wpo": True})
    assert 0.5 < losses(tmp_path / "90")[0] < np.log(2) - 1e-3, "ln 2 times weights near 1, of a model without opinions"
