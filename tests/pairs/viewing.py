"""A data set being viewed, for tests: its server in a thread, and requests to it as they come over the wire."""

from __future__ import annotations

import http.client
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefkit.config import load_pipeline
from prefkit.page.serve import served
from prefkit.pairs.build import build_pairs
from prefkit.pairs.view import page
from prefkit.pairs.view.api import Browser
from prefkit.pairs.view.routes import Routes
from tests.pairs.raw import write_lines

PIPELINE = """
[build]
shards = { pairs_per_shard = 150, row_group = 40 }
[[build.inputs]]
use = "ultrafeedback"
[build.language]
[[build.filters]]
use = "min_margin"
margin = 0.5
[build.split]
test = 0.2
[build.binarize]
use = "all_pairs"
"""


LABELS = """
[build]
shards = { pairs_per_shard = 100, row_group = 40 }
labels = { desirable_at_least = 6, undesirable_at_most = 4 }
split = { test = 0.2 }
[[build.inputs]]
use = "ultrafeedback"
"""


def build(folder: Path, lines: list[bytes], *overrides: str, pipeline: str = PIPELINE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    raw = write_lines(folder / "raw.jsonl", lines)
    (folder / "p.toml").write_text(pipeline)
    build_pairs(load_pipeline(str(folder / "p.toml"), overrides), folder / "data", given=[str(raw)])
    return folder / "data"


class Client:
    """Asks a server as a browser would, or as one would who should not."""

    def __init__(self, address: str, routes: Routes | None = None, folder: Path = Path()) -> None:
        self.address, self.routes, self.folder = address, routes, folder
        self.host, self.token = address.removeprefix("http://").split("/")[:2]
        self.port = int(self.host.rpartition(":")[2])

    def at(self, path: str) -> str:
        """A path behind the token."""
        return f"/{self.token}/{path}"

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def asked(self, name: str, **query: Any) -> tuple[int, Any]:
        path = self.at(f"api/{name}?{urllib.parse.urlencode(query)}")
        status, _, content = self.request("GET", path)
        return status, json.loads(content) if status == 200 else content.decode()

    def get(self, name: str, **query: Any) -> Any:
        status, found = self.asked(name, **query)
        assert status == 200, found
        return found

    def told(self, name: str, body: Any, **headers: str) -> tuple[int, Any]:
        given = {"Content-Type": "application/json"} | {key.replace("_", "-"): value for key, value in headers.items()}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, _, answer = self.request("POST", self.at(f"api/{name}"), content, given)
        return status, json.loads(answer) if status == 200 else answer.decode()

    def post(self, name: str, **body: Any) -> Any:
        status, found = self.told(name, body)
        assert status == 200, found
        return found

    def rows(self, kind: str = "pairs", **query: Any) -> list[dict[str, Any]]:
        """All rows of a query, page by page."""
        found: list[dict[str, Any]] = []
        while True:
            size = len(found)
            answer = self.get(kind, page=size // 50, **query)
            found += answer["rows"]
            if len(answer["rows"]) < 50:
                assert answer["complete"]
                assert answer["found"] == len(found) == self.get(f"{kind}/count", **query)["found"]
                return found


@contextmanager
def viewing(folder: Path, flags: Path | None = None) -> Iterator[Client]:
    browser = Browser(folder, flags or folder / "flags.jsonl")
    routes = Routes(browser, page.assets(browser.record))
    with served(routes.answer) as (server, address):
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield Client(address, routes, folder)
        finally:
            server.shutdown()
            thread.join()
