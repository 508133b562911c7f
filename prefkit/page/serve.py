"""A page served to this machine's own user: on the loopback address, at a free port, below a random token.

Without the token there is nothing but 404; a name other than that of the loopback address is refused as well, so that
no page of the web can reach the server by a name that it points here. From another machine, a tunnel leads to it:
`ssh -L PORT:127.0.0.1:PORT machine`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

HERE = ("127.0.0.1", "localhost")
LARGEST_BODY = 1 << 20
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # the token stands in the address
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Request(NamedTuple):
    """What a browser asks for: `path` is what follows the token."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes


class Response(NamedTuple):
    """What it is told; with a `tag`, a browser that has the answer of that tag is told so instead."""

    body: bytes
    kind: str = "text/html; charset=utf-8"
    status: int = 200
    tag: str = ""


@contextmanager
def served(answer: Callable[[Request], Response]) -> Iterator[tuple[ThreadingHTTPServer, str]]:
    """A server, to be run by its `serve_forever`, and the address of the page. `answer` is called by many threads."""
    token = secrets.token_urlsafe(24)

    class Handler(BaseHTTPRequestHandler):
        def _respond(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            asked = urlsplit(self.path)
            of_token, _, path = asked.path.removeprefix("/").partition("/")
            host = (self.headers.get("Host") or "").rpartition(":")[0]
            if not secrets.compare_digest(of_token.encode(), token.encode()) or host not in HERE:
                return self._send(Response(b"", status=404))
            if length > LARGEST_BODY:
                return self._send(Response(b"", status=413))
            body = self.rfile.read(length)
            return self._send(answer(Request(self.command, path, dict(parse_qsl(asked.query)), body)))

        do_GET = do_POST = _respond

        def _send(self, response: Response) -> None:
            same = bool(response.tag) and self.headers.get("If-None-Match") == f'"{response.tag}"'
            self.send_response(304 if same else response.status)
            for name, value in HEADERS.items():
                self.send_header(name, value)
            if response.tag:
                self.send_header("ETag", f'"{response.tag}"')
            if not same:
                self.send_header("Content-Type", response.kind)
                self.send_header("Content-Length", str(len(response.body)))
            self.end_headers()
            if not same:
                self.wfile.write(response.body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing: the terminal is for people, and addresses hold the token."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        yield server, f"http://127.0.0.1:{server.server_port}/{token}/"
