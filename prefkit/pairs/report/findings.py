"""What the figures say, in sentences: each only where its figure, with its interval, supports it."""

from __future__ import annotations

from collections.abc import Iterator

from prefkit.manifest import Manifest
from prefkit.page.document import Finding
from prefkit.pairs.report.figures import Figures, Share

FEW = 30  # pairs of a model or a source below which nothing is said of it
ONE_SIDED = 0.9  # a share of wins above which a model's name says the answer
CLEAR = 0.55  # a share of longer winners from which on length bias is worth a decision


def findings(record: Manifest, figures: Figures) -> list[Finding]:
    """What asks for a decision first."""
    found = [
        *_length(record, figures),
        *_splits(record, figures),
        *_models(figures),
        *_margins(figures),
        *_duplicates(record),
        *_contamination(record),
        *_languages(record, figures),
        *_sources(figures),
        *_losses(record),
    ]
    return sorted(found, key=lambda finding: not finding.look)


def percent(share: float) -> str:
    """A share in percent, with a decimal where it is near an end."""
    value = 100 * share
    return f"{value:.1f}\u00a0%" if 0 < value < 10 or 90 < value < 100 else f"{value:.0f}\u00a0%"


def interval(share: Share) -> str:
    """`71 % [70, 72]`, in spaces at which no line breaks."""
    digits = 1 if share.value < 0.1 or share.value > 0.9 or share.high - share.low < 0.02 else 0
    low, value, high = (f"{100 * part:.{digits}f}" for part in (share.low, share.value, share.high))
    return f"{value}\u00a0% [{low},\u00a0{high}]"


def of_stage(record: Manifest, stage: str, reason: str | None = None) -> int:
    """How many candidates fell at a stage, or there to a reason."""
    rejected = [one.rejected for one in record.stages if one.stage == stage and one.unit == "candidates"]
    return sum(count for table in rejected for name, count in table.items() if reason in (None, name))


def candidates(record: Manifest) -> int:
    """How many candidates there were."""
    return next(stage.came_in for stage in record.stages if stage.unit == "candidates")


def equally_long(figures: Figures) -> int:
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


def _splits(record: Manifest, figures: Figures) -> Iterator[Finding]:
    if not record.rows("test"):
        yield Finding(
            True, "There is no test split, so training cannot be judged on held-out pairs: [build.split] test."
        )
        return
    train, test = (figures.shares["longer by split"].get(split) for split in ("train", "test"))
    if train and test and (train.low > test.high or test.low > train.high):
        shares = f"{interval(train)} of train and {interval(test)} of test pairs"
        yield Finding(True, f"The splits differ in length bias: the longer answer wins in {shares}.")


def _models(figures: Figures) -> Iterator[Finding]:
    wins = {name: one for name, one in figures.shares["wins"].items() if one.total >= FEW}
    if len(wins) < 2:
        return
    best, most = max(wins.items(), key=lambda item: item[1].value)
    worst, least = min(wins.items(), key=lambda item: item[1].value)
    if most.low > least.high:
        text = f"Answers of {best} win {interval(most)} of their pairs, those of {worst} {interval(least)}"
        one_sided = most.low > ONE_SIDED or least.high < 1 - ONE_SIDED
        yield Finding(one_sided, text + (": the model alone nearly decides." if one_sided else "."))


def _margins(figures: Figures) -> Iterator[Finding]:
    bins = {int(key or 0): sum(splits.values()) for key, splits in figures.counts["margin"].items()}
    least = min(bins)
    label = figures.scales["margin"].label(least)
    if len(bins) == 1:
        yield Finding(False, f"All margins are about {label}.")
    else:
        share = percent(bins[least] / sum(bins.values()))
        text = f"{share} of pairs have the smallest margin, about {label}; the filter min_margin sets a bound."
        yield Finding(False, text)


def _duplicates(record: Manifest) -> Iterator[Finding]:
    exact, near = (of_stage(record, "dedupe", reason) for reason in ("exact_duplicate", "near_duplicate"))
    if exact + near:
        share = percent((exact + near) / candidates(record))
        yield Finding(False, f"{share} of candidates were duplicates: {exact:,} exact and {near:,} near.")


def _contamination(record: Manifest) -> Iterator[Finding]:
    if not record.options["decontaminate"]:
        yield Finding(True, "Nothing was compared with evaluation prompts: [build.decontaminate] does it.")
    elif met := of_stage(record, "decontaminate"):
        yield Finding(False, f"{met:,} candidates fell because their prompts overlap with evaluation prompts.")
    else:
        yield Finding(False, "No prompt overlaps with the evaluation prompts that were given.")


def _languages(record: Manifest, figures: Figures) -> Iterator[Finding]:
    if not record.options["language"]:
        yield Finding(False, "Languages were not tagged: [build.language] does it.")
        return
    counts = {key: sum(splits.values()) for key, splits in figures.counts["lang"].items()}
    main = max(counts, key=lambda key: counts[key])
    yield Finding(
        False, f"{percent(counts[main] / sum(counts.values()))} of pairs are tagged {main or 'with no language'}."
    )


def _sources(figures: Figures) -> Iterator[Finding]:
    counts = {key: sum(splits.values()) for key, splits in figures.counts["source"].items()}
    if len(counts) > 1:
        main = max(counts, key=lambda key: counts[key])
        share = percent(counts[main] / sum(counts.values()))
        yield Finding(False, f"The largest of {len(counts)} sources, {main}, gives {share} of pairs.")


def _losses(record: Manifest) -> Iterator[Finding]:
    came = candidates(record)
    fallen = [
        (count, stage.stage, reason)
        for stage in record.stages
        if stage.unit == "candidates"
        for reason, count in stage.rejected.items()
    ]
    if fallen and came:
        count, stage, reason = max(fallen)
        total = sum(one for one, _, _ in fallen)
        text = f"{percent(total / came)} of candidates are in no pair"
        yield Finding(False, f"{text}; most of these, {count:,}, fell at {stage} to {reason}.")
