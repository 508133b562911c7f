"""What the report says and shows of labels alone: how many answers are good, and what else tells good from bad."""

from __future__ import annotations

from collections.abc import Iterator

from prefkit.manifest import Manifest
from prefkit.page.charts import table
from prefkit.page.document import Finding, section
from prefkit.page.html import Html, tag
from prefkit.pairs.report.figures import KINDS, Figures
from prefkit.pairs.report.parts import Section, first, left_out, lengths, scores, share_table, with_parts
from prefkit.pairs.report.words import apart, interval, of_stage, one_sided, percent, times

CLEAR = 1.1  # a ratio of lengths from which on it is worth a decision
LARGEST_RATIO = 4 / 3  # of what good answers weigh in KTO's loss to what bad ones do; the least is 1
SIDES = KINDS["labels"]


def findings(record: Manifest, figures: Figures) -> Iterator[Finding]:
    """What the figures of labels say."""
    yield from _balance(figures)
    yield from _length(figures)
    yield from _given_away(figures, "models", "answers of")
    yield from _given_away(figures, "good by source", "answers of source")
    yield from _splits(figures)
    yield from _both(figures)


def sections(record: Manifest, figures: Figures) -> list[Section]:
    """What they look like."""
    options = record.options["labels"]
    between = of_stage(record, "binarize", "no_label")
    rule = (
        f"Good is what is scored {options['desirable_at_least']:g} or more, bad what is scored "
        f"{options['undesirable_at_most']:g} or less; {between:,} answers in between fell (no_label)."
    )
    by_source, of_models = figures.shares["good by source"], figures.shares["models"]
    caption = "Share of good answers, by source"
    shares = with_parts(figures.shares["good"]["all"], by_source)
    balance = share_table(["good", "share", "", "answers"], shares, caption)
    models = sorted(first(of_models), key=lambda item: (-item[1].value, item[0]))
    caption = "Share of a model's answers that is good"
    of_model = share_table(["model", "good", "", "answers"], models, caption)
    title = "Scores of good and bad answers"
    no_models = tag("p", "The answers name no models.")
    return [
        ("balance", "Balance", section("balance", "Good and bad answers", balance, left_out(by_source))),
        (
            "scores",
            "Scores",
            section("scores", "Scores", tag("div", scores(figures, title, SIDES), tag("p", rule), class_="two")),
        ),
        (
            "length",
            "Length",
            section("length", "Length", tag("div", lengths(figures, SIDES), _typical(figures), class_="two")),
        ),
        (
            "models",
            "Models",
            section("models", "Models", of_model if of_models else no_models, left_out(of_models)),
        ),
    ]


def _typical(figures: Figures) -> Html:
    if "all" not in figures.lengths:
        return tag("p", "There is nothing to compare: all answers have one label, or are of one prompt.")
    by_source = {name: one for name, one in figures.lengths.items() if name != "all"}
    rows = [
        [name, times(one), *(f"{length:,.0f}" for length in one.typical)]
        for name, one in with_parts(figures.lengths["all"], by_source)
    ]
    caption = "Typical length (geometric mean), in characters, by source"
    return table(["length", "good to bad", *SIDES], rows, caption)


def _balance(figures: Figures) -> Iterator[Finding]:
    good = figures.shares["good by split"].get("train", figures.shares["good"]["all"])
    bad = good.total - good.hits
    text = f"{interval(figures.shares['good']['all'])} of answers are good"
    if not good.hits or not bad:
        yield Finding(True, f"{text}: with one label alone, there is nothing to tell apart.")
    elif good.low <= LARGEST_RATIO / (1 + LARGEST_RATIO) and good.high >= 0.5:
        yield Finding(False, f"{text}: near the balance of 1 to 4/3 that KTO wants.")
    else:
        least, most = bad / good.hits, LARGEST_RATIO * bad / good.hits
        weights = f"desirable_weight = {least:.3g} to {most:.3g} does it"
        yield Finding(True, f"{text}: KTO wants good ones to weigh 1 to 4/3 times the bad ones; {weights}.")


def _length(figures: Figures) -> Iterator[Finding]:
    if "all" not in figures.lengths:
        return
    one = figures.lengths["all"]
    text = f"Good answers are typically {times(one)} times as long as bad ones"
    if one.low > 1 and one.value >= CLEAR:
        yield Finding(True, f"{text}: is it length that is liked?")
    elif one.high < 1 and one.value <= 1 / CLEAR:
        yield Finding(True, f"{text}: is brevity what is wanted?")
    else:
        yield Finding(False, f"{text}.")


def _given_away(figures: Figures, figure: str, what: str) -> Iterator[Finding]:
    if ends := apart(figures.shares[figure]):
        (best, most), (worst, least) = ends
        text = f"Good are {interval(most)} of the {what} {best} and {interval(least)} of the {what} {worst}"
        sure = one_sided(most, least)
        yield Finding(sure, text + (": the name alone nearly gives the label away." if sure else "."))


def _splits(figures: Figures) -> Iterator[Finding]:
    train, test = (figures.shares["good by split"].get(split) for split in ("train", "test"))
    if train and test and (train.low > test.high or test.low > train.high):
        yield Finding(True, f"The splits differ: {interval(train)} of train and {interval(test)} of test are good.")


def _both(figures: Figures) -> Iterator[Finding]:
    both, prompts = (sum(figures.counts[name][None].values()) for name in ("prompts with both", "prompts"))
    if both:
        text = (
            f"{percent(both / prompts)} of prompts have good and bad answers, which could be pairs: [build.binarize]."
        )
        yield Finding(False, text)
    else:
        yield Finding(False, "No prompt has both a good and a bad answer, so these data make no pairs.")
