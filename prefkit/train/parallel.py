"""Ranks: processes that train one model together, as torchrun starts them; one process is the same code, alone.

Work. The steps and their bins are the same for any number of ranks (`stream.py`, `deal.py`); each rank computes its own
bins, and sums over all ranks (of gradients, of losses, of log-probabilities) make the step whole again.

Memory. Full training deals weights, gradients and optimiser state to the ranks (FSDP2, `fully_shard`): each layer is
gathered when its turn comes, forward and backward, and its gradient is summed and dealt in the same go. A rank holds
16 bytes a parameter divided by the ranks, and one layer. A LoRA adapter is small: every rank holds the whole model, and
gradients are summed once a step. Under `dtype = "bfloat16"` the layers travel in bfloat16, as autocast would use them
anyway; embeddings, the output head and every sum of gradients stay float32.

What ranks tell each other besides tensors is JSON, never pickles.

A rank that dies takes the run with it: the others fail in their next exchange with it, at the latest after `timeout`,
and end. The first to fail says why, once for all ranks; what is on the disk is whole, and `--resume` goes on.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from prefkit.errors import PrefkitError, TrainError, one_line
from prefkit.train.attention import backbone

TIMEOUT = 1800.0  # seconds


def rank() -> int:
    """This process's number among the ranks, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the rank that writes logs and folders, and talks to people."""
    return rank() == 0


@contextmanager
def joined(timeout: float = TIMEOUT) -> Iterator[None]:
    """Within, this process is one of the ranks that RANK, WORLD_SIZE and MASTER_ADDR tell of, if they do.

    `timeout`: seconds that a rank waits for another. Of several ranks that fail, the first leaves with its error, the
    others with SystemExit, so that one message is printed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    limit = timedelta(seconds=timeout)
    try:
        store, number, ranks = next(dist.rendezvous("env://", timeout=limit))
        dist.init_process_group(backend(), store=store, rank=number, world_size=ranks, timeout=limit)
        wait()
    except (RuntimeError, ValueError) as error:
        raise TrainError(f"a rank could not join the others: {one_line(error)}") from error
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends the ranks beside one that failed: speak first
        if not _is_first_to_fail(store):
            raise SystemExit(_exit_code(error)) from error
        if _is_lost(error) or (error.__context__ is not None and _is_lost(error.__context__)):
            raise TrainError(
                f"rank {number} lost another rank, which died or did not answer for {timeout:g} s. What was saved is "
                "whole: go on with --resume."
            ) from error
        raise
    dist.destroy_process_group()


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def backend() -> str:
    """Tensors on the CPU go through gloo, those on a GPU through NCCL."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def _is_first_to_fail(store: dist.Store) -> bool:
    try:
        return store.add("prefkit/failures", 1) == 1
    except RuntimeError:  # the rank that kept the store is gone, and cannot have heard of another failure
        return True


def _is_lost(error: BaseException) -> bool:
    """Whether an error is that of an exchange between ranks; gloo has no class of its own."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 130
    return error.exit_code if isinstance(error, PrefkitError) else 1


def summed(tensor: Tensor) -> Tensor:
    """The sum over all ranks, on each; `tensor` itself is overwritten with it."""
    if size() > 1:
        dist.all_reduce(tensor)
    return tensor


def any_rank(*flags: bool) -> list[bool]:
    """For each flag, whether it is true on any rank: what all must then do."""
    return (summed(torch.tensor(flags, dtype=torch.int64)) > 0).tolist()


def all_rows(tensor: Tensor) -> list[Tensor]:
    """The tensors of all ranks, in their order, on each; they may differ in length."""
    if size() == 1:
        return [tensor]
    lengths = gathered(len(tensor))
    padded = tensor.new_zeros(max(lengths), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return [part[:length] for part, length in zip(parts, lengths, strict=True)]


def gathered(value: Any) -> list[Any]:
    """The values of all ranks, in their order, on each; anything that JSON can say."""
    if size() == 1:
        return [value]
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(size())]
    dist.all_gather(lengths, torch.tensor([len(text)]))
    padded = torch.zeros(max(int(length) for length in lengths), dtype=torch.uint8)
    padded[: len(text)] = text
    texts = [torch.empty_like(padded) for _ in range(size())]
    dist.all_gather(texts, padded)
    return [json.loads(t[: int(length)].numpy().tobytes()) for t, length in zip(texts, lengths, strict=True)]


def of_first(value: Any) -> Any:
    """What the first rank says, on all: for what only one of them may decide."""
    return gathered(value if is_first() else None)[0]


def alike(values: dict[str, Any]) -> None:
    """TrainError unless all ranks have the same values under the same names."""
    for number, others in enumerate(gathered(values)):
        for what, value in json.loads(json.dumps(values)).items():
            if others[what] != value:
                raise TrainError(f"{what}: another one on rank {number}. All ranks must start with the same files.")


def wait() -> None:
    """Go on when all ranks have come here."""
    gathered(None)


@contextmanager
def first_before_others() -> Iterator[None]:
    """Within, the first rank is done before the others begin: it makes a file, and they find it."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


def need_sharding() -> None:
    """TrainError where this torch cannot deal weights to ranks as `shard` does."""
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise TrainError(f"dealing weights to ranks needs torch 2.13 or later, and this is {torch.__version__}.")


def shard(model: Any, device: torch.device, *, low_precision: bool, cpu_offload: bool) -> None:
    """Deal the model's weights to all ranks; on each, forward and backward then gather a layer at a time.

    Gradients are summed over the ranks, not averaged: the loss is divided by the whole step's pairs already.
    """
    need_sharding()
    if not dist.is_initialized():  # one process that offloads
        dist.init_process_group(backend(), store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh(device.type, (size(),))
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if cpu_offload else OffloadPolicy()
    layers = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False) if low_precision else None
    # Resharded after forward, the root too: a pass without backward would leave stale weights behind otherwise.
    for layer in _layers(model):
        fully_shard(
            layer,
            mesh=mesh,
            mp_policy=layers or MixedPrecisionPolicy(),
            offload_policy=offload,
            reshard_after_forward=True,
        )
    fully_shard(model, mesh=mesh, offload_policy=offload, reshard_after_forward=True)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    model.set_reduce_scatter_unused_params(True)  # an expert that no token of this rank went to


def _layers(model: Any) -> nn.ModuleList:
    """The list of modules that holds most of the parameters."""
    lists = [module for module in backbone(model).modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise TrainError(f"{type(model).__name__} has no list of layers, so its weights cannot be dealt to ranks.")
    return max(lists, key=lambda modules: sum(parameter.numel() for parameter in modules.parameters()))


def sum_gradients(parameters: list[nn.Parameter]) -> None:
    """Sum the gradients of parameters that each rank holds whole; those of sharded ones are summed already."""
    mine = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
    if size() == 1 or not mine:
        return
    for parameter in mine:
        if parameter.grad is None:  # no bin of this rank came through it
            parameter.grad = torch.zeros_like(parameter)
    grads = [parameter.grad for parameter in mine if parameter.grad is not None]
    total = summed(torch.cat([grad.flatten() for grad in grads]))
    for grad, part in zip(grads, total.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor, whose parts the ranks hold; all of them must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def rows_of(tensor: Tensor) -> slice:
    """Which rows of the whole tensor `local` has: FSDP deals them as `torch.chunk` does."""
    if not isinstance(tensor, DTensor):
        return slice(0, len(tensor))
    share = -(-len(tensor) // size())
    return slice(min(rank() * share, len(tensor)), min((rank() + 1) * share, len(tensor)))
