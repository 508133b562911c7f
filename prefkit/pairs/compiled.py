"""Compiled kernels: numba, each compiled on first use, once per machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on first use, once per machine; once per process where neither package nor home may be written."""
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:  # numba found no place for its cache
        return numba.njit(function)


def is_kept(kernel: Any) -> bool:
    """Whether the machine code of a kernel is on the disk, and was made after its source was written."""
    source = Path(kernel.py_func.__code__.co_filename)
    if kernel.stats.cache_path is None:
        return False
    indices = Path(kernel.stats.cache_path).glob(f"{source.stem}.{kernel.__name__}-*.nbi")
    return any(index.stat().st_mtime >= source.stat().st_mtime for index in indices)
