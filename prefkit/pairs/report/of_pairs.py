"""What the report says and shows of pairs alone: scores and margins, which answer is longer, whose answers win."""

from __future__ import annotations

from collections.abc import Iterator

from prefkit.manifest import Manifest
from prefkit.page.charts import histogram
from prefkit.page.document import Finding, section
from prefkit.page.html import tag
from prefkit.pairs.report.figures import KINDS, Figures
from prefkit.pairs.report.parts import Section, bins, first, left_out, lengths, scores, share_table, with_parts
from prefkit.pairs.report.words import FEW, apart, interval, of_stage, one_sided, percent

CLEAR = 0.55  # a share of longer winners from which on length bias is worth a decision
SIDES = KINDS["pairs"]


def findings(record: Manifest, figures: Figures) -> Iterator[Finding]:
    """What the figures of pairs say."""
    yield from _length(record, figures)
    yield from _splits(figures)
    yield from _models(figures)
    yield from _margins(figures)


def sections(record: Manifest, figures: Figures) -> list[Section]:
    """What they look like."""
    tied = of_stage(record, "filter", "tied")
    ties = f"{tied:,} candidates fell because all answers left of their prompt had one score; ties become no pairs."
    if len(figures.counts["source"]) > 1:
        ties += " Sources may rate on scales of their own."
    longer, equal = figures.shares["longer"]["all"], _equally_long(figures)
    by_source, wins = figures.shares["longer by source"], figures.shares["models"]
    margins = histogram("Margins", [("pairs", bins(figures, "margin"))], figures.scales["margin"].label, "margin about")
    caption = "Share of pairs whose chosen answer is longer, by source"
    bias = share_table(["chosen is longer", "share", "", "pairs"], with_parts(longer, by_source), caption)
    models = sorted(first(wins), key=lambda item: (-item[1].value, item[0]))
    caption = "Share of its pairs in which a model's answer is the chosen one"
    won = share_table(["model", "wins", "", "in pairs"], models, caption)
    drawn = tag("div", scores(figures, "Scores of chosen and rejected answers", SIDES), margins, class_="two")
    equally = tag("p", f"Both answers are equally long in {equal:,} pairs ({percent(equal / longer.total)}).")
    return [
        ("scores", "Scores", section("scores", "Scores and margins", drawn, tag("p", ties))),
        (
            "length",
            "Length",
            section(
                "length",
                "Length",
                tag("div", lengths(figures, SIDES), bias, class_="two"),
                equally,
                left_out(by_source),
            ),
        ),
        (
            "models",
            "Models",
            section("models", "Models", won if wins else tag("p", "The pairs name no models."), left_out(wins)),
        ),
    ]


def _equally_long(figures: Figures) -> int:
    """Pairs whose answers have the same number of characters."""
    longer, shorter = figures.shares["longer"]["all"], figures.shares["shorter"]["all"]
    return longer.total - longer.hits - shorter.hits


def _length(record: Manifest, figures: Figures) -> Iterator[Finding]:
    longer, shorter = figures.shares["longer"]["all"], figures.shares["shorter"]["all"]
    limit = record.options["balance"]["max_longer_share"]
    if longer.low > 0.5 and longer.value >= CLEAR:
        mend = "consider [build.balance] max_longer_share" if limit is None else f"max_longer_share is {limit}"
        yield Finding(True, f"The longer answer wins in {interval(longer)} of pairs: {mend}.")
    elif shorter.low > 0.5 and shorter.value >= CLEAR:
        yield Finding(True, f"The shorter answer wins in {interval(shorter)} of pairs: is brevity what is wanted?")
    else:
        yield Finding(False, f"The longer answer wins in {interval(longer)} of pairs.")
    by_source = {name: one for name, one in figures.shares["longer by source"].items() if one.total >= FEW}
    if len(by_source) > 1:
        name, most = max(by_source.items(), key=lambda item: item[1].value)
        if most.low > longer.high and most.low > 0.5:
            yield Finding(True, f"Length decides most in source {name}: the longer answer wins in {interval(most)}.")


def _splits(figures: Figures) -> Iterator[Finding]:
    train, test = (figures.shares["longer by split"].get(split) for split in ("train", "test"))
    if train and test and (train.low > test.high or test.low > train.high):
        shares = f"{interval(train)} of train and {interval(test)} of test pairs"
        yield Finding(True, f"The splits differ in length bias: the longer answer wins in {shares}.")


def _models(figures: Figures) -> Iterator[Finding]:
    if ends := apart(figures.shares["models"]):
        (best, most), (worst, least) = ends
        text = f"Answers of {best} win {interval(most)} of their pairs, those of {worst} {interval(least)}"
        sure = one_sided(most, least)
        yield Finding(sure, text + (": the model alone nearly decides." if sure else "."))


def _margins(figures: Figures) -> Iterator[Finding]:
    counts = bins(figures, "margin")
    least = min(counts)
    label = figures.scales["margin"].label(least)
    if len(counts) == 1:
        yield Finding(False, f"All margins are about {label}.")
    else:
        share = percent(counts[least] / sum(counts.values()))
        text = f"{share} of pairs have a margin near the smallest, about {label}; the filter min_margin sets a bound."
        yield Finding(False, text)
