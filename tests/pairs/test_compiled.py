"""Whether a build must compile first is known from the files that numba keeps, and said."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numba
import pytest

from prefkit.cli import main
from prefkit.pairs import minhash

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
    assert not own.one.is_kept()
    assert own.one() == 1
    assert own.one.is_kept()
    source.write_text(text)  # as a reinstallation does
    assert imported(source).one.is_kept()
    source.write_text("\n" + text.replace("return 1", "return 1 + 1"))
    changed = imported(source)
    assert not changed.one.is_kept()
    assert changed.one() == 2


def test_a_kernel_is_a_kernel_to_another(tmp_path: Path) -> None:
    source = tmp_path / "own.py"
    source.write_text(
        "from prefkit.pairs.compiled import compiled, inlined\n\n\n"
        "@inlined\ndef half(x):\n    return x / 2\n\n\n@compiled\ndef one(x):\n    return half(x)\n\n\n"
        "@compiled\ndef two(x):\n    return one(x) + one(x)\n"
    )
    own = imported(source)
    assert own.two(3) == 3 == own.two.py_func(3)
    assert [str(argument) for argument in own.two.nopython_signatures[0].args] == ["int64"]


@pytest.mark.parametrize("where", ["asked", "of the package"])
def test_kernels_are_found_where_numba_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    source = tmp_path / "own.py"
    source.write_text("from prefkit.pairs.compiled import compiled\n\n\n@compiled\ndef one():\n    return 1\n")
    if where == "asked":
        monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "elsewhere"))
    own = imported(source)
    assert not own.one.is_kept()
    assert own.one() == 1
    assert own.one.is_kept()
    assert (tmp_path / "elsewhere").exists() is (where == "asked")


def test_who_calls_no_kernel_does_not_import_numba() -> None:
    code = "import sys; from prefkit.pairs import build, minhash, report; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


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
