"""The commands that help one begin: `prefkit init`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.arguments import command
from prefkit.errors import UsageError

if TYPE_CHECKING:
    from prefkit.pairs.recognise import Reading

INIT_EXAMPLES = """examples:
  prefkit init ratings.csv
  prefkit init raw/ --out my.toml --recipe laptop
  prefkit init answers.jsonl --source ratings --option prompt=question --option score=judge.total
  prefkit init hf://datasets/nvidia/HelpSteer2/train.jsonl.gz

At a terminal it asks for what is missing.
"""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the parser."""
    _add_init(commands)


def _add_init(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "Look at the first rows of raw files, recognise their format, and write a pipeline file that builds pairs."
    parser = command(commands, "init", text, INIT_EXAMPLES)
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="files, folders, globs or URLs of one format")
    parser.add_argument(
        "--out", type=Path, default=Path("pipeline.toml"), metavar="FILE", help="what to write (default: pipeline.toml)"
    )
    parser.add_argument("--source", metavar="NAME", help="the format, where it is not to be recognised")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        dest="options",
        metavar="NAME=VALUE",
        help="an option of the source, such as the name of a column; without --source, of pairs, unpaired or ratings",
    )
    parser.add_argument("--recipe", metavar="NAME", help="also [model] and [[train]] of this shipped recipe")
    parser.add_argument("--model", metavar="NAME_OR_PATH", help="the model of the recipe, instead of its own")
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")
    parser.set_defaults(run=_init, interrupted="interrupted. Nothing was written.")


def _init(given: argparse.Namespace) -> int:
    from prefkit import urls
    from prefkit.manifest import write_text_atomically
    from prefkit.pairs import draft, inputs, recognise

    asks = sys.stdin.isatty() and sys.stdout.isatty()
    if given.out.exists() and not given.force:
        raise UsageError(f"{given.out}: exists. Give another --out, or replace it with --force.")
    if not given.out.absolute().parent.is_dir():
        raise UsageError(f"{given.out}: there is no folder {given.out.parent} to write it into.")
    if given.model and not given.recipe:
        raise UsageError(f"--model goes with --recipe: {', '.join(draft.recipes())}.")
    names = given.inputs or ([_ask("Raw files, a folder or a URL")] if asks else [])
    if not names:
        raise UsageError("give the raw files: prefkit init FILE …")
    (files,) = inputs.name_files([inputs.expand(names, Path())])
    options = dict(map(_option, given.options))
    shown = ", ".join(urls.shown(name) if urls.is_url(name) else name for name in names)
    reading = _recognised(lambda more: recognise.recognise(files, given.source, options | more), asks)
    print(f"{shown}: {len(files)} file{'s' * (len(files) != 1)}; {reading.summary}.")
    print(f"{reading.source}: {recognise.first_line(reading.source)}")
    if reading.options:
        print("Columns: " + ", ".join(f"{name} = {value!r}" for name, value in reading.options.items()))
    recipe, model = given.recipe, given.model
    if asks and not recipe:
        recipe = _choose("Train as well? A recipe", draft.recipes(), may_be_none=True)
        model = _ask("Model (Enter: that of the recipe)") if recipe else None
    paths = _paths(names, given.out)
    text = draft.write(reading, shown, names, paths, given.out, recipe=recipe or None, model=model or None)
    write_text_atomically(given.out, text)
    url = "" if paths else " URL"
    print(f"Written: {given.out}. Next: prefkit build-pairs {given.out}{url} --out data")
    return 0


def _recognised(recognise: Callable[[dict[str, Any]], Reading], asks: bool) -> Reading:
    """The reading; where a column must be chosen, by asking for it."""
    from prefkit.pairs.recognise import Unclear

    chosen: dict[str, Any] = {}
    while True:
        try:
            return recognise(chosen)
        except Unclear as unclear:
            if not asks:
                raise
            chosen[unclear.option] = _choose(f"Which column is the {unclear.option}?", unclear.choices)


def _option(text: str) -> tuple[str, Any]:
    from prefkit.config import parse_value

    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"--option {text}: write it as NAME=VALUE, for example score=rating.")
    return name.strip(), parse_value(value.strip())


def _paths(names: Sequence[str], out: Path) -> list[str]:
    """Inputs as the file names them, relative to its folder; none if one is a URL that holds a secret."""
    from prefkit import urls

    if any(urls.is_url(name) and urls.shown(name) != name for name in names):
        return []
    folder = out.absolute().parent
    return [name if urls.is_url(name) or os.path.isabs(name) else os.path.relpath(name, folder) for name in names]


def _ask(question: str) -> str:
    try:
        return input(f"{question}: ").strip()
    except EOFError:
        return ""


def _choose(question: str, choices: Sequence[str], *, may_be_none: bool = False) -> str:
    """One of some choices, by number or name, asked for until it is one."""
    for number, choice in enumerate(choices, 1):
        print(f"  {number}  {choice}")
    hint = " (Enter: none)" if may_be_none else ""
    while True:
        answer = _ask(f"{question}{hint}")
        if answer in choices or (may_be_none and not answer):
            return answer
        if answer.isdigit() and 0 < int(answer) <= len(choices):
            return choices[int(answer) - 1]
        if not answer:
            raise UsageError("nothing was chosen.")
        print(f"{answer}: none of them.")
