"""Whose folder RUN is: one run's alone, and one process's at a time.

`run.json` says which run it is: its checked options and its data set. It is written before anything else; a second
start on the folder is refused, and `--resume` compares. Options that decide the cost of a run alone (`options.COSTS`)
may be others than before, so that who ran out of memory need not begin anew; they are written then, and which steps ran
with which is in `begun.json`. A run that fails before its first line of metrics, for whatever reason, gives the folder
back, so that a wrong model name or an early Ctrl-C does not cost the user the name.
`.lock` is held while a process trains there; the kernel lets it go however the process ends.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefkit.errors import UsageError
from prefkit.manifest import Manifest, write_text_atomically
from prefkit.toml import as_toml
from prefkit.train import alarms, metrics, samples
from prefkit.train.options import COSTS, TrainOptions
from prefkit.train.sinks import SINKS

RECORD = "run.json"
LOCK = ".lock"
NOT_A_RUN = ("cache", LOCK, f"{RECORD}.tmp")  # what may stand in a folder that no run has claimed


@contextmanager
def claimed(
    out: Path, options: TrainOptions, manifest: Manifest, max_steps: int | None, *, resume: bool
) -> Iterator[None]:
    """Hold RUN for this run; UsageError if it is another's, or the same one's and `resume` is not asked for.

    A failure within, before there is a line of metrics, undoes what this call made; a claim of before stays.
    """
    table = {"options": options.table(), "data_hash": manifest.data_hash, "max_steps": max_steps}
    table = json.loads(json.dumps(table))  # as it is read back: lists for tuples
    _check_free(out, resume=resume)
    made = [path for path in (out, *out.parents) if not path.exists()]
    out.mkdir(parents=True, exist_ok=True)
    with _only_process(out):
        record = out / RECORD
        new = not record.exists()
        try:
            if new or _checked(out, table, resume=resume) != table:
                write_text_atomically(record, json.dumps(table, indent=1) + "\n")
            yield
        except BaseException:
            if new and not has_metrics(out):
                _unclaim(out, [phase.name for phase in options.phases], made)
            raise


def has_metrics(out: Path) -> bool:
    """Whether the run has come to its first line of metrics."""
    path = out / metrics.FILE_NAME
    return path.exists() and path.stat().st_size > 0


def differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two JSON values differ: dotted key (phases by name), old value, new value; of other phases, their names."""
    before, now = _names(old), _names(new)
    if before and now and before != now:
        yield key, before, now
    elif isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            yield from differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            name = before[number] if before else number
            yield from differences(one, other, f"{key}.{name}")
    elif old != new:
        yield key, old, new


def _names(value: Any) -> list[str]:
    """The names of phases, in a list of them; nothing of any other value."""
    items = value if isinstance(value, list) else []
    return [item["name"] for item in items if isinstance(item, dict) and "name" in item]


@contextmanager
def _only_process(out: Path) -> Iterator[None]:
    with open(out / LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{out}: another prefkit is training here.") from None
        yield


def _check_free(out: Path, *, resume: bool) -> None:
    """UsageError unless a run may start in RUN, or go on there."""
    if (out / RECORD).exists():
        return  # `_checked` says more, once the lock is held
    if resume:
        raise UsageError(f"{out}: nothing to resume, since it holds no run. Start one without --resume.")
    if out.exists() and (not out.is_dir() or any(path.name not in NOT_A_RUN for path in out.iterdir())):
        raise UsageError(f"{out} is not empty and holds no run of prefkit. Choose another --out.")


def _checked(out: Path, table: dict[str, Any], *, resume: bool) -> Any:
    """The record of the run in RUN; UsageError unless it shall go on, with the options that its result depends on."""
    if not resume:
        raise UsageError(f"{out} already holds a run. Go on with --resume, or choose another --out.")
    try:
        before = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{out / RECORD}: damaged, so the run cannot be resumed. Choose another --out.") from error
    found = differences(before, table)
    changed = [f"{key} was {_shown(old)} and is now {_shown(new)}" for key, old, new in found if not _is_cost(key)]
    if changed:
        raise UsageError(
            f"{out}: cannot resume, {'; '.join(changed)}: the result depends on it. Set it back, or choose another "
            f"--out. What may change is what decides memory and time alone: {', '.join(COSTS)}."
        )
    return before


def _shown(value: Any) -> str:
    return "not set" if value is None else as_toml(value)


def _is_cost(key: str) -> bool:
    """Whether it is an option of a phase that the result does not depend on."""
    return key.startswith("options.train.") and key.rpartition(".")[2] in COSTS


def _unclaim(out: Path, phases: list[str], made: list[Path]) -> None:
    """Undo the claim of a run that did not begin; what is in its cache stays, as it will be found again."""
    for name in ("tokenizer", "tokenizer.tmp", "wandb", *phases):
        shutil.rmtree(out / name, ignore_errors=True)
    said = (metrics.FILE_NAME, alarms.FILE_NAME, samples.FILE_NAME, samples.PAGE, *(f"{sink}.id" for sink in SINKS))
    for name in (*said, f"{RECORD}.tmp", RECORD, LOCK):
        (out / name).unlink(missing_ok=True)
    for path in made:  # the innermost first; what was there before stays, empty or not
        if any(path.iterdir()):
            break
        path.rmdir()
