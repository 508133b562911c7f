"""Examples that arrive while training goes on (`stream = true`): the first step waits for its own shards alone.

The plan of all steps needs only an *index*: how many rows each prompt has, and of each row its source, language and
scores (or label). These few columns are read first, of a data set at a URL by byte ranges, a few hundredths of its
bytes. Then one background thread fetches, checks and tokenises shard by shard, in the order in which the plan comes to
them from the step where training begins; a step waits for the shards that it reads, which are at first those of one
shuffle window. What the thread needs of the processor is a small part of what the trainer does (docs/benchmarks.md).

The plan counts rows, where tokenising first counts the examples that `max_length` and the template leave. So where
every row can be used, both train on the same steps; where some cannot, streamed steps are smaller by those. In turn
the order does not depend on tokens: resuming at step n needs the index and the shards from step n on, and nothing
before. The hash of a shard says nothing of columns read by ranges, so a shard that has come is compared with its index.

Numbers: prompts run through all shards, as everywhere. Examples are rows, and a pair's number is that of its row.
A sequence's number has its shard in the upper 32 bits.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prefkit.errors import DataError
from prefkit.manifest import Shard
from prefkit.train import chat, shards
from prefkit.train.chat import Tokenising
from prefkit.train.examples import UNKNOWN, Counts, Examples, ShardView, running
from prefkit.train.pack import Tree
from prefkit.train.store import Example, Store, add_counts, counts_of, finish_store, is_whole

READERS = 16  # of the index, at a time: it is latency that a small read costs


@dataclass(frozen=True)
class Index:
    """Of one shard: the first row of each prompt, and by row what the data set says."""

    rows: int
    first: np.ndarray
    values: dict[str, np.ndarray]  # source, lang
    scores: np.ndarray  # [rows, 2]: chosen, rejected
    labels: np.ndarray  # none, where the data set has none


def read_index(data: Path, listed: Sequence[Shard]) -> list[Index]:
    """The index of each shard, from a few of its columns."""

    def read(shard: Shard) -> Index:
        with shards.opened(data, shard) as file:
            index = index_of(pq.ParquetFile(file))
        if index.rows != shard.rows:
            raise DataError(f"{shard.path}: {index.rows:,} rows, where the manifest lists {shard.rows:,}.")
        return index

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(read, listed))


def index_of(file: pq.ParquetFile) -> Index:
    """What the index takes from a Parquet file."""
    names = [name for name in ("prompt_id", *Example._fields) if name in file.schema_arrow.names]
    table = file.read(columns=names)
    rows = file.metadata.num_rows

    def column(name: str, otherwise: Any, dtype: Any) -> np.ndarray:
        found = table[name].to_pylist() if name in names else [None] * rows
        return np.array([otherwise if value is None else value for value in found], dtype=dtype)

    ids = column("prompt_id", "", object) if "prompt_id" in names else np.arange(rows)
    first = np.concatenate([np.arange(min(1, rows)), np.flatnonzero(ids[1:] != ids[:-1]) + 1])
    values = {name: column(name, UNKNOWN, object) for name in ("source", "lang")}
    scores = [column(name, np.nan, np.float64) for name in ("chosen_score", "rejected_score")]
    labels = column("label", False, bool) if "label" in names else np.zeros(0, bool)
    return Index(rows, first, values, np.stack(scores, axis=1), labels)


@dataclass
class Supply:
    """The tokens of a split's shards, made by one background thread in the order that `begin` is told.

    `check` hears the longest sequence of each shard; `store.counts` are those of the shards that have come.
    """

    data: Path
    listed: list[Shard]
    index: list[Index]
    tokenizer: Any
    how: Tokenising
    store: Store
    check: Callable[[int], None]
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "tokens"))
    coming: dict[int, Future[dict[str, int]]] = field(default_factory=dict)
    come: dict[int, ShardView] = field(default_factory=dict)

    def begin(self, order: Sequence[int]) -> None:
        """Start to make the tokens of these shards, in this order."""
        self.coming = {number: self.pool.submit(self._make, number) for number in order}

    def get(self, number: int) -> ShardView:
        """The tokens of a shard, as soon as they are there; raises what went wrong with it in the background."""
        if number not in self.come:
            counts = self.coming[number].result()
            self.check(counts["longest"])
            add_counts(self.store.counts, counts)
            self.come[number] = ShardView(pa.memory_map(str(self._target(number))))
        return self.come[number]

    def close(self) -> None:
        """Stop after the shard that is being made; if it was the last one, the token store is finished."""
        self.pool.shutdown(cancel_futures=True)
        made = [future for future in self.coming.values() if not future.cancelled() and not future.exception()]
        if len(made) == len(self.listed):
            finish_store(self.store.folder, self.store.split, self.store.files)

    def _target(self, number: int) -> Path:
        return self.store.folder / self.store.files[number]

    def _make(self, number: int) -> dict[str, int]:
        shard, target = self.listed[number], self._target(number)
        with _locked(target.with_suffix(".lock")):  # another rank, or run, may be at it
            if not is_whole(target):
                found = index_of(pq.ParquetFile(shards.local(self.data, shard)))
                if not _same(found, self.index[number]):
                    raise DataError(f"{shard.path}: not the rows that its index told of. Run the same command again.")
                chat.write_shard(self.data, shard, self.tokenizer, self.how, target)
            return counts_of(target)


class Arriving:
    """What `Examples` is to the plan and to the steps, of shards whose tokens are still being made."""

    def __init__(self, supply: Supply, kept: np.ndarray | None = None) -> None:
        self.supply = supply
        self.kept = kept
        index = supply.index
        self.shard_prompts = tuple(len(one.first) for one in index)
        self.prompt_base = running(self.shard_prompts)
        self.row_base = running([one.rows for one in index])
        self._shards: dict[int, tuple[Examples, np.ndarray]] = {}

    def keeping(self, kept: np.ndarray) -> Arriving:
        """The same prompts with trees of the rows in the mask `kept` alone."""
        return Arriving(self.supply, kept)

    def counts(self) -> np.ndarray:
        """Rows of each prompt."""
        ends = [np.diff([*one.first, one.rows]) for one in self.supply.index]
        counts = np.concatenate([np.zeros(0, np.int64), *ends])
        return counts if self.kept is None else np.diff(running(self.kept)[running(counts)])

    def values(self, name: str) -> np.ndarray:
        """`source` or `lang` of every row, `UNKNOWN` where there is none."""
        return np.concatenate([np.zeros(0, object), *(one.values[name] for one in self.supply.index)])

    def margins(self) -> np.ndarray:
        """Chosen minus rejected score of every row; NaN where there is none."""
        return -np.diff(np.concatenate([np.zeros((0, 2)), *(one.scores for one in self.supply.index)]), axis=1)[:, 0]

    def labels(self) -> np.ndarray | None:
        """The label of every row; None where they have none."""
        labels = np.concatenate([np.zeros(0, bool), *(one.labels for one in self.supply.index)])
        return labels if len(labels) == self.row_base[-1] else None

    def tree_sizes(self, prompt: int, max_tokens: int) -> list[int]:
        """Tokens of each of `trees`."""
        _, examples, local = self._locate(prompt)
        return [] if local is None else examples.tree_sizes(local, max_tokens)

    def counts_of(self, prompt: int) -> Counts:
        """What a prompt adds to a step."""
        _, examples, local = self._locate(prompt)
        return Counts(0, 0, 0, 0, 0) if local is None else examples.counts_of(local)

    def trees(self, prompt: int, max_tokens: int) -> list[Tree]:
        """The token trees of a prompt, none if none of its rows can be used; waits until its shard has come."""
        number, examples, local = self._locate(prompt)
        if local is None:
            return []
        rows = examples.shards[0].pair_rows + self.row_base[number]
        return [
            replace(
                tree,
                pair_rows_P=rows[tree.pair_rows_P],
                sequence_rows_Q=tree.sequence_rows_Q + (number << 32),
            )
            for tree in examples.trees(local, max_tokens)
        ]

    def public_of(self, pairs: np.ndarray) -> np.ndarray:
        """The sequences that are these pairs' answers cut at the length of the shorter one, as [pairs, 2]."""
        public = np.empty((len(pairs), 2), np.int64)
        of_shard = np.searchsorted(self.row_base, pairs, side="right") - 1
        for number in np.unique(of_shard).tolist():
            view, mine = self.supply.get(number), of_shard == number
            at = np.searchsorted(view.pair_rows, pairs[mine] - self.row_base[number])
            public[mine] = view.of_pairs(view.public)[at] + (number << 32)
        return public

    def origin_of_pair(self, pair: int) -> tuple[int, int]:
        """Shard, and row in it, of a pair."""
        shard = int(np.searchsorted(self.row_base, pair, side="right")) - 1
        return shard, int(pair - self.row_base[shard])

    def origin_of_sequence(self, sequence: int) -> tuple[int, int]:
        """Shard, and first row in it, of a sequence."""
        shard, local = sequence >> 32, sequence & 0xFFFFFFFF
        return shard, int(self.supply.get(shard).sequence_rows[local])

    def _locate(self, prompt: int) -> tuple[int, Examples, int | None]:
        """A prompt's shard: its number and examples, and the prompt's number among those of the token store."""
        number = int(np.searchsorted(self.prompt_base, prompt, side="right")) - 1
        if number not in self._shards:
            self._shards[number] = self._opened(number)
        examples, places = self._shards[number]
        place = int(places[prompt - self.prompt_base[number]])
        return number, examples, None if place < 0 else place

    def _opened(self, number: int) -> tuple[Examples, np.ndarray]:
        """The examples of a shard that has come, and the place of each of the index's prompts among them, or -1."""
        view = self.supply.get(number)
        examples = Examples([view])
        if self.kept is not None:
            rows = view.pair_rows if len(view.pair_rows) else view.sequence_rows
            examples = examples.keeping(self.kept[rows + self.row_base[number]])
        places = np.full(self.shard_prompts[number], -1)
        first = self.supply.index[number].first
        rows_of_prompts = view.sequence_rows[view.sequence_offsets[:-1]]
        used = examples.counts() > 0  # the rows that a filter leaves of a prompt may all be unusable
        places[np.searchsorted(first, rows_of_prompts, side="right") - 1] = np.where(used, np.arange(view.prompts), -1)
        return examples, places


@contextmanager
def supplied(examples: Examples | Arriving, needed: Callable[[], list[int]]) -> Iterator[None]:
    """Within, the tokens of the shards that are `needed` are made, in this order, unless all are there anyway."""
    if isinstance(examples, Examples):
        yield
        return
    examples.supply.begin(needed())
    try:
        yield
    finally:
        examples.supply.close()


def _same(one: Index, other: Index) -> bool:
    same_values = all(np.array_equal(one.values[name], other.values[name]) for name in one.values)
    same_rows = np.array_equal(one.first, other.first) and np.array_equal(one.labels, other.labels)
    return same_values and same_rows and np.array_equal(one.scores, other.scores, True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
