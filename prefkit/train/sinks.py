"""Where figures go besides RUN: Weights & Biases, MLflow. Each is an optional package, imported when it is asked for.

    prefkit train … --log-to wandb --log-to mlflow        # pip install '.[wandb,mlflow]'

A sink is a context that yields `write(figures, step)`. Project, server and credentials come from where the package
itself looks for them (`wandb login`, WANDB_PROJECT, WANDB_MODE=offline; MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME);
prefkit reads none of them, and gives the package nothing but the run's checked options and its figures; what the
package adds of the machine (W&B: host, system metrics) is its own, and switched off there. The id of the run is kept in
RUN/<sink>.id, so that a resumed run goes on in the same one. What a sink cannot write never ends the training: it is
said once, and RUN/metrics.jsonl has every figure.
"""

from __future__ import annotations

import importlib
import re
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from prefkit.errors import TrainError, UsageError, one_line
from prefkit.extras import install

SINKS = ("wandb", "mlflow")
Figures = Mapping[str, float]
Write = Callable[[Figures, int], None]
Note = Callable[[str], None]


def need(names: Sequence[str]) -> None:
    """UsageError for a sink whose package is missing; called before anything begins."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UsageError(f"--log-to {name} needs the package {name}: {install(name)}.") from error


@contextmanager
def opened(names: Sequence[str], out: Path, options: Mapping[str, Any], note: Note) -> Iterator[list[Write]]:
    """All sinks that are asked for, by name."""
    with ExitStack() as stack:
        yield [stack.enter_context(_cautious(name, out, options, note)) for name in names]


@contextmanager
def _cautious(name: str, out: Path, options: Mapping[str, Any], note: Note) -> Iterator[Write]:
    """A sink that is left alone after its first failure, which is said."""
    try:
        entered = {"wandb": _wandb, "mlflow": _mlflow}[name](out, options)
        write = entered.__enter__()
    except Exception as error:  # no login, no such server: whatever the package raises
        raise TrainError(f"--log-to {name}: cannot begin: {one_line(error)}") from error
    failed = False

    def once(figures: Figures, step: int) -> None:
        nonlocal failed
        if failed:
            return
        try:
            write(figures, step)
        except Exception as error:
            failed = True
            note(f"{name}: {one_line(error)} No more figures go there; {out / 'metrics.jsonl'} has all of them.")

    try:
        yield once
    finally:
        try:
            entered.__exit__(*sys.exc_info())  # so that the run of a training that failed is not called finished
        except Exception as error:
            note(f"{name}: {one_line(error)} The last figures may not have arrived; {out / 'metrics.jsonl'} has all.")


@contextmanager
def _wandb(out: Path, options: Mapping[str, Any]) -> Iterator[Write]:
    """A run of Weights & Biases; each phase has its own axis of steps, since wandb's own never goes back."""
    import wandb

    file = out / "wandb.id"
    if not file.exists():
        file.write_text(uuid.uuid4().hex)
    settings = wandb.Settings(console="off", save_code=False, disable_git=True)
    run = wandb.init(
        id=file.read_text(), name=out.name, dir=str(out), config=dict(options), resume="allow", settings=settings
    )
    for phase in options["train"]:
        run.define_metric(f"{phase['name']}/*", step_metric=f"{phase['name']}/step")
    code = 1
    try:
        yield lambda figures, step: run.log({**figures, f"{next(iter(figures)).split('/')[0]}/step": step})
        code = 0
    finally:
        run.finish(exit_code=code)


@contextmanager
def _mlflow(out: Path, options: Mapping[str, Any]) -> Iterator[Write]:
    """A run of MLflow."""
    import mlflow

    file = out / "mlflow.id"
    known = file.read_text() if file.exists() else None
    with mlflow.start_run(run_id=known, run_name=None if known else out.name) as run:
        file.write_text(run.info.run_id)
        if known is None:
            mlflow.log_dict(dict(options), "options.json")
        yield lambda figures, step: mlflow.log_metrics(
            {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in figures.items()}, step=step
        )
