"""A data set as a training loop sees it: the token trees of one optimiser step after another.

This is what `prefkit train` itself goes by, for loops of other people: the tokens come from the same store beside the
shards, the steps from the same plan. Step n has the same pairs on any number of ranks and with any `max_tokens`, and
where a loop stands is one number, so resuming in the middle of an epoch replays nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from prefkit import resolve, urls
from prefkit.errors import TrainError, UsageError
from prefkit.train import chat, length, metrics, parallel, sampling, shards, tokenizer
from prefkit.train.examples import Examples
from prefkit.train.options import Phase
from prefkit.train.stream import Plan, Step, make_step


class PairStream:
    """The steps of all epochs over one split of a data set, each with this rank's bins of token trees.

    ``for step in stream`` goes on where the stream stands (`step`, from 0) and ends after the last epoch;
    ``len(stream)`` is the number of steps of all epochs. A `Step` has `bins`, a list of `prefkit.train.pack.Bin` of at
    most `max_tokens` tokens each, and `examples`, the number of pairs of all ranks together: the sum of the pairs'
    losses over all bins and ranks, divided by it, is the mean loss of the step. ``bin.pair_rows_P`` are numbers of
    pairs, from 0 through all shards of the split: positions in `margins`, and rows of ``load_pairs(data, split)``
    where `summary` counts none left out.

    `summary` says in words what became of the rows of the split: what `max_length` cut, what was left out and why.
    """

    def __init__(
        self,
        data: Path | str,
        tokenizer: Any,
        *,
        split: str = "train",
        pairs_per_step: int = 32,
        max_tokens: int = 8192,
        max_length: int = 1024,
        max_length_policy: length.Policy = "truncate_completion",
        epochs: int = 1,
        seed: int = 0,
        shuffle_window: int = 16,
        cache: Path | str | None = None,
        progress: metrics.Progress | None = None,
        **sampling_options: Any,
    ) -> None:
        """Tokenise a split with a chat tokenizer of transformers (or find the tokens in the cache), and plan its steps.

        The options are those of a ``[[train]]`` phase (docs/training-data.md), with the same defaults: lengths in
        tokens, `max_length` of prompt and answer together (0: no limit), `pairs_per_step` over all ranks. Sampling may
        be given as well: `sources`, `langs`, `min_margin`, `source_weights`, `lang_weights`, `source_caps`,
        `lang_caps`, `curriculum`. Tokens are kept in `cache`, by default beside the shards.

        Raises UsageError for an option that is unknown or wrong, DataError where the data set is not whole, TrainError
        where the tokenizer has no chat template, nothing is left to train on, or a pair exceeds `max_tokens`.
        """
        for name in sampling_options:
            if name not in sampling.OPTIONS:
                known = ", ".join(sampling.OPTIONS)
                raise UsageError(f'PairStream: unknown option "{name}". Sampling options: {known}.')
        if urls.is_url(str(data)):
            raise UsageError(f"{urls.shown(str(data))}: PairStream reads a local folder. Download the data set first.")
        options = {
            "objective": "sigmoid",  # as for all losses of pairs
            "pairs_per_step": pairs_per_step,
            "max_tokens": max_tokens,
            "max_length": max_length,
            "max_length_policy": max_length_policy,
            "epochs": epochs,
            "seed": seed,
            "shuffle_window": shuffle_window,
            **sampling_options,
        }
        checked = resolve.check("prefkit.train.options:Phase", options, "PairStream").options
        phase = Phase(**checked | {"name": "PairStream"})
        whole, self.store = _tokens(Path(data), tokenizer, split, phase, cache, progress or metrics.Silent())
        self.examples, draws = sampling.select(whole, phase)
        self.plan = Plan(
            whole.shard_prompts, self.examples.counts(), pairs_per_step, epochs, seed, shuffle_window, draws
        )
        if not self.plan.steps:
            raise TrainError(f"{data}: nothing to train on is left of {self.store.summary}.")
        self.max_tokens = max_tokens
        self.step = 0
        order = {name: value for name, value in options.items() if name != "max_tokens"}
        self._known_as = hashlib.sha256(json.dumps([self.store.key, order], sort_keys=True).encode()).hexdigest()

    @property
    def summary(self) -> str:
        """What became of the rows of the split, in one line."""
        return self.store.summary

    @property
    def margins(self) -> np.ndarray:
        """Chosen minus rejected score of every pair, in the unit of the raw ratings; NaN where there is none."""
        return self.examples.margins()

    def __len__(self) -> int:
        return self.plan.steps

    def __iter__(self) -> Iterator[Step]:
        while self.step < len(self):
            made = make_step(
                self.examples, self.plan.prompts(self.step), self.max_tokens, parallel.rank(), parallel.size()
            )
            self.step += 1
            yield made

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, for a checkpoint: the next step, and what it is a step of."""
        return {"step": self.step, "of": self._known_as}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` stood, on any number of ranks and with any `max_tokens`.

        TrainError if that stream had other tokens, epochs, seed, steps or sampling.
        """
        if state["of"] != self._known_as:
            raise TrainError(
                "PairStream: the state is that of another stream: data, tokenizer, lengths, seed, pairs_per_step, "
                "epochs or sampling differ."
            )
        self.step = int(state["step"])


def _tokens(
    data: Path, words: Any, split: str, phase: Phase, cache: Path | str | None, progress: metrics.Progress
) -> tuple[Examples, chat.Store]:
    """The examples of a split; TrainError where one fits no bin, or there are none."""
    if not getattr(words, "chat_template", None):
        known = ", ".join(tokenizer.TEMPLATES)
        raise TrainError(
            "PairStream: the tokenizer has no chat_template, so conversations cannot be rendered. Set it to one that "
            f"fits the model, or to a built-in one of prefkit.train.tokenizer.TEMPLATES: {known}."
        )
    made = shards.manifest_of(data)
    if not made.rows(split):
        raise TrainError(f'{data}: the data set has no split "{split}", or an empty one.')
    how = chat.Tokenising(phase.max_length or None, phase.max_length_policy, None)
    folder = chat.cache_folder(data, None if cache is None else Path(cache), Path.cwd() / ".prefkit-cache")
    store = chat.tokenise(data, made, split, words, how, cache=folder, progress=progress)
    examples = Examples.of(store)
    examples.check_fit(phase.max_tokens)
    return examples, store
