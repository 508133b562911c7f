"""Which path is answered by what: the page's files, `Browser`'s answers as JSON, and flags by POST.

Paths are looked up in tables and never touch the file system. The Content-Security-Policy allows the page's own style,
script and requests, and no other, nor inline ones. What is refused is told in a sentence, as text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from prefkit.errors import PrefkitError, one_line
from prefkit.page.serve import Request, Response, told
from prefkit.pairs.view.api import Browser
from prefkit.pairs.view.query import BadRequest

POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
Asset = tuple[str, bytes]  # content type and content


class Routes:
    """The answers to requests about one data set."""

    def __init__(self, browser: Browser, assets: Mapping[str, Asset]):
        self.assets = dict(assets)
        self._check = browser.check
        unit = browser.kind.removesuffix("s")
        self._answers: dict[str, Callable[[Mapping[str, str], Callable[[], bool]], Any]] = {
            "api/about": browser.about,
            "api/choices": browser.choices,
            f"api/{browser.kind}": browser.find_kept,
            f"api/{browser.kind}/count": browser.count_kept,
            "api/rejects": browser.find_rejects,
            "api/rejects/count": browser.count_rejects,
            f"api/{unit}": browser.one,
            f"api/{unit}/why": browser.why,
            "api/reject": browser.reject,
            "api/reject/why": browser.why_reject,
        }
        self._changes: dict[str, Callable[[bytes], Any]] = {
            "api/flag": browser.put_flag,
            "api/unflag": browser.take_flag,
        }

    def answer(self, request: Request) -> Response:
        """What a browser is told."""
        known: Mapping[str, Any] = self._changes if request.method == "POST" else {**self.assets, **self._answers}
        if request.path not in known:
            other = request.path in {**self.assets, **self._answers, **self._changes}
            return told(405, "Flags are changed by POST, and all else by GET.") if other else told(404, "Not here.")
        if request.path in self.assets:
            kind, content = self.assets[request.path]
            return Response(content, kind, policy=POLICY)
        try:
            self._check()
            if request.method == "POST":
                return _json(self._changes[request.path](request.body))
            return _json(self._answers[request.path](request.query, request.gone))
        except BadRequest as error:
            return told(400, str(error))
        except PrefkitError as error:
            return told(409, str(error))
        except OSError as error:  # of the file of flags
            return told(409, f"{error.filename}: {error.strerror}." if error.filename else one_line(error))


def _json(value: Any) -> Response:
    content = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    return Response(content, "application/json; charset=utf-8", policy=POLICY)
