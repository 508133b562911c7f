"""What the report of a data set costs: `python tests/benchmarks/data_report.py OUT --times 20`.

`--times` stands for a data set so many times as large: one in which each shard of OUT is listed and read so often. CPU
and memory are of a process that has imported all that a build has.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import tempfile
import time
from pathlib import Path

import prefkit.pairs.build  # noqa: F401
from prefkit import manifest
from prefkit.pairs import report


def main() -> None:
    """Write the report of OUT, or of its multiple, into a scratch folder, and print what that took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, metavar="OUT", help="a finished data set")
    parser.add_argument("--times", type=int, default=1)
    given = parser.parse_args()
    record = manifest.read(given.data)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in ("data", "rejects"):
            (folder / name).symlink_to((given.data / name).absolute())
        (folder / "manifest.json").write_text(
            manifest.dump(dataclasses.replace(record, shards=record.shards * given.times))
        )
        before = memory()
        started, cpu = time.perf_counter(), time.process_time()
        page = report.write(folder)
        print(
            f"{given.times * (record.rows('train') + record.rows('test')):,} {record.kind}: "
            f"{time.process_time() - cpu:.2f} s of CPU, {time.perf_counter() - started:.2f} s, peak memory "
            f"{memory():.2f} GiB ({before:.2f} before), page {page.stat().st_size / 1e6:.2f} MB"
        )


def memory() -> float:
    """Peak memory of this process, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
