"""A data set at a URL: `--out s3://bucket/prefix` or `gs://…`.

The build itself works in a local folder, which keeps the finished steps for a next run and holds the data set when it
is done; then the files are sent, one after another, and the manifest last. So a data set at a URL that has a manifest
is complete, as a local one. What takes the place of another first loses its manifest. A run that was stopped while it
sent files sends all of them again: an object store does not tell a SHA-256, and equal sizes prove nothing. The report
goes along where there is one.

There is no lock: two runs that send to one URL at the same time are not noticed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefkit import manifest
from prefkit.errors import DataError, UsageError
from prefkit.manifest import FILE_NAME, Manifest
from prefkit.pairs.publish import REPORT, is_planned, other_data_set
from prefkit.urls import NotFound, components, shown, steady

CARD = "README.md"
OURS = re.compile(r"(data|rejects)/(train|test|rejects)-\d{5}-of-\d{5}(-g\d+)?\.parquet")


def work_folder(url: str) -> Path:
    """Where the data set for `url` is built if no folder is given: the same for the same URL, in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "prefkit" / f"{components(url)[-1]}-{hashlib.sha256(url.rstrip('/').encode()).hexdigest()[:12]}"


def check(url: str) -> None:
    """Raises UsageError unless a data set may be put at `url`: a bucket that is there, and nothing foreign in it."""
    if not url.startswith(("s3://", "gs://")) or len(components(url)) < 2:
        raise UsageError(f"{shown(url)}: --out takes a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX.")
    names = _files(url)
    if FILE_NAME in names:
        foreign = [name for name in names if name.startswith(("data/", "rejects/")) and not OURS.fullmatch(name)]
    else:
        ours = {CARD, *(name for name in names if OURS.fullmatch(name))}
        foreign = sorted(names.keys() - ours - ({REPORT} if len(ours) > 1 else set()))  # a report comes after shards
    if foreign:
        raise UsageError(f"{_place(url, foreign[0])}: is not of a data set of prefkit; choose another --out.")


def read_manifest(url: str) -> Manifest | None:
    """The manifest of the data set at `url`; None if there is no finished one. DataError for a damaged manifest."""
    text = _manifest_text(url)
    return manifest.parse(text, shown(_place(url, FILE_NAME))) if text is not None else None


def refuse_other(url: str, planned: Manifest, overwrite: bool) -> None:
    """Raises UsageError where a data set at `url` is in the way of the planned one, before anything is built."""
    check(url)
    present = None if overwrite else read_manifest(url)
    if present is not None and not is_planned(present, planned):
        raise other_data_set(shown(url))


def _manifest_text(url: str) -> bytes | None:
    place = _place(url, FILE_NAME)
    try:
        return steady(place, lambda fs: bytes(fs.cat_file(place)))
    except NotFound:
        return None


def upload(folder: Path, url: str, *, overwrite: bool = False, on_sent: Callable[[int], None] | None = None) -> bool:
    """Put the finished data set in `folder` at `url`; False if it is there already, and at most its report was sent.

    `on_sent` hears the bytes of each file when it is there. Another data set at `url` is refused without `overwrite`,
    with it replaced: its manifest goes first, and at the end its files that are not of the new one. Raises UsageError
    or DataError; whatever happens, there is a manifest at `url` only if all files of it are there.
    """
    record = manifest.read(folder)
    check(url)
    present = _manifest_text(url)
    reports = [REPORT] if (folder / REPORT).exists() else []
    if present == (folder / FILE_NAME).read_bytes():
        if reports and REPORT not in _files(url):
            _send(folder, url, REPORT)
        return False
    if present is not None and not overwrite:
        raise UsageError(
            f"{shown(url)}: holds a finished data set of other inputs, options or versions. "
            "Add --overwrite to replace it, or choose another --out."
        )
    if present is not None:
        _remove(url, FILE_NAME)
    names = [*(shard.path for shard in record.shards), CARD, *reports]
    for name in names:
        _send(folder, url, name)
        if on_sent:
            on_sent((folder / name).stat().st_size)
    there = _files(url)
    for name in names:
        if there.get(name) != (folder / name).stat().st_size:
            raise DataError(f"{shown(url)}/{name}: was not stored in whole. Run the same command again.")
    for name in sorted(there.keys() - {*names, FILE_NAME}):
        if OURS.fullmatch(name) or name == REPORT:
            _remove(url, name)
    _send(folder, url, FILE_NAME)
    return True


def _place(url: str, name: str) -> str:
    return f"{url.rstrip('/')}/{name}"


def _send(folder: Path, url: str, name: str) -> None:
    place = _place(url, name)
    steady(place, lambda fs: fs.put_file(str(folder / name), place))


def _remove(url: str, name: str) -> None:
    place = _place(url, name)
    steady(place, lambda fs: fs.rm_file(place))


def _files(url: str) -> dict[str, int]:
    """Names under `url`, with their sizes. UsageError where there is no such bucket."""
    depth = len(components(url))
    bucket = "/".join(url.split("/")[:3])

    def find(fs: Any) -> dict[str, int]:
        fs.invalidate_cache()
        found = fs.find(url, detail=True)
        return {"/".join(components(fs.unstrip_protocol(name))[depth:]): info["size"] for name, info in found.items()}

    try:
        steady(bucket, lambda fs: fs.info(bucket))
        return {name: size for name, size in steady(url, find).items() if name}
    except NotFound:
        raise UsageError(f"{bucket}: there is no such bucket.") from None
