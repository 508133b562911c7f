"""Whether a build must compile first is known from the files that numba keeps, and said."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from prefkit.cli import main
from prefkit.pairs import compiled, minhash

SAID = "kernels are compiled for this machine first"


def imported(source: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("own", source)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_kernel_is_kept_from_its_first_call_until_its_source_changes(tmp_path: Path) -> None:
    source = tmp_path / "own.py"
    text = "from prefkit.pairs.compiled import compiled\n\n\n@compiled\ndef one():\n    return 1\n"
    source.write_text(text)
    own = imported(source)
    assert not compiled.is_kept(own.one)
    assert own.one() == 1
    assert compiled.is_kept(own.one)
    source.write_text(text)  # as a reinstallation does
    assert compiled.is_kept(imported(source).one)
    source.write_text(text.replace("return 1", "return 1 + 1"))
    changed = imported(source)
    assert not compiled.is_kept(changed.one)
    assert changed.one() == 2


@pytest.mark.parametrize(("kept", "quiet", "said"), [(False, [], True), (True, [], False), (False, ["--quiet"], False)])
def test_a_build_that_compiles_first_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kept: bool,
    quiet: list[str],
    said: bool,
) -> None:
    monkeypatch.setattr(minhash, "is_compiled", lambda: kept)
    (tmp_path / "p.toml").write_text('[build]\n[[build.inputs]]\nuse = "pairs"\n')
    (tmp_path / "raw.jsonl").write_text('{"prompt": "Why?", "chosen": "Because.", "rejected": "No."}\n')
    command = ["build-pairs", str(tmp_path / "p.toml"), str(tmp_path / "raw.jsonl"), "--out", str(tmp_path / "out")]
    assert main([*command, "--workers", "1", *quiet]) == 0
    assert (SAID in capsys.readouterr().err) is said
    assert main([*command, "--workers", "1", *quiet]) == 0
    assert SAID not in capsys.readouterr().err, "nothing is left to do"
