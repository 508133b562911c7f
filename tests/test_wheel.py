"""The wheel holds the pipelines and the demo's data, and works from any folder with nothing of the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.conftest import PROJECT


def test_the_wheel_builds_the_demo_pairs_by_itself(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    subprocess.run([*command, str(PROJECT)], check=True)
    (wheel,) = tmp_path.glob("prefkit-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    where = subprocess.run(
        [sys.executable, "-c", "import prefkit; print(prefkit.__file__)"],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")}, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(tmp_path)), "the installed package, not the checkout, is what is tested"
    for arguments in (["build-pairs", "demo", "--out", "out", "--limit", "300"], ["verify", "out"]):
        subprocess.run(
            [sys.executable, "-m", "prefkit", *arguments],
            env=os.environ | {"PYTHONPATH": str(tmp_path / "site")}, cwd=tmp_path, check=True,
        )  # fmt: skip
