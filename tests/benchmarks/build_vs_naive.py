"""The whole of `prefkit build-pairs` against the job as one would write it with datasets, datasketch and fastText.

    python tests/benchmarks/build_vs_naive.py RAW.jsonl --peer NAIVE.py [--workers 2] [--repeats 3] [--python PLAIN]
    python tests/benchmarks/build_vs_naive.py SMALL.jsonl LARGE.jsonl          # how time and memory grow

RAW is UltraFeedback-shaped JSONL. NAIVE is any script that does the same job as `NAIVE.py RAW OUT --procs N`. All run
in turn as processes of their own, start-up included, each after its input was read into the page cache; medians,
their ratio, and the median of the ratios of the rounds. Memory is looked at in one round more, which is not timed,
since looking takes a core: the peak of the sum over a process and its children, every 200 ms, of the memory that is
theirs alone (USS), so that mapped files do not count twice.

PLAIN is the Python of an environment that holds prefkit and what it needs, as a user's who builds pairs. In a
developer's, each process also imports scipy: numba looks whether it is there.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil


def run(command: list[str], watch: bool = False) -> dict[str, Any]:
    """Wall seconds, the last line of output, and if watched the peak memory of the process tree in MiB."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0
    while watch and process.poll() is None:
        peak = max(peak, memory(process.pid))
        time.sleep(0.2)
    output = process.communicate()[0]
    seconds = time.perf_counter() - started
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return {"seconds": seconds, "peak_mib": peak / 2**20, "last": (output.strip().splitlines() or [""])[-1]}


def memory(pid: int) -> int:
    total = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            total += process.memory_full_info().uss
    except psutil.NoSuchProcess:
        pass
    return total


Runs = dict[tuple[str, Path], list[dict[str, Any]]]  # of each program and input


def measured(commands: dict[tuple[str, Path], list[str]], out: Path, repeats: int) -> Runs:
    """Timed runs of all commands in turn, since a machine's speed drifts, and then one of each that is watched."""
    runs: Runs = {what: [] for what in commands}
    for number in range(repeats + 1):
        for (name, raw), command in commands.items():
            shutil.rmtree(out, ignore_errors=True)
            with open(raw, "rb") as file:
                while file.read(1 << 24):
                    pass
            runs[name, raw].append(run([*command, str(out)], watch=number == repeats))
    shutil.rmtree(out)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path, nargs="+")
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-report", action="store_true", help="without report.html, which the naive job has not")
    parser.add_argument("--python", default=sys.executable, help="that runs prefkit (default: this one)")
    parser.add_argument("--pipeline", default="ultrafeedback")
    parser.add_argument("--scratch", type=Path, help="where to write (default: a temporary folder)")
    given = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(dir=given.scratch))
    how = ["--workers", str(given.workers), *["--no-report"] * given.no_report]
    commands: dict[tuple[str, Path], list[str]] = {}
    for raw in given.raw:
        ours = [given.python, "-m", "prefkit", "build-pairs", given.pipeline, str(raw), *how, "--out"]
        commands["prefkit", raw] = ours
        if given.peer:
            commands["naive", raw] = [sys.executable, str(given.peer), "--procs", str(given.workers), str(raw)]
    runs = measured(commands, scratch / "out", given.repeats)
    scratch.rmdir()
    first = given.raw[0]
    for name, raw in runs:
        report(raw, name, runs[name, raw])
        if name == "naive":
            compare("naive against prefkit", runs["naive", raw], runs["prefkit", raw])
        elif raw != first:
            larger = raw.stat().st_size / first.stat().st_size
            compare(f"{raw.name} against {first.name}, {larger:.1f} times as large", runs[name, raw], runs[name, first])


def compare(what: str, slow: list[dict[str, Any]], fast: list[dict[str, Any]]) -> None:
    """The ratio of the medians, and those of the rounds: where they fall on two sides of an aim, it is not shown."""
    ratios = [one["seconds"] / other["seconds"] for one, other in zip(slow[:-1], fast[:-1], strict=True)]
    shown = ", ".join(f"{ratio:.1f}" for ratio in ratios)
    of_medians = median(slow) / median(fast)
    print(
        f"{what}: ratio of medians {of_medians:.1f}, of the rounds {statistics.median(ratios):.1f}, median of [{shown}]"
    )


def median(runs: list[dict[str, Any]]) -> float:
    return statistics.median(one["seconds"] for one in runs[:-1])


def report(raw: Path, name: str, runs: list[dict[str, Any]]) -> None:
    seconds = ", ".join(f"{one['seconds']:.1f}" for one in runs[:-1])
    print(f"{name}: {raw.name}, {raw.stat().st_size / 1e6:,.0f} MB: median {median(runs):.1f} s of [{seconds}]")
    print(f"  peak {runs[-1]['peak_mib']:,.0f} MiB; said: {runs[-1]['last']}", flush=True)


if __name__ == "__main__":
    main()
