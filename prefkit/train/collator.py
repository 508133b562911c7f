"""Rows of pairs -> token trees in bins: the sequence-packing collator, for loops and trainers of other people.

`PackingCollator` takes rows as the shards, `datasets` and TRL have them, so it goes where a collator goes: into
``torch.utils.data.DataLoader(collate_fn=…)`` and ``transformers.Trainer(data_collator=…)``. It tokenises by the same
code as `prefkit train`, prompt and answer together, and lays the pairs of each prompt that are in the batch into one
tree. `prefkit.train.pair_stream` is the other way to the same bins: it tokenises once, keeps whole prompts together,
and knows where it stands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from prefkit import resolve
from prefkit.errors import TrainError
from prefkit.train import chat, length
from prefkit.train.fill import pack
from prefkit.train.pack import Bin, Tree, collate, split_tree
from prefkit.train.store import Prompt, length_hint

MESSAGES = ("prompt", "chosen", "rejected")


class Batch(TypedDict):
    """What the collator gives. `counts` says by kind what `max_length` and the chat template did to the rows.

    `pairs` are all pairs of all bins, and so what a mean loss divides by. `bin.pair_rows_P` are positions in the list
    of rows that the batch was made of.
    """

    bins: list[Bin]
    pairs: int
    counts: dict[str, int]


class PackingCollator:
    """Makes a list of pairs into bins of token trees: no padding, every shared prefix computed once.

    A row has `prompt`, `chosen` and `rejected`, each a list of ``{"role": …, "content": …}``; other columns are not
    looked at. Rows of equal prompts share a tree, and it pays to keep them in one batch. The result is a `Batch`, a
    dictionary: a bin is a row of at most `max_tokens` tokens, which `prefkit.train.policy.Policy.sequence_logps` takes.

    Lengths are in tokens, `max_length` of prompt and answer together (0: no limit). Rows that cannot be used are
    counted in `counts`. Raises TrainError for a row without these columns, a batch of which no row can be used, a pair
    longer than `max_tokens`, and under ``max_length_policy="error"`` one longer than `max_length`.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_tokens: int = 8192,
        max_length: int = 1024,
        max_length_policy: length.Policy = "truncate_completion",
    ) -> None:
        options = {"max_tokens": max_tokens, "max_length": max_length, "max_length_policy": max_length_policy}
        resolve.check("prefkit.train.options:Phase", {"objective": "sigmoid", **options}, "PackingCollator")
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.how = chat.Tokenising(max_length or None, max_length_policy, None)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        counts: Counter[str] = Counter()
        prompts = chat.pairs_of_prompts(_by_prompt(rows), self.tokenizer, self.how, counts, "the batch")
        trees: list[Tree] = []
        sequences = 0
        for prompt in prompts:
            trees += self._trees(prompt, sequences)
            sequences += len(prompt.sequences)
        counts.pop("rows", None)
        pairs = counts.pop("examples", 0)
        told = {name: count for name, count in counts.items() if count}
        if not pairs:
            raise TrainError(f"none of the {len(rows)} rows of a batch can be used ({told}).{length_hint(counts)}")
        packed = pack([tree.size for tree in trees], self.max_tokens)
        bins = [collate([trees[i] for i in members]) for members in packed]
        return {"bins": bins, "pairs": pairs, "counts": told}

    def _trees(self, prompt: Prompt, first: int) -> list[Tree]:
        """The trees of a prompt, whose sequences are numbered from `first` on."""
        return split_tree(
            prompt.sequences,
            [(chosen, rejected) for _, chosen, rejected in prompt.pairs],
            pair_rows=[row for row, _, _ in prompt.pairs],
            sequence_rows=range(first, first + len(prompt.sequences)),
            max_tokens=self.max_tokens,
        )


def _by_prompt(rows: Sequence[Mapping[str, Any]]) -> list[list[tuple[int, dict[str, Any]]]]:
    """Rows with their positions, those of equal prompts together; prompts in the order of their first rows."""
    groups: dict[tuple[Any, ...], list[tuple[int, dict[str, Any]]]] = {}
    for at, row in enumerate(rows):
        for name in MESSAGES:
            if not _is_conversation(row.get(name)):
                raise TrainError(
                    f'row {at} of a batch: "{name}" must be a list of messages, [{{"role": …, "content": …}}], of '
                    f"texts, as prefkit's shards have it, not {row.get(name)!r:.100}."
                    " In transformers.Trainer, set remove_unused_columns=False."
                )
        key = tuple((message["role"], message["content"]) for message in row["prompt"])
        groups.setdefault(key, []).append((at, dict(row)))
    return list(groups.values())


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(message, Mapping) and {"role", "content"} <= message.keys() for message in value)
        and all(isinstance(message["content"], str) for message in value)
        and all(isinstance(text, str | None) for message in value for text in message.values())
    )
