"""Pages of the documentation site that are made while it is built, from what they tell of, so that none can be stale.

index.md, contributing.md, changelog.md    README, CONTRIBUTING and CHANGELOG of the project
reference/commands.md                      `--help` of every command
reference/options.md                       the functions and options of a pipeline file
reference/pipelines.md                     the shipped pipelines
reference/python.md                        what `import prefkit` gives: signatures and docstrings
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import prefkit
from prefkit import config, resolve
from prefkit.pairs.options import SECTIONS

OTHER = {
    "exclude": "files of flags, whose pairs and prompts are left out ([flags](../formats.md#flags))",
    "chunk_bytes": "size of the parts of raw files: memory and speed, never the result",
}
PROJECT = Path(__file__).parent.parent
MADE_OF = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
FIELD = re.compile(r"^    (\w+): (.+?)(?: = (.+?))?  # (.+)$", re.MULTILINE)

# Parts of a pipeline file: its title, where its functions live, and what may be said there.
CHOICES = {
    "Sources: `[[build.inputs]]`": "prefkit.pairs.sources.",
    "Filters: `[[build.filters]]`": "prefkit.pairs.filters",
    "Strategies: `[build.binarize]`": "prefkit.pairs.binarize",
}
FIXED = {
    "build.redact": "prefkit.pairs.redact:redact",
    "build.language": "prefkit.pairs.language:language",
    "build.decontaminate": "prefkit.pairs.decontaminate:decontaminate",
    "build.dedupe": "prefkit.pairs.dedupe:dedupe",
    "build.labels": "prefkit.pairs.label:labels",
    "build.balance": "prefkit.pairs.mix:balance",
    "build.split": "prefkit.pairs.shards:split",
    "build.shards": "prefkit.pairs.shards:shards",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    made = {name: site_links((PROJECT / source).read_text(encoding="utf-8")) for name, source in MADE_OF.items()}
    made |= {
        "reference/commands.md": commands(),
        "reference/options.md": options(),
        "reference/pipelines.md": pipelines(),
        "reference/python.md": python(),
    }
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def site_links(text: str) -> str:
    """Links of a page of the project as the site has them."""
    text = text.replace("](docs/", "](").replace("](pipelines)", "](reference/pipelines.md)")
    for name, source in MADE_OF.items():
        text = text.replace(f"]({source})", f"]({name})")
    return text


def commands() -> str:
    """`--help` of the program and of every command."""
    from prefkit.cli import make_parser

    os.environ["COLUMNS"] = "110"
    parser = make_parser()
    (action,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    parts = ["# Commands", "", "What `prefkit COMMAND --help` prints.", "", *code(parser.format_help(), "text")]
    for name, each in action.choices.items():
        parts += ["", f"## {name}", "", *code(each.format_help(), "text")]
    return "\n".join(parts) + "\n"


def options() -> str:
    """What can stand in a pipeline file."""
    parts = ["# Options", "", "What can stand in a [pipeline file](../formats.md#a-pipeline-file), with the defaults."]
    for title, home in CHOICES.items():
        parts += ["", f"## {title}"]
        for address in addresses(home):
            parts += function(address, f"### {address.rpartition(':')[2]}")
        if home.endswith("sources."):
            parts += function("prefkit.pairs.mix:entry", "### Every entry")
    for table, address in FIXED.items():
        parts += function(address, f"## `[{table}]`")
    parts += [
        "",
        "## `[build]`",
        "",
        "| option | |",
        "|---|---|",
        *(f"| `{name}` | {what} |" for name, what in OTHER.items()),
    ]
    known = {"inputs", "filters", "binarize", *OTHER, *(table.removeprefix("build.") for table in FIXED)}
    assert known == set(SECTIONS), "a section of [build] that this page does not tell of"
    parts += ["", "## `[model]`", *fields("Model"), "", "## `[[train]]`", *fields("Phase")]
    parts += ["", "The options of an objective stand beside these: [losses](../losses.md)."]
    return "\n".join(parts) + "\n"


def addresses(home: str) -> Iterator[str]:
    """The functions of a module, or of the modules of a package (`home` ends with a dot), by name."""
    module = importlib.import_module(home.rstrip("."))
    names = resolve.modules_of(module) if home.endswith(".") else resolve.functions_of(module)
    for name in sorted(names):
        yield resolve.find(name, home, "docs")


def function(address: str, heading: str) -> list[str]:
    """A function with its docstring and options."""
    found = resolve.load(address)
    rows = [f"| `{name}` | {kind(p)} | {default(p)} |" for name, p in resolve.options_of(found).items()]
    table = ["", "| option | type | default |", "|---|---|---|", *rows] if rows else []
    return ["", heading, "", prose(inspect.getdoc(found) or ""), *table]


def fields(name: str) -> list[str]:
    """The options of `[model]` or `[[train]]`, with the comments that stand beside them in the code."""
    source = inspect.getsource(resolve.load(f"prefkit.train.options:{name}"))
    rows = [
        f"| `{option}` | {cell(annotation)} | {cell(value) if value else 'needed'} | {escaped(meaning)} |"
        for option, annotation, value, meaning in FIELD.findall(source)
    ]
    return ["", "| option | type | default | |", "|---|---|---|---|", *rows]


def kind(parameter: inspect.Parameter) -> str:
    """The annotation as the code has it."""
    return cell(parameter.annotation) if isinstance(parameter.annotation, str) else cell(str(parameter.annotation))


def default(parameter: inspect.Parameter) -> str:
    return "needed" if parameter.default is parameter.empty else cell(repr(parameter.default))


def cell(text: str) -> str:
    """Code in a cell of a table."""
    return f"`{text}`".replace("|", "\\|")


def escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def pipelines() -> str:
    """The shipped pipelines, with their texts."""
    parts = ["# Shipped pipelines", "", "By name, as in `prefkit build-pairs ultrafeedback`; the text is the file's."]
    for name in config.shipped_pipelines():
        pipeline = config.load_pipeline(name)
        parts += ["", f"## {name}", "", pipeline.table.get("description", ""), "", *code(pipeline.text, "toml")]
    return "\n".join(parts) + "\n"


def python() -> str:
    """What `import prefkit` gives."""
    parts = ["# Python", "", "What `import prefkit` gives; how to use it: [From Python](../python.md)."]
    for name in ("load_pipeline", "build_pairs", "load_pairs", "PairStream", "PackingCollator"):
        parts += documented(getattr(prefkit, name), f"prefkit.{name}")
    from prefkit.train.run import train

    parts += documented(train, "prefkit.train")
    parts += ["", "## For loops of your own"]
    for address in (
        "prefkit.train.policy:ready",
        "prefkit.train.policy:frozen_copy",
        "prefkit.train.policy:Policy",
        "prefkit.train.logps:pair_logps",
        "prefkit.train.pack:Bin",
        "prefkit.train.stream:Step",
        "prefkit.train.losses:LogProbs",
        "prefkit.train.losses:LossOutput",
    ):
        parts += documented(resolve.load(address), address.replace(":", "."))
    return "\n".join(parts) + "\n"


def documented(thing: Any, name: str) -> list[str]:
    """A function or class: signature, docstring, and the public methods of a class."""
    constructor = thing.__init__ if inspect.isclass(thing) else None
    parts = ["", f"## {name}", "", *code(f"{name}{signature(thing)}", "python"), "", prose(inspect.getdoc(thing) or "")]
    if constructor is not None and constructor.__doc__ and inspect.isfunction(constructor):
        parts += ["", prose(inspect.getdoc(constructor) or "")]
    for method, value in vars(thing).items() if inspect.isclass(thing) else ():
        if inspect.isfunction(value) and not method.startswith("_") and value.__doc__:
            short = name.rpartition(".")[2]
            parts += [
                "",
                *code(f"{short}.{method}{signature(value)}", "python"),
                "",
                prose(inspect.getdoc(value) or ""),
            ]
    return parts


def signature(thing: Callable[..., Any]) -> str:
    """The signature, a parameter a line where it is long."""
    found = inspect.signature(thing)
    parameters = [shown(parameter) for parameter in found.parameters.values()]
    only_named = [parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in found.parameters.values()]
    if True in only_named:
        parameters.insert(only_named.index(True), "*")
    returned = "" if found.return_annotation is found.empty else f" -> {found.return_annotation}"
    line = f"({', '.join(parameters)}){returned}"
    return line if len(line) < 60 else "(\n" + "".join(f"    {text},\n" for text in parameters) + f"){returned}"


def shown(parameter: inspect.Parameter) -> str:
    """A parameter as the code has it."""
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    annotation = "" if parameter.annotation is parameter.empty else f": {parameter.annotation}"
    value = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{stars}{parameter.name}{annotation}{value}"


def prose(docstring: str) -> str:
    """A docstring as Markdown: its double backticks are single ones there."""
    return escaped_tags(docstring.replace("``", "`"))


def escaped_tags(text: str) -> str:
    return re.sub(r"<(?=[A-Za-z/])", "&lt;", text)


def code(text: str, language: str) -> list[str]:
    return [f"```{language}", textwrap.dedent(text).strip("\n"), "```"]
