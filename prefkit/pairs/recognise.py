"""The first rows of a raw file -> the source that reads them, and why: what `prefkit init` goes by.

Nothing is decided by names alone. Every source is tried on the rows by its own decoder, as a build would do it, and
counts the rows that give an answer with a score. Formats of known data sets require columns that nobody else has, so
at most a few sources read any row at all; the three sources for any table (`pairs`, `unpaired`, `ratings`) are tried
with the columns that go by a usual name. A source of a known data set goes before those. Where two columns would do
equally well, or none, that is said, and which option decides it: a guess that builds the wrong pairs would cost more
than a question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from prefkit import resolve
from prefkit.errors import UsageError, did_you_mean
from prefkit.pairs import inputs, names, sources
from prefkit.pairs.decode import Decoded, decode, tables_of
from prefkit.pairs.encoding import WESTERN, is_western
from prefkit.pairs.foreign import conversion
from prefkit.pairs.inputs import RawFile, RawRow
from prefkit.pairs.named import named, no_such
from prefkit.pairs.records import Completion, Message

ROWS = 200  # of each file that are looked at
FILES = 20  # that are looked at

# Formats that a table of one's own may have by accident: they are taken for it only with one of these columns.
MARKS = {
    "helpsteer2": {"verbosity"},
    "orca_dpo_pairs": {"system", "generations", "in_gsm8k_train"},
    "reward_bench": {"subset", "num_correct"},
}
ANY_TABLE = ("pairs", "unpaired", "ratings")
HOME = "prefkit.pairs.sources."
MAPPINGS = 200  # of columns that are tried at most


class Reading(NamedTuple):
    """How a source reads the first rows: `used` of `rows` give answers with a score, the others fall as `fallen`.

    `compared` are the prompts with answers of different scores: what pairs are made of.
    """

    source: str
    options: dict[str, Any]
    used: int
    rows: int
    fallen: Counter[str]
    compared: int

    @property
    def makes_labels(self) -> bool:
        """Whether answers have labels, and most of them no other to be paired with: for KTO, which needs no pairs."""
        return self.source == "unpaired" and 4 * self.compared < self.used

    @property
    def reasons(self) -> str:
        """The most frequent reasons why rows fall, with their numbers."""
        return ", ".join(f"{reason} {count}" for reason, count in self.fallen.most_common(3))

    @property
    def summary(self) -> str:
        """One sentence with the numbers."""
        rest = f"; the others would be rejected ({self.reasons})" if self.fallen else ""
        return f"{self.used} of the first {self.rows} rows read as {self.source}{rest}"


class Unclear(UsageError):
    """Several columns could be the value of `option`; a person may choose one of `choices`."""

    def __init__(self, message: str, option: str, choices: Sequence[str]) -> None:
        super().__init__(message)
        self.option = option
        self.choices = choices


class Unread(UsageError):
    """Nothing reads the rows, which have these `columns`; a person may say what they are."""

    def __init__(self, message: str, columns: Sequence[str]) -> None:
        super().__init__(message)
        self.columns = columns


def recognise(files: Sequence[RawFile], source: str | None, options: Mapping[str, Any]) -> Reading:
    """The source of some files, from the first rows of the first ones; `source` and `options` are what is known.

    Options without a source name columns, which formats of known data sets have by definition; so these are not tried.
    Raises Unread where nothing reads the rows, Unclear where a column must be chosen, UsageError where the files are of
    different formats.
    """
    readings = {file.name: of_rows(inputs.first_rows(file, ROWS), file, source, options) for file in files[:FILES]}
    first, *others = readings.items()
    for name, reading in others:
        if (reading.source, reading.options) != (first[1].source, first[1].options):
            raise UsageError(
                f"{first[0]} reads as {first[1].source}, {name} as {reading.source}, or by other columns: give init "
                "the files of one format at a time. If they belong together, put both [[build.inputs]] into one file."
            )
    falls = sum((reading.fallen for reading in readings.values()), Counter[str]())
    counts = ((r.used, r.rows, r.compared) for r in readings.values())
    used, rows, compared = (sum(column) for column in zip(*counts, strict=True))
    return Reading(first[1].source, first[1].options, used, rows, falls, compared)


def of_rows(rows: Iterable[RawRow], file: RawFile, source: str | None, options: Mapping[str, Any]) -> Reading:
    """The best reading of the rows of one file."""
    rows = list(rows)
    tables = tables_of(rows)
    if not tables:
        raise UsageError(f"{file.shown}: {_no_table(rows, file)}")
    found = names.Columns(tables, {})
    fallen = ""
    _check_options(source, options)
    for group in [[source]] if source else _candidates(tables, options):
        tried = [reading for name in group for reading in _readings(rows, file, name, tables, options)]
        best = max(tried, key=lambda reading: reading.used, default=None)  # of equal ones the first
        if best is not None and best.used:
            _check_met(best, options, tables, file)
            return best
        fallen = best.reasons if best else "no columns of the usual names"
    raise _nothing(file, found, source, options, fallen)


def _no_table(rows: Sequence[RawRow], file: RawFile) -> str:
    """What to say of rows of which none is an object with columns."""
    if not rows:
        return "no rows, so there is nothing to recognise."
    if is_western([row.text for row in rows]):
        return f"not UTF-8, as if in {WESTERN}. Convert it: {conversion(file, WESTERN)}"
    fault = next(decode(rows, resolve.check(f"{HOME}ratings:ratings", {}, ""), file.name)).bad
    assert fault is not None
    return f"no row among the first {ROWS} is an object with columns. The first: {fault.reason}, {fault.detail}."


def _check_options(source: str | None, options: Mapping[str, Any]) -> None:
    """UsageError for an option that the source, or any that is tried, does not have."""
    tried = [resolve.find(source, HOME, "--source")] if source else [f"{HOME}{name}:{name}" for name in ANY_TABLE]
    taken = {name for address in tried for name in resolve.options_of(resolve.load(address))}
    for option in options:
        if option not in taken:
            who = f"{source} has no" if source else "no source for any table has"
            raise UsageError(f'--option: {who} "{option}".{did_you_mean(option, taken)}')


def _check_met(reading: Reading, options: Mapping[str, Any], tables: Sequence[dict[str, Any]], file: RawFile) -> None:
    """UsageError for a column that is named by an option and that none of the rows has."""
    for one in named(resolve.check(resolve.find(reading.source, HOME, "--source"), reading.options, "--option")):
        if one.option in options and not any(map(one.is_in, tables)):
            raise UsageError(f"--option {one.option}: {no_such(one, f'the first rows of {file.shown}', tables)}")


def _candidates(tables: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> list[list[str]]:
    """The sources to try, in groups of which the first that reads anything is taken."""
    columns = {name for table in tables for name in table}
    taken = {name: resolve.options_of(resolve.load(f"{HOME}{name}:{name}")).keys() for name in ANY_TABLE}
    known = [name for name in resolve.modules_of(sources) if name not in ANY_TABLE]
    known = [name for name in known if name not in MARKS or MARKS[name] & columns]
    return [*([] if options else [known]), *([name] for name in ANY_TABLE if options.keys() <= taken[name])]


def _readings(
    rows: Sequence[RawRow],
    file: RawFile,
    source: str,
    tables: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
) -> Iterator[Reading]:
    """What a source makes of rows, under each mapping of columns if it takes any table."""
    if source not in ANY_TABLE:
        yield _read(rows, file, source, options)
        return
    for mapping in islice(_mappings(source, tables, options), MAPPINGS):
        yield _read(rows, file, source, mapping)


def _read(rows: Sequence[RawRow], file: RawFile, source: str, options: Mapping[str, Any]) -> Reading:
    """What a source makes of rows; UsageError if it has no such option."""
    call = resolve.check(resolve.find(source, HOME, "--source"), options, f"--option for {source}")
    fallen: Counter[str] = Counter()
    used = 0
    scores: dict[tuple[Message, ...], set[float]] = {}
    for decoded in decode(rows, call, file.name):
        whole = decoded.bad is None and not decoded.found  # its answer stands with that of another row
        for rated in decoded.found:
            good = [answer.score for answer in rated.completions if answer.score is not None and _is_whole(answer)]
            scores.setdefault(tuple(rated.prompt), set()).update(good)
            whole |= bool(good)
        used += whole
        fallen.update([] if whole else [_fault(decoded)])
    return Reading(source, dict(options), used, len(rows), fallen, sum(len(given) > 1 for given in scores.values()))


def _is_whole(answer: Completion) -> bool:
    return answer.reject is None and answer.response is not None and bool(answer.response.strip())


def _fault(decoded: Decoded) -> str:
    """Why a row gives no answer with a score."""
    if decoded.bad is not None:
        return decoded.bad.reason
    answer = decoded.found[0].completions[0]
    return answer.reject or ("no_score" if answer.response else "no_response")


def _mappings(source: str, tables: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Options that map a source's columns to those of the rows, the likeliest first; `given` ones stay."""
    propose = {"pairs": names.of_pairs, "unpaired": names.of_unpaired, "ratings": names.of_ratings}[source]
    for mapping in propose(names.Columns(tables, given)):
        for option, choices in mapping.unclear.items():
            raise Unclear(
                f"several columns could be the {option}: {', '.join(choices)}. "
                f"Say which: --option {option}={choices[0]}",
                option,
                choices,
            )
        yield {**mapping.options, **given}


def _nothing(
    file: RawFile, columns: names.Columns, source: str | None, options: Mapping[str, Any], fallen: str
) -> UsageError:
    """What to say of rows that nothing reads: what they are, and which option decides."""
    known = [*columns.paths, *columns.inner_paths()]
    for option, name in options.items():
        if option in names.COLUMN_OPTIONS and name and name not in known:
            mend = did_you_mean(str(name), known)
            return UsageError(f'{file.shown}: no column "{name}", which --option {option} names.{mend}')
    if columns.paths == ["messages"]:
        return UsageError(
            f"{file.shown}: conversations alone, without a better and a worse answer. `prefkit adopt` takes them as "
            "they are, to fine-tune on."
        )
    why = f"its first rows do not read as {source} ({fallen})" if source else "no source reads its first rows"
    return Unread(
        f"{file.shown}: {why}. Its columns are {', '.join(columns.told()[:20])}. Say what they are: --source ratings "
        "with --option prompt=NAME --option response=NAME --option score=NAME (for a list of answers, --option "
        "completions=NAME as well, and response and score are names within it); or --source pairs with prompt, chosen "
        "and rejected; or --source unpaired with prompt, completion and label. For anything else, write a source: "
        "docs/howto/extend.md.",
        columns.paths,
    )


def first_line(source: str) -> str:
    """What a source says of itself."""
    return resolve.summary(resolve.load(resolve.find(source, HOME, "--source")))
