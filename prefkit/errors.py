"""What can go wrong and be mended by the user, as one small tree.

    PrefkitError            a sentence that says what is wrong, where, and how to mend it
    ├── UsageError          the command line or a pipeline file is wrong            exit code 2
    ├── DataError           the input, or a finished data set, is not as it must be  exit code 1
    └── TrainError          the model, the tokens or the run is not as it must be    exit code 1

Only `prefkit.cli` turns these into messages. Whatever cannot happen unless prefkit itself is wrong is an `assert`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PrefkitError(Exception):
    """Base of all errors whose message is meant for the user; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(PrefkitError):
    """An unknown option, a wrong value, a missing file on the command line or in a pipeline file."""

    exit_code = 2


class DataError(PrefkitError):
    """Input that cannot be read at all, a data set that fails its own checks, or no pairs left."""


class TrainError(PrefkitError):
    """A model that cannot be loaded, tokens that do not fit, a checkpoint of another run."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean "x"?` for the nearest of `known`, else the list of them; to append to a message."""
    known = sorted(known)
    return nearest(word, known) or (f" Known: {', '.join(known)}." if known else "")


def nearest(word: str, known: Iterable[str]) -> str:
    """` Did you mean "x"?` for the nearest of `known`; nothing where none is near."""
    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f' Did you mean "{near[0]}"?' if near else ""


def one_line(error: BaseException, longest: int = 300) -> str:
    """What an error of another library says, on one line and not too long, to stand within a message of ours."""
    text = " ".join(str(error).split())
    said = text if text and isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {text}".rstrip(": ")
    return said if len(said) <= longest else said[:longest] + "…"
