"""Power cuts in the middle of builds, simulated: what is on the disk then, and what the next build makes of it.

    sudo python tests/benchmarks/power_cut.py --cuts 8

Builds on an ext4 in an image file, mounted through a loop device. At a random moment the image is copied (twice checked
that the device wrote nothing meanwhile): that is what a disk holds when the power goes, without the pages that the
system had not yet written. The copy is mounted, as the next boot does, and the same build is run on it. Prints, for
each cut, how many tasks were finished, how many of them had lost their content, and whether the end is the same bytes.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BUILD = """
import sys
from pathlib import Path
sys.path.insert(0, {project!r})
from prefkit.config import load_pipeline
from prefkit.pairs import engine
from prefkit.pairs.build import build_pairs
if {rebooted}:
    engine.boot = lambda: "another boot"
build_pairs(load_pipeline({pipeline!r}), Path({out!r}), given=[{raw!r}])
"""


def build(folder: Path, out: Path, rebooted: bool = False) -> "subprocess.Popen[bytes]":
    project = str(Path(__file__).parents[2])
    given = {"pipeline": str(folder / "test.toml"), "raw": str(folder / "raw.jsonl"), "out": str(out)}
    return subprocess.Popen([sys.executable, "-c", BUILD.format(project=project, rebooted=rebooted, **given)])


def contents(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.parquet")}


def sh(*command: object) -> str:
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout


def copy_at_rest(image: Path, mounted: Path, copy: Path) -> None:
    """Copy the image at a moment when the device neither writes nor has writes under way."""
    device = sh("findmnt", "-n", "-o", "SOURCE", mounted).strip().rpartition("/")[2]
    writes = Path(f"/sys/block/{device}/stat")
    while True:
        before = writes.read_text().split()
        shutil.copyfile(image, copy)
        after = writes.read_text().split()
        if before[4] == after[4] and before[8] == after[8] == "0":
            return


def cut(folder: Path, seconds: float, expected: dict[str, bytes]) -> str:
    image, copy, before, after = (folder / name for name in ("image", "copy", "before", "after"))
    with open(image, "wb") as file:
        file.truncate(400 << 20)
    sh("mkfs.ext4", "-q", "-F", image)
    sh("mount", "-o", "loop,commit=1", image, before)  # names reach the disk after a second, contents up to 30 later
    process = build(folder, before / "out")
    time.sleep(seconds)
    copy_at_rest(image, before, copy)
    process.kill()
    process.wait()
    sh("umount", before)
    sh("mount", "-o", "loop", copy, after)
    out = after / "out"
    finished = [task for task in out.glob(".work/*/*") if task.is_dir() and task.suffix != ".tmp"]
    empty = [task for task in finished if any(path.stat().st_size == 0 for path in task.iterdir())]
    whole = (out / "manifest.json").exists()
    code = build(folder, out, rebooted=True).wait()
    same = code == 0 and contents(out) == expected
    sh("umount", after)
    tasks = f"{len(finished)} tasks finished, {len(empty)} with empty files"
    return f"{seconds:5.1f} s: manifest {whole}, {tasks}; same bytes: {same}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=8)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.pairs.raw import dirty_lines, write_lines
    from tests.pairs.test_build import PIPELINE

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for mount in ("before", "after"):
            (folder / mount).mkdir()
        write_lines(folder / "raw.jsonl", dirty_lines(given.rows))
        (folder / "test.toml").write_text(PIPELINE.replace("100_000", "30_000"))
        started = time.perf_counter()
        assert build(folder, folder / "clean").wait() == 0
        seconds = time.perf_counter() - started
        rng = random.Random(given.seed)
        for _ in range(given.cuts):
            print(cut(folder, rng.uniform(1, seconds + 1), contents(folder / "clean")), flush=True)


if __name__ == "__main__":
    main()
