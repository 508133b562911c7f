"""The command that adds an extra: from the folder that prefkit was installed from, as pip noted it (PEP 610)."""

import importlib.metadata
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from prefkit.extras import install


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        (None, ["prefkit[train]"]),
        ({"url": "https://example.org/prefkit.whl", "archive_info": {}}, ["prefkit[train]"]),
        ({"url": "file:///home/me/my%20prefkit", "dir_info": {}}, ["/home/me/my prefkit[train]"]),
        ({"url": "file:///home/me/prefkit", "dir_info": {"editable": True}}, ["-e", "/home/me/prefkit[train]"]),
    ],
)
def test_it_is_installed_from_where_it_came(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, origin: dict[str, Any] | None, words: list[str]
) -> None:
    if origin is not None:
        (tmp_path / "direct_url.json").write_text(json.dumps(origin))
    found = importlib.metadata.PathDistribution(tmp_path)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: {"prefkit": found}[name])
    assert shlex.split(install("train")) == ["pip", "install", *words]


def test_a_checkout_that_was_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", nowhere)
    assert install("url") == "pip install 'prefkit[url]'"
