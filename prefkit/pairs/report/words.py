"""Numbers and names as the page and its findings say them."""

from __future__ import annotations

from prefkit.manifest import Manifest
from prefkit.pairs.report.shares import Ratio, Share

FEW = 30  # rows of a model or a source below which nothing is said of it
ONE_SIDED = 0.9  # a share from which on a name nearly says the answer


def percent(share: float) -> str:
    """A share in percent, with a decimal where it is near an end, and none of what is there said to be 0 or 100."""
    value = 100 * share
    if 0 < value < 0.05:
        return "<\u00a00.1\u00a0%"
    if 99.95 < value < 100:
        return ">\u00a099.9\u00a0%"
    return f"{value:.1f}\u00a0%" if 0 < value < 10 or 90 < value < 100 else f"{value:.0f}\u00a0%"


def interval(share: Share) -> str:
    """`71 % [70, 72]`, in spaces at which no line breaks."""
    digits = 1 if share.value < 0.1 or share.value > 0.9 or share.high - share.low < 0.02 else 0
    low, value, high = (f"{100 * part:.{digits}f}" for part in (share.low, share.value, share.high))
    return f"{value}\u00a0% [{low},\u00a0{high}]"


def times(ratio: Ratio) -> str:
    """`1.32 [1.28, 1.36]`, in spaces at which no line breaks."""
    return f"{ratio.value:.2f} [{ratio.low:.2f},\u00a0{ratio.high:.2f}]"


def of_stage(record: Manifest, stage: str, reason: str | None = None) -> int:
    """How many candidates fell at a stage, or there to a reason."""
    rejected = [one.rejected for one in record.stages if one.stage == stage and one.unit == "candidates"]
    return sum(count for table in rejected for name, count in table.items() if reason in (None, name))


def candidates(record: Manifest) -> int:
    """How many candidates there were."""
    return next(stage.came_in for stage in record.stages if stage.unit == "candidates")


def rows(record: Manifest) -> str:
    """What a row of the data set is: pairs, or answers."""
    return "answers" if record.kind == "labels" else "pairs"


def apart(shares: dict[str, Share]) -> tuple[tuple[str, Share], tuple[str, Share]] | None:
    """The name with the largest share and the one with the smallest, where their intervals tell them apart; names that
    are seen in few rows do not count."""
    seen = [(name, one) for name, one in shares.items() if one.total >= FEW]
    if not seen:
        return None
    ends = max(seen, key=lambda item: item[1].value), min(seen, key=lambda item: item[1].value)
    return ends if ends[0][1].low > ends[1][1].high else None


def one_sided(most: Share, least: Share) -> bool:
    """Whether one of the shares is so large, or so small, that the name nearly says the answer."""
    return most.low > ONE_SIDED or least.high < 1 - ONE_SIDED
