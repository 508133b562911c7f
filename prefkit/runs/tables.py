"""What a run's page shows besides curves: progress, evaluations, slices, alarms, samples, options, identity."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from prefkit.page.charts import bar, table
from prefkit.page.curves import number
from prefkit.page.html import Html, join, tag
from prefkit.runs.curves import order
from prefkit.runs.findings import duration, measured
from prefkit.runs.groups import Group, differences, flat
from prefkit.runs.record import Phase, Run, changes

EVALUATED = {
    "loss": "loss",
    "rewards/accuracies": "reward accuracy",
    "logps/accuracies": "chosen is likelier",
    "logps/accuracies_per_token": "per token",
    "rewards/margins": "margin",
    "rewards/chosen": "chosen",
    "rewards/rejected": "rejected",
    "logps/chosen_change": "change of chosen",
    "kl": "KL",
}
SLICED = {
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "logps/chosen_change": "change of chosen",
}
EVALUATIONS = 12  # rows
PROMPTS = 8  # whose samples are shown, a phase
CHARACTERS = 4000  # of a text; the rest is counted


def progress(runs: Sequence[Run]) -> Html:
    """How far each phase of each run is."""
    items = []
    for run in runs:
        if run.state == "waiting":
            items.append(tag("li", f"{run.label}: no run has begun here yet"))
        for phase in run.phases:
            name = run.named(phase) if len(runs) > 1 else phase.name
            done = tag("progress", value=phase.step, max=phase.planned or max(1, phase.step), aria_label=name)
            items.append(tag("li", done, f" {name}: {_state(run, phase)}"))
    return tag("ul", *items, class_="progress")


def _state(run: Run, phase: Phase) -> str:
    planned = f" of {phase.planned:,}" if phase.planned is not None else ""
    if phase.finished is not None:
        early = phase.planned is not None and phase.step < phase.planned
        return f"finished after step {phase.step:,}" + (f"{planned}, as an alarm asked" if early else "")
    if phase.begun is None and not phase.step:
        first = next((one for one in run.phases if one.finished is None), None)
        return "getting ready" if run.state == "training" and phase is first else "not begun"
    if run.state == "training":
        return f"step {phase.step:,}{planned}{_left(phase)}"
    why = "by a figure that is not finite" if phase.not_finite is not None else "go on with --resume"
    return f"stopped after step {phase.step:,}{planned}; {why}"


def _left(phase: Phase) -> str:
    seconds = phase.seconds
    if phase.planned is None or not len(seconds):
        return ""
    return f", about {duration(float(np.median(seconds[-20:])) * (phase.planned - phase.step))} of steps left"


def evaluations(group: Group, runs: Sequence[Run]) -> Html | None:
    """Held-out figures with their intervals: those of a run over time, or the last of each run."""
    names = [name for name in EVALUATED if any(len(member.phase.held_out(name).steps) for member in group.members)]
    rows: list[list[Any]] = []
    for member in group.members:
        count = len(member.phase.lines.evaluations)
        shown = min(count, EVALUATIONS if len(runs) == 1 else 2)
        for at in np.linspace(0, count - 1, shown).round().astype(int) if count else []:
            step = member.phase.lines.evaluations[at]["step"]
            where = f"step {step:,}" if len(runs) == 1 else f"{runs[member.run].label}, step {step:,}"
            rows.append([where, *(_evaluated(member.phase, name, int(at)) for name in names)])
    if not rows:
        return None
    first = group.members[0].phase
    caption = "First and last evaluation of each run"
    if len(runs) == 1:
        caption = f"Evaluations on {first.lines.evaluations[0]['eval_pairs']:,} held-out {first.examples}"
    return table(["at", *(EVALUATED[name] for name in names)], rows, caption)


def _evaluated(phase: Phase, name: str, at: int) -> str:
    line = phase.lines.evaluations[at]
    if f"eval_{name}" not in line:
        return "–"
    return measured(
        phase, name, [one["step"] for one in phase.lines.evaluations if f"eval_{name}" in one].index(line["step"])
    )


def slices(group: Group, runs: Sequence[Run]) -> Iterator[Html]:
    """A table a column of slices: of the last evaluation, or of the last window of training."""
    latest = [(member, *_latest(member.phase)) for member in group.members]
    columns = dict.fromkeys(column for _, _, values in latest for column in values)
    for column in columns:
        values = sorted({value for _, _, tables in latest for value in tables.get(column, {})}, key=order)
        if len(runs) == 1:
            _, where, tables = latest[0]
            rows = [_slice_row(value, tables[column][value]) for value in values]
            yield table([column, "pairs", "accuracy", "", "margin", "change of chosen"], rows, f"By {column}, {where}")
            continue
        rows = [
            [
                value,
                *(
                    number(t[column][value]["rewards/accuracies"]) if value in t.get(column, {}) else "–"
                    for _, _, t in latest
                ),
            ]
            for value in values
        ]
        heads = [f"{runs[member.run].label}, {where}" for member, where, _ in latest]
        yield table([column, *heads], rows, f"Accuracy by {column}")


def _latest(phase: Phase) -> tuple[str, dict[str, Any]]:
    if phase.held_out_slices:
        step, tables = phase.held_out_slices[-1]
        return f"held-out at step {step:,}", tables
    if phase.lines.slices:
        step, tables = phase.lines.slices[-1]
        return f"training up to step {step:,}", tables
    return "", {}


def _slice_row(value: str, figures: dict[str, float]) -> list[Any]:
    shown = [number(figures[name]) if name in figures else "–" for name in SLICED]
    drawn = bar(figures["rewards/accuracies"]) if "rewards/accuracies" in figures else ""
    return [value, f"{figures['pairs']:,}", shown[0], drawn, *shown[1:]]


def alarms(groups: Sequence[Group], runs: Sequence[Run]) -> Html:
    """All alarms, with the numbers that mark them on the curves."""
    items = []
    for group in groups:
        for member in group.members:
            name = runs[member.run].named(member.phase) if len(runs) > 1 else member.phase.name
            for at, alarm in enumerate(member.phase.alarms, start=1):
                head = tag("strong", f"{name}, {at}: {alarm['alarm']} at step {alarm['step']:,}. ")
                items.append(tag("li", head, alarm["text"], class_="look"))
    if not items:
        return tag("p", "None so far. What is watched for, and by which limits, stands in the options.")
    note = tag("p", "The numbers mark the curves.", class_="quiet")
    return join(tag("ul", *items, class_="findings"), note)


def samples(group: Group, runs: Sequence[Run]) -> Html | None:
    """Answers to fixed prompts: the first and the newest of a run, or the newest of each run."""
    shown: dict[str, list[tuple[str, str]]] = {}
    for member in group.members:
        said = member.phase.samples
        steps = sorted({sample["step"] for sample in said})
        for sample in said:
            at = sample["step"]
            if at == steps[-1] or (at == steps[0] and len(runs) == 1):
                name = f"step {at:,}" if len(runs) == 1 else f"{runs[member.run].label}, step {at:,}"
                shown.setdefault(_messages(sample["prompt"]), []).append((name, sample["answer"]))
    if not shown:
        return None
    blocks = []
    for prompt, answers in list(shown.items())[:PROMPTS]:
        sides = [tag("div", tag("h4", name), tag("div", _cut(text), class_="text")) for name, text in answers]
        blocks.append(
            tag("div", tag("h4", "prompt"), tag("div", _cut(prompt), class_="text"), tag("div", *sides, class_="sides"))
        )
    left = f"{len(shown) - PROMPTS:,} more prompts stand in samples.jsonl." if len(shown) > PROMPTS else None
    return tag("div", tag("h3", "Samples"), *blocks, tag("p", left, class_="quiet") if left else None)


def _messages(messages: list[dict[str, str]]) -> str:
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _cut(text: str) -> str:
    left = len(text) - CHARACTERS
    return text if left <= 0 else f"{text[:CHARACTERS]}… ({left:,} more characters)"


def options(groups: Sequence[Group], runs: Sequence[Run]) -> Html:
    """Where the runs' options differ; and all options of each phase."""
    parts: list[Html | None] = list(_changed(groups, runs))
    begun = [run for run in runs if run.record]
    sets = [("model", [flat(run.record["options"]["model"]) for run in begun], [run.label for run in begun])]
    for group in groups:
        of_phases = [flat(member.phase.options) for member in group.members]
        sets.append((group.title, of_phases, [runs[member.run].label for member in group.members]))
    for title, held, names in sets:
        if len(runs) > 1 and len(held) > 1:
            rows = [[key, *(_shown(value) for value in row)] for key, row in differences(held).items()]
            caption = f"{title}: where they differ"
            parts.append(table(["option", *names], rows, caption) if rows else tag("p", f"{title}: no option differs."))
    for title, held, names in sets:
        keys = dict.fromkeys(key for one in held for key in one)
        rows = [[key, *(_shown(one[key]) if key in one else "–" for one in held)] for key in keys]
        heads = names if len(runs) > 1 else ["value"]
        parts.append(tag("details", tag("summary", f"All options of {title}"), table(["option", *heads], rows, title)))
    return join(*parts)


def _changed(groups: Sequence[Group], runs: Sequence[Run]) -> Iterator[Html]:
    """What phases were resumed with that decides their cost alone; the tables have what they ended with."""
    for group in groups:
        for run, phase in group.members:
            name = runs[run].named(phase) if len(runs) > 1 else phase.name
            for step, text in changes((phase.begun or {}).get("ran_with", [])):
                yield tag("p", f"{name}: {text} from step {step:,} on, which changes memory and time alone.")


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def identity(runs: Sequence[Run]) -> Html:
    """What each run was made from, and with: hashes, versions, device."""
    held = [dict(_identity(run)) for run in runs]
    keys = dict.fromkeys(key for one in held for key in one)
    rows = [[key, *(tag("code", one.get(key, "–")) for one in held)] for key in keys]
    return tag("div", table(["what", *(run.label for run in runs)], rows, "Data, model and software"), class_="prose")


def _identity(run: Run) -> Iterator[tuple[str, str]]:
    if not run.record:
        return
    model = run.record["options"]["model"]
    begun = [phase.begun for phase in run.phases if phase.begun is not None]
    yield "data hash", run.record["data_hash"]
    if begun:
        data = begun[-1]["data"]
        yield "data set", f"{data['pipeline']}: {data['train']:,} train, {data['test']:,} test"
        yield "built by", _versions(data["versions"])
    yield "starts from", model["path"] or f"random weights of a {(model['config'] or {}).get('model_type', 'model')}"
    for phase in run.phases:
        for what, value in (phase.begun or {}).get("made_from", {}).items():
            if value is not None:
                yield f"{phase.name}: {what}", str(value)
    if begun:
        yield "trained by", _versions(begun[-1]["versions"])
        yield "on", f"{begun[-1]['ranks']} × {begun[-1]['device']}"
    for name, digest in run.model_sums.items():
        if name.endswith(".safetensors"):
            yield f"model/{name}", digest


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "–"


def account(phase: Phase) -> Html | None:
    """What became of the phase's rows: the counts of tokenising that are not 0, and what its epochs took."""
    if phase.finished is None:
        return None
    counts = {name.replace("_", " "): value for name, value in phase.finished["tokens"].items() if value}
    for number_, epoch in enumerate(phase.finished["epochs"], start=1):
        counts |= {f"epoch {number_}: {name.replace('_', ' ')}": value for name, value in epoch.items() if value}
    rows = [[name, f"{value:,}"] for name, value in counts.items()]
    return tag("details", tag("summary", "What became of the rows"), table(["rows", "count"], rows, "Rows and tokens"))
