"""Which phases of several runs belong together, and where their options differ.

Phases of one name do. What is left over joins by kind (supervised, preferences) and order, so that a run of one loss is
compared with a run of another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from prefkit.runs.record import Phase, Run


class Member(NamedTuple):
    """A phase, and the number of its run."""

    run: int
    phase: Phase


class Group(NamedTuple):
    """Phases to be shown together, at most one of a run."""

    members: list[Member]

    @property
    def title(self) -> str:
        """The names of its phases."""
        return " / ".join(dict.fromkeys(member.phase.name for member in self.members))

    @property
    def is_sft(self) -> bool:
        """Whether its phases learn answers, not preferences."""
        return self.members[0].phase.is_sft


def grouped(runs: Sequence[Run]) -> list[Group]:
    """The groups of all phases, in the order of the first run, then of the others."""
    groups: list[Group] = []
    rules: list[Callable[[Group, Phase], bool]] = [
        lambda group, phase: group.members[0].phase.name == phase.name,
        lambda group, phase: phase.name in [member.phase.name for member in group.members],
        lambda group, phase: group.is_sft == phase.is_sft,
    ]
    for number, run in enumerate(runs):
        left, free = list(run.phases), list(groups)
        for belongs in rules:
            for phase in list(left):
                group = next((group for group in free if belongs(group, phase)), None)
                if group is not None:
                    group.members.append(Member(number, phase))
                    left.remove(phase)
                    free.remove(group)
        groups += [Group([Member(number, phase)]) for phase in left]
    return groups


def flat(options: Any, key: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted names; lists and empty tables are values."""
    if not isinstance(options, dict) or not options:
        return {key: options}
    return {
        name: value
        for part, held in options.items()
        for name, value in flat(held, f"{key}.{part}" if key else str(part)).items()
    }


def differences(tables: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Options that are not the same in all flat tables: the values by name; None where there is none."""
    names = dict.fromkeys(name for table in tables for name in table)
    rows = {name: [table.get(name) for table in tables] for name in names}
    return {name: row for name, row in rows.items() if any(value != row[0] for value in row)}
