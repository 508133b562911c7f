"""Run tasks: pure functions from files to a folder, on anything with `concurrent.futures`' submit.

A task is named by the hash of what goes into it, and its folder appears by one rename when all its files are written.
So a task that exists is done, a task that was killed left nothing, running one twice is harmless, and every executor
gives the same bytes. Resuming is skipping what exists.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefkit.errors import DataError, PrefkitError

IN_FLIGHT = 1024


@dataclass(frozen=True)
class Task:
    """`function(folder, *arguments)` writes files into `folder`. Both must be picklable.

    `weight` is how much work it is, in the unit that the progress bar of its stage counts.
    """

    folder: Path
    function: Callable[..., None]
    arguments: tuple[Any, ...]
    weight: int = 1


def key(*parts: Any) -> str:
    """Name of a task: 24 hexadecimal digits of a hash over JSON-able parts."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def run(tasks: Sequence[Task], executor: Executor, on_done: Callable[[Task], None]) -> None:
    """Run all tasks that are not done yet; `on_done` hears of each, done before or now. Raises the first failure.

    At most IN_FLIGHT tasks are with the executor at a time, so that millions of tasks need no memory there.
    """
    waiting = iter(tasks)
    flying: dict[Future[None], Task] = {}
    try:
        while True:
            for task in waiting:
                if task.folder.is_dir():
                    on_done(task)
                    continue
                flying[executor.submit(perform, task)] = task
                if len(flying) >= IN_FLIGHT or isinstance(executor, InThisProcess):
                    break
            if not flying:
                return
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                task = flying.pop(future)
                future.result()
                on_done(task)
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process was killed, most likely because memory ran out. Run the same command again to go on "
            "from the finished tasks, with fewer --workers."
        ) from error
    finally:
        for future in flying:
            future.cancel()


def perform(task: Task) -> None:
    """Run one task into a temporary folder, flush it to disk, and give it its name."""
    temporary = task.folder.with_name(f"{task.folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        task.function(temporary, *task.arguments)
        for path in temporary.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        temporary.rename(task.folder)
    except PrefkitError:
        raise
    except OSError as error:
        if task.folder.is_dir():  # another worker finished the same task first
            return
        what = error.strerror or f"cannot be written in whole ({error}). Is the disk full?"
        raise DataError(f"{error.filename or task.folder.parent}: {what}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class InThisProcess(Executor):
    """Runs each task at once where it is submitted: one worker needs no second process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def local(workers: int) -> Iterator[Executor]:
    """An executor on this machine: this process for one worker, else a pool of spawned processes.

    Processes are spawned because polars' threads do not survive a fork; each worker computes with one thread.
    """
    if workers == 1:
        yield InThisProcess()
        return
    one_thread = dict.fromkeys(("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    saved = {name: os.environ.get(name) for name in one_thread}
    os.environ |= one_thread
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_obey_parent)
    try:
        yield pool
    except BaseException:
        _stop_now(pool)
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        os.environ |= {name: value for name, value in saved.items() if value is not None}
        for name in [name for name, value in saved.items() if value is None]:
            del os.environ[name]


def _obey_parent() -> None:
    """Leave Ctrl-C, which reaches the whole process group, to the parent; and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _stop_now(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):
        process.terminate()


def sweep(folder: Path) -> None:
    """Remove what killed tasks left behind."""
    for path in folder.glob("*/*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
