"""`prefkit view DIR`: the whole of a data set in the browser, served from this machine to this machine alone.

    table    rows by number, straight from Parquet           api      what the page asks for
    query    parameters -> the numbers of the rows           routes   which path is answered by what
    page     the page (view.css; view.js, item.js, filters.js)

Who may ask is checked by `prefkit.page.serve`.

polars does the work, which half one needs anyway: its streaming scans filter a million pairs as fast as DuckDB's and
search their texts several times faster (docs/benchmarks.md), and its expressions are built, not written.

Flags are the one thing that it writes, into a file that `[build] exclude` takes (see `prefkit.pairs.flags`). By default
this is DIR/flags.jsonl: so flags go where the data goes, and outlive `--overwrite`, which replaces the data set's own
files alone. That file is in no manifest, so the data set and its hashes stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from prefkit.errors import UsageError
from prefkit.page.serve import HOST, Server
from prefkit.pairs.view import page
from prefkit.pairs.view.api import Browser
from prefkit.pairs.view.routes import Routes

FLAGS = "flags.jsonl"


def serve(folder: Path, *, port: int = 0, flags: Path | None = None, ready: Callable[[str], None]) -> None:
    """Serve until interrupted. `ready` is told the address; port 0 takes a free one. UsageError or DataError before."""
    browser = Browser(folder, flags or folder / FLAGS)
    if not browser.flags_file.absolute().parent.is_dir():
        raise UsageError(f"--flags {browser.flags_file}: there is no such folder.")
    routes = Routes(browser, page.assets(browser.record))
    try:
        server = Server(routes.answer, port)
    except (OSError, OverflowError) as error:
        raise UsageError(f"--port {port}: cannot be had at {HOST} ({error}). Leave it out for a free one.") from error
    with server, suppress(KeyboardInterrupt):
        ready(server.address)
        server.serve_forever()
