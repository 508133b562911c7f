"""Chat template and tokenizer: shards -> a token store that training reads by memory map.

How it works. Each shard is read in batches; every conversation is rendered by the model's own chat template, each
distinct text of a batch is tokenised once (by the tokenizer's own threads), and one Arrow file a shard is written, a
row a prompt:

    sequences   list<struct<tokens, start, row>>      distinct; tokens[start:] is the completion; row is in the shard
    pairs       list<struct<row, chosen, rejected>>   two positions in `sequences`; empty for supervised fine-tuning
    tree_tokens int32                                 tokens of the prompt's token tree: what the trainer will compute

The store stands in a folder named by the hash of all it depends on: the shards' bytes, the tokenizer, the template,
the length rule. A folder with `store.json` is complete; without it, its finished files are kept and the rest is
written.

The boundary between prompt and completion is TRL's: the prompt (with the generation prompt) and both full
conversations are tokenised apart, and the completion starts where the shorter of the two common token prefixes ends.
Rendered text is tokenised with `add_special_tokens=False`, since the template writes BOS itself where a model wants
one.

Cost: about 100 microseconds a conversation for the template and some megabytes of text a second and core for the
tokenizer, once; afterwards a run starts by mapping the files. On disk a token takes four bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prefkit.errors import DataError, TrainError, did_you_mean
from prefkit.manifest import Manifest, Shard, file_sha256, write_text_atomically
from prefkit.schema import MESSAGES
from prefkit.train.metrics import Progress
from prefkit.train.pack import Sequence, tree_size

FORMAT = 1
ROWS_A_BATCH = 1024

LengthPolicy = Literal["truncate", "drop", "error"]
Row = dict[str, Any]
Message = dict[str, str]

SCHEMA = pa.schema(
    [
        (
            "sequences",
            pa.list_(pa.struct([("tokens", pa.large_list(pa.int32())), ("start", pa.int32()), ("row", pa.int64())])),
        ),
        ("pairs", pa.list_(pa.struct([("row", pa.int64()), ("chosen", pa.int32()), ("rejected", pa.int32())]))),
        ("tree_tokens", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Tokenising:
    """What the tokens depend on besides the data; `column` is None for pairs, else the answers of sft."""

    max_length: int | None
    max_length_policy: LengthPolicy
    column: str | None


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


# What is counted where a row is not used as it is. "cut" rows are trained on; the others are not.
LOSSES = {
    "cut": "a completion was cut at max_length, and so lost its end-of-turn token",
    "prompt_too_long": "the prompt alone reaches max_length",
    "too_long": 'longer than max_length under max_length_policy = "drop"',
    "empty_completion": "a completion has no token of its own",
    "same_after_cut": "chosen and rejected are the same up to max_length",
    "repeated": "the same answer to the same prompt again",
    "boundary_moved": "the prompt's end has other tokens once a completion follows; from there on it is completion",
}


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
    finished = folder / "store.json"
    if not finished.exists():
        folder.mkdir(parents=True, exist_ok=True)
        done = 0
        for number, shard in enumerate(shards):
            target = folder / f"{number:05d}.arrow"
            if not target.exists():
                write_shard(data, shard, tokenizer, how, target)
            done += shard.rows
            progress.update(f"tokenising {split}", done, manifest.rows(split), "rows")
        files = [f"{number:05d}.arrow" for number in range(len(shards))]
        counts: Counter[str] = Counter()
        for file in files:
            counts.update(json.loads((folder / file).with_suffix(".json").read_text()))
        table = {"split": split, "files": files, "counts": dict(counts)}
        write_text_atomically(finished, json.dumps(table, indent=1) + "\n")
    return Store(folder=folder, key=key, **json.loads(finished.read_text()))


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
    temporary = target.with_suffix(".arrow.tmp")
    built = [prompt for batch in batches_of_prompts(source, how) for prompt in prompts(batch, tokenizer, how, counts)]
    counts["sequences"] = sum(len(prompt.sequences) for prompt in built)
    counts["tokens"] = sum(len(sequence.tokens) for prompt in built for sequence in prompt.sequences)
    counts["tree_tokens"] = sum(prompt.tree_tokens for prompt in built)
    counts["longest"] = max((len(s.tokens) for prompt in built for s in prompt.sequences), default=0)
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_batch(to_arrow(built))
    write_text_atomically(target.with_suffix(".json"), json.dumps(counts))
    temporary.replace(target)


class Prompt(NamedTuple):
    """One row of the store. `rows` holds, for each sequence, the first row of the shard that it comes from."""

    sequences: list[Sequence]
    rows: list[int]
    pairs: list[tuple[int, int, int]]
    tree_tokens: int


def batches_of_prompts(source: Path, how: Tokenising) -> Iterator[list[list[tuple[int, Row]]]]:
    """Rows of a shard with their numbers, grouped by prompt, some hundreds of prompts at a time."""
    file = pq.ParquetFile(source)
    schema = file.schema_arrow
    answers = [how.column] if how.column else ["chosen", "rejected"]
    for column in answers:
        if column not in schema.names or schema.field(column).type != MESSAGES:
            known = [field.name for field in schema if field.type == MESSAGES]
            raise TrainError(f'{source}: no message column "{column}".{did_you_mean(column, known)}')
    columns = [name for name in ("prompt", *answers, "prompt_id") if name in schema.names]
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
        pairs = []
        for (row, _), (prompt, *both) in zip(group, tokens_of_rows, strict=False):
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
        if pairs:
            counts["examples"] += len(pairs)
            yield Prompt(distinct.sequences, distinct.rows, pairs, tree_size(distinct.sequences))


def answers_of_prompts(
    batch: list[list[tuple[int, Row]]], tokenizer: Any, how: Tokenising, counts: Counter[str]
) -> Iterator[Prompt]:
    """Each prompt with the assistant turns to learn: those of its answers, or all those of a message column.

    A conversation of three assistant turns is three sequences, each the next one's prefix: a tree computes it once.
    """
    turns = [[(row, *turn) for row, content in group for turn in assistant_turns(content, how)] for group in batch]
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
            yield Prompt(distinct.sequences, distinct.rows, [], tree_size(distinct.sequences))


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


def render(tokenizer: Any, conversations: list[list[Message]], *, open_turn: bool) -> list[str]:
    """The text of each conversation; TrainError with the template's own complaint and the conversation it is about."""
    apply: Callable[..., Any] = tokenizer.apply_chat_template
    texts = []
    for conversation in conversations:
        try:
            texts.append(apply(conversation, tokenize=False, add_generation_prompt=open_turn))
        except (jinja2.TemplateError, ValueError) as error:
            shown = json.dumps(conversation, ensure_ascii=False)[:160]
            raise TrainError(
                f"the chat template refuses a conversation ({error}): {shown} … "
                "Filter such rows out, or give another chat_template under [model]."
            ) from error
    return texts


def common_prefix(left: np.ndarray, right: np.ndarray) -> int:
    """Number of leading tokens that both have in common."""
    size = min(len(left), len(right))
    differing = np.flatnonzero(left[:size] != right[:size])
    return int(differing[0]) if len(differing) else size


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
        pa.array([p.tree_tokens for p in prompts], pa.int32()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def offsets(lengths: Iterable[int]) -> np.ndarray:
    """0 and the running sum: where each list of an Arrow list column starts, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(np.fromiter(lengths, dtype=np.int64))]).astype(np.int64)
