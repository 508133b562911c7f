"""Where tasks run: this process, processes of this machine, a Ray cluster, or any `concurrent.futures` executor.

An engine decides no byte of the result, so it is no part of a pipeline file: `prefkit build-pairs --engine`. A worker
computes with one thread; as many workers as cores are busy with different tasks.
"""

from __future__ import annotations

import inspect
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from multiprocessing import forkserver
from typing import Any

from prefkit.errors import DataError, PrefkitError, UsageError, did_you_mean, one_line
from prefkit.resolve import load

TASKS_A_WORKER = 4  # with the pool at a time: one runs, and the others bridge what it takes to find more
ONE_THREAD = dict.fromkeys(("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")


@contextmanager
def executor(engine: str = "local", workers: int | None = None, address: str | None = None) -> Iterator[Executor]:
    """What runs the tasks: "local", "ray", or a function `package.module:function` that returns an executor.

    Without `workers`, a local engine is this process, and a cluster gives all it has. A function gets `workers` and
    `address` if it has parameters of these names; what it returns is entered first if it is a context manager. Raises
    UsageError for an unknown engine, for one that does not start, and for an option that it does not take.
    """
    with ExitStack() as stack:
        try:
            running = stack.enter_context(_open(engine, workers, address))
        except PrefkitError:
            raise
        except Exception as error:  # whatever a function from outside does
            raise UsageError(f"--engine {engine}: it did not start: {one_line(error)}") from error
        if not hasattr(running, "submit"):
            raise UsageError(f"--engine {engine}: it gives {type(running).__name__}, which has no submit method.")
        yield running


def _open(engine: str, workers: int | None, address: str | None) -> AbstractContextManager[Executor]:
    if engine == "local":
        if address is not None:
            raise UsageError("--address: is for clusters; name the engine too, as in --engine ray.")
        return local(workers or 1)
    if engine == "ray":
        from prefkit.pairs import ray_engine

        return ray_engine.connect(workers, address)
    if ":" not in engine:
        raise UsageError(f'--engine: there is no "{engine}".{did_you_mean(engine, ("local", "ray"))}')
    function = load(engine)
    given = {name: value for name, value in {"workers": workers, "address": address}.items() if value is not None}
    unknown = given.keys() - inspect.signature(function).parameters.keys()
    if unknown:
        raise UsageError(f"--engine {engine}: the function has no parameter for --{min(unknown)}.")
    made = function(**given)
    return made if hasattr(made, "__enter__") else nullcontext(made)


class InThisProcess(Executor):
    """Runs each task at once where it is submitted: one worker needs no second process."""

    at_once = 1

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def local(workers: int) -> Iterator[Executor]:
    """An executor on this machine: this process for one worker, else a pool of processes, which end by themselves."""
    if workers == 1:
        yield InThisProcess()
        return
    pool = LocalPool(workers)
    try:
        yield pool
    except BaseException:
        pool.stop()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown(wait=False)  # it takes them a while to give their memory back


def prepare() -> None:
    """Start the server that `LocalPool` forks its processes from; it gets ready while this process goes on."""
    saved = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ |= ONE_THREAD
    multiprocessing.get_context("forkserver").set_forkserver_preload(["prefkit.pairs.server"])
    forkserver.ensure_running()
    os.environ |= {name: value for name, value in saved.items() if value is not None}
    for name in [name for name, value in saved.items() if value is None]:
        del os.environ[name]


class LocalPool(Executor):
    """Processes of this machine, forked from a server that has imported all they need but runs no threads.

    They are not forked from this process, because polars' threads do not survive that.
    """

    def __init__(self, workers: int):
        self.workers = workers
        self.at_once = workers * TASKS_A_WORKER
        prepare()
        server = multiprocessing.get_context("forkserver")
        self._pool = ProcessPoolExecutor(workers, mp_context=server, initializer=_obey_parent)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._pool.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._pool.shutdown(wait, cancel_futures=cancel_futures)

    def stop(self) -> None:
        """End the processes now, in the middle of their tasks."""
        for process in self._processes():
            process.kill()

    def go_on_with_fewer(self) -> None:
        """After a process was killed: half as many new ones, and a line on stderr. DataError where that is no help."""
        processes = self._processes()
        self.stop()  # the pool has told them to end; one that was just starting has been seen to live on
        self.shutdown()
        if any((process.exitcode or 0) > 0 for process in processes):
            raise DataError(
                "a worker process could not start; its own error stands above. "
                'In a script, build_pairs with workers wants to be called under: if __name__ == "__main__":'
            )
        if self.workers == 1:
            raise DataError(
                "a worker process was killed, most likely because memory ran out, also when it was the only one. "
                "Run the same command again to go on from the finished tasks, with more memory or smaller chunk_bytes."
            )
        fewer = self.workers // 2
        print(
            f"prefkit: a worker process was killed, most likely because memory ran out; going on with {fewer} of "
            f"{self.workers} workers.",
            file=sys.stderr,
        )
        LocalPool.__init__(self, fewer)

    def _processes(self) -> list[Any]:
        return list((self._pool._processes or {}).values())


def _obey_parent() -> None:
    """Leave Ctrl-C, which reaches the whole process group, to the parent; and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
