"""Shared by all tests."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

# Tests run side by side on few cores; more threads than cores only slow them down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("POLARS_MAX_THREADS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Where a script starts the tests in its background, SIGINT is ignored, also by what they start and then interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

PROJECT = Path(__file__).parent.parent
REAL_DATA = PROJECT.parent / "shared" / "data"


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Bytes go by the name of their parameter: those of gzip hold the time, and names must be the same everywhere."""
    return argname if isinstance(val, bytes) else None


# Files that take half a minute or more come first, so that no worker begins one when the others are done. That needs
# xdist's --no-loadscope-reorder (see Makefile), or the files with the most tests come first.
LONGEST = (
    "test_demo.py",
    "train/test_parallel.py",
    "pairs/test_build.py",
    "pairs/test_engine.py",
    "pairs/test_campaign.py",
    "train/test_campaign.py",
    "train/test_run.py",
    "train/test_estimate.py",
    "pairs/test_extend.py",
    "pairs/test_exclude.py",
    "pairs/test_pipelines.py",
    "train/test_arriving.py",
    "test_api.py",
    "test_wheel.py",
    "train/test_against_trl.py",
    "train/test_lean.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(PROJECT / "tests").as_posix()
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)


@pytest.fixture
def real_data() -> Path:
    """Folder of real data sets beside the checkout; the test skips where there is none."""
    if not REAL_DATA.is_dir():
        pytest.skip("needs the real data sets in ../shared/data beside the checkout")
    return REAL_DATA


@pytest.fixture(autouse=True)
def subnormal_floats() -> None:
    """Training flushes subnormal floats to zero, in its whole process, and hypothesis wants them."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture(scope="session", autouse=True)
def kept_kernels() -> None:
    """Compile what `prefkit build-pairs` asks for, so that no test depends on whether it is the first to build here."""
    from prefkit.pairs import minhash

    minhash.signatures(*minhash.shingles(["to be or not to be"], 2), minhash.permutations(8, 1))
