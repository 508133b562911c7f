"""The commands that help one begin: `prefkit init | doctor | completion`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefkit.arguments import as_json, command
from prefkit.errors import UsageError

if TYPE_CHECKING:
    from prefkit.pairs.inputs import RawFile
    from prefkit.pairs.recognise import Reading

INIT_EXAMPLES = """examples:
  prefkit init ratings.csv
  prefkit init raw/ --out my.toml --recipe laptop
  prefkit init answers.jsonl --source ratings --option prompt=question --option score=judge.total
  prefkit init hf://datasets/nvidia/HelpSteer2/train.jsonl.gz

At a terminal it asks for what is missing.
"""
KINDS_OF_ROWS = {  # of sources for any table: what a row of each holds, and the columns that it must have
    "ratings": ("an answer and its score", ("prompt", "response", "score")),
    "pairs": ("a better and a worse answer", ("prompt", "chosen", "rejected")),
    "unpaired": ("an answer that is good or bad", ("prompt", "completion", "label")),
}
DOCTOR_EXAMPLES = """examples:
  prefkit doctor
  prefkit doctor --json > doctor.json      to put into a report of a problem
"""
COMPLETION_EXAMPLES = """examples:
  eval "$(prefkit completion bash)"                                  in ~/.bashrc
  eval "$(prefkit completion zsh)"                                   in ~/.zshrc, after compinit
  prefkit completion fish > ~/.config/fish/completions/prefkit.fish  once
"""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the parser."""
    _add_init(commands)
    _add_doctor(commands)
    _add_completion(commands)


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
    from prefkit import config, urls
    from prefkit.manifest import write_text_atomically
    from prefkit.pairs import draft, inputs, recognise

    asks = sys.stdin.isatty() and sys.stdout.isatty()
    if given.out.is_dir():
        raise UsageError(f"{given.out}: a folder; --out is the name of a file, such as {given.out / 'pipeline.toml'}.")
    if given.out.exists() and not given.force:
        raise UsageError(f"{given.out}: exists. Give another --out, or replace it with --force.")
    if not given.out.absolute().parent.is_dir():
        raise UsageError(f"{given.out}: there is no folder {given.out.parent} to write it into.")
    if given.model and not given.recipe:
        raise UsageError(f"--model goes with --recipe: {', '.join(config.recipes())}.")
    names = given.inputs or ([_ask("Raw files, a folder or a URL")] if asks else [])
    if not names:
        raise UsageError("give the raw files: prefkit init FILE …")
    (files,) = inputs.name_files([inputs.expand(names, Path())])
    options = dict(map(_option, given.options))
    shown = ", ".join(urls.shown(name) if urls.is_url(name) else name for name in names)
    reading = _recognised(files, given.source, options, asks)
    print(f"{shown}: {len(files)} file{'s' * (len(files) != 1)}; {reading.summary}.")
    print(f"{reading.source}: {recognise.first_line(reading.source)}")
    if reading.options:
        print("Columns: " + ", ".join(f"{name} = {value!r}" for name, value in reading.options.items()))
    if reading.makes_labels:
        print(f"Prompts with answers of both labels: {reading.compared}. So the file makes labels, as KTO takes them.")
    elif not reading.compared:
        print(
            "No prompt among these rows has answers of different scores, as pairs need. Labels do not: docs/formats.md."
        )
    recipe, model = given.recipe, given.model
    if asks and not recipe and not reading.makes_labels:
        recipe = _choose("Train as well? A recipe", config.recipes(), may_be_none=True)
        model = _ask("Model (Enter: that of the recipe)") if recipe else None
    paths = _paths(names, given.out)
    text = draft.write(reading, shown, names, paths, given.out, recipe=recipe or None, model=model or None)
    write_text_atomically(given.out, text)
    url = "" if paths else " URL"
    print(f"Written: {given.out}. Next: prefkit build-pairs {shlex.quote(str(given.out))}{url} --out data")
    return 0


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "Tell what works on this machine, and the command that mends what does not. Exit 1 if something is broken."
    parser = command(commands, "doctor", text, DOCTOR_EXAMPLES)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.set_defaults(run=_doctor, interrupted="interrupted.")


def _doctor(given: argparse.Namespace) -> int:
    from prefkit import doctor

    findings = []
    for finding in doctor.examine():  # the first time, kernels are compiled on the way, which takes a while
        findings.append(finding)
        if not given.json:
            print(doctor.line(finding), flush=True)
    table = doctor.table(findings)
    print(as_json(table) if given.json else f"\n{doctor.verdict(findings)}")
    return 0 if table["usable"] else 1


def _add_completion(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "Print the script by which a shell completes commands, options, pipelines and --set paths."
    parser = command(commands, "completion", text, COMPLETION_EXAMPLES)
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), metavar="SHELL", help="bash, zsh or fish")
    parser.add_argument(
        "words", nargs="*", type=str, default=[], metavar="WORD", help="after --: print what completes the last of them"
    )
    parser.set_defaults(run=_completion, interrupted="interrupted.")


def _completion(given: argparse.Namespace) -> int:
    from prefkit import cli, completion

    if not given.words:
        print(completion.SCRIPTS[given.shell], end="")
        return 0
    for word, meaning in completion.complete(cli.make_parser(), given.words):
        print(f"{word}\t{meaning}")
    return 0


def _recognised(files: Sequence[RawFile], source: str | None, options: dict[str, Any], asks: bool) -> Reading:
    """The reading; where a column must be chosen, or nothing is recognised, by asking."""
    from prefkit.pairs.recognise import Unclear, Unread, recognise

    while True:
        try:
            return recognise(files, source, options)
        except Unclear as unclear:
            if not asks:
                raise
            options = options | {unclear.option: _choose(f"Which column is the {unclear.option}?", unclear.choices)}
        except Unread as unread:
            if not asks or source:
                raise
            print("No format is recognised by its columns, so please say what they are.")
            told = {name: f"{name}: {what}" for name, (what, _) in KINDS_OF_ROWS.items()}
            source = _choose("What is a row?", list(told), told)
            for option in KINDS_OF_ROWS[source][1]:
                if option not in options:
                    options = options | {option: _choose(f"Which column is the {option}?", unread.columns)}


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
        return input(f"{question}{'' if question.endswith('?') else ':'} ").strip()
    except EOFError:
        return ""


def _choose(
    question: str, choices: Sequence[str], told: Mapping[str, str] | None = None, *, may_be_none: bool = False
) -> str:
    """One of some choices, by number or name, asked for until it is one; they are shown as they are `told`."""
    for number, choice in enumerate(choices, 1):
        print(f"  {number}  {told[choice] if told else choice}")
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
