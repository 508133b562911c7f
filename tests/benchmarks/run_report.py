"""What the report of a long run costs: `python tests/benchmarks/run_report.py --steps 100000`.

Writes a log as the trainer writes it, with evaluations and slices, and prints the time of reading and drawing, the size
of the page, and the time of a look of `--watch` after ten more steps.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from prefkit import runs
from prefkit.page.serve import Request
from prefkit.runs.watch import Watch
from tests.runs.made import eval_line, step_line, write_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100_000)
    steps = parser.parse_args().steps
    rng = random.Random(0)
    names = ("source", [f"source {number}" for number in range(8)]), ("length", ["alike", "chosen longer"])
    table = {
        column: {value: {"pairs": 100, "rewards/accuracies": 0.8, "rewards/margins": 1.0} for value in values}
        for column, values in names
    }
    lines = []
    for step in range(1, steps + 1):
        lines.append(step_line("dpo", step, rng, **({} if step % 20 else {"slices": table})))
        if step % 500 == 0:
            lines.append(eval_line("dpo", step, 0.8, eval_slices=table))
    with tempfile.TemporaryDirectory() as folder:
        out = write_run(Path(folder) / "r", lines, finished=False, planned=steps + 10)
        log = out / "metrics.jsonl"
        print(f"{steps:,} steps, {log.stat().st_size / 1e6:.0f} MB of metrics")
        del lines
        started = time.process_time()
        path = runs.write([out])
        print(f"report: {time.process_time() - started:.2f} s of CPU, page {path.stat().st_size / 1e6:.2f} MB")
        watch = Watch([out])
        watch.answer(Request("GET", "", {}, b""))
        with open(log, "a") as file:
            file.writelines(json.dumps(step_line("dpo", step, rng)) + "\n" for step in range(steps + 1, steps + 11))
        started = time.process_time()
        watch.answer(Request("GET", "", {}, b""))
        print(f"a look after ten more steps: {time.process_time() - started:.2f} s of CPU")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"peak memory: {peak:.2f} GB, with the making of the log")


if __name__ == "__main__":
    main()
