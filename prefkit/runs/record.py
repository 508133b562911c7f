"""What RUN holds, read as it stands: finished, going on, or ended by a kill in the middle of a line.

`metrics.jsonl` is a file that only grows, except that resuming cuts it back to the newest checkpoint. A `Log` reads on
where it was; it begins anew when the line that it read last is not there any more, which a clock's figures make
different even where the run repeats itself. A last line without its end is left for the next time. All other files are
written atomically by the trainer, so they are whole or absent.

Figures of training are kept as columns, 16 bytes a figure and step.
"""

from __future__ import annotations

import fcntl
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from prefkit.errors import DataError, one_line

RUN, METRICS, ALARMS, SAMPLES, LOCK = "run.json", "metrics.jsonl", "alarms.jsonl", "samples.jsonl", ".lock"
State = Literal["waiting", "training", "stopped", "finished"]
Slices = tuple[int, dict[str, dict[str, dict[str, float]]]]  # a step, and figures by column and value
NO_CURVES = ("phase", "step", "epoch", "num_tokens", "pairs")  # of a line of training


class Curve(NamedTuple):
    """A figure by step; `low` and `high` are the ends of its interval where it has one."""

    steps: np.ndarray
    values: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass
class Lines:
    """What a phase has logged: columns of its training steps, and its evaluations as they stand."""

    columns: dict[str, tuple[array[float], array[float]]] = field(default_factory=dict)  # steps and values
    slices: list[Slices] = field(default_factory=list)  # of windows of training steps
    evaluations: list[dict[str, Any]] = field(default_factory=list)

    def add(self, line: dict[str, Any]) -> None:
        """Take a line of the log."""
        if any(name.startswith("eval_") for name in line):
            self.evaluations.append(line)
            return
        if "slices" in line:
            self.slices.append((line["step"], line["slices"]))
        for name, value in line.items():
            if isinstance(value, int | float) and name != "step":
                steps, values = self.columns.setdefault(name, (array("d"), array("d")))
                steps.append(line["step"])
                values.append(value)


@dataclass(frozen=True)
class Phase:
    """One phase of a run, with what is known of it so far."""

    name: str
    options: dict[str, Any]
    lines: Lines
    begun: dict[str, Any] | None  # its begun.json
    finished: dict[str, Any] | None  # its phase.json
    not_finite: dict[str, Any] | None
    alarms: list[dict[str, Any]]
    samples: list[dict[str, Any]]

    @property
    def is_sft(self) -> bool:
        """Whether it learns answers, not preferences."""
        return bool(self.options["objective"] == "sft")

    @property
    def is_of_labels(self) -> bool:
        """Whether it learns from answers that are good or bad by themselves: what is chosen then is good."""
        return self.begun is not None and not self.is_sft and bool(self.begun["data"].get("kind") == "labels")

    @property
    def examples(self) -> str:
        """What it learns from."""
        return "answers" if self.is_sft or self.is_of_labels else "pairs"

    @property
    def figures(self) -> list[str]:
        """Names of the figures that have a curve."""
        return [name for name in self.lines.columns if name not in NO_CURVES]

    @property
    def step(self) -> int:
        """The last step that is logged; 0 before the first."""
        return int(max(self.column("loss").steps[-1:], default=0))

    @property
    def planned(self) -> int | None:
        """How many steps it is to have, once that is known."""
        return None if self.begun is None else int(self.begun["steps"])

    @property
    def held_out_slices(self) -> list[Slices]:
        """The slices of each evaluation."""
        return [(line["step"], line["eval_slices"]) for line in self.lines.evaluations if "eval_slices" in line]

    @property
    def seconds(self) -> np.ndarray:
        """How long each step took, from its speed."""
        return self.column("pairs").values / self.column("pairs_per_second").values

    def column(self, name: str) -> Curve:
        """A figure of training by step; empty if there is none."""
        steps, values = self.lines.columns.get(name, (array("d"), array("d")))
        return Curve(np.array(steps), np.array(values))

    def held_out(self, name: str) -> Curve:
        """A figure of the evaluations by step, with its interval where they give one.

        While the policy is the reference, rewards are 0 and their accuracy one half by definition, with no interval.
        """
        lines = [line for line in self.lines.evaluations if f"eval_{name}" in line]
        steps, values, low, high = (
            np.array([line[key] for line in lines if key in line], dtype=float)
            for key in ("step", f"eval_{name}", f"eval_{name}_low", f"eval_{name}_high")
        )
        if not len(low) == len(high) == len(steps) > 0:
            return Curve(steps, values)
        known = np.array([name.startswith("rewards/") and line.get("eval_rewards/margins") == 0 for line in lines])
        return Curve(steps, values, np.where(known, values, low), np.where(known, values, high))


@dataclass(frozen=True)
class Run:
    """One run; `torn` if its log ends in the middle of a line."""

    label: str
    state: State
    torn: bool
    record: dict[str, Any]  # run.json; empty before it is there
    phases: list[Phase]
    model_sums: dict[str, str]  # SHA-256 sums of the files of its model, once there is one

    def named(self, phase: Phase) -> str:
        """A phase of it among other runs: the run's name alone where it has no other phase."""
        return self.label if len(self.phases) == 1 else f"{self.label}, {phase.name}"


class Log:
    """RUN/metrics.jsonl, read on at each call."""

    def __init__(self, path: Path) -> None:
        self.torn = False
        self._path = path
        self._forget()

    def _forget(self) -> None:
        self.phases: dict[str, Lines] = {}
        self._end, self._count, self._last = 0, 0, b""

    def read_on(self) -> None:
        """Take the whole lines that have come since the last call; DataError for one that is none of a run."""
        self.torn = False
        try:
            file = open(self._path, "rb")  # noqa: SIM115 (closed below)
        except FileNotFoundError:
            self._forget()
            return
        with file:
            file.seek(self._end - len(self._last))
            if file.read(len(self._last)) != self._last:
                self._forget()
                file.seek(0)
            for line in file:
                self.torn = not line.endswith(b"\n")
                if not self.torn:
                    self._take(line)

    def _take(self, line: bytes) -> None:
        self._end, self._count, self._last = self._end + len(line), self._count + 1, line
        try:
            table = json.loads(line)
            self.phases.setdefault(table["phase"], Lines()).add(table)
        except (ValueError, KeyError, TypeError) as error:
            where = f"{self._path}, line {self._count}"
            raise DataError(f"{where}: no line of metrics of prefkit train ({one_line(error)}).") from error


def read(folder: Path, label: str, log: Log | None = None) -> Run:
    """A run as it stands now; `log` is that of the last call, to read on. DataError if a file of it is damaged."""
    log = log or Log(folder / METRICS)
    log.read_on()
    about = _json(folder / RUN, "options", "data_hash")
    if about is None:
        return Run(label, "waiting", False, {}, [], {})
    alarms, samples = (_jsonl(folder / name) for name in (ALARMS, SAMPLES))
    try:
        phases = [_phase(folder, options, log, alarms, samples) for options in about["options"]["train"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder / RUN}: not the record of a run of prefkit train ({one_line(error)}).") from error
    finished = all(phase.finished is not None for phase in phases)
    state: State = "finished" if finished else "training" if is_training(folder) else "stopped"
    return Run(label, state, log.torn, about, phases, _sums(folder / "model"))


def _phase(
    folder: Path, options: dict[str, Any], log: Log, alarms: list[dict[str, Any]], samples: list[dict[str, Any]]
) -> Phase:
    name = options["name"]
    return Phase(
        name=name,
        options=options,
        lines=log.phases.get(name, Lines()),
        begun=_json(folder / name / "begun.json", "steps", "made_from", "data", "versions", "device", "ranks"),
        finished=_json(folder / name / "phase.json", "tokens", "epochs"),
        not_finite=_json(folder / name / "not-finite.json", "step", "what"),
        alarms=[alarm for alarm in alarms if alarm["phase"] == name],
        samples=[sample for sample in samples if sample["phase"] == name],
    )


def changes(ran_with: Sequence[dict[str, Any]]) -> Iterator[tuple[int, str]]:
    """From which step on a phase ran with another value of an option, and which: read off `ran_with` of begun.json."""
    for before, now in pairwise(ran_with):
        for name, value in now.items():
            if name != "from_step" and before[name] != value:
                yield now["from_step"], f"{name} = {json.dumps(value)} (before: {json.dumps(before[name])})"


def is_training(folder: Path) -> bool:
    """Whether a process trains in the folder at this moment: it holds the lock for as long as it lives.

    To ask is to hold the lock oneself for some microseconds, in which a run that begins would be refused.
    """
    try:
        lock = open(folder / LOCK, "rb")  # noqa: SIM115 (closed below)
    except FileNotFoundError:
        return False
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def labels(folders: Sequence[Path]) -> list[str]:
    """Names of the runs: the last parts of their paths, as many as tell them apart."""
    parts = [folder.absolute().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def _json(path: Path, *keys: str) -> dict[str, Any] | None:
    """A table that is written atomically, with these keys at least; None where it is not there."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{path}: damaged ({one_line(error)}).") from error
    missing = [key for key in keys if key not in table] if isinstance(table, dict) else ["JSON object"]
    if missing:
        raise DataError(f"{path}: damaged, or of another version of prefkit (no {missing[0]}).")
    return table


def _jsonl(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        lines = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]  # texts may hold other ends
        return [line for line in lines if line["phase"] and line["step"] >= 0]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({one_line(error)}).") from error


def _sums(folder: Path) -> dict[str, str]:
    """SHA-256 sums of a folder's files, from its SHA256SUMS."""
    path = folder / "SHA256SUMS"
    return dict(_sum(line) for line in path.read_text(encoding="utf-8").splitlines()) if path.exists() else {}


def _sum(line: str) -> tuple[str, str]:
    digest, _, name = line.partition("  ")
    return name, digest
