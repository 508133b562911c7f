"""The same curve and the same weights on any number of ranks, and what happens when one of them fails."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prefkit.cli import main
from prefkit.train import loop, metrics, parallel, run
from prefkit.train.metrics import TIMING
from tests.train.datasets_for_tests import TINY, pipeline, toy_pairs, write_data_set
from tests.train.ranks_for_tests import finish, on_ranks, spoken, start

SFT = {"objective": "sft", "learning_rate": 1e-3, "pairs_per_step": 10, "max_tokens": 90, "max_steps": 3}
DPO = {
    "name": "dpo",
    "objective": "sigmoid",
    "learning_rate": 1e-3,
    "pairs_per_step": 9,
    "max_tokens": 90,  # so that a step has several bins, and some prompts are split
    "checkpoint_every": 2,
    "eval_every": 3,
}
TIED = {
    **TINY,
    "model_type": "qwen3",
    "head_dim": 8,
    "tie_word_embeddings": True,
    "vocab_size": 403,
}  # odd: uneven rows
NOT_CURVE = (*TIMING, "packing_efficiency")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "d"
    rows = toy_pairs(24, answers=3)
    write_data_set(folder, rows[:54], rows[54:], shards=3)
    return folder


def train(data: Path, out: Path, phases: list[dict], config: dict, resume: bool = False) -> None:
    """What each rank does; every run has a cache of its own, or it would find what another one computed."""
    table = pipeline(data, *phases, config=config, tokenizer={"vocab_size": 400})
    run.train(table, data=data, out=out, cache=out / "cache", resume=resume)


def train_until(data: Path, out: Path, phases: list[dict], config: dict, ill: int, number: int) -> None:
    """The same, but rank `ill` sends itself a signal before the fourth step."""
    whole = loop.train_step

    def step(loop_, step_, at):
        if at == 3 and parallel.rank() == ill:
            os.kill(os.getpid(), number)
        return whole(loop_, step_, at)

    loop.train_step = step
    train(data, out, phases, config)


def assert_same(found: Path, expected: Path) -> None:
    """Equal lines of metrics (1e-6, or what float32 gives of sums) and equal weights (1e-5)."""
    ours, theirs = metrics.read(found), metrics.read(expected)
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        assert (our["phase"], our["step"]) == (their["phase"], their["step"])
        ours_by_name, theirs_by_name = (dict(metrics.scalars(line)) for line in (our, their))
        assert ours_by_name.keys() == theirs_by_name.keys()
        for name in ours_by_name.keys() - set(NOT_CURVE):
            close = {"rel": 1e-6} if name in ("loss", "eval_loss") else {"rel": 1e-4, "abs": 1e-5}
            assert ours_by_name[name] == pytest.approx(theirs_by_name[name], **close), (name, our["step"])
    weights, others = (load_file(out / "model" / "model.safetensors") for out in (found, expected))
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, others[name], atol=1e-5, rtol=0)
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert (found / "model" / name).read_bytes() == (expected / "model" / name).read_bytes()


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """The run of one process that all others are held to."""
    out = tmp_path_factory.mktemp("alone") / "run"
    train(data, out, [SFT, DPO], TIED)
    assert metrics.read(out, "dpo")[-1]["eval_loss"] < 0.65
    return out


@pytest.mark.parametrize("ranks", [2, 4])
def test_curve_and_weights_do_not_depend_on_the_number_of_ranks(data, alone, tmp_path, ranks):
    """Full training in two phases, weights dealt to the ranks, embeddings tied, rows that do not divide."""
    out = tmp_path / "run"
    assert on_ranks(ranks, train, data, out, [SFT, DPO], TIED, said=tmp_path / "said") == ""
    assert_same(out, alone)
    parts = sorted(path.name for path in (out / "dpo" / "checkpoints" / "step-00000006").glob("weights*"))
    assert parts == [f"weights-{n + 1:05d}-of-{ranks:05d}.safetensors" for n in range(ranks)]
    AutoModelForCausalLM.from_pretrained(out / "model")


def test_lora_on_two_ranks(data, tmp_path):
    """Every rank has the whole model, and gradients are summed once a step."""
    phases = [{**DPO, "lora": {"r": 4}, "learning_rate": 1e-2, "max_steps": 4}]
    train(data, tmp_path / "one", phases, TINY)
    on_ranks(2, train, data, tmp_path / "two", phases, TINY, said=tmp_path / "said")
    assert_same(tmp_path / "two", tmp_path / "one")
    adapters = [
        load_file(tmp_path / name / "model" / "adapter" / "adapter_model.safetensors") for name in ("one", "two")
    ]
    for name, tensor in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], tensor, atol=1e-5, rtol=0)


def test_dropout_on_two_ranks_goes_on_where_it_was(data, tmp_path):
    """Dropout falls on each rank's own bins, and a resumed run draws on every rank what the run would have drawn."""
    phases = [{**DPO, "lora": {"r": 4, "dropout": 0.4}, "learning_rate": 1e-2, "max_steps": 5, "eval_every": 5}]
    on_ranks(2, train, data, tmp_path / "whole", phases, TINY, said=tmp_path / "said")
    out = tmp_path / "run"
    codes = finish(start(2, train_until, data, out, phases, TINY, 1, signal.SIGTERM, said=tmp_path / "until"))
    assert codes == [130, 130]
    on_ranks(2, train, data, out, phases, TINY, True, said=tmp_path / "again")
    assert_same(out, tmp_path / "whole")


def test_losses_of_the_whole_step_on_two_ranks(data, tmp_path):
    """The step's pairs are judged at once, though no rank has all of them; BCO remembers the steps before."""
    objective = [{"use": "bco_pair"}, {"use": "aot", "weight": 0.5}]
    phases = [{**DPO, "objective": objective, "max_steps": 4}]
    train(data, tmp_path / "one", phases, TINY)
    on_ranks(2, train, data, tmp_path / "two", phases, TINY, said=tmp_path / "said")
    assert_same(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize(
    "modified",
    [
        {"wpo": True, "ld_alpha": 0.3, "reference": "live", "reference_sync": {"every": 2, "alpha": 0.5}},
        {"objective": [{"use": "kto"}, {"use": "plackett_luce"}], "sft_weight": 0.1},
    ],
)
def test_modifiers_on_two_ranks(data, tmp_path, modified):
    """Weights, cut answers, answers under foreign prompts, and a reference that is dealt to ranks and moved."""
    phases = [{**DPO, **modified, "max_steps": 4}]
    train(data, tmp_path / "one", phases, TINY)
    on_ranks(2, train, data, tmp_path / "two", phases, TINY, said=tmp_path / "said")
    assert_same(tmp_path / "two", tmp_path / "one")


def test_live_reference_recomputed_activations_and_offload(data, tmp_path):
    """A reference in memory, gradient checkpointing and CPU offload change nothing, on one rank or on two."""
    plain = {**DPO, "max_steps": 3}
    train(data, tmp_path / "plain", [plain], TINY)
    phase = {**plain, "reference": "live", "activation_checkpointing": "full", "cpu_offload": True}
    for ranks in (1, 2):
        on_ranks(ranks, train, data, tmp_path / f"{ranks}", [phase], TINY, said=tmp_path / f"said {ranks}")
        assert_same(tmp_path / f"{ranks}", tmp_path / "plain")


def test_bfloat16_on_two_ranks(data, tmp_path):
    """The layers' weights travel in bfloat16; the curve is that of one process up to its rounding."""
    phases = [{**DPO, "dtype": "bfloat16", "max_steps": 3}]
    train(data, tmp_path / "one", phases, TINY)
    on_ranks(2, train, data, tmp_path / "two", phases, TINY, said=tmp_path / "said")
    one, two = ([line["loss"] for line in metrics.read(tmp_path / name) if "loss" in line] for name in ("one", "two"))
    np.testing.assert_allclose(two, one, atol=0.01)
    assert {t.dtype for t in load_file(tmp_path / "two" / "model" / "model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("ill", [0, 1])
def test_a_killed_rank_ends_the_run_and_fewer_ranks_resume_it(data, alone, tmp_path, ill):
    out, said = tmp_path / "run", tmp_path / "said"
    # SFT has three steps, so the fourth is of DPO, whose second left a checkpoint.
    codes = finish(start(2, train_until, data, out, [SFT, DPO], TIED, ill, signal.SIGKILL, said=said))
    assert codes[ill] == -signal.SIGKILL
    assert codes[1 - ill] == 1
    words = spoken(said)
    assert words.count("prefkit:") == 1, words
    assert f"rank {1 - ill} lost another rank" in words
    assert "go on with --resume" in words
    if ill:
        train(data, out, [SFT, DPO], TIED, resume=True)
        assert_same(out, alone)


def test_one_rank_is_resumed_on_two(data, alone, tmp_path):
    out = tmp_path / "run"
    codes = finish(start(1, train_until, data, out, [SFT, DPO], TIED, 0, signal.SIGKILL, said=tmp_path / "said"))
    assert codes == [-signal.SIGKILL]
    on_ranks(2, train, data, out, [SFT, DPO], TIED, True, said=tmp_path / "again")
    assert_same(out, alone)


def test_a_hung_rank_ends_the_run_after_the_timeout(data, tmp_path):
    processes = start(
        2, train_until, data, tmp_path / "run", [DPO], TINY, 1, signal.SIGSTOP, said=tmp_path / "said", timeout=4
    )
    processes[0].join(60)
    assert processes[0].exitcode == 1
    assert finish(processes, within=0.1)[1] is None
    assert "died or did not answer for 4 s" in spoken(tmp_path / "said")


def test_a_signal_to_one_rank_stops_all_at_the_same_step(data, tmp_path):
    out, said = tmp_path / "run", tmp_path / "said"
    codes = finish(start(2, train_until, data, out, [DPO], TINY, 1, signal.SIGTERM, said=said))
    assert codes == [130, 130]
    assert spoken(said) == "prefkit: stopped after step 4 of 6 of dpo; go on with --resume\n"
    assert (out / "dpo" / "checkpoints" / "step-00000004").is_dir()


def train_on_nan(data: Path, out: Path) -> None:
    """Rank 1 gets NaN for a pair of the second step."""
    whole, calls = loop.Policy.sequence_logps, []

    def sequence_logps(self, bin):
        logps = whole(self, bin)
        if self.model.training and parallel.rank() == 1:
            calls.append(len(bin.pair_rows_P))
            if len(calls) == 4 and calls[-1]:
                return torch.where(torch.arange(len(logps)) == bin.pairs_P2[0, 0], torch.nan, logps)
        return logps

    loop.Policy.sequence_logps = sequence_logps
    train(data, out, [DPO], TINY)


def test_nan_on_one_rank_ends_all_with_one_message(data, tmp_path):
    said = tmp_path / "said"
    codes = finish(start(2, train_on_nan, data, tmp_path / "run", said=said))
    assert codes == [1, 1]
    words = spoken(said)
    assert words.count("\n") == 1, words
    assert "is not finite; the weights are as before it. Pairs: pair of What is" in words


def train_from_different_data(data: Path, out: Path) -> None:
    train(data if parallel.is_first() else data.with_name("other"), out, [DPO], TINY)


def test_what_is_wrong_on_one_rank_is_said_once(data, tmp_path):
    on = tmp_path / "data"
    on.mkdir()
    (on / "d").symlink_to(data)
    write_data_set(on / "other", toy_pairs(5))
    said = tmp_path / "said"
    assert finish(start(2, train_from_different_data, on / "d", tmp_path / "r", said=said)) == [1, 1]
    assert spoken(said).startswith("prefkit: the data set: another one on rank ")
    assert spoken(said).count("prefkit:") == 1
    assert not (tmp_path / "r").exists()
    codes = finish(start(2, train, data, tmp_path / "r", [{**DPO, "beta": -1}], TINY, said=tmp_path / "2"))
    assert codes == [2, 2]
    assert spoken(tmp_path / "2").count("\n") == 1


def command(data: Path, out: Path, *more: str) -> list[str]:
    return ["train", str(out.parent / "p.toml"), "--data", str(data), "--out", str(out), "--quiet", *more]


@pytest.mark.slow
def test_torchrun_and_kill_9(data, tmp_path):
    """The command line as people use it; one of two processes is killed, and one process goes on."""
    model = "\n".join(f"{key} = {json.dumps(value)}" for key, value in TINY.items())
    options = {**DPO, "epochs": 4, "eval_every": 100}
    phase = "\n".join(f"{key} = {json.dumps(value)}" for key, value in options.items())
    file, out = tmp_path / "p.toml", tmp_path / "run"
    file.write_text(f"[model]\ntokenizer = {{ vocab_size = 400 }}\n[model.config]\n{model}\n[[train]]\n{phase}\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "prefkit"]
    running = subprocess.Popen([*torchrun, *command(data, out)], stderr=subprocess.PIPE, text=True)
    while not list(out.glob("dpo/checkpoints/step-0000001*")):
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.02)
    ranks = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    os.kill(int(ranks[1]), signal.SIGKILL)
    words = running.communicate(timeout=100)[1]
    assert running.returncode != 0
    assert words.count("prefkit: rank 0 lost another rank, which died or did not answer for 1800 s.") == 1, words
    assert "prefkit/train" not in words  # no traceback of ours
    assert not (out / "model").exists()
    assert main(command(data, out, "--resume")) == 0
    assert main(command(data, tmp_path / "whole")) == 0
    assert_same(out, tmp_path / "whole")


def test_a_timeout_of_ranks_needs_ranks(data, tmp_path, capsys):
    assert main(command(data, tmp_path / "run", "--rank-timeout", "5")) == 2
    assert "--rank-timeout has no effect" in capsys.readouterr().err


def exchange(values: list) -> None:
    rank = parallel.rank()
    assert parallel.gathered(values[rank]) == values
    assert parallel.of_first(values[rank]) == values[0]
    assert parallel.summed(torch.tensor([rank + 1.0])).tolist() == [6.0]


def test_ranks_tell_each_other_anything_that_json_can_say(tmp_path):
    on_ranks(3, exchange, [{"a": [1, None]}, "ü" * 100, 0.5], said=tmp_path / "said")
