"""The shards of a data set: files in a folder, or behind a URL, fetched when they are needed and kept within a bound.

A data set at a URL (`hf://`, `s3://`, `gs://`, `https://`: see `prefkit.urls`) is known by its *mirror*, a local folder
with its manifest and `source.json`, which says where it comes from and how many bytes of shards may be kept. Whoever
reads a shard asks `local` for its file. Of a mirror's files, the one that was asked for longest ago is deleted first;
the last two always stay, so a reader finds what it was given. A fetched file gets its name when all its bytes are
there and hash to what the manifest says; one that does not, any more, is fetched anew.

The manifest is read once a run, so a data set that changes under way is noticed by the hash of the first shard that
comes from the new one. A URL of the hub is pinned to the commit that its revision names when training starts.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from prefkit import manifest, urls
from prefkit.errors import DataError, UsageError
from prefkit.manifest import Manifest, Shard, file_sha256, write_text_atomically
from prefkit.schema import MESSAGES
from prefkit.train import files, parallel

SOURCE = "source.json"
GIGABYTE = 10**9
KEPT_GIGABYTES = 20.0  # of fetched shards, where nothing else is said
ALWAYS_KEPT = 2
PEEK = 64 << 10  # bytes of a read by range


def manifest_of(data: Path | str) -> Manifest:
    """The manifest of a data set in a folder or at a URL; DataError where there is none.

    UsageError for a URL with a secret in it.
    """
    if isinstance(data, Path):
        return manifest.read(data)
    if urls.shown(data) != data:  # it would stand in the mirror, and a query not before the names of the files
        raise UsageError(
            f"{urls.shown(data)}: the URL of a data set to train on holds no user name, password, query or fragment. "
            "Credentials come from the environment."
        )
    name = _place(urls.pinned(data), manifest.FILE_NAME)
    try:
        return manifest.parse(urls.steady(name, lambda fs: bytes(fs.cat_file(name))), urls.shown(name))
    except urls.NotFound:
        raise DataError(f"{urls.shown(name)}: not found, so there is no finished data set.") from None


def to_learn_from(data: Path | str) -> Manifest:
    """`manifest_of` a data set whose train split has rows; DataError if it has none."""
    found = manifest_of(data)
    if not found.rows("train"):
        raise DataError(f"{data}: the train split has no rows, so there is nothing to learn from.")
    return found


def columns_of_messages(schema: pa.Schema) -> list[str]:
    """The columns of a shard that hold a conversation, or a part of one."""
    return [field.name for field in schema if field.type == MESSAGES]


def mirror(url: str, record: Manifest, folder: Path, gigabytes: float = KEPT_GIGABYTES) -> Path:
    """The mirror of the data set at `url` within `folder`: its manifest, `record`, and no shards if it is new."""
    known_as = hashlib.sha256(urls.shown(url).rstrip("/").encode()).hexdigest()
    made = folder / f"data-{known_as[:16]}"
    made.mkdir(parents=True, exist_ok=True)
    source = {"url": urls.pinned(url), "bytes": int(gigabytes * GIGABYTE)}
    with files.scratch(made) as scratch:
        write_text_atomically(made / manifest.FILE_NAME, manifest.dump(record), scratch=scratch)
        write_text_atomically(made / SOURCE, json.dumps(source) + "\n", scratch=scratch)
    return made


def local(data: Path, shard: Shard) -> Path:
    """The file of a shard, with the bytes that the manifest lists; fetched first if `data` is a mirror.

    DataError if it is missing, or has other bytes.
    """
    path = data / shard.path
    if (data / SOURCE).exists():
        if not path.is_file() or file_sha256(path) != shard.sha256:
            _fetch(data, shard)
        path.touch()
        return path
    if not path.is_file():
        raise DataError(f"{path}: missing, though the manifest lists it. Build the data set again.")
    if file_sha256(path) != shard.sha256:
        raise DataError(f"{path}: not the bytes that the manifest lists. Build the data set again.")
    return path


@contextmanager
def opened(data: Path, shard: Shard) -> Iterator[BinaryIO]:
    """A shard to read parts of, without fetching it, and so without a look at its hash."""
    path = data / shard.path
    if (data / SOURCE).exists() and not path.is_file():
        place = _place(json.loads((data / SOURCE).read_text())["url"], shard.path)
        with io.BufferedReader(urls.RemoteFile(place), PEEK) as remote:
            yield remote
    elif path.is_file():
        with open(path, "rb") as file:
            yield file
    else:
        raise DataError(f"{path}: missing, though the manifest lists it. Build the data set again.")


def _fetch(data: Path, shard: Shard) -> None:
    source = json.loads((data / SOURCE).read_text())
    place, path = _place(source["url"], shard.path), data / shard.path
    path.parent.mkdir(exist_ok=True)
    _make_room(path.parent, source["bytes"] - shard.bytes)
    with files.scratch(data) as scratch:
        temporary = scratch / path.name
        with io.BufferedReader(urls.RemoteFile(place), urls.BLOCK) as remote, open(temporary, "wb") as file:
            shutil.copyfileobj(remote, file, urls.BLOCK)
        if file_sha256(temporary) != shard.sha256:
            raise DataError(
                f"{urls.shown(place)}: not the bytes that the manifest lists. The data set was replaced under way, or "
                "its upload is damaged."
            )
        os.replace(temporary, path)


def _make_room(folder: Path, room: int) -> None:
    """Delete the files that were asked for longest ago until the others are at most `room` bytes."""
    by_age = sorted((path for path in folder.glob("*.parquet")), key=lambda path: path.stat().st_mtime_ns)
    total = sum(path.stat().st_size for path in by_age)
    for path in by_age[: 2 - ALWAYS_KEPT - parallel.size()]:  # each rank may be about to read one
        if total <= room:
            break
        total -= path.stat().st_size
        path.unlink(missing_ok=True)


def _place(url: str, name: str) -> str:
    return f"{url.rstrip('/')}/{name}"
