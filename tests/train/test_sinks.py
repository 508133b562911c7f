"""Figures go where they are asked to: to stand-ins for the clients, and to the clients where they are installed."""

import json
import sys
from types import SimpleNamespace

import pytest

from prefkit.cli import main
from prefkit.errors import TrainError, UsageError
from prefkit.train import metrics, run, sinks
from prefkit.train.metrics import Silent
from tests.train.datasets_for_tests import pipeline, toy_pairs, write_data_set
from tests.train.test_run import DPO, SFT, KillAt, Killed

PHASES = [{**SFT, "max_steps": 2}, {**DPO, "max_steps": 3, "checkpoint_every": 1}]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "d"
    rows = toy_pairs(12, answers=2)
    write_data_set(folder, rows[:10], rows[10:])
    return folder


class Stub:
    """What prefkit uses of wandb and of mlflow, noted down."""

    def __init__(self):
        self.begun, self.axes, self.logged, self.ended = [], {}, [], []
        self.info = SimpleNamespace(run_id="run 7")

    # wandb
    Settings = staticmethod(lambda **settings: settings)

    def init(self, **how):
        self.begun.append(how)
        return self

    def define_metric(self, name, *, step_metric):
        self.axes[name] = step_metric

    def log(self, figures):
        self.logged.append(figures)

    def finish(self, *, exit_code):
        self.ended.append(exit_code == 0)

    # mlflow
    def start_run(self, **how):
        self.begun.append(how)
        return self

    def __enter__(self):
        return self

    def __exit__(self, error, *_where):
        self.ended.append(error is None)

    def log_dict(self, table, name):
        self.options = table

    def log_metrics(self, figures, *, step):
        self.logged.append({**figures, "step": step})


@pytest.fixture
def stub(monkeypatch):
    made = Stub()
    for name in sinks.SINKS:
        monkeypatch.setitem(sys.modules, name, made)
    return made


def numbers(out):
    return [dict(metrics.scalars(line)) for line in metrics.read(out)]


@pytest.mark.parametrize("name", sinks.SINKS)
def test_every_figure_arrives_under_its_phase_and_a_resumed_run_goes_on_in_the_same(data, tmp_path, stub, name):
    table = pipeline(data, *PHASES)
    with pytest.raises(Killed):
        run.train(table, data=data, out=tmp_path / "r", log_to=[name], progress=KillAt(2))
    run.train(table, data=data, out=tmp_path / "r", log_to=[name], resume=True)
    assert stub.ended == [False, True], "a run that was killed is not called finished"
    key = "id" if name == "wandb" else "run_id"
    assert stub.begun[1][key] == (tmp_path / "r" / f"{name}.id").read_text()
    if name == "wandb":
        assert stub.begun[0]["id"] == stub.begun[1]["id"]
        assert stub.begun[0]["config"]["train"][1]["beta"] == 0.1
        assert stub.axes == {"sft/*": "sft/step", "dpo/*": "dpo/step"}
    for line in metrics.read(tmp_path / "r"):
        figures = {f"{line['phase']}/{key}": value for key, value in metrics.scalars(line) if key != "step"}
        step = f"{line['phase']}/step" if name == "wandb" else "step"
        assert {**figures, step: line["step"]} in stub.logged


def test_a_sink_that_fails_is_said_once_and_training_goes_on(data, tmp_path, stub, monkeypatch):
    def down(self, figures):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(Stub, "log", down)
    notes, progress = [], Silent()
    progress.note = notes.append
    run.train(pipeline(data, *PHASES), data=data, out=tmp_path / "r", log_to=["wandb"], progress=progress)
    said = [note for note in notes if note.startswith("wandb: no route to host")]
    assert len(said) == 1
    assert (tmp_path / "r" / "model").is_dir()


def test_a_sink_that_cannot_end_is_said_and_the_model_is_there(data, tmp_path, stub, monkeypatch):
    def down(self, *, exit_code):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(Stub, "finish", down)
    notes, progress = [], Silent()
    progress.note = notes.append
    result = run.train(pipeline(data, *PHASES), data=data, out=tmp_path / "r", log_to=["wandb"], progress=progress)
    assert result["model"] == str(tmp_path / "r" / "model")
    assert [note for note in notes if note.startswith("wandb: no route to host")]


def test_a_sink_that_cannot_begin_leaves_the_folder_free(data, tmp_path, stub, monkeypatch):
    def no_login(self, **how):
        raise PermissionError("not logged in")

    monkeypatch.setattr(Stub, "init", no_login)
    with pytest.raises(TrainError, match="--log-to wandb: cannot begin: not logged in"):
        run.train(pipeline(data, *PHASES), data=data, out=tmp_path / "r", log_to=["wandb"])
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("name", sinks.SINKS)
def test_a_missing_package_is_one_sentence(data, tmp_path, monkeypatch, capsys, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"needs the package {name}: pip install .*\[{name}\]"):
        sinks.need([name])
    assert main(["train", "demo", "--data", str(data), "--out", str(tmp_path / "r"), "--log-to", name]) == 2
    assert "pip install" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_wandb_itself_offline(data, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="needs the extra wandb")
    for name, value in {"MODE": "offline", "SILENT": "true", "API_KEY": "a" * 40}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    out = tmp_path / "r"
    run.train(pipeline(data, *PHASES), data=data, out=out, log_to=["wandb"])
    wandb.teardown()  # ends the process that writes the file
    (record,) = out.glob("wandb/offline-run-*/*.wandb")
    written = record.read_bytes()
    for text in (b"rewards/accuracies", b"pairs_per_step", (out / "wandb.id").read_bytes()):
        assert text in written
    assert b"a" * 40 not in b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())


def test_mlflow_itself_in_a_folder(data, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    out = tmp_path / "r"
    run.train(pipeline(data, *PHASES), data=data, out=out, log_to=["mlflow"])
    found = mlflow.get_run((out / "mlflow.id").read_text())
    lines = [line for line in metrics.read(out, "dpo") if "loss" in line]
    assert found.data.metrics["dpo/loss"] == lines[-1]["loss"]
    history = mlflow.MlflowClient().get_metric_history(found.info.run_id, "dpo/rewards/margins")
    assert [(p.step, p.value) for p in history] == [(line["step"], line["rewards/margins"]) for line in lines]
    assert json.loads((out / "run.json").read_text())["options"]["train"][1]["beta"] == 0.1
