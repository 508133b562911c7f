"""The page of runs that go on: served here, and made anew whenever a file of theirs has changed.

The page asks again every two seconds, and replaces what is different; what is asked for is the whole page again, so
there is one way to make it. A server was chosen over a file that reloads itself, since that would lose the reader's
place and open details, could not be looked at from another machine, and would be made whether or not anybody looks.

Of the log only what is new is read, so a look costs what drawing the page does: 40 ms of CPU, or 0.1 s after 100,000
steps.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefkit.errors import DataError
from prefkit.page.serve import Request, Response
from prefkit.runs import page, record


class Watch:
    """The page of some runs as they stand."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = list(zip(folders, record.labels(folders), strict=True))
        self._logs = [record.Log(folder / record.METRICS) for folder in folders]
        self._lock = threading.Lock()
        self._seen: Any = None
        self._response = Response(b"")

    def answer(self, request: Request) -> Response:
        """The page, or what is wrong with a file of a run, as text."""
        if request.method != "GET" or request.path:
            return Response(b"", status=404)
        with self._lock:
            seen = [state_of(folder) for folder, _ in self._folders]
            if seen != self._seen:
                self._response = self._look()
                self._seen = seen
            return self._response

    def _look(self) -> Response:
        held = zip(self._folders, self._logs, strict=True)
        try:
            runs = [record.read(folder, label, log) for (folder, label), log in held]
        except DataError as error:  # a reader may look again when it is mended
            return Response(str(error).encode(), "text/plain; charset=utf-8", 500)
        text = page.render(runs, live=True).encode()
        return Response(text, tag=hashlib.sha256(text).hexdigest())


def state_of(folder: Path) -> list[Any]:
    """What changes whenever something of a run does: its files' sizes and times, and whether it is training."""
    files = sorted([*folder.glob("*.json*"), *folder.glob("*/*.json")])
    found: list[Any] = [record.is_training(folder)]
    for file in files:
        try:
            stat = file.stat()
        except FileNotFoundError:  # put into place, or taken away, between listing and looking
            continue
        found.append((file.name, stat.st_size, stat.st_mtime_ns, stat.st_ino))
    return found
