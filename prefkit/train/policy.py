"""The model that learns: load or create it, set precision, and compute log-probabilities with it.

Precision. Weights are always held, updated and saved in float32. `dtype = "bfloat16"` runs the forward and backward
passes under autocast: matrix products in bfloat16, sums and losses in float32. Pure bfloat16 weights would lose most
DPO updates, since at a learning rate of 1e-6 a step is smaller than bfloat16's resolution of three digits: there is no
option for them. The price is memory: 16 bytes a trained parameter with AdamW. Weights that LoRA freezes are held in 16
bits where that loses nothing (`adapters.py`).

Dropout and router noise are switched off wherever the model has any, as TRL does by default: with it, policy and
reference would differ in noise before the first step. LoRA's own dropout is an option, and honoured.

Models come as safetensors only, so loading one runs no code; code that comes with a model runs only if
`trust_remote_code` says so.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.utils import logging as transformers_logging

from prefkit.errors import TrainError, UsageError, did_you_mean, nearest, one_line
from prefkit.train import adapters, attention, blocks, parallel, router
from prefkit.train.adapters import Lora
from prefkit.train.hub import local_files_only
from prefkit.train.logps import check_head, padded_token_logps, sequence_sums, token_logps
from prefkit.train.pack import Bin

Dtype = Literal["float32", "bfloat16"]
OF_MAIN_MEMORY = "DefaultCPUAllocator: can't allocate memory"  # all that tells this RuntimeError from another


@dataclass(frozen=True)
class Policy:
    """A model ready for log-probabilities. `padded_because`: why it takes the padded path instead of token trees.

    `sharded`: each rank holds a part of every weight, so all of them must make the same calls.
    `router_losses`: what the bins of a step have added to its router loss so far, if the model asks for one.
    """

    model: Any
    device: torch.device
    dtype: Dtype
    padded_because: str | None
    sharded: bool = False
    router_losses: list[Tensor] = field(default_factory=list)

    def sequence_logps(self, bin: Bin) -> Tensor:
        """Summed log-probability of the completion of each sequence of a bin, float32."""
        return sequence_sums(self._token_logps(bin), bin.to(self.device))

    def weighted_logps(self, bin: Bin) -> tuple[Tensor, Tensor]:
        """`sequence_logps`, and without gradient how much each sequence is the model's own: its weight in WPO.

        ``exp(1 / L sum_t (log p_t - log sum_v p_t(v)^2))``, 1 where the model would itself have written it (Zhou et
        al. 2024, arXiv:2406.11827, eq. 2).
        """
        logps_C, agreement_C = self._token_logps(bin, agreement=True)
        bin = bin.to(self.device)
        return sequence_sums(logps_C, bin), (sequence_sums(agreement_C, bin) / bin.sequence_length_Q).exp().detach()

    def _token_logps(self, bin: Bin, *, agreement: bool = False) -> Tensor:
        bin, losses = bin.to(self.device), self.router_losses if torch.is_grad_enabled() else None
        with self.autocast():
            if self.padded_because is None:
                return token_logps(self.model, bin, agreement=agreement, router_losses=losses)
            # Ranks with parts of the weights must all make the same number of passes, so a bin is one of them.
            bounded = not self.sharded
            return padded_token_logps(self.model, bin, agreement=agreement, router_losses=losses, bounded=bounded)

    def take_router_loss(self) -> dict[str, float]:
        """The router loss of the step, of all ranks, to be logged; nothing where the model asks for none."""
        if not self.router_losses:
            return {}
        total = parallel.summed(torch.stack(self.router_losses).sum().double().cpu())
        self.router_losses.clear()
        return {"router_loss": total.item()}

    def autocast(self) -> torch.autocast:
        """The precision of the computation."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16")

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that learn, by name, each once even if the model ties it to another."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def has_adapter(self) -> bool:
        return hasattr(self.model, "disable_adapter")


def own_device() -> torch.device:
    """Where this process computes."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def quiet_transformers() -> None:
    """No progress bars for loading and writing weights: they would cut through the run's own progress."""
    transformers_logging.disable_progress_bar()


def load(name: str | Path, *, trust_remote_code: bool = False) -> Any:
    """A causal language model in float32, by name or path; an adapter is merged into its base.

    TrainError where there is none, none as safetensors, or one whose weights are not all there.
    """
    local = local_files_only(name)
    base = adapters.base_of(name, local_files_only=local)
    if base is not None:
        return adapters.merge_into(load(base, trust_remote_code=trust_remote_code), name, local_files_only=local)
    options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True, "local_files_only": local}
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what it reports of missing weights becomes an error below
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            name,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # and refused below
            **options,
        )
    except Exception as error:  # broken files make transformers, safetensors and code of the model raise anything
        raise TrainError(f'model "{name}" cannot be loaded: {one_line(error)}') from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    _check_all_loaded(name, found)
    return model


def _check_all_loaded(name: str | Path, found: dict[str, Any]) -> None:
    """TrainError if transformers made up weights that the files lack; a tied head is none of them."""
    mismatched = [entry[0] for entry in found["mismatched_keys"]]
    for what, keys in (("are missing", found["missing_keys"]), ("have another shape", mismatched)):
        if keys:
            shown = ", ".join(sorted(keys)[:4]) + (" …" if len(keys) > 4 else "")
            raise TrainError(f'model "{name}" cannot be loaded: {len(keys)} of its weights {what}: {shown}.')


def create(config: dict[str, Any], tokenizer: Any, *, seed: int) -> Any:
    """A model with random weights from a configuration; vocabulary and special tokens default to the tokenizer's."""
    options = dict(config)
    model_type = options.pop("model_type", None)
    if model_type is None:
        raise UsageError('[model] config: model_type is missing, for example config = { model_type = "llama", … }.')
    try:
        known = AutoConfig.for_model(model_type)
    except Exception as error:
        hint = nearest(str(model_type), CONFIG_MAPPING)
        raise UsageError(f'[model] config: transformers knows no model_type "{model_type}".{hint}') from error
    for key in options:
        if key not in known.to_dict():
            raise UsageError(f'[model] config: {model_type} has no "{key}".{did_you_mean(key, known.to_dict())}')
    special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    torch.manual_seed(seed)
    settings = {"vocab_size": len(tokenizer), **special, **options}
    try:
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings), dtype=torch.float32)
    except Exception as error:  # each architecture checks its values in its own way, or trips over them
        unknown = error.args[0] if isinstance(error, KeyError) and error.args else None
        of = [key for key, value in options.items() if isinstance(unknown, str) and unknown in str(value)]
        reason = f'{of[0]}: it knows no "{unknown}"' if of else one_line(error)
        raise UsageError(f"[model] config: no {model_type} can be made of these values: {reason}") from error


def ready(model: Any, *, dtype: Dtype, kernel: attention.Kernel = "auto", to_shard: bool = False) -> Policy:
    """Put a model on the device, without dropout, with tree attention where it can have it.

    One that is `to_shard` stays in main memory: the whole of it may not fit the device.
    """
    device = own_device()
    without_dropout(model)
    check_head(model)
    router.check(model)
    _check_no_noise(model if to_shard else model.to(device))
    padded_because = attention.supports(model)
    if padded_because is None:
        attention.enable(model, attention.choose(kernel, device, getattr(torch, dtype)))
    elif kernel == "varlen":
        raise TrainError(f'attention = "varlen" has no effect on padded batches, and {padded_because}.')
    return Policy(model, device, dtype, padded_because)


def shard(whole: Policy, *, cpu_offload: bool) -> Policy:
    """Deal the weights of a policy to all ranks; with `cpu_offload` they stay in main memory but for a layer."""
    low_precision = whole.dtype == "bfloat16"
    parallel.shard(whole.model, whole.device, low_precision=low_precision, cpu_offload=cpu_offload)
    return replace(whole, sharded=True)


def frozen_copy(policy: Policy) -> Policy:
    """A copy that does not learn: the live reference."""
    model = copy.deepcopy(policy.model).eval().requires_grad_(False)
    blocks.plain(model)
    return replace(policy, model=model)


@contextlib.contextmanager
def limits_named(what: str, mend: Callable[[], str]) -> Iterator[None]:
    """Too little memory, on a device or of the machine, and a compiler that fails, are one sentence each: TrainError,
    with the mend."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainError(f"{what}: the device has not enough memory. {mend()} ({one_line(error)})") from error
    except TorchDynamoException as error:
        raise TrainError(f"{what}: torch cannot compile the layers. Leave compile out. ({one_line(error)})") from error
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and OF_MAIN_MEMORY not in str(error):
            raise
        raise TrainError(f"{what}: the machine has not enough memory. {mend()} ({one_line(error)})") from error


@contextlib.contextmanager
def adapter_off(policy: Policy) -> Iterator[Policy]:
    """The policy without its LoRA adapter: the reference of a LoRA phase."""
    training = policy.model.training
    with policy.model.disable_adapter():
        policy.model.eval()
        yield policy
    policy.model.train(training)


def without_dropout(model: nn.Module) -> None:
    """Set every rate of dropout and of router noise to 0, of the modules and of the configurations that they read.

    What the configurations had is kept in the model, for `own_config` to put back while it is saved or hashed.
    """
    configs: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if _is_noise(name, value):
                setattr(module, name, 0.0)
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig):
            configs[id(config)] = config
    kept = [(config, key, value) for config in configs.values() for key, value in vars(config).items()]
    kept = [(config, key, value) for config, key, value in kept if _is_noise(key, value) and value]
    for config, key, _ in kept:
        setattr(config, key, 0.0)
    before: list[tuple[Any, str, float]] = getattr(model, "prefkit_noise", [])
    vars(model)["prefkit_noise"] = [*before, *kept]


def _is_noise(name: str, value: Any) -> bool:
    return ("drop" in name or "jitter" in name) and isinstance(value, float)


@contextlib.contextmanager
def own_config(model: Any) -> Iterator[None]:
    """Within, the model's configuration has the rates of dropout that it came with."""
    kept = getattr(model, "prefkit_noise", [])
    for config, key, value in kept:
        setattr(config, key, value)
    try:
        yield
    finally:
        for config, key, _ in kept:
            setattr(config, key, 0.0)


@torch.no_grad()
def _check_no_noise(model: Any) -> None:
    """TrainError if the model still computes something else in training than in evaluation."""
    tokens = torch.arange(8, device=model.device)[None] % model.get_input_embeddings().num_embeddings
    training = model.training
    learning, still = (model.train(mode)(input_ids=tokens, use_cache=False).logits.float() for mode in (True, False))
    model.train(training)
    if not torch.allclose(learning, still, rtol=1e-4, atol=1e-4 * still.abs().max().item(), equal_nan=True):
        raise TrainError(
            f"{type(model).__name__} computes something else in training than in evaluation, although dropout is off: "
            "policy and reference would differ in noise. Switch it off in the model's config.json."
        )


def add_lora(policy: Policy, lora: Lora) -> Policy:
    """The policy with a new LoRA adapter, which alone learns."""
    return replace(policy, model=adapters.add(policy.model, lora, getattr(torch, policy.dtype)))


def weights_hash(model: Any) -> str:
    """SHA-256 over configuration, weights and saved buffers (a router's bias): what log-probabilities depend on."""
    unrelated = ("_name_or_path", "transformers_version", "dtype", "architectures")
    with own_config(model):
        config = {key: value for key, value in model.config.to_diff_dict().items() if key not in unrelated}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    saved = model.state_dict(keep_vars=True)  # the other buffers follow from the configuration
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
    for name, value in sorted({**dict(model.named_parameters()), **buffers}.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        scales = getattr(value, "quant_state", None)  # of a 4-bit weight, whose codes alone say little
        for tensor in (value, *(scales.as_dict(packed=True).values() if scales else ())):
            of_all = parallel.whole(tensor.detach())
            digest.update(of_all.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_fits(model: Any, tokenizer: Any, longest: int) -> None:
    """TrainError if the tokenizer has more entries than the model, or a sequence more tokens than it has positions."""
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise TrainError(
            f"the tokenizer has {len(tokenizer)} entries, the model only {rows}: they do not belong together."
        )
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and longest > positions:
        raise TrainError(
            f"the longest sequence has {longest} tokens, the model {positions} positions: lower max_length to that "
            "(prefkit evaluate: --max-length)."
        )
