"""The pictures of the documents, from what the demo left: `python docs/screenshots.py demo-output`.

Writes the reports of the demo's data set and run anew, opens them in the system's Chromium, headless, at three widths,
and leaves PNGs of at most COLOURS colours in docs/images. Parts that a picture is not about are hidden.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image  # comes with tensorboard, of prefkit[train]

IMAGES = Path(__file__).parent / "images"
WIDTHS = {1440: 1180, 768: 1180, 390: 1180}  # and heights
COLOURS = 256


def main() -> int:
    """Take all pictures; prints the size of each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("demo", type=Path, help="the folder that `make demo` wrote")
    parser.add_argument("--out", type=Path, default=IMAGES)
    given = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("screenshots: needs Chromium.", file=sys.stderr)
        return 1
    given.out.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "page.html"
        for name, folder, hidden in (
            ("data-report", "pairs", []),
            ("data-charts", "pairs", ["findings", "flow"]),
            ("training-report", "run", []),
            ("training-curves", "run", ["findings", "phase-0"]),
        ):
            report(given.demo / folder, page, hidden)
            for width, height in WIDTHS.items():
                picture = given.out / f"{name}-{width}.png"
                take(browser, page.as_uri(), picture, width, height)
                print(f"{picture.name}: {picture.stat().st_size / 1000:.0f} kB")
    return 0


def report(folder: Path, page: Path, hidden: list[str]) -> None:
    """A folder's report, without some sections; its policy would keep the style out that hides them."""
    subprocess.run(
        [sys.executable, "-m", "prefkit", "report", str(folder), "--out", str(page)], check=True, capture_output=True
    )
    if hidden:
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text("utf-8"), count=1)
        style = "".join(f"#{name} {{ display: none }}" for name in hidden) + "main > section { border: 0 }"
        page.write_text(text.replace("</head>", f"<style>{style}</style></head>", 1), "utf-8")


def take(browser: str, address: str, picture: Path, width: int, height: int) -> None:
    """A picture of the top of a page, in few colours."""
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                   "--disable-background-networking", f"--user-data-dir={profile}", "--virtual-time-budget=4000",
                   f"--window-size={width},{height}", f"--screenshot={picture.absolute()}", address]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    with Image.open(picture) as image:
        small = image.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    small.save(picture, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
