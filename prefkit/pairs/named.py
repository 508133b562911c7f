"""Columns that a pipeline names, and that are not there.

Sources that take any table say by the types of their options which of them name columns (`columns.Column`). A row that
lacks one reads as null, since rows of JSON may leave out what they have not; so a misspelt name would read as null in
every row without a word. A name that is not just an option's default must therefore be met:

- CSV and Parquet tell their columns, so a file that lacks one is refused before anything is read (`refuse`).
- JSON does not. A column that no row of any file of its entry has is refused once they are read, as an option without
  effect is. A file that lacks one which others of its entry have is a remark, since that may be as it should; and so is
  what `--limit` may have cut off.

Each row is looked at until every name was met, which in most files the first row does; from there on it costs one look
at an empty list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_type_hints

from prefkit.config import which
from prefkit.errors import DataError, UsageError, nearest
from prefkit.pairs import inputs, names
from prefkit.pairs.columns import Names, get, has
from prefkit.pairs.decode import tables_of
from prefkit.pairs.engine import counts
from prefkit.pairs.inputs import RawFile
from prefkit.pairs.parts import parquet
from prefkit.resolve import Call, load, options_of

if TYPE_CHECKING:
    from prefkit.pairs.options import Options
    from prefkit.pairs.steps import Source

ROWS = 200  # of a file whose columns are told
SHOWN = 20  # columns


class Named(NamedTuple):
    """An option that names the column `path`, of rows or of the items of the lists in the column `within`."""

    option: str
    path: str
    within: str = ""

    @property
    def written(self) -> str:
        return f'{self.option} = "{self.path}"'

    def is_in(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has the column, whatever stands in it."""
        if not self.within:
            return has(row, self.path)
        items = get(row, self.within)
        return isinstance(items, list) and any(isinstance(item, dict) and has(item, self.path) for item in items)


def named(source: Call) -> list[Named]:
    """The columns that a source is told to look at, but for names that are defaults of its options."""
    function = load(source.address)
    hints = get_type_hints(function, include_extras=True)
    found = []
    for option, parameter in options_of(function).items():
        mark, value = _mark(hints.get(option)), source.options[option]
        if mark is not None and value != parameter.default:
            within = (source.options.get(mark.within) or "") if mark.within else ""
            several = {f"{option}.{name}": path for name, path in value.items()} if isinstance(value, dict) else None
            found += [Named(name, path, within) for name, path in (several or {option: value}).items() if path]
    return sorted(found, key=lambda one: bool(one.within))  # without the list, its items have no columns


def _mark(hint: Any) -> Names | None:
    """What a type says of columns, also where it is one of a union or that of a dict's values."""
    return hint if isinstance(hint, Names) else next((mark for part in get_args(hint) if (mark := _mark(part))), None)


class Unmet:
    """Those of the columns that a source is told to look at which no row had so far."""

    def __init__(self, source: Call):
        self.left = named(source)
        self._looked = not self.left

    def look(self, row: Any) -> None:
        """Look at one more row."""
        if isinstance(row, dict):
            self.left = [one for one in self.left if not one.is_in(row)]
            self._looked = True

    @property
    def options(self) -> list[str] | None:
        """The options that name them; None where there was no row to look at."""
        return [one.option for one in self.left] if self._looked else None


def refuse(source: Call, files: Sequence[RawFile], where: str) -> None:
    """UsageError where a CSV or Parquet file lacks a column that is named; `where` that is done."""
    columns = named(source)
    for file in files if columns else []:
        table = _table(file)
        for one in columns if table else []:
            if not one.is_in(table):
                raise UsageError(f"{where}: {one.written}, but {no_such(one, file.shown, [table])}")


def _table(file: RawFile) -> dict[str, Any]:
    """What a row of a CSV or Parquet file looks like, without values; empty where it has none, or is another file."""
    if file.has_suffix(".parquet"):
        try:
            return {field.name: _shape(field.type) for field in parquet(file).schema_arrow}
        except OSError as error:
            raise DataError(f"{file.shown}: cannot be read ({error.strerror or error}).") from error
    if file.has_suffix(".csv", ".tsv"):
        return next((dict.fromkeys(row.value) for row in inputs.first_rows(file, ROWS) if row.value), {})
    return {}


def _shape(kind: Any) -> Any:
    """What a value of a type of Arrow looks like in Python, as far as it holds columns."""
    import pyarrow.types as of

    if of.is_struct(kind):
        return {field.name: _shape(field.type) for field in kind.fields}
    is_list = of.is_list(kind) or of.is_large_list(kind) or of.is_fixed_size_list(kind)
    return [_shape(kind.value_type)] if is_list else None


def no_such(one: Named, place: str, rows: Sequence[dict[str, Any]]) -> str:
    """A sentence about a column that is not there, with those that some of the rows have."""
    columns = names.Columns(rows, {})
    inside = names.Columns(columns.items(one.within), {}) if one.within else columns
    where = f'the items of "{one.within}" in {place}' if one.within else place
    known = ", ".join(inside.told()[:SHOWN]) or "none"
    return f"there is no such column in {where}. There are {known}.{nearest(one.path, inside.paths)}"


def remarks(
    options: Options, sources: Sequence[Source], read: Sequence[Path], limit: int | None, pipeline: str
) -> list[str]:
    """A sentence for each column that files of JSON lack; `read` are the folders of all parts, in order.

    UsageError where no file of an entry has it, and all rows were read.
    """
    folders = iter(read)
    parts = [(given, [counts(next(folders)) for _ in given.parts()]) for given in sources]
    said = []
    for number, entry in enumerate(options.inputs, 1):
        looked = [(given.file, each) for given, each in parts if given.entry == number - 1 and _was_looked_at(each)]
        for one in named(entry.source):
            lacking = [(file, each) for file, each in looked if _lacks(file, each, one)]
            if not lacking:
                continue
            asked = f"[[build.inputs]] {entry.source.name}{which(number, len(options.inputs))}: {one.written}"
            if len(lacking) == len(looked) and limit is None:
                files = [file for file, _ in lacking]
                told = no_such(one, f"any row of {_listed(files)}", tables_of(inputs.first_rows(files[0], ROWS)))
                raise UsageError(f"{pipeline}: {asked}, but {told} Leave the option out where rows have none.")
            if left := [file for file, each in lacking if any(part["runs"] for part in each)]:  # of others `gone` tells
                said.append(f'{_listed(left)}: no row that was read has the column "{one.path}" ({asked}).')
    return said


def _listed(files: Sequence[RawFile]) -> str:
    return files[0].name + (f" and {len(files) - 1:,} more" if len(files) > 1 else "")


def _was_looked_at(parts: Sequence[Any]) -> bool:
    return any(part["unmet"] is not None for part in parts)


def _lacks(file: RawFile, parts: Sequence[Any], one: Named) -> bool:
    """Whether no row of a file has a column; Parquet has it by its schema, also where all rows are null."""
    return not file.has_suffix(".parquet") and all(
        part["unmet"] is None or one.option in part["unmet"] for part in parts
    )
