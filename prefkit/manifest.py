"""The manifest: what a finished data set consists of, what it was made from, and where every raw row went.

`manifest.json` is written last, so a data set that has one is complete. It holds no time, and no path of the machine
but those that `--set` was given: the same input bytes, pipeline file and overrides give the same manifest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prefkit.errors import DataError

FILE_NAME = "manifest.json"
FORMAT = 2
EXPORT = "export.json"
OTHERS = {EXPORT: "an export of prefkit for another trainer", "run.json": "a run of prefkit train"}  # not data sets
Kind = Literal["pairs", "labels", "conversations"]  # rows of schema.PAIRS, of schema.LABELS, of `adopt`


@dataclass(frozen=True)
class InputFile:
    """One raw file: `path` relative to the folder that all inputs share, `rows` without blank lines."""

    path: str
    bytes: int
    sha256: str
    rows: int


@dataclass(frozen=True)
class Shard:
    """One Parquet file of the data set; `split` is train, test or rejects."""

    path: str
    split: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SketchFile:
    """One array of the sketches, by which a later build finds duplicates of these prompts (see `pairs.extend`)."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Generation:
    """A finished data set that this one was added to: its manifest, what it was made with, and what was there then.

    `inputs` and `shards` are how many of the manifest's, from the first on, it already had.
    """

    manifest_sha256: str
    data_hash: str
    pipeline_name: str
    pipeline: str
    overrides: list[str]
    options: dict[str, Any]
    versions: dict[str, str]
    inputs: int
    shards: int


@dataclass(frozen=True)
class StageReport:
    """What one stage did: `came_in - sum(rejected.values()) == went_out`, counted in `unit`."""

    stage: str
    unit: str
    came_in: int
    rejected: dict[str, int]
    went_out: int


@dataclass(frozen=True)
class Manifest:
    """The whole record. `options` are the checked options with all defaults filled in, `pipeline` the file verbatim.

    Inputs, stages and files are those of all `generations` and of the build that was added to them last, whose
    pipeline, options and versions these are. `remarks` are sentences that the counts of `stages` do not tell.
    """

    pipeline_name: str
    pipeline: str
    overrides: list[str]
    options: dict[str, Any]
    versions: dict[str, str]
    inputs: list[InputFile]
    stages: list[StageReport]
    shards: list[Shard]
    sketching: str = ""  # see `pairs.extend.fingerprint`
    sketches: list[SketchFile] = field(default_factory=list)
    generations: list[Generation] = field(default_factory=list)  # the first comes first
    remarks: list[str] = field(default_factory=list)
    kind: Kind = "pairs"
    format: int = field(default=FORMAT)

    def of_split(self, split: str) -> list[Shard]:
        """The shards of one split, in order."""
        return [shard for shard in self.shards if shard.split == split]

    def rows(self, split: str) -> int:
        """Number of rows in a split."""
        return sum(shard.rows for shard in self.of_split(split))

    @property
    def data_hash(self) -> str:
        """SHA-256 over the hashes of all data shards: the identity of the data set."""
        return data_hash(self.shards)


def data_hash(shards: Sequence[Shard]) -> str:
    """SHA-256 over the hashes of some data shards; rejects do not count."""
    parts = [f"{s.split} {s.path} {s.sha256}" for s in shards if s.split != "rejects"]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def read(folder: Path) -> Manifest:
    """The manifest of a finished data set; DataError where there is none, or one that this version cannot read."""
    path = folder / FILE_NAME
    if folder.is_file():
        raise DataError(f"{folder}: a file, and no data set. Give the folder that prefkit build-pairs wrote.")
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder. Build the data set first: prefkit build-pairs PIPELINE --out {folder}"
        )
    if what := what_else(folder):
        raise DataError(f"{folder}: {what}, and no data set. Give the folder of the data set that it was made from.")
    if not path.exists():
        raise DataError(
            f"{folder}: no {FILE_NAME}, so this is not a finished data set. Run prefkit build-pairs to its end."
        )
    return parse(path.read_bytes(), str(path))


def what_else(folder: Path) -> str:
    """What a folder is that prefkit made and that is no data set; empty if it is neither."""
    if (folder / FILE_NAME).exists():
        return ""
    return next((what for name, what in OTHERS.items() if (folder / name).exists()), "")


def parse(text: bytes, where: str) -> Manifest:
    """A manifest from its JSON text; `where` it comes from is for the message. DataError where it cannot be read."""
    import pydantic

    try:
        table = json.loads(text)
        if table["format"] != FORMAT:
            raise DataError(
                f"{where}: format {table['format']}, but this prefkit reads format {FORMAT}. Build the data again."
            )
        record = pydantic.TypeAdapter(Manifest).validate_python(table)
    except (ValueError, KeyError, TypeError) as error:
        what = " ".join(str(error).split())
        raise DataError(f"{where}: damaged ({what}). Build the data set again with --overwrite.") from error
    for name in [file.path for files in (record.shards, record.sketches) for file in files]:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"{where}: damaged (it names {name}, outside of the data set).")
    return record


def dump(manifest: Manifest) -> str:
    """The manifest as JSON text, the same for equal manifests."""
    return (
        json.dumps(dataclasses.asdict(manifest), indent=1, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n"
    )


def write_text_atomically(path: Path, text: str, *, scratch: Path | None = None) -> None:
    """Write `text` so that `path` holds either its old or its whole new content, also after a crash.

    The new content is first written in `scratch`, on the same file system; by default beside `path`.
    """
    temporary = (scratch or path.parent) / f"{path.name}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk does not say where
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
