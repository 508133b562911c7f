"""What the parts of a run hand on: the job that all its phases share, and a split of its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefkit.manifest import Manifest
from prefkit.train.arriving import Arriving
from prefkit.train.examples import Examples
from prefkit.train.metrics import Progress
from prefkit.train.options import TrainOptions
from prefkit.train.sinks import Write
from prefkit.train.store import Store


@dataclass(frozen=True)
class Job:
    """What all phases share."""

    options: TrainOptions
    data: Path
    manifest: Manifest
    out: Path
    cache: Path
    tokenizer: Any
    max_steps: int | None
    sinks: Sequence[Write]
    progress: Progress


@dataclass(frozen=True)
class SplitData:
    """The token store of a split, opened, or filled while training goes on."""

    store: Store
    examples: Examples | Arriving

    @property
    def whole(self) -> Examples:
        """The examples of a split that was tokenised before."""
        assert isinstance(self.examples, Examples), "only the train split may stream, and with a live reference"
        return self.examples
