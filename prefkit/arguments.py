"""What several commands share: arguments, and how they fail."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from prefkit.errors import did_you_mean

EMPTY = "is empty. Is a variable of the shell that was to stand here not set?"


class Parser(argparse.ArgumentParser):
    """A parser whose errors name what may have been meant, and where to read more.

    Options are written out: half a name would be another one's as soon as a command gets a second that begins so.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Print usage and the message, and exit with 2."""
        wrong = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        if wrong:
            hint = did_you_mean(wrong[1], [choice.strip("' ") for choice in wrong[2].split(",")])
            message = f'{message[: wrong.start()]}there is no "{wrong[1]}".{hint}'
        unknown = re.fullmatch(r"unrecognized arguments: (-\S*?)(=.*| .*)?", message)
        if unknown:
            options = [name for action in self._actions for name in action.option_strings]
            message = f"unknown option {unknown[1]}.{did_you_mean(unknown[1], options)}"
        elif message.startswith("unrecognized arguments: "):
            message += ". Quote a value that has spaces: --set 'train.dpo.lora={ r = 16 }'."
        super().error(f"{message}{'' if message.endswith(('?', '.')) else '.'} More: {self.prog} --help")


def command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, epilog: str
) -> argparse.ArgumentParser:
    """A command with its help text, which ends with examples. No text or path that it is given may be empty."""
    parser = commands.add_parser(
        name, help=text, description=text, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.register("type", None, not_empty)
    parser.register("type", Path, lambda given: Path(not_empty(given)))
    return parser


def not_empty(text: str) -> str:
    """A text that says something; an empty one is mostly a variable of the shell that is not set."""
    if not text.strip():
        raise argparse.ArgumentTypeError(EMPTY)
    return text


def at_least(least: int) -> Callable[[str], int]:
    """What reads a whole number that is not less."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {value}")
        return value

    return number


positive, not_negative = at_least(1), at_least(0)


def above_zero(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, not {value}")
    return value


above_zero.__name__ = "number"


def share(text: str) -> float:
    """A number of at least 0 and below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, not {value}")
    return value


share.__name__ = "number"


def add_pipeline(parser: argparse.ArgumentParser) -> None:
    """PIPELINE and --set."""
    parser.add_argument("pipeline", metavar="PIPELINE", help="a TOML file, or the name of a shipped pipeline")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY.PATH=VALUE",
        help="override one option of the pipeline file; list entries go by name, use or index (repeatable)",
    )


def as_json(value: Any) -> str:
    """What a command prints as JSON. Numbers that JSON has not (NaN, infinity) are null in it."""
    return json.dumps(_finite(value), indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def fail(message: str, code: int) -> int:
    """Print a sentence to stderr; returns the exit code."""
    print(f"prefkit: {' '.join(message.split())}", file=sys.stderr)
    return code
