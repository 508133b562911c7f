"""CPU seconds of each step of `prefkit build-pairs`, by one worker, beside the floor of each on this machine.

    python tests/benchmarks/build_steps.py RAW.jsonl [--pipeline ultrafeedback] [--repeats 3]

The build runs in this process, with one thread. Floors are the work that no program which gives the same files could
leave out, done alone by the library that does it: SHA-256 of the input, decoding its rows with msgspec, zstd of the
shards.
"""

from __future__ import annotations

import os

os.environ |= dict.fromkeys(("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")

import argparse
import hashlib
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from prefkit.config import load_pipeline
from prefkit.pairs import warm  # noqa: F401  (what a worker has loaded before its first task)
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


def steps(raw: Path, pipeline: str, out: Path) -> dict[str, float]:
    clock = Clock()
    build_pairs(load_pipeline(pipeline), out, given=[str(raw)], workers=1, progress=clock)
    clock.stage("end", 0)
    return clock.spent


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path, help="UltraFeedback-shaped JSONL")
    parser.add_argument("--pipeline", default="ultrafeedback")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        runs = [steps(given.raw, given.pipeline, out / str(number)) for number in range(given.repeats)]
        floor = floors(given.raw, out / "0")
    print(f"{'step':16} {'CPU s':>6} {'floor':>6}")
    for name in runs[0]:
        spent = statistics.median(run[name] for run in runs)
        print(f"{name:16} {spent:6.2f} " + (f"{floor[name]:6.2f}" if name in floor else ""))
    print(f"{'all':16} {statistics.median(sum(run.values()) for run in runs):6.2f}")


if __name__ == "__main__":
    main()
