"""Compiled kernels: numba, each compiled on first use, once per machine."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Kernel:
    """A function that is machine code from its first call on, and asks for numba no sooner: importing that takes as
    long as importing polars, and a process that only hands out tasks never calls a kernel.

    To numba, where another kernel calls it, it is the dispatcher that `numba.njit` makes of it.
    """

    def __init__(self, function: Callable[..., Any], **options: Any):
        functools.update_wrapper(self, function)
        self._function, self._options = function, options

    @functools.cached_property
    def _dispatcher(self) -> Any:
        import numba

        try:
            return numba.njit(cache=True, **self._options)(self._function)
        except RuntimeError:  # numba found no place for its cache
            return numba.njit(**self._options)(self._function)

    def __call__(self, *arguments: Any) -> Any:
        return self._dispatcher(*arguments)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # who looks a function over, or copies it, is not numba
            raise AttributeError(name)
        return getattr(self._dispatcher, name)

    def is_kept(self) -> bool:
        """Whether its machine code is on the disk.

        The files that numba writes beside the source tell by their names whose it is, and its line; that they are of an
        older source, which had it in the same line, is not seen. Where none are, numba may keep it elsewhere, and has
        no other way to be asked than its own parts.
        """
        code = self._function.__code__
        source = Path(code.co_filename)
        if any(source.parent.glob(f"__pycache__/{source.stem}.{code.co_name}-{code.co_firstlineno}.*.nbi")):
            return True
        kept = getattr(self._dispatcher._cache, "_cache_file", None)  # None where it found no place for a cache
        return kept is not None and bool(kept._load_index())


def compiled(function: Callable[..., Any]) -> Kernel:
    """Compile on first use, once per machine; once per process where neither package nor home may be written."""
    return Kernel(function)


def inlined(function: Callable[..., Any]) -> Kernel:
    """As `compiled`, for what is to become part of each kernel that calls it."""
    return Kernel(function, inline="always")
