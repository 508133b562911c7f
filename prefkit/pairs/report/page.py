"""The page: its sections from the figures, and all of it in one file that nothing outside can reach.

Its Content-Security-Policy allows the page's own style and script, named by their SHA-256, and nothing else: no other
script, no address to load from or to send to. Texts of the data set stand in a JSON block with every `<` escaped, and
the script shows them with `textContent` alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any

from prefkit.manifest import Manifest
from prefkit.pairs.report.charts import bar, flow, histogram, table, whisker
from prefkit.pairs.report.figures import HALF_OCTAVES, Figures, Share
from prefkit.pairs.report.findings import Finding, equally_long, interval, of_stage, percent
from prefkit.pairs.report.html import Html, join, tag

MOST_ROWS = 30  # of a table of sources, languages or models


def render(
    record: Manifest,
    figures: Figures,
    found: list[Finding],
    cluster_prompts: dict[str, str],
    sample: dict[str, list[dict[str, Any]]],
) -> str:
    """The whole HTML file."""
    style, script = (Html((files(__package__) / name).read_text("utf-8")) for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )
    title = f"Data report: {record.pipeline_name}"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", style),
    )
    sections = [
        _findings(found),
        _section("flow", "Where the rows went", tag("p", "Each reason leads to examples of it."), flow(record.stages)),
        _scores(record, figures),
        _lengths(figures),
        _models(figures),
        _mix(figures, "source", "sources"),
        _mix(figures, "lang", "languages"),
        _duplicates(record, figures, cluster_prompts),
        _contamination(record, figures),
        _splits(record, figures),
        _sampler(),
    ]
    names = [("findings", "Findings"), ("flow", "Flow"), ("scores", "Scores"), ("length", "Length"),
             ("models", "Models"), ("sources", "Sources"), ("languages", "Languages"), ("duplicates", "Duplicates"),
             ("contamination", "Contamination"), ("splits", "Splits"), ("sampler", "Sample")]  # fmt: skip
    body = tag(
        "body",
        tag("a", "To the sample", href="#sampler", class_="skip"),
        _header(record, title),
        tag("nav", *(tag("a", name, href=f"#{at}") for at, name in names), aria_label="Sections"),
        tag("main", *sections),
        tag("script", data_block(sample), type="application/json", id="sample-data"),
        tag("script", script),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def data_block(data: Any) -> Html:
    """JSON that no text can leave: without `<`, there is neither a closing tag nor a comment in it."""
    return Html(json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _section(name: str, title: str, *children: Any) -> Html:
    return tag("section", tag("h2", title, id=f"{name}-title"), *children, id=name, aria_labelledby=f"{name}-title")


def _header(record: Manifest, title: str) -> Html:
    pairs = record.rows("train") + record.rows("test")
    rows = sum(file.rows for file in record.inputs)
    text = (
        f"{pairs:,} preference pairs ({record.rows('train'):,} train, {record.rows('test'):,} test) from {rows:,} raw "
        f"rows of {len(record.inputs):,} file{'s' * (len(record.inputs) > 1)}, by prefkit {record.versions['prefkit']}."
    )
    identity = tag("p", "Data hash ", tag("code", record.data_hash), class_="quiet")
    return tag("header", tag("h1", title), tag("p", text), identity)


def _findings(found: list[Finding]) -> Html:
    items = [
        tag("li", tag("strong", "Look: ") if one.look else None, one.text, class_="look" if one.look else None)
        for one in found
    ]
    note = (
        "Brackets are 95 % intervals; pairs of one prompt count as what they are worth, since they are not independent."
    )
    return _section("findings", "Findings", tag("ul", *items, class_="findings"), tag("p", note, class_="quiet"))


def _bins(figures: Figures, name: str) -> dict[int, int]:
    return {int(key): sum(splits.values()) for key, splits in figures.counts[f"bin_{name}"].items() if key is not None}


def _scores(record: Manifest, figures: Figures) -> Html:
    sides = [(side, _bins(figures, f"{side}_score")) for side in ("chosen", "rejected")]
    tied = of_stage(record, "filter", "tied")
    ties = f"{tied:,} candidates fell because all answers left of their prompt had one score; ties become no pairs."
    return _section(
        "scores",
        "Scores and margins",
        tag(
            "div",
            histogram(
                "Scores of chosen and rejected answers", sides, figures.scales["chosen_score"].label, "score about"
            ),
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
    return _section(
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
    return [name, interval(share), whisker(share), f"{share.total:,}"]


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
        return _section("models", "Models", tag("p", "The pairs name no models."))
    shown = sorted(_first(wins), key=lambda item: (-item[1].value, item[0]))
    rows = [_share_row(name, share) for name, share in shown]
    caption = "Share of its pairs in which a model's answer is the chosen one"
    return _section("models", "Models", table(["model", "wins", "", "in pairs"], rows, caption), _left_out(wins))


def _mix(figures: Figures, name: str, section: str) -> Html:
    title = section.capitalize()
    counts = figures.counts[name]
    if set(counts) == {None}:
        return _section(section, title, tag("p", "Not tagged."))
    total = {split: sum(splits[split] for splits in counts.values()) for split in ("train", "test")}
    everything = sum(total.values())
    order = sorted(counts, key=lambda key: (-sum(counts[key].values()), str(key)))
    rows = []
    for key in order[:MOST_ROWS]:
        of = counts[key]
        part = sum(of.values()) / everything
        rows.append(["none" if key is None else key, f"{sum(of.values()):,}", percent(part), bar(part)])
        rows[-1] += [percent(of[split] / total[split]) if total[split] else "–" for split in ("train", "test")]
    head = [section[:-1], "pairs", "share", "", "of train", "of test"]
    return _section(section, title, table(head, rows, f"{title} of pairs"), _left_out(order))


def _duplicates(record: Manifest, figures: Figures, prompts: dict[str, str]) -> Html:
    exact, near = (of_stage(record, "dedupe", reason) for reason in ("exact_duplicate", "near_duplicate"))
    text = tag("p", f"{exact:,} candidates fell as exact and {near:,} as near-duplicates.")
    if not figures.clusters:
        return _section("duplicates", "Near-duplicates", text)
    rows = [
        [tag("span", _short(prompts.get(cluster, f"{cluster} (no pair is left of it)")), class_="prompt"), f"{count:,}"]
        for cluster, count in figures.clusters
    ]
    caption = "The largest clusters: rows that fell as near-duplicates of a prompt"
    return _section("duplicates", "Near-duplicates", text, table(["prompt", "rows"], rows, caption))


def _short(text: str, longest: int = 160) -> str:
    return text if len(text) <= longest else text[:longest] + "…"


def _contamination(record: Manifest, figures: Figures) -> Html:
    title = "Contamination"
    if not record.options["decontaminate"]:
        return _section("contamination", title, tag("p", "Nothing was compared with evaluation prompts."))
    text = tag("p", f"{of_stage(record, 'decontaminate'):,} candidates fell because of evaluation prompts in theirs.")
    rows = [[item, f"{count:,}"] for item, count in figures.hits]
    caption = "Evaluation items that were met most"
    return _section("contamination", title, text, table(["item", "candidates"], rows, caption) if rows else None)


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
    return _section(
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
    return _section(
        "sampler",
        "Sample",
        hint,
        tag("form", *controls, id="controls", aria_label="Filter the sample"),
        tag("div", *steps, class_="steps"),
        tag("div", id="item"),
        tag("noscript", "The sample needs JavaScript, which this page carries itself."),
    )
