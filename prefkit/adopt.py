"""`prefkit adopt`: conversations that need no building, as a data set to fine-tune on.

Rows of JSONL or Parquet with a column of messages become shards with a manifest, as `build-pairs` leaves them, so that
`prefkit train` finds all it relies on: hashes, splits, ids. Nothing is filtered. A row that is no conversation stops
the run with its file and line: what to do about it is for whoever made it to say.

    messages    as they are, role and content
    prompt      the messages before the last of an assistant, for samples of what a model answers
    pair_id, prompt_id    128 bits of the SHA-256 over the messages
    source, lang          of the row, if it says so; source is else the name of its file

Rows keep their order. A row is of the test split if the hash of its messages says so, so equal ones are on one side.
Rows are read, checked and written in batches, beside OUT until all are; memory is bounded by a shard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prefkit import __version__, manifest
from prefkit.errors import DataError, UsageError
from prefkit.manifest import InputFile, Manifest, Shard, file_sha256, write_text_atomically
from prefkit.schema import CONVERSATIONS

ROWS_A_SHARD = 25_000

Row = dict[str, Any]


def adopt(paths: list[Path], out: Path, *, column: str = "messages", test: float = 0.0) -> Manifest:
    """Make a data set in `out` of the conversations in `column` of some JSONL and Parquet files.

    `test` is the share of the test split. DataError for a row that is no conversation, with its file and line.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not empty. Choose another --out.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        unfinished = Path(scratch) / "new"
        (unfinished / "data").mkdir(parents=True)
        writing = {split: Split(unfinished, split) for split in ("train", "test")}
        inputs = []
        for path in paths:
            rows = 0
            for where, row in rows_of(path):
                made = conversation(row, column, path.stem, where)
                writing["test" if int(made["pair_id"][:8], 16) < test * 2**32 else "train"].add(made)
                rows += 1
            inputs.append(InputFile(path.name, path.stat().st_size, file_sha256(path), rows))
        listed = [shard for split in writing.values() for shard in split.finished()]
        if not any(shard.split == "train" for shard in listed):
            raise DataError(f"{', '.join(map(str, paths))}: no conversations for the train split.")
        options = {"column": column, "test": test}
        made_of = Manifest("adopt", "", [], options, {"prefkit": __version__}, inputs, [], listed, kind="conversations")
        write_text_atomically(unfinished / manifest.FILE_NAME, manifest.dump(made_of))
        if out.exists():
            out.rmdir()
        unfinished.rename(out)
    return made_of


def rows_of(path: Path) -> Iterator[tuple[str, Row]]:
    """The rows of a file, each with where it stands; lines and rows count from 1."""
    if path.suffix == ".parquet":
        try:
            batches = pq.ParquetFile(path).iter_batches(1024)
            numbered = enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
            yield from ((f"{path}: row {number}", row) for number, row in numbered)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: cannot be read as Parquet ({' '.join(str(error).split())[:200]}).") from error
    elif path.suffix == ".jsonl":
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}:{number}", _parsed(line, f"{path}:{number}")
    else:
        raise UsageError(f"{path}: adopt reads .jsonl and .parquet.")


def _parsed(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}).") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: not an object.")
    return row


def conversation(row: Row, column: str, file: str, where: str) -> Row:
    """A row of CONVERSATIONS; DataError if `column` holds no conversation with an assistant's answer in it."""
    messages = row.get(column)
    if column not in row:
        raise DataError(f'{where}: no "{column}". Columns: {", ".join(map(str, row))}. Say which has it by --column.')
    if not isinstance(messages, list):
        raise DataError(f'{where}: "{column}" is no list of messages.')
    for message in messages:
        said = message if isinstance(message, dict) else {}
        if not all(isinstance(said.get(key), str) for key in ("role", "content")):
            raise DataError(f"{where}: a message lacks role or content as text: {json.dumps(message)[:120]}")
        if other := [key for key, value in said.items() if value and key not in ("role", "content")]:
            raise DataError(f'{where}: a message has "{other[0]}", and only role and content can be trained on.')
    answers = [at for at, message in enumerate(messages) if at and message["role"] == "assistant"]
    if not answers:
        raise DataError(f"{where}: no assistant message with another one before it, so there is nothing to learn.")
    plain = [{"role": message["role"], "content": message["content"]} for message in messages]
    try:
        "".join(text for message in plain for text in message.values()).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: half of a surrogate pair, which is no text, stands in a message.") from error
    name = hashlib.sha256(json.dumps(plain, ensure_ascii=True).encode()).hexdigest()[:32]
    said_of = {key: row.get(key) if isinstance(row.get(key), str) else None for key in ("source", "lang")}
    made = {"messages": plain, "prompt": plain[: answers[-1]], "pair_id": name, "prompt_id": name}
    return {**made, "source": said_of["source"] or file, "lang": said_of["lang"]}


class Split:
    """The shards of one split under construction."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._rows: list[Row] = []
        self._written: list[tuple[Path, int]] = []

    def add(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) == ROWS_A_SHARD:
            self._write()

    def finished(self) -> list[Shard]:
        """All shards, under the names that tell how many there are."""
        if self._rows:
            self._write()
        listed = []
        for number, (path, rows) in enumerate(self._written):
            named = path.with_name(f"{self._name}-{number:05d}-of-{len(self._written):05d}.parquet")
            path.rename(named)
            listed.append(Shard(f"data/{named.name}", self._name, rows, named.stat().st_size, file_sha256(named)))
        return listed

    def _write(self) -> None:
        path = self._folder / "data" / f"{self._name}-{len(self._written):05d}.parquet"
        pq.write_table(pa.Table.from_pylist(self._rows, CONVERSATIONS), path, compression="zstd", row_group_size=2048)
        self._written.append((path, len(self._rows)))
        self._rows = []
