"""What a run's figures say, in sentences: each only where its figure, with its interval, supports it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from prefkit.intervals import Z_95, wilson
from prefkit.page.curves import number
from prefkit.page.document import Finding
from prefkit.runs.groups import Group, differences, flat
from prefkit.runs.record import Phase, Run

LAST = 20  # steps that "at the end" is a mean of, as for the alarms
GROWN = 1.5  # times the margin, from which on it has grown
WAITS = 0.2  # a share of the time from which on waiting for data is worth a look
ROUNDING = 1e-9
UNITS = ("objective", "beta", "length_normalisation")  # options that the unit of losses and rewards depends on


def findings(runs: Sequence[Run], groups: Sequence[Group]) -> list[Finding]:
    """What asks for a decision first, then phase by phase."""
    found = [one for group in groups for one in (_of_one(group, runs) if len(runs) == 1 else _compared(group, runs))]
    found = [*_of_all(runs), *found]
    return sorted(found, key=lambda finding: not finding.look)


def percent(share: float) -> str:
    """A share in percent, with a decimal where it is near an end."""
    value = 100 * share
    return f"{value:.1f}\u00a0%" if 0 < value < 10 or 90 < value < 100 else f"{value:.0f}\u00a0%"


def measured(phase: Phase, name: str, at: int) -> str:
    """An evaluation's figure with its interval, `0.82 [0.80, 0.84]`."""
    curve = phase.held_out(name)
    if curve.low is None or curve.high is None:
        return number(curve.values[at])
    if curve.low[at] == curve.high[at]:
        return f"{curve.values[at]:g}"
    return f"{curve.values[at]:.3f} [{curve.low[at]:.3f},\u00a0{curve.high[at]:.3f}]"


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _of_all(runs: Sequence[Run]) -> Iterator[Finding]:
    for run in runs:
        said = f"{run.label}: " if len(runs) > 1 else ""
        for phase in run.phases:
            if phase.not_finite is not None:
                text = f"{phase.name}: {phase.not_finite['what']} of step {phase.not_finite['step']:,} was not finite"
                rounded = ", or take float32" if phase.options.get("dtype", "float32") != "float32" else ""
                mend = f"{phase.name}/not-finite.json names the pairs. Begin anew with a lower learning_rate{rounded}."
                yield Finding(True, f"{said}{text}; {mend}")
        if run.torn and run.state == "stopped":
            yield Finding(True, f"{said}the log ends in the middle of a line, which is left out; --resume mends it.")
    if len(hashes := dict.fromkeys(run.record["data_hash"] for run in runs if run.record)) > 1:
        yield Finding(
            True, f"The runs were trained on {len(hashes)} data sets, so held-out figures are of other pairs."
        )


def _of_one(group: Group, runs: Sequence[Run]) -> Iterator[Finding]:
    phase = group.members[0].phase
    parts = (_alarms, _accuracy, _standstill, _held_out_loss, _likelihood, _slices, _gap, _clipped, _speed)
    for part in parts:
        for one in part(phase):
            yield one._replace(text=f"{phase.name}: {one.text}")


def _alarms(phase: Phase) -> Iterator[Finding]:
    for alarm in phase.alarms:
        yield Finding(True, f"alarm {alarm['alarm']} at step {alarm['step']:,}: {alarm['text']}")


def _accuracy(phase: Phase) -> Iterator[Finding]:
    names = {"rewards/accuracies": "held-out reward accuracy", "logps/accuracies": "the share of held-out pairs whose "
             "chosen answer is the likelier one"}  # fmt: skip
    for name, said in names.items():
        curve = phase.held_out(name)
        if len(curve.steps) < 2 or curve.low is None or curve.high is None:
            continue
        before, after = measured(phase, name, 0), measured(phase, name, -1)
        if curve.low[-1] > curve.high[0]:
            yield Finding(False, f"{said} rose from {before} to {after}.")
        elif curve.high[-1] < curve.low[0]:
            yield Finding(True, f"{said} fell from {before} to {after}.")
        else:
            yield Finding(True, f"{said} went from {before} to {after}, which the intervals do not tell apart.")


def _standstill(phase: Phase) -> Iterator[Finding]:
    accuracy, margin = phase.held_out("rewards/accuracies"), phase.held_out("rewards/margins")
    if (
        len(accuracy.steps) < 4
        or accuracy.low is None
        or accuracy.high is None
        or len(margin.steps) != len(accuracy.steps)
    ):
        return
    low, high = accuracy.low[-1] - ROUNDING, accuracy.high[-1] + ROUNDING  # an accuracy of 1 may lie above its interval
    inside = (accuracy.values >= low) & (accuracy.values <= high)
    inside[-1] = True
    since = len(inside) - int(np.argmin(inside[::-1])) if not inside.all() else 0
    then, now = margin.values[since], margin.values[-1]
    if len(inside) - since >= 3 and then > 0 and now > GROWN * then:
        text = f"the held-out margin grew from {number(then)} to {number(now)} since step {accuracy.steps[since]:,.0f}"
        yield Finding(
            True, f"{text}, while held-out accuracy has stood at {measured(phase, 'rewards/accuracies', -1)}."
        )


def _held_out_loss(phase: Phase) -> Iterator[Finding]:
    loss = phase.held_out("loss")
    if len(loss.steps) < 2:
        return
    best = int(np.argmin(loss.values))
    first, least, last = (number(loss.values[at]) for at in (0, best, -1))
    if best == len(loss.steps) - 1:
        yield Finding(False, f"held-out loss fell from {first} to {last}, its best.")
    elif f"{loss.values[best]:.4g}" == f"{loss.values[-1]:.4g}":
        yield Finding(False, f"held-out loss did not change: {last}.")
    elif best == 0:
        yield Finding(True, f"held-out loss was best before the first step ({first}), and is {last} now.")
    else:
        text = f"held-out loss was best at step {loss.steps[best]:,.0f} ({least}), and is {last} now."
        yield Finding(len(loss.steps) - 1 - best > 1, text)


def _likelihood(phase: Phase) -> Iterator[Finding]:
    change, chosen = phase.held_out("logps/chosen_change"), phase.held_out("logps/chosen")
    where = "held-out"
    if not len(change.steps):
        change, chosen, where = phase.column("logps/chosen_change"), phase.column("logps/chosen"), "training"
    if not len(change.steps) or len(chosen.steps) != len(change.steps):
        return
    last = slice(-1, None) if where == "held-out" else slice(-LAST, None)
    moved, now = float(change.values[last].mean()), float(chosen.values[last].mean())
    before = now - moved
    whose = f"good {where} answers" if phase.is_of_labels else f"chosen answers of {where} pairs"
    if moved < 0 and before < 0:
        share = f" ({percent(moved / before)} of their log-probability under the reference)"
        yield Finding(False, f"{whose} lost {number(-moved)} nats each{share}.")
    elif moved > 0:
        yield Finding(False, f"{whose} gained {number(moved)} nats each.")


def _slices(phase: Phase) -> Iterator[Finding]:
    """The slice that is furthest below all pairs, by an interval that is as much too narrow as that of all pairs."""
    accuracy, tables = phase.held_out("rewards/accuracies"), phase.held_out_slices
    if (
        not tables
        or not len(accuracy.steps)
        or accuracy.low is None
        or accuracy.high is None
        or accuracy.steps[-1] == 0
    ):
        return
    share, half = float(accuracy.values[-1]), float(accuracy.high[-1] - accuracy.low[-1]) / 2
    worth = share * (1 - share) * (Z_95 / half) ** 2 / phase.lines.evaluations[-1]["eval_pairs"] if half else 1.0
    found = []
    for column, values in tables[-1][1].items():
        for value, figures in values.items():
            if "rewards/accuracies" in figures and figures["pairs"] < phase.lines.evaluations[-1]["eval_pairs"]:
                low, high = wilson(figures["rewards/accuracies"], max(1.0, figures["pairs"] * min(1.0, worth)))
                found.append((high, low, figures["rewards/accuracies"], f"{column} {value}"))
    high, low, part, name = min(found, default=(1.0, 1.0, 1.0, ""))
    if high < accuracy.low[-1]:
        said = f"accuracy is lowest in the slice {name}: {part:.3f} [{low:.3f},\u00a0{high:.3f}]"
        yield Finding(False, f"{said}, against {measured(phase, 'rewards/accuracies', -1)} of all.")


def _gap(phase: Phase) -> Iterator[Finding]:
    """Pairs that were trained on before, against held-out ones."""
    epochs, held, trained = (
        phase.column("epoch"),
        phase.held_out("rewards/accuracies"),
        phase.column("rewards/accuracies"),
    )
    if (
        not len(held.steps)
        or held.high is None
        or min(len(trained.steps), len(epochs.steps)) < LAST
        or epochs.values[-LAST] <= 1
    ):
        return
    now, pairs = float(trained.values[-LAST:].mean()), float(phase.column("pairs").values[-LAST:].sum())
    if wilson(now, pairs)[0] > held.high[-1]:
        text = f"accuracy is {now:.3f} over the last {LAST} steps, of pairs seen before"
        yield Finding(
            True, f"{text}, and {measured(phase, 'rewards/accuracies', -1)} over held-out pairs: fewer epochs may do."
        )


def _clipped(phase: Phase) -> Iterator[Finding]:
    limit, norms = phase.options.get("max_grad_norm"), phase.column("grad_norm").values
    if limit and len(norms):
        yield Finding(
            False,
            f"the gradient was clipped to {number(limit)} in {percent(float((norms > limit).mean()))} of the steps.",
        )


def _speed(phase: Phase) -> Iterator[Finding]:
    seconds, waits = phase.seconds, phase.column("data_wait").values
    if not len(seconds) or not len(phase.column("tokens_per_second").steps):
        return
    total = float(seconds.sum())
    pairs, tokens = (float(np.median(phase.column(f"{unit}_per_second").values)) for unit in ("pairs", "tokens"))
    speed = f"{number(pairs)} {phase.examples} and {tokens:,.0f} tokens a second (medians)"
    yield Finding(False, f"{len(seconds):,} steps took {duration(total)}, at {speed}.")
    shared = phase.column("sharing_factor").values
    if not phase.is_sft and len(shared):
        yield Finding(
            False,
            f"the full sequences of all {phase.examples} have {shared.mean():.1f} times the tokens that were computed.",
        )
    if len(waits) == len(seconds):
        share = float((waits * seconds).sum() / total)
        mend = "; stream = false makes all tokens beforehand" if share > WAITS and phase.options.get("stream") else ""
        yield Finding(share > WAITS, f"data wait (reading and packing rows) took {percent(share)} of the time{mend}.")


def _compared(group: Group, runs: Sequence[Run]) -> Iterator[Finding]:
    """Several runs of a group of phases, side by side."""
    if len(group.members) < 2:
        return
    parts = (_options, _units, _lengths, _held_out)
    for part in parts:
        for one in part(group, runs):
            yield one._replace(text=f"{group.title}: {one.text}")
    for member in group.members:
        for one in (*_alarms(member.phase), *_standstill(member.phase), *_held_out_loss(member.phase)):
            yield one._replace(text=f"{runs[member.run].named(member.phase)}: {one.text}")


def _options(group: Group, runs: Sequence[Run]) -> Iterator[Finding]:
    differ = differences([flat(member.phase.options) for member in group.members])
    if not differ:
        yield Finding(False, "the options are the same.")
        return
    names = list(differ)
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    yield Finding(False, f"the options differ in {shown}.")


def _units(group: Group, runs: Sequence[Run]) -> Iterator[Finding]:
    differ = [name for name in UNITS if len({str(m.phase.options.get(name)) for m in group.members}) > 1]
    if differ and not group.is_sft:
        text = f"with another {' and '.join(differ)}, losses, rewards and margins are in other units"
        yield Finding(True, f"{text}: compare accuracies and log-probs.")


def _lengths(group: Group, runs: Sequence[Run]) -> Iterator[Finding]:
    steps = [member.phase.step for member in group.members]
    if len(set(steps)) > 1:
        said = ", ".join(
            f"{runs[m.run].label} {step:,}{_planned(m.phase)}" for m, step in zip(group.members, steps, strict=True)
        )
        yield Finding(False, f"steps so far: {said}.")


def _planned(phase: Phase) -> str:
    return f" of {phase.planned:,}" if phase.planned is not None and phase.finished is None else ""


def _held_out(group: Group, runs: Sequence[Run]) -> Iterator[Finding]:
    """Who is ahead on the held-out pairs, where the intervals say so; only of one data set."""
    if len({runs[member.run].record["data_hash"] for member in group.members}) > 1:
        return
    name = "rewards/accuracies"
    ends = [(member, curve) for member in group.members if (curve := member.phase.held_out(name)).low is not None]
    ends = [(member, curve) for member, curve in ends if curve.steps[-1] > 0]
    if len(ends) < 2:
        return
    ranked = sorted(ends, key=lambda end: -end[1].values[-1])
    said = ", ".join(f"{runs[m.run].label} {measured(m.phase, name, -1)} at step {c.steps[-1]:,.0f}" for m, c in ranked)
    (first, best), (_, second) = ranked[:2]
    clear = best.low is not None and second.high is not None and best.low[-1] > second.high[-1]
    verdict = f"{runs[first.run].label} is ahead" if clear else "the intervals of the first two overlap"
    yield Finding(False, f"held-out reward accuracy: {said}; {verdict}.")
