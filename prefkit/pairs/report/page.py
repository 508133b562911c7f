"""The page: its sections, those of every data set and those of pairs or labels, in one file."""

from __future__ import annotations

from typing import Any

from prefkit.manifest import Manifest
from prefkit.page.charts import bar, table
from prefkit.page.document import Finding, document, findings, nav, read, section
from prefkit.page.html import Html, join, tag
from prefkit.pairs.report import of_labels, of_pairs
from prefkit.pairs.report.contents import Contents
from prefkit.pairs.report.figures import Figures
from prefkit.pairs.report.flow import flow
from prefkit.pairs.report.parts import MOST_ROWS, Section, left_out
from prefkit.pairs.report.words import interval, of_stage, percent, rows

NOTE = "Brackets are 95 % intervals; {} of one prompt count as what they are worth, since they are not independent."


def render(record: Manifest, contents: Contents, found: list[Finding]) -> str:
    """The whole HTML file."""
    title, figures = f"Data report: {record.pipeline_name}", contents.figures
    of = of_labels if record.kind == "labels" else of_pairs
    went = section("flow", "Where the rows went", tag("p", "Each reason leads to examples of it."), flow(record))
    sections: list[Section] = [
        ("findings", "Findings", findings(found, NOTE.format(rows(record)))),
        ("flow", "Flow", went),
        *of.sections(record, figures),
        ("sources", "Sources", _mix(record, figures, "source", "sources")),
        ("languages", "Languages", _mix(record, figures, "lang", "languages")),
        ("duplicates", "Duplicates", _duplicates(record, contents.clusters)),
        ("contamination", "Contamination", _contamination(record, contents.hits)),
        ("splits", "Splits", _splits(record, figures)),
        ("sampler", "Sample", _sampler(record)),
    ]
    return document(
        title,
        tag("a", "To the sample", href="#sampler", class_="skip"),
        _header(record, title),
        nav([(at, name) for at, name, _ in sections]),
        tag("main", *(one for _, _, one in sections)),
        style=read(__package__, "page.css"),
        script=read(__package__, "page.js"),
        data={"kind": record.kind, "rows": contents.rows, "rejects": contents.rejects},
    )


def _header(record: Manifest, title: str) -> Html:
    held, raw = record.rows("train") + record.rows("test"), sum(file.rows for file in record.inputs)
    what = "labelled answers" if record.kind == "labels" else "preference pairs"
    text = (
        f"{held:,} {what} ({record.rows('train'):,} train, {record.rows('test'):,} test) from {raw:,} raw "
        f"rows of {len(record.inputs):,} file{'s' * (len(record.inputs) > 1)}, by prefkit {record.versions['prefkit']}."
    )
    identity = tag("p", "Data hash ", tag("code", record.data_hash), class_="quiet")
    return tag("header", tag("h1", title), tag("p", text), identity)


def _mix(record: Manifest, figures: Figures, name: str, plural: str) -> Html:
    title = plural.capitalize()
    counts = figures.counts[name]
    if set(counts) == {None}:
        return section(plural, title, tag("p", "Not tagged."))
    total = {split: sum(splits[split] for splits in counts.values()) for split in ("train", "test")}
    everything = sum(total.values())
    order = sorted(counts, key=lambda key: (-sum(counts[key].values()), str(key)))
    good = figures.shares.get(f"good by {name}")
    shown = []
    for key in order[:MOST_ROWS]:
        of = counts[key]
        part = sum(of.values()) / everything
        one = "none" if key is None else str(key)
        shown.append([one, f"{sum(of.values()):,}", *([interval(good[one])] if good else []), percent(part), bar(part)])
        shown[-1] += [percent(of[split] / total[split]) if total[split] else "–" for split in ("train", "test")]
    head = [plural[:-1], rows(record), *(["good"] if good else []), "share", "", "of train", "of test"]
    return section(plural, title, table(head, shown, f"{title} of {rows(record)}"), left_out(order))


def _duplicates(record: Manifest, clusters: list[tuple[str, int]]) -> Html:
    exact, near = (of_stage(record, "dedupe", reason) for reason in ("exact_duplicate", "near_duplicate"))
    text = tag("p", f"{exact:,} candidates fell as exact and {near:,} as near-duplicates.")
    if not clusters:
        return section("duplicates", "Near-duplicates", text)
    rows = [[tag("span", _short(prompt), class_="prompt"), f"{count:,}"] for prompt, count in clusters]
    caption = "The largest clusters: rows that fell as near-duplicates of a prompt"
    return section("duplicates", "Near-duplicates", text, table(["prompt", "rows"], rows, caption))


def _short(text: str, longest: int = 160) -> str:
    return text if len(text) <= longest else text[:longest] + "…"


def _contamination(record: Manifest, hits: list[tuple[str, int]]) -> Html:
    title = "Contamination"
    if not record.options["decontaminate"]:
        return section("contamination", title, tag("p", "Nothing was compared with evaluation prompts."))
    text = tag("p", f"{of_stage(record, 'decontaminate'):,} candidates fell because of evaluation prompts in theirs.")
    rows = [[item, f"{count:,}"] for item, count in hits]
    caption = "Evaluation items that were met most"
    return section("contamination", title, text, table(["item", "candidates"], rows, caption) if rows else None)


def _splits(record: Manifest, figures: Figures) -> Html:
    splits = [split for split in ("train", "test") if record.rows(split)]
    name, label = ("good", "good") if record.kind == "labels" else ("longer", "chosen is longer")
    shares = figures.shares[f"{name} by split"]
    shown = [
        [rows(record), *(f"{record.rows(split):,}" for split in splits)],
        ["prompts", *(f"{figures.counts['prompts'][None][split]:,}" for split in splits)],
        *([["mean margin", *(f"{mean:.3g}" for mean in figures.margin_mean.values())]] if figures.margin_mean else []),
        [label, *(interval(shares[split]) for split in splits)],
    ]
    near = "Near-duplicate prompts never stand on both sides; sources and languages of both stand in their tables."
    return section(
        "splits", "Train and test", table(["of the split", *splits], shown, "Balance of the splits"), tag("p", near)
    )


def _sampler(record: Manifest) -> Html:
    def choice(name: str, label: str, **options: str) -> Html:
        shown = (tag("option", text, value=value) for value, text in options.items())
        return tag("label", label, tag("select", *shown, id=name))

    def field(name: str, label: str, kind: str, **attributes: Any) -> Html:
        return tag("label", label, tag("input", id=name, type=kind, **attributes))

    differ = tag("label", tag("input", id="differences", type="checkbox", checked=True), "Mark differing words")
    amount = "score" if record.kind == "labels" else "margin"
    controls = [
        choice("kind", "Show", rows=rows(record), rejects="rejects"),
        choice("reason", "Reason"),
        choice("label", "Label") if record.kind == "labels" else None,
        choice("source", "Source"),
        choice("lang", "Language"),
        choice("split", "Split"),
        field("least", f"Least {amount}", "number", step="any", inputmode="decimal"),
        field("most", f"Most {amount}", "number", step="any", inputmode="decimal"),
        field("search", "Search", "search", placeholder="words in any text"),
        differ if record.kind == "pairs" else None,
    ]
    steps = [
        tag("button", "← previous", id="previous", type="button"),
        tag("output", id="position", aria_live="polite"),
        tag("button", "next →", id="next", type="button"),
    ]
    does = {"j": "next, ", "k": "previous, ", "/": "search, ", rows(record)[0]: f"{rows(record)}, ", "r": "rejects."}
    keys = [join(tag("kbd", key), f" {what}") for key, what in does.items()]
    hint = tag("p", "A fixed random sample. Keys: ", *keys)
    return section(
        "sampler",
        "Sample",
        hint,
        tag("form", *controls, id="controls", aria_label="Filter the sample"),
        tag("div", *steps, class_="steps"),
        tag("div", id="item"),
        tag("noscript", "The sample needs JavaScript, which this page carries itself."),
    )
