"""Files of folders and globs on this machine, also behind links, of which some lead round in a circle."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

ANY = "**"  # folders in folders, or none


def below(folder: Path) -> Iterator[Path]:
    """The files in a folder and its folders, no hidden ones; also behind links to folders, unless these lie in or hold
    what is gone through anyway. OSError where a folder may not be read."""

    def fail(error: OSError) -> None:
        raise error

    gone_through: list[Path] = []
    waiting = [folder]
    for start in waiting:
        real = start.resolve()
        if any(real.is_relative_to(other) or other.is_relative_to(real) for other in gone_through):
            continue
        gone_through.append(real)
        for place, folders, files in os.walk(start, onerror=fail):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            waiting += [path for name in folders if (path := Path(place, name)).is_symlink()]
            yield from (Path(place, name) for name in files if not name.startswith("."))


def matches(pattern: str, base: Path) -> list[Path]:
    """The files that a glob (relative to `base`) means, sorted. What `**` goes through is what `below` does.

    OSError where a folder under `**` may not be read.
    """
    parts = PurePath(pattern).parts
    if ANY not in parts:
        found = {base / match for match in glob.glob(pattern, root_dir=base)}
    else:
        at = parts.index(ANY)
        starts = [base / start for start in glob.glob(str(Path(*parts[:at])), root_dir=base)]
        files = ((start, file) for start in starts if start.is_dir() for file in below(start))
        found = {file for start, file in files if _fits(file.relative_to(start).parts, parts[at:])}
    return sorted(file for file in found if file.is_file())


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path are those of a pattern, in which `**` is any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == ANY:
        return _fits(parts, pattern[1:]) or (bool(parts) and _fits(parts[1:], pattern))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])
