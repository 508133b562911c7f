"""`prefkit build-pairs --onto OLD`: add raw files to a finished data set without reading its text again.

A finished data set keeps, in OUT/sketches, what `unite` and `dedupe` knew of its prompts: ids, where they stand,
MinHash band keys, shingle hashes, and the first of their cluster: 1.5 kB for 150 words. Nothing but this module reads
them, and a data set without them is whole, but cannot be added to.

Each build writes one generation, `sketches/g0`, `g1`, …: the arrays of all its buckets as one bucket, whose shingles,
four fifths of it, stay in the buckets' own files. A build onto a data set takes its generations for buckets in front of
its own. They are memory-mapped, and only band keys that a new prompt has are looked up, so a build costs what its own
files cost, besides one hash of the old sketches, and the report, which is of all and which `--no-report` leaves out.
Its result is a data set of its own: the files before, under a second name (a hard link; a copy where the file system
has none), and beside them new ones of the next generation.

What was decided stays: an old pair stays where it is, whatever comes. So the new prompts that survive are exactly
those of one build from all files, but of old prompts there may be more: two that are similar only by way of a new one.
Answers to an old prompt are not merged with the old answers. Where duplicates are kept, new pairs of an old prompt are
not compared with its old pairs.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from prefkit import manifest
from prefkit.errors import DataError, UsageError
from prefkit.manifest import Generation, Manifest
from prefkit.pairs import dedupe, exclude, minhash, tables
from prefkit.pairs.options import Options
from prefkit.pairs.records import Message
from prefkit.pairs.text import identity
from prefkit.pairs.unite import Known, Sketching, sketch

if TYPE_CHECKING:
    from prefkit.pairs.steps import Source

ORDINALS = 1 << 40  # of a generation: those of a later one are higher
PROBES = (
    "Wie weit ist es nach Köln?",
    "ＦＵＬＬ width, ﬁ and\tWhite   space",
    "one two three four five six seven eight",
)


@dataclass(frozen=True)
class Before:
    """The data set that a build adds to, or none (`record` is None)."""

    folder: Path = Path()
    record: Manifest | None = None
    sha256: str = ""  # of its manifest

    @functools.cached_property
    def generations(self) -> list[Generation]:
        """What is before the build to come, the first first."""
        if self.record is None:
            return []
        old = self.record
        made = (old.pipeline_name, old.pipeline, old.overrides, old.options, old.versions)
        newest = Generation(self.sha256, old.data_hash, *made, inputs=len(old.inputs), shards=len(old.shards))
        return [*old.generations, newest]

    @property
    def known(self) -> Known:
        """Its prompts, for `unite`."""
        files = [file.path for file in self.record.inputs] if self.record else []
        return Known([self.folder / f"sketches/g{number}" for number in range(len(self.generations))], files)

    @property
    def suffix(self) -> str:
        """What the names of the new shards end in; so the names of two generations never collide."""
        return f"-g{len(self.generations)}" if self.generations else ""


def open_before(onto: Path | None, out: Path) -> Before:
    """The data set in `onto`, fit to be added to. UsageError or DataError that says why not.

    Its manifest is read, its shards are looked for, and its sketches are hashed; `prefkit verify` proves more.
    """
    if onto is None:
        return Before()
    old, new = onto.resolve(), out.resolve()
    if old == new or old.is_relative_to(new) or new.is_relative_to(old):
        raise UsageError(
            f"--out {out}: the result is a data set of its own; give it a folder apart from --onto {onto}."
        )
    record = manifest.read(onto)
    if not record.sketches or not (onto / "sketches").is_dir():
        raise DataError(
            f"{onto}: has no sketches, by which duplicates of its prompts are found. "
            "Build it again from its raw files, or get the folder sketches/ that belongs to it."
        )
    for shard in record.shards:
        path = onto / shard.path
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise DataError(f"{path}: missing or damaged. prefkit verify {onto} tells more.")
    if problem := next(damaged(onto, record), None):
        raise DataError(f"{onto / problem}")
    return Before(onto, record, manifest.file_sha256(onto / manifest.FILE_NAME))


def damaged(folder: Path, record: Manifest) -> Iterator[str]:
    """What is wrong with the files of the sketches."""
    for file in record.sketches:
        if not (folder / file.path).is_file():
            yield f"{file.path}: missing."
        elif manifest.file_sha256(folder / file.path) != file.sha256:
            yield f"{file.path}: its SHA-256 is not the manifest's, so its content changed."


def check(before: Before, options: Options, sources: Sequence[Source] = ()) -> None:
    """UsageError where the new files are old, or would be compared or split in another way than the old ones were, or
    where old pairs are flagged."""
    if before.record is None:
        return
    if options.dedupe.options["scope"] != "prompt":
        raise UsageError(
            f"--onto {before.folder}: answers of a data set before cannot be looked up; "
            'set [build.dedupe] scope = "prompt".'
        )
    if before.record.kind != options.kind:
        raise UsageError(f"--onto {before.folder}: holds {before.record.kind}, and this pipeline makes {options.kind}.")
    if options.exclude:
        exclude.refuse_standing(before.folder, before.record, options.exclude)
    there, here = before.record.options, json.loads(json.dumps(options.shown()))
    for section in ("dedupe", "split", "redact"):
        was, is_now = there[section] or {}, here[section] or {}  # without [build.redact] it is false
        for name in sorted(was.keys() | is_now.keys()):
            if was.get(name) == is_now.get(name):
                continue
            if was and is_now and name == "patterns_sha256":
                raise UsageError(_made_otherwise(before, "its personal data was replaced", "has other patterns"))
            raise UsageError(
                f"[build.{section}] {name}: {is_now.get(name)!r} here, but {was.get(name)!r} in {before.folder}; "
                "what is added must be compared and split in the same way."
            )
    how: dedupe.Dedupe = options.dedupe.function()()
    if fingerprint(how.uniting.sketching) != before.record.sketching:
        raise UsageError(_made_otherwise(before, "its sketches were made", "makes others"))
    had = {file.sha256: file.path for file in before.record.inputs}
    for given in sources:
        sha256 = given.index.finish().sha256
        if sha256 in had:
            raise UsageError(f"{given.file.path}: already in {before.folder}, as {had[sha256]}; give new files only.")


def _made_otherwise(before: Before, what: str, now: str) -> str:
    assert before.record
    return (
        f"{before.folder}: {what} by prefkit {before.record.versions['prefkit']}, and this version {now}; "
        "build it again from its raw files."
    )


def fingerprint(how: Sketching) -> str:
    """SHA-256 of the sketches of fixed texts: two data sets' sketches compare if theirs are equal."""
    prompts = [identity([Message("user", text)]) for text in PROBES]
    heads = pl.DataFrame(prompts, {"prompt_id": pl.String, "canonical": pl.String}, orient="row")
    heads = heads.sort("prompt_id").with_columns(ordinal=pl.lit(0), file=pl.lit(0), origin_row=pl.lit(0))
    hasher = hashlib.sha256()
    for array in sketch(heads, how):
        hasher.update(np.ascontiguousarray(array).tobytes())
    return hasher.hexdigest()


def write_sketches(
    folder: Path, buckets: Sequence[Path], counts: Sequence[int], old: int, clusters: Path, how: Sketching
) -> None:
    """The sketches of all buckets but the first `old` ones as one, with heads.npy, the numbers of the representatives
    of their clusters; and sketches.json, what was written, and the fingerprint of how.

    The files of shingles are those of the buckets, under a second name. The others are appended to from beginning to
    end, a bucket or a range of band keys at a time.
    """
    new, mine = buckets[old:], counts[old:]
    total, first = sum(mine), sum(counts[:old])

    def of_all(name: str) -> Iterator[Any]:
        return (dedupe.mapped(bucket, name) for bucket in new)

    shingles = [file for bucket in new for file in dedupe.shingle_files(bucket)]
    for number, file in enumerate(shingles):
        os.link(file, folder / f"shingles-{number:05d}.npy")
    ends = np.cumsum([0, *(len(tables.array(file)) for file in shingles)])
    spans = (array + end for array, end in zip(of_all("spans"), ends[:-1], strict=True))
    bands = len(next(of_all("band_keys")))
    _write(folder / "ids.npy", np.uint64, (total, 2), of_all("ids"))
    _write(folder / "ordinals.npy", np.int64, (total,), of_all("ordinals"))
    _write(folder / "origins.npy", np.int64, (total, 2), of_all("origins"))
    _write(folder / "spans.npy", np.int64, (total, 2), spans)
    with (
        _appending(folder / "band_keys.npy", np.uint64, (bands, total)) as add_keys,
        _appending(folder / "band_prompts.npy", np.int32, (bands, total)) as add_prompts,
    ):
        for band in range(bands):
            for keys, prompts in _sorted_band(band, new, mine):
                add_keys(keys)
                add_prompts(prompts)
    _write(folder / "heads.npy", np.int64, (total,), _heads(clusters, first, mine))
    written = {path.name: path for path in sorted(folder.glob("*.npy"))}
    facts = {
        name: {"bytes": path.stat().st_size, "sha256": manifest.file_sha256(path)} for name, path in written.items()
    }
    (folder / "sketches.json").write_text(json.dumps({"files": facts, "fingerprint": fingerprint(how)}))


def _sorted_band(band: int, buckets: Sequence[Path], counts: Sequence[int]) -> Iterator[tuple[Any, Any]]:
    """The keys of a band in ascending order, and whose they are, in ranges of bounded size."""
    ranges = max(1, -(-sum(counts) // dedupe.KEYS_A_TASK))
    for number in range(ranges):
        low, high = (number << 64) // ranges, ((number + 1) << 64) // ranges
        keys, prompts = dedupe.band_range(band, low, high, buckets, counts)
        order = minhash.order_of(keys)
        yield keys[order], prompts[order]


def _heads(clusters: Path, first: int, counts: Sequence[int]) -> Iterator[Any]:
    """Of each prompt, bucket by bucket, the number of the representative of its cluster: its own if it has none."""
    members, heads = (dedupe.mapped(clusters, name) for name in ("members", "representative"))
    for count in counts:
        numbers = np.arange(first, first + count)
        inside = slice(*np.searchsorted(members, [first, first + count]))
        numbers[members[inside] - first] = heads[inside]
        yield numbers
        first += count


@contextmanager
def _appending(path: Path, kind: Any, shape: tuple[int, ...]) -> Iterator[Callable[[Any], None]]:
    """An .npy file of a known shape, and the function that appends the next of its rows."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)

        def append(rows: Any) -> None:
            file.write(np.ascontiguousarray(rows, kind).data)

        yield append


def _write(path: Path, kind: Any, shape: tuple[int, ...], pieces: Iterable[Any]) -> None:
    """An .npy file from the pieces of its rows in turn."""
    with _appending(path, kind, shape) as append:
        for piece in pieces:
            append(piece)


def bring(before: Before, out: Path) -> None:
    """The files before, in `out`, under the names that they have. DataError if they were replaced meanwhile."""
    if before.record is None:
        return
    if manifest.file_sha256(before.folder / manifest.FILE_NAME) != before.sha256:
        raise DataError(f"{before.folder}: was replaced while it was added to. Run the same command again.")
    for name in [file.path for files in (before.record.shards, before.record.sketches) for file in files]:
        source, target = before.folder / name, out / name
        target.parent.mkdir(exist_ok=True, parents=True)
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, target)
            with open(target, "rb") as copied:
                os.fsync(copied.fileno())
