"""Run tasks: pure functions from files to a folder, on anything with `concurrent.futures`' submit.

A task is named by the hash of what goes into it, and its folder appears by one rename when all its files are written.
So a task that exists is done, a task that was killed left nothing, running one twice is harmless, and every executor
(see `engines`) gives the same bytes. Resuming is skipping what exists.

Two things can go wrong between machines, and are noticed: a worker with other software (it refuses), and a folder that
not all of them see (one sentence says so).

A killed process loses nothing that it wrote; a machine that loses power loses what the system had not yet brought to
the disk, though the renamed folder may be there. Waiting for the disk after each task costs a tenth of a build on a
fast disk and much more on a slow one (docs/scaling.md), for files that are mostly removed before they would get there.
So tasks on this machine are not flushed in the first minute of a step; they note the boot of the system that made them
instead, and `sweep` removes those of another boot. What took longer, and what other machines made, is flushed before it
counts; what stays (the files of the data set) before its step ends, while other tasks run.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import itertools
import json
import os
import platform
import secrets
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from prefkit.errors import DataError, UsageError
from prefkit.pairs import software
from prefkit.pairs.engines import InThisProcess, LocalPool

IN_FLIGHT = 1024
WAIT_SECONDS = 0.5
UNFLUSHED_SECONDS = 60
UNFLUSHED = "unflushed"  # the file in a task's folder that says so
FLUSHERS = 2  # threads
PATIENCE_SECONDS = 30.0  # until a folder that another machine made must be seen here

Item = TypeVar("Item")


@dataclass(frozen=True)
class Task:
    """`function(folder, *arguments)` writes files into `folder`. Both must be picklable.

    `weight` is how much work it is, in the unit that the progress bar of its stage counts. The files of a task with
    `lasting` become files of the data set, and have reached the disk when its step ends.
    """

    folder: Path
    function: Callable[..., None]
    arguments: tuple[Any, ...]
    weight: int = 1
    lasting: bool = False


class RunTasks(Protocol):
    """Runs the tasks of a step by its name; `total` is their weight where they are not known beforehand."""

    def __call__(self, name: str, tasks: Iterable[Task], total: int | None = None) -> None: ...


def key(*parts: Any) -> str:
    """Name of a task: 24 hexadecimal digits of a hash over JSON-able parts."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def counts(folder: Path) -> Any:
    """What a finished task counted: its counts.json."""
    return json.loads((folder / "counts.json").read_text())


def run(tasks: Iterable[Task], executor: Executor, on_done: Callable[[Task], None]) -> None:
    """Run all tasks that are not done yet; `on_done` hears of each, done before or now. Raises the first failure.

    Tasks are taken one by one, while earlier ones run, so finding the next one may be work. At most IN_FLIGHT are with
    the executor at a time, so that millions of tasks need no memory there; those of this machine say by `at_once` how
    many they want, since what was found long before it is read may have left the page cache. When a worker process of
    this machine is killed, the unfinished tasks are run again by fewer.
    """
    coming = iter(tasks)
    left: dict[int, Task] = {}  # what was taken and is not done
    with _flushing() as flush:

        def finished(task: Task) -> None:
            if task.lasting:
                flush(task.folder)
            on_done(task)

        while True:
            try:
                return _run(coming, left, executor, finished)
            except BrokenExecutor as error:
                if not isinstance(executor, LocalPool):
                    raise DataError(
                        f"a worker was lost ({error}). Run the same command again to go on from the finished tasks."
                    ) from error
                executor.go_on_with_fewer()
                coming = itertools.chain(list(left.values()), coming)
                left.clear()


def _run(coming: Iterator[Task], left: dict[int, Task], executor: Executor, on_done: Callable[[Task], None]) -> None:
    """Run the tasks that come, and note in `left` which were taken and are not done."""
    here = isinstance(executor, InThisProcess | LocalPool)
    work = functools.partial(
        perform, made_with=software.fingerprint(), flush_from=time.time() + UNFLUSHED_SECONDS if here else 0.0
    )
    made: set[Path] = set()
    flying: dict[Future[None], Task] = {}
    at_once = getattr(executor, "at_once", IN_FLIGHT)
    more = True
    try:
        while more or flying:
            task = next(coming, None) if more and len(flying) < at_once else None
            if task is None:
                more = more and len(flying) >= at_once
            elif task.folder.is_dir():
                on_done(task)
            else:
                if task.folder.parent not in made:  # here and not by workers, which would make one that nobody sees
                    task.folder.parent.mkdir(parents=True, exist_ok=True)
                    made.add(task.folder.parent)
                left[id(task)] = task
                flying[executor.submit(work, task)] = task
            # polars' handler of Ctrl-C does not wake a thread that waits without an end
            for future in wait(flying, 0 if task else WAIT_SECONDS, FIRST_COMPLETED).done:
                future.result()
                done = flying.pop(future)
                _see(done.folder)
                del left[id(done)]
                on_done(done)
    finally:
        for future in flying:
            future.cancel()


@contextmanager
def _flushing() -> Iterator[Callable[[Path], None]]:
    """A function that brings a finished task's files to the disk, in a thread; all are there at the end."""
    with ThreadPoolExecutor(FLUSHERS) as threads:
        flushed: list[Future[None]] = []
        yield lambda folder: flushed.append(threads.submit(_flush, folder))
        for future in flushed:
            result(future)


def _flush(folder: Path) -> None:
    """Bring the files of a finished task to the disk, if they are not there."""
    if (folder / UNFLUSHED).exists():
        try:
            _to_disk(folder)
            (folder / UNFLUSHED).unlink()
        except OSError as error:
            raise DataError(_sentence(error, folder)) from error


def _to_disk(folder: Path) -> None:
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def _see(folder: Path) -> None:
    """Wait until a finished task's folder is here: a network file system may show what another machine did late."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not folder.is_dir():
        if time.monotonic() > deadline:
            raise DataError(
                f"{folder}: a worker finished it, but {platform.node()} does not see it. "
                "Every worker must see the inputs and the output under the same path, on one shared file system."
            )
        os.listdir(folder.parent)  # an NFS client asks the server again when a folder is opened
        time.sleep(0.1)


def ahead(items: Iterable[Item], count: int) -> Iterator[Item]:
    """The same items, up to `count` of them made by a thread before they are asked for; none may be None."""
    source = iter(items)
    with ThreadPoolExecutor(1) as thread:
        coming = deque(thread.submit(next, source, None) for _ in range(count))
        try:
            while (item := result(coming.popleft())) is not None:
                coming.append(thread.submit(next, source, None))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)


def result(future: Future[Item]) -> Item:
    """What a future gives, waited for so that Ctrl-C ends it."""
    while not wait([future], WAIT_SECONDS).done:
        pass
    return future.result()


def perform(task: Task, *, made_with: str, flush_from: float) -> None:
    """Run one task into a temporary folder, and give that its name.

    It is flushed to the disk first if the clock shows `flush_from` or later. UsageError where the software is not the
    one that `made_with` is the fingerprint of.
    """
    if made_with != software.fingerprint():
        raise UsageError(
            f"{platform.node()} has another prefkit, Python or library than the machine that started the build: "
            f"{software.versions()}. Install the same versions on all."
        )
    temporary = task.folder.with_name(f"{task.folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir()
        task.function(temporary, *task.arguments)
        if time.time() >= flush_from or not boot():
            _to_disk(temporary)
        else:
            (temporary / UNFLUSHED).write_text(boot())
        temporary.rename(task.folder)
    except MemoryError as error:
        raise DataError("memory ran out. Run the same command again with fewer --workers to go on.") from error
    except OSError as error:
        if task.folder.is_dir():  # another worker finished the same task first
            return
        raise DataError(_sentence(error, task.folder.parent)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sentence(error: OSError, folder: Path) -> str:
    if isinstance(error, FileNotFoundError):
        return (
            f"{error.filename}: does not exist on {platform.node()}. Was it removed? "
            "Every worker must see the inputs and the output under the same path."
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):  # pyarrow says it in words of its own
        said = os.strerror(error.errno)
        return f"{folder}: {said}. Make room, and run the same command again to go on from the finished steps."
    return f"{error.filename or folder}: {error.strerror or f'cannot be written in whole ({error}). Is the disk full?'}"


@functools.cache
def boot() -> str:
    """Identity of this run of the operating system, from its start to its end; empty where it has none."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def sweep(work: Path) -> None:
    """Remove what killed tasks left behind, and what a machine that went down may not have brought to the disk."""
    for path in work.glob("*/*.tmp"):
        remove(path)
    for path in work.glob(f"*/*/{UNFLUSHED}"):
        if path.read_text() != boot():
            remove(path.parent)


def remove(folder: Path) -> None:
    """Remove a task's folder, by one rename first: what is half removed counts as nothing, and a worker that outlived
    its build can no longer finish it."""
    with suppress(FileNotFoundError):
        doomed = folder.rename(folder.with_name(f"{secrets.token_hex(8)}.tmp"))
        shutil.rmtree(doomed, ignore_errors=True)
