"""Live progress on a terminal, silence elsewhere: one bar for the current stage, with rows a second."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class Stages:
    """A context that shows the stage at work. `live=False`, or a stderr that is no terminal, shows nothing."""

    def __init__(self, *, live: bool = True):
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (live and console.is_terminal),
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, rate="")
        self._rows = 0
        self._started = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self._stage = ""

    def __enter__(self) -> Stages:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        self._bar.stop()

    def stage(self, name: str, total: int) -> None:
        """Begin a stage of `total` units of work."""
        self._close()
        self._stage, self._rows, self._started = name, 0, time.perf_counter()
        self._bar.reset(self._task, total=total, description=name, rate="")

    def advance(self, work: int, rows: int = 0) -> None:
        """Report work done, and how many rows it was where the stage counts rows."""
        self._rows += rows
        rate = self._rows / max(time.perf_counter() - self._started, 1e-9)
        self._bar.update(self._task, advance=work, rate=f"{rate:,.0f} rows/s" if self._rows else "")

    def _close(self) -> None:
        if self._stage:
            elapsed = time.perf_counter() - self._started
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + elapsed
        self._stage = ""
