"""How does a training run survive kill -9? Kill it in the midst of its calls that change files; count what resumes.

    python tests/benchmarks/crash_campaign.py                   # at every such call of a run of two phases
    python tests/benchmarks/crash_campaign.py --a-stage 12      # at so many of each stage, and no others

The run is that of tests/train/test_campaign.py (SFT, then DPO with a cached reference, evaluations, samples and a
checkpoint a step; one process on a CPU), which kills at 20 calls and 10 random times. Each kill is a SIGKILL of a
forked process; the run is then resumed in another one, and its model, its figures, alarms and samples are compared with
those of a run that nobody disturbed, bit by bit. What is printed: calls of each stage, kills, and how many of them
ended with the same bits.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

from tests.train import test_campaign as campaign


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--a-stage", type=int, help="kills in each stage (default: at every call)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = campaign.made(folder / "d")
        calls = campaign.by_stage(undisturbed(data, folder))
        expected = campaign.results(folder / "whole")
        print(f"{'stage':12}{'calls':>8}{'kills':>8}{'same bits':>12}{'seconds':>10}")
        for stage in campaign.STAGES:
            begun, chosen = time.monotonic(), calls[stage]
            if given.a_stage is not None:
                chosen = random.Random(stage).sample(chosen, min(given.a_stage, len(chosen)))
            same = sum(survives(data, folder / "r", at, expected) for at in chosen)
            seconds = time.monotonic() - begun
            print(f"{stage:12}{len(calls[stage]):8}{len(chosen):8}{same:12}{seconds:10.0f}", flush=True)


def undisturbed(data: Path, folder: Path) -> list[str]:
    """Train without a kill; returns the stage of each call."""

    def task() -> None:
        seen: list[str] = []
        campaign.watched(seen)
        campaign.train(data, folder / "whole")
        (folder / "seen.json").write_text(json.dumps(seen))

    assert campaign.ended(campaign.forked(task)) == 0
    return json.loads((folder / "seen.json").read_text())


def survives(data: Path, out: Path, at: int, expected: dict[str, object]) -> bool:
    """Whether a run that is killed in the midst of call `at` and resumed leaves what is expected."""

    def task() -> None:
        campaign.watched([], at)
        campaign.train(data, out)

    assert campaign.ended(campaign.forked(task)) == -signal.SIGKILL
    try:
        same = campaign.finished(data, out) == expected
    except AssertionError as error:
        print(f"call {at}: {error}")
        same = False
    shutil.rmtree(out)
    if not same:
        print(f"call {at}: other bits")
    return same


if __name__ == "__main__":
    main()
