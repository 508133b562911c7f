"""DPO in a loop of your own: prefkit's stream, tree attention, log-probabilities and loss; the rest is plain torch.

    python docs/examples/own_loop.py --data data --model HuggingFaceTB/SmolLM2-135M-Instruct --out aligned

The loss of each step is that of `prefkit train` with the same options, since the steps are the same ones. It resumes
from `OUT/state.pt`, in the middle of an epoch too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import prefkit
from prefkit.train.logps import pair_logps
from prefkit.train.losses import sigmoid
from prefkit.train.policy import frozen_copy, ready


def main() -> list[float]:
    """Train; returns the loss of each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder that prefkit build-pairs wrote")
    parser.add_argument("--model", required=True, help="a Hugging Face model, by path or name")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and the state of the loop")
    parser.add_argument("--pairs-per-step", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=8192, help="of a bin: memory and speed, not the result")
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--max-steps", type=int, help="stop after so many steps; the next call goes on")
    given = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(given.model)
    stream = prefkit.PairStream(given.data, tokenizer, pairs_per_step=given.pairs_per_step, max_tokens=given.max_tokens)
    print(stream.summary)
    # `ready` puts the model on the device, without dropout, and with attention over token trees if it can have it.
    policy = ready(AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32), dtype="float32")
    reference = frozen_copy(policy)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=given.learning_rate, weight_decay=0.0)
    state = given.out / "state.pt"
    if state.exists():
        kept = torch.load(state, weights_only=True)
        policy.model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        stream.load_state_dict(kept["stream"])

    losses = []
    policy.model.train()
    for step in stream:
        optimizer.zero_grad()
        total = 0.0
        for bin in step.bins:  # one after another, so that only one is in memory; their gradients add up
            with torch.no_grad():
                reference_logps = pair_logps(reference.sequence_logps(bin), bin.to(reference.device))
            policy_logps = pair_logps(policy.sequence_logps(bin), bin.to(policy.device))
            output = sigmoid(policy_logps, reference_logps, beta=given.beta)
            loss = output.losses_P.sum() / step.examples  # of the step, not of the bin: the exact mean
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        optimizer.step()
        losses.append(total)
        print(f"step {stream.step} of {len(stream)}: loss {total:.4f}")
        if given.max_steps and len(losses) == given.max_steps:
            break

    given.out.mkdir(parents=True, exist_ok=True)
    kept = {"model": policy.model.state_dict(), "optimizer": optimizer.state_dict(), "stream": stream.state_dict()}
    torch.save(kept, state)
    policy.model.save_pretrained(given.out)
    tokenizer.save_pretrained(given.out)
    return losses


if __name__ == "__main__":
    main()
