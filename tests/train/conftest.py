"""Models small enough to run a hundred times in a test, and random token trees to run them on."""

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
import transformers
from hypothesis import strategies as st

from prefkit.train.pack import Sequence, build_tree

VOCABULARY = 61
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = {"head_dim": 8, "sliding_window": 5}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}

# Architecture -> what its configuration class needs; windows are shorter than the sequences of the tests.
TREE_MODELS = {
    "Llama": {**SHAPE, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "Qwen3": {**SHAPE, "head_dim": 8, "tie_word_embeddings": True},
    "Mistral": {**SHAPE, **WINDOW},
    "Qwen2": {**SHAPE, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "Gemma2": {**SHAPE, **WINDOW, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    "Gemma3Text": {**SHAPE, **WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "GptOss": {**SHAPE, **WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
    "GPT2": {**GPT2, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "GPTNeoX": {key: value for key, value in SHAPE.items() if key != "num_key_value_heads"},
    "Phi3": SHAPE,
    "Olmo2": SHAPE,
    "Mixtral": {**SHAPE, "num_local_experts": 4},
    "Qwen3Moe": {**SHAPE, **MIXTURE, "head_dim": 8},
    "Cohere": SHAPE,
    "Granite": {**SHAPE, "logits_scaling": 3.0},
}


def make_model(name: str, **overrides):
    """A random model whose attention is sharp enough for a leak to show (initial weights alone give near-uniform)."""
    config = getattr(transformers, f"{name}Config")(**{**TREE_MODELS.get(name, SHAPE), **overrides})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() > 1 or key.endswith("sinks"):
                parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return model.eval()


@st.composite
def sequence_lists(draw, alphabet: int = 3, longest: int = 14):
    """Sequences over few tokens, so that prefixes are shared everywhere; some repeat, or are cut short."""
    token = st.integers(3, 2 + alphabet)
    prompt = draw(st.lists(token, min_size=1, max_size=8))
    sequences = []
    for _ in range(draw(st.integers(1, 5))):
        if sequences and draw(st.booleans()):
            other = list(draw(st.sampled_from(sequences)).tokens)
            tokens = other[: draw(st.integers(2, len(other)))] + draw(st.lists(token, max_size=longest // 2))
        else:
            tokens = prompt + draw(st.lists(token, min_size=1, max_size=longest))
        start = draw(st.integers(1, len(tokens) - 1))
        sequences.append(Sequence(np.array(tokens, dtype=np.int32), start))
    return sequences


def tree_of(sequences, pairs=None):
    """The tree of some sequences, each paired with the next if nothing else is said."""
    pairs = [(i, (i + 1) % len(sequences)) for i in range(len(sequences))] if pairs is None else pairs
    return build_tree(sequences, pairs, pair_rows=range(len(pairs)), sequence_rows=range(len(sequences)))
