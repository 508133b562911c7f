"""The command line: where a command is chosen, and the one place where errors become messages.

Nothing heavy is imported before a command is chosen, so that `--help` answers at once. Exit codes: 0 done, 1 failed,
2 the command line or a pipeline file is wrong, 130 interrupted.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import sys
from collections.abc import Sequence

import prefkit
from prefkit import cli_begin, cli_pairs, cli_report, cli_train
from prefkit.arguments import EMPTY, Parser, fail
from prefkit.errors import PrefkitError

EXAMPLES = """examples:
  prefkit doctor                                what works on this machine
  prefkit init raw/ --out my.toml               a pipeline file for your ratings
  prefkit build-pairs my.toml --out data        preference pairs
  prefkit report data --open                    to look at them
  prefkit train laptop --data data --out run    an aligned model

prefkit COMMAND --help tells more, with examples.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    atexit.register(gc.freeze)  # the interpreter ends without a last look for garbage through all objects
    parser = make_parser()
    given, left = parser.parse_known_args(arguments)
    if given.command == "build-pairs" and not any(argument.startswith("-") for argument in left):
        if not all(map(str.strip, left)):
            given.parser.error(f"argument INPUT: {EMPTY}")
        given.inputs += left  # argparse itself takes no INPUT behind the options
    elif left:
        given.parser.error(f"unrecognized arguments: {' '.join(left)}")
    try:
        return int(given.run(given) or 0)
    except PrefkitError as error:
        return fail(str(error), error.exit_code)
    except KeyboardInterrupt as stop:
        return fail(str(stop) or given.interrupted, 130)
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return fail(f"{error.filename or getattr(given, 'out', None) or given.command}: {error.strerror or error}.", 1)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser: argparse.ArgumentParser = Parser(
        prog="prefkit",
        description="Raw ratings of language-model answers in, preference pairs and an aligned model out.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"prefkit {prefkit.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    cli_begin.add_commands(commands)
    cli_pairs.add_commands(commands)
    cli_train.add_commands(commands)
    cli_report.add_commands(commands)
    for each in commands.choices.values():
        each.set_defaults(parser=each)
    return parser
