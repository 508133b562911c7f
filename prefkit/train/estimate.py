"""`prefkit train --dry-run`: what each phase would do, what memory it takes, and how long, without weights or training.

The model is made of tensors without storage (torch's FakeTensorMode), so parameters are counted and not modelled, and
what its layers hold and compute is measured on such tokens, as `prefkit.train.blocks` measures it on real ones:
exact for dense architectures and mixtures of experts (`experts.py`), of any size. With N parameters, of which n learn,
T = `max_tokens`, and d, V the width and the vocabulary:

    weights      4 N bytes, float32; under an adapter 2 for those of linear layers, if the computation and the
                 model's files are in 16 bits, and 0.516 as NF4 (arXiv:2305.14314)
    gradients    4 n                      AdamW   8 n, or 2.03 n with moments in 8 bits
    copies       about 2 N                weights in bfloat16 that autocast keeps while a forward goes on, or the layers
                                          until the backward pass; none under an adapter, whose weights are in 16 bits
    live         4 N                      a second model, where `reference = "live"` and there is no adapter
    activations  T x measured             in a sequence of `max_length` tokens, with the masks that a CPU needs; up to a
                                          fifth less with an adapter; or the GiB that the option gives
    head         8 min(T V, 2^26)         a chunk of logits and its gradient; 4 T d for the hidden states; 2 V d for its
                                          copy in bfloat16, and 4 V d for the gradient of a bin, where it learns

Tokens are those of the first rows of the train split, tokenised, times the number of rows; the shards' order is a
hash, so these are a sample. FLOPs, with a multiplication and an addition counted as two:

    forward      C (a + b L / 2) + 2 d V A      C tokens computed, L the mean length of a sequence, A answer tokens;
                                                a, b measured: 2 for each weight of a layer that
                                                a token uses; 4 width for each position
    backward     twice that; once with an adapter, since frozen weights need no gradient
    whole step   one forward more, for losses that look at all pairs of a step
    recompute    once the layers', with activation_checkpointing = "full"
    reference    one forward over the data; every step if live

Not in the figures: evaluation, samples, what the allocator wastes, filters and caps of the phase. For several ranks
that shard the model, weights, gradients, AdamW and copies are divided among them.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from prefkit.errors import TrainError, one_line
from prefkit.manifest import Manifest
from prefkit.train import attention, blocks, chat, experts, labelled, policy, shards, splits, tokenizer
from prefkit.train.adapters import Lora
from prefkit.train.attention import backbone
from prefkit.train.beside import with_mismatched
from prefkit.train.chat import Tokenising
from prefkit.train.hub import local_files_only
from prefkit.train.logps import CHUNK_LOGITS
from prefkit.train.objective import Preference, of_phase, tokenising
from prefkit.train.options import Phase, TrainOptions
from prefkit.train.policy import Policy
from prefkit.train.store import length_hint

TFLOPS = 400.0  # 10^12 FLOP/s that an H100 really reaches, at 40 % of its peak
PROBE = 64  # tokens
GIB = 2**30
NF4_BYTES = 4.127 / 8  # a weight, with its doubly quantised scales
MOMENTS_BYTES = {"adamw": 8, "adamw_8bit": 2 + 8 / 256}  # a parameter; a scale for each block of 256 codes


class Tokens(NamedTuple):
    """Means over rows of the train split: tokens computed, tokens of answers, and the length of a sequence."""

    computed: float
    answers: float
    length: float


class Size(NamedTuple):
    """What a model is, holds and computes, counted on fake tensors."""

    parameters: int
    active: int  # that a token uses: not those of experts which it is not sent to
    learning: int
    linear: int  # parameters of linear layers other than the head
    width: int
    vocabulary: int
    tied: bool  # the head's weight is the embedding's, which an adapter leaves in float32
    copies: float  # bytes that the layers hold however few the tokens
    activations: float  # bytes a token
    flops: float  # of the layers' forward, a token
    flops_a_position: float  # more for each token that a token sees


def plan(options: TrainOptions, data: Path | str, *, max_steps: int | None, tflops: float) -> list[dict[str, Any]]:
    """What each phase would do, with estimates; `tflops` is the speed that the hardware reaches, in 10^12 FLOP/s.

    Where model or tokenizer are out of reach, `estimate` says why there is none. Wrong options are errors as in
    training.
    """
    manifest = shards.to_learn_from(data)
    planned = outline(options, manifest, max_steps=max_steps)
    with tempfile.TemporaryDirectory() as scratch:
        folder = data if isinstance(data, Path) else shards.mirror(data, manifest, Path(scratch))
        splits.check(options, folder, manifest)
        try:
            words = tokenizer.of_run(options, folder, manifest, Path(scratch))
            for phase, losses, entry in zip(options.phases, options.losses, planned, strict=True):
                how = tokenising(phase, of_phase(phase, losses), manifest.kind)
                tokens = sample(folder, manifest, words, how)
                entry |= estimate(size(options, phase, words), tokens, phase, entry, tflops)
        except TrainError as error:
            return [{**entry, "estimate": f"none, since {error}"} for entry in planned]
    return planned


def outline(options: TrainOptions, manifest: Manifest, *, max_steps: int | None = None) -> list[dict[str, Any]]:
    """The phases by the manifest alone; `steps` is an upper bound, as steps take whole prompts."""
    labelled.check(options, manifest.kind)
    rows = manifest.rows("train")
    phases = []
    for phase, losses in zip(options.phases, options.losses, strict=True):
        repeats = math.prod(max([1.0, *(w or {}).values()]) for w in (phase.source_weights, phase.lang_weights))
        epochs = math.ceil(rows * repeats / phase.pairs_per_step) * phase.epochs
        limits = [epochs, phase.max_steps, max_steps]
        phases.append(
            {
                "phase": phase.name,
                "objective": phase.objective,
                "rows": rows,
                "epochs": phase.epochs,
                "pairs_per_step": phase.pairs_per_step,
                "steps": min(limit for limit in limits if limit is not None),
                "reference": phase.reference if Preference.of(losses).takes_reference else None,
                "whole_step": Preference.of(losses).whole_step,
            }
        )
    return phases


def estimate(size: Size, tokens: Tokens, phase: Phase, entry: dict[str, Any], tflops: float) -> dict[str, Any]:
    """Memory in GiB, tokens, FLOPs and hours of a phase, by the formulas of the module's docstring."""
    rows = min(entry["rows"] * entry["epochs"], entry["steps"] * entry["pairs_per_step"])
    memory = {
        "weights": weights(size, phase),
        "gradients": 4 * size.learning,
        "optimizer": MOMENTS_BYTES[phase.optimizer] * size.learning,
        "copies": copies(size, phase),
        "live reference": 4 * size.parameters if entry["reference"] == "live" and phase.lora is None else 0,
        "activations": activations(size, phase),
        "head": head(size, phase),
    }
    layers = tokens.computed * (size.flops + size.flops_a_position * tokens.length / 2)
    forward = layers + 2 * size.width * size.vocabulary * tokens.answers
    forwards = (3 if phase.lora is None else 2) + entry["whole_step"]
    step = forward * forwards + layers * (phase.activation_checkpointing == "full")
    passes = {"cached": min(rows, entry["rows"]), "live": rows, None: 0}[entry["reference"]]
    flops = rows * step + passes * forward
    return {
        "parameters": size.parameters,
        "active": size.active,
        "learning": size.learning,
        "memory_gib": {
            name: round(value / GIB, 3) for name, value in (memory | {"total": sum(memory.values())}).items()
        },
        "tokens": round(rows * tokens.computed),
        "flops": float(f"{flops:.4g}"),
        "hours": float(f"{flops / tflops / 1e12 / 3600:.3g}"),
        "at_tflops": tflops,
    }


def weights(size: Size, phase: Phase) -> float:
    """Bytes of the weights, those that do not learn in as few as the phase holds them in."""
    saved = 0.0
    if phase.lora is not None and phase.lora["quantize"] is not None:
        saved = 4 - NF4_BYTES
    elif phase.lora is not None and phase.dtype == "bfloat16":
        saved = 2
    return 4 * size.parameters - saved * size.linear


def copies(size: Size, phase: Phase) -> float:
    """Bytes of weights in bfloat16: what the layers hold of them, or what autocast keeps while a forward goes on."""
    if phase.lora is not None or phase.dtype == "float32":
        return 0.0
    return max(size.copies, 2.0 * size.linear)


def head(size: Size, phase: Phase) -> float:
    """Bytes that the head takes: logits and hidden states, its copy in 16 bits, and the gradient of one bin."""
    logits, weight = min(phase.max_tokens * size.vocabulary, CHUNK_LOGITS), size.vocabulary * size.width
    copied = phase.dtype == "bfloat16" and (phase.lora is None or size.tied)
    return 8 * logits + 4 * phase.max_tokens * size.width + weight * (2 * copied + 4 * (phase.lora is None))


def activations(size: Size, phase: Phase) -> float:
    """Bytes that a bin's layers hold for the backward pass: measured, or at most the GiB that the phase allows."""
    held = size.activations * phase.max_tokens
    keeping = phase.activation_checkpointing
    return held if isinstance(keeping, str) else min(held, keeping * GIB)


def size(options: TrainOptions, phase: Phase, words: Any) -> Size:
    """Count a model of fake tensors; TrainError if its configuration is out of reach, or it needs real ones."""
    with FakeTensorMode():
        model = fake(options, words)
        attention.enable(model)
        experts.let_measure(model)
        learning = parameters = sum(p.numel() for p in model.parameters())
        keeping = phase.activation_checkpointing
        if isinstance(keeping, str):
            for layer in blocks.decoder_layers(model):
                blocks.keep(layer, keeping)
        autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=phase.dtype == "bfloat16")
        try:
            copies, held = blocks.bytes_held(model, autocast, phase.longest)
            flops, more = forward_flops(model)
        except Exception as error:  # what depends on values has none to depend on: a loop over experts, for one
            raise TrainError(f"{type(model).__name__} cannot be measured without weights: {one_line(error)}") from error
        active = experts.parameters_active(model)
    if phase.lora is not None:
        with torch.device("meta"):  # peft moves its weights, which fake tensors do not survive
            bare = Policy(fake(options, words), torch.device("meta"), "float32", None)
            learning = sum(p.numel() for p in policy.add_lora(bare, Lora(**phase.lora)).trained().values())
    shape = model.get_input_embeddings()
    output = model.get_output_embeddings()
    layers = (m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not output)
    return Size(
        parameters=parameters,
        active=active,
        learning=learning,
        linear=sum(layer.weight.numel() for layer in layers),
        width=shape.embedding_dim,
        vocabulary=shape.num_embeddings,
        tied=output.weight is shape.weight,
        copies=copies,
        activations=held,
        flops=flops,
        flops_a_position=more,
    )


def fake(options: TrainOptions, words: Any) -> Any:
    """The model of a pipeline without its weights, made of whatever tensors the context makes."""
    model = options.model
    if model.config is not None:
        return policy.create(model.config, words, seed=0)
    name = options.located(model.path or "")
    trust = model.trust_remote_code
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=local_files_only(name), trust_remote_code=trust)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=trust)
    except Exception as error:  # not there, no network, no permission, a broken file: transformers raises anything
        raise TrainError(f'the configuration of "{name}" cannot be read: {one_line(error)}') from error


def forward_flops(model: Any) -> tuple[float, float]:
    """FLOPs of the layers' forward for a token, and for each token that it sees (attention looks at all, here)."""
    model.set_attn_implementation("eager")  # whose matrix products the counter knows

    def of(tokens: int) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            backbone(model)(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
        return counter.get_total_flops()

    less, more = of(PROBE), of(2 * PROBE)
    a_position = (more - 2 * less) / (2 * PROBE**2)
    return less / PROBE - a_position * PROBE, a_position


def sample(data: Path, manifest: Manifest, words: Any, how: Tokenising) -> Tokens:
    """Tokens of a row, from the first rows of the train split."""
    shard = next(shard for shard in manifest.of_split("train") if shard.rows)  # all pairs of a prompt stand in one
    counts: Counter[str] = Counter()
    batch = next(chat.batches_of_prompts(shards.local(data, shard), how))
    built = list(chat.builder(how)(batch, words, how, counts, shard.path))
    if how.mismatched:
        built = with_mismatched(built, how.max_length)
    sequences = [sequence for prompt in built for sequence in prompt.sequences]
    if not sequences:
        raise TrainError(f"of the first rows none is left to train on.{length_hint(counts)}")
    return Tokens(
        computed=sum(prompt.tree_tokens for prompt in built) / counts["rows"],
        answers=sum(len(s.tokens) - s.start for s in sequences) / counts["rows"],
        length=sum(len(s.tokens) for s in sequences) / len(sequences),
    )
