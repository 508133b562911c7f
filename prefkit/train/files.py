"""Files that are there whole or not at all, and are known again: scratch folders, SHA-256 sums, full disks.

A file is first written in a scratch folder, and then put into place by one rename. A process that is killed leaves its
scratch folder behind; the next one that writes or reads there removes it, unless whoever made it still lives, which its
lock tells, however the process ended. A whole folder is written under another name, flushed to disk, and renamed.

`SHA256SUMS` in a folder lists its files as `sha256sum` does, so `sha256sum --check SHA256SUMS` finds damage as well.
Cost: hashing runs at 0.5 to 2 GB/s a file, several files side by side; a disk is slower.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from prefkit.errors import TrainError, one_line
from prefkit.manifest import file_sha256

SUMS = "SHA256SUMS"
SCRATCH = "writing-"


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder within `folder` to write into, of this process alone; removes those of processes that are no more."""
    sweep(folder)
    while True:
        path = Path(tempfile.mkdtemp(dir=folder, prefix=SCRATCH))
        try:
            lock = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # swept by another process at once
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():  # and was not swept before it was locked
            break
        os.close(lock)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def sweep(folder: Path) -> None:
    """Remove the scratch folders of processes that are no more."""
    for path in folder.glob(f"{SCRATCH}*"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError):  # another swept it; its process is at work
            lock = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `target` at once when all is written, and vanishes if writing fails.

    It also gets the SHA-256 sums of its files. One process at a time may write it.
    """
    temporary = unfinished(target)
    for left_by_a_crash in (temporary, _doomed(target)):
        shutil.rmtree(left_by_a_crash, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with naming(target):
            yield temporary
            write_sums(temporary)
            for path in (*temporary.rglob("*"), temporary):
                flush(path)
            if target.exists():
                remove(target)
            temporary.rename(target)
            flush(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def unfinished(target: Path) -> Path:
    """The folder that `whole_folder` writes into before it becomes `target`."""
    return target.with_name(f"{target.name}.tmp")


def remove(folder: Path) -> None:
    """Delete a folder under another name, so that it never stands there half."""
    doomed = _doomed(folder)
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _doomed(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old.tmp")


def flush(path: Path) -> None:
    """Have what was written to a file, or which names a folder holds, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def naming(target: Path) -> Iterator[None]:
    """A full disk is one sentence with the path: Rust libraries say it as any exception, others may leave out where."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno or 0, error.strerror or one_line(error), str(target)) from error
        raise
    except Exception as error:
        if "os error" in str(error):
            raise TrainError(f"{target}: cannot be written: {one_line(error)}") from error
        raise


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS of all files in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    with ThreadPoolExecutor() as pool:
        sums = pool.map(file_sha256, files)
        lines = [f"{digest}  {path.relative_to(folder)}\n" for digest, path in zip(sums, files, strict=True)]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def damaged(folder: Path) -> Path | None:
    """The first file of a folder that is missing or not as it was when `write_sums` saw it; None if all are."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        entries = [(digest, folder / name) for digest, name in (line.split("  ", 1) for line in lines)]
    except (OSError, ValueError):
        return folder / SUMS
    with ThreadPoolExecutor() as pool:
        whole = pool.map(lambda entry: entry[1].is_file() and file_sha256(entry[1]) == entry[0], entries)
        return next((path for (_, path), good in zip(entries, whole, strict=True) if not good), None)
