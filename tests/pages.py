"""What pages are looked at with: an outline of their elements, a real browser, and texts that try to break out."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

INJECTIONS = [
    "</script><script>document.title = 'broken in'</script>",
    "<img src=x onerror=\"document.title='broken in'\">",
    "<!--<script>", "]]>", "\u2028", '" onmouseover="document.title=1', "javascript:document.title=1", "&lt;b&gt;",
    "<svg onload=document.title='broken'>", "</title></style></main>", "\\u003cscript>", "{{7*7}}", "'sha256-",
]  # fmt: skip


class Outline(HTMLParser):
    """The elements of a page as a browser would see them, with their attributes and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.contents: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))
        if name not in ("meta", "input"):
            self.open.append(name)
            self.contents.append("")

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        if self.open[-1:] and self.open[-1] in ("script", "style"):
            self.contents[-1] += data

    def scripts(self) -> Iterator[tuple[dict[str, str | None], str]]:
        names = [(name, held) for name, held in self.elements if name not in ("meta", "input")]
        for (name, held), content in zip(names, self.contents, strict=True):
            if name in ("script", "style"):
                yield held | {"name": name}, content


def rendered(page: Path | str, profile: Path) -> str:
    """The elements of a page, by its file or address, after a real browser ran it."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    address = page if isinstance(page, str) else page.absolute().as_uri()
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
               f"--user-data-dir={profile}", "--virtual-time-budget=3000", "--dump-dom", address]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
