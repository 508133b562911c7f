"""Chat template and tokenizer: shards -> a token store that training reads by memory map.

How it works. Each shard is read in batches; every conversation is rendered by the model's own chat template, each
distinct text of a batch is tokenised once (by the tokenizer's own threads), and one file a shard is written, a row a
prompt (`prefkit.train.store`).

The store stands in a folder named by the hash of all it depends on: the shards' bytes, the tokenizer, the template,
the length rule. A folder with `store.json` is complete; without it, its finished files are kept and the rest is
written.

Templates and the boundary between prompt and completion: `prefkit.train.template`; what exceeds `max_length`:
`prefkit.train.length`. On disk a token takes four bytes; afterwards a run starts by mapping the files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from prefkit.errors import DataError, TrainError, did_you_mean
from prefkit.manifest import Manifest, Shard
from prefkit.train import files, parallel, shards
from prefkit.train.beside import with_mismatched, with_public
from prefkit.train.length import Given, Limit, Policy, fit
from prefkit.train.metrics import Progress
from prefkit.train.pack import Sequence, tree_size
from prefkit.train.store import LOSSES, Example, Prompt, Store, finish_store, is_whole, open_store, write_file
from prefkit.train.template import Conversation, Sides, encode_examples, has_system, system_role

FORMAT = 6
ROWS_A_BATCH = 1024
OF_LOADING = ("is_local", "local_files_only", "name_or_path")  # of tokenizer_config.json; no token depends on it
ANSWERS = ("chosen", "rejected", "completion")  # columns that hold an answer to `prompt`; others, whole conversations

Row = dict[str, Any]


@dataclass(frozen=True)
class Tokenising:
    """What the tokens depend on besides the data; `column` is None for pairs and labels, else the answers of sft.

    `mismatched`: with each prompt also another prompt's answers, for losses that ask for them. `public`: with each pair
    also its answers cut at the length of the shorter one.
    """

    max_length: int | None
    max_length_policy: Policy
    column: str | None
    mismatched: bool = False
    public: bool = False
    labels: bool = False

    @property
    def limit(self) -> Limit:
        return Limit(self.max_length, self.max_length_policy)

    @property
    def answers(self) -> tuple[str, ...]:
        """The columns that are learned from."""
        if self.column is not None:
            return (self.column,)
        return ("completion",) if self.labels else ("chosen", "rejected")


def cache_folder(data: Path, cache: Path | None, otherwise: Path) -> Path:
    """Where token stores and references live: `cache`, or beside the shards, or `otherwise` if those are read-only."""
    if cache is not None:
        return cache
    return data / ".cache" if os.access(data, os.W_OK) else otherwise


def tokenise(
    data: Path, manifest: Manifest, split: str, tokenizer: Any, how: Tokenising, *, cache: Path, progress: Progress
) -> Store:
    """The token store of one split: opened if it exists under `cache`, else made, each rank tokenising some shards.

    Raises DataError if a shard's bytes are not those of the manifest, TrainError if the chat template refuses a row,
    or a row is too long and `max_length_policy` is "error".
    """
    listed = manifest.of_split(split)
    new = new_store(listed, split, tokenizer, how, cache)
    folder, key = new.folder, new.key
    if not parallel.of_first(open_store(folder, key) is not None):
        folder.mkdir(parents=True, exist_ok=True)
        done = 0
        for number, (name, shard) in enumerate(zip(new.files, listed, strict=True)):
            target = folder / name
            if number % parallel.size() == parallel.rank() and not is_whole(target):
                if target.exists():
                    progress.note(f"{target}: damaged, so it is made again.")
                write_shard(data, shard, tokenizer, how, target)
            done += shard.rows
            progress.update(f"tokenising {split}", done, manifest.rows(split), "rows")
        parallel.wait()
        with parallel.first_before_others():
            if parallel.is_first():
                finish_store(folder, split, new.files)
    elif parallel.is_first():
        files.sweep(folder)
    finished = open_store(folder, key)
    if finished is None:
        raise DataError(f"{folder}: what one rank wrote, another does not find. All nodes must share this folder.")
    return finished


def new_store(listed: list[Shard], split: str, tokenizer: Any, how: Tokenising, cache: Path) -> Store:
    """The token store of some shards as it is before there is anything in it, its folder neither."""
    key = store_key(listed, tokenizer, how)
    return Store(cache / f"tokens-{key[:24]}", key, split, [f"{number:05d}.arrow" for number in range(len(listed))], {})


def store_key(listed: list[Shard], tokenizer: Any, how: Tokenising) -> str:
    """Hash of all that the token store depends on."""
    parts = {
        "format": FORMAT,
        "shards": [(shard.path, shard.sha256) for shard in listed],
        "tokenizer": tokenizer_hash(tokenizer),
        **dataclasses.asdict(how),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 over the files that the tokenizer writes: vocabulary, merges, special tokens and chat template.

    Not over how it was loaded, so that it is the same one with the Hub in reach and without.
    """
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                content = path.read_bytes()
                if path.name == "tokenizer_config.json":
                    table = {key: value for key, value in json.loads(content).items() if key not in OF_LOADING}
                    content = json.dumps(table, sort_keys=True).encode()
                digest.update(path.name.encode() + b"\0" + content + b"\0")
    return digest.hexdigest()


def write_shard(data: Path, shard: Shard, tokenizer: Any, how: Tokenising, target: Path) -> None:
    """Tokenise one Parquet shard into `target` and its counts beside it; both appear at once or not at all."""
    source = shards.local(data, shard)
    counts = Counter(rows=0, examples=0, sequences=0, tokens=0, tree_tokens=0, longest=0, **dict.fromkeys(LOSSES, 0))
    system = system_role(tokenizer)
    prompts = builder(how)
    begins = how.column if how.column not in (None, *ANSWERS) else "prompt"
    built: list[Prompt] = []
    for batch in batches_of_prompts(source, how):
        with_system = sum(has_system(row[begins]) for group in batch for _, row in group)
        counts["system_merged"] += with_system * (system == "refused")
        counts["system_left_out"] += with_system * (system == "left out")
        built += prompts(batch, tokenizer, how, counts, shard.path)
    if how.mismatched:
        built = with_mismatched(built, how.max_length)
    if how.public:
        built = with_public(built)
    counts["sequences"] = sum(len(prompt.sequences) for prompt in built)
    counts["tokens"] = sum(len(sequence.tokens) for prompt in built for sequence in prompt.sequences)
    counts["tree_tokens"] = sum(prompt.tree_tokens for prompt in built)
    counts["longest"] = max((len(s.tokens) for prompt in built for s in prompt.sequences), default=0)
    write_file(target, built, counts)


def batches_of_prompts(source: Path, how: Tokenising) -> Iterator[list[list[tuple[int, Row]]]]:
    """Rows of a shard with their numbers, grouped by prompt, some hundreds of prompts at a time."""
    file = pq.ParquetFile(source)
    schema = file.schema_arrow
    known = shards.columns_of_messages(schema)
    for column in how.answers:
        if column not in known:
            raise TrainError(f'{source}: no message column "{column}".{did_you_mean(column, known)}')
    columns = [name for name in ("prompt", *how.answers, "prompt_id", *Example._fields) if name in schema.names]
    rows = (row for batch in file.iter_batches(ROWS_A_BATCH, columns=columns) for row in batch.to_pylist())
    groups = (
        list(group)
        for _, group in itertools.groupby(enumerate(rows), key=lambda item: item[1].get("prompt_id", item[0]))
    )
    while batch := list(itertools.islice(groups, ROWS_A_BATCH // 2)):
        yield batch


def builder(how: Tokenising) -> Callable[..., Iterator[Prompt]]:
    """What makes prompts of the rows of a batch."""
    if how.column is not None:
        return answers_of_prompts
    return labels_of_prompts if how.labels else pairs_of_prompts


def fitted(
    batch: list[list[Given]], tokenizer: Any, how: Tokenising, counts: Counter[str]
) -> Iterator[list[Sides | None]]:
    """The examples of each prompt in tokens, within the limit; None for one that cannot be used."""
    encoded = iter(encode_examples(tokenizer, [(one.prompt, one.completions) for group in batch for one in group]))
    for group in batch:
        yield fit(group, [next(encoded) for _ in group], tokenizer, how.limit, counts)


def pairs_of_prompts(
    batch: list[list[tuple[int, Row]]], tokenizer: Any, how: Tokenising, counts: Counter[str], shard: str
) -> Iterator[Prompt]:
    """Each prompt with its distinct completions and the pairs among them."""
    given = [
        [Given(f"{shard}, row {at}", row["prompt"], [row["chosen"], row["rejected"]]) for at, row in group]
        for group in batch
    ]
    for rows, sides_of in zip(batch, fitted(given, tokenizer, how, counts), strict=True):
        counts["rows"] += len(rows)
        distinct = Distinct()
        pairs, examples = [], []
        for (row, values), sides in zip(rows, sides_of, strict=True):
            if sides is None:
                continue
            good, bad = sides.tokens
            if np.array_equal(good, bad):
                counts["same_after_cut"] += 1
            else:
                pairs.append((row, distinct.add(good, sides.start, row), distinct.add(bad, sides.start, row)))
                examples.append(example_of(values))
        if pairs:
            counts["examples"] += len(pairs)
            yield Prompt(distinct.sequences, distinct.rows, pairs, examples, tree_size(distinct.sequences))


def labels_of_prompts(
    batch: list[list[tuple[int, Row]]], tokenizer: Any, how: Tokenising, counts: Counter[str], shard: str
) -> Iterator[Prompt]:
    """Each prompt with its distinct answers, each an example whose sides are both the answer (`labelled.py`)."""
    given = [[Given(f"{shard}, row {at}", row["prompt"], [row["completion"]]) for at, row in group] for group in batch]
    for rows, sides_of in zip(batch, fitted(given, tokenizer, how, counts), strict=True):
        counts["rows"] += len(rows)
        distinct = Distinct()
        pairs, examples = [], []
        labels: dict[bytes, set[bool]] = {}
        for (row, values), sides in zip(rows, sides_of, strict=True):
            if values["label"] is None:
                raise DataError(f"{shard}, row {row}: it has no label. prefkit verify tells more.")
            if sides is not None:
                labels.setdefault(sides.tokens[0].tobytes(), set()).add(values["label"])
        for (row, values), sides in zip(rows, sides_of, strict=True):
            if sides is None:
                continue
            if len(labels[sides.tokens[0].tobytes()]) > 1:
                counts["same_after_cut"] += 1
                continue
            known = len(distinct.sequences)
            at = distinct.add(sides.tokens[0], sides.start, row)
            if at < known:
                counts["repeated"] += 1
            else:
                pairs.append((row, at, at))
                examples.append(example_of(values))
        if pairs:
            counts["examples"] += len(pairs)
            yield Prompt(distinct.sequences, distinct.rows, pairs, examples, tree_size(distinct.sequences))


def answers_of_prompts(
    batch: list[list[tuple[int, Row]]], tokenizer: Any, how: Tokenising, counts: Counter[str], shard: str
) -> Iterator[Prompt]:
    """Each prompt with the assistant turns to learn: those of its answers, or all those of a message column.

    A conversation of three assistant turns is three sequences, each the next one's prefix: a tree computes it once.
    """
    turns = [[(row, turn) for row, content in group for turn in assistant_turns(content, how)] for group in batch]
    counts["undesirable"] += sum(content.get("label") is False for group in batch for _, content in group)
    values = {row: content for group in batch for row, content in group}
    given = [[Given(f"{shard}, row {row}", before, [[turn]]) for row, (before, turn) in group] for group in turns]
    for group, rows, sides_of in zip(turns, batch, fitted(given, tokenizer, how, counts), strict=True):
        counts["rows"] += len(rows)
        silent = {row for row, content in rows if content.get("label") is not False} - {row for row, _ in group}
        counts["no_answer"] += len(silent)
        distinct = Distinct()
        for (row, _), sides in zip(group, sides_of, strict=True):
            if sides is not None:
                known = len(distinct.sequences)
                counts["repeated"] += distinct.add(sides.tokens[0], sides.start, row) < known
        if distinct.sequences:
            counts["examples"] += len(distinct.sequences)
            examples = [example_of(values[row]) for row in distinct.rows]
            yield Prompt(distinct.sequences, distinct.rows, [], examples, tree_size(distinct.sequences))


def example_of(row: Row) -> Example:
    """What a row says besides its messages."""
    return Example(*(row.get(name) for name in Example._fields))


def assistant_turns(row: Row, how: Tokenising) -> Iterator[tuple[Conversation, dict[str, str]]]:
    """Each assistant message of a row to learn, with the conversation before it.

    One that begins a conversation answers nothing, and is context only. Of an answer with a bad label nothing is
    learned.
    """
    if row.get("label") is False:
        return
    before = row["prompt"] if how.column in ANSWERS else []
    messages = before + row[how.column or "chosen"]
    for at in range(max(1, len(before)), len(messages)):
        if messages[at]["role"] == "assistant":
            yield messages[:at], messages[at]


class Distinct:
    """The distinct sequences of one prompt, in order of appearance."""

    def __init__(self) -> None:
        self.sequences: list[Sequence] = []
        self.rows: list[int] = []
        self._position: dict[tuple[bytes, int], int] = {}

    def add(self, tokens: np.ndarray, start: int, row: int) -> int:
        """Position of the sequence, appended if it is new."""
        key = (tokens.tobytes(), start)
        if key not in self._position:
            self._position[key] = len(self.sequences)
            self.sequences.append(Sequence(tokens, start))
            self.rows.append(row)
        return self._position[key]
