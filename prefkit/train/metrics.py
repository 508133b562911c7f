"""What a run reports: one JSON object a step in RUN/metrics.jsonl, TensorBoard events, and progress for people.

Names are TRL's where TRL has the figure: `loss`, `rewards/chosen`, `rewards/rejected`, `rewards/accuracies`,
`rewards/margins`, `logps/chosen`, `logps/rejected`, `grad_norm`, `learning_rate`, `num_tokens`, and `eval_` before
each on the test split. Besides:

    logps/chosen_change                   log-probability of the chosen answer, policy minus reference, in nats
    kl                                    reference minus policy, mean of both answers, in nats: an estimate of
                                          KL(reference || policy) of a prompt's answer, unbiased as far as the data's
                                          answers are the reference's own (k1 of Schulman 2020, "Approximating KL
                                          divergence"), and else a distance from what the reference says of them
    longer/data, longer/policy            how often the longer answer is the chosen one, and how often the policy's
                                          rewards prefer it
    pairs_per_second, tokens_per_second   of this step alone, from reading its rows to the updated weights
    data_wait                             share of that time in which the first rank waited for the step's rows and
                                          packed them
    packing_efficiency                    tokens computed / (bins x max_tokens), over the bins of all ranks
    sharing_factor                        tokens of both full sequences of every pair, unpadded / tokens computed

All of them but those in `TIMING` are functions of the data, the options and the seed: a run that was killed and
resumed writes the same lines again. The log is a file that only grows; a checkpoint remembers how long it was, and
resuming cuts it back to that.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from prefkit.errors import TrainError
from prefkit.train.alarms import Alarms, Watch
from prefkit.train.files import naming
from prefkit.train.sinks import Write

TIMING = ("pairs_per_second", "tokens_per_second", "data_wait")
FILE_NAME = "metrics.jsonl"


class Log:
    """RUN/metrics.jsonl, the TensorBoard events of one phase, its alarms, and where figures go besides."""

    def __init__(
        self,
        out: Path,
        phase: str,
        *,
        length: int,
        first_step: int,
        alarms: Alarms | None = None,
        sinks: Sequence[Write] = (),
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Continue the log from `length` bytes; what stands behind was written after the checkpoint and is cut off."""
        path = out / FILE_NAME
        if length and (not path.exists() or path.stat().st_size < length):
            raise TrainError(
                f"{path}: shorter than the checkpoint says, so the run cannot go on. Choose another --out."
            )
        self._path = path
        self._phase = phase
        self._file = open(path, "ab")  # noqa: SIM115 (closed by close())
        self._file.truncate(length)
        self._events = _tensorboard(out / phase, first_step, note)
        self._sinks = sinks
        self._note = note
        self._watch = None if alarms is None else Watch(out, phase, alarms, read(out, phase))

    def write(self, step: int, figures: Mapping[str, Any]) -> None:
        """Append one line, and send every number of it to events and sinks; says what alarms find in it."""
        line = {"phase": self._phase, "step": step, **figures}
        with naming(self._path):
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
        numbers = dict(scalars(figures))
        for name, value in numbers.items() if self._events else ():
            self._events.add_scalar(name, value, step)
        for sink in self._sinks:
            sink({f"{self._phase}/{name}": value for name, value in numbers.items()}, step)
        for text in [] if self._watch is None else self._watch.see(line):
            self._note(text)

    @property
    def stopped(self) -> bool:
        """Whether an alarm has spoken that the options let end the phase."""
        return self._watch is not None and self._watch.stopped

    def length(self) -> int:
        """Bytes written so far, after making sure that they are on the disk."""
        with naming(self._path):
            os.fsync(self._file.fileno())
        if self._events:
            self._events.flush()
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()
        if self._events:
            self._events.close()


def _tensorboard(folder: Path, first_step: int, note: Callable[[str], None]) -> Any:
    """The writer of TensorBoard's events; None, which is said, where the package is not installed."""
    if find_spec("tensorboard") is None:
        note("no TensorBoard events are written, since the package tensorboard is not installed.")
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=first_step)


class NoLog:
    """The log of a rank that is not the first."""

    stopped = False

    def write(self, step: int, figures: Mapping[str, Any]) -> None:
        pass

    def length(self) -> int:
        return 0

    def close(self) -> None:
        pass


def scalars(figures: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a line, also those within tables, whose names then stand before theirs."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{before}{name}/")
        elif isinstance(value, int | float):
            yield f"{before}{name}", value


def read(out: Path, phase: str | None = None) -> list[dict[str, Any]]:
    """The lines of RUN/metrics.jsonl, of one phase or all."""
    lines = [json.loads(line) for line in (out / FILE_NAME).read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if phase in (None, line["phase"])]


class Progress(Protocol):
    """Where the stages say how far they are; `update` may be called often, `note` is for what people should read."""

    def update(self, stage: str, done: int, total: int, detail: str = "") -> None: ...

    def note(self, text: str) -> None: ...


class Silent:
    """Progress for tests and scripts: says nothing."""

    def update(self, stage: str, done: int, total: int, detail: str = "") -> None:
        pass

    def note(self, text: str) -> None:
        pass


@contextmanager
def live_progress(console: Any) -> Iterator[Progress]:
    """Progress as one live rich line a stage at work on `console`, or a line now and then if it is no terminal.

    A finished stage makes room for others: a run evaluates many times. What it found is in the notes, which stay; where
    there is no terminal each is one line.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    from prefkit.progress import Lines

    lines = Lines(console)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:

        class Live:
            def update(self, stage: str, done: int, total: int, detail: str = "") -> None:
                shown = {task.description: task for task in bars.tasks}
                for name, task in shown.items():
                    if task.finished and name != stage:
                        bars.remove_task(task.id)
                here = shown[stage].id if stage in shown else bars.add_task(stage, total=total, detail=detail)
                bars.update(here, completed=done, total=total, detail=detail)
                lines.tell(f"{stage}: {done:,} of {total:,}{', ' * bool(detail)}{detail}")

            def note(self, text: str) -> None:
                console.print(text, highlight=False, markup=False, soft_wrap=not console.is_terminal)

        yield Live()
