"""The folder of a run: given back when the run could not begin, kept by the run that has it, and locked meanwhile."""

import fcntl
import json

import pytest

from prefkit import manifest
from prefkit.errors import UsageError
from prefkit.train import run
from prefkit.train.metrics import Silent
from tests.train.datasets_for_tests import pipeline, toy_pairs, write_data_set

DPO = {"name": "dpo", "objective": "sigmoid", "learning_rate": 1e-3, "pairs_per_step": 6, "max_steps": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "d"
    write_data_set(folder, toy_pairs(8))
    return folder


class StopAt(Silent):
    """Raises something as soon as a stage is reached."""

    def __init__(self, stage: str, error: BaseException):
        self.stage, self.error = stage, error

    def update(self, stage, done, total, detail=""):
        if stage.startswith(self.stage):
            raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), RuntimeError("a bug")])
@pytest.mark.parametrize("stage", ["tokenising", "reference"])
def test_any_early_failure_gives_the_folder_back(data, tmp_path, error, stage):
    out, cache = tmp_path / "deep" / "r", tmp_path / "cache"
    with pytest.raises(type(error)):
        run.train(pipeline(data, DPO), data=data, out=out, cache=cache, progress=StopAt(stage, error))
    assert not out.parent.exists()
    run.train(pipeline(data, DPO), data=data, out=out, cache=cache)


def test_a_folder_of_the_user_stays(data, tmp_path):
    out = tmp_path / "r"
    out.mkdir()
    (out / "run.json.tmp").write_text("left by a kill -9")
    with pytest.raises(KeyboardInterrupt):
        run.train(pipeline(data, DPO), data=data, out=out, progress=StopAt("tokenising", KeyboardInterrupt()))
    assert not list(out.iterdir())


def test_failed_resume_keeps_the_claim(data, tmp_path):
    out = tmp_path / "r"
    run.train(pipeline(data, DPO), data=data, out=out)
    (out / "metrics.jsonl").unlink()  # so that only who made the claim can tell
    (out / "dpo" / "phase.json").unlink()
    with pytest.raises(KeyboardInterrupt):
        cache, progress = tmp_path / "empty", StopAt("tokenising", KeyboardInterrupt())
        run.train(pipeline(data, DPO), data=data, out=out, cache=cache, resume=True, progress=progress)
    assert (out / "run.json").exists()
    assert (out / "model").exists()


def test_nothing_to_resume(data, tmp_path):
    with pytest.raises(UsageError, match="nothing to resume"):
        run.train(pipeline(data, DPO), data=data, out=tmp_path / "r", resume=True)
    assert not (tmp_path / "r").exists()


def test_damaged_record_is_one_sentence(data, tmp_path):
    run.train(pipeline(data, DPO), data=data, out=tmp_path / "r")
    (tmp_path / "r" / "run.json").write_text("{")
    with pytest.raises(UsageError, match=r"run\.json: damaged"):
        run.train(pipeline(data, DPO), data=data, out=tmp_path / "r", resume=True)


def test_other_phases_are_said_by_their_names_and_what_is_not_set_as_such(data, tmp_path):
    out, second = tmp_path / "r", {**DPO, "name": "second"}
    run.train(pipeline(data, DPO), data=data, out=out)
    for phases, steps, words in (
        ([DPO, second], None, 'options.train was ["dpo"] and is now ["dpo", "second"]: the result depends on it.'),
        ([second], None, 'options.train was ["dpo"] and is now ["second"]: the result'),
        ([{**DPO, "max_steps": 3}], 5, "max_steps was not set and is now 5; options.train.dpo.max_steps was 2 and is"),
        ([{**DPO, "lora": {"r": 2}}], None, "options.train.dpo.lora was not set and is now { r = 2, alpha = 32.0, "),
    ):
        with pytest.raises(UsageError) as refused:
            run.train(pipeline(data, *phases), data=data, out=out, resume=True, max_steps=steps)
        assert words in str(refused.value)


def test_two_processes_in_one_folder(data, tmp_path):
    out = tmp_path / "r"
    run.train(pipeline(data, DPO), data=data, out=out)
    with open(out / ".lock") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another prefkit is training here"):
            run.train(pipeline(data, DPO), data=data, out=out, resume=True)
    run.train(pipeline(data, DPO), data=data, out=out, resume=True)


def test_text_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "in the way").write_text("")
    with pytest.raises(OSError, match="directory"):
        manifest.write_text_atomically(tmp_path / "target", json.dumps({}))
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
