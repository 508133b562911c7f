"""A page served to this machine's own user: on the loopback address, at a free port, below a random token.

A page of somebody else, open in the same browser, must get nothing out of it and nothing into it:

- The address has the token in its path, compared in constant time; without it, every path is refused alike.
- The Host header must be the address that is listened on, so that no foreign name that is made to point here gets an
  answer (DNS rebinding), and an Origin, where a browser sends one, must be the page's own.
- No CORS header is ever sent. What a POST carries is JSON, which a foreign page cannot send unasked, and is bounded.

From another machine, a tunnel from the same port leads to it: `ssh -L PORT:127.0.0.1:PORT machine`.
"""

from __future__ import annotations

import secrets
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qsl

HOST = "127.0.0.1"
LARGEST_BODY = 64 << 10
MOST_FIELDS = 40  # of a query
IDLE_SECONDS = 60
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # the token stands in the address
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Request(NamedTuple):
    """What a browser asks for: `path` is what follows the token; `gone` tells whether it waits for no answer any
    more."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes
    gone: Callable[[], bool] = lambda: False


class Response(NamedTuple):
    """What it is told; with a `tag`, a browser that has the answer of that tag is told so instead. `policy` is its
    Content-Security-Policy."""

    body: bytes
    kind: str = "text/html; charset=utf-8"
    status: int = 200
    tag: str = ""
    policy: str = ""


class Gone(Exception):
    """Raised in place of an answer that nobody waits for."""


class Refused(Exception):
    """A request that is not answered: the status, and a sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


def told(status: int, sentence: str) -> Response:
    """A sentence in place of an answer."""
    return Response(sentence.encode(), "text/plain; charset=utf-8", status)


class Server(ThreadingHTTPServer):
    """A server, to be run by its `serve_forever`; `address` is where its page is."""

    daemon_threads = True

    def __init__(self, answer: Callable[[Request], Response], port: int = 0):
        super().__init__((HOST, port), Handler)
        self.answer, self.token = answer, secrets.token_urlsafe(24)
        self.hosts = {f"{name}:{self.server_port}" for name in (HOST, "localhost")}
        self.address = f"http://{HOST}:{self.server_port}/{self.token}/"


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS

    def _respond(self) -> None:
        try:
            response = self.server.answer(self._request())
        except (Gone, ConnectionError):
            self.close_connection = True
        except Refused as error:
            self.close_connection = True  # what follows may be a body that was not read
            self._send(told(error.status, str(error)))
        except Exception:
            self.close_connection = True
            self._send(told(500, "prefkit failed; its terminal tells how."))
            raise
        else:
            self._send(response)

    do_GET = do_POST = _respond

    def _request(self) -> Request:
        """What is asked; Refused for whoever may not ask, or asks nothing that can be understood."""
        if self.headers.get("Host") not in self.server.hosts:
            raise Refused(403, "This is not the address that prefkit printed.")
        place, _, query = self.path.partition("?")
        token, _, path = place.removeprefix("/").partition("/")
        if not secrets.compare_digest(token.encode("utf-8", "surrogateescape"), self.server.token.encode()):
            raise Refused(403, "The address lacks its token; use the whole one that prefkit printed.")
        origin = self.headers.get("Origin")
        if origin is not None and origin.removeprefix("http://") not in self.server.hosts:
            raise Refused(403, "Another page may not ask here.")
        if self.command == "GET" and ("Content-Length" in self.headers or "Transfer-Encoding" in self.headers):
            raise Refused(400, "A GET carries nothing.")
        body = self._body() if self.command == "POST" else b""
        return Request(self.command, path, _parameters(query), body, self._gone)

    def _body(self) -> bytes:
        if self.headers.get_content_type() != "application/json":
            raise Refused(415, "What is sent must be application/json.")
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdecimal() or "Transfer-Encoding" in self.headers:
            raise Refused(411, "The length of what is sent must be said.")
        if len(length) > len(str(LARGEST_BODY)) or int(length) > LARGEST_BODY:
            raise Refused(413, f"More than {LARGEST_BODY:,} bytes are too many.")
        return self.rfile.read(int(length))

    def _gone(self) -> bool:
        """Whether the other side closed the connection, as a browser does that asks for something else by now."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

    def _send(self, response: Response) -> None:
        same = bool(response.tag) and self.headers.get("If-None-Match") == f'"{response.tag}"'
        headers = HEADERS | ({"ETag": f'"{response.tag}"'} if response.tag else {})
        headers |= {"Content-Security-Policy": response.policy} if response.policy else {}
        headers |= {"Connection": "close"} if self.close_connection else {}
        if not same:
            headers |= {"Content-Type": response.kind, "Content-Length": str(len(response.body))}
        try:
            self.send_response(304 if same else response.status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"" if same else response.body)
        except (BrokenPipeError, ConnectionResetError):  # nobody waits any more
            self.close_connection = True

    def version_string(self) -> str:
        return "prefkit"

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: the terminal is for people, and addresses hold the token."""


def _parameters(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            query, keep_blank_values=True, strict_parsing=bool(query), errors="strict", max_num_fields=MOST_FIELDS
        )
    except ValueError as error:
        raise Refused(400, f"The request cannot be read: {error}.") from error
    given = dict(pairs)
    if len(given) < len(pairs):
        raise Refused(400, "The request cannot be read: a parameter is given twice.")
    return given


@contextmanager
def served(answer: Callable[[Request], Response], port: int = 0) -> Iterator[tuple[Server, str]]:
    """A server, to be run by its `serve_forever`, and the address of the page. `answer` is called by many threads.

    Port 0 takes a free one; OSError or OverflowError for one that cannot be had.
    """
    with Server(answer, port) as server:
        yield server, server.address
