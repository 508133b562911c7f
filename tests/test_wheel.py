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

    def run(*arguments: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout

    installed = run("-c", "import prefkit; print(prefkit.__file__)")
    assert installed.startswith(str(tmp_path)), "the installed package, not the checkout, is what is tested"
    run("-m", "prefkit", "build-pairs", "demo", "--out", "out", "--limit", "300")
    assert "whole" in run("-m", "prefkit", "verify", "out")
    assert run("-m", "prefkit", "report", "out").split() == [str(Path("out") / "report.html")]
    browser = "import pathlib; from prefkit import manifest; from prefkit.pairs.view import page"
    assert "view.js" in run("-c", f"{browser}; print(*page.assets(manifest.read(pathlib.Path('out'))))")
