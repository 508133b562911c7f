"""CPU seconds of each step of `prefkit build-pairs`, by one worker, beside the floor of each on this machine.

    python tests/benchmarks/build_steps.py RAW.jsonl [--pipeline ultrafeedback] [--repeats 3]
    python tests/benchmarks/build_steps.py RAW.jsonl --memory 64 256

The build runs in this process, with one thread. Floors are the work that no program which gives the same files could
leave out, done alone by the library that does it: SHA-256 of the input, decoding its rows with msgspec, zstd of the
shards.

With `--memory`, in place of seconds: the memory that is a process's own (USS, looked at every 20 ms) at its peak in
each step, beyond what it had before the build, with buckets of about so many MiB of candidates; and f of
docs/scaling.md, by which the peak grows with the bucket: the difference of both over that of their buckets.
"""

from __future__ import annotations

import os

os.environ |= dict.fromkeys(("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")

import argparse
import hashlib
import json
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from prefkit.config import load_pipeline
from prefkit.pairs import steps, warm  # noqa: F401  (`warm`: what a worker has loaded before its first task)
from prefkit.pairs.build import build_pairs
from prefkit.pairs.sources.ultrafeedback import Row
from prefkit.progress import Stages


class Clock(Stages):
    """Notes the CPU seconds between the beginnings of stages."""

    def __init__(self) -> None:
        super().__init__(live=False)
        self.spent: dict[str, float] = defaultdict(float)
        self.now, self.since = "start", time.process_time()

    def stage(self, name: str, total: int) -> None:
        self.spent[self.now] += time.process_time() - self.since
        self.now, self.since = name, time.process_time()
        super().stage(name, total)


def spent(raw: Path, pipeline: str, out: Path) -> dict[str, float]:
    """CPU seconds of each step."""
    clock = Clock()
    build_pairs(load_pipeline(pipeline), out, given=[str(raw)], workers=1, progress=clock)
    clock.stage("end", 0)
    return clock.spent


class Watch(Stages):
    """Notes the peak of this process's own memory in each stage, in bytes beyond what it has now."""

    def __init__(self) -> None:
        super().__init__(live=False)
        self.peaks: dict[str, int] = defaultdict(int)
        self.now = "start"
        self._process = psutil.Process()
        self._before = self._process.memory_full_info().uss
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            used = self._process.memory_full_info().uss - self._before
            self.peaks[self.now] = max(self.peaks[self.now], used)
            time.sleep(0.02)

    def stage(self, name: str, total: int) -> None:
        self.now = name
        super().stage(name, total)


def memory(raw: Path, pipeline: str, out: Path, bucket_mib: int) -> tuple[float, dict[str, int]]:
    """Bytes of candidates a bucket, and the peak memory of each step."""
    steps.BUCKET_BYTES = bucket_mib << 20
    watch = Watch()
    build_pairs(load_pipeline(pipeline), out, given=[str(raw)], workers=1, progress=watch, keep_work=True)
    peaks = dict(watch.peaks)
    candidates = sum(json.loads(path.read_text())["bytes"] for path in (out / ".work/read").glob("*/counts.json"))
    return candidates / len(list((out / ".work/unite").iterdir())), peaks


def compare_memory(raw: Path, pipeline: str, scratch: Path, bucket_mib: Sequence[int]) -> None:
    """Print the peaks with small and with large buckets, each in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        (small, low), (large, high) = (
            processes.submit(memory, raw, pipeline, scratch / str(size), size).result() for size in bucket_mib
        )
    print(f"{'bucket of':16} {small / 2**20:6,.0f} {large / 2**20:6,.0f} MiB {'f':>6}")
    for name in low:
        slope = f"{(high[name] - low[name]) / (large - small):10.1f}" if name in ("unite", "binarize") else ""
        print(f"{name:16} {low[name] / 2**20:6,.0f} {high[name] / 2**20:6,.0f} {slope}")


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def floors(raw: Path, out: Path) -> dict[str, float]:
    """CPU seconds of what cannot be left out, by step."""

    def sha256() -> None:
        with open(raw, "rb") as file:
            hashlib.file_digest(file, "sha256")

    def decode() -> None:
        decoder = msgspec.json.Decoder(Row)
        with open(raw, "rb") as file:
            for line in file:
                decoder.decode(line)

    texts = [
        side.combine_chunks().flatten().field("content").buffers()[-1]
        for path in sorted((out / "data").glob("*.parquet"))
        for side in pq.read_table(path, columns=["prompt", "chosen", "rejected"]).columns
    ]
    zstd = pa.Codec("zstd", 1)
    compress = seconds(lambda: [zstd.compress(text) for text in texts])
    return {"read": seconds(sha256) + seconds(decode), "write": compress}


def compare_seconds(raw: Path, pipeline: str, scratch: Path, repeats: int) -> None:
    """Print the CPU seconds of each step beside its floor."""
    runs = [spent(raw, pipeline, scratch / str(number)) for number in range(repeats)]
    floor = floors(raw, scratch / "0")
    print(f"{'step':16} {'CPU s':>6} {'floor':>6}")
    for name in runs[0]:
        median = statistics.median(run[name] for run in runs)
        print(f"{name:16} {median:6.2f} " + (f"{floor[name]:6.2f}" if name in floor else ""))
    print(f"{'all':16} {statistics.median(sum(run.values()) for run in runs):6.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path, help="UltraFeedback-shaped JSONL")
    parser.add_argument("--pipeline", default="ultrafeedback")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs=2, metavar="MIB", help="measure memory, with buckets of two sizes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if given.memory:
            compare_memory(given.raw, given.pipeline, Path(scratch), given.memory)
        else:
            compare_seconds(given.raw, given.pipeline, Path(scratch), given.repeats)


if __name__ == "__main__":
    main()
