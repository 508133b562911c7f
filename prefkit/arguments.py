"""What several commands share: arguments, and how they fail."""

from __future__ import annotations

import argparse
import sys


def command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, epilog: str = ""
) -> argparse.ArgumentParser:
    """A command with its help text."""
    return commands.add_parser(
        name, help=text, description=text, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


positive.__name__ = "number"


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


def fail(message: str, code: int) -> int:
    """Print a sentence to stderr; returns the exit code."""
    print(f"prefkit: {' '.join(message.split())}", file=sys.stderr)
    return code
