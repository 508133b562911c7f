"""What computes: this code and the versions of the libraries that decide its output.

Its hash is part of every task's name, so that another version never takes up finished steps; and each worker compares
it with its own, so that a machine of a cluster with another version never adds to them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
from importlib import metadata
from pathlib import Path

import prefkit

LIBRARIES = ("polars", "pyarrow", "numpy", "numba", "msgspec", "fasttext-predict")


@functools.cache
def versions() -> dict[str, str]:
    """Versions of prefkit and of what decides its output."""
    return {"prefkit": prefkit.__version__, "python": platform.python_version()} | {
        name: metadata.version(name) for name in LIBRARIES
    }


@functools.cache
def fingerprint() -> str:
    """Hash of the code of this half and of `versions`."""
    hasher = hashlib.sha256(json.dumps(versions()).encode())
    package = Path(prefkit.__file__).parent
    for path in [package / "schema.py", package / "resolve.py", *sorted((package / "pairs").rglob("*.py"))]:
        hasher.update(path.read_bytes())
    return hasher.hexdigest()
