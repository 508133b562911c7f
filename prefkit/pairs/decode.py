"""Raw rows -> what their source makes of them: rated prompts, or the reason why a row is none.

A source says by the annotation of its first parameter what it reads: a msgspec Struct or `dict` (a row at a time,
checked while it is parsed), or `Sequence[Numbered]` (all rows of a file at once, for formats whose rows refer to each
other).
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_type_hints

import msgspec
from msgspec.structs import replace

from prefkit.errors import UsageError
from prefkit.pairs.inputs import RawRow
from prefkit.pairs.records import BadRow, Numbered, Rated
from prefkit.resolve import Call, load

if TYPE_CHECKING:
    from prefkit.pairs.named import Unmet


INDEX_BITS = 31  # of the index of a completion


class Decoded(NamedTuple):
    """A raw row and what its source found in it; `bad` says why it found nothing."""

    row: RawRow
    found: Sequence[Rated]
    bad: BadRow | None


def row_kind(source: Call) -> Any:
    """The annotation of the source's first parameter; UsageError where it has none that could take a row."""
    first = next(iter(inspect.signature(load(source.address)).parameters.values()), None)
    if first is None or first.kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
        raise UsageError(f'"{source.address}": a source takes a row as its first parameter.')
    return get_type_hints(load(source.address)).get(first.name, dict[str, Any])


def reads_whole_files(source: Call) -> bool:
    """Whether a source wants all rows of a file at once."""
    return get_args(row_kind(source)) == (Numbered,)


def decode(rows: Iterable[RawRow], source: Call, file: str, unmet: Unmet | None = None) -> Iterator[Decoded]:
    """Each row with what the source found in it, in the order of the rows; `unmet` looks at them as long as it must.

    Raises UsageError where a source from outside prefkit fails.
    """
    parse = _parser(dict[str, Any] if reads_whole_files(source) else row_kind(source))
    function, is_external = source.function(), source.is_external
    if reads_whole_files(source):
        yield from _whole(list(rows), parse, function, source, file, unmet)
        return
    for row in rows:
        try:
            value = parse(row)
            if unmet and unmet.left:
                unmet.look(value)
            found = _checked(list(function(value)))
            if is_external:
                _check_kinds(found)
                _check_indices(found)
            yield Decoded(row, found, None)
        except BadRow as bad:
            yield Decoded(row, (), bad)
        except Exception as error:
            raise _blamed(source, file, row.number, error) from error


def tables_of(rows: Iterable[RawRow]) -> list[dict[str, Any]]:
    """The columns of those rows that are objects."""
    parse = _parser(dict[str, Any])
    found = []
    for row in rows:
        with contextlib.suppress(BadRow):
            found.append(parse(row))
    return found


def _whole(
    rows: list[RawRow],
    parse: Callable[[RawRow], Any],
    function: Callable[..., Any],
    source: Call,
    file: str,
    unmet: Unmet | None,
) -> Iterator[Decoded]:
    """A file's rows; each found prompt goes with the row of its first completion."""
    bad: dict[int, BadRow] = {}
    good: list[Numbered] = []
    for row in rows:
        try:
            good.append(Numbered(row.number, parse(row)))
        except BadRow as unread:
            bad[row.number] = unread
    if unmet is not None:
        for numbered in good:
            unmet.look(numbered.value)
    found: dict[int, list[Rated]] = {}
    answered: set[int] = set()
    try:
        for item in function(good):
            if isinstance(item, BadRow):
                assert item.row is not None, "a source of whole files says which row is bad"
                bad[item.row] = item
                continue
            try:
                _checked([item])
                _check_kinds([item])
            except BadRow as refused:  # other prompts of these rows may be sound, so the answers fall one by one
                fallen = [replace(one, reject=refused.reason, detail=refused.detail) for one in item.completions]
                item = replace(item, completions=fallen)
            numbers = _rows_of(item)
            found.setdefault(numbers[0], []).append(item)
            answered.update(numbers)
        _check_indices([rated for prompts in found.values() for rated in prompts])
    except Exception as error:
        raise _blamed(source, file, rows[0].number if rows else 0, error) from error
    nothing = BadRow("no_completions", "the source found no completion in the row")
    for row in rows:
        problem = None if row.number in answered else bad.get(row.number, nothing)
        yield Decoded(row, found.get(row.number, ()), problem)


def _rows_of(rated: Rated) -> list[int]:
    numbers = [answer.row for answer in rated.completions if answer.row is not None]
    if len(numbers) < len(rated.completions) or not numbers:
        raise TypeError("a source of whole files must give the row of each completion")
    return numbers


def _blamed(source: Call, file: str, row: int, error: Exception) -> Exception:
    """What a source from outside prefkit raised, as a sentence; an error of ours as it is, but for the file."""
    if not source.is_external:
        return UsageError(f"{file}: {error}") if isinstance(error, UsageError) else error
    return UsageError(f"{source.address} failed at {file}, row {row}: {type(error).__name__}: {error}")


def _parser(kind: Any) -> Callable[[RawRow], Any]:
    """A function from a raw row to a value of `kind`; BadRow for whatever is wrong with the row."""
    try:
        json_decoder = msgspec.json.Decoder(kind)
    except TypeError as error:
        raise UsageError(f"a source says that its rows are {kind}, which nothing can be read as: {error}.") from error

    def parse(row: RawRow) -> Any:
        if row.problem is not None:
            raise BadRow(*row.problem)
        try:
            if row.value is None:
                return json_decoder.decode(row.text)
            return msgspec.convert(row.value, kind, strict=not row.text)  # the values of CSV, which has text, are text
        except UnicodeDecodeError as error:
            raise BadRow("not_utf8", f"{error.reason} at byte {error.start} of a text") from error
        except msgspec.ValidationError as error:
            raise BadRow("wrong_type", str(error)) from error
        except RecursionError as error:
            raise BadRow("not_json", "it is nested too deeply") from error
        except msgspec.DecodeError as error:
            return _with_nan(row.text, kind, error)

    return parse


def _with_nan(text: bytes, kind: Any, error: msgspec.DecodeError) -> Any:
    """Python's json writes NaN and Infinity, which are not JSON; read such a line, and leave the value to the rules."""
    try:
        if b"NaN" not in text and b"Infinity" not in text:
            raise ValueError
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # ValueError for a lone surrogate, which is no text
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as wrong:
        raise BadRow("wrong_type", str(wrong)) from wrong
    except (ValueError, RecursionError):
        raise BadRow("not_json", str(error)) from error


def _checked(found: list[Rated]) -> list[Rated]:
    """What a source must yield for a row: BadRow where the row gave less."""
    if not found:
        raise BadRow("no_completions", "the row holds a prompt without completions")
    for rated in found:
        if not rated.completions:
            raise BadRow("no_completions", "the row holds a prompt without completions")
        if all(not message.content or message.content.isspace() for message in rated.prompt):
            raise BadRow("empty_prompt", "the prompt has no text")
        if rated.prompt[-1].role not in ("user", "tool"):
            raise BadRow("prompt_without_question", f"the prompt ends with a turn of the {rated.prompt[-1].role}")
    return found


def _check_kinds(found: list[Rated]) -> None:
    """TypeError or ValueError where a source from outside gives what no table holds."""
    for answer in (answer for rated in found for answer in rated.completions):
        if not isinstance(answer.score, int | float | None) or not isinstance(answer.response, str | None):
            raise TypeError(f"a completion with score {answer.score!r} and response of {type(answer.response)}")
        if not isinstance(answer.model, str | None) or not isinstance(answer.index, int) or answer.index >> INDEX_BITS:
            raise TypeError(f"a completion with index {answer.index!r} and model {answer.model!r}")
    for rated in found:
        texts = [rated.source, *(text for turn in rated.prompt for text in turn)]
        answers = [text for answer in rated.completions for text in (answer.response, answer.model) if text is not None]
        "".join(texts + answers).encode()  # TypeError where one is no text, ValueError for a lone surrogate


def _check_indices(found: list[Rated]) -> None:
    """Row and index are what a completion is known by, so no two may share them."""
    names = [(answer.row, answer.index) for rated in found for answer in rated.completions]
    if len(set(names)) < len(names):
        raise TypeError("two completions of a row have the same index")
