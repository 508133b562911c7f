"""Every loss against TRL's own code on the same log-probabilities, in value and gradient, and against closed forms."""

import math
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefkit.errors import UsageError
from prefkit.resolve import Call, functions_of, options_of
from prefkit.train import losses
from prefkit.train.losses import LogProbs
from prefkit.train.losses.common import f_scores
from prefkit.train.losses.whole_step import everything_beaten
from prefkit.train.objective import Given, Preference, Term, check_shape
from prefkit.train.pack import Layout
from prefkit.train.terms import Weighted

PAIRS, WIDTH = 5, 12
LENGTHS = torch.tensor([7, 3, 9, 1, 11, 4, 8, 2, 10, 6])  # chosen, then rejected


@pytest.fixture
def token_logps():
    """[2 PAIRS, WIDTH] per-token log-probabilities, chosen rows first, zero beyond each completion."""
    torch.manual_seed(0)
    mask = torch.arange(WIDTH) < LENGTHS[:, None]
    return -torch.rand(2 * PAIRS, WIDTH, dtype=torch.float64).mul(3) * mask


@pytest.fixture
def reference_sums():
    torch.manual_seed(1)
    return -torch.rand(2 * PAIRS, dtype=torch.float64) * 2 * LENGTHS


def as_logprobs(sums, lengths=LENGTHS):
    (chosen, rejected), (chosen_length, rejected_length) = sums.chunk(2), lengths.chunk(2)
    return LogProbs(chosen, rejected, chosen_length, rejected_length)


def trl_dpo(token_logps, reference_sums, loss_types, lengths=LENGTHS, loss_weights=None, **options):
    """The loss of TRL's DPOTrainer, computed by its own method on a model that returns `token_logps`; and its log."""
    trl = pytest.importorskip("trl")
    mask = (torch.arange(-1, WIDTH) >= 0) & (torch.arange(-1, WIDTH) < lengths[:, None])  # column 0 is the prompt
    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=accelerator,
        loss_types=loss_types,
        loss_weights=loss_weights or [1.0] * len(loss_types),
        label_smoothing=options.get("label_smoothing", 0.0),
        beta=options["beta"],
        f_divergence_type=options.get("f_divergence", "reverse_kl"),
        f_alpha_divergence_coef=options.get("alpha"),
        args=SimpleNamespace(discopop_tau=options.get("tau")),
        precompute_ref_logps=True,
        ld_alpha=options.get("ld_alpha"),
        use_weighting="log_squares" in options,
        aux_loss_enabled=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    nothing = torch.zeros_like(token_logps)
    outputs = SimpleNamespace(log_probs=token_logps, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
    outputs.log_sum_sq_probs = options.get("log_squares")
    ref_chosen, ref_rejected = reference_sums.chunk(2)
    inputs = {
        "input_ids": torch.zeros_like(mask, dtype=torch.long),
        "attention_mask": torch.ones_like(mask, dtype=torch.long),
        "completion_mask": mask.long(),
        "ref_chosen_logps": ref_chosen,
        "ref_rejected_logps": ref_rejected,
    }
    loss = trl.DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
    return loss, trainer._metrics["train"]


def weighted_sum(weights, policy, reference):
    terms = [Term.of(weight, Call(f"prefkit.train.losses:{name}", {})) for name, weight in weights.items()]
    return Preference(terms).judge(Given(policy, reference, undamped=policy))[0]


def assert_same(ours, theirs, token_logps, tolerance=1e-6):
    assert torch.allclose(ours, theirs.to(ours.dtype), rtol=tolerance, atol=0)
    (grad,), (expected,) = (torch.autograd.grad(loss, token_logps, retain_graph=True) for loss in (ours, theirs))
    assert expected.abs().max() > 0
    assert torch.allclose(grad, expected, rtol=tolerance, atol=1e-3 * tolerance)


SMOOTHED = {"label_smoothing": 0.2}
OF_TRL = {
    "sigmoid": [{}],
    "sigmoid_norm": [{}],
    "ipo": [{}],
    "hinge": [{}],
    "robust": [{"label_smoothing": 0.0}, SMOOTHED],
    "exo_pair": [{"label_smoothing": 1e-3}, SMOOTHED],
    "discopop": [{"tau": 0.05}, {"tau": 0.8}],
    "nca_pair": [{}],
    "sppo_hard": [{}],
    "apo_zero": [{}],
    "apo_down": [{}],
}


@pytest.mark.parametrize("beta", [0.05, 1.0, 5.0])
@pytest.mark.parametrize(("name", "options"), [(name, given) for name, cases in OF_TRL.items() for given in cases])
def test_equals_trl(name, options, beta, token_logps, reference_sums):
    token_logps.requires_grad_()
    policy, reference = as_logprobs(token_logps.sum(1)), as_logprobs(reference_sums)
    output = getattr(losses, name)(policy, reference, beta=beta, **options)
    expected, log = trl_dpo(token_logps, reference_sums, [name], beta=beta, **options)
    assert_same(output.losses_P.mean(), expected, token_logps)
    assert output.chosen_rewards_P.mean().item() == pytest.approx(log["rewards/chosen"][0], rel=1e-6)
    assert output.rejected_rewards_P.mean().item() == pytest.approx(log["rewards/rejected"][0], rel=1e-6)
    assert not output.chosen_rewards_P.requires_grad


def test_smoothed_sigmoid_equals_trl_one_pair_at_a_time(token_logps, reference_sums):
    """TRL's `sigmoid` ignores label_smoothing; its `aot`, whose sort of one pair does nothing, is then cDPO."""
    token_logps.requires_grad_()
    policy, reference = as_logprobs(token_logps.sum(1)), as_logprobs(reference_sums)
    ours = losses.sigmoid(policy, reference, beta=0.3, label_smoothing=0.2).losses_P
    for i in range(PAIRS):
        rows = [i, i + PAIRS]
        options = {"lengths": LENGTHS[rows], "beta": 0.3, "label_smoothing": 0.2}
        expected, _ = trl_dpo(token_logps[rows], reference_sums[rows], ["aot"], **options)
        assert_same(ours[i], expected, token_logps)


OF_A_MARGIN = ["sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop"]  # TRL's own list


@pytest.mark.parametrize("divergence", ["forward_kl", "js_divergence", 0.3, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("name", OF_A_MARGIN)
def test_f_divergences_equal_trl(name, divergence, token_logps, reference_sums):
    token_logps.requires_grad_()
    # TRL's alpha-divergence knows no float64, only what it computes in.
    reduced = isinstance(divergence, float)
    near = token_logps / 8  # farther from the reference, TRL's discopop is infinity times zero
    near, reference_sums = (near.float(), reference_sums.float() / 8) if reduced else (near, reference_sums / 8)
    shared = {"beta": 0.3} | ({"label_smoothing": 0.1} if name in ("exo_pair", "robust") else {})
    shared |= {"tau": 0.05} if name == "discopop" else {}
    policy, reference = as_logprobs(near.sum(1)), as_logprobs(reference_sums)
    output = getattr(losses, name)(policy, reference, f_divergence=divergence, **shared)
    of_trl = {"f_divergence": "alpha_divergence", "alpha": divergence} if reduced else {"f_divergence": divergence}
    expected, log = trl_dpo(near, reference_sums, [name], **shared, **of_trl)
    assert_same(output.losses_P.mean(), expected, token_logps, 5e-6 if reduced else 1e-6)
    assert output.chosen_rewards_P.mean().item() == pytest.approx(log["rewards/chosen"][0], rel=1e-5)


def test_only_losses_of_a_margin_take_f_divergences():
    """The term that an f-divergence leaves open cancels in the margin alone."""
    taking = [name for name in functions_of(losses) if "f_divergence" in options_of(getattr(losses, name))]
    assert sorted(taking) == sorted(OF_A_MARGIN)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "js_divergence", 0.3, 2.5])
def test_f_scores_are_derivatives_of_f(divergence):
    """The paper's definition: with t the probability ratio, the score is f'(t), which autograd can tell."""
    f = {
        "reverse_kl": lambda t: t * t.log(),
        "forward_kl": lambda t: -t.log() + t,  # the linear term is TRL's choice, and cancels between two answers
        "js_divergence": lambda t: t * t.log() - (t + 1) * ((t + 1) / 2).log(),
    }.get(divergence, lambda t: (t**divergence / divergence - t) / (divergence - 1))
    t = torch.tensor([0.01, 0.5, 1.0, 1.7, 40.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(f(t).sum(), t)
    found = f_scores(t.detach().log(), divergence)
    assert torch.allclose(found - found[2], slope - slope[2], rtol=1e-9)


def test_f_divergences_stay_finite_far_away():
    far = torch.tensor([-1e4, 1e4], requires_grad=True)
    for divergence in ("forward_kl", "js_divergence", 0.3, 3.0):
        scores = f_scores(far, divergence)
        (grad,) = torch.autograd.grad(scores.sum(), far)
        assert scores.isfinite().all()
        assert grad.isfinite().all()


def trl_kto(token_logps, reference_sums, labels, kl_ratios, loss_type="kto", **options):
    """The loss of TRL's KTOTrainer, by its own method, and its log; `kl_ratios` are of mismatched answers."""
    trl = pytest.importorskip("trl")
    mask = (torch.arange(-1, WIDTH) >= 0) & (torch.arange(-1, WIDTH) < LENGTHS[:, None])
    nothing = torch.zeros_like(token_logps)
    outputs = SimpleNamespace(log_probs=token_logps, entropy=nothing, mean_logits=nothing)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x),
        loss_type=loss_type,
        calculate_KL=loss_type == "kto",
        precompute_ref_logps=True,
        aux_loss_enabled=False,
        _compute_kl_logps=lambda *_: kl_ratios,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **options,
    )
    inputs = {
        "input_ids": torch.zeros_like(mask, dtype=torch.long),
        "attention_mask": torch.ones_like(mask, dtype=torch.long),
        "completion_mask": mask.long(),
        "label": labels,
        "ref_logps": reference_sums,
        "ref_KL_logps": torch.zeros_like(kl_ratios),
    }
    loss = trl.KTOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
    return loss, trainer._metrics["train"]


@pytest.mark.parametrize("kl", [[0.5, 1.5, -0.2], [-2.0, 1.0, 0.1]])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.3, 0.4)])
def test_kto_equals_trl_on_the_unpaired_examples(kl, weights, token_logps, reference_sums):
    token_logps.requires_grad_()
    options = dict(zip(("desirable_weight", "undesirable_weight"), weights, strict=True)) | {"beta": 0.4}
    policy, reference = as_logprobs(token_logps.sum(1)), as_logprobs(reference_sums)
    ratios = torch.tensor(kl, dtype=torch.float64)
    output = losses.kto(policy, reference, ratios, **options)
    labels = torch.arange(2 * PAIRS) < PAIRS
    expected, log = trl_kto(token_logps, reference_sums, labels, ratios, **options)
    assert log["kl"][0] == pytest.approx(max(0.0, sum(kl) / 3))
    assert_same(output.losses_N.mean(), expected, token_logps)
    assert output.rejected_rewards_P.mean().item() == pytest.approx(log["rewards/rejected"][0], rel=1e-6)


@pytest.mark.parametrize("good", [1, PAIRS])
def test_apo_zero_unpaired_equals_trl_on_the_unpaired_examples(good, token_logps, reference_sums):
    token_logps.requires_grad_()
    options = {"desirable_weight": 1.3, "undesirable_weight": 0.4, "beta": 0.4}
    labels = torch.arange(2 * PAIRS) < good
    policy, reference = (
        LogProbs(sums[labels], sums[~labels], LENGTHS[labels], LENGTHS[~labels])
        for sums in (token_logps.sum(1), reference_sums)
    )
    output = losses.apo_zero_unpaired(policy, reference, **options)
    nothing = torch.zeros(1, dtype=torch.float64)
    expected, log = trl_kto(token_logps, reference_sums, labels, nothing, "apo_zero_unpaired", **options)
    assert_same(output.losses_N.mean(), expected, token_logps)
    assert output.chosen_rewards_P.mean().item() == pytest.approx(log["rewards/chosen"][0], rel=1e-6)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_sorting_losses_equal_trl(name, label_smoothing, token_logps, reference_sums):
    token_logps.requires_grad_()
    policy, reference = as_logprobs(token_logps.sum(1)), as_logprobs(reference_sums)
    output = getattr(losses, name)(policy, reference, beta=0.4, label_smoothing=label_smoothing)
    expected, log = trl_dpo(token_logps, reference_sums, [name], beta=0.4, label_smoothing=label_smoothing)
    assert_same(output.losses_N.mean(), expected, token_logps)
    assert output.chosen_rewards_P.mean().item() == pytest.approx(log["rewards/chosen"][0], rel=1e-6)


# What `bco_loss` of TRL 1.13's BCOTrainer, the last to have one, gave for three batches one after another, as it keeps
# the mean of rewards: good answers, bad ones, their losses, delta, and the gradient of the mean loss.
OF_TRL_BCO = [
    (
        (3, 1),
        [0.2370570783, 0.7081451904, 1.0422697665, 0.4093912776],
        -0.5185853839,
        [-0.0211053745, -0.050744305, -0.0647346668, 0.0335945648],
    ),
    ((0, 2), [1.3546405434, 0.689871989], -0.2561805546, [0.1483919936, 0.0996719439]),
    (
        (2, 4),
        [0.1998434592, 0.6429004965, 0.40281901, 0.2795940817, 0.2445651003, 0.2608507672],
        -0.7086356878,
        [-0.0120760715, -0.0316156513, 0.0221044621, 0.0162606273, 0.014463666, 0.0153069414],
    ),
]


def test_bco_equals_trl_on_batches_in_turn():
    state = None
    for (good, bad), losses_N, delta, gradient in OF_TRL_BCO:
        count = good + bad
        sums = -torch.linspace(9.0, 4.0, count, dtype=torch.float64) * torch.arange(1.0, count + 1).double().sqrt()
        base = -torch.linspace(11.0, 5.0, count, dtype=torch.float64)
        sums.requires_grad_()
        policy, reference = (LogProbs(s[:good], s[good:], LENGTHS[:good], LENGTHS[:bad]) for s in (sums, base))
        output = losses.bco(policy, reference, state, beta=0.4)
        state = output.state
        (found,) = torch.autograd.grad(output.losses_N.mean(), sums)
        assert state[0].item() == pytest.approx(delta, rel=1e-6)
        assert output.losses_N.tolist() == pytest.approx(losses_N, rel=1e-6)
        assert found.tolist() == pytest.approx(gradient, rel=1e-6)
    assert state[1].item() == 4 + 2 + 6


def test_bco_equals_trl_where_its_delta_is_zero(token_logps, reference_sums):
    """TRL's DPO trainer has no delta, so the reference is moved until the mean reward is 0."""
    token_logps.requires_grad_()
    reference_sums = reference_sums + (token_logps.sum(1) - reference_sums).mean().detach()
    output = losses.bco_pair(as_logprobs(token_logps.sum(1)), as_logprobs(reference_sums), None, beta=0.4)
    expected, _ = trl_dpo(token_logps, reference_sums, ["bco_pair"], beta=0.4)
    assert output.state.tolist() == pytest.approx([0.0, 2 * PAIRS], abs=1e-12)
    assert_same(output.losses_N.mean(), expected, token_logps)
    single = losses.bco(as_logprobs(token_logps.sum(1)), as_logprobs(reference_sums), None, beta=0.4)
    assert_same(2 * single.losses_N.mean(), expected, token_logps)


def test_bco_keeps_the_mean_of_all_steps(token_logps, reference_sums):
    reference, state, rewards = as_logprobs(reference_sums), None, []
    for step in range(1, 4):
        sums = (token_logps.sum(1) * step).detach().requires_grad_()
        policy = as_logprobs(sums)
        output = losses.bco_pair(policy, reference, state, beta=0.3)
        rewards.append(0.3 * (sums - reference_sums).mean().item())
        delta, state = sum(rewards) / step, output.state
        c, r = policy.chosen_P - reference.chosen_P, policy.rejected_P - reference.rejected_P
        expected = torch.log1p(torch.exp(delta - 0.3 * c)) + torch.log1p(torch.exp(0.3 * r - delta))
        assert state.tolist() == pytest.approx([delta, step * 2 * PAIRS])
        assert_same(output.losses_N.mean(), expected.mean(), sums)


def ranking_by_hand(scores, order):
    """Negative log-likelihood of a ranking under Plackett-Luce, place by place."""
    left = list(order)
    total = 0.0
    while len(left) > 1:
        total = total - torch.log(scores[left[0]].exp() / sum(scores[i].exp() for i in left))
        left.pop(0)
    return total


@pytest.mark.parametrize("kind", ["listwise", "all_pairs"])
def test_plackett_luce_is_the_likelihood_of_the_rankings(kind):
    """Two prompts of four and two answers, pairs in no order, either neighbouring ranks or all of them."""
    torch.manual_seed(2)
    sums = torch.randn(6, dtype=torch.float64, requires_grad=True)
    base = torch.randn(6, dtype=torch.float64)
    rankings = ([3, 0, 2, 1], [5, 4])
    pairs = [
        (ranking[i], ranking[j])
        for ranking in rankings
        for i in range(len(ranking))
        for j in (range(i + 1, len(ranking)) if kind == "all_pairs" else range(i + 1, min(i + 2, len(ranking))))
    ]
    numbers = torch.tensor(pairs)[torch.randperm(len(pairs))]
    ones = torch.ones(len(pairs))
    policy, reference = (LogProbs(*values[numbers].T, ones, ones) for values in (sums, base))
    output = losses.plackett_luce(policy, reference, numbers + 100, beta=0.7)
    expected = sum(ranking_by_hand(0.7 * (sums - base), ranking) for ranking in rankings)
    assert len(output.losses_N) == 4  # three places and one
    assert_same(output.losses_N.sum(), expected, sums)


def test_plackett_luce_of_one_pair_a_prompt_is_dpo(token_logps, reference_sums):
    token_logps.requires_grad_()
    policy, reference = as_logprobs(token_logps.sum(1)), as_logprobs(reference_sums)
    found = losses.plackett_luce(policy, reference, torch.arange(2 * PAIRS).reshape(PAIRS, 2), beta=0.3)
    assert_same(found.losses_N.mean(), losses.sigmoid(policy, reference, beta=0.3).losses_P.mean(), token_logps)


@pytest.mark.parametrize("weighting", ["plain", "tulu"])
def test_weighted_sums_equal_trl(weighting, token_logps, reference_sums):
    """MPO: losses of a pair and of the whole step in one sum."""
    names = ["sigmoid", "apo_zero", "nca_pair"] if weighting == "plain" else ["sigmoid_norm", "aot", "hinge"]
    weights = [0.8, 0.2, 1.5]
    token_logps.requires_grad_()
    policy, reference = as_logprobs(token_logps.sum(1)), as_logprobs(reference_sums)
    calls = [Call(f"prefkit.train.losses:{name}", {"beta": 0.3}) for name in names]
    objective = Preference.of([Weighted(*term) for term in zip(weights, calls, strict=True)])
    expected, _ = trl_dpo(token_logps, reference_sums, names, loss_weights=weights, beta=0.3)
    output, _ = objective.judge(Given(policy, reference))
    assert_same(output.losses_P.mean(), expected, token_logps)


@pytest.mark.parametrize("ld_alpha", [None, 0.3])
def test_length_normalisation_of_dpo_is_sigmoid_norm(ld_alpha, token_logps, reference_sums):
    """The one loss of which TRL has a normalised form."""
    calls = {name: Call(f"prefkit.train.losses:{name}", {"beta": 2.0}) for name in ("sigmoid", "sigmoid_norm")}
    pairs = Layout(LENGTHS, torch.arange(2 * PAIRS), torch.arange(2 * PAIRS).reshape(2, PAIRS).T, torch.arange(PAIRS))
    values = []
    for name, call in calls.items():
        normalise = name == "sigmoid"
        objective = Preference.of([Weighted(1.0, call)], ld_alpha=ld_alpha, length_normalisation=normalise)
        public = np.stack([np.roll(np.arange(PAIRS), 2), np.arange(PAIRS) + PAIRS], axis=1)  # any will do
        objective = replace(objective, public_of=public.__getitem__)
        sums = token_logps.sum(1).requires_grad_()
        output, _ = objective.judge(objective.given(sums, reference_sums, pairs))
        values.append((output.losses_P, *torch.autograd.grad(output.losses_P.sum(), sums)))
    for found, expected in zip(*values, strict=True):
        assert torch.allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("ld_alpha", [0.0, 0.3])
@pytest.mark.parametrize("name", ["sigmoid", "ipo", "hinge", "nca_pair", "aot"])
def test_ld_alpha_equals_trl(name, ld_alpha, token_logps, reference_sums):
    """Sequences of a bin in any order: answers, and among others those cut at their pair's public length."""
    token_logps.requires_grad_()
    mask = torch.arange(WIDTH) < LENGTHS[:, None]
    own, base = token_logps * mask, -torch.rand_like(token_logps) * 2 * mask
    shared = torch.minimum(*LENGTHS.chunk(2)).repeat(2)
    inside = torch.arange(WIDTH) < shared[:, None]
    order = torch.randperm(4 * PAIRS)
    where = order.argsort()

    def of(rows):
        return torch.cat([rows.sum(1), (rows * inside).sum(1)])[order]

    pairs = Layout(
        torch.cat([LENGTHS, shared])[order], order + 7, where[: 2 * PAIRS].reshape(2, PAIRS).T, torch.arange(PAIRS)
    )
    objective = Preference.of([Weighted(1.0, Call(f"prefkit.train.losses:{name}", {"beta": 0.3}))], ld_alpha=ld_alpha)
    public = np.arange(2 * PAIRS, 4 * PAIRS).reshape(2, PAIRS).T + 7
    objective = replace(objective, public_of=public.__getitem__)
    output, _ = objective.judge(objective.given(of(own), of(base), pairs))
    ld_reference = (base * inside).sum(1) + ld_alpha * (base * ~inside).sum(1)
    expected, log = trl_dpo(own, ld_reference, [name], beta=0.3, ld_alpha=ld_alpha)
    assert_same(output.losses_P.mean(), expected, token_logps)
    assert output.chosen_rewards_P.mean().item() == pytest.approx(log["rewards/chosen"][0], rel=1e-6)


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "nca_pair", "apo_zero"])
def test_wpo_equals_trl(name, token_logps, reference_sums):
    token_logps.requires_grad_()
    squares = -torch.rand_like(token_logps) * 2
    mask = torch.arange(WIDTH) < LENGTHS[:, None]
    weights = (((token_logps.detach() - squares) * mask).sum(1) / LENGTHS).exp()
    policy, reference = as_logprobs(token_logps.sum(1)), as_logprobs(reference_sums)
    objective = Preference([Term.of(1.0, Call(f"prefkit.train.losses:{name}", {"beta": 0.3}))])
    output, _ = objective.judge(Given(policy, reference), (), weights[:PAIRS] * weights[PAIRS:])
    expected, _ = trl_dpo(token_logps, reference_sums, [name], beta=0.3, log_squares=squares)
    assert_same(output.losses_P.mean(), expected, token_logps)


def test_odpo_against_its_equation(token_logps, reference_sums):
    token_logps.requires_grad_()
    policy, reference = as_logprobs(token_logps.sum(1)), as_logprobs(reference_sums)
    margins = torch.tensor([0.5, 1.0, 2.0, 4.0, 9.0], dtype=torch.float64)
    found = losses.odpo(policy, reference, margins, beta=0.3, alpha=0.7).losses_P
    margin = 0.3 * (policy.chosen_P - reference.chosen_P - policy.rejected_P + reference.rejected_P)
    expected = torch.log(1 + torch.exp(0.7 * torch.log(margins) - margin))
    assert_same(found.sum(), expected.sum(), token_logps)
    plain = losses.sigmoid(policy, reference, beta=0.3).losses_P
    assert torch.allclose(losses.odpo(policy, reference, margins, beta=0.3, alpha=0.0).losses_P, plain)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cpo_equals_trl_where_chosen_answers_are_equally_long(label_smoothing, token_logps):
    cpo = pytest.importorskip("trl.experimental.cpo")
    token_logps.requires_grad_()
    lengths = LENGTHS.clone()
    lengths[:PAIRS] = 6
    masked = (token_logps - 0.5) * (torch.arange(WIDTH) < lengths[:, None])
    policy = as_logprobs(masked.sum(1), lengths)
    output = losses.cpo(policy, beta=0.3, label_smoothing=label_smoothing, alpha=0.8)
    forward = (policy.chosen_P, policy.rejected_P, masked[:0], masked[:0], -masked[:PAIRS].sum() / (6 * PAIRS))
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x),
        loss_type="sigmoid",
        beta=0.3,
        label_smoothing=label_smoothing,
        alpha=0.0,
        cpo_alpha=0.8,
        aux_loss_enabled=False,
        concatenated_forward=lambda *_: forward,
    )
    trainer.cpo_loss = lambda *given: cpo.CPOTrainer.cpo_loss(trainer, *given)
    expected, log = cpo.CPOTrainer.get_batch_loss_metrics(trainer, None, {})
    assert_same(output.losses_P.mean(), expected, token_logps)
    assert output.rejected_rewards_P.mean().item() == pytest.approx(log["rewards/rejected"], rel=1e-6)


def test_orpo_equals_trl(token_logps):
    """TRL's odds ratio; the supervised term is the paper's, over the answer alone."""
    orpo = pytest.importorskip("trl.experimental.orpo")
    token_logps.requires_grad_()
    policy = as_logprobs(token_logps.sum(1))
    chosen, rejected = policy.chosen_P / policy.chosen_length_P, policy.rejected_P / policy.rejected_length_P
    trainer = SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), beta=0.4)
    reduced, *log = orpo.ORPOTrainer.odds_ratio_loss(trainer, chosen.float(), rejected.float())
    output = losses.orpo(policy, beta=0.4)
    assert_same(output.losses_P.sum(), (-chosen - reduced).sum(), token_logps, 1e-5)  # TRL computes in float32
    assert torch.allclose(output.chosen_rewards_P, log[0].double(), rtol=1e-5)
    p, q = chosen.exp(), rejected.exp()
    expected = -chosen - 0.4 * torch.log(torch.sigmoid(torch.log(p / (1 - p) / (q / (1 - q)))))
    assert_same(output.losses_P.sum(), expected.sum(), token_logps)


@pytest.mark.parametrize(("chosen", "rejected"), [(0.0, -3.0), (-3.0, 0.0), (0.0, 0.0)])
def test_orpo_of_an_answer_that_the_model_is_sure_of(chosen, rejected):
    """A log-probability that rounds to 0 has infinite odds; loss and gradient are those of one just below."""

    def loss_and_gradient(*sides):
        sums = [torch.tensor([side]).requires_grad_() for side in sides]
        loss = losses.orpo(LogProbs(*sums, *[torch.tensor([2])] * 2)).losses_P.sum()
        return loss.detach(), torch.stack(torch.autograd.grad(loss, sums))

    loss, gradient = loss_and_gradient(chosen, rejected)
    near, _ = loss_and_gradient(min(chosen, -2e-6), min(rejected, -2e-6))
    assert gradient.isfinite().all()
    torch.testing.assert_close(loss, near, atol=0.5, rtol=0)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_simpo_equals_trl(label_smoothing, token_logps):
    cpo = pytest.importorskip("trl.experimental.cpo")
    token_logps.requires_grad_()
    policy = as_logprobs(token_logps.sum(1))
    output = losses.simpo(policy, beta=2.5, gamma=1.4, label_smoothing=label_smoothing)
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu"),
        loss_type="simpo",
        simpo_gamma=1.4,
        beta=2.5,
        label_smoothing=label_smoothing,
        alpha=0.0,
    )
    expected, chosen, rejected = cpo.CPOTrainer.cpo_loss(
        trainer, policy.chosen_P / policy.chosen_length_P, policy.rejected_P / policy.rejected_length_P
    )
    assert_same(output.losses_P.sum(), expected.sum(), token_logps)
    assert torch.allclose(output.chosen_rewards_P, chosen)
    assert torch.allclose(output.rejected_rewards_P, rejected)


def test_sft_term_equals_trl_where_chosen_answers_are_equally_long(token_logps, reference_sums):
    lengths = LENGTHS.clone()
    lengths[:PAIRS] = 6
    token_logps.requires_grad_()
    masked = (token_logps - 0.5) * (torch.arange(WIDTH) < lengths[:, None])
    policy, reference = as_logprobs(masked.sum(1), lengths), as_logprobs(reference_sums, lengths)
    output = weighted_sum({"sigmoid": 1.0, "chosen_nll": 0.7}, policy, reference)
    expected, _ = trl_dpo(
        masked, reference_sums, ["sigmoid", "sft"], lengths=lengths, loss_weights=[1.0, 0.7], beta=0.1
    )
    assert_same(output.losses_P.mean(), expected, token_logps)


def test_sft_term_weighs_every_pair_alike(token_logps, reference_sums):
    policy, reference = as_logprobs(token_logps.sum(1)), as_logprobs(reference_sums)
    plain = losses.hinge(policy, reference)
    added = weighted_sum({"hinge": 1.0, "chosen_nll": 2.0}, policy, reference)
    assert torch.allclose(added.losses_P - plain.losses_P, -2 * policy.chosen_P / policy.chosen_length_P)
    assert torch.equal(added.chosen_rewards_P, plain.chosen_rewards_P)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.4])
def test_a_policy_that_is_its_reference_has_loss_ln_2(label_smoothing, reference_sums):
    same = as_logprobs(reference_sums)
    for loss in (losses.sigmoid, losses.sigmoid_norm):
        output = loss(same, same, label_smoothing=label_smoothing)
        assert torch.allclose(output.losses_P, torch.full((PAIRS,), math.log(2), dtype=torch.float64))
        assert not output.chosen_rewards_P.any()
        assert not output.rejected_rewards_P.any()


def test_smoothing_stops_at_its_own_confidence():
    """The gradient of cDPO vanishes where sigmoid(beta d) = 1 - label_smoothing."""
    chosen = torch.tensor([math.log(0.9 / 0.1) / 0.5], requires_grad=True)
    zero, one = torch.zeros(1), torch.ones(1)
    output = losses.sigmoid(
        LogProbs(chosen, zero, one, one), LogProbs(zero, zero, one, one), beta=0.5, label_smoothing=0.1
    )
    output.losses_P.sum().backward()
    assert chosen.grad.abs().item() < 1e-7


@pytest.mark.parametrize("name", functions_of(losses))
def test_what_is_not_said_to_look_at_the_whole_step_does_not(name):
    """Bins see a part of the step each; whoever needs all pairs says so by what it returns."""
    term = Term.of(1.0, Call(f"prefkit.train.losses:{name}", {}))
    check_shape(Preference([term]), name)
    if term.whole_step:
        with pytest.raises(UsageError, match="one value a pair"):
            check_shape(Preference([replace(term, whole_step=False)]), name)


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)).filter(lambda pair: pair[0] != pair[1]), max_size=14))
def test_everything_beaten_is_the_transitive_closure(pairs):
    """Against repeated squaring of the matrix of comparisons, cycles and all."""
    beats = np.zeros((8, 8), dtype=bool)
    for better, worse in pairs:
        beats[better, worse] = True
    for _ in range(3):
        beats |= beats @ beats
    np.fill_diagonal(beats, False)
    expected = {better: np.flatnonzero(beats[better]).tolist() for better, _ in pairs}
    assert everything_beaten(pairs) == expected


@given(st.permutations(range(PAIRS)), st.sampled_from(["aot", "aot_unpaired", "bco", "bco_pair", "plackett_luce"]))
def test_losses_of_the_whole_step_do_not_care_for_the_order_of_pairs(order, name):
    torch.manual_seed(5)
    sums, base = -torch.rand(2, 2 * PAIRS, dtype=torch.float64) * 9
    answers = torch.tensor([[0, 1], [1, 2], [5, 6], [7, 0], [3, 4]])

    def value(rows):
        given = [as_logprobs(s.reshape(2, PAIRS)[:, rows].flatten()) for s in (sums, base)]
        extra = {"bco": [None], "bco_pair": [None], "plackett_luce": [answers[rows]]}.get(name, [])
        if name == "plackett_luce":  # an answer has one log-probability wherever it stands
            of_answer = [torch.linspace(-9, -2, 8, dtype=torch.float64), torch.linspace(-5, -3, 8, dtype=torch.float64)]
            given = [LogProbs(*s[answers[rows]].T, *LENGTHS.chunk(2)) for s in of_answer]
        return getattr(losses, name)(*given, *extra, beta=0.3).losses_N.mean()

    assert torch.allclose(value(list(order)), value(list(range(PAIRS))), rtol=1e-12)


def test_extreme_margins_stay_finite():
    chosen = torch.tensor([1e4, -1e4], requires_grad=True)
    zero, one = torch.zeros(2), torch.ones(2)
    reference = LogProbs(zero, zero, one, one)
    extra = {"bco": [None], "bco_pair": [None], "kto": [torch.tensor([1e4, 3.0])]}
    extra["plackett_luce"] = [torch.arange(4).reshape(2, 2)]
    for name in [*OF_TRL, "aot", "aot_unpaired", "apo_zero_unpaired", *extra]:
        output = getattr(losses, name)(LogProbs(chosen, zero, one, one), reference, *extra.get(name, []), beta=1.0)
        (grad,) = torch.autograd.grad(output[0].sum(), chosen)
        assert output[0].isfinite().all()
        assert grad.isfinite().all()
