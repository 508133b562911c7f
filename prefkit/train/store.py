"""The token store: one Arrow file a shard of the data set, a row a prompt, and `store.json` when all are there.

    sequences   list<struct<tokens, start, row>>      distinct; tokens[start:] is the completion; row is in the shard
    pairs       list<struct<row, chosen, rejected>>   two positions in `sequences`, of a labelled answer twice the same;
                                                      empty for supervised fine-tuning
    examples    list<struct<source, lang, chosen_score, rejected_score, label>>
                                                      what the data set says of each pair, or of each sequence where
                                                      there are no pairs; null where it says nothing
    public      list<struct<chosen, rejected>>        where each pair's answers stand in `sequences`, cut at the length
                                                      of the shorter one; empty unless asked for (`beside.py`)
    tree_tokens int32                                 tokens of the prompt's token tree: what the trainer will compute

Beside each Arrow file stand its counts, as JSON. Files appear at once or not at all, under temporary names that no
two processes share, so any number of runs may fill one cache: they write the same bytes. Beside the counts stands the
file's SHA-256, and whoever opens a store compares it: a damaged file counts as absent, and is made again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from prefkit.manifest import file_sha256, write_text_atomically
from prefkit.train.files import naming, scratch
from prefkit.train.pack import Sequence

FINISHED = "store.json"

EXAMPLE = pa.struct(
    [
        ("source", pa.dictionary(pa.int32(), pa.string())),
        ("lang", pa.dictionary(pa.int32(), pa.string())),
        ("chosen_score", pa.float64()),
        ("rejected_score", pa.float64()),
        ("label", pa.bool_()),
    ]
)
SCHEMA = pa.schema(
    [
        (
            "sequences",
            pa.list_(pa.struct([("tokens", pa.large_list(pa.int32())), ("start", pa.int32()), ("row", pa.int64())])),
        ),
        ("pairs", pa.list_(pa.struct([("row", pa.int64()), ("chosen", pa.int32()), ("rejected", pa.int32())]))),
        ("examples", pa.list_(EXAMPLE)),
        ("public", pa.list_(pa.struct([("chosen", pa.int32()), ("rejected", pa.int32())]))),
        ("tree_tokens", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Store:
    """A finished token store: `counts` says what became of every row, `files` holds one file name a shard."""

    folder: Path
    key: str
    split: str
    files: list[str]
    counts: dict[str, int]

    @property
    def summary(self) -> str:
        """What was kept and what was not, in one line for people."""
        rest = [
            f"{count:,} {what.replace('_', ' ')}" for what, count in self.counts.items() if what in LOSSES and count
        ]
        return f"{self.split}: {self.counts['examples']:,} examples of {self.counts['rows']:,} rows" + (
            f" ({', '.join(rest)})" if rest else ""
        )


# What is counted where a row is not used as it is. Under the first six, examples are trained on; under the others not.
LOSSES = {
    "completion_cut": "a completion was cut at max_length, and so lost its end-of-turn token",
    "prompt_cut": "the start of a prompt was left out to stay within max_length",
    "boundary_moved": "the prompt's end has other tokens once a completion follows; from there on it is completion",
    "system_merged": "the template refuses system messages, so this one stands before the first user message's text",
    "system_left_out": "the template leaves the system message out",
    "repeated": "the same answer to the same prompt again, and learned once",
    "undesirable": "an answer with a bad label, which fine-tuning does not learn",
    "prompt_too_long": "the prompt alone reaches max_length",
    "completion_too_long": "the completion leaves no room for any of its prompt within max_length",
    "too_long": 'longer than max_length under max_length_policy = "drop"',
    "empty_completion": "a completion has no token of its own",
    "no_answer": "there is no assistant message to learn",
    "same_after_cut": "chosen and rejected, or a good and a bad answer to a prompt, are the same up to max_length",
    "prompt_rewritten": "the template writes the prompt's messages differently once a completion follows",
    "answer_rewritten": "the template leaves out or rewrites part of the answer, its thinking for example",
}


TOO_LONG = ("prompt_too_long", "completion_too_long", "too_long", "same_after_cut")


def length_hint(counts: Mapping[str, int]) -> str:
    """What to try where nothing is left, to append to a message; empty where no limit is to blame."""
    return " Raise max_length?" if any(counts.get(name) for name in TOO_LONG) else ""


class Example(NamedTuple):
    """What the data set says of a pair, or of an answer; None where it says nothing."""

    source: str | None
    lang: str | None
    chosen_score: float | None
    rejected_score: float | None
    label: bool | None = None


class Prompt(NamedTuple):
    """One row of the store. `rows` holds, for each sequence, the first row of the shard that it comes from."""

    sequences: list[Sequence]
    rows: list[int]
    pairs: list[tuple[int, int, int]]
    examples: list[Example]
    tree_tokens: int
    public: list[tuple[int, int]] = []  # noqa: RUF012 (never changed in place)


def open_store(folder: Path, key: str) -> Store | None:
    """The finished store in `folder`; None if there is none, or one that is damaged."""
    try:
        store = Store(folder=folder, key=key, **json.loads((folder / FINISHED).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return store if all(is_whole(folder / name) for name in store.files) else None


def finish_store(folder: Path, split: str, files: list[str]) -> None:
    """Write `store.json`, with the counts of all files added up."""
    counts: dict[str, int] = {}
    for file in files:
        add_counts(counts, counts_of(folder / file))
    table = {"split": split, "files": files, "counts": counts}
    with scratch(folder) as temporary:
        write_text_atomically(folder / FINISHED, json.dumps(table, indent=1) + "\n", scratch=temporary)


def counts_of(path: Path) -> dict[str, int]:
    """What became of the rows of one shard, by its Arrow file's path."""
    counts: dict[str, int] = json.loads(path.with_suffix(".json").read_text())["counts"]
    return counts


def add_counts(total: dict[str, int], more: Mapping[str, int]) -> None:
    """Add the counts of a shard to those of others; `longest` is that of all."""
    for name, count in more.items():
        so_far = total.get(name, 0)
        total[name] = max(so_far, count) if name == "longest" else so_far + count


def is_whole(path: Path) -> bool:
    """Whether an Arrow file and its counts are there, and the file is what was written."""
    try:
        return bool(json.loads(path.with_suffix(".json").read_text())["sha256"] == file_sha256(path))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_file(target: Path, prompts: list[Prompt], counts: Counter[str]) -> None:
    """Write an Arrow file and its counts; both appear at once or not at all."""
    with naming(target), scratch(target.parent) as folder:
        temporary = folder / target.name
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
            writer.write_batch(to_arrow(prompts))
        table = {"sha256": file_sha256(temporary), "counts": counts}
        write_text_atomically(target.with_suffix(".json"), json.dumps(table), scratch=folder)
        temporary.replace(target)


def to_arrow(prompts: Iterable[Prompt]) -> pa.RecordBatch:
    """The prompts of a shard as one record batch, so that a reader gets plain arrays without copying."""
    prompts = list(prompts)
    sequences = [sequence for prompt in prompts for sequence in prompt.sequences]
    tokens = pa.LargeListArray.from_arrays(
        pa.array(offsets(len(s.tokens) for s in sequences), pa.int64()),
        pa.array(np.concatenate([s.tokens for s in sequences]) if sequences else [], pa.int32()),
    )
    starts = pa.array([s.start for s in sequences], pa.int32())
    rows = pa.array([row for prompt in prompts for row in prompt.rows], pa.int64())
    pairs = np.array([pair for prompt in prompts for pair in prompt.pairs], dtype=np.int64).reshape(-1, 3)
    public = np.array([sides for prompt in prompts for sides in prompt.public], dtype=np.int32).reshape(-1, 2)
    columns = [
        pa.ListArray.from_arrays(
            pa.array(offsets(len(p.sequences) for p in prompts), pa.int32()),
            pa.StructArray.from_arrays([tokens, starts, rows], fields=list(SCHEMA.field("sequences").type.value_type)),
        ),
        pa.ListArray.from_arrays(
            pa.array(offsets(len(p.pairs) for p in prompts), pa.int32()),
            pa.StructArray.from_arrays(
                [pa.array(pairs[:, 0]), pa.array(pairs[:, 1], pa.int32()), pa.array(pairs[:, 2], pa.int32())],
                fields=list(SCHEMA.field("pairs").type.value_type),
            ),
        ),
        pa.ListArray.from_arrays(pa.array(offsets(len(p.examples) for p in prompts), pa.int32()), to_struct(prompts)),
        pa.ListArray.from_arrays(
            pa.array(offsets(len(p.public) for p in prompts), pa.int32()),
            pa.StructArray.from_arrays(
                [pa.array(public[:, 0]), pa.array(public[:, 1])], fields=list(SCHEMA.field("public").type.value_type)
            ),
        ),
        pa.array([p.tree_tokens for p in prompts], pa.int32()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def to_struct(prompts: list[Prompt]) -> pa.StructArray:
    """What is known of all examples, side by side; the few sources and languages stand once each."""
    table = [list(column) for column in zip(*(e for p in prompts for e in p.examples), strict=True)] or [[]] * len(
        EXAMPLE
    )
    columns = [
        pa.array(values, field.type.value_type).dictionary_encode() if number < 2 else pa.array(values, field.type)
        for number, (values, field) in enumerate(zip(table, EXAMPLE, strict=True))
    ]
    return pa.StructArray.from_arrays(columns, fields=list(EXAMPLE))


def offsets(lengths: Iterable[int]) -> np.ndarray:
    """0 and the running sum: where each list of an Arrow list column starts, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(np.fromiter(lengths, dtype=np.int64))]).astype(np.int64)
