"""Live progress: on a terminal one bar for the current stage, with rows a second; in a log a line now and then."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

BETWEEN_LINES = 30.0  # seconds


class Lines:
    """Where no terminal shows a bar, a line every half minute: in a log, silence looks like a hang."""

    def __init__(self, console: Console):
        self._console = console
        self._due = time.monotonic() + BETWEEN_LINES

    def tell(self, text: str) -> None:
        """Print the line, if one is due."""
        if not self._console.is_terminal and time.monotonic() >= self._due:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)
            self._due = time.monotonic() + BETWEEN_LINES


class Stages:
    """A context that shows the stage at work, unless it is not `live`."""

    def __init__(self, *, live: bool = True):
        console = Console(stderr=True)
        self._lines = Lines(console) if live else None
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
        shown = f"{rate:,.0f} rows/s" if self._rows else ""
        self._bar.update(self._task, advance=work, rate=shown)
        if self._lines:
            share = self._bar.tasks[0].percentage
            self._lines.tell(f"{self._stage}: {share:.0f} %{', ' * bool(shown)}{shown}")

    def _close(self) -> None:
        if self._stage:
            elapsed = time.perf_counter() - self._started
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + elapsed
        self._stage = ""
