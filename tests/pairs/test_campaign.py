"""Builds that are killed, starved of disk, shut out or doubled: each time the next run ends with the right bytes.

Every build here is a process of its own with two workers, and runs the command line as a user's does. Only its start is
made cheap: the builder, too, is forked by Python's fork server, which has imported and compiled everything. A builder
reports each stage through a pipe, so that the test knows where a kill fell.
"""

from __future__ import annotations

import functools
import io
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr, suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from prefkit.cli import main
from tests.pairs.raw import dirty_lines, write_lines

STAGES = ("read", "unite", "near duplicates", "clusters", "binarize", "write", "publish", "report")
# Of the stages that are not called as the folder of their tasks is.
FOLDERS = {
    "read": ["read", "parts"],
    "near duplicates": ["similar"],
    "binarize": ["select"],
    "write": ["write", "sketches"],
}
KILLS = (*STAGES, "read", "binarize", "write", "publish", "report")  # a build's kills, in this order
MOST_BUILDS = 15
BUCKET_BYTES = 100_000  # several buckets
PIPELINE = """
[build]
language = false
chunk_bytes = 40_000
dedupe = { permutations = 12 }
split = { test = 0.2 }
shards = { pairs_per_shard = 30, row_group = 10 }
[[build.inputs]]
use = "ultrafeedback"
"""
SERVER = multiprocessing.get_context("forkserver")


# A builder, and what the test sees of it


class Builder:
    """A running build in a process group of its own."""

    def __init__(self, arguments: list[str], limit: int | None = None):
        self.events, theirs = SERVER.Pipe(duplex=False)
        self.process = SERVER.Process(target=_build, args=(arguments, theirs, limit))
        self._start()
        theirs.close()
        self.stage = ""
        self.began: dict[str, float] = {}
        self.code: int | None = None
        self.message = ""

    def _start(self) -> None:
        """Python's fork server ends if a client is killed while it asks for a process, as the last builder may have
        been; a new server takes its place as soon as it is gone."""
        for _ in range(100):
            try:
                return self.process.start()
            except (ConnectionError, EOFError):
                time.sleep(0.05)
        raise AssertionError("no fork server")

    def follow(self, until: str | None = None, seconds: float = 120) -> bool:
        """Hear of stages until one begins, or for some seconds; whether the build still goes on."""
        deadline = time.monotonic() + seconds
        try:
            while self.stage != until or until is None:
                if not self.events.poll(max(0, deadline - time.monotonic())):
                    return True
                kind, value, began = self.events.recv()
                if kind == "end":
                    self.code, self.message = value
                    return False
                self.stage, self.began[value] = value, began
        except EOFError:
            return False
        return True

    def ended(self) -> tuple[int | None, str]:
        """Wait for the end; exit code and what was said on stderr."""
        assert not self.follow(), f"still in {self.stage} after two minutes"
        self.process.join(10)
        return self.code, self.message

    def kill(self) -> bool:
        """kill -9 of builder and workers at once; whether it was still building."""
        going_on = self.follow(seconds=0)
        with suppress(ProcessLookupError):  # it may end by itself just now
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join(10)
        self.follow(seconds=0)
        return going_on and self.code is None

    def workers(self) -> list[int]:
        """Both workers, once they are there and in the builder's group."""
        while len(found := self._group()) < 2 and self.follow(seconds=0.002):
            pass
        return found

    def _group(self) -> list[int]:
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.getpgid(int(name)) == self.process.pid != int(name):
                    found.append(int(name))
            except ProcessLookupError:
                continue
        return found


def _build(arguments: list[str], events: Connection, limit: int | None) -> None:
    """The builder's process: the command line, with stages reported and workers forked."""
    from prefkit.pairs import engines, publish, steps
    from prefkit.progress import Stages

    os.setpgid(0, 0)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    def reported(name: str) -> None:
        events.send(("stage", name, time.monotonic()))

    def stage(self: Stages, name: str, total: int) -> None:
        reported(name)
        real_stage(self, name, total)

    def published(*arguments: Any) -> Any:
        reported("publish")
        return real_publish(*arguments)

    real_stage, real_publish = Stages.stage, publish.publish
    Stages.stage, publish.publish = stage, published  # type: ignore[method-assign]
    steps.BUCKET_BYTES = BUCKET_BYTES
    forkserver.ensure_running = forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]  # ours is from the parent
    multiprocessing.get_context = lambda _: SERVER  # type: ignore[assignment,return-value]
    engines._obey_parent = functools.partial(_join_group, os.getpid(), limit)  # type: ignore[assignment]
    said = io.StringIO()
    with redirect_stderr(said):
        code = main(arguments)
    events.send(("end", (code, said.getvalue().strip()), time.monotonic()))


def _join_group(leader: int, limit: int | None) -> None:
    from prefkit.pairs.engines import _obey_parent

    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        os.setpgid(0, leader)
    except PermissionError:  # the group was killed before this worker was in it
        os._exit(1)
    _obey_parent()


@pytest.fixture(scope="module", autouse=True)
def fork_server() -> Iterator[None]:
    SERVER.set_forkserver_preload(["prefkit.pairs.warm", "tests.pairs.test_campaign"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMBA_NUM_THREADS", "1")
        # Who is killed leaves semaphores behind, which Python's tracker removes, with a warning, at the very end.
        patch.setenv("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
        yield


class Case:
    """The raw data, two pipelines, and the bytes that each must end with."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.raw = write_lines(folder / "raw.jsonl", dirty_lines(140, seed=3))
        (folder / "p.toml").write_text(PIPELINE)
        self.old = self.built("old", "build.binarize.use=all_pairs")
        self.new = self.built("new")

    def command(self, out: Path, *more: str) -> list[str]:
        files = [str(self.folder / "p.toml"), str(self.raw)]
        return ["build-pairs", *files, "--out", str(out), "--workers", "2", "--overwrite", "--quiet", *more]

    def built(self, name: str, *overrides: str) -> dict[str, bytes]:
        more = [word for override in overrides for word in ("--set", override)]
        builder = Builder(self.command(self.folder / name, *more, "--keep-work"))
        assert builder.ended() == (0, ""), builder.message
        self.began = builder.began | {"end": time.monotonic()}
        return contents(self.folder / name)

    def copy_old(self, out: Path) -> Path:
        shutil.copytree(self.folder / "old", out, ignore=shutil.ignore_patterns(".work"))
        return out

    def finish(self, out: Path) -> None:
        """The next, undisturbed run puts everything right."""
        builder = Builder(self.command(out))
        assert builder.ended() == (0, "")
        assert contents(out) == self.new
        assert not (out / ".work").exists()


def contents(out: Path) -> dict[str, bytes]:
    """All files of a data set, without what a build in progress keeps beside it."""
    files = [
        path for path in sorted(out.rglob("*")) if path.is_file() and ".work" not in path.relative_to(out).parts[0]
    ]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def but_report(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files that a manifest promises; the report comes behind it."""
    return {name: content for name, content in files.items() if name != "report.html"}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory, fork_server: None) -> Case:
    return Case(tmp_path_factory.mktemp("campaign"))


# Killed


def test_killed_at_fifty_random_instants(case: Case, tmp_path: Path) -> None:
    """Kills at random instants of every stage, resumed each time; every second build replaces another data set."""
    rng = random.Random(7)
    kills: Counter[str] = Counter()
    torn: Counter[str] = Counter()
    for number in range(MOST_BUILDS):  # where a kill falls is chance, so as many builds as it takes
        if kills.total() - kills["nothing"] >= 50 and min(kills[stage] for stage in STAGES) >= 2:
            break
        out = case.copy_old(tmp_path / f"out{number}") if number % 2 else tmp_path / f"out{number}"
        for stage in sorted(KILLS, key=STAGES.index):
            at = killed_in(case, out, stage, rng)
            kills[at] += 1
            torn[at] += any(list(out.glob(f".work/{folder}/*.tmp")) for folder in FOLDERS.get(at, [at]))
            if (out / "manifest.json").exists():
                found, old, new = (but_report(files) for files in (contents(out), case.old, case.new))
                assert found in (old, new), "a manifest promises a whole data set"
        case.finish(out)
        shutil.rmtree(out)
    print(f"killed in {dict(kills)}, with unfinished tasks in {dict(torn)}")
    assert kills.total() - kills["nothing"] >= 50, kills
    assert min(kills[stage] for stage in STAGES) >= 2, kills
    assert torn.total() >= 10, "some kills must tear tasks in the middle"


def killed_in(case: Case, out: Path, stage: str, rng: random.Random) -> str:
    """Let a build run into a stage and some random while longer, and kill it; the stage that it was in."""
    following = [*STAGES, "end"][STAGES.index(stage) + 1]
    usual = case.began[following] - case.began[stage]
    builder = Builder(case.command(out))
    if builder.follow(stage):
        time.sleep(rng.random() * usual)
    return builder.stage if builder.kill() else "nothing"


@pytest.mark.parametrize("stage", ["read", "binarize"])
def test_a_worker_is_killed(case: Case, tmp_path: Path, stage: str) -> None:
    out = case.copy_old(tmp_path / "out")
    builder = Builder(case.command(out))
    assert builder.follow(stage)
    os.kill(builder.workers()[0], signal.SIGKILL)
    code, message = builder.ended()
    assert code == 0, message
    assert "killed" in message
    assert contents(out) == case.new


# No space


def prepared(case: Case, out: Path, stage: str) -> Path:
    """The old data set, with all steps of the new one done before `stage`."""
    case.copy_old(out)
    for done in STAGES[: STAGES.index(stage)]:
        for folder in FOLDERS.get(done, [done]):
            shutil.copytree(case.folder / "new" / ".work" / folder, out / ".work" / folder)
    return out


@pytest.mark.parametrize("stage", STAGES[:-1])
def test_no_file_may_grow(case: Case, tmp_path: Path, stage: str) -> None:
    """A limit on the size of files stands in for a full disk where nothing may be mounted."""
    out = prepared(case, tmp_path / "out", stage)
    builder = Builder(case.command(out), limit=100)
    code, message = builder.ended()
    assert builder.stage == stage
    assert (code, len(message.splitlines())) == (1, 1), message
    assert "too large" in message.lower() or "disk full" in message, message
    assert contents(out) == case.old
    case.finish(out)


def test_no_report_may_grow(case: Case, tmp_path: Path) -> None:
    """What goes wrong with the report costs no data set, and the next run of the same command makes it."""
    out = tmp_path / "out"
    shutil.copytree(case.folder / "new", out)
    (out / "report.html").unlink()
    command = [word for word in case.command(out) if word != "--overwrite"]
    code, message = Builder(command, limit=100).ended()
    assert (code, len(message.splitlines())) == (1, 1), message
    assert "too large" in message.lower(), message
    assert contents(out) == but_report(case.new)
    assert Builder(command).ended() == (0, "")
    assert contents(out) == case.new


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, in memory; it starts with 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


def used(disk: Path) -> int:
    state = os.statvfs(disk)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


def test_a_full_disk_at_every_stage(case: Case, disk: Path) -> None:
    """For each stage a disk that is full half-way through it."""
    out = disk / "out"
    full_in = []
    for stage in STAGES[:-1]:
        prepared(case, out, stage)
        work = case.folder / "new" / ".work"
        kept = [path for folder in FOLDERS.get(stage, [stage]) for path in (work / folder).rglob("*")]
        new_files = [case.folder / "new" / "README.md"] if stage == "publish" else kept
        need = sum(-(-path.stat().st_size // 4096) * 4096 for path in new_files if path.is_file())
        remount(disk, f"size={used(disk) + need // 8192 * 4096}")
        builder = Builder(case.command(out))
        code, message = builder.ended()
        full_in.append(builder.stage)
        assert (code, len(message.splitlines())) == (1, 1), message
        assert "No space left" in message or "disk full" in message, message
        assert contents(out) == case.old, stage
        remount(disk, "size=64m")
        case.finish(out)
        shutil.rmtree(out)
    assert full_in == list(STAGES[:-1])


# No right to write, no right to be here


def test_a_read_only_folder(case: Case, disk: Path) -> None:
    case.copy_old(disk / "out")
    (disk / "empty").mkdir()
    remount(disk, "ro")
    for out in (disk / "out", disk / "empty", disk / "new"):
        code, message = Builder(case.command(out)).ended()
        assert (code, len(message.splitlines())) == (1, 1), message
        assert str(out) in message
        assert "Read-only file system" in message
    assert contents(disk / "out") == case.old
    remount(disk, "rw")
    case.finish(disk / "out")


def test_a_finished_data_set_that_may_not_be_written_to(case: Case, disk: Path) -> None:
    """It is found as finished; what is not asked for by it, or is still to be made, is told in one sentence."""
    out = disk / "out"
    shutil.copytree(case.folder / "new", out)  # with its finished steps, which cannot be removed
    remount(disk, "ro")
    again = [word for word in case.command(out) if word != "--overwrite"]
    assert Builder(again).ended() == (0, "")
    assert contents(out) == case.new
    code, message = Builder([*again, "--limit", "5"]).ended()
    assert (code, len(message.splitlines())) == (2, 1), message
    assert "holds a finished data set of other inputs" in message
    remount(disk, "rw")
    (out / "report.html").unlink()
    remount(disk, "ro")
    code, message = Builder(again).ended()
    assert (code, len(message.splitlines())) == (1, 1), message
    assert "may not be written to. Add --no-report, or write the page elsewhere" in message
    assert Builder([*again, "--no-report"]).ended() == (0, "")
    remount(disk, "rw")


def test_two_builds_in_one_folder(case: Case, tmp_path: Path) -> None:
    out = case.copy_old(tmp_path / "out")
    first = Builder(case.command(out))
    assert first.follow("read")
    assert len(first.workers()) == 2
    os.killpg(first.process.pid, signal.SIGSTOP)
    code, message = Builder(case.command(out)).ended()
    assert (code, message) == (2, f"prefkit: {out}: another prefkit is building here.")
    os.killpg(first.process.pid, signal.SIGCONT)
    assert first.ended() == (0, "")
    assert contents(out) == case.new


def test_many_builds_start_at_once(case: Case, tmp_path: Path) -> None:
    """Of builds that race for a folder one builds, and the others refuse or find it finished."""
    out = tmp_path / "out"
    ends = [builder.ended() for builder in [Builder(case.command(out)[:-2]) for _ in range(4)]]
    print(ends)
    assert (0, "") in ends
    assert set(ends) <= {(0, ""), (2, f"prefkit: {out}: another prefkit is building here.")}
    assert contents(out) == case.new


def test_the_builders_here_are_whole_processes(case: Case) -> None:
    """The same bytes come from the command line started anew, with a server of its own."""
    out = case.folder / "anew"
    start = f"import sys; from prefkit.pairs import steps; steps.BUCKET_BYTES = {BUCKET_BYTES}; "
    start += "from prefkit.cli import main; sys.exit(main(sys.argv[1:]))"
    subprocess.run([sys.executable, "-c", start, *case.command(out)], check=True)
    assert contents(out) == case.new
