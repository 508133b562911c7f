"""LoRA: the weights stay as they are, and low-rank updates of some of them learn; QLoRA: and the weights are 4-bit.

A model may also *be* an adapter: a folder with `adapter_config.json`, as peft and TRL leave after supervised
fine-tuning. It is merged into its base when it is loaded, in float32, and the sum is the model: preferences start from
the fine-tuned model, the reference is that model too, and a new adapter goes on top.

Frozen weights that a float32 model got from a 16-bit file are held in 16 bits again when the computation is, which
halves their memory and changes no bit: autocast would round them to the same numbers for every product. A weight that
16 bits cannot hold exactly stays float32.

QLoRA (arXiv:2305.14314) holds all linear layers but the head in NF4, with doubly quantised scales, by bitsandbytes on
CUDA. The reference is the quantised model, so that the first loss is ln 2. The result is the model that was trained:
its layers dequantised, plus the update, in float32. That is not the unquantised base plus the update.

The adapter alone is left with `merge = false`: it belongs to a base that others can load, so the start must have been a
model in a folder or on the Hub, not random weights or itself a base with an adapter.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.utils import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from prefkit.errors import TrainError, did_you_mean, one_line

WEIGHTS_FILE = "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Lora:
    """`lora = { … }` of a phase (arXiv:2106.09685)."""

    r: Annotated[int, Ge(1)] = 16  # rank of the updates
    alpha: Annotated[float, Gt(0)] = 32  # an update counts alpha / r
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0  # of what goes into the updates
    target_modules: str | list[str] = "all-linear"  # all linear layers but the head; or names, or a pattern
    use_rslora: bool = False  # alpha / sqrt(r) instead (arXiv:2312.03732)
    quantize: Literal["nf4"] | None = None  # the frozen layers in 4 bits; CUDA with bitsandbytes
    merge: bool = True  # leave the sum, with the adapter beside it; or the adapter alone


def need(lora: Lora) -> None:
    """TrainError without peft, or where the weights cannot be quantised."""
    _need_peft("lora")
    if lora.quantize is None:
        return
    if not torch.cuda.is_available():
        raise TrainError(f'lora: quantize = "{lora.quantize}" needs a CUDA device, and this machine has none.')
    if not find_spec("bitsandbytes"):
        raise TrainError(f'lora: quantize = "{lora.quantize}" needs bitsandbytes: pip install bitsandbytes.')


def prepare(model: Any, lora: Lora, dtype: torch.dtype) -> None:
    """What must be done to the start before anything is computed with it: quantise it, if asked.

    TrainError where the adapter alone would have no base, where it does not fit, or for what `need` finds.
    """
    need(lora)
    check_fits(model, lora)
    if not lora.merge and hasattr(model, "prefkit_adapter"):
        raise TrainError(
            f"lora: merge = false would leave an adapter of {model.prefkit_adapter}, which is a base with an adapter "
            "itself. Leave merge out, or merge that one first."
        )
    if lora.quantize is not None:
        quantise(model, dtype, torch.device("cuda"))


def check_fits(model: Any, lora: Lora) -> None:
    """TrainError where the adapter cannot be put on the model; tried on one without weights, which costs nothing.

    The real one gets its adapter when the reference is computed, which takes long.
    """
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is worth a warning is said when the real one gets it
        add(type(model)._from_config(model.config), lora, torch.float32)


def _peft_model(model: Any, config: Any) -> Any:
    """The model with adapters, without transformers' warning about the name of a property that peft asks for."""
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(model, config)


def _need_peft(what: str) -> None:
    if not find_spec("peft"):
        raise TrainError(f"{what} needs peft: pip install peft.")


def quantise(model: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Replace all linear layers but the head by 4-bit ones, which compute in `dtype`, and put the model on `device`."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    head = model.get_output_embeddings()
    for name, linear in list(model.named_modules()):
        if type(linear) is nn.Linear and linear is not head:
            kwargs = {"bias": linear.bias is not None, "compute_dtype": dtype, "quant_type": "nf4"}
            small = Linear4bit(linear.in_features, linear.out_features, device="meta", **kwargs)
            small.weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
            small.bias = linear.bias
            model.set_submodule(name, small)
    model.to(device)  # which is when they are quantised, one after another
    model.is_loaded_in_4bit = True  # what peft asks for


def add(model: Any, lora: Lora, dtype: torch.dtype) -> Any:
    """The model with a new adapter, which alone learns; for a computation in `dtype`."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import BaseTunerLayer

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        use_rslora=lora.use_rslora,
        task_type="CAUSAL_LM",
    )
    _check_targets(model, lora.target_modules)
    shared = _shared_weight(model)
    try:
        adapted = _peft_model(model, config)
    except Exception as error:  # a pattern that is none, modules that are not there or cannot be adapted
        raise TrainError(f"lora: target_modules = {lora.target_modules!r} cannot be used: {one_line(error)}") from error
    for layer in adapted.modules():
        if isinstance(layer, BaseTunerLayer) and getattr(layer.get_base_layer(), "weight", None) is shared is not None:
            raise TrainError(
                f"lora: target_modules = {lora.target_modules!r} includes the embedding or the head, which share one "
                "weight in this model: merged, the adapter of one would change the other. Leave them out."
            )
    _hold_frozen_in(adapted, dtype, but=shared)
    return adapted


def _check_targets(model: Any, targets: str | list[str]) -> None:
    """TrainError for a name in a list of modules that none has: peft only minds where all of them are wrong."""
    names = [name for name, _ in model.named_modules()]
    for target in targets if isinstance(targets, list) else ():
        if not any(f".{name}".endswith(f".{target}") for name in names):
            linear = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear)}
            raise TrainError(f'lora: target_modules: no module is called "{target}".{did_you_mean(target, linear)}')


def _shared_weight(model: Any) -> Any:
    """The weight that input embedding and head have in common, None if each has its own."""
    entrance, head = model.get_input_embeddings(), model.get_output_embeddings()
    return entrance.weight if head is not None and head.weight is entrance.weight else None


def _hold_frozen_in(model: nn.Module, dtype: torch.dtype, *, but: Tensor | None) -> None:
    """Hold the frozen weights of linear layers in `dtype`, those that it can hold exactly."""
    if dtype == torch.float32:
        return  # as they are
    for module in model.modules():
        weight = module.weight if type(module) is nn.Linear else None
        if weight is None or weight.requires_grad or weight is but:
            continue
        rounded = weight.data.to(dtype)
        if torch.equal(rounded.to(weight.dtype), weight.data):
            weight.data = rounded


def merged(adapted: Any) -> Any:
    """The model with its adapter's update added, in float32; `adapted` is spent."""
    _merge_quantised(adapted)
    for module in adapted.modules():
        if type(module) is nn.Linear:
            module.weight.data = module.weight.data.float()
    return adapted.merge_and_unload()


def _merge_quantised(adapted: Any) -> None:
    """Put plain layers in the place of 4-bit ones, with their updates, if any."""
    base = adapted.get_base_model()
    if not getattr(base, "is_loaded_in_4bit", False):
        return
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(base.named_modules()):
        small = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if not isinstance(small, Linear4bit) or name.endswith(".base_layer"):  # that goes with the layer around it
            continue
        plain = nn.Linear(small.in_features, small.out_features, bias=small.bias is not None, device="meta")
        weight = dequantize_4bit(small.weight.data, small.weight.quant_state).float()
        if module is not small:
            weight += module.get_delta_weight("default").float()
        plain.weight, plain.bias = nn.Parameter(weight, requires_grad=False), small.bias
        base.set_submodule(name, plain)
    base.is_loaded_in_4bit = False


def save_alone(adapted: Any, folder: Path) -> None:
    """Write the adapter, with the place of its base, for peft's `from_pretrained`."""
    config = adapted.peft_config["default"]
    base = config.base_model_name_or_path
    if base and Path(base).is_dir():
        config.base_model_name_or_path = str(Path(base).resolve())
    adapted.save_pretrained(folder, save_embedding_layers=False)


def base_of(name: str | Path, *, local_files_only: bool) -> str | None:
    """The model that an adapter belongs to, by path or name, maybe an adapter itself; None if `name` is no adapter.

    TrainError if it is unknown, or if adapters in folders name each other in a circle.
    """
    base = _named_base(name, local_files_only=local_files_only)
    at, seen = base, [Path(name).resolve()]
    while at is not None and Path(at).is_dir():
        if Path(at).resolve() in seen:
            raise TrainError(f'adapter "{name}" has no base: {" -> ".join(map(str, seen))} -> {at} is a circle.')
        seen.append(Path(at).resolve())
        at = _named_base(at, local_files_only=True)
    return base


def _named_base(name: str | Path, *, local_files_only: bool) -> str | None:
    file = find_adapter_config_file(str(name), local_files_only=local_files_only)
    if file is None:
        return None
    try:
        base = json.loads(Path(file).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise TrainError(f"{file}: not the configuration of an adapter ({one_line(error)}).") from error
    if not base:
        raise TrainError(f'{file}: base_model_name_or_path is missing, so the base of adapter "{name}" is not known.')
    beside = Path(name) / base
    return str(beside) if beside.is_dir() else str(base)


def merge_into(model: Any, name: str | Path, *, local_files_only: bool) -> Any:
    """The base `model` with the update of the adapter `name` added, in float32.

    TrainError for an adapter that is not safetensors, does not fit, or is of a kind that has no sum with its base.
    """
    _need_peft(f'adapter "{name}"')
    try:
        file = cached_file(str(name), WEIGHTS_FILE, local_files_only=local_files_only)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*tie_word_embeddings", UserWarning)  # `_sum` sees to tied weights
            result = _sum(model, str(name), load_file(file))
    except Exception as error:  # peft, transformers and safetensors each raise their own for what does not fit
        why = error if isinstance(error, TrainError) else one_line(error)
        raise TrainError(f'adapter "{name}" cannot be merged into its base: {why}') from error
    result.prefkit_adapter = str(name)
    return result


def _sum(model: Any, name: str, weights: dict[str, Tensor]) -> Any:
    """The model with the update that the adapter's configuration makes of its weights; TrainError if there is none."""
    from peft import PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict

    head, shared = model.get_output_embeddings(), _shared_weight(model)
    config = PeftConfig.from_pretrained(name)
    adapted = _peft_model(model, config)
    if not hasattr(adapted.base_model, "merge_and_unload"):
        raise TrainError(f"{config.peft_type.value} has no sum with its base.")
    if getattr(config, "layer_replication", None):
        raise TrainError("layer_replication gives one weight several updates, which have no sum.")
    saved = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
    found = set_peft_model_state_dict(adapted, weights)
    # Keys of the base are missing by nature. Of those of the adapter, which carry its name, files lack what peft makes
    # anew, and older ones call some differently: it is lacking if peft misses something and the file has not all.
    lacks = any(".default" in key for key in found.missing_keys)
    if wrong := [*found.unexpected_keys, *(sorted(saved - weights.keys()) if lacks else [])]:
        raise TrainError(f"it does not fit: {', '.join(wrong[:3])}.")
    if shared is not None:
        head.weight = nn.Parameter(shared.detach().clone())  # or what is added to one is added to both
    result = adapted.merge_and_unload().requires_grad_(True)
    if shared is not None:
        _tie_again(result)
    return result


def _tie_again(model: Any) -> None:
    """Let embedding and head have one weight as before, if the adapter made the same of both; else one each for good.

    The configuration must say which, or whoever loads the model would take one for the other.
    """
    entrance, head = model.get_input_embeddings(), model.get_output_embeddings()
    model.config.tie_word_embeddings = torch.equal(entrance.weight, head.weight)
    if model.config.tie_word_embeddings:
        head.weight = entrance.weight
