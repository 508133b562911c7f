"""Filters, weights, caps and curricula: what each epoch takes, counted, and the same however the run went."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefkit.errors import TrainError, UsageError
from prefkit.train import chat, metrics, run, sampling, tokenizer
from prefkit.train.chat import Tokenising
from prefkit.train.examples import Examples
from prefkit.train.metrics import Silent
from prefkit.train.options import Phase, check
from prefkit.train.sampling import Cap, Sampling
from prefkit.train.stream import Plan
from tests.train.datasets_for_tests import pair, pipeline, write_data_set
from tests.train.test_run import KillAt, Killed, lines

SOURCES = ("wiki", "forum", "code")


def scored_pairs(prompts: int = 24, answers: int = 3) -> list[dict]:
    """All pairs of the answers to each prompt, scored 10, 9, 7, …: three answers have margins 1, 2, 3."""
    scores = [10 - n * (n + 1) / 2 for n in range(answers)]
    return [
        pair(
            f"Question {n}?",
            f"Answer {n} {'good ' * a}",
            f"Answer {n} {'bad ' * b}",
            source=SOURCES[n % 3],
            lang="de" if n % 4 == 0 else "en",
            chosen_score=scores[a],
            rejected_score=scores[b],
        )
        for n in range(prompts)
        for a in range(answers)
        for b in range(a + 1, answers)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampling") / "d"
    rows = scored_pairs()
    write_data_set(folder, rows[:60], rows[60:], shards=3)
    return folder


@pytest.fixture(scope="module")
def examples(data):
    manifest = run.shards.manifest_of(data)
    words = tokenizer.train_bpe(data, manifest, vocab_size=400)
    how = Tokenising(None, "truncate_completion", None)
    return Examples.of(chat.tokenise(data, manifest, "train", words, how, cache=data / "c", progress=Silent()))


def phase(**options) -> Phase:
    return Phase(objective="sigmoid", **options)


def planned(examples: Examples, epochs: int = 2, seed: int = 0, **options) -> tuple[Examples, Plan]:
    kept, drawn = sampling.select(examples, phase(**options))
    shards = tuple(shard.prompts for shard in kept.shards)
    return kept, Plan(shards, kept.counts(), 4, epochs, seed, 2, drawn)


def order(plan: Plan, epoch: int) -> np.ndarray:
    first = sum(len(bounds) - 1 for bounds in plan.bounds[:epoch])
    return np.concatenate([plan.prompts(first + n) for n in range(len(plan.bounds[epoch]) - 1)])


def prompt_values(examples: Examples, name: str) -> np.ndarray:
    return examples.values(name)[::3]  # three pairs a prompt


@pytest.mark.parametrize(("weight", "epochs"), [(0.5, 2), (2.5, 2), (1.0, 1), (3.0, 1), (0.0, 2), (0.25, 4)])
def test_weights_hold_exactly_over_the_epochs(examples, weight, epochs):
    _, plan = planned(examples, epochs=epochs, source_weights={"wiki": weight})
    taken = np.bincount(np.concatenate([order(plan, e) for e in range(epochs)]), minlength=20)
    heavy = prompt_values(examples, "source") == "wiki"
    assert set(taken[heavy]) == {weight * epochs}
    assert set(taken[~heavy]) == {epochs}


def test_fractions_take_another_part_each_epoch_and_copies_are_spread(examples):
    _, plan = planned(examples, source_weights=dict.fromkeys(SOURCES, 0.5))
    assert 0 < len(order(plan, 0)) < 20
    assert not set(order(plan, 0)) & set(order(plan, 1))
    _, plan = planned(examples, source_weights={"wiki": 4}, lang_weights={"de": 2})
    both = (prompt_values(examples, "source") == "wiki") & (prompt_values(examples, "lang") == "de")
    first = order(plan, 0)
    assert set(np.bincount(first, minlength=20)[both]) == {8}  # weights multiply
    assert (np.diff(first) == 0).sum() < len(first) / 4


@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=30),
    weight=st.floats(0, 3),
    cap=st.integers(1, 20),
    seed=st.integers(0, 5),
)
def test_every_example_is_accounted_for(counts, weight, cap, seed):
    counts = np.array(counts)
    groups = np.arange(len(counts)) % 2
    weights = np.where(groups == 0, weight, 1.0)
    drawn = Sampling(weights, (Cap(groups, np.array([cap, 7])),), filtered={"left_out_by_sources": 3})
    plan = Plan((len(counts),), counts, 4, 2, seed, 1, drawn)
    for epoch in range(2):
        account = plan.account(epoch)
        taken = order(plan, epoch) if len(plan.bounds[epoch]) > 1 else np.zeros(0, int)
        assert account["taken"] == counts[taken].sum()
        left_out = sum(count for name, count in account.items() if name.startswith("left_out"))
        assert account["examples"] - left_out + account["repeated_by_weights"] == account["taken"]
        assert counts[taken[groups[taken] == 0]].sum() <= cap
        assert counts[taken[groups[taken] == 1]].sum() <= 7
        assert (counts[taken] > 0).all()


def test_caps_hold_in_examples_and_take_others_each_epoch(examples):
    kept, plan = planned(examples, source_caps=7)
    for epoch in range(2):
        taken = order(plan, epoch)
        sources = prompt_values(examples, "source")[taken]
        assert {name: int((sources == name).sum()) * 3 for name in SOURCES} == dict.fromkeys(SOURCES, 6)
    assert set(order(plan, 0)) != set(order(plan, 1))
    _, plan = planned(examples, source_caps={"code": 3}, lang_caps={"de": 6})
    taken = order(plan, 0)
    assert (prompt_values(examples, "source")[taken] == "code").sum() == 1
    assert (prompt_values(examples, "lang")[taken] == "de").sum() == 2
    assert kept.counts().sum() == 60


@pytest.mark.parametrize("curriculum", ["easy_first", "hard_first"])
def test_curriculum_goes_by_the_quantile_of_the_margin_within_a_source(tmp_path, curriculum):
    scales = {"wiki": 1.0, "forum": 100.0}
    rows = [
        pair(f"{source} {n}", "good", "bad", source=source, chosen_score=scale * (n + 1), rejected_score=0.0)
        for source, scale in scales.items()
        for n in range(10)
    ]
    manifest = write_data_set(tmp_path / "d", rows, shards=2)
    words = tokenizer.train_bpe(tmp_path / "d", manifest, vocab_size=300)
    how = Tokenising(None, "truncate_completion", None)
    store = chat.tokenise(tmp_path / "d", manifest, "train", words, how, cache=tmp_path, progress=Silent())
    examples = Examples.of(store)
    _, plan = planned(examples, curriculum=curriculum)
    ranks = np.where(examples.margins() > 10, examples.margins() / 100, examples.margins())[order(plan, 1)]
    expected = np.repeat(np.arange(1.0, 11.0), 2)
    np.testing.assert_allclose(ranks, expected if curriculum == "hard_first" else expected[::-1])
    assert [list(order(plan, e)) for e in (0, 0)] == [list(order(plan, 0))] * 2
    assert list(order(plan, 0)) != list(order(plan, 1))  # equal quantiles are shuffled


def test_curriculum_goes_by_the_prompts_that_filters_leave(tmp_path):
    """Of one source half of the prompts fall by their language; the others come as early as those of the other one."""
    rows = [
        pair(f"{source} {n}", "good", "bad", source=source, lang=lang, chosen_score=n + 1.0, rejected_score=0.0)
        for source, lang in (("whole", "en"), ("half", "en"), ("half", "de"))
        for n in range(10)
    ]
    for number, row in enumerate(rows[20:]):
        row["prompt_id"] = row["prompt"][0]["content"] = f"other {number}"
    manifest = write_data_set(tmp_path / "d", rows)
    words = tokenizer.train_bpe(tmp_path / "d", manifest, vocab_size=300)
    how = Tokenising(None, "truncate_completion", None)
    store = chat.tokenise(tmp_path / "d", manifest, "train", words, how, cache=tmp_path, progress=Silent())
    examples = Examples.of(store)
    _, plan = planned(examples, curriculum="hard_first", langs=["en"])
    np.testing.assert_allclose(examples.margins()[order(plan, 0)], np.repeat(np.arange(1.0, 11.0), 2))


def test_filters_keep_numbers_and_count_what_falls(examples):
    kept, plan = planned(examples, sources=["wiki", "code"], langs=["en"], min_margin=2.0)
    account = plan.account(0)
    source, lang, margin = examples.values("source"), examples.values("lang"), examples.margins()
    good = (source != "forum") & (lang == "en") & (margin >= 2)
    assert account["left_out_by_sources"] == (source == "forum").sum()
    assert account["left_out_by_langs"] == ((source != "forum") & (lang != "en")).sum()
    assert account["examples"] == 60
    assert account["taken"] == good.sum() == kept.counts().sum()
    rows = np.concatenate([tree.pair_rows_P for p in order(plan, 0) for tree in kept.trees(p, 10_000)])
    assert sorted(rows) == np.flatnonzero(good).tolist()
    for prompt in order(plan, 0):
        (tree,) = kept.trees(prompt, 10_000)
        np.testing.assert_array_equal(tree.sequence_rows_Q[tree.pairs_P2], examples.pairs()[tree.pair_rows_P])
    assert "left out by sources" in sampling.told(account)
    assert sampling.told(planned(examples)[1].account(0)) == ""


def test_what_no_filter_can_judge(tmp_path):
    rows = [pair("a", "x", "y"), pair("b", "x", "y", chosen_score=2.0, rejected_score=1.0)]
    manifest = write_data_set(tmp_path / "d", rows)
    words = tokenizer.train_bpe(tmp_path / "d", manifest, vocab_size=300)
    how = Tokenising(None, "truncate_completion", None)
    store = chat.tokenise(tmp_path / "d", manifest, "train", words, how, cache=tmp_path, progress=Silent())
    with pytest.raises(TrainError, match=r"goes by margin, but 1 of 2 prompts"):
        planned(Examples.of(store), curriculum="easy_first")
    _, plan = planned(Examples.of(store), curriculum="easy_first", min_margin=0.0)
    assert plan.account(0) | {"left_out_by_min_margin": 1, "taken": 1} == plan.account(0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"source_weights": {"wik": 2.0}}, 'source_weights: .* nothing of "wik". Did you mean "wiki"'),
        ({"lang_caps": {"fr": 2}}, 'lang_caps: .* nothing of "fr"'),
        ({"sources": ["forums"]}, 'sources: .* Did you mean "forum"'),
    ],
)
def test_names_that_are_not_there_are_refused(examples, options, said):
    with pytest.raises(UsageError, match=said):
        planned(examples, **options)


@pytest.mark.parametrize("option", [{"min_margin": 1.0}, {"curriculum": "easy_first"}])
def test_margins_have_no_meaning_for_answers_alone(tmp_path, option):
    with pytest.raises(UsageError, match="has no effect on objective"):
        check(pipeline(tmp_path, {"objective": "sft", **option}))


@pytest.mark.parametrize("option", [{"source_weights": {"wiki": -1}}, {"source_caps": 0}, {"sources": []}])
def test_values_that_cannot_be(tmp_path, option):
    with pytest.raises(UsageError, match=next(iter(option))):
        check(pipeline(tmp_path, {"objective": "sft", **option}))


SAMPLED = {
    "name": "dpo",
    "objective": "sigmoid",
    "learning_rate": 1e-3,
    "pairs_per_step": 6,
    "epochs": 2,
    "min_margin": 2.0,
    "source_weights": {"wiki": 1.5, "forum": 0.5},
    "source_caps": {"code": 8},
    "curriculum": "easy_first",
}


def test_sampled_run_is_counted_resumable_and_independent_of_bins(data, tmp_path):
    notes = []
    told = Silent()
    told.note = notes.append
    result = run.train(pipeline(data, SAMPLED), data=data, out=tmp_path / "whole", progress=told)
    with pytest.raises(Killed):
        run.train(pipeline(data, {**SAMPLED, "checkpoint_every": 2}), data=data, out=tmp_path / "k", progress=KillAt(5))
    run.train(pipeline(data, {**SAMPLED, "checkpoint_every": 2}), data=data, out=tmp_path / "k", resume=True)
    assert lines(tmp_path / "k") == lines(tmp_path / "whole")
    run.train(pipeline(data, {**SAMPLED, "max_tokens": 60}), data=data, out=tmp_path / "bins")
    curves = [[line["loss"] for line in lines(tmp_path / name) if "loss" in line] for name in ("whole", "bins")]
    np.testing.assert_allclose(curves[0], curves[1], atol=1e-6)
    epochs = result["phases"]["dpo"]["epochs"]
    steps = [line for line in metrics.read(tmp_path / "whole") if "loss" in line]
    assert sum(line["pairs"] for line in steps) == sum(account["taken"] for account in epochs)
    for number, account in enumerate(epochs, start=1):
        assert account["left_out_by_min_margin"] == 20
        assert account["left_out_by_weights"] > 0 < account["left_out_by_caps"]
        assert any(note.startswith(f"dpo, epoch {number}: {account['taken']} of 60 examples") for note in notes)
    assert json.loads((tmp_path / "whole" / "dpo" / "phase.json").read_text())["epochs"] == epochs


def test_weights_of_answers(data, tmp_path):
    """Supervised fine-tuning draws by the same rules: three answers a prompt are two distinct chosen ones."""
    table = pipeline(data, {"objective": "sft", "pairs_per_step": 8, "source_weights": {"wiki": 2}, "langs": ["en"]})
    result = run.train(table, data=data, out=tmp_path / "r")
    (account,) = result["phases"]["sft"]["epochs"]
    assert account["repeated_by_weights"] > 0 < account["left_out_by_langs"]
    assert sum(line["pairs"] for line in metrics.read(tmp_path / "r") if "loss" in line) == account["taken"]


def test_everything_left_out_is_an_error(data, tmp_path):
    table = pipeline(data, {**SAMPLED, "min_margin": 1000.0, "curriculum": None})
    with pytest.raises(TrainError, match="leave nothing to train on"):
        run.train(table, data=data, out=tmp_path / "r")
