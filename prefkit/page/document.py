"""A page in one file that nothing outside can reach: its style, its script and its data stand in it.

Its Content-Security-Policy allows the page's own style and script, named by their SHA-256, and nothing else: no other
script, no address to load from or to send to. Data that the script shows stands in a JSON block with every `<`
escaped; `texts.js`, which is part of every page, shows it with `textContent` alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from prefkit.page.html import Html, tag


class Finding(NamedTuple):
    """A sentence; `look` if it asks for a decision, else it only tells."""

    look: bool
    text: str


def document(
    title: str, *body: Any, style: str = "", script: str = "", data: Any = None, connects: bool = False
) -> str:
    """A whole HTML file of what stands in its body; `style` and `script` are added to what all pages have.

    The script finds `data`, if there is any, in the element of that id. A page that `connects` may ask the server that
    it came from.
    """
    style, script = Html(read(__package__, "page.css") + style), Html(read(__package__, "texts.js") + script)
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    ) + ("; connect-src 'self'" if connects else "")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", style),
    )
    whole = tag(
        "body",
        *body,
        None if data is None else tag("script", data_block(data), type="application/json", id="data"),
        tag("script", script),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, whole, lang='en')}\n"


def read(package: str, name: str) -> str:
    """A style or script that comes with a package."""
    return (files(package) / name).read_text("utf-8")


def data_block(data: Any) -> Html:
    """JSON that no text can leave: without `<`, there is neither a closing tag nor a comment in it."""
    return Html(json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def nav(sections: Sequence[tuple[str, str]]) -> Html:
    """Links to the sections of a page, by their ids and names."""
    return tag("nav", *(tag("a", name, href=f"#{at}") for at, name in sections), aria_label="Sections")


def section(name: str, title: str, *children: Any) -> Html:
    """A section of a page, with its heading; `name` is its id."""
    return tag("section", tag("h2", title, id=f"{name}-title"), *children, id=name, aria_labelledby=f"{name}-title")


def findings(found: Sequence[Finding], note: str) -> Html:
    """What a report says in words, first of all; `note` is about its figures."""
    items = [
        tag("li", tag("strong", "Look: ") if one.look else None, one.text, class_="look" if one.look else None)
        for one in found
    ]
    return section("findings", "Findings", tag("ul", *items, class_="findings"), tag("p", note, class_="quiet"))
