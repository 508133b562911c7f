"""A pipeline file -> a table of options, with `--set` applied; the two halves check their own part of it.

A pipeline file is TOML with `description`, `[build]`, `[model]` and `[[train]]`; either half may be missing. It is
found by its path, or by its bare name among the pipelines that prefkit ships. The file is kept verbatim for the
manifest.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefkit.errors import UsageError, did_you_mean

TOP_LEVEL = ("description", "build", "model", "train")
LISTS = {"build.inputs": 'use = "ratings"', "build.filters": 'use = "min_margin"', "train": 'name = "dpo"'}


@dataclass(frozen=True)
class Pipeline:
    """A parsed pipeline file. `folder` is where its relative paths start."""

    name: str
    path: Path
    text: str
    overrides: list[str]
    table: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.path.parent


def shipped(kind: str) -> Path:
    """Folder of the shipped `pipelines` or `data`: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).parent
    installed = package / "_shipped" / kind
    return installed if installed.is_dir() else package.parent / kind


def shipped_pipelines() -> list[str]:
    """Names of the pipeline files that come with prefkit."""
    return sorted(path.stem for path in shipped("pipelines").glob("*.toml"))


def recipes() -> list[str]:
    """Names of those that only train."""
    return [name for name in shipped_pipelines() if "build" not in load_pipeline(name).table]


def load_pipeline(name_or_path: Pipeline | str | Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Read a pipeline file, or a shipped one by its name, and apply `--set key.path=value` overrides.

    One that is loaded already is returned as it is, so that functions may take either. Raises UsageError, naming file
    and line or option, for a missing file, broken TOML or an unknown section.
    """
    if isinstance(name_or_path, Pipeline):
        assert not overrides, "they belong to the call that loaded it"
        return name_or_path
    path = _find(str(name_or_path))
    try:
        text = path.read_text(encoding="utf-8-sig")
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        if path.suffix != ".toml":
            raise UsageError(
                f"{path}: not a pipeline file, which is TOML. Where it holds raw ratings, let init write one for them: "
                f"prefkit init {path} --out my.toml"
            ) from error
        if isinstance(error, tomllib.TOMLDecodeError):
            raise UsageError(f"{path}: not valid TOML: {error}.") from error
        raise UsageError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start}).") from error
    for key in table:
        if key not in TOP_LEVEL:
            raise UsageError(f'{path}: unknown section "{key}".{did_you_mean(key, TOP_LEVEL)}')
    for override in overrides:
        _apply(table, override)
    return Pipeline(name=path.stem, path=path.resolve(), text=text, overrides=list(overrides), table=table)


def _find(name_or_path: str) -> Path:
    if not name_or_path.strip():
        raise UsageError("the name of the pipeline is empty; give a pipeline file or the name of a shipped one.")
    path = Path(name_or_path)
    if path.is_file():
        return path
    known = shipped_pipelines()
    if name_or_path in known:
        return shipped("pipelines") / f"{name_or_path}.toml"
    if path.is_dir():
        raise UsageError(
            f"{name_or_path}: a folder, and no pipeline file. Where it holds raw ratings, let init write one for them: "
            f"prefkit init {name_or_path} --out my.toml"
        )
    if path.suffix == ".toml" or len(path.parts) > 1:
        raise UsageError(f"{name_or_path}: no such pipeline file. Shipped ones go by name: {', '.join(known)}.")
    raise UsageError(f'"{name_or_path}" is neither a file nor a shipped pipeline.{did_you_mean(name_or_path, known)}')


def _apply(table: dict[str, Any], override: str) -> None:
    """Set one `key.path=value` in place. A step into a list goes by `name`, by `use`, or by index from 0."""
    key_path, equals, text = override.partition("=")
    keys = key_path.strip().split(".")
    if not equals or not all(keys):
        raise UsageError(f"--set {override}: write it as key.path=value, for example build.split.test=0.1.")
    if keys[0] not in TOP_LEVEL:
        raise UsageError(
            f'--set {override}: unknown section "{keys[0]}".{did_you_mean(keys[0], TOP_LEVEL)} '
            "A path begins there: build.split.test, model.path, train.NAME.beta."
        )
    here: Any = table
    for depth, key in enumerate(keys[:-1]):
        path = ".".join(keys[: depth + 1])
        if path in LISTS and isinstance(here, dict) and key not in here:
            raise UsageError(
                f"--set {override}: the pipeline file has no [[{path}]] to change. Add one to it, for example "
                f"[[{path}]] and, in the line below, {LISTS[path]}."
            )
        here = here.setdefault(key, {}) if isinstance(here, dict) else _item(here, key, override)
        if not isinstance(here, dict | list):
            raise UsageError(f"--set {override}: {path} is a value, not a section.")
    if isinstance(here, list):
        path, names = ".".join(keys[:-1]), _names(here)
        example = f"{path}.{names.partition(', ')[0]}.{keys[-1]}"
        raise UsageError(f"--set {override}: {path} is a list; name one of {names} in the path: {example}.")
    here[keys[-1]] = parse_value(text.strip())


def _names(items: list[Any]) -> str:
    return ", ".join(_name(item) or str(number) for number, item in enumerate(items))


def _name(item: Any) -> str | None:
    """What an entry of a list goes by; a phase without a name by its one loss. None if it has nothing to go by."""
    called = (item.get(key) for key in ("name", "use", "objective")) if isinstance(item, dict) else ()
    return next((name for name in called if isinstance(name, str)), None)


def _item(items: list[Any], key: str, override: str) -> Any:
    if key.isdigit() and int(key) < len(items):
        return items[int(key)]
    found = [item for item in items if isinstance(item, dict) and key in (_name(item), item.get("use"))]
    if len(found) != 1:
        problem = f'there are {len(found)} entries named "{key}"' if found else f'no entry named "{key}"'
        there = f"There are {_names(items)}, which also go by their index from 0"
        raise UsageError(f"--set {override}: {problem}. {there}; a new one is added in the pipeline file.")
    return found[0]


def parse_value(text: str) -> Any:
    """A TOML value, or the text itself where it is none, so that `--set train.dpo.objective=ipo` needs no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def section(table: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    """The sub-table `key`, empty if missing; UsageError if it is not a table."""
    value = table.get(key, {})
    if isinstance(value, list):
        raise UsageError(f"{where}: there is one [{key}], so write it with one bracket at each side.")
    if not isinstance(value, dict):
        raise UsageError(f"{where}: [{key}] must be a table of options, not {value!r}.")
    return dict(value)


def tables(table: Mapping[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    """The list of tables `key`, empty if missing; UsageError if it is something else."""
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UsageError(f"{where}: [[{key}]] must be a list of tables: write each with two brackets at each side.")
    return [dict(item) for item in value]


def which(number: int, total: int) -> str:
    """Which of several tables of one kind is meant, to stand behind its name; nothing where it is the only one."""
    return f" (entry {number} of {total})" if total > 1 else ""
