"""Whole runs at toy size: what they leave behind, and that nothing but the speed depends on how they went."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler

from prefkit import manifest
from prefkit.adopt import adopt
from prefkit.errors import DataError, TrainError, UsageError
from prefkit.resolve import functions_of
from prefkit.train import estimate, loop, metrics, policy, run
from prefkit.train import losses as of_losses
from prefkit.train import reference as of_reference
from prefkit.train.loop import learning_rate
from prefkit.train.metrics import TIMING, Silent
from prefkit.train.options import Phase
from tests.train.datasets_for_tests import TINY, pair, pipeline, toy_labels, toy_pairs, write_data_set
from tests.train.test_campaign import ended, forked

DPO = {"name": "dpo", "objective": "sigmoid", "learning_rate": 1e-3, "pairs_per_step": 6}
SFT = {"objective": "sft", "learning_rate": 1e-3, "pairs_per_step": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "d"
    rows = toy_pairs(24, answers=3)
    write_data_set(folder, rows[:54], rows[54:], shards=2)
    return folder


def lines(out: Path, phase: str | None = None) -> list[dict]:
    """The metrics of a run without what is measured by the clock."""
    return [{k: v for k, v in line.items() if k not in TIMING} for line in metrics.read(out, phase)]


def losses(out: Path, phase: str = "dpo") -> list[float]:
    return [line["loss"] for line in lines(out, phase) if "loss" in line]


def trained(data: Path, out: Path, *phases: dict, **options) -> list[float]:
    """Losses of the last phase of a run."""
    run.train(pipeline(data, *phases), data=data, out=out, **options)
    return losses(out, phases[-1].get("name", phases[-1]["objective"]))


class Killed(Exception):
    """Stands for kill -9: nothing in the trainer catches it."""


class KillAt(Silent):
    """Dies right after the metrics of a step are written."""

    def __init__(self, step: int, phase: str = "dpo"):
        self.step, self.phase = step, phase

    def update(self, stage, done, total, detail=""):
        if stage == self.phase and done == self.step:
            raise Killed


def test_two_phases_end_in_a_better_model(data, tmp_path):
    out = tmp_path / "run"
    result = run.train(pipeline(data, SFT, {**DPO, "epochs": 2}), data=data, out=out)
    dpo = result["phases"]["dpo"]
    assert dpo["eval_before"]["eval_loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert dpo["eval_before"]["eval_rewards/accuracies"] == 0.5
    assert dpo["eval_after"]["eval_loss"] < 0.6
    assert dpo["eval_after"]["eval_rewards/accuracies"] > 0.9
    sft = losses(out, "sft")
    assert sft[-1] < sft[0]
    first = lines(out, "dpo")[1]
    of_trl = "rewards/chosen rewards/rejected rewards/accuracies rewards/margins logps/chosen logps/rejected"
    assert {*of_trl.split(), "grad_norm", "learning_rate", "num_tokens", "epoch", "packing_efficiency"} <= set(first)
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert first["sharing_factor"] > 3
    assert list((out / "dpo").glob("events.out.tfevents.*"))
    AutoModelForCausalLM.from_pretrained(out / "sft" / "model")
    AutoModelForCausalLM.from_pretrained(out / "model")
    assert AutoTokenizer.from_pretrained(out / "model").chat_template
    card = (out / "model" / "README.md").read_text()
    assert run.shards.manifest_of(data).data_hash in card
    assert '"beta": 0.1' in card
    assert "## Phase sft\n\n" in card and "## Phase dpo\n\n" in card
    assert "prefkit_tree" not in (out / "model" / "config.json").read_text()


@pytest.mark.parametrize("step", [1, 4, 8, 9])
def test_killed_at_any_step_and_resumed_is_bitwise_the_same(data, tmp_path, step):
    phases = [SFT, {**DPO, "checkpoint_every": 3, "eval_every": 4}]
    run.train(pipeline(data, *phases), data=data, out=tmp_path / "whole")
    with pytest.raises(Killed):
        run.train(pipeline(data, *phases), data=data, out=tmp_path / "killed", progress=KillAt(step))
    run.train(pipeline(data, *phases), data=data, out=tmp_path / "killed", resume=True)
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 9
    for file in ("model/model.safetensors", "model/config.json", "model/README.md"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


class Noting(Silent):
    """Progress that keeps the notes."""

    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


def test_a_run_says_what_its_evaluations_found_and_where_it_goes_on(data, tmp_path):
    options, notes = {**DPO, "checkpoint_every": 1, "eval_every": 2, "max_steps": 3}, Noting()
    with pytest.raises(Killed):
        run.train(pipeline(data, options), data=data, out=tmp_path, progress=KillAt(2))
    run.train(pipeline(data, options), data=data, out=tmp_path, resume=True, progress=notes)
    told = [line for line in metrics.read(tmp_path) if "eval_loss" in line]
    assert [line["step"] for line in told] == [0, 2, 3]
    in_short = "loss {eval_loss:.3f}, accuracy {eval_rewards/accuracies:.3f}, margin {eval_rewards/margins:.3f}"
    assert notes.said[-4] == "dpo goes on after step 1 of 3."
    assert notes.said[-3] == f"dpo, step 2, held out: {in_short.format_map(told[1])}"
    assert notes.said[-2].startswith(f"dpo, step 3 of 3: loss {losses(tmp_path)[-1]:.3f}, accuracy ")
    assert notes.said[-1] == f"dpo, step 3, held out: {in_short.format_map(told[2])}"


def test_evaluations_that_a_missing_test_split_prevents_are_said_once(tmp_path):
    write_data_set(tmp_path / "d", toy_pairs(6))
    phases, notes = [SFT, {**DPO, "eval_every": 1, "max_steps": 2}], Noting()
    run.train(pipeline(tmp_path, *phases), data=tmp_path / "d", out=tmp_path / "r", progress=notes)
    about = [text for text in notes.said if "eval_every" in text]
    assert about == ["dpo: eval_every = 1 has no effect, since there is no test split."]


def test_every_pair_is_trained_on_once_an_epoch_also_across_a_kill(data, tmp_path, monkeypatch):
    seen = []
    whole = loop.train_step

    def record(loop_, step, at):
        seen.append((at, sorted(int(row) for bin in step.bins for row in bin.pair_rows_P)))
        return whole(loop_, step, at)

    monkeypatch.setattr(loop, "train_step", record)
    table = pipeline(data, {**DPO, "epochs": 2, "checkpoint_every": 2})
    run.train(table, data=data, out=tmp_path / "a")
    for epoch in (seen[:9], seen[9:]):
        assert sorted(row for _, rows in epoch for row in rows) == list(range(54))
    expected, seen[:] = list(seen), []
    with pytest.raises(Killed):
        run.train(table, data=data, out=tmp_path / "b", progress=KillAt(12))
    run.train(table, data=data, out=tmp_path / "b", resume=True)
    assert seen == [*expected[:12], *expected[10:]]  # the checkpoint of step 12 was not written any more


def test_killed_several_times_in_both_phases(data, tmp_path):
    phases = [{**SFT, "checkpoint_every": 1}, {**DPO, "checkpoint_every": 2, "lora": {"r": 4, "dropout": 0.3}}]
    run.train(pipeline(data, *phases), data=data, out=tmp_path / "whole")
    for number, (phase, step) in enumerate([("sft", 2), ("sft", 3), ("dpo", 1), ("dpo", 3), ("dpo", 4), ("dpo", 8)]):
        with pytest.raises(Killed):
            killer = KillAt(step, phase)
            run.train(pipeline(data, *phases), data=data, out=tmp_path / "k", resume=number > 0, progress=killer)
    run.train(pipeline(data, *phases), data=data, out=tmp_path / "k", resume=True)
    assert lines(tmp_path / "k") == lines(tmp_path / "whole")


def test_resume_takes_the_reference_from_the_start_weights(data, tmp_path):
    """With the cache gone, resuming must not take the trained policy for the reference."""
    phases = [{**DPO, "checkpoint_every": 2}]
    whole = trained(data, tmp_path / "whole", *phases, cache=tmp_path / "cache")
    for reference in ("cached", "live"):
        out, cache = tmp_path / reference, tmp_path / f"cache {reference}"
        options = {"data": data, "out": out}
        phases = [{**DPO, "checkpoint_every": 2, "reference": reference}]
        with pytest.raises(Killed):
            run.train(pipeline(data, *phases), cache=cache, progress=KillAt(5), **options)
        run.train(pipeline(data, *phases), cache=tmp_path / f"empty {reference}", resume=True, **options)
        np.testing.assert_allclose(losses(out), whole, atol=1e-6)


def test_bins_do_not_change_the_result(data, tmp_path):
    """Loss and weights of a step are those of one bin with all of it, however small the bins."""
    phase = {**DPO, "pairs_per_step": 20, "epochs": 2}
    runs = {size: trained(data, tmp_path / str(size), {**phase, "max_tokens": size}) for size in (90, 200, 8192)}
    assert lines(tmp_path / "90", "dpo")[1]["num_tokens"] > 2 * 90  # so there were several bins
    weights = {size: load_file(tmp_path / str(size) / "model" / "model.safetensors") for size in runs}
    norms = {size: [line["grad_norm"] for line in lines(tmp_path / str(size)) if "loss" in line] for size in runs}
    for size in (90, 200):
        np.testing.assert_allclose(runs[size], runs[8192], atol=1e-6)
        np.testing.assert_allclose(norms[size], norms[8192], rtol=1e-4)  # AdamW hides a wrong scale, this does not
        for name, tensor in weights[size].items():
            torch.testing.assert_close(tensor, weights[8192][name], atol=2e-5, rtol=0)


def test_sft_bins_do_not_change_the_result(data, tmp_path):
    runs = [trained(data, tmp_path / str(size), {**SFT, "max_tokens": size}) for size in (70, 8192)]
    np.testing.assert_allclose(runs[0], runs[1], atol=1e-5)
    small, large = ([line["grad_norm"] for line in lines(tmp_path / size) if "loss" in line] for size in ("70", "8192"))
    np.testing.assert_allclose(small, large, rtol=1e-4)


def test_live_and_cached_reference_agree(data, tmp_path):
    cached = trained(data, tmp_path / "a", {**DPO, "lora": {"r": 4}, "learning_rate": 1e-2})
    live = trained(data, tmp_path / "b", {**DPO, "lora": {"r": 4}, "learning_rate": 1e-2, "reference": "live"})
    np.testing.assert_allclose(live, cached, atol=1e-6)
    assert cached[-1] < cached[0] - 1e-3
    full = trained(data, tmp_path / "c", DPO)
    np.testing.assert_allclose(trained(data, tmp_path / "d", {**DPO, "reference": "live"}), full, atol=1e-6)


@pytest.mark.parametrize("keeping", ["matmuls", "full", 0.02])
def test_activation_checkpointing_changes_nothing(data, tmp_path, keeping):
    plain = trained(data, tmp_path / "a", DPO, max_steps=3)
    assert trained(data, tmp_path / "b", {**DPO, "activation_checkpointing": keeping}, max_steps=3) == plain


def test_bfloat16_learns_and_keeps_float32_weights(data, tmp_path):
    found = trained(data, tmp_path / "r", {**DPO, "dtype": "bfloat16", "epochs": 2})
    assert found[0] == pytest.approx(np.log(2), abs=0.02)
    assert found[-1] < found[0]
    assert {t.dtype for t in load_file(tmp_path / "r" / "model" / "model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("objective", [*functions_of(of_losses), "prefkit.train.losses:sigmoid"])
def test_every_loss_trains(data, tmp_path, objective):
    phase = {
        "name": "p",
        "objective": objective,
        "learning_rate": 3e-3,
        "pairs_per_step": 6,
        "sft_weight": 0.1,
        "epochs": 2,
    }
    found = trained(data, tmp_path / "r", phase)
    assert np.mean(found[-3:]) < np.mean(found[:3])


FAMILIES = {
    "qwen3": {**TINY, "model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True},
    "mistral": {**TINY, "model_type": "mistral", "head_dim": 8, "sliding_window": 6},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families(data, tmp_path, family):
    table = pipeline(data, {**DPO, "checkpoint_every": 2}, config=FAMILIES[family], tokenizer={"vocab_size": 400})
    run.train(table, data=data, out=tmp_path / "a", max_steps=4)
    with pytest.raises(Killed):
        run.train(table, data=data, out=tmp_path / "b", max_steps=4, progress=KillAt(3))
    run.train(table, data=data, out=tmp_path / "b", max_steps=4, resume=True)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "model")


def test_padded_path_is_taken_aloud_and_agrees(data, tmp_path, monkeypatch):
    trees = trained(data, tmp_path / "a", DPO, max_steps=3)
    monkeypatch.setattr("prefkit.train.attention.supports", lambda model: "it is recurrent")
    notes = []
    progress = Silent()
    monkeypatch.setattr(progress, "note", notes.append)
    padded = trained(data, tmp_path / "b", DPO, max_steps=3, progress=progress)
    np.testing.assert_allclose(padded, trees, atol=1e-5)
    assert any("it is recurrent" in note for note in notes)


def test_nan_names_the_pairs_and_spares_the_weights(data, tmp_path, monkeypatch):
    calls = []

    def nan_at_third(self, bin):
        logps = whole(self, bin)
        calls.append(self.model.training)
        if sum(calls) == 3 and self.model.training:  # one bin a step; evaluation and the reference do not count
            logps = torch.where(torch.arange(len(logps)) == bin.pairs_P2[0, 0], torch.nan, logps)
        return logps

    whole = loop.Policy.sequence_logps
    monkeypatch.setattr(loop.Policy, "sequence_logps", nan_at_third)
    out = tmp_path / "r"
    with pytest.raises(TrainError, match=r"loss of step 3 is not finite.*Pairs: pair of What is") as stopped:
        trained(data, out, {**DPO, "checkpoint_every": 1})
    assert "lower learning_rate in another --out" in str(stopped.value), "it is float32 already"
    saved = json.loads((out / "dpo" / "not-finite.json").read_text())
    assert (saved["step"], saved["what"], len(saved["batch"])) == (3, "the loss", 6)
    assert set() < set(saved["pairs"]) < set(saved["batch"])
    monkeypatch.setattr(loop.Policy, "sequence_logps", whole)
    run.train(pipeline(data, {**DPO, "checkpoint_every": 1}), data=data, out=out, resume=True)
    assert losses(out) == trained(data, tmp_path / "whole", {**DPO, "checkpoint_every": 1})


def test_a_device_without_enough_memory_is_one_sentence(data, tmp_path, monkeypatch):
    def too_much(self, bin):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 0.5 GiB free.")

    monkeypatch.setattr(policy.Policy, "sequence_logps", too_much)
    with pytest.raises(TrainError) as caught:
        trained(data, tmp_path / "r", {**DPO, "max_tokens": 4096})
    assert "dpo: the device has not enough memory. In [[train]] dpo, set max_tokens below 4,096 or" in str(caught.value)
    assert str(caught.value).endswith(
        "(OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 0.5 GiB free.)"
    )


def test_too_little_main_memory_is_one_sentence(data, tmp_path, monkeypatch):
    """What torch itself says of an allocation that no machine can make; any other RuntimeError stays what it is."""
    monkeypatch.setattr(policy.Policy, "sequence_logps", lambda self, bin: torch.empty(1 << 50))
    with pytest.raises(
        TrainError, match=r"dpo: the machine has not enough memory\. In .*start it again\..*you tried to al"
    ):
        trained(data, tmp_path / "r", DPO)
    monkeypatch.setattr(policy.Policy, "sequence_logps", lambda self, bin: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        trained(data, tmp_path / "r", DPO)


def test_a_compiler_that_is_missing_is_one_sentence(data, tmp_path):
    command = [sys.executable, "-m", "prefkit", "train", str(tmp_path / "p.toml"), "--data", str(data)]
    (tmp_path / "p.toml").write_text(
        '[model]\nconfig = { model_type = "llama", hidden_size = 16, intermediate_size = 16, num_hidden_layers = 1, '
        "num_attention_heads = 2 }\ntokenizer = { vocab_size = 300 }\n"
        '[[train]]\nobjective = "sft"\ncompile = true\n'
    )
    missing = {"CXX": str(tmp_path / "no-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "c")}
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "r"), "--quiet"], env=os.environ | missing, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("prefkit: sft: torch cannot compile the layers. Leave compile out.")
    assert "Traceback" not in done.stderr


def test_weights_that_a_step_spoils_are_never_kept(data, tmp_path, monkeypatch):
    whole = loop.train_step

    def spoilt_at_third(now, step, at):
        figures = whole(now, step, at)
        if at == 2:
            next(iter(now.policy.trained().values())).data[0, 0] = torch.inf
        return figures

    monkeypatch.setattr(loop, "train_step", spoilt_at_third)
    phase = {**DPO, "checkpoint_every": 1}
    with pytest.raises(TrainError, match="step 3 made weights that are not finite"):
        trained(data, tmp_path / "r", phase)
    kept = sorted(path.name for path in (tmp_path / "r" / "dpo" / "checkpoints").iterdir())
    assert kept == ["step-00000001", "step-00000002"]


def test_wrong_reference_is_found_at_the_first_step(data, tmp_path, monkeypatch):
    whole = of_reference.cached
    monkeypatch.setattr(of_reference, "cached", lambda *a, **k: whole(*a, **k) * 1.01)
    with pytest.raises(TrainError, match=r"loss of the first step is .* but must be 0\.69315"):
        trained(data, tmp_path / "r", DPO)


def test_run_folder_is_protected(data, tmp_path):
    out = tmp_path / "r"
    trained(data, out, DPO, max_steps=2)
    with pytest.raises(UsageError, match="already holds a run"):
        trained(data, out, DPO, max_steps=2)
    with pytest.raises(UsageError, match=r"options\.train\.dpo\.beta was 0\.1 and is now 0\.2"):
        trained(data, out, {**DPO, "beta": 0.2}, max_steps=2, resume=True)
    with pytest.raises(UsageError, match="max_steps was 2 and is now 3"):
        trained(data, out, DPO, max_steps=3, resume=True)
    before = lines(out)
    assert trained(data, out, DPO, max_steps=2, resume=True)
    assert lines(out) == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="is not empty"):
        trained(data, other, DPO)


def test_run_that_could_not_begin_leaves_nothing(data, tmp_path):
    out = tmp_path / "r"
    for table in (pipeline(data, DPO, path="/no/such/model"), pipeline(data, {**DPO, "max_tokens": 30})):
        with pytest.raises(TrainError):
            run.train(table, data=data, out=out)
        assert not out.exists()


def test_changed_start_model_is_refused_on_resume(data, tmp_path):
    trained(data, tmp_path / "base", SFT, max_steps=1)
    base = tmp_path / "base" / "model"
    table = pipeline(data, {**DPO, "checkpoint_every": 1}, path=str(base))
    with pytest.raises(Killed):
        run.train(table, data=data, out=tmp_path / "r", progress=KillAt(3))
    model = AutoModelForCausalLM.from_pretrained(base)
    model.lm_head.weight.data += 0.1
    model.save_pretrained(base)
    with pytest.raises(TrainError, match="has changed since"):
        run.train(table, data=data, out=tmp_path / "r", resume=True)


def test_what_is_wrong_is_found_before_the_reference_which_takes_long(data, tmp_path, monkeypatch):
    trained(data, tmp_path / "base", SFT, max_steps=1)
    base = tmp_path / "base" / "model"
    table = pipeline(data, {**DPO, "checkpoint_every": 1}, path=str(base))
    with pytest.raises(Killed):
        run.train(table, data=data, out=tmp_path / "r", progress=KillAt(3))
    model = AutoModelForCausalLM.from_pretrained(base)
    model.lm_head.weight.data += 0.1
    model.save_pretrained(base)
    plain = [{**row, "chosen_score": None} for row in toy_pairs(6)]
    write_data_set(tmp_path / "plain", plain)

    def too_soon(*args, **more):
        raise AssertionError("the reference is computed")

    monkeypatch.setattr(of_reference, "cached", too_soon)
    with pytest.raises(TrainError, match="has changed since"):
        run.train(table, data=data, out=tmp_path / "r", resume=True)
    for phase, words in (
        ({**DPO, "objective": "odpo"}, "the objective needs the scores of both answers, but 6 of 6 pairs of the train"),
        ({**DPO, "samples": {"prompts": 2}}, "no test split to take prompts from"),
        ({**DPO, "lora": {"target_modules": ["nothing"]}}, 'no module is called "nothing"'),
    ):
        with pytest.raises(TrainError, match=words):
            run.train(pipeline(data, phase), data=tmp_path / "plain", out=tmp_path / "other")
    with pytest.raises(AssertionError, match="the reference is computed"):
        run.train(pipeline(data, DPO), data=tmp_path / "plain", out=tmp_path / "other")


def test_what_a_later_phase_lacks_is_found_before_the_first_one(data, tmp_path, monkeypatch):
    """A loss that fails, a device that is missing, no prompts for samples: said before days of training."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "loss_of_bins.py").write_text(
        "from prefkit.train.losses import LossOutput\n"
        "def mean(policy):\n    return LossOutput((policy.chosen_P * 0).mean(), policy.chosen_P, policy.chosen_P)\n"
    )
    write_data_set(tmp_path / "plain", toy_pairs(6))
    monkeypatch.setattr(run, "run_phase", lambda job, number: pytest.fail("a phase begins"))
    for later, words in (
        ({"objective": "loss_of_bins:mean"}, "failed on six pairs"),
        ({"optimizer": "adamw_8bit"}, "needs a CUDA device"),
        ({"lora": {"quantize": "nf4"}}, "needs a CUDA device"),
        ({"attention": "varlen"}, "cannot be had"),
        ({"samples": {"prompts": 2}}, "no test split to take prompts from"),
        ({"objective": "sft", "column": "chosn"}, r'test\.toml: \[\[train\]\] dpo: there is no column = "chosn"'),
    ):
        if "CUDA" in words and torch.cuda.is_available():
            continue
        with pytest.raises((TrainError, UsageError), match=words):
            run.train(pipeline(data, SFT, {**DPO, **later}), data=tmp_path / "plain", out=tmp_path / "r")
        assert not (tmp_path / "r").exists()


def training_and_dry_run(table, data, out):
    """Both of what shall refuse the same."""
    return (
        lambda: run.train(table, data=data, out=out),
        lambda: estimate.plan(run.check(table), data, max_steps=None, tflops=1.0),
    )


def test_a_column_that_a_phase_lacks_is_found_before_any_begins(data, tmp_path):
    """Of pairs, of labels and of conversations; by a dry run too, and before a tokenizer is trained."""
    write_data_set(tmp_path / "labels", toy_labels(6), kind="labels")
    talk = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    (tmp_path / "talks.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    adopt([tmp_path / "talks.jsonl"], tmp_path / "talks")
    later = {"name": "second", "objective": "sft"}
    for of, phases, words in (
        (
            data,
            [SFT, {**later, "column": "chosn"}],
            'column = "chosn"; the data set\'s columns of messages are prompt, '
            'chosen, rejected. Did you mean "chosen"?',
        ),
        (data, [SFT, {**later, "column": "source"}], 'column = "source"; the data set\'s columns of messages are'),
        (
            tmp_path / "labels",
            [{**SFT, "column": "completion"}, later],
            'column = "chosen"; the data set\'s columns of messages are prompt, completion.',
        ),
        (
            tmp_path / "talks",
            [{**SFT, "column": "messages"}, {**DPO, "name": "second"}],
            "it learns from chosen and "
            "rejected, and the data set's columns of messages are messages, prompt. Take a data set that build-pairs",
        ),
    ):
        for attempt in training_and_dry_run(pipeline(data, *phases), of, tmp_path / "r"):
            with pytest.raises(UsageError) as refused:
                attempt()
            assert str(refused.value).startswith(f"{data / 'test.toml'}: [[train]] second: ")
            assert words in str(refused.value)
        assert not (tmp_path / "r").exists()


def test_what_a_phase_takes_of_rows_that_are_not_there_is_found_before_any_begins(data, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "run_phase", lambda job, number: pytest.fail("a phase begins"))
    plain = [{**row, "margin": None, "chosen_score": None} for row in toy_pairs(6)]
    write_data_set(tmp_path / "plain", plain)
    later = {**DPO, "name": "second"}
    for of, options, error, words in (
        (
            data,
            {"sources": ["od"]},
            UsageError,
            'second: sources: the train split has nothing of "od". Did you mean "o',
        ),
        (data, {"langs": ["fr"]}, UsageError, 'second: langs: the train split has nothing of "fr". Known: en.'),
        (data, {"source_weights": {"evn": 2}}, UsageError, 'source_weights: .* Did you mean "even"'),
        (data, {"lang_caps": {"fr": 2}}, UsageError, "second: lang_caps: the train split has nothing"),
        (data, {"min_margin": 1e9}, TrainError, "second: filters, weights and caps leave nothing to train on"),
        (
            data,
            {"source_weights": {"odd": 0, "even": 0}},
            TrainError,
            "filters, weights and caps leave nothing to train",
        ),
        (
            data,
            {"source_weights": {"odd": 1e-9, "even": 0}},
            TrainError,
            "second: filters, weights and caps leave noth",
        ),
        (
            data,
            {"source_caps": 1},
            TrainError,
            r"train on\. A cap takes prompts whole, and the smallest has 3 examples",
        ),
        (data, {"lang_caps": {"en": 2}}, TrainError, "second: filters, weights and caps leave nothing to train on"),
        (data, {"sources": ["odd"], "source_caps": {"odd": 2}}, TrainError, "the smallest has 3 examples"),
        (tmp_path / "plain", {"curriculum": "easy_first"}, TrainError, "6 of 6 pairs are without scores. Leave the"),
        (tmp_path / "plain", {"alarms": {"stop": ["overfitting"]}}, TrainError, "second: alarms: stop names"),
    ):
        for attempt in training_and_dry_run(pipeline(data, SFT, {**later, **options}), of, tmp_path / "r"):
            with pytest.raises(error, match=words):
                attempt()
        assert not (tmp_path / "r").exists()
    known = {"sources": ["odd"], "source_weights": {"odd": 2.0}, "lang_caps": {"en": 5}, "min_margin": 0.5}
    answers = {**SFT, "name": "answers", "source_caps": 1}  # of three pairs two answers or one are chosen
    for number, phase in enumerate(({**later, **known, "curriculum": "easy_first"}, answers)):
        with pytest.raises(pytest.fail.Exception, match="a phase begins"):
            run.train(pipeline(data, SFT, phase), data=data, out=tmp_path / f"r{number}")


def test_an_empty_train_split_is_one_sentence(tmp_path):
    write_data_set(tmp_path / "d", [], toy_pairs(3))
    for attempt in training_and_dry_run(pipeline(tmp_path, DPO), tmp_path / "d", tmp_path / "r"):
        with pytest.raises(DataError, match="the train split has no rows"):
            attempt()


def test_changed_chat_template_or_tokenizer_is_refused_on_resume(data, tmp_path):
    trained(data, tmp_path / "base", SFT, max_steps=1)
    base, template = tmp_path / "base" / "model", tmp_path / "t.jinja"
    before = AutoTokenizer.from_pretrained(base).chat_template
    template.write_text(before)
    table = pipeline(
        data, {**SFT, "max_steps": 2}, {**DPO, "checkpoint_every": 1}, path=str(base), chat_template=str(template)
    )
    for name, step in (("checkpoint", 3), ("phase", 1)):  # of the second phase; of the first alone
        out = tmp_path / name
        with pytest.raises(Killed):
            run.train(table, data=data, out=out, progress=KillAt(step))
        if name == "phase":
            shutil.rmtree(out / "dpo")
        template.write_text("Please. " + before)
        with pytest.raises(TrainError, match=r"the chat template of phase .* has changed since"):
            run.train(table, data=data, out=out, resume=True)
        template.write_text(before)
    words = AutoTokenizer.from_pretrained(base)
    words.add_tokens(["yes"])
    words.save_pretrained(base)
    with pytest.raises(TrainError, match="the tokenizer of phase sft has changed since"):
        run.train(table, data=data, out=tmp_path / "checkpoint", resume=True)


def test_lost_metrics_are_not_made_up(data, tmp_path):
    table = pipeline(data, {**DPO, "checkpoint_every": 1})
    with pytest.raises(Killed):
        run.train(table, data=data, out=tmp_path / "r", progress=KillAt(3))
    with open(tmp_path / "r" / "metrics.jsonl", "r+b") as file:
        file.truncate(10)
    with pytest.raises(TrainError, match=r"metrics\.jsonl: shorter than the checkpoint says"):
        run.train(table, data=data, out=tmp_path / "r", resume=True)
    assert (tmp_path / "r" / "metrics.jsonl").stat().st_size == 10


@pytest.mark.parametrize("damage", ["report", "model"])
def test_damaged_end_of_a_phase_is_named_and_can_be_mended(data, tmp_path, damage):
    out, phases = tmp_path / "r", [{**SFT, "max_steps": 3}, {**DPO, "max_steps": 4, "checkpoint_every": 2}]
    run.train(pipeline(data, *phases), data=data, out=tmp_path / "whole")
    with pytest.raises(Killed):
        run.train(pipeline(data, *phases), data=data, out=out, progress=KillAt(3))
    report, model = out / "sft" / "phase.json", out / "sft" / "model" / "model.safetensors"
    path = report if damage == "report" else model
    path.write_bytes(path.read_bytes()[:-40] + b" " * 39 + b"x")
    for _ in range(2):
        with pytest.raises(TrainError, match=rf"{path.name}: damaged. Delete the phase's phase.json"):
            run.train(pipeline(data, *phases), data=data, out=out, resume=True)
    report.unlink()
    shutil.rmtree(out / "dpo")
    run.train(pipeline(data, *phases), data=data, out=out, resume=True)
    assert lines(out) == lines(tmp_path / "whole")
    for file in ("sft/model/model.safetensors", "model/model.safetensors"):
        assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def limit_file_size():
    """A disk that takes no more than 60 kB a file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


@pytest.mark.slow
def test_a_full_disk(data, tmp_path):
    file, out = tmp_path / "p.toml", tmp_path / "r"
    model = "\n".join(f"{key} = {json.dumps(value)}" for key, value in TINY.items())
    file.write_text(
        f"[model]\ntokenizer = {{ vocab_size = 400 }}\n[model.config]\n{model}\n"
        '[[train]]\nname = "dpo"\nobjective = "sigmoid"\nmax_steps = 2\n'
    )
    command = [sys.executable, "-m", "prefkit", "train", str(file), "--data", str(data), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit_file_size)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "arge" in done.stderr.splitlines()[-1], done.stderr  # File too large
    assert not list(out.rglob("*.tmp"))
    assert not list(out.rglob("step-*"))
    assert not list(out.rglob("*.safetensors"))
    subprocess.run([*command, "--resume"], check=True, capture_output=True)


SMALL_STEPS = {**DPO, "pairs_per_step": 2, "checkpoint_every": 3}


class Telling(Silent):
    """Progress that is written into a pipe."""

    def __init__(self, pipe):
        self.pipe = pipe

    def update(self, stage, done, total, detail=""):
        os.write(self.pipe, f"{stage} {done}\n".encode())


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    run.train(pipeline(data, SMALL_STEPS), data=data, out=out)
    return out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_real_signals(data, undisturbed, tmp_path, number):
    """SIGTERM ends after a checkpoint and says how to go on; kill -9 loses only the steps since the last one."""
    table, out = pipeline(data, SMALL_STEPS), tmp_path / "cut"
    reader, writer = os.pipe()

    def task():
        try:
            run.train(table, data=data, out=out, progress=Telling(writer))
        except KeyboardInterrupt as stop:
            os.write(writer, str(stop).encode())
            os._exit(130)

    process = forked(task)
    os.close(writer)
    with open(reader) as told:
        for line in told:
            if line == "dpo 8\n":
                os.kill(process, number)
                break
        rest = told.read()
    assert ended(process) == (130 if number == signal.SIGTERM else -9)
    if number == signal.SIGTERM:
        assert "go on with --resume" in rest
    assert not (out / "model").exists()
    run.train(table, data=data, out=out, resume=True)
    assert lines(out) == lines(undisturbed)


def test_a_signal_that_is_passed_on_is_one_signal_and_a_later_one_another(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    with loop.interruptible() as interrupted:
        assert not interrupted()
        for number, second in ((signal.SIGINT, 5.0), (signal.SIGINT, 5.1), (signal.SIGTERM, 5.9)):
            now[0] = second
            signal.raise_signal(number)
        assert interrupted()
        now[0] = 7.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 0.1, 7])
def test_schedules_are_those_of_transformers(schedule, warmup):
    steps = 40
    phase = Phase(objective="sigmoid", schedule=schedule, warmup=warmup, learning_rate=0.5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    warm = 4 if warmup == 0.1 else warmup
    expected = get_scheduler(name, optimizer, num_warmup_steps=warm, num_training_steps=steps)
    for step in range(steps):
        assert learning_rate(phase, step, steps) == pytest.approx(expected.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        expected.step()


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        ({"objective": "sigmoid", "betta": 0.1}, r'has no option "betta".*Did you mean "beta'),
        ({"objective": "sigmiod"}, r'no objective "sigmiod".*Did you mean "sigmoid"'),
        ({"objective": "simpo", "reference": "live"}, 'option "reference" has no effect on objective "simpo"'),
        ({"objective": "sft", "sft_weight": 1.0}, 'option "sft_weight" has no effect on objective "sft"'),
        ({"objective": "sft", "beta": 0.1}, 'objective "sft" has no option "beta"'),
        ({"objective": "hinge", "label_smoothing": 0.1}, 'objective "hinge" has no option "label_smoothing"'),
        ({"objective": "ipo", "column": "x"}, 'option "column" has no effect on objective "ipo"'),
        ({"objective": "sigmoid", "beta": -1}, "beta"),
        ({"objective": "sigmoid", "max_length": 0, "max_length_policy": "drop"}, "no effect without a limit"),
        ({"objective": "sigmoid", "dtype": "float16"}, "dtype"),
        ({"objective": "sigmoid", "lora": {"rank": 8}}, 'lora: unknown option "rank"'),
        ({"objective": "sigmoid", "name": "../up"}, "must be letters"),
        ({"learning_rate": 1.0}, "objective is missing"),
    ],
)
def test_options_are_checked(data, phase, message):
    with pytest.raises(UsageError, match=message):
        run.check(pipeline(data, phase))


def test_model_options_are_checked(data):
    with pytest.raises(UsageError, match="has neither"):
        run.check(pipeline(data, DPO, seed=1))
    with pytest.raises(UsageError, match="not both"):
        run.check(pipeline(data, DPO, path="a", config={}))
    with pytest.raises(UsageError, match="needs a tokenizer"):
        run.check(pipeline(data, DPO, config=TINY))
    with pytest.raises(UsageError, match="vocab_size"):
        run.check(pipeline(data, DPO, config=TINY, tokenizer={"vocab_size": 3}))
    with pytest.raises(UsageError, match=r'"seed" has no effect: no weights are random'):
        run.check(pipeline(data, DPO, path="a", seed=1))
    assert run.check(pipeline(data, DPO), model="some/name").model.path == "some/name"
    with pytest.raises(UsageError, match=r'two .* named "dpo"'):
        run.check(pipeline(data, DPO, DPO))


def test_plan_and_options_are_plain_data(data):
    options = run.check(pipeline(data, SFT, DPO))
    table = json.loads(json.dumps(options.table()))
    assert table["train"][1]["beta"] == 0.1
    assert "column" not in table["train"][1]
    planned = estimate.outline(options, manifest.read(data), max_steps=5)
    assert [(p["phase"], p["steps"], p["reference"]) for p in planned] == [("sft", 5, None), ("dpo", 5, "cached")]


def test_pair_that_fits_no_bin_is_named_before_training(data, tmp_path):
    with pytest.raises(TrainError, match="max_tokens = 30"):
        trained(data, tmp_path / "r", {**DPO, "max_tokens": 30})
    assert not (tmp_path / "r" / "metrics.jsonl").exists()


def test_test_split_without_a_usable_pair_does_not_stop_training(tmp_path):
    write_data_set(tmp_path / "d", toy_pairs(8), [pair("long " * 90, "x", "y")])
    notes = []
    progress = Silent()
    progress.note = notes.append
    assert trained(tmp_path / "d", tmp_path / "r", {**DPO, "max_length": 80}, progress=progress)
    assert "dpo, test: 0 examples of 1 rows (1 prompt too long)" in notes
    assert json.loads((tmp_path / "r" / "dpo" / "phase.json").read_text())["eval_after"] is None


def test_model_of_the_command_line_is_relative_to_where_it_is_given(data, tmp_path, monkeypatch):
    (tmp_path / "here" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert run.check(pipeline(data, DPO), model="base").model.path == str(tmp_path / "here" / "base")


def test_nothing_left_is_an_error(tmp_path):
    write_data_set(tmp_path / "d", [pair("a b c d e f g", "x", "y")])
    with pytest.raises(TrainError, match=r"nothing to train on is left of .*1 prompt too long"):
        trained(tmp_path / "d", tmp_path / "r", {**DPO, "max_length": 3})
