"""What the documents say exists: commands parse, links lead somewhere, make targets and example losses work."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from prefkit.cli import make_parser
from tests.conftest import PROJECT

DOCUMENTS = [
    PROJECT / "README.md",
    PROJECT / "CONTRIBUTING.md",
    PROJECT / "CHANGELOG.md",
    *(PROJECT / "docs").glob("*.md"),
]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_are_those_of_the_program(path: Path) -> None:
    targets = re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), flags=re.MULTILINE)
    for line in "\n".join(blocks(path, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["prefkit"]:
            make_parser().parse_args(words[1:])
        elif words[:1] == ["make"]:
            assert set(words[1:]) <= set(targets), line
        elif "python" in words:
            assert (PROJECT / words[words.index("python") + 1]).exists(), line


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_pipeline_excerpts_are_toml(path: Path) -> None:
    for text in blocks(path, "toml"):
        tomllib.loads(text)


def test_no_placeholder_is_left() -> None:
    for path in DOCUMENTS:
        assert not re.search(r"\b[A-Z]+_(TABLE|SECONDS)\b|TODO", path.read_text(encoding="utf-8")), path


def test_the_example_loss_of_the_docs_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefkit.resolve import check
    from prefkit.train.objective import Preference
    from prefkit.train.terms import Weighted

    (example,) = blocks(PROJECT / "docs" / "losses.md", "python")
    (tmp_path / "my_losses.py").write_text(example)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert Preference.of([Weighted(1.0, check("my_losses:squared", {"beta": 0.2}, "docs"))]).takes_reference
