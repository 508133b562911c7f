"""Options written as a pipeline file has them: one value on a line, and all options of a run or a build for people."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

LEAST_WIDTH = 40  # characters of a line of options, however narrow the terminal


def as_toml(value: Any) -> str:
    """A value as TOML, on one line: JSON's texts and numbers are TOML's too."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {as_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_toml, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def in_words(options: Mapping[str, Any]) -> str:
    """Options one after another; those that have no value are named at the end, since TOML has no word for that."""
    written = [f"{key} = {as_toml(value)}" for key, value in options.items() if value is not None]
    without = [key for key, value in options.items() if value is None]
    return ", ".join(written) + (f"{'; ' * bool(written)}without {', '.join(without)}" if without else "")


def print_options(rows: Iterable[tuple[str, str]], console: Console) -> None:
    """Print names and what `in_words` says of each, beside each other; no line ends between a key and its value."""
    rows = list(rows)
    margin = max(len(name) for name, _ in rows) + 2
    for name, text in rows:
        held = textwrap.wrap(text.replace(" = ", "\xa0=\xa0"), max(LEAST_WIDTH, console.width - margin)) or [""]
        for number, line in enumerate(held):
            head = name if number == 0 else ""
            console.print(f"{head:<{margin}}{line}".replace("\xa0", " "), markup=False, highlight=False, soft_wrap=True)


def _key(name: str) -> str:
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else as_toml(name)
