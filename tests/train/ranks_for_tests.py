"""Several ranks on one machine, as torchrun would start them, but forked from a process that has imported all.

As under torchrun, the store through which ranks meet is kept by who starts them, not by a rank that may die.
"""

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Not all is used here, but all is needed by the ranks of the tests, and so imported once for all.
import pandas  # noqa: F401
import peft  # noqa: F401
import pydantic.type_adapter  # noqa: F401
import torch
import torch.distributed as dist
import transformers.models.llama.modeling_llama
import transformers.models.qwen3.modeling_qwen3  # noqa: F401

from prefkit.arguments import fail
from prefkit.errors import PrefkitError
from prefkit.train import parallel, run  # noqa: F401

fork = multiprocessing.get_context("forkserver")
fork.set_forkserver_preload([__name__])
stores: list[dist.TCPStore] = []  # kept for as long as any rank may ask


def start(
    ranks: int, function: Callable[..., Any], *arguments: Any, said: Path, timeout: float = 60
) -> list[multiprocessing.Process]:
    """Start `function(*arguments)` on some ranks; what rank r writes to stderr stands in `said`/r."""
    said.mkdir(parents=True, exist_ok=True)
    stores.append(dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
    processes = [
        fork.Process(target=_rank, args=(rank, ranks, stores[-1].port, said / str(rank), timeout, function, arguments))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    return processes


def finish(processes: list[multiprocessing.Process], within: float = 120) -> list[int | None]:
    """Exit codes; None for a rank that hangs, which is killed."""
    for process in processes:
        process.join(within)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def on_ranks(ranks: int, function: Callable[..., Any], *arguments: Any, said: Path, timeout: float = 60) -> str:
    """Run a function on some ranks and check that all end well; returns what they wrote to stderr."""
    codes = finish(start(ranks, function, *arguments, said=said, timeout=timeout))
    text = spoken(said)
    assert codes == [0] * ranks, text
    return text


def spoken(said: Path) -> str:
    """What all ranks wrote to stderr."""
    return "".join(path.read_text() for path in sorted(said.iterdir()))


def _rank(rank: int, ranks: int, port: int, said: Path, timeout: float, function: Any, arguments: Any) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    torch.set_num_threads(1)
    with open(said, "w", buffering=1) as sys.stderr:
        try:
            with parallel.joined(timeout):
                function(*arguments)
        except PrefkitError as error:
            sys.exit(fail(str(error), error.exit_code))
        except KeyboardInterrupt as stop:
            sys.exit(fail(str(stop), 130))
        except Exception:
            traceback.print_exc()
            sys.exit(1)
