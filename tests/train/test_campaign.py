"""Runs that are killed at any instant, or starved of disk: the next `--resume` ends with the same bits.

Each run here is a forked process, killed by a real SIGKILL: nothing is cleaned up that kill -9 would leave. An instant
is a call that changes the file system (a rename, a flush, a new folder, a file of tensors that is half written), so
that kills fall where they hurt, in each stage; others fall at random times.
"""

import errno
import json
import os
import random
import shutil
import signal
import time
import traceback
from collections import defaultdict
from pathlib import Path

import pytest

from prefkit.errors import TrainError
from prefkit.train import alarms, checkpoint, metrics, reference, run, samples
from prefkit.train.metrics import TIMING, Silent
from tests.train.datasets_for_tests import TINY, pipeline, toy_pairs, write_data_set

SHAPE = {**TINY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
COMMON = {"learning_rate": 1e-3, "checkpoint_every": 1, "eval_every": 2, "alarms": {"window": 1}}
PHASES = [
    {**COMMON, "objective": "sft", "pairs_per_step": 12, "max_steps": 2},
    {
        **COMMON,
        "name": "dpo",
        "objective": "sigmoid",
        "pairs_per_step": 8,
        "alarms": {"window": 1, "overfitting": 1},
        "samples": {"every": 2, "prompts": 1, "max_new_tokens": 2},
    },
]
STAGES = ("tokenise", "reference", "train", "checkpoint", "export")
KILLS_A_STAGE = 4
KILLS_BY_TIME = 10
CALLS = [(os, "replace"), (os, "rename"), (os, "fsync"), (os, "mkdir"), (os, "unlink"), (shutil, "rmtree")]
CALLS += [(checkpoint, "save_file"), (reference, "save_file")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return made(tmp_path_factory.mktemp("campaign") / "d")


def made(folder: Path) -> Path:
    """The data set of all runs, whose test split says the contrary, so that an alarm has something to say."""
    rows = toy_pairs(16, answers=2)
    contrary = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[14:]]
    write_data_set(folder, rows[:14], contrary, shards=2)
    return folder


def train(data: Path, out: Path, progress: Silent | None = None) -> None:
    table = pipeline(data, *PHASES, config=SHAPE, tokenizer={"vocab_size": 300})
    resume = (out / "run.json").exists()
    run.train(table, data=data, out=out, cache=out / "cache", resume=resume, progress=progress)


def forked(task) -> int:
    """The pid of a child that does `task`."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        task()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """How a child ended: its exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def stage_of(name: str, argument: object) -> str:
    """The stage that a call belongs to, by the path that it is about."""
    path = os.readlink(f"/proc/self/fd/{argument}") if isinstance(argument, int) else str(argument)
    if name == "save_file" and isinstance(argument, dict):
        path = "reference-" if "logps" in argument else "checkpoints"
    for part, stage in (("tokens-", "tokenise"), ("reference-", "reference"), ("checkpoints", "checkpoint")):
        if part in path:
            return stage
    return "export" if "/model" in path else "train"


def watched(seen: list[str], at: int | None = None, full: bool = False) -> None:
    """Note the stage of every call of CALLS from now on. In the midst of call `at` die, or find the disk full.

    For a child alone, which never undoes it.
    """

    def wrap(real, name):
        def call(*arguments, **options):
            seen.append(stage_of(name, arguments[0]))
            if len(seen) != at:
                return real(*arguments, **options)
            if name == "save_file":
                real(*arguments, **options)
                os.truncate(arguments[1], os.path.getsize(arguments[1]) // 2)
            if full:
                where = [str(arguments[0])] if isinstance(arguments[0], str | Path) else []  # as the system says it
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *where)
            return os.kill(os.getpid(), signal.SIGKILL)

        return call

    for module, name in CALLS:
        setattr(module, name, wrap(getattr(module, name), name))


def results(out: Path) -> dict[str, object]:
    """All that a run is for, and its figures without those of the clock."""
    lines = [{k: v for k, v in line.items() if k not in TIMING} for line in metrics.read(out)]
    names = ["model/model.safetensors", "model/README.md", "sft/model/model.safetensors", "tokenizer/tokenizer.json"]
    names += [alarms.FILE_NAME, samples.FILE_NAME, samples.PAGE]
    return {"lines": lines} | {name: (out / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """An undisturbed run: its folder, the stage of each of its calls, and how long it took."""
    folder = tmp_path_factory.mktemp("whole")

    def task():
        seen: list[str] = []
        watched(seen)
        train(data, folder / "r")
        (folder / "seen.json").write_text(json.dumps(seen))

    begun = time.monotonic()
    assert ended(forked(task)) == 0
    return folder / "r", json.loads((folder / "seen.json").read_text()), time.monotonic() - begun


@pytest.fixture(scope="module")
def cut_short(data, whole, tmp_path_factory):
    """A run that was killed while it wrote its last checkpoint."""
    out = tmp_path_factory.mktemp("cut") / "r"

    def task():
        watched([], max(by_stage(whole[1])["checkpoint"]))
        train(data, out)

    assert ended(forked(task)) == -signal.SIGKILL
    return out


def finished(data: Path, out: Path) -> dict[str, object]:
    assert ended(forked(lambda: train(data, out))) == 0
    left = [path for path in out.rglob("*") if path.suffix == ".tmp" or path.name.startswith("writing-")]
    assert not left
    return results(out)


def by_stage(seen: list[str]) -> dict[str, list[int]]:
    """The numbers of the calls of each stage."""
    calls = defaultdict(list)
    for number, stage in enumerate(seen, start=1):
        calls[stage].append(number)
    assert set(calls) == set(STAGES)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_any_instant_of_a_stage(data, whole, tmp_path, stage):
    expected, seen, _ = whole
    for at in random.Random(stage).sample(by_stage(seen)[stage], KILLS_A_STAGE):
        out = tmp_path / str(at)

        def task(out=out, at=at):
            watched([], at)
            train(data, out)

        assert ended(forked(task)) == -signal.SIGKILL
        assert finished(data, out) == results(expected), f"killed at call {at}"
        shutil.rmtree(out)


@pytest.mark.slow
def test_killed_at_random_times_again_and_again(data, whole, tmp_path):
    """One run after another, each of which is killed several times before it may end."""
    expected, _, seconds = whole
    rng, kills, out = random.Random(1), 0, tmp_path / "r"
    while kills < KILLS_BY_TIME:
        pid = forked(lambda: train(data, out))
        time.sleep(rng.uniform(0.1, 0.9) * seconds)
        os.kill(pid, signal.SIGKILL)
        code = ended(pid)
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
        if code == 0 or kills == KILLS_BY_TIME:
            assert finished(data, out) == results(expected)
            shutil.rmtree(out)


@pytest.mark.slow
def test_a_disk_that_is_full_leaves_the_last_good_checkpoint(data, whole, tmp_path):
    """The error names a path, and where a checkpoint was begun the one before is still there."""
    expected, seen, _ = whole
    calls = by_stage(seen)
    of_later_ones = calls["checkpoint"][len(calls["checkpoint"]) // 2 :]
    for at in [*random.Random(2).sample(of_later_ones, 3), calls["tokenise"][3], calls["export"][-3]]:
        out = tmp_path / str(at)

        def task(out=out, at=at):
            watched([], at, full=True)
            try:
                train(data, out)
            except (OSError, TrainError) as error:
                (tmp_path / "said").write_text(f"{getattr(error, 'filename', '')} {error}")

        assert ended(forked(task)) == 0
        said = (tmp_path / "said").read_text()
        assert "No space left" in said and str(tmp_path) in said, said
        if seen[at - 1] == "checkpoint":
            newest = [checkpoint.latest_state(out / name / "checkpoints") for name in ("sft", "dpo")]
            assert any(newest), "the checkpoint before is gone"
        assert finished(data, out) == results(expected), f"disk full at call {at}"
        shutil.rmtree(out)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["weights", "optimizer", "state", "tokens", "reference", "model of a phase"])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damage_is_found_by_its_hash_and_named(data, whole, cut_short, tmp_path, kind, damage):
    out, notes, progress = tmp_path / "r", [], Silent()
    progress.note = notes.append
    shutil.copytree(cut_short, out)
    newest = max((out / "dpo" / "checkpoints").glob("step-0*[0-9]"))
    path = {
        "weights": newest / "weights.safetensors",
        "optimizer": newest / "optimizer.safetensors",
        "state": newest / "state.json",
        "tokens": max(out.glob("cache/tokens-*/00001.arrow"), key=os.path.getmtime),  # of the second phase
        "reference": next(out.glob("cache/reference-*/00000.safetensors")),
        "model of a phase": out / "sft" / "model" / "model.safetensors",
    }[kind]
    content, rng = bytearray(path.read_bytes()), random.Random(kind + damage)
    if damage == "cut":
        del content[rng.randrange(len(content)) :]
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    if kind in ("reference", "model of a phase"):
        with pytest.raises(TrainError, match=rf"{path.name}: damaged"):
            train(data, out, progress)
        return
    train(data, out, progress)
    assert any(str(path) in note and "damaged" in note for note in notes)
    assert results(out) == results(whole[0])
