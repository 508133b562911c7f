"""The `[build]` part of a pipeline file, checked: which functions run, with which options, on which files."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from prefkit import config, schema
from prefkit.config import Pipeline
from prefkit.errors import UsageError, did_you_mean
from prefkit.manifest import Kind, file_sha256
from prefkit.pairs import decontaminate, exclude, inputs, label, mix, named, read, redact, select, tables
from prefkit.pairs.exclude import Excluded
from prefkit.pairs.inputs import RawFile
from prefkit.pairs.language import SHIPPED, UNDETERMINED, model_path, tags_of
from prefkit.pairs.rules import Rule, rule
from prefkit.pairs.unite import SET_RULES
from prefkit.resolve import Call, check, find, load, options_of

SECTIONS = (
    "inputs",
    "redact",
    "filters",
    "language",
    "decontaminate",
    "dedupe",
    "binarize",
    "labels",
    "exclude",
    "balance",
    "split",
    "shards",
    "chunk_bytes",
)
CHUNK_BYTES = (24 << 20, 192 << 20)  # the least and the most, where no pipeline says how many
PARTS = 80  # as many parts as keep every worker busy to the end, and few enough for the slices of each bucket
RESERVED = {
    *read.ALWAYS,
    *SET_RULES,
    *select.ALWAYS,
    *label.REASONS,
    *decontaminate.REASONS,
    *exclude.REASONS,
    *mix.REASONS,
    "not_selected",
}


@dataclass(frozen=True)
class Input:
    """Files of one format, with the source that reads them, and what is asked of its pairs."""

    source: Call
    files: list[RawFile]
    settings: Call


@dataclass(frozen=True)
class Options:
    """Everything that decides what is built. `chunk_bytes` alone decides nothing but speed and memory."""

    inputs: list[Input]
    candidate_filters: list[Call]
    pair_filters: list[Call]
    redact: Call | None
    language: Call | None
    decontaminate: Call | None
    dedupe: Call
    binarize: Call
    labels: Call | None  # in place of pairs
    exclude: Excluded | None
    balance: Call
    split: Call
    shards: Call
    chunk_bytes: int

    @property
    def kind(self) -> Kind:
        """Of the data set."""
        return "labels" if self.labels else "pairs"

    def shown(self) -> dict[str, Any]:
        """What the manifest and --dry-run print: the options with all defaults, without any path of this machine."""

        def row(call: Call) -> dict[str, Any]:
            return {"use": call.address, **call.options, **fingerprint(call)}

        language = row(self.language) | {"model": Path(self.language.options["model"]).name} if self.language else False
        makes = "labels" if self.labels else "binarize"
        return {
            "inputs": [
                {**row(given.source), **given.settings.options, "paths": [file.name for file in given.files]}
                for given in self.inputs
            ],
            "filters": [row(call) for call in [*self.candidate_filters, *self.pair_filters]],
            "redact": row(self.redact) if self.redact else False,
            "language": language,
            "decontaminate": self.evaluation(),
            "exclude": self.exclude.files if self.exclude else False,
            **{name: row(getattr(self, name)) for name in ("dedupe", makes, "balance", "split", "shards")},
        }

    def evaluation(self) -> Any:
        """The options of decontamination with the evaluation files by name and SHA-256; false without."""
        if self.decontaminate is None:
            return False
        options = self.decontaminate.options
        return {"use": self.decontaminate.address, **options, "paths": decontaminate.identity(options["paths"])}

    def files(self) -> Iterator[tuple[int, RawFile]]:
        """All raw files in order, each with the number of its entry in [[build.inputs]]."""
        for number, given in enumerate(self.inputs):
            yield from ((number, file) for file in given.files)

    def look_at_aspects(self) -> bool:
        """Whether anything besides `score_weights` asks for the aspects of answers: a filter, a strategy of others."""
        filters = any("aspects" in rule(call).keep.meta.root_names() for call in self.candidate_filters)
        return filters or (self.labels is None and self.binarize.is_external)


def fingerprint(call: Call) -> dict[str, str]:
    """SHA-256 of what a call depends on besides its options: the source of a function from outside prefkit, a language
    model, or patterns by which data that is added to another must be compared with it."""
    if call.address == "prefkit.pairs.language:language":
        return {"model_sha256": file_sha256(model_path(call.options["model"]))}
    if call.address == "prefkit.pairs.redact:redact":
        return {"patterns_sha256": redact.fingerprint(call.options["kinds"])}
    if not call.is_external:
        return {}
    function = inspect.unwrap(load(call.address))
    try:
        files = {inspect.getsourcefile(function), inspect.getsourcefile(sys.modules[call.address.partition(":")[0]])}
    except TypeError as error:  # it is written in C, or made by a call
        raise UsageError(f'"{call.address}": not a function that is written in Python, with def.') from error
    return {"code_sha256": " ".join(file_sha256(Path(file)) for file in sorted(filter(None, files)))}


def check_build(
    pipeline: Pipeline, given: Sequence[str] = (), out: inputs.Place | None = None, taken: Sequence[str] = ()
) -> Options:
    """Check `[build]`; `given` are INPUT arguments, which take the place of the paths in the file.

    Nothing under `out` is ever taken for input. No file is recorded under a name that is `taken`.

    Raises UsageError that names the section and option.
    """
    if "build" not in pipeline.table:
        raise UsageError(f"{pipeline.path}: there is no [build] section, so there is nothing to build.")
    table = config.section(pipeline.table, "build", pipeline.name)
    for name in table:
        if name not in SECTIONS:
            raise UsageError(f'{pipeline.name}: [build] has no "{name}".{did_you_mean(name, SECTIONS)}')
    chunk_bytes = table.get("chunk_bytes")
    if chunk_bytes is not None and (type(chunk_bytes) is not int or chunk_bytes < 1):
        raise UsageError(f"{pipeline.name}: [build] chunk_bytes must be a positive number, not {chunk_bytes!r}.")
    language = _language(table, pipeline)
    candidate_filters, pair_filters = _filters(table, pipeline, language)
    given_inputs = _inputs(table, pipeline, given, out, taken)
    balance = _fixed(table, pipeline, "balance", "prefkit.pairs.mix:balance")
    labels = _fixed(table, pipeline, "labels", "prefkit.pairs.label:labels") if "labels" in table else None
    if labels:
        _check_labels(labels, table, pair_filters, balance, pipeline)
    options = Options(
        inputs=given_inputs,
        candidate_filters=candidate_filters,
        pair_filters=pair_filters,
        redact=_fixed(table, pipeline, "redact", "prefkit.pairs.redact:redact") if "redact" in table else None,
        language=language,
        decontaminate=_decontaminate(table, pipeline),
        dedupe=_fixed(table, pipeline, "dedupe", "prefkit.pairs.dedupe:dedupe"),
        binarize=_used(
            table.get("binarize", {"use": "best_vs_worst"}), "prefkit.pairs.binarize", "[build.binarize]", pipeline
        ),
        labels=labels,
        exclude=exclude.read(table["exclude"], pipeline.folder, f"{pipeline.name}: [build] exclude")
        if "exclude" in table
        else None,
        balance=balance,
        split=_fixed(table, pipeline, "split", "prefkit.pairs.shards:split"),
        shards=_fixed(table, pipeline, "shards", "prefkit.pairs.shards:shards"),
        chunk_bytes=chunk_bytes or _chunk_bytes(given_inputs),
    )
    _check_aspects(options, pipeline)
    for call in filter(None, (options.dedupe, options.decontaminate)):
        call.function()()  # raises UsageError where options contradict each other
    return options


def _check_aspects(options: Options, pipeline: Pipeline) -> None:
    """UsageError for columns of aspects that an entry names and that nothing looks at."""
    for entry in options.inputs:
        asked_for = entry.settings.options["score_weights"] or options.look_at_aspects()
        if entry.source.options.get("aspects") and not asked_for:
            raise UsageError(
                f"{pipeline.name}: [[build.inputs]] {entry.source.name}: aspects have no effect: neither score_weights "
                "nor a filter or strategy of yours looks at them. Leave them out, or add score_weights."
            )


def _check_labels(
    labels: Call, table: dict[str, Any], pair_filters: list[Call], balance: Call, pipeline: Pipeline
) -> None:
    """UsageError for what asks for pairs, where there are labels instead."""
    labels.function()()  # raises UsageError where the thresholds overlap
    where = f"{pipeline.name}: [build.labels] makes no pairs, so"
    if "binarize" in table:
        raise UsageError(f"{where} [build.binarize] has no effect. Leave one of the two out.")
    if pair_filters:
        raise UsageError(f"{where} [[build.filters]] {pair_filters[0].name}, which judges pairs, has no effect.")
    if balance.options["max_longer_share"] is not None:
        raise UsageError(f"{where} [build.balance] max_longer_share has no effect.")


def _fixed(table: dict[str, Any], pipeline: Pipeline, name: str, address: str) -> Call:
    where = f"{pipeline.name}: [build.{name}]"
    return check(address, config.section(table, name, where), where)


def _used(options: Any, home: str, where: str, pipeline: Pipeline, entry: str = "") -> Call:
    """The function that a table of options names; `entry` tells which table it is, where there are several."""
    where = f"{pipeline.name}: {where}"
    if not isinstance(options, dict) or not isinstance(options.get("use"), str):
        raise UsageError(f'{where}{entry}: say which function with use = "name".')
    rest = {name: value for name, value in options.items() if name != "use"}
    return check(find(options["use"], home, f"{where}{entry}"), rest, f"{where} {options['use']}{entry}")


def _inputs(
    table: dict[str, Any], pipeline: Pipeline, given: Sequence[str], out: inputs.Place | None, taken: Sequence[str]
) -> list[Input]:
    where = f"{pipeline.name}: [[build.inputs]]"
    entries = config.tables(table, "inputs", where)
    if not entries:
        raise UsageError(f'{where} is missing: name a source, for example use = "ultrafeedback".')
    if given and len(entries) > 1:
        raise UsageError(f"{where}: several sources, so INPUT does not say which reads it; put paths into the file.")
    sources: list[Call] = []
    settings: list[Call] = []
    groups: list[list[inputs.Place]] = []
    for number, entry in enumerate(entries, 1):
        which = config.which(number, len(entries))
        paths = list(given) or entry.get("paths", [])
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise UsageError(f"{where}{which}: paths must be a list of texts, not {paths!r}.")
        if not paths:
            mend = "Add paths." if which else "Give them on the command line, behind the pipeline, or add paths."
            raise UsageError(f"{where}{which}: no files. {mend}")
        own = {name: entry.pop(name) for name in options_of(mix.entry) if name in entry}
        settings.append(check("prefkit.pairs.mix:entry", own, f"{where} {entry.get('use', '')}{which}"))
        rest = {name: value for name, value in entry.items() if name != "paths"}
        sources.append(_used(rest, "prefkit.pairs.sources.", "[[build.inputs]]", pipeline, which))
        groups.append(inputs.expand(paths, Path() if given else pipeline.folder, out))
    if len({own.options["weight"] is None for own in settings}) > 1:
        raise UsageError(f"{where}: some entries have a weight and some have none; give one to all, or to none.")
    files = inputs.name_files(groups, taken)
    for number, (source, group) in enumerate(zip(sources, files, strict=True), 1):
        named.refuse(source, group, f"{where} {source.name}{config.which(number, len(entries))}")
    return [Input(*each) for each in zip(sources, files, settings, strict=True)]


def _language(table: dict[str, Any], pipeline: Pipeline) -> Call | None:
    if table.get("language") is False:
        return None
    call = _fixed(table, pipeline, "language", "prefkit.pairs.language:language")
    if call.options["model"] != SHIPPED:
        call.options["model"] = str(pipeline.folder / os.path.expanduser(call.options["model"]))
    model_path(call.options["model"])
    if (k := call.options["k"]) > 1 and (known := tags_of(call.options["model"])) and k > len(known):
        raise UsageError(f"{pipeline.name}: [build.language] k = {k}: the model has no more than {len(known)} tags.")
    return call


def _decontaminate(table: dict[str, Any], pipeline: Pipeline) -> Call | None:
    if "decontaminate" not in table:
        return None
    call = _fixed(table, pipeline, "decontaminate", "prefkit.pairs.decontaminate:decontaminate")
    call.options["paths"] = decontaminate.files(call.options["paths"], pipeline.folder)
    return call


def _chunk_bytes(given: Sequence[Input]) -> int:
    """Size of a part where the pipeline says none: by that of all local files, as a remote one costs a request."""
    local = (file for one in given for file in one.files if not file.is_remote)
    least, most = CHUNK_BYTES
    return min(max(sum(map(inputs.size, local)) // PARTS, least), most)


def _filters(table: dict[str, Any], pipeline: Pipeline, language: Call | None) -> tuple[list[Call], list[Call]]:
    """Filters of candidates and of pairs, told apart by the columns that their expressions name."""
    of_candidates: list[Call] = []
    of_pairs: list[Call] = []
    names: set[str] = set()
    for entry in config.tables(table, "filters", f"{pipeline.name}: [[build.filters]]"):
        call = _used(entry, "prefkit.pairs.filters", "[[build.filters]]", pipeline)
        where = f"{pipeline.name}: [[build.filters]] {call.name}"
        if call.name in names or call.name in RESERVED:
            raise UsageError(f"{where}: the name is taken, and it is the reject reason; name the function otherwise.")
        names.add(call.name)
        made = rule(call)
        parts = [made.keep] if made.measure is None else [made.keep, made.measure]
        if odd := [type(part).__name__ for part in parts if not isinstance(part, pl.Expr)]:
            raise UsageError(f"{where}: {call.address} returned {odd[0]}, not a polars expression.")
        if read.needs_language(made.keep) and language is None:
            raise UsageError(f"{where}: it judges languages, but language = false turns tagging off.")
        if language and "response_lang" in made.keep.meta.root_names() and not language.options["responses"]:
            raise UsageError(f"{where}: it judges languages of answers; set [build.language] responses = true.")
        if language and call.address == "prefkit.pairs.filters:languages":
            _check_tags(call.options["allow"], language.options["model"], where)
        _sort_filter(call, made, where, of_candidates, of_pairs)
    return of_candidates, of_pairs


def _check_tags(allowed: Sequence[str], model: str, where: str) -> None:
    """UsageError for a language that no text is ever tagged as."""
    known = tags_of(model)
    for tag in allowed:
        if known is not None and tag not in (*known, UNDETERMINED):
            raise UsageError(
                f'{where}: option allow: no text is ever tagged "{tag}". Tags are codes of ISO 639, such as en or zh.'
            )


def _sort_filter(call: Call, made: Rule, where: str, of_candidates: list[Call], of_pairs: list[Call]) -> None:
    measure = pl.lit(None, pl.String) if made.measure is None else made.measure
    columns = {*made.keep.meta.root_names(), *measure.meta.root_names()}
    for known, calls in ((schema.CANDIDATES, of_candidates), (schema.PAIRS, of_pairs)):
        if columns <= set(known.names):
            try:
                found = tables.empty(known).select(keep=made.keep, measure=measure)
            except pl.exceptions.PolarsError as error:
                raise UsageError(f"{where}: polars refuses the expression: {str(error).splitlines()[0]}.") from error
            for name, kind, what in (("keep", pl.Boolean, "true or false"), ("measure", pl.String, "text")):
                if found[name].dtype != kind:
                    raise UsageError(f"{where}: the expression must be {what}, not {found[name].dtype}.")
            calls.append(call)
            return
    unknown = sorted(columns - set(schema.CANDIDATES.names) - set(schema.PAIRS.names))
    problem = f'there is no column "{unknown[0]}"' if unknown else "it mixes columns of candidates and of pairs"
    raise UsageError(f"{where}: {problem}.")
