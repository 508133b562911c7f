"""How to add an extra, such as `train`, to the prefkit that runs here: what messages about a missing package end with.

A package that was installed from a folder is mended from that folder: pip noted where it came from (PEP 610), and an
index may know no prefkit, or another one.
"""

from __future__ import annotations

import importlib.metadata
import json
import shlex
from urllib.parse import unquote, urlsplit


def install(extra: str) -> str:
    """The command that installs an extra of prefkit."""
    wanted, editable = f"prefkit[{extra}]", ""
    try:
        origin = json.loads(importlib.metadata.distribution("prefkit").read_text("direct_url.json") or "{}")
    except importlib.metadata.PackageNotFoundError:  # a checkout on PYTHONPATH
        origin = {}
    if "dir_info" in origin:
        wanted = f"{unquote(urlsplit(origin['url']).path)}[{extra}]"
        editable = "-e " if origin["dir_info"].get("editable") else ""
    return f"pip install {editable}{shlex.quote(wanted)}"
