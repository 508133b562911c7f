"""The pictures of the documents, from what the demo left: `python docs/screenshots.py demo-output`.

Writes the reports of the demo's data set and run anew and serves the data set, opens them in the system's Chromium,
headless, at three widths, and leaves PNGs of at most COLOURS colours in docs/images. Parts of a report that a picture
is not about are hidden.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image  # comes with tensorboard, of prefkit[train]

IMAGES = Path(__file__).parent / "images"
WIDTHS, HEIGHT = (1440, 768, 390), 1180
PAIR = 9  # that the browser shows
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
            take(browser, page.as_uri(), given.out / name)
    with viewed(given.demo / "pairs") as address:
        take(browser, f"{address}#row={PAIR}", given.out / "browser")
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


@contextmanager
def viewed(data: Path) -> Iterator[str]:
    """The address at which `prefkit view` serves a data set."""
    command = [sys.executable, "-m", "prefkit", "view", str(data)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().rpartition(" ")[2].strip()
        server.terminate()


def take(browser: str, address: str, name: Path) -> None:
    """Pictures of the top of a page at each width, in few colours."""
    for width in WIDTHS:
        picture = name.with_name(f"{name.name}-{width}.png").absolute()
        with tempfile.TemporaryDirectory() as profile:
            command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                       "--disable-background-networking", f"--user-data-dir={profile}", "--virtual-time-budget=4000",
                       f"--window-size={width},{HEIGHT}", f"--screenshot={picture}", address]  # fmt: skip
            subprocess.run(command, check=True, capture_output=True, timeout=120)
        with Image.open(picture) as image:
            small = image.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        small.save(picture, optimize=True)
        print(f"{picture.name}: {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
