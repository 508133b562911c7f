"""How fast trees are built, and what they save: tree against padded forward and backward, one core, float32.

    OMP_NUM_THREADS=1 python tests/benchmarks/pack_and_attention.py

Lengths are drawn like UltraFeedback's: prompts and answers log-normal, four answers a prompt, all six pairs. The padded
side is what a trainer without sharing does: both sequences of each pair a row, four pairs a batch, and the same chunked
completion-only head, so that the difference is the trees alone.
"""

import itertools
import time

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prefkit.train import attention
from prefkit.train.logps import padded_token_logps, sequence_sums, token_logps
from prefkit.train.pack import Sequence, build_tree, collate, pack, tree_size

VOCABULARY, MAX_TOKENS, MAX_LENGTH = 4096, 4096, 1024
PAIRS = list(itertools.combinations(range(4), 2))


def ultrafeedback(prompts: int, rng: np.random.Generator) -> list[list[Sequence]]:
    """Token sequences of `prompts` prompts with four answers each."""
    groups = []
    for _ in range(prompts):
        length = min(int(rng.lognormal(4.8, 0.9)) + 8, MAX_LENGTH // 2)
        prompt = rng.integers(3, VOCABULARY, length)
        answers = [
            rng.integers(3, VOCABULARY, min(int(rng.lognormal(5.4, 0.7)) + 4, MAX_LENGTH // 2)) for _ in range(4)
        ]
        groups.append([Sequence(np.concatenate([prompt, a]).astype(np.int32), length) for a in answers])
    return groups


def tree(group: list[Sequence], pairs: list[tuple[int, int]]):
    return build_tree(group, pairs, pair_rows=range(len(pairs)), sequence_rows=range(len(group)))


def timed(function, repeats: int = 3) -> float:
    """Best of some runs, in seconds."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


def packing(groups: list[list[Sequence]]) -> None:
    tokens = sum(len(s.tokens) for group in groups for s in group)
    trees = [tree(group, PAIRS) for group in groups]
    bins = pack([t.size for t in trees], MAX_TOKENS)
    seconds = {
        "tree_size": timed(lambda: [tree_size(group) for group in groups]),
        "build_tree": timed(lambda: [tree(group, PAIRS) for group in groups]),
        "pack": timed(lambda: pack([t.size for t in trees], MAX_TOKENS)),
        "collate": timed(lambda: [collate([trees[i] for i in bin]) for bin in bins]),
    }
    print(f"{len(groups)} prompts, {tokens:,} tokens in {4 * len(groups)} sequences")
    for name, value in seconds.items():
        print(f"  {name:10} {tokens / value / 1e6:6.1f} M tokens/s   {value / len(groups) * 1e6:6.1f} us a prompt")
    print(f"  bins {sum(t.size for t in trees) / len(bins) / MAX_TOKENS:.1%} full")


def training(groups: list[list[Sequence]]) -> None:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config)
    trees = [tree(group, PAIRS) for group in groups]
    tree_bins = [collate([trees[i] for i in bin]) for bin in pack([t.size for t in trees], MAX_TOKENS)]
    pairs = [tree([group[i], group[j]], [(0, 1)]) for group in groups for i, j in PAIRS]
    padded_bins = [collate(pairs[i : i + 4]) for i in range(0, len(pairs), 4)]

    def run(compute, bins):
        for bin in bins:
            sequence_sums(compute(model, bin), bin).sum().backward()

    padded = timed(lambda: run(padded_token_logps, padded_bins), repeats=2)
    attention.enable(model)
    shared = timed(lambda: run(token_logps, tree_bins), repeats=2)
    tokens = sum(b.input_ids_1T.numel() for b in tree_bins)
    rows = sum(8 * (b.max_position + 1) for b in padded_bins)
    count = len(groups) * len(PAIRS)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, forward and backward, {count} pairs")
    print(f"  padded rows {count / padded:6.2f} pairs/s   {rows:,} tokens")
    print(f"  token trees {count / shared:6.2f} pairs/s   {tokens:,} tokens   {padded / shared:.1f} times as fast")


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    rng = np.random.default_rng(0)
    packing(ultrafeedback(400, rng))
    training(ultrafeedback(8, rng))
