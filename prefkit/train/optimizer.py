"""AdamW over the parameters that learn, with its moments in float32 or in 8 bits.

`adamw` is torch's fused kernel, with 8 bytes of moments a parameter. `adamw_8bit` (Dettmers et al. 2021,
arXiv:2110.02861; bitsandbytes, on CUDA) holds the moments as 8-bit codes with a scale for each block of 256: 2 bytes a
parameter, and float32 for parameters of less than 4,096 elements. Weights and gradients are float32 with both. The
8-bit kernel knows nothing of weights that are dealt to ranks, and is refused there.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prefkit.errors import TrainError
from prefkit.train.policy import Policy

Kind = Literal["adamw", "adamw_8bit"]

# The state of a parameter: what has the parameter's shape, and is dealt to ranks as it is; what is kept whole.
MOMENTS = ("exp_avg", "exp_avg_sq")
WHOLE = ("step", "state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2")


def need(kind: Kind, device: torch.device, *, sharded: bool) -> None:
    """TrainError where 8 bits cannot be."""
    if kind == "adamw":
        return
    if device.type != "cuda":
        raise TrainError('optimizer = "adamw_8bit" needs a CUDA device, and this machine has none.')
    if sharded:
        raise TrainError(
            'optimizer = "adamw_8bit" has no form for weights that are dealt to ranks: use lora, or adamw.'
        )
    if not find_spec("bitsandbytes"):
        raise TrainError('optimizer = "adamw_8bit" needs bitsandbytes: pip install bitsandbytes.')


def make(now: Policy, kind: Kind, *, weight_decay: float, betas: tuple[float, float], eps: float) -> Any:
    """The optimiser; matrices and embeddings decay, norms and biases do not. TrainError for what `need` finds."""
    need(kind, now.device, sharded=now.sharded)
    parameters = list(now.trained().values())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)
    return eight_bit(groups, betas=betas, eps=eps)


def eight_bit(groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float) -> Any:
    """bitsandbytes' AdamW with moments in 8 bits."""
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups, lr=0.0, betas=betas, eps=eps)


def state_of(optimizer: Any, parameter: nn.Parameter) -> dict[str, Tensor]:
    """What a checkpoint keeps of a parameter's state; nothing before the first step."""
    state = optimizer.state.get(parameter, {})
    kept = {key: torch.as_tensor(value) for key, value in state.items()}
    assert kept.keys() <= {*MOMENTS, *WHOLE}, f"a checkpoint would lose {kept.keys()}"
    # One table of codes serves all parameters, and files hold no tensor twice.
    return {key: value.clone() if key.startswith("qmap") else value for key, value in kept.items()}


def settle(optimizer: Any) -> None:
    """After its state was put back: have everything where the kernel wants it."""
    if isinstance(optimizer, torch.optim.AdamW):
        optimizer.load_state_dict(optimizer.state_dict())  # the step count of the fused kernel is on the device
        return
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            state[key] = int(value) if key == "step" else value.to(parameter.device)
