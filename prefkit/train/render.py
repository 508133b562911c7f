"""What `prefkit evaluate` found, as tables for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from prefkit.train import reward_bench

REWARDS = ("loss", "rewards/margins", "rewards/chosen", "rewards/rejected")
COMPARED = (
    "rewards/auc",
    "rewards/accuracies",
    "rewards/margins",
    "loss",
    "logps/accuracies",
    "logps/accuracies_per_token",
)


def render(result: dict[str, Any], console: Console) -> None:
    """Print what `evaluate` returned: all pairs, each slice, sections, calibration; the other model, if any."""
    for one in (result, result.get("against")):
        if one is not None:
            console.print(_judged(one) if "answers" in one else _figures(one))
            if one["reference"] is not None and "answers" not in one:
                console.print(_rewards(one))
            if "reward_bench" in one:
                console.print(_sections(one["reward_bench"]))
            if "calibration" in one:
                console.print(_calibration(one["calibration"]))
    if "differences" in result:
        console.print(_differences(result))


def _table(title: str, *heads: str) -> Table:
    """A table of figures with labels in the first column; in a narrow terminal labels fold, and figures stay whole."""
    table = Table(title=title, title_justify="left")
    for head in heads:
        table.add_column(head, justify="right" if head else "left", no_wrap=bool(head), overflow="fold")
    return table


def _figures(result: dict[str, Any]) -> Table:
    accuracy = "rewards/accuracies" if result["reference"] is not None else "logps/accuracies"
    table = _table(_title(result), "", "pairs", "accuracy", "95 %", "per token")
    for label, row in _rows(result):
        ends = f"{row[accuracy + '_low']:.3f}–{row[accuracy + '_high']:.3f}"
        cells = [f"{row['pairs']:,}", f"{row[accuracy]:.3f}", ends, f"{row['logps/accuracies_per_token']:.3f}"]
        table.add_row(label, *cells)
    return table


def _judged(result: dict[str, Any]) -> Table:
    """The figures of labelled answers; a dash where one of the labels is missing."""
    table = _table(_title(result), "", "answers", "AUC", "95 %", "accuracy", "loss", "margin")

    def shown(value: float | None, digits: int = 3) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    for label, row in _rows(result):
        low, high = row["rewards/auc_low"], row["rewards/auc_high"]
        ends = "–" if low is None else f"{low:.3f}–{high:.3f}"
        cells = [shown(row["rewards/auc"]), ends, shown(row["rewards/accuracies"])]
        table.add_row(label, f"{row['answers']:,}", *cells, shown(row["loss"], 4), shown(row["rewards/margins"], 4))
    return table


def _rewards(result: dict[str, Any]) -> Table:
    table = _table("loss and rewards", "", "loss", "margin", "chosen", "rejected")
    for label, row in _rows(result):
        table.add_row(label, *(f"{row[name]:.4f}" for name in REWARDS))
    return table


def _title(result: dict[str, Any]) -> str:
    return f"{result['model']} on {result['split']} ({result['data_hash'][:12]})"


def _rows(result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The figures of everything, and of each slice."""
    yield "all", result
    for name, rows in result.items():
        if name.startswith("by_"):
            for value, row in rows.items():
                yield f"{name.removeprefix('by_')} {value}", row


def _sections(scores: dict[str, Any]) -> Table:
    table = _table(f"RewardBench sections, by {scores['accuracy']}", "", "score")
    lacking = reward_bench.missing(scores)
    for name in reward_bench.SECTIONS:
        table.add_row(name, "no pairs" if name in lacking else f"{scores[name]:.3f}")
    table.add_row(
        "score" if not lacking else f"mean of {len(reward_bench.SECTIONS) - len(lacking)}", f"{scores['score']:.3f}"
    )
    return table


def _calibration(found: dict[str, Any]) -> Table:
    title = f"calibration: expected error {found['expected_calibration_error']:.3f}"
    what = "answers" if "answers" in found["bins"][0] else "pairs"
    table = _table(title, "certainty", what, "said", "right")
    for row in found["bins"]:
        span = f"{row['from']:.2f}–{row['to']:.2f}"
        table.add_row(span, f"{row[what]:,}", f"{row['said']:.3f}", f"{row['right']:.3f}")
    return table


def _differences(result: dict[str, Any]) -> Table:
    found = result["differences"]
    what = "answers" if "answers" in found else "pairs"
    title = f"{result['model']} minus {result['against']['model']}, {found[what]:,} {what}"
    table = _table(title, "", "difference", "95 %", "p")
    for name in COMPARED:
        if name in found:
            row = found[name]
            ends = f"{row['low']:+.4f} – {row['high']:+.4f}"
            table.add_row(name, f"{row['difference']:+.4f}", ends, f"{row['p']:.3f}")
    return table
