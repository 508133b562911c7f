"""Who may import whom; `--help` imports nothing heavy, which is why it answers at once."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import prefkit

PACKAGE = Path(prefkit.__file__).parent
PAIRS_NEVER = {"torch", "transformers", "peft", "tokenizers", "safetensors", "prefkit.train"}
TRAIN_NEVER = {"polars", "numba", "msgspec", "prefkit.pairs"}
SHARED_NEVER = PAIRS_NEVER | TRAIN_NEVER


def imported(path: Path) -> set[str]:
    """All modules that a file imports anywhere, with the packages they are in."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {".".join(name.split(".")[: i + 1]) for name in names for i in range(name.count(".") + 1)}


@pytest.mark.parametrize(("folder", "never"), [("pairs", PAIRS_NEVER), ("train", TRAIN_NEVER)])
def test_the_halves_do_not_know_each_other(folder: str, never: set[str]) -> None:
    for path in (PACKAGE / folder).rglob("*.py"):
        assert not imported(path) & never, path


SHARED = ("errors", "schema", "manifest", "resolve", "config", "intervals", "progress", "urls", "adopt", "toml")


@pytest.mark.parametrize("name", SHARED)
def test_what_both_share_knows_neither(name: str) -> None:
    assert not imported(PACKAGE / f"{name}.py") & SHARED_NEVER


@pytest.mark.parametrize("folder", ["page", "runs"])
def test_pages_and_the_reports_of_runs_know_neither_half(folder: str) -> None:
    for path in (PACKAGE / folder).rglob("*.py"):
        assert not imported(path) & SHARED_NEVER, path


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from prefkit.cli import make_parser; make_parser().format_help();"
        "print(sorted({'torch', 'transformers', 'polars', 'pyarrow', 'numpy', 'rich', 'pydantic'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_files_stay_readable(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400
    assert ast.get_docstring(ast.parse(text)), "every module says what it is for"
