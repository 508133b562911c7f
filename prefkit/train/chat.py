"""Chat template and tokenizer: shards -> a token store that training reads by memory map.

How it works. Each shard is read in batches; every conversation is rendered by the model's own chat template, each
distinct text of a batch is tokenised once (by the tokenizer's own threads), and one file a shard is written, a row a
prompt (`prefkit.train.store`).

The store stands in a folder named by the hash of all it depends on: the shards' bytes, the tokenizer, the template,
the length rule. A folder with `store.json` is complete; without it, its finished files are kept and the rest is
written.

The boundary between prompt and completion is TRL's: the prompt (with the generation prompt) and both full
conversations are tokenised apart, and the completion starts where the shorter of the two common token prefixes ends.
Rendered text is tokenised with `add_special_tokens=False`, since the template writes BOS itself where a model wants
one. A template that asks for the date (`strftime_now`) gets `DATE`, whatever day it is: tokens must not depend on it.

Cost: about 100 microseconds a conversation for the template and some megabytes of text a second and core for the
tokenizer, once; afterwards a run starts by mapping the files. On disk a token takes four bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import itertools
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from transformers.utils import chat_template_utils

from prefkit.errors import DataError, TrainError, did_you_mean, one_line
from prefkit.manifest import Manifest, Shard, file_sha256
from prefkit.schema import MESSAGES
from prefkit.train.metrics import Progress
from prefkit.train.mismatch import with_mismatched
from prefkit.train.pack import Sequence, tree_size
from prefkit.train.store import LOSSES, Example, Prompt, Store, finish_store, is_whole, open_store, write_file

FORMAT = 3
DATE = datetime.date(2024, 7, 26)  # the one that Llama's templates fall back to
ROWS_A_BATCH = 1024

LengthPolicy = Literal["truncate", "drop", "error"]
Row = dict[str, Any]
Message = dict[str, str]


@dataclass(frozen=True)
class Tokenising:
    """What the tokens depend on besides the data; `column` is None for pairs, else the answers of sft.

    `mismatched`: with each prompt also another prompt's answers, for losses that ask for them.
    """

    max_length: int | None
    max_length_policy: LengthPolicy
    column: str | None
    mismatched: bool = False


def cache_folder(data: Path, cache: Path | None, otherwise: Path) -> Path:
    """Where token stores and references live: `cache`, or beside the shards, or `otherwise` if those are read-only."""
    if cache is not None:
        return cache
    return data / ".cache" if os.access(data, os.W_OK) else otherwise


def tokenise(
    data: Path, manifest: Manifest, split: str, tokenizer: Any, how: Tokenising, *, cache: Path, progress: Progress
) -> Store:
    """The token store of one split: opened if it exists under `cache`, else made.

    Raises DataError if a shard's bytes are not those of the manifest, TrainError if the chat template refuses a row,
    or a row is too long and `max_length_policy` is "error".
    """
    shards = manifest.of_split(split)
    key = store_key(shards, tokenizer, how)
    folder = cache / f"tokens-{key[:24]}"
    finished = open_store(folder, key)
    if finished is None:
        folder.mkdir(parents=True, exist_ok=True)
        done = 0
        for number, shard in enumerate(shards):
            target = folder / f"{number:05d}.arrow"
            if not is_whole(target):
                if target.exists():
                    progress.note(f"{target}: damaged, so it is made again.")
                write_shard(data, shard, tokenizer, how, target)
            done += shard.rows
            progress.update(f"tokenising {split}", done, manifest.rows(split), "rows")
        finish_store(folder, split, [f"{number:05d}.arrow" for number in range(len(shards))])
        finished = open_store(folder, key)
        assert finished is not None, "what was just written can be opened"
    return finished


def store_key(shards: list[Shard], tokenizer: Any, how: Tokenising) -> str:
    """Hash of all that the token store depends on."""
    parts = {
        "format": FORMAT,
        "shards": [(shard.path, shard.sha256) for shard in shards],
        "tokenizer": tokenizer_hash(tokenizer),
        **dataclasses.asdict(how),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 over the files that the tokenizer writes: vocabulary, merges, special tokens and chat template."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def write_shard(data: Path, shard: Shard, tokenizer: Any, how: Tokenising, target: Path) -> None:
    """Tokenise one Parquet shard into `target` and its counts beside it; both appear at once or not at all."""
    source = data / shard.path
    if not source.is_file():
        raise DataError(f"{source}: missing, though the manifest lists it. Build the data set again.")
    if file_sha256(source) != shard.sha256:
        raise DataError(f"{source}: not the bytes that the manifest lists. Build the data set again.")
    counts = Counter(rows=0, examples=0, sequences=0, tokens=0, tree_tokens=0, longest=0, **dict.fromkeys(LOSSES, 0))
    prompts = pairs_of_prompts if how.column is None else answers_of_prompts
    built = [prompt for batch in batches_of_prompts(source, how) for prompt in prompts(batch, tokenizer, how, counts)]
    if how.mismatched:
        built = with_mismatched(built, how.max_length)
    counts["sequences"] = sum(len(prompt.sequences) for prompt in built)
    counts["tokens"] = sum(len(sequence.tokens) for prompt in built for sequence in prompt.sequences)
    counts["tree_tokens"] = sum(prompt.tree_tokens for prompt in built)
    counts["longest"] = max((len(s.tokens) for prompt in built for s in prompt.sequences), default=0)
    write_file(target, built, counts)


def batches_of_prompts(source: Path, how: Tokenising) -> Iterator[list[list[tuple[int, Row]]]]:
    """Rows of a shard with their numbers, grouped by prompt, some hundreds of prompts at a time."""
    file = pq.ParquetFile(source)
    schema = file.schema_arrow
    answers = [how.column] if how.column else ["chosen", "rejected"]
    for column in answers:
        if column not in schema.names or schema.field(column).type != MESSAGES:
            known = [field.name for field in schema if field.type == MESSAGES]
            raise TrainError(f'{source}: no message column "{column}".{did_you_mean(column, known)}')
    columns = [name for name in ("prompt", *answers, "prompt_id", *Example._fields) if name in schema.names]
    rows = (row for batch in file.iter_batches(ROWS_A_BATCH, columns=columns) for row in batch.to_pylist())
    groups = (
        list(group)
        for _, group in itertools.groupby(enumerate(rows), key=lambda item: item[1].get("prompt_id", item[0]))
    )
    while batch := list(itertools.islice(groups, ROWS_A_BATCH // 2)):
        yield batch


def pairs_of_prompts(
    batch: list[list[tuple[int, Row]]], tokenizer: Any, how: Tokenising, counts: Counter[str]
) -> Iterator[Prompt]:
    """Each prompt with its distinct completions and the pairs among them."""
    rows = [row for group in batch for _, row in group]
    prompts = encode(tokenizer, [row["prompt"] for row in rows], open_turn=True)
    chosen = encode(tokenizer, [row["prompt"] + row["chosen"] for row in rows])
    rejected = encode(tokenizer, [row["prompt"] + row["rejected"] for row in rows])
    tokens_of_rows = zip(prompts, chosen, rejected, strict=True)
    counts["rows"] += len(rows)
    for group in batch:
        distinct = Distinct()
        pairs, examples = [], []
        for (row, values), (prompt, *both) in zip(group, tokens_of_rows, strict=False):
            start = min(common_prefix(prompt, side) for side in both)
            counts["boundary_moved"] += start < len(prompt)
            sides = fit(both, max(start, 1), how, counts, where=row)
            if sides is None:
                continue
            good, bad = sides
            if np.array_equal(good, bad):
                counts["same_after_cut"] += 1
            else:
                pairs.append((row, distinct.add(good, max(start, 1), row), distinct.add(bad, max(start, 1), row)))
                examples.append(example_of(values))
        if pairs:
            counts["examples"] += len(pairs)
            yield Prompt(distinct.sequences, distinct.rows, pairs, examples, tree_size(distinct.sequences))


def answers_of_prompts(
    batch: list[list[tuple[int, Row]]], tokenizer: Any, how: Tokenising, counts: Counter[str]
) -> Iterator[Prompt]:
    """Each prompt with the assistant turns to learn: those of its answers, or all those of a message column.

    A conversation of three assistant turns is three sequences, each the next one's prefix: a tree computes it once.
    """
    turns = [[(row, *turn) for row, content in group for turn in assistant_turns(content, how)] for group in batch]
    values = {row: content for group in batch for row, content in group}
    flat = [turn for group in turns for turn in group]
    prompts = iter(encode(tokenizer, [messages[:at] for _, messages, at in flat], open_turn=True))
    whole = iter(encode(tokenizer, [messages[: at + 1] for _, messages, at in flat]))
    counts["rows"] += sum(len(group) for group in batch)
    counts["empty_completion"] += sum(
        len(group) - len({row for row, *_ in ts}) for group, ts in zip(batch, turns, strict=True)
    )
    for group in turns:
        distinct = Distinct()
        for row, _, _ in group:
            prompt, full = next(prompts), next(whole)
            start = common_prefix(prompt, full)
            counts["boundary_moved"] += start < len(prompt)
            fitting = fit([full], max(start, 1), how, counts, where=row)
            if fitting is not None:
                before = len(distinct.sequences)
                counts["repeated"] += distinct.add(fitting[0], max(start, 1), row) < before
        if distinct.sequences:
            counts["examples"] += len(distinct.sequences)
            examples = [example_of(values[row]) for row in distinct.rows]
            yield Prompt(distinct.sequences, distinct.rows, [], examples, tree_size(distinct.sequences))


def example_of(row: Row) -> Example:
    """What a row says besides its messages."""
    return Example(*(row.get(name) for name in Example._fields))


def assistant_turns(row: Row, how: Tokenising) -> Iterator[tuple[list[Message], int]]:
    """The conversation of a row, once for each assistant message to learn, with that message's position."""
    before = row["prompt"] if how.column in ("chosen", "rejected") else []
    messages = before + row[how.column or "chosen"]
    for at in range(max(1, len(before)), len(messages)):
        if messages[at]["role"] == "assistant":
            yield messages, at


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


def fit(
    sides: list[np.ndarray], start: int, how: Tokenising, counts: Counter[str], *, where: int
) -> list[np.ndarray] | None:
    """The sides of an example, cut to max_length where the rule says so; None, and counted, if it cannot be used."""
    if any(len(side) <= start for side in sides):
        counts["empty_completion"] += 1
        return None
    if how.max_length is None or all(len(side) <= how.max_length for side in sides):
        return sides
    if how.max_length_policy == "error":
        raise TrainError(
            f"row {where} (from 0) of a shard has {max(map(len, sides))} tokens, more than max_length = "
            f"{how.max_length}. "
            'Raise it, or say max_length_policy = "truncate" or "drop".'
        )
    if how.max_length_policy == "drop":
        counts["too_long"] += 1
        return None
    if start >= how.max_length:
        counts["prompt_too_long"] += 1
        return None
    counts["cut"] += 1
    return [side[: how.max_length] for side in sides]


def encode(tokenizer: Any, conversations: list[list[Message]], *, open_turn: bool = False) -> list[np.ndarray]:
    """Token ids of each conversation as the template renders it; `open_turn` appends the assistant's header."""
    texts = render(tokenizer, conversations, open_turn=open_turn)
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return []
    ids = tokenizer(distinct, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    tokens_of = {text: np.array(tokens, dtype=np.int32) for text, tokens in zip(distinct, ids, strict=True)}
    return [tokens_of[text] for text in texts]


@contextlib.contextmanager
def frozen_date() -> Iterator[None]:
    """Within, the clock that transformers' `strftime_now` reads stands at `DATE`; templates take none of ours."""
    clock = chat_template_utils.datetime
    chat_template_utils.datetime = _Frozen
    try:
        yield
    finally:
        chat_template_utils.datetime = clock


class _Frozen(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> _Frozen:
        return cls(DATE.year, DATE.month, DATE.day, tzinfo=tz)


def render(tokenizer: Any, conversations: list[list[Message]], *, open_turn: bool) -> list[str]:
    """The text of each conversation; TrainError with the template's own complaint and the conversation it is about."""
    apply: Callable[..., Any] = tokenizer.apply_chat_template
    texts = []
    for conversation in conversations:
        try:
            with frozen_date():
                texts.append(apply(conversation, tokenize=False, add_generation_prompt=open_turn))
        except Exception as error:  # a template can fail in any way that Python can
            shown = json.dumps(conversation, ensure_ascii=False)[:160]
            raise TrainError(
                f"the chat template refuses a conversation ({one_line(error)}): {shown} … "
                "Filter such rows out, or give another chat_template under [model]."
            ) from error
    return texts


def common_prefix(left: np.ndarray, right: np.ndarray) -> int:
    """Number of leading tokens that both have in common."""
    size = min(len(left), len(right))
    differing = np.flatnonzero(left[:size] != right[:size])
    return int(differing[0]) if len(differing) else size
