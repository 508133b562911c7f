"""Answers of a model to prompts, through transformers' own generation: for looking at them, and for judges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from prefkit.errors import UsageError
from prefkit.train import attention, template
from prefkit.train.template import Message


@torch.no_grad()
def generate(
    model: Any,
    words: Any,
    prompts: Iterable[list[Message]],
    *,
    max_new_tokens: int = 256,
    batch_size: int = 32,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """A model's answer to each prompt, with its own chat template; `words` is the model's tokenizer.

    Greedy at temperature 0, else sampled with `seed` from all that the model says: of the settings that may come with a
    model (top_p, a penalty on repetition), only what ends an answer counts. Prompts of similar length go through
    together, padded on the left, with transformers' own attention. Model and random state are left as they were.
    """
    if max_new_tokens < 1:
        raise UsageError("max_new_tokens must be at least 1.")
    tokens = template.encode(words, list(prompts), open_turn=True)
    answers = [""] * len(tokens)
    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0}
    how = sampling if temperature else {"do_sample": False}
    own = model.generation_config.eos_token_id
    how["eos_token_id"] = words.eos_token_id if own is None else own
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    with _as_transformers_has_it(model), _own_random_state(model.device, seed):
        for first in range(0, len(order), batch_size):
            members = order[first : first + batch_size]
            found = _batch(model, words, [tokens[i] for i in members], max_new_tokens=max_new_tokens, **how)
            for i, answer in zip(members, found, strict=True):
                answers[i] = answer
    return answers


@contextmanager
def _as_transformers_has_it(model: Any) -> Iterator[None]:
    """Within, the model is in evaluation, takes transformers' attention in place of that of token trees, and has no
    settings of its own for generation."""
    inner, training = attention.unwrap(model), model.training
    kernel, settings = inner.config._attn_implementation, inner.generation_config
    inner.set_attn_implementation("sdpa" if inner._supports_sdpa else "eager")
    inner.generation_config = GenerationConfig()
    model.eval()
    try:
        yield
    finally:
        inner.set_attn_implementation(kernel)
        inner.generation_config = settings
        model.train(training)


@contextmanager
def _own_random_state(device: torch.device, seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _batch(model: Any, words: Any, prompts: list[np.ndarray], **how: Any) -> list[str]:
    """Answers to prompts that are padded on the left to the longest of them."""
    pad = words.pad_token_id if words.pad_token_id is not None else words.eos_token_id
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[row, width - len(prompt) :] = 1
    output = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        pad_token_id=pad,
        **how,
    )
    return [words.decode(row[width:], skip_special_tokens=True).strip() for row in output]
