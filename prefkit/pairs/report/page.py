"""The page: its sections from the figures."""

from __future__ import annotations

from typing import Any

from prefkit.manifest import Manifest
from prefkit.page.charts import bar, histogram, table, whisker
from prefkit.page.document import Finding, document, findings, nav, read, section
from prefkit.page.html import Html, join, tag
from prefkit.pairs.report.contents import Contents
from prefkit.pairs.report.figures import HALF_OCTAVES, Figures, Share
from prefkit.pairs.report.findings import equally_long, interval, of_stage, percent
from prefkit.pairs.report.flow import flow

MOST_ROWS = 30  # of a table of sources, languages or models
NOTE = "Brackets are 95 % intervals; pairs of one prompt count as what they are worth, since they are not independent."


def render(record: Manifest, contents: Contents, found: list[Finding]) -> str:
    """The whole HTML file."""
    title, figures = f"Data report: {record.pipeline_name}", contents.figures
    sections = [
        findings(found, NOTE),
        section("flow", "Where the rows went", tag("p", "Each reason leads to examples of it."), flow(record.stages)),
        _scores(record, figures),
        _lengths(figures),
        _models(figures),
        _mix(figures, "source", "sources"),
        _mix(figures, "lang", "languages"),
        _duplicates(record, contents.clusters),
        _contamination(record, contents.hits),
        _splits(record, figures),
        _sampler(),
    ]
    names = [("findings", "Findings"), ("flow", "Flow"), ("scores", "Scores"), ("length", "Length"),
             ("models", "Models"), ("sources", "Sources"), ("languages", "Languages"), ("duplicates", "Duplicates"),
             ("contamination", "Contamination"), ("splits", "Splits"), ("sampler", "Sample")]  # fmt: skip
    return document(
        title,
        tag("a", "To the sample", href="#sampler", class_="skip"),
        _header(record, title),
        nav(names),
        tag("main", *sections),
        style=read(__package__, "page.css"),
        script=read(__package__, "page.js"),
        data={"pairs": contents.rows, "rejects": contents.rejects},
    )


def _header(record: Manifest, title: str) -> Html:
    pairs = record.rows("train") + record.rows("test")
    rows = sum(file.rows for file in record.inputs)
    text = (
        f"{pairs:,} preference pairs ({record.rows('train'):,} train, {record.rows('test'):,} test) from {rows:,} raw "
        f"rows of {len(record.inputs):,} file{'s' * (len(record.inputs) > 1)}, by prefkit {record.versions['prefkit']}."
    )
    identity = tag("p", "Data hash ", tag("code", record.data_hash), class_="quiet")
    return tag("header", tag("h1", title), tag("p", text), identity)


def _bins(figures: Figures, name: str) -> dict[int, int]:
    return {int(key): sum(splits.values()) for key, splits in figures.counts[name].items() if key is not None}


def _scores(record: Manifest, figures: Figures) -> Html:
    sides = [(side, _bins(figures, f"{side}_score")) for side in ("chosen", "rejected")]
    tied = of_stage(record, "filter", "tied")
    ties = f"{tied:,} candidates fell because all answers left of their prompt had one score; ties become no pairs."
    return section(
        "scores",
        "Scores and margins",
        tag(
            "div",
            histogram("Scores of chosen and rejected answers", sides, figures.scales["score"].label, "score about"),
            histogram("Margins", [("pairs", _bins(figures, "margin"))], figures.scales["margin"].label, "margin about"),
            class_="two",
        ),
        tag("p", ties),
    )


def _lengths(figures: Figures) -> Html:
    sides = [(side, _bins(figures, f"{side}_chars")) for side in ("chosen", "rejected")]
    longer, equal = figures.shares["longer"]["all"], equally_long(figures)
    by_source = figures.shares["longer by source"]
    rows = [_share_row("all", longer), *(_share_row(name, one) for name, one in _first(by_source))]
    return section(
        "length",
        "Length",
        tag(
            "div",
            histogram("Length of answers, in characters", sides, _characters, "characters from"),
            table(
                ["chosen is longer", "share", "", "pairs"],
                rows,
                "Share of pairs whose chosen answer is longer, by source",
            ),
            class_="two",
        ),
        tag("p", f"Both answers are equally long in {equal:,} pairs ({percent(equal / longer.total)})."),
        _left_out(by_source),
    )


def _characters(key: int) -> str:
    """The least length of a bin, to two digits."""
    least = max(0, round(2 ** (key / HALF_OCTAVES)) - 1)
    return f"{least / 1000:.1f}k" if least >= 1000 else str(least)


def _share_row(name: str, share: Share) -> list[Any]:
    return [name, interval(share), whisker(share.value, share.low, share.high), f"{share.total:,}"]


def _first(shares: dict[str, Any]) -> list[tuple[str, Any]]:
    return list(shares.items())[:MOST_ROWS]


def _left_out(rows: Any) -> Html | None:
    return (
        tag("p", f"{len(rows) - MOST_ROWS:,} smaller ones are not shown.", class_="quiet")
        if len(rows) > MOST_ROWS
        else None
    )


def _models(figures: Figures) -> Html:
    wins = figures.shares["wins"]
    if not wins:
        return section("models", "Models", tag("p", "The pairs name no models."))
    shown = sorted(_first(wins), key=lambda item: (-item[1].value, item[0]))
    rows = [_share_row(name, share) for name, share in shown]
    caption = "Share of its pairs in which a model's answer is the chosen one"
    return section("models", "Models", table(["model", "wins", "", "in pairs"], rows, caption), _left_out(wins))


def _mix(figures: Figures, name: str, plural: str) -> Html:
    title = plural.capitalize()
    counts = figures.counts[name]
    if set(counts) == {None}:
        return section(plural, title, tag("p", "Not tagged."))
    total = {split: sum(splits[split] for splits in counts.values()) for split in ("train", "test")}
    everything = sum(total.values())
    order = sorted(counts, key=lambda key: (-sum(counts[key].values()), str(key)))
    rows = []
    for key in order[:MOST_ROWS]:
        of = counts[key]
        part = sum(of.values()) / everything
        rows.append(["none" if key is None else key, f"{sum(of.values()):,}", percent(part), bar(part)])
        rows[-1] += [percent(of[split] / total[split]) if total[split] else "–" for split in ("train", "test")]
    head = [plural[:-1], "pairs", "share", "", "of train", "of test"]
    return section(plural, title, table(head, rows, f"{title} of pairs"), _left_out(order))


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
    longer = figures.shares["longer by split"]
    rows = [
        ["pairs", *(f"{record.rows(split):,}" for split in splits)],
        ["prompts", *(f"{figures.counts['prompts'][None][split]:,}" for split in splits)],
        ["mean margin", *(f"{figures.margin_mean[split]:.3g}" for split in splits)],
        ["chosen is longer", *(interval(longer[split]) for split in splits)],
    ]
    near = "Near-duplicate prompts never stand on both sides; sources and languages of both stand in their tables."
    return section(
        "splits", "Train and test", table(["of the split", *splits], rows, "Balance of the splits"), tag("p", near)
    )


def _sampler() -> Html:
    def choice(name: str, label: str, *options: str) -> Html:
        return tag("label", label, tag("select", *(tag("option", one, value=one) for one in options), id=name))

    def field(name: str, label: str, kind: str, **attributes: Any) -> Html:
        return tag("label", label, tag("input", id=name, type=kind, **attributes))

    differ = tag("label", tag("input", id="differences", type="checkbox", checked=True), "Mark differing words")
    controls = [
        choice("kind", "Show", "pairs", "rejects"),
        choice("reason", "Reason"),
        choice("source", "Source"),
        choice("lang", "Language"),
        choice("split", "Split"),
        field("margin", "Least margin", "number", step="any", inputmode="decimal"),
        field("most", "Most margin", "number", step="any", inputmode="decimal"),
        field("search", "Search", "search", placeholder="words in any text"),
        differ,
    ]
    steps = [
        tag("button", "← previous", id="previous", type="button"),
        tag("output", id="position", aria_live="polite"),
        tag("button", "next →", id="next", type="button"),
    ]
    does = {"j": "next, ", "k": "previous, ", "/": "search, ", "p": "pairs, ", "r": "rejects."}
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
