"""What came into each stage of a build, what went on and what fell, as bars of inline SVG that lead to examples."""

from __future__ import annotations

from typing import Any

from prefkit.manifest import Manifest, StageReport
from prefkit.page.html import Html, join, tag


def flow(record: Manifest) -> Html:
    """What came into each stage, as a bar: what went on, and a band for each reason, which leads to examples of it."""
    shown = (stage for stage in record.stages if stage.unit != "labels")  # each is a candidate, and counted as such
    return tag("ol", *(_stage(stage, record) for stage in shown), class_="flow")


def _stage(stage: StageReport, record: Manifest) -> Html:
    most = max([1, *(one.came_in for one in record.stages if one.unit == stage.unit)])
    scale = 1000 / most
    reasons = sorted(stage.rejected.items(), key=lambda item: (-item[1], item[0]))
    bands, at = [], stage.went_out * scale
    for number, (reason, count) in enumerate(reasons):
        band = tag(
            "rect",
            tag("title", f"{reason}: {count:,}"),
            class_=f"fell-{number % 2}",
            x=f"{at:.1f}",
            width=f"{count * scale:.1f}",
            height=26,
        )
        bands.append(_to_examples(stage, record, reason, band, tabindex=-1))
        at += count * scale
    kept = tag("rect", class_="series-0", width=f"{stage.went_out * scale:.1f}", height=26)
    drawn = tag(
        "svg", kept, *bands, viewBox="0 0 1000 26", class_="flow-bar", preserveAspectRatio="none", aria_hidden="true"
    )
    links = [
        tag("li", _to_examples(stage, record, reason, reason, tag("b", f" {count:,}"))) for reason, count in reasons
    ]
    return tag(
        "li",
        tag("h3", f"{stage.stage} ", tag("small", f"{stage.came_in:,} {stage.unit} in, {stage.went_out:,} out")),
        drawn,
        tag("ul", *links, class_="reasons") if links else tag("p", "Nothing fell.", class_="quiet"),
    )


def _to_examples(stage: StageReport, record: Manifest, reason: str, *children: Any, **attributes: Any) -> Html:
    if stage.unit == record.kind:  # a lost pair has no row of its own in REJECTS; its candidates have
        return join(*children)
    return tag("a", *children, href="#sampler", data_reason=f"{stage.stage}: {reason}", **attributes)
