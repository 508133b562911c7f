"""Answers under prompts that they do not belong to: what KTO estimates the policy's KL divergence from.

Each prompt also gets the answers of the prompt before it in its shard (the first gets those of the last), as sequences
that stand in no pair. They share the prompt's tokens in its tree, and since they are a function of the data alone, not
of the batch, the reference's log-probabilities of them are cached like any other, and neither bins, nor ranks, nor a
resumed run change them.

TRL pairs the examples of a device's batch in the same way, which ties its data to the order of the file. The estimate
has the same mean: the order of a shard is random. What makes a sequence longer than `max_length` is cut.
"""

from __future__ import annotations

import numpy as np

from prefkit.train.pack import Sequence, tree_size
from prefkit.train.store import Prompt


def with_mismatched(prompts: list[Prompt], max_length: int | None) -> list[Prompt]:
    """The prompts of a shard, each with its predecessor's answers besides its own; a lone prompt has none."""
    if len(prompts) < 2:
        return prompts
    return [_extended(prompt, prompts[at - 1], max_length) for at, prompt in enumerate(prompts)]


def _extended(prompt: Prompt, before: Prompt, max_length: int | None) -> Prompt:
    tokens, start = prompt.sequences[0]
    answers = (np.concatenate([tokens[:start], other.tokens[other.start :]]) for other in before.sequences)
    sequences = [*prompt.sequences, *(Sequence(answer[:max_length], start) for answer in answers)]
    rows = [*prompt.rows, *[prompt.rows[0]] * len(before.sequences)]
    return prompt._replace(sequences=sequences, rows=rows, tree_tokens=tree_size(sequences))
