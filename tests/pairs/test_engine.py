"""Tasks and what runs them: the same bytes everywhere, and whatever dies, the rest goes on or one sentence says why."""

from __future__ import annotations

import errno
import importlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from prefkit.errors import DataError, UsageError
from prefkit.pairs import engine, engines, ray_engine, software
from prefkit.pairs.build import build_pairs
from prefkit.pairs.engine import Task
from prefkit.pairs.engines import InThisProcess, LocalPool
from prefkit.pairs.verify import verify
from tests.conftest import PROJECT
from tests.pairs.raw import dirty_lines, write_lines
from tests.pairs.test_build import PIPELINE, contents, pipeline
from tests.pairs.work import die, die_always, refuse, sleep, where, write

WORK = "tests.pairs.work"


def tasks_of(folder: Path, count: int, function: Callable[..., None] = write, *arguments: Any) -> list[Task]:
    """`count` tasks; those of `write` write their number."""
    given = [(str(i),) if function is write else arguments for i in range(count)]
    return [Task(folder / "step" / engine.key(i), function, given[i]) for i in range(count)]


def run_all(tasks: list[Task], executor: Executor) -> list[str]:
    heard: list[Task] = []
    engine.run(tasks, executor, heard.append)
    assert sorted(task.folder.name for task in heard) == sorted(task.folder.name for task in tasks)
    return [(task.folder / "text").read_text() for task in tasks]


# Running


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_runs_once_and_is_heard_of(tmp_path: Path, workers: int) -> None:
    tasks = tasks_of(tmp_path, 20)
    with engines.executor("local", workers) as executor:
        assert run_all(tasks, executor) == [str(i) for i in range(20)]
        times = {task.folder: task.folder.stat().st_mtime_ns for task in tasks}
        (tasks[3].folder / "text").unlink()
        for path in tasks[3].folder.iterdir():
            path.unlink()
        tasks[3].folder.rmdir()
        run_all(tasks, executor)
    assert [folder for folder, at in times.items() if folder.stat().st_mtime_ns != at] == [tasks[3].folder]
    assert not list(tmp_path.glob("**/*.tmp"))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", [DataError, UsageError, ZeroDivisionError])
def test_an_error_arrives_as_it_was_raised(tmp_path: Path, workers: int, kind: type[Exception]) -> None:
    tasks = [*tasks_of(tmp_path, 3), Task(tmp_path / "bad" / "x", refuse, (kind, "what: how to mend it."))]
    with pytest.raises(kind) as caught, engines.executor("local", workers) as executor:
        engine.run(tasks, executor, lambda task: None)
    assert type(caught.value) is kind
    assert str(caught.value) == "what: how to mend it."
    assert not list((tmp_path / "bad").iterdir()), "others may be stopped in the middle, and are swept by the next run"


def test_memory_that_runs_out_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"memory ran out. Run the same command again with fewer --workers"):
        engine.run(tasks_of(tmp_path, 1, refuse, MemoryError, "no"), InThisProcess(), print)


@pytest.mark.parametrize("wanted", [None, 5])
def test_few_tasks_are_with_the_executor_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: int | None
) -> None:
    class Lazy(Executor):
        most = 0
        limit = wanted or 7

        def __init__(self) -> None:
            self.queue: list[tuple[Future[Any], Callable[..., Any], Any]] = []

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            self.queue.append((future, fn, args))
            self.most = max(self.most, len(self.queue))
            if len(self.queue) >= self.limit:
                while self.queue:
                    one, function, given = self.queue.pop()
                    one.set_result(function(*given))
            return future

    monkeypatch.setattr(engine, "IN_FLIGHT", 7)
    lazy = Lazy()
    if wanted:
        lazy.at_once = wanted  # type: ignore[attr-defined]
    assert len(run_all(tasks_of(tmp_path, 70), lazy)) == 70
    assert lazy.most == lazy.limit


def test_a_worker_with_other_software_refuses(tmp_path: Path) -> None:
    (task,) = tasks_of(tmp_path, 1)
    with pytest.raises(UsageError, match=r"another prefkit.*'polars'.*Install the same"):
        engine.perform(task, made_with="something else", flush_from=0)
    assert not task.folder.exists()


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    (task,) = tasks_of(tmp_path / "elsewhere", 1)
    with pytest.raises(DataError, match=r"does not exist on .*under the same path"):
        engine.perform(task, made_with=software.fingerprint(), flush_from=0)
    assert not (tmp_path / "elsewhere").exists(), "a worker makes no folder that nobody else sees"


def test_a_finished_folder_that_is_not_seen_here_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere(Executor):
        """Finishes tasks where nobody sees it; after a while, the first becomes visible."""

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_result(None)
            late.start()
            return future

    first, second = tasks_of(tmp_path, 2)
    late = threading.Timer(0.3, first.folder.mkdir)
    engine.run([first], Elsewhere(), lambda task: None)
    monkeypatch.setattr(engine, "PATIENCE_SECONDS", 0.2)
    late = threading.Timer(0, list)
    with pytest.raises(DataError, match="one shared file system"):
        engine.run([second], Elsewhere(), lambda task: None)


# What is on the disk, and what is left behind


def test_only_what_lasts_is_flushed_within_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda file: flushed.append(os.readlink(f"/proc/self/fd/{file}")))
    step, lasting = Task(tmp_path / "a" / "x", write, ("1",)), Task(tmp_path / "b" / "x", write, ("2",), lasting=True)
    engine.run([step, lasting], InThisProcess(), lambda task: None)
    assert {Path(path).parent for path in flushed} == {lasting.folder}
    flushed.clear()
    (lasting.folder / engine.UNFLUSHED).write_text(engine.boot())
    engine.run([lasting], InThisProcess(), lambda task: None)
    assert flushed, "also one that a killed run finished and did not get to flush"
    flushed.clear()
    assert (step.folder / engine.UNFLUSHED).exists()
    assert not (lasting.folder / engine.UNFLUSHED).exists()
    monkeypatch.setattr(engine, "UNFLUSHED_SECONDS", 0)
    late = Task(tmp_path / "a" / "late", write, ("3",))
    engine.run([late], InThisProcess(), lambda task: None)
    assert flushed, "a task that ends after the first minute is flushed too"
    assert not (late.folder / engine.UNFLUSHED).exists()


def test_a_disk_that_takes_no_more_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"No space left on device\. Make room, and run the same command again"):
        engine.run([Task(tmp_path / "a" / "x", write, ("1",), lasting=True)], InThisProcess(), lambda task: None)


def test_other_machines_flush(tmp_path: Path) -> None:
    tasks = tasks_of(tmp_path, 2)
    with engines.executor("concurrent.futures:ThreadPoolExecutor") as executor:
        run_all(tasks, executor)
    assert not list(tmp_path.glob(f"**/{engine.UNFLUSHED}"))


def test_after_another_boot_what_was_not_flushed_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = tasks_of(tmp_path, 3)
    run_all(tasks, InThisProcess())
    engine.sweep(tmp_path)
    assert all(task.folder.exists() for task in tasks), "the same boot: a killed process loses nothing"
    (tasks[0].folder / engine.UNFLUSHED).unlink()  # this one was flushed
    (tasks[1].folder / engine.UNFLUSHED).write_text("")  # and of this one, not even that reached the disk
    monkeypatch.setattr(engine, "boot", lambda: "another")
    engine.sweep(tmp_path)
    assert [path.name for path in (tmp_path / "step").iterdir()] == [tasks[0].folder.name]


def test_a_worker_that_outlives_its_build_finishes_nothing(tmp_path: Path) -> None:
    def swept(folder: Path) -> None:
        (folder / "one").write_text("1")
        engine.sweep(tmp_path)
        assert not folder.exists()

    task = Task(tmp_path / "step" / "x", swept, ())
    task.folder.parent.mkdir()
    with pytest.raises(DataError):
        engine.perform(task, made_with=software.fingerprint(), flush_from=0)
    assert list(task.folder.parent.iterdir()) == []


# Processes of this machine


def test_a_killed_process_is_replaced_by_fewer(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    marker = tmp_path / "marker"
    marker.touch()
    tasks = [*tasks_of(tmp_path, 10), Task(tmp_path / "step" / "deadly", die, (marker,))]
    heard: list[Task] = []
    with engines.local(3) as executor:
        engine.run(tasks, executor, heard.append)
        assert isinstance(executor, LocalPool)
        assert executor.workers == 1
    assert len(heard) == 11
    assert not marker.exists()
    assert "going on with 1 of 3 workers" in capfd.readouterr().err


def test_a_task_that_a_broken_pool_refuses_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool may break between two submissions: what was taken then is run again as well."""
    submitted = itertools.count()

    def submit(self: LocalPool, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        if next(submitted) == 2:
            raise BrokenExecutor("a process was killed")
        return InThisProcess().submit(fn, *args)

    monkeypatch.setattr(LocalPool, "submit", submit)
    monkeypatch.setattr(LocalPool, "go_on_with_fewer", lambda self: None)
    with engines.executor("local", 2) as executor:
        assert run_all(tasks_of(tmp_path, 5), executor) == [str(number) for number in range(5)]


def test_when_the_last_one_is_killed_too_a_sentence_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(DataError, match=r"when it was the only one. Run the same command again"),
        engines.local(2) as executor,
    ):
        engine.run(tasks_of(tmp_path, 3, die_always), executor, lambda task: None)
    assert capfd.readouterr().err.count("going on with") == 1


SCRIPT = """
import sys
from pathlib import Path
from prefkit.pairs import engine, engines
from prefkit.pairs.engine import Task
from tests.pairs.work import sleep
{guard}
    with engines.executor({engine!r}, {workers}, {address!r}) as executor:
        tasks = [Task(Path(sys.argv[1]) / "step" / str(i), sleep, (300,)) for i in range(4)]
        engine.run(tasks, executor, print)
"""


def start(folder: Path, guard: str = 'if __name__ == "__main__":', **given: Any) -> subprocess.Popen[str]:
    script = folder / "script.py"
    script.write_text(SCRIPT.format(guard=guard, **({"engine": "local", "workers": 2, "address": None} | given)))
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    command = [sys.executable, str(script), str(folder)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_a_script_without_a_main_guard_is_told(tmp_path: Path) -> None:
    process = start(tmp_path, guard="if True:")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "could not start" in said.splitlines()[-1]
    assert "__main__" in said.splitlines()[-1]
    until(lambda: not alive(process.pid))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_parent(tmp_path: Path, how: signal.Signals) -> None:
    process = start(tmp_path)
    until(lambda: len(list(tmp_path.glob("step/*.tmp/pid*"))) == 2)
    assert len(alive(process.pid)) >= 3
    (os.killpg if how is signal.SIGINT else os.kill)(process.pid, how)  # Ctrl-C reaches the whole group
    process.communicate(timeout=20)
    until(lambda: not alive(process.pid))
    engine.sweep(tmp_path)
    assert list((tmp_path / "step").iterdir()) == []


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)


def alive(session: int) -> list[int]:
    """The processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, of_session = path.read_text().rpartition(")")[2].split()[:4]
            if int(of_session) == session and state != "Z":
                found.append(int(path.parent.name))
    return found


# Any executor


def test_a_function_from_outside_gives_the_executor(tmp_path: Path) -> None:
    with engines.executor(f"{WORK}:threads", workers=3) as executor:
        assert executor._max_workers == 3  # type: ignore[attr-defined]
        run_all(tasks_of(tmp_path, 5), executor)
    note = tmp_path / "note"
    with engines.executor(f"{WORK}:recorded", address=str(note)) as executor:
        assert note.read_text() == "open"
        run_all(tasks_of(tmp_path / "other", 5), executor)
    assert note.read_text() == "closed"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("rays",), 'there is no "rays". Did you mean "ray"'),
        (("local", 2, "auto"), "--address: is for clusters"),
        ((f"{WORK}:threads", None, "auto"), "no parameter for --address"),
        ((f"{WORK}:recorded", 2), "no parameter for --workers"),
        ((f"{WORK}:nothing_there",), 'no function "nothing_there"'),
        ((f"{WORK}:no_executor",), "int, which has no submit"),
        ((f"{WORK}:nobody",), "did not start: nobody at home"),
        (("ray", 2, "auto"), "the cluster decides"),
        (("ray", None, "somewhere"), "write \"auto\", HOST:PORT"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_told_at_once(given: tuple[Any, ...], message: str) -> None:
    if given[0] == "ray":
        need_ray()
    with pytest.raises(UsageError, match=message), engines.executor(*given):
        raise AssertionError


# Clusters


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("raw") / "raw.jsonl", dirty_lines(150))


def text_with(marker: Path) -> str:
    """The pipeline, in several parts, and with a filter that kills the first worker while there is a marker."""
    return PIPELINE.replace("chunk_bytes = 100_000", "chunk_bytes = 40_000").replace(
        "[build.dedupe]", f'[[build.filters]]\nuse = "{WORK}:lethal"\nmarker = "{marker}"\n[build.dedupe]'
    )


def build(folder: Path, raw: Path, marker: Path, **given: Any) -> dict[str, bytes]:
    build_pairs(pipeline(folder, text=text_with(marker)), folder / "out", given=[str(raw)], **given)
    assert verify(folder / "out") == []
    return contents(folder / "out")


@pytest.fixture(scope="module")
def expected(raw: Path, marker: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return build(tmp_path_factory.mktemp("local"), raw, marker)


@pytest.fixture(scope="module")
def marker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("marker") / "marker"


def test_a_build_survives_a_killed_process(
    raw: Path, expected: dict[str, bytes], marker: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    marker.write_text(str(os.getpid()))  # whose process is spared: it makes the filter too, to check it
    assert build(tmp_path, raw, marker, workers=2) == expected
    assert not marker.exists()
    assert "going on with 1 of 2 workers" in capfd.readouterr().err


def test_dask_gives_the_same_bytes(
    raw: Path, expected: dict[str, bytes], marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import distributed

    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    (example,) = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "scaling.md").read_text(), flags=re.DOTALL)
    (tmp_path / "my_cluster.py").write_text(example)
    monkeypatch.syspath_prepend(str(tmp_path))
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster:
        given = {"engine": "my_cluster:dask", "address": cluster.scheduler_address}
        marker.write_text(str(os.getpid()))
        assert build(tmp_path / "killed", raw, marker, **given) == expected
        assert not marker.exists()
        with pytest.raises(DataError, match=r"^what: how to mend it.$"), engines.executor(**given) as executor:
            engine.run(tasks_of(tmp_path, 1, refuse, DataError, "what: how to mend it."), executor, print)


def need_ray() -> None:
    pytest.importorskip("ray", reason="needs the extra: pip install 'prefkit[ray]'")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one CPU each on this machine: each its own raylet, object store and workers."""
    need_ray()
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(PROJECT))
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        made.add_node(num_cpus=1)
        yield made
        made.shutdown()


def test_two_ray_nodes_give_the_same_bytes(
    cluster: Any, raw: Path, expected: dict[str, bytes], marker: Path, tmp_path: Path
) -> None:
    given = {"engine": "ray", "address": cluster.address}
    assert build(tmp_path / "first", raw, marker, **given) == expected
    marker.write_text(str(os.getpid()))
    assert build(tmp_path / "killed", raw, marker, **given) == expected
    assert not marker.exists(), "a worker was killed in the middle of a task"


def test_both_ray_nodes_work_with_one_thread_a_task(cluster: Any, tmp_path: Path) -> None:
    with engines.executor("ray", address=cluster.address) as executor:
        assert len(set(run_all(tasks_of(tmp_path, 20, where), executor))) == 2
    assert {path.read_text() for path in tmp_path.glob("step/*/threads")} == {"1"}


def test_ray_brings_errors_as_they_were_raised(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here.py").write_text("def function(folder):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    only_here = importlib.import_module("only_here").function
    with engines.executor("ray", address=cluster.address) as executor:
        for kind in (DataError, UsageError):
            with pytest.raises(kind) as caught:
                engine.run(tasks_of(tmp_path, 1, refuse, kind, "what: how to mend it."), executor, print)
            assert type(caught.value) is kind
            assert str(caught.value) == "what: how to mend it."
        with pytest.raises(ZeroDivisionError, match=r"in refuse(.|\n)*a mistake of ours"):  # the worker's traceback
            engine.run(tasks_of(tmp_path, 1, refuse, ZeroDivisionError, "a mistake of ours"), executor, print)
        with pytest.raises(UsageError, match=r"No module named 'only_here'.*Every node needs"):
            engine.run(tasks_of(tmp_path, 1, only_here), executor, print)


def test_a_task_that_always_kills_its_ray_worker_is_given_up(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "RETRIES", 1)
    with (
        pytest.raises(DataError, match=r"Ray gave up a task.*Run the same command again"),
        engines.executor("ray", address=cluster.address) as executor,
    ):
        engine.run(tasks_of(tmp_path, 1, die_always), executor, lambda task: None)


def test_a_lost_ray_node_is_made_up_for(cluster: Any, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=1)
    tasks = tasks_of(tmp_path, 12, sleep, 0.7)
    done: list[Task] = []

    def lose_a_node(task: Task) -> None:
        done.append(task)
        if len(done) == 3:
            cluster.remove_node(node, allow_graceful=False)

    with engines.executor("ray", address=cluster.address) as executor:
        engine.run(tasks, executor, lose_a_node)
    assert len(done) == 12


def test_ctrl_c_ends_the_tasks_on_ray(cluster: Any, tmp_path: Path) -> None:
    process = start(tmp_path, engine="ray", workers=None, address=cluster.address)
    until(lambda: len(list(tmp_path.glob("step/*.tmp/pid*"))) == 2)
    pids = [int(path.name.split()[1]) for path in tmp_path.glob("step/*.tmp/pid*")]
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in said
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_a_cluster_that_does_not_answer_is_told_soon() -> None:
    need_ray()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        for prefix in ("", "ray://"):
            address = f"{prefix}127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(UsageError, match="no Ray cluster answers"), engines.executor("ray", address=address):
                raise AssertionError


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"Ray is not installed: pip install .*\[ray\]"), engines.executor("ray"):
        raise AssertionError


def test_ray_starts_on_this_machine_and_is_silent(raw: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    need_ray()
    pipeline(tmp_path, text=text_with(tmp_path / "no marker"))
    command = [sys.executable, "-m", "prefkit", "build-pairs", str(tmp_path / "test.toml"), str(raw), "--quiet"]
    command += ["--out", str(tmp_path / "out"), "--engine", "ray", "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, start_new_session=True, cwd=PROJECT)
    assert (done.stdout, done.stderr) == ("", "")
    assert {name: data for name, data in contents(tmp_path / "out").items() if name.startswith("data/")} == {
        name: data for name, data in expected.items() if name.startswith("data/")
    }
