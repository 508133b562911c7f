"""Labelled answers: TRL's loss and gradients on the same batch, and the invariants that pairs have."""

import copy
import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from prefkit.errors import DataError, TrainError, UsageError
from prefkit.resolve import Call, functions_of
from prefkit.train import chat, labelled, metrics, policy, run, tokenizer, two_pass
from prefkit.train import losses as of_losses
from prefkit.train.chat import Tokenising
from prefkit.train.examples import Examples
from prefkit.train.labelled import balance, takes_labels
from prefkit.train.metrics import Silent
from prefkit.train.objective import Preference
from prefkit.train.stream import make_step
from prefkit.train.terms import Weighted
from tests.train.datasets_for_tests import TINY, answer, pipeline, toy_labels, write_data_set
from tests.train.ranks_for_tests import on_ranks
from tests.train.test_parallel import assert_same, train
from tests.train.test_run import KillAt, Killed, lines, losses

KTO = {"name": "kto", "objective": "kto", "learning_rate": 3e-3, "pairs_per_step": 7, "max_tokens": 120}
HOW = Tokenising(None, "truncate_completion", None, mismatched=True, labels=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels") / "d"
    rows = toy_labels(30)
    write_data_set(folder, rows[:48], rows[48:], shards=2, kind="labels")
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A shard of prompts with one answer each, as TRL pairs them with others' answers, and what it needs to train."""
    folder = tmp_path_factory.mktemp("single") / "d"
    manifest = write_data_set(folder, toy_labels(7, answers=1), kind="labels")
    words = tokenizer.train_bpe(folder, manifest, vocab_size=400)
    model = policy.create(TINY, words, seed=0).double()
    reference = copy.deepcopy(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return folder, manifest, words, model, reference


def weighted(**options):
    weights = {"desirable_weight": 1.0, "undesirable_weight": 1.0, "beta": 0.4}
    return [Weighted(1.0, Call("prefkit.train.losses:kto", weights | options))]


def examples_of(folder, manifest, words, how=HOW, cache=None):
    cache = cache or folder.parent / "cache"
    return Examples.of(chat.tokenise(folder, manifest, "train", words, how, cache=cache, progress=Silent()))


def test_loss_figures_and_gradients_are_those_of_trl_on_the_same_batch(single, tmp_path):
    """TRL gets the shard as it is, and pads; here it is trees in several bins. Nothing in between is ours but the
    model."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    folder, manifest, words, model, reference = single
    options = {"desirable_weight": 1.3, "undesirable_weight": 0.7, "beta": 0.4}
    table = pq.read_table(folder / manifest.shards[0].path)
    theirs = copy.deepcopy(model)
    config = trl.KTOConfig(
        str(tmp_path), per_device_train_batch_size=7, report_to=[], use_cpu=True, bf16=False, max_length=None, **options
    )
    trainer = trl.KTOTrainer(
        theirs, reference, config, train_dataset=datasets.Dataset(table), processing_class=copy.deepcopy(words)
    )
    batch = next(iter(trainer.get_train_dataloader()))
    theirs.train()
    expected = trainer.compute_loss(theirs, batch)
    expected.backward()
    log = {name: values[0] for name, values in trainer._metrics["train"].items() if values}

    examples = examples_of(folder, manifest, words)
    objective = Preference.of(weighted(**options)).on(examples, "train")
    ours, base = (policy.ready(copy.deepcopy(one).float(), dtype="float32") for one in (model, reference))
    ours.model.load_state_dict(model.double().state_dict())
    ours.model.double(), base.model.double()
    step = make_step(examples, np.arange(examples.prompts), 100)
    assert len(step.bins) > 1

    @torch.no_grad()
    def reference_of(bin):
        return base.sequence_logps(bin)

    result = two_pass.backward(objective, ours, reference_of, step, ())
    figures = dict(zip(objective.names, result.figures_NP.mean(1).tolist(), strict=True))
    assert log["kl"] > 0  # so the estimate has an effect
    assert result.total.item() == pytest.approx(expected.item(), rel=1e-6)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"):
        assert figures[name] == pytest.approx(log[name], rel=1e-5), name
    for (name, mine), their in zip(ours.model.named_parameters(), theirs.parameters(), strict=True):
        assert (mine.grad - their.grad).norm() < 1e-6 * their.grad.norm(), name


def test_answers_of_a_prompt_share_its_tokens_and_each_is_an_example(data, tmp_path):
    manifest = run.shards.manifest_of(data)
    words = tokenizer.train_bpe(data, manifest, vocab_size=400)
    plain = Tokenising(None, "truncate_completion", None, labels=True)
    examples = examples_of(data, manifest, words, plain, tmp_path)
    assert examples.counts().tolist() == [2] * 24
    rows = [row for shard in manifest.of_split("train") for row in pq.read_table(data / shard.path).to_pylist()]
    assert examples.labels().tolist() == [row["label"] for row in rows]
    assert examples.tree_tokens().sum() < 0.8 * sum(len(s.tokens) for v in examples.shards for s in all_of(v))
    step = make_step(examples, np.arange(24), 8192)
    assert step.examples == 48
    assert step.separate_tokens == sum(len(s.tokens) for v in examples.shards for s in all_of(v))


def all_of(view):
    return [sequence for prompt in range(view.prompts) for sequence in view.sequences_of(prompt)[0]]


def test_kto_learns_from_labels_alone(data, tmp_path):
    said = []

    class Noting(Silent):
        def note(self, text):
            said.append(text)

    phase = {**KTO, "epochs": 3, "eval_every": 10}
    result = run.train(pipeline(data, phase), data=data, out=tmp_path / "r", progress=Noting())
    report = result["phases"]["kto"]
    assert report["eval_before"]["eval_loss"] == pytest.approx(0.5)
    assert report["eval_after"]["eval_loss"] < 0.45
    assert report["eval_after"]["eval_rewards/margins"] > 0.3
    line = metrics.read(tmp_path / "r", "kto")[-2]
    assert line["rewards/margins"] == pytest.approx(line["rewards/chosen"] - line["rewards/rejected"])
    assert not any("answers, which weigh" in text for text in said)  # 24 good ones and 24 bad ones


def test_bco_learns_from_labels_alone_with_the_mean_of_all_rewards(data, tmp_path):
    phase = {**KTO, "objective": "bco", "epochs": 3}
    result = run.train(pipeline(data, phase), data=data, out=tmp_path / "r")
    report = result["phases"]["kto"]
    assert losses(tmp_path / "r", "kto")[0] == pytest.approx(math.log(2), rel=1e-6)
    assert report["eval_after"]["eval_loss"] < 0.6 < report["eval_before"]["eval_loss"]
    assert report["eval_after"]["eval_rewards/margins"] > 0.3
    state = json.loads(max((tmp_path / "r/kto/checkpoints").glob("step-*")).joinpath("state.json").read_text())
    ((mean, answers),) = state["memory"]
    steps = [line for line in metrics.read(tmp_path / "r", "kto") if "loss" in line]
    assert answers == sum(line["pairs"] for line in steps) == 3 * 48
    assert mean != 0


def test_a_step_takes_figures_over_the_answers_of_each_label():
    good = torch.tensor([True, False, False, True, True])
    output = of_losses.LossOutput(torch.full((5,), 0.3), torch.tensor([1.0, 2.0, 6.0]), torch.tensor([-1.0, 4.0]))
    sides = of_losses.LogProbs(*(torch.tensor(v) for v in ([-1.0, -2.0, -3.0], [-7.0, -9.0], [1.0] * 3, [1.0] * 2)))
    base = of_losses.LogProbs(*(torch.tensor(v) for v in ([-2.0, -2.0, -2.0], [-8.0, -8.0], [1.0] * 3, [1.0] * 2)))
    means = {name: column.mean().item() for name, column in labelled.per_answer(output, sides, base, good).items()}
    expected = {
        "loss": 0.3, "rewards/chosen": 3.0, "rewards/rejected": 1.5, "rewards/margins": 1.5, "logps/chosen": -2.0,
        "logps/rejected": -8.0, "logps/chosen_change": 0.0, "kl": 0.0,
    }  # fmt: skip
    assert means == pytest.approx(expected)
    only_bad = labelled.per_answer(
        output._replace(losses_P=torch.ones(2), chosen_rewards_P=torch.zeros(0)),
        of_losses.LogProbs(torch.zeros(0), sides.rejected_P, torch.zeros(0), sides.rejected_length_P),
        None,
        torch.tensor([False, False]),
    )
    assert only_bad["rewards/chosen"].tolist() == [0, 0]
    assert only_bad["rewards/rejected"].tolist() == [-1, 4]


@pytest.mark.parametrize("objective", ["kto", "bco"])
def test_two_ranks_give_the_curve_and_weights_of_one(data, tmp_path, objective):
    phase = {**KTO, "objective": objective, "max_steps": 4, "eval_every": 2}
    train(data, tmp_path / "one", [phase], TINY)
    assert on_ranks(2, train, data, tmp_path / "two", [phase], TINY, said=tmp_path / "said") == ""
    assert_same(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize(("objective", "step"), [("kto", 3), ("bco", 6)])
def test_killed_and_resumed_is_bitwise_the_same(data, tmp_path, objective, step):
    more = {"objective": objective, "checkpoint_every": 2, "eval_every": 3, "stream": True, "reference": "live"}
    phase = {**KTO, **more}
    run.train(pipeline(data, phase), data=data, out=tmp_path / "whole")
    with pytest.raises(Killed):
        run.train(pipeline(data, phase), data=data, out=tmp_path / "killed", progress=KillAt(step, "kto"))
    run.train(pipeline(data, phase), data=data, out=tmp_path / "killed", resume=True)
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    assert len(losses(tmp_path / "whole", "kto")) == 6


def test_a_stream_and_any_max_tokens_give_the_same_curve(data, tmp_path):
    live = {**KTO, "reference": "live", "max_steps": 5}
    for name, phase in {"r": live, "stream": {**live, "stream": True}, "wide": {**live, "max_tokens": 4000}}.items():
        run.train(pipeline(data, phase), data=data, out=tmp_path / name, cache=tmp_path / "c" / name)
    assert losses(tmp_path / "stream", "kto") == losses(tmp_path / "r", "kto")
    np.testing.assert_allclose(losses(tmp_path / "wide", "kto"), losses(tmp_path / "r", "kto"), rtol=1e-5)


def test_filters_and_caps_leave_out_answers(data, tmp_path):
    phase = {**KTO, "sources": ["odd"], "source_caps": 10}
    result = run.train(pipeline(data, phase), data=data, out=tmp_path / "r")
    (account,) = result["phases"]["kto"]["epochs"]
    assert (account["examples"], account["left_out_by_sources"], account["taken"]) == (48, 24, 10)


def test_answers_that_are_equal_once_cut(tmp_path):
    """Of one label they are one example; of both, none."""
    long = "word " * 300
    rows = [
        answer("first prompt", long + "a", True),
        answer("first prompt", long + "b", False),
        answer("first prompt", "short", True),
        answer("second prompt", long + "a", False),
        answer("second prompt", long + "b", False),
    ]
    manifest = write_data_set(tmp_path / "d", rows, kind="labels")
    words = tokenizer.train_bpe(tmp_path / "d", manifest, vocab_size=300)
    how = Tokenising(40, "truncate_completion", None, mismatched=True, labels=True)
    store = chat.tokenise(tmp_path / "d", manifest, "train", words, how, cache=tmp_path / "c", progress=Silent())
    assert store.counts["same_after_cut"] == 2
    assert store.counts["repeated"] == 1
    examples = Examples.of(store)
    assert examples.labels().tolist() == [True, False]
    assert examples.sequences == 4  # each prompt with its own answer and the other's


def test_a_row_without_a_label_is_named(tmp_path):
    rows = toy_labels(3)
    rows[2]["label"] = None
    write_data_set(tmp_path / "d", rows, kind="labels")
    with pytest.raises(DataError, match="row 2: it has no label"):
        run.train(pipeline(tmp_path, KTO), data=tmp_path / "d", out=tmp_path / "r")


def test_fine_tuning_learns_the_good_answers(data, tmp_path):
    sft = {"objective": "sft", "column": "completion", "learning_rate": 1e-3, "pairs_per_step": 8}
    result = run.train(pipeline(data, sft, {**KTO, "max_steps": 2}), data=data, out=tmp_path / "r")
    counts = result["phases"]["sft"]["tokens"]
    assert (counts["rows"], counts["examples"], counts["undesirable"], counts["no_answer"]) == (48, 24, 24, 0)
    assert losses(tmp_path / "r", "kto")[0] == pytest.approx(0.5)
    streamed = {**sft, "stream": True, "pairs_per_step": 1}  # no step is of bad answers alone
    result = run.train(pipeline(data, streamed), data=data, out=tmp_path / "stream")
    (account,) = result["phases"]["sft"]["epochs"]
    assert (account["left_out_by_label"], account["taken"]) == (24, 24)
    assert len(losses(tmp_path / "stream", "sft")) == 16  # prompts with a good answer: 8 have two, 8 have one


def test_which_losses_take_labels():
    named = [name for name in functions_of(of_losses) if name != "chosen_nll"]
    taking = {name for name in named if takes_labels(Call(f"prefkit.train.losses:{name}", {}))}
    assert taking == {"kto", "bco", "apo_zero_unpaired"}


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        ({"objective": "sigmoid"}, "sigmoid, which compares the answers of a pair"),
        ({"objective": "aot_unpaired"}, "aot_unpaired, which compares"),
        ({"objective": "bco_pair"}, "bco_pair, which .* Take kto, bco"),
        ({"objective": "kto", "min_margin": 1.0}, "min_margin has no effect"),
        ({"objective": "kto", "curriculum": "easy_first"}, "curriculum has no effect"),
        ({"objective": "kto", "sft_weight": 0.1}, "sft_weight has no effect"),
        ({"objective": "kto", "alarms": {"stop": ["length"]}}, "nothing to look at"),
    ],
)
def test_what_needs_pairs_is_refused(data, tmp_path, phase, words):
    with pytest.raises(UsageError, match=words):
        run.train(pipeline(data, phase), data=data, out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_the_pairs_that_a_nan_named_are_answers_here(data, tmp_path, monkeypatch):
    whole = Preference.of_bin

    def broken(self, logps_Q, *args, **more):
        return whole(self, logps_Q * float("nan"), *args, **more)

    monkeypatch.setattr(Preference, "of_bin", broken)
    with pytest.raises(TrainError, match="Pairs: answer What is"):
        run.train(pipeline(data, KTO), data=data, out=tmp_path / "r")


def test_weights_out_of_balance_are_said_with_those_that_balance():
    assert balance(24, 24, weighted()) == ""
    assert balance(0, 24, weighted()) == ""
    assert balance(300, 100, weighted(undesirable_weight=2.5)) == ""
    said = balance(300, 100, weighted())
    assert "3.00 to 1" in said
    assert "desirable_weight 0.333 to 0.444, or undesirable_weight 2.25 to 3" in said
    for desirable, undesirable in ((0.334, 1), (0.444, 1), (1, 2.26), (1, 3)):
        assert balance(300, 100, weighted(desirable_weight=desirable, undesirable_weight=undesirable)) == ""
