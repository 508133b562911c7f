"""The page of `prefkit view`: its skeleton, and the files that it loads. Everything of the data comes by its script."""

from __future__ import annotations

from typing import Any

from prefkit.manifest import Manifest
from prefkit.page.document import read
from prefkit.page.html import Html, join, tag
from prefkit.schema import SIDES

KEYS = [
    ("j", "next"),
    ("k", "previous"),
    ("f", "flag it, with a note"),
    ("u", "take its flag back"),
    ("h", "its history"),
    ("d", "mark differing words, or not"),
    ("/", "search"),
    ("p", "what was kept"),
    ("r", "rejects"),
    ("Esc", "leave a field; back to the list"),
    ("?", "this help"),
]
SORTS = {
    "pairs": [
        ("", "as in the data set"),
        ("margin ascending", "least margin first"),
        ("margin descending", "most margin first"),
        ("chosen_score ascending", "lowest score of chosen first"),
        ("chosen_score descending", "highest score of chosen first"),
        ("rejected_score ascending", "lowest score of rejected first"),
        ("rejected_score descending", "highest score of rejected first"),
        ("lang_prob ascending", "least certain language first"),
        ("source ascending", "by source"),
        ("lang ascending", "by language"),
    ],
    "labels": [
        ("", "as in the data set"),
        ("completion_score ascending", "lowest score first"),
        ("completion_score descending", "highest score first"),
        ("lang_prob ascending", "least certain language first"),
        ("source ascending", "by source"),
        ("lang ascending", "by language"),
    ],
    "rejects": [("", "as in the data set"), ("origin_row ascending", "by raw row"), ("reason ascending", "by reason")],
}


def assets(record: Manifest) -> dict[str, tuple[str, bytes]]:
    """What the server gives out as files: by their names, with their content types."""
    style = read("prefkit.page", "page.css") + read(__package__, "view.css")
    script = read("prefkit.page", "texts.js")
    script += "\n".join(read(__package__, name) for name in ("view.js", "item.js", "filters.js"))
    return {
        "": ("text/html; charset=utf-8", _page(record).encode()),
        "view.css": ("text/css; charset=utf-8", style.encode()),
        "view.js": ("text/javascript; charset=utf-8", script.encode()),
    }


def _page(record: Manifest) -> str:
    title = f"Data: {record.pipeline_name}"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),
        tag("link", rel="stylesheet", href="view.css"),
        tag("script", src="view.js", defer=True),
    )
    body = tag(
        "body",
        tag("a", "To the list", href="#list", class_="skip", id="skip"),
        _header(title, record.kind),
        tag(
            "main",
            _filters(record.kind),
            tag("p", id="said", role="alert", class_="look", hidden=True),
            _list(),
            _item(),
        ),
        _help(),
        data_kind=record.kind,
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _header(title: str, kind: str) -> Html:
    kinds = [
        tag(
            "button",
            name,
            tag("span", class_="count", id=f"{name.lower()}-count"),
            type="button",
            data_table=name.lower(),
        )
        for name in (kind.capitalize(), "Rejects")
    ]
    return tag(
        "header",
        tag("h1", title),
        tag("div", *kinds, class_="kinds", role="group", aria_label="What to look at"),
        tag("p", tag("button", "Flagged: ", tag("span", "0", id="flag-count"), id="show-flagged", type="button"),
            tag("button", "Keys ", tag("kbd", "?"), id="show-help", type="button"), class_="tools"),
    )  # fmt: skip


def _filters(kind: str) -> Html:
    def choice(name: str, label: str, of: str, *options: tuple[str, str]) -> Html:
        made = [tag("option", text, value=value) for value, text in options]
        return tag("label", label, tag("select", *made, id=name, name=name), data_of=of)

    def field(name: str, label: str, of: str, **attributes: Any) -> Html:
        return tag("label", label, tag("input", id=name, name=name, **attributes), data_of=of)

    number = {"type": "number", "step": "any", "inputmode": "decimal"}
    bounded = {"pairs": "margin", "labels": "score"}[kind]
    own = {
        "pairs": [
            choice("chosen_model", "Chosen model", kind),
            choice("rejected_model", "Rejected model", kind),
            choice("strategy", "Strategy", kind),
        ],
        "labels": [choice("label", "Label", kind), choice("completion_model", "Model", kind)],
    }
    controls = [
        field("text", "Search", "both", type="search", placeholder='words, "a phrase"', maxlength=2000),
        choice("within", "In", kind, ("", "all texts"), *((name, name) for name in ("prompt", *SIDES[kind]))),
        choice("source", "Source", kind),
        choice("lang", "Language", kind),
        field("least", f"Least {bounded}", kind, **number),
        field("most", f"Most {bounded}", kind, **number),
        *own[kind],
        choice("split", "Split", kind, ("", "all"), ("train", "train"), ("test", "test")),
        choice("flagged", "Flagged", kind, ("", "all"), ("yes", "flagged"), ("no", "not flagged")),
        choice("reason", "Reason", "rejects"),
        choice("stage", "Stage", "rejects"),
        choice("origin_file", "Raw file", "rejects"),
        field("id", "Id begins with", "both", type="text", maxlength=32, spellcheck="false", autocapitalize="off"),
        *(choice(f"sort-{of}", "Order", of, *SORTS[of]) for of in (kind, "rejects")),
        tag("button", "Clear", id="clear", type="button"),
    ]
    return tag(
        "details",
        tag("summary", tag("h2", "Filter")),
        tag("form", *controls, id="filters", aria_label="Filter"),
        id="filter",
        open=True,
    )


def _list() -> Html:
    steps = [
        tag("button", "←", id="page-before", type="button", aria_label="previous page"),
        tag("output", id="position", aria_live="polite"),
        tag("button", "→", id="page-after", type="button", aria_label="next page"),
    ]
    return tag(
        "section",
        tag("h2", "List", class_="unseen", id="list-title"),
        tag("div", *steps, class_="steps"),
        tag("ol", id="rows"),
        id="list",
        tabindex=-1,
        aria_labelledby="list-title",
    )


def _item() -> Html:
    return tag(
        "section",
        tag("p", "Nothing is open. Choose one of the list, or press ", tag("kbd", "j"), ".", class_="quiet", id="none"),
        tag("div", id="item"),
        tag("noscript", "The browser needs JavaScript, which this page brings itself."),
        id="one",
        tabindex=-1,
        aria_label="What is open",
    )


def _help() -> Html:
    keys = [join(tag("dt", tag("kbd", key)), tag("dd", does)) for key, does in KEYS]
    note = 'Flags are saved at once. A pipeline leaves out what is flagged with exclude = "flags.jsonl" in [build].'
    close = tag("form", tag("button", "Close"), method="dialog")
    return tag("dialog", tag("h2", "Keys", id="help-title"), tag("dl", *keys), tag("p", note, class_="quiet"), close,
               id="help", aria_labelledby="help-title")  # fmt: skip
