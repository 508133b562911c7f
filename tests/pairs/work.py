"""What tasks do in the tests of the engines, and executors for them: importable by workers, and light to import."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def write(folder: Path, text: str) -> None:
    (folder / "text").write_text(text)


def refuse(folder: Path, kind: type[Exception], message: str) -> None:
    raise kind(message)


def sleep(folder: Path, seconds: float) -> None:
    (folder / f"pid {os.getpid()}").touch()
    time.sleep(seconds)


def where(folder: Path) -> None:
    """On which node of a Ray cluster this runs, and with how many threads; waits a while for a second node to begin."""
    import ray

    node, seen = ray.get_runtime_context().get_node_id(), folder.parent.parent / "nodes"
    (folder / "text").write_text(node)
    (folder / "threads").write_text(os.environ["POLARS_MAX_THREADS"])
    (seen / node).mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 3
    while len(os.listdir(seen)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)


def die_always(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die(folder: Path, marker: Path) -> None:
    """Kill this process as long as there is a marker, which goes with it."""
    _die_if(marker)


def lethal(*, marker: str) -> Any:
    """A filter that keeps everything, and kills the first worker that uses it as long as there is a marker."""
    import polars as pl

    _die_if(Path(marker))
    return pl.col("score").is_not_null()


def _die_if(marker: Path) -> None:
    with suppress(FileNotFoundError):
        if marker.read_text() != str(os.getpid()):  # the process that is named there is spared
            marker.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


def threads(workers: int = 1) -> Executor:
    return ThreadPoolExecutor(workers)


@contextmanager
def recorded(address: str = "nowhere") -> Iterator[Executor]:
    from prefkit.pairs.engines import InThisProcess

    Path(address).write_text("open")
    yield InThisProcess()
    Path(address).write_text("closed")


@contextmanager
def nobody() -> Iterator[Executor]:
    raise TimeoutError("nobody at home")
    yield


def no_executor() -> int:
    return 7
