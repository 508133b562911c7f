"""HTML and SVG that is escaped by construction: whatever is not made by `tag` stands in the page as text."""

from __future__ import annotations

from html import escape
from typing import Any

VOID = {"meta", "input", "link"}


class Html(str):
    """Text that is HTML already."""


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element. A child that is no Html is escaped; `class_` and `data_x` are written class and data-x; None and
    False leave a child or an attribute out, and True gives an attribute without a value."""
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    written = "".join(
        f" {key}" if value is True else f' {key}="{escape(str(value))}"'
        for key, value in given.items()
        if value is not None and value is not False
    )
    if name in VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: Any) -> Html:
    """Several children, one after another."""
    shown = (child for child in children if child is not None and child is not False)
    return Html("".join(child if isinstance(child, Html) else escape(str(child)) for child in shown))
