"""What the figures say, in sentences: each only where its figure, with its interval, supports it."""

from __future__ import annotations

from collections.abc import Iterator

from prefkit.manifest import Manifest
from prefkit.page.document import Finding
from prefkit.pairs.report import of_labels, of_pairs
from prefkit.pairs.report.figures import Figures
from prefkit.pairs.report.words import candidates, of_stage, percent, rows


def findings(record: Manifest, figures: Figures) -> list[Finding]:
    """What asks for a decision first."""
    of = of_labels if record.kind == "labels" else of_pairs
    found = [
        *(Finding(True, remark) for remark in record.remarks),
        *of.findings(record, figures),
        *_no_test(record),
        *_duplicates(record),
        *_contamination(record),
        *_languages(record, figures),
        *_sources(record, figures),
        *_losses(record),
    ]
    return sorted(found, key=lambda finding: not finding.look)


def _no_test(record: Manifest) -> Iterator[Finding]:
    if not record.rows("test"):
        text = f"There is no test split, so training cannot be judged on held-out {rows(record)}: [build.split] test."
        yield Finding(True, text)


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
    share = percent(counts[main] / sum(counts.values()))
    yield Finding(False, f"{share} of {rows(record)} are tagged {main or 'with no language'}.")


def _sources(record: Manifest, figures: Figures) -> Iterator[Finding]:
    counts = {key: sum(splits.values()) for key, splits in figures.counts["source"].items()}
    if len(counts) > 1:
        main = max(counts, key=lambda key: counts[key])
        share = percent(counts[main] / sum(counts.values()))
        yield Finding(False, f"The largest of {len(counts)} sources, {main}, gives {share} of {rows(record)}.")


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
        where = "in no pair" if record.kind == "pairs" else "not in the data"
        text = f"{percent(total / came)} of candidates are {where}"
        yield Finding(False, f"{text}; the most frequent reason is {reason} at {stage}, {count:,} times.")
