"""Compiled kernels: numba, each compiled on first use, once per machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on first use, once per machine; once per process where neither package nor home may be written."""
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:  # numba found no place for its cache
        return numba.njit(function)


def is_kept(kernel: Any) -> bool:
    """Whether the machine code of a kernel is on the disk, made from its source as it is now.

    numba knows, by the source's contents or its time of change, and has no other way to be asked than its own parts.
    """
    kept = getattr(kernel._cache, "_cache_file", None)  # None where it found no place for a cache
    return kept is not None and bool(kept._load_index())
