"""Tasks on a Ray cluster: each is a Ray task of one CPU, behind the face of a `concurrent.futures` executor.

Tasks pass files and not values, so Ray's object store stays empty, and every node must see the inputs and the output
under the same path. A task whose worker or node is lost is run again by Ray, up to three times; that is harmless,
because a task's folder appears whole or not at all. A worker process is kept for many tasks, so the models that it has
loaded stay loaded.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

from prefkit.errors import DataError, PrefkitError, UsageError, one_line
from prefkit.extras import install
from prefkit.pairs.engines import ONE_THREAD

RETRIES = 3
CONNECT_SECONDS = 10


@contextmanager
def connect(workers: int | None, address: str | None) -> Iterator[Executor]:
    """An executor on the Ray cluster at `address`: "auto" (one that runs on this machine), HOST:PORT or ray://HOST:PORT.

    Without an address (and without RAY_ADDRESS in the environment), Ray is started on this machine, with `workers`
    CPUs, and ends with the context. A cluster that was there before, or a connection that the caller has, stays.
    Raises UsageError where no cluster answers.
    """
    if importlib.util.find_spec("ray") is None:
        raise UsageError(f"--engine ray: Ray is not installed: {install('ray')}.")
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address != "local":
        if workers is not None:
            raise UsageError("--workers: the cluster decides how many; leave it out, or leave out --address.")
        _look_for(address)
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # else Ray tries for a quarter of an hour
    import ray

    if ray.is_initialized():
        yield RayExecutor()
        return
    try:
        ray.init(
            address,
            num_cpus=workers if address == "local" else None,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"--engine ray: no connection to {address}: {one_line(error)}. HOST:PORT is the port of Ray itself, often "
            "6379; its port for clients, often 10001, is written ray://HOST:PORT."
        ) from error
    try:
        yield RayExecutor()
    finally:
        ray.shutdown()


def _look_for(address: str) -> None:
    """UsageError unless something answers at a HOST:PORT."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdecimal():
        raise UsageError(
            f'--address {address}: write "auto", HOST:PORT (Ray\'s own port, often 6379) or ray://HOST:PORT.'
        )
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"--address {address}: no Ray cluster answers there ({one_line(error)}).") from error


class RayExecutor(Executor):
    """Submits to the Ray cluster that this process is connected to."""

    def __init__(self) -> None:
        import ray

        self._cancel = ray.cancel
        self._call = ray.remote(_call).options(num_cpus=1, max_retries=RETRIES, runtime_env={"env_vars": ONE_THREAD})

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        reference = self._call.remote(fn, args, kwargs)
        future: Future[Any] = Future()

        def arrive(done: Future[Any]) -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(done.result())
                except BaseException as error:
                    future.set_exception(_plain(error))

        def depart(cancelled: Future[Any]) -> None:
            if cancelled.cancelled():
                self._cancel(reference, force=True)

        reference.future().add_done_callback(arrive)
        future.add_done_callback(depart)
        return future


def _call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return function(*args, **kwargs)


def _plain(error: BaseException) -> BaseException:
    """An error of a task as the task raised it, and one of the cluster as a DataError."""
    from ray.exceptions import RayError, RayTaskError

    if isinstance(error, RayTaskError) and isinstance(error.cause, RayError):  # it did not even begin
        what = str(error.cause).partition("\n")[0]
        return UsageError(f"a Ray worker cannot take a task: {what}. Every node needs prefkit, and functions of yours.")
    if isinstance(error, RayTaskError):
        return error.cause if isinstance(error.cause, PrefkitError) else error
    if isinstance(error, RayError):
        return DataError(
            f"Ray gave up a task: {one_line(error)} Run the same command again to go on from the finished tasks."
        )
    return error
