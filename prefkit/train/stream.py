"""Token store -> the plan: which prompts make up step n, and the bins that the trainer computes for it.

The order is a function of (seed, epoch, data): shards in seeded order, the prompts of each window of shards shuffled
together, and then cut into steps. A step takes whole prompts until it holds at least `pairs_per_step` examples, which
are pairs, or answers in supervised fine-tuning. Nothing in it depends on the bins, on `max_tokens` or on how many
ranks share the work (`prefkit.train.deal` says who takes what), so the state of the stream is one number, the step:
resuming replays nothing and skips nothing, in the middle of an epoch too. The last step of an epoch may be smaller; it
is trained on, not dropped.

Filters, weights, caps and a curriculum (`prefkit.train.sampling`) change which prompts an epoch takes and when; they
keep all of that.

Cost: 8 bytes a prompt for the order of one epoch. Rows are read by memory map when their step comes; the window
bounds how far apart on disk the rows of a step can lie.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from prefkit.errors import TrainError
from prefkit.train.arriving import Arriving
from prefkit.train.deal import deal, empty_bin
from prefkit.train.examples import Counts, Examples, running
from prefkit.train.pack import Bin, collate
from prefkit.train.sampling import COPY, Sampling, repeated, shuffled


@dataclass(frozen=True)
class Plan:
    """The steps of a whole phase.

    `shards` are the numbers of prompts of each shard, `counts` the examples of each prompt; one without is never taken.
    """

    shards: tuple[int, ...]
    counts: np.ndarray
    pairs_per_step: int
    epochs: int
    seed: int
    window: int
    sampling: Sampling = field(default_factory=Sampling)

    @cached_property
    def bounds(self) -> list[list[int]]:
        """For each epoch, where its steps start in its order, and where the last one ends."""
        return [self._cut(self._order(epoch)) for epoch in range(self.epochs)]

    @cached_property
    def steps(self) -> int:
        """Steps of all epochs."""
        return sum(len(bounds) - 1 for bounds in self.bounds)

    def prompts(self, step: int) -> np.ndarray:
        """Numbers of the prompts of step `step`, from 0."""
        epoch, within = self._place(step)
        if self._current[0] != epoch:
            self._current[:] = [epoch, self._order(epoch)]
        bounds = self.bounds[epoch]
        return self._current[1][bounds[within] : bounds[within + 1]]

    def prompts_until(self, steps: int) -> np.ndarray:
        """The prompts of the first `steps` steps, each once."""
        return np.unique(np.concatenate([self.prompts(step) for step in range(steps)]))

    def epoch(self, steps_done: int) -> float:
        """How many epochs the first `steps_done` steps are, with fraction."""
        if steps_done == 0:
            return 0.0
        epoch, within = self._place(steps_done - 1)
        return epoch + (within + 1) / (len(self.bounds[epoch]) - 1)

    def shards_needed(self, first: int, steps: int) -> list[int]:
        """Numbers of the shards that steps `first` up to `steps` read, in the order in which they come to them."""
        base, needed = running(self.shards), dict[int, None]()
        for step in range(first, steps):
            of_step = np.unique(np.searchsorted(base, self.prompts(step), side="right") - 1)
            needed |= dict.fromkeys(of_step.tolist())
            if len(needed) == len(self.shards):
                break
        return list(needed)

    @cached_property
    def _current(self) -> list:
        return [-1, np.zeros(0, np.int64)]  # the epoch whose order is in memory, and that order

    def _place(self, step: int) -> tuple[int, int]:
        for epoch, bounds in enumerate(self.bounds):
            if step < len(bounds) - 1:
                return epoch, step
            step -= len(bounds) - 1
        raise AssertionError(f"the plan has {self.steps} steps")

    def account(self, epoch: int) -> dict[str, int]:
        """What became of all examples in an epoch: `examples` minus those left out plus those repeated is `taken`."""
        times, drawn = self._times(epoch), self._drawn(epoch)
        taken = int(self.counts[self._order(epoch)].sum())
        return {
            "examples": int(self.counts.sum()) + sum(self.sampling.filtered.values()),
            **self.sampling.filtered,
            "left_out_by_weights": int(self.counts[times == 0].sum()),
            "repeated_by_weights": int((self.counts * np.maximum(times - 1, 0)).sum()),
            "left_out_by_caps": int(self.counts[drawn].sum()) - taken,
            "taken": taken,
        }

    def _order(self, epoch: int) -> np.ndarray:
        return self.sampling.in_turn(self.sampling.capped(self._drawn(epoch), self.counts))

    def _times(self, epoch: int) -> np.ndarray:
        return self.sampling.times(len(self.counts), self.seed, epoch) * (self.counts > 0)

    def _drawn(self, epoch: int) -> np.ndarray:
        """The prompts of an epoch, each as often as its weight says, shuffled within windows of shards."""
        base, times = running(self.shards), self._times(epoch)
        shards = shuffled(np.arange(len(self.shards)), self.seed, epoch, salt=1)
        windows = [shards[first : first + self.window] for first in range(0, len(shards), self.window)]
        parts = [np.concatenate([np.arange(base[s], base[s + 1]) for s in sorted(window)]) for window in windows]
        mixed = (shuffled(repeated(part, times[part]), self.seed, epoch, salt=2) for part in parts)
        return np.concatenate([np.zeros(0, np.int64), *mixed]) & ((1 << COPY) - 1)

    def _cut(self, order: np.ndarray) -> list[int]:
        total = running(self.counts[order])
        bounds = [0]
        while bounds[-1] < len(order):
            end = np.searchsorted(total, total[bounds[-1]] + self.pairs_per_step, side="left")
            bounds.append(min(int(end), len(order)))
        return bounds


@dataclass(frozen=True)
class Step:
    """This rank's bins of one optimiser step, and what all ranks' add up to."""

    bins: list[Bin]
    examples: int
    completion_tokens: int
    tokens: int
    separate_tokens: int


def make_step(
    examples: Examples | Arriving, prompts: np.ndarray, max_tokens: int, rank: int = 0, ranks: int = 1
) -> Step:
    """Lay some prompts out as trees, pack these into bins of at most `max_tokens`, and read the rows of this rank's."""
    parts: list[tuple[int, int]] = []  # prompt, and number of the tree among the prompt's
    sizes: list[int] = []
    for prompt in map(int, prompts):
        of_prompt = examples.tree_sizes(prompt, max_tokens)
        parts += [(prompt, number) for number in range(len(of_prompt))]
        sizes += of_prompt
    if not parts:
        raise TrainError(
            f"a step has nothing to train on: none of its {len(prompts)} prompts can be used within max_length and by "
            "the chat template. Raise pairs_per_step or max_length, or train without stream."
        )
    dealt = deal(sizes, max_tokens, ranks)[rank]
    mine = [[parts[i] for i in members] for members in dealt]
    trees = {prompt: examples.trees(prompt, max_tokens) for members in mine for prompt, _ in members}
    total = Counts(*np.sum([examples.counts_of(int(prompt)) for prompt in prompts], axis=0).tolist())
    bins = [collate([trees[prompt][i] for prompt, i in members]) if members else empty_bin() for members in mine]
    shares = [sum(sizes[i] for i in members) / sum(sizes) for members in dealt]
    return Step(
        bins=[replace(bin, share=share) for bin, share in zip(bins, shares, strict=True)],
        examples=total.pairs or total.sequences,
        completion_tokens=total.completion_tokens,
        tokens=sum(sizes),
        separate_tokens=total.pair_tokens or total.sequence_tokens,
    )
