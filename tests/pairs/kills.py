"""Builds that die at a change to the file system: one that does, and what any such death would leave behind."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CHANGES = ("link", "replace", "rename", "unlink", "mkdir", "fsync", "rmdir")


class Killed(BaseException):
    """Nothing in the program catches this, and once it was raised, no file can be changed any more."""


def killed_at(monkeypatch: pytest.MonkeyPatch, change: int, build: Callable[[], Any]) -> bool:
    """Run `build` and let it die at its n-th change to the file system; whether it got that far."""
    done = 0

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def either(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done >= change:
                raise Killed
            return real(*arguments, **options)

        return either

    with monkeypatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, dying(getattr(os, name)))
        try:
            build()
        except Killed:
            return True
    return False


def states(monkeypatch: pytest.MonkeyPatch, folder: Path, copies: Path, build: Callable[[], Any]) -> list[Path]:
    """Run `build`, which changes `folder`, to its end; what a kill at any of its changes would have left of the folder.

    That is a copy of the folder right before each change, under `copies`, without repetitions. So a hundred deaths cost
    one build, and, as with kill -9, nothing at all is done after them.
    """
    found: list[Path] = []
    seen: dict[str, tuple[int, ...]] = {}
    held, copying = threading.RLock(), False  # a build changes files in several threads

    def copy() -> None:
        nonlocal seen, copying
        now = {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*")}
        if now != seen:
            seen, copying = now, True
            found.append(shutil.copytree(folder, copies / str(len(found))))
            copying = False

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def either(*arguments: Any, **options: Any) -> Any:
            with held:
                if not copying:
                    copy()
                return real(*arguments, **options)

        return either

    with monkeypatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, watched(getattr(os, name)))
        build()
    return found
