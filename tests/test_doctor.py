"""`prefkit doctor`: what is whole is ok, and whatever is taken away is found, with the command that mends it."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from prefkit import doctor
from prefkit.cli import main
from prefkit.doctor import Finding
from prefkit.extras import install
from tests.conftest import PROJECT


def found(check: Callable[[], object]) -> dict[str, Finding]:
    return {finding.name: finding for finding in doctor._tried(check)}


def test_this_machine_is_usable(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["usable"] is True
    findings = {finding["name"]: finding for finding in table["findings"]}
    for name in ("python", "polars", "kernels", "language model", "train", "torch"):
        assert findings[name]["state"] == "ok", findings[name]
    assert findings["polars"]["seen"] == importlib.metadata.version("polars")
    assert {"flash attention", "bitsandbytes"} <= findings.keys()


def test_without_torch_it_is_usable_and_says_what_to_install() -> None:
    code = "import sys; sys.modules['torch'] = None; from prefkit.cli import main; sys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"without torch. Mend: {install('train')}" in done.stdout
    assert "it builds pairs; it does not train" in done.stdout


def test_a_broken_package_is_named_and_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)
    monkeypatch.setattr(doctor, "examine", lambda: doctor._tried(doctor._packages))
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "broken   msgspec" in said
    assert "pip install --force-reinstall msgspec" in said
    assert "1 broken." in said


def test_an_old_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version
    old = {"pyarrow": "20.9.1", "torch": "2.5.1+cu124"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: old.get(name) or version(name))
    assert found(doctor._packages)["pyarrow"] == (
        "pyarrow", "broken", "20.9.1, older than 21", "pip install --upgrade 'pyarrow>=21'",
    )  # fmt: skip
    assert found(doctor._extras)["train"].state == "broken"
    assert "torch 2.5.1" in found(doctor._extras)["train"].seen


def test_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert set(doctor.EXTRAS) == set(project["optional-dependencies"]) - {"dev"}
    for requirement in [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]:  # noqa: RUF017
        assert doctor.REQUIREMENT.match(requirement), requirement


def test_kernels_whose_code_cannot_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefkit.pairs import minhash

    assert found(doctor._kernels)["kernels"].state == "ok"
    monkeypatch.setattr(minhash.similar_pairs, "_cache", object())
    assert "NUMBA_CACHE_DIR" in str(found(doctor._kernels)["kernels"].mend)
    monkeypatch.setattr(minhash, "similar_pairs", lambda *_: [])
    assert found(doctor._kernels)["kernels"].state == "broken"


def test_a_language_model_that_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from prefkit.pairs import language

    monkeypatch.setattr(language, "_shipped", lambda: tmp_path / "lid.176.ftz")
    (finding,) = found(doctor._language_model).values()
    assert finding.state == "broken"
    assert "lid.176.ftz" in finding.seen


def test_memory_of_a_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {
        "/proc/meminfo": "MemTotal: 100 kB\nMemAvailable: 8000000 kB\n",
        "/sys/fs/cgroup/memory.max": "3000000000\n",
        "/sys/fs/cgroup/memory.current": "2500000000\n",
    }
    for name, text in files.items():
        (tmp_path / name.strip("/")).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name.strip("/")).write_text(text)
    monkeypatch.setattr(doctor, "Path", lambda name: tmp_path / str(name).strip("/"))
    free, total = doctor.memory()
    assert (free, total) == (500_000_000, 3_000_000_000)
    assert found(doctor._memory)["memory"].state == "missing"
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert doctor.memory()[0] == 8_000_000 * 1024


def test_a_cuda_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.version, "cuda", None)
    cuda = found(doctor._devices)["cuda"]
    assert (cuda.state, cuda.mend) == ("missing", "pip install --force-reinstall torch")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert found(doctor._devices)["cuda"].mend == "update the driver"


def test_a_flash_kernel_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefkit.train import attention, attention_varlen

    monkeypatch.setattr(attention_varlen, "missing", lambda device, dtype: None)
    monkeypatch.setattr(attention_varlen, "find_kernel", lambda: attention_varlen.by_torch)
    for error, state in ((1e-3, "ok"), (0.5, "broken")):
        monkeypatch.setattr(attention, "kernel_error", lambda device, dtype, error=error: error)
        assert found(doctor._attention)["flash attention"].state == state
