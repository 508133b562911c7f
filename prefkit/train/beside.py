"""What stands beside the answers of a prompt, as further sequences of its tree, for losses that ask for it.

Mismatched answers: what KTO estimates the policy's KL divergence from. Each prompt also gets the answers of the prompt
before it in its shard (the first gets those of the last), as sequences that stand in no pair. They share the prompt's
tokens in its tree, and since they are a function of the data alone, not of the batch, the reference's log-probabilities
of them are cached like any other, and neither bins, nor ranks, nor a resumed run change them. TRL pairs the examples of
a device's batch in the same way, which ties its data to the order of the file. The estimate has the same mean: the
order of a shard is random. What makes a sequence longer than `max_length` is cut.

Public answers: those of a pair cut at its public length, that of the shorter one, which LD-DPO weighs differently from
the rest (Liu et al. 2024, arXiv:2409.06411). The longer one cut there is a prefix of a sequence that the pair's tree
has already, so it costs no token: its log-probability, the policy's and the reference's, comes out like any other's.
"""

from __future__ import annotations

import numpy as np

from prefkit.train.pack import Sequence, tree_size
from prefkit.train.store import Prompt


def with_mismatched(prompts: list[Prompt], max_length: int | None) -> list[Prompt]:
    """The prompts of a shard, each with its predecessor's answers besides its own; a lone prompt has none."""
    if len(prompts) < 2:
        return prompts
    return [_with_answers_of(prompts[at - 1], prompt, max_length) for at, prompt in enumerate(prompts)]


def _with_answers_of(before: Prompt, prompt: Prompt, max_length: int | None) -> Prompt:
    tokens, start = prompt.sequences[0]
    answers = (np.concatenate([tokens[:start], other.tokens[other.start :]]) for other in before.sequences)
    sequences = [*prompt.sequences, *(Sequence(answer[:max_length], start) for answer in answers)]
    rows = [*prompt.rows, *[prompt.rows[0]] * len(before.sequences)]
    return prompt._replace(sequences=sequences, rows=rows, tree_tokens=tree_size(sequences))


def with_public(prompts: list[Prompt]) -> list[Prompt]:
    """The prompts with both answers of each pair cut at its public length; `public` says where those stand."""
    return [_with_cut_answers(prompt) for prompt in prompts]


def _with_cut_answers(prompt: Prompt) -> Prompt:
    sequences, rows = list(prompt.sequences), list(prompt.rows)
    found = {(sequence.tokens.tobytes(), sequence.start): at for at, sequence in enumerate(sequences)}
    public = []
    for row, *sides in prompt.pairs:
        length = min(len(sequences[at].tokens) - sequences[at].start for at in sides)
        cut = [Sequence(sequences[at].tokens[: sequences[at].start + length], sequences[at].start) for at in sides]
        for sequence in cut:
            if found.setdefault((sequence.tokens.tobytes(), sequence.start), len(sequences)) == len(sequences):
                sequences.append(sequence)
                rows.append(row)
        chosen, rejected = (found[sequence.tokens.tobytes(), sequence.start] for sequence in cut)
        public.append((chosen, rejected))
    return prompt._replace(sequences=sequences, rows=rows, public=public)
