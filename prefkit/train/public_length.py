"""Answers cut at the public length of their pair: what LD-DPO weighs differently from the rest.

The public length of a pair is the length of its shorter answer (Liu et al. 2024, LD-DPO, arXiv:2409.06411). The longer
one cut there is a prefix of a sequence that the pair's token tree has already, so it stands in the store as one
sequence more, and costs no token: its log-probability, the policy's and the reference's, comes out like any other's.
"""

from __future__ import annotations

from prefkit.train.pack import Sequence
from prefkit.train.store import Prompt


def with_public(prompts: list[Prompt]) -> list[Prompt]:
    """The prompts with both answers of each pair cut at its public length; `public` says where those stand."""
    return [_extended(prompt) for prompt in prompts]


def _extended(prompt: Prompt) -> Prompt:
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
