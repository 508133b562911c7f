"""Modifiers that need more of a model than sums: against plain forwards, and whatever the bins."""

import numpy as np
import pytest
import torch

from prefkit import manifest as manifests
from prefkit.train import chat, metrics, policy, reference, run, tokenizer
from prefkit.train.chat import Tokenising
from prefkit.train.examples import Examples
from prefkit.train.metrics import TIMING, Silent
from prefkit.train.pack import Sequence, collate
from tests.train.conftest import make_model, tree_of
from tests.train.datasets_for_tests import pipeline, toy_pairs, write_data_set
from tests.train.test_run import KillAt, Killed

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
    evaluated = [line["eval_loss"] for line in metrics.read(tmp_path / "90") if "eval_loss" in line]
    assert 0.5 < evaluated[0] < np.log(2) - 1e-3, "and so is the loss on the test split"


LD = {**DPO, "ld_alpha": 0.25, "sft_weight": 0.1}


def test_ld_alpha_runs_whatever_the_bins_and_the_reference(data, tmp_path):
    """Bins so small that trees of three answers are split, so the cut answers must go where their pair goes."""
    assert_bins_do_not_matter(data, tmp_path, {**LD, "pairs_per_step": 9})
    run.train(pipeline(data, {**LD, "pairs_per_step": 9, "reference": "live"}), data=data, out=tmp_path / "live")
    np.testing.assert_allclose(losses(tmp_path / "live"), losses(tmp_path / "8192"), atol=1e-5)
    run.train(pipeline(data, {**LD, "pairs_per_step": 9, "ld_alpha": 0.9}), data=data, out=tmp_path / "other")
    assert abs(losses(tmp_path / "other")[-1] - losses(tmp_path / "live")[-1]) > 1e-5


def examples_of(data, folder, how):
    manifest = manifests.read(data)
    words = tokenizer.of_run(run.check(pipeline(data, LD)), data, manifest, folder)
    return Examples.of(chat.tokenise(data, manifest, "train", words, how, cache=folder, progress=Silent()))


def test_pairs_left_out_take_their_cut_answers_along(data, tmp_path):
    """With a filter of the stream the objective finds every sequence that it needs, and computes no others."""
    run.train(pipeline(data, {**LD, "min_margin": 0.75, "max_tokens": 90}), data=data, out=tmp_path / "r")
    first = next(line for line in logged(tmp_path / "r") if "loss" in line)
    assert first["pairs"] == 6
    examples = examples_of(data, tmp_path, Tokenising(None, "truncate_completion", None, public=True))
    kept = examples.keeping(np.arange(len(examples.pairs())) % 3 == 1)
    for tree in (tree for prompt in range(examples.prompts) for tree in kept.trees(prompt, 8192)):
        needed = np.r_[examples.pairs()[tree.pair_rows_P], examples.public_of(tree.pair_rows_P)]
        assert set(tree.sequence_rows_Q) == set(needed.ravel())


def test_answers_are_cut_at_the_public_length(data, tmp_path):
    plain = examples_of(data, tmp_path, Tokenising(None, "truncate_completion", None))
    cut = examples_of(data, tmp_path, Tokenising(None, "truncate_completion", None, public=True))
    assert (plain.tree_tokens() == cut.tree_tokens()).all(), "a prefix costs no token"
    sides, public = cut.lengths()[cut.pairs()], cut.lengths()[cut.public_of(np.arange(len(cut.pairs())))]
    assert (sides[:, 0] != sides[:, 1]).any()
    assert (public == sides.min(1, keepdims=True)).all()
    shard = cut.shards[0]
    tokens = [np.concatenate([[s.start], s.tokens]) for n in range(shard.prompts) for s in shard.sequences_of(n)[0]]
    for whole, part in zip(shard.of_pairs(shard.pair_sides).ravel(), shard.of_pairs(shard.public).ravel(), strict=True):
        assert np.array_equal(tokens[part], tokens[whole][: len(tokens[part])])


LIVE = {**DPO, "reference": "live", "reference_sync": {"every": 2, "alpha": 0.5}, "checkpoint_every": 3}


def test_the_reference_moves_as_trls():
    callbacks = pytest.importorskip("trl.trainer.callbacks")
    ready, other, expected = (policy.ready(make_model("Llama"), dtype="float32") for _ in range(3))
    with torch.no_grad():
        for parameter in ready.model.parameters():
            parameter.add_(torch.randn_like(parameter))
    callbacks.SyncRefModelCallback._sync_target_model(ready.model, expected.model, 0.3)
    reference.move(other, ready, 0.3)
    for found, wanted in zip(other.model.parameters(), expected.model.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_a_reference_that_becomes_the_policy_leaves_no_reward(data, tmp_path):
    """After the last of six steps the reference is the policy, also in the evaluation that follows."""
    phase = {**LIVE, "reference_sync": {"every": 6, "alpha": 1.0}}
    result = run.train(pipeline(data, phase), data=data, out=tmp_path / "r")
    assert result["phases"]["dpo"]["steps"] == 6
    after = result["phases"]["dpo"]["eval_after"]
    assert after["eval_rewards/margins"] == 0
    assert after["eval_loss"] == pytest.approx(np.log(2), abs=1e-6)
    run.train(pipeline(data, {**DPO, "reference": "live"}), data=data, out=tmp_path / "still")
    np.testing.assert_allclose(losses(tmp_path / "still"), losses(tmp_path / "r"), atol=1e-6)


def test_a_moved_reference_is_resumed_bitwise(data, tmp_path):
    run.train(pipeline(data, LIVE), data=data, out=tmp_path / "whole")
    with pytest.raises(Killed):
        run.train(pipeline(data, LIVE), data=data, out=tmp_path / "killed", progress=KillAt(4))
    run.train(pipeline(data, LIVE), data=data, out=tmp_path / "killed", resume=True)
    assert logged(tmp_path / "killed") == logged(tmp_path / "whole")
    still = {**LIVE, "reference_sync": None}
    run.train(pipeline(data, still), data=data, out=tmp_path / "still")
    assert losses(tmp_path / "still")[:2] == losses(tmp_path / "whole")[:2]
    assert losses(tmp_path / "still")[2] != losses(tmp_path / "whole")[2], "the first move comes after the second step"
