"""prefkit against TRL's DPOTrainer: the same pairs in the same order, the same model and options, one core.

    prefkit build-pairs hh-rlhf test.jsonl.gz --out DIR
    python tests/benchmarks/train_vs_trl.py DIR [--steps 24 --batch 4 --repeats 3 --reference live --dtype float32]

A small random Llama (4 layers of width 256, vocabulary 8,192 by default) is written to a temporary folder; each side
then trains it in a process of its own, pinned to one core, on the steps of prefkit's plan, with its reference model
in memory (`live`) or its log-probabilities computed beforehand (`cached`). Sides alternate. Pairs per second are
measured from the end of the first step to the end of the last, medians of the repeats are quoted. The data set must
have one pair a prompt, so that prefkit's steps are exactly `--batch` pairs; pairs that max_length makes unusable are
left out of both.
Printed as one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--reference", choices=("live", "cached"), default="live")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--max-tokens", type=int, default=8192)
    parser.add_argument("--learning-rate", type=float, default=5e-7)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", choices=("prefkit", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        pin(given.threads)
        print(json.dumps((on_prefkit if given.side == "prefkit" else on_trl)(given)))
        return
    with tempfile.TemporaryDirectory() as work:
        given.work = Path(work)
        write_model(given)
        results: dict[str, list[dict]] = {"prefkit": [], "trl": []}
        for _ in range(given.repeats):
            for side, found in results.items():
                found.append(run_side(side, given))
    print(json.dumps(compare(results, given), indent=1))


def run_side(side: str, given: argparse.Namespace) -> dict:
    """Measure one side in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--work", str(given.work)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def compare(results: dict[str, list[dict]], given: argparse.Namespace) -> dict:
    """Medians, their ratio, and how far the loss curves are apart."""
    speed = {side: statistics.median(run["pairs_per_second"] for run in runs) for side, runs in results.items()}
    ours, theirs = (np.array(results[side][0]["losses"]) for side in ("prefkit", "trl"))
    return {
        "data": str(given.data),
        "steps x pairs": f"{given.steps} x {given.batch}",
        "dtype": given.dtype,
        "reference": given.reference,
        "pairs_per_second": {side: round(value, 2) for side, value in speed.items()},
        "all runs": {side: [round(run["pairs_per_second"], 2) for run in runs] for side, runs in results.items()},
        "ratio": round(speed["prefkit"] / speed["trl"], 2),
        "largest loss difference, first 10 steps": float(np.abs(ours - theirs)[:10].max()),
        "first losses": {"prefkit": ours[:10].tolist(), "trl": theirs[:10].tolist()},
        "peak_rss_mib": {side: round(max(run["peak_rss_mib"] for run in runs)) for side, runs in results.items()},
        "sharing_factor": results["prefkit"][0]["sharing_factor"],
    }


def pin(threads: int) -> None:
    """Use the first `threads` cores and no more, and as many threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)


def write_model(given: argparse.Namespace) -> None:
    """A random Llama with a BPE tokenizer trained on the data set."""
    from prefkit import manifest
    from prefkit.train import policy, tokenizer

    words = tokenizer.train_bpe(given.data, manifest.read(given.data), vocab_size=given.vocab, rows=5000)
    config = {
        "model_type": "llama",
        "hidden_size": given.hidden,
        "intermediate_size": given.hidden * 11 // 4,
        "num_hidden_layers": given.layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
    }
    policy.create(config, words, seed=0).save_pretrained(given.work / "model")
    words.save_pretrained(given.work / "model")


def phase_table(given: argparse.Namespace) -> dict:
    """The phase as a pipeline file would have it: TRL's defaults, a constant learning rate."""
    return {
        "name": "dpo",
        "objective": "sigmoid",
        "pairs_per_step": given.batch,
        "max_tokens": given.max_tokens,
        "max_length": given.max_length,
        "learning_rate": given.learning_rate,
        "schedule": "constant",
        "warmup": 0,
        "max_steps": given.steps,
        "reference": given.reference,
        "dtype": given.dtype,
        "checkpoint_every": 10**6,
    }


def on_prefkit(given: argparse.Namespace) -> dict:
    """Train with prefkit; the clock reads at the end of each step."""
    from prefkit.config import Pipeline
    from prefkit.train import metrics, run

    ends = []

    class Clock(metrics.Silent):
        def update(self, stage: str, done: int, total: int, detail: str = "") -> None:
            if stage == "dpo":
                ends.append(time.perf_counter())

    table = {"model": {"path": str(given.work / "model")}, "train": [phase_table(given)]}
    pipeline = Pipeline("benchmark", Path("benchmark.toml"), "", [], table)
    out = Path(tempfile.mkdtemp(dir=given.work))
    data = train_split_alone(given)
    run.train(pipeline, data=data, out=out / "run", cache=given.work / "cache", progress=Clock())
    lines = [line for line in metrics.read(out / "run") if "loss" in line]
    return figures(given, ends, [line["loss"] for line in lines]) | {
        "sharing_factor": statistics.mean(line["sharing_factor"] for line in lines)
    }


def train_split_alone(given: argparse.Namespace) -> Path:
    """The data set without its test split: TRL's side evaluates nothing either."""
    import dataclasses

    from prefkit import manifest

    made = manifest.read(given.data)
    folder = Path(tempfile.mkdtemp(dir=given.work))
    (folder / "data").symlink_to(given.data.resolve() / "data")
    made = dataclasses.replace(made, shards=made.of_split("train"))
    (folder / "manifest.json").write_text(manifest.dump(made))
    return folder


def on_trl(given: argparse.Namespace) -> dict:
    """Train with TRL on the same steps, in the same order."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    ends, losses = [], []

    class Clock(TrainerCallback):
        def on_step_end(self, *_arguments: object, **_others: object) -> None:
            ends.append(time.perf_counter())

        def on_log(self, *_arguments: object, logs: dict, **_others: object) -> None:
            if "loss" in logs:
                losses.append(float(logs["loss"]))

    class InOrder(DPOTrainer):
        def _get_train_sampler(self, *_arguments: object) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    cached = given.reference == "cached"
    trainer = InOrder(
        model=AutoModelForCausalLM.from_pretrained(given.work / "model", dtype=torch.float32),
        args=DPOConfig(
            output_dir=tempfile.mkdtemp(dir=given.work), per_device_train_batch_size=given.batch, max_steps=given.steps,
            logging_steps=1, report_to=[], save_strategy="no", max_length=given.max_length, warmup_steps=0,
            learning_rate=given.learning_rate, lr_scheduler_type="constant", gradient_checkpointing=False,
            bf16=given.dtype == "bfloat16", precompute_ref_log_probs=cached, use_cpu=True, disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows_in_order(given)),
        processing_class=AutoTokenizer.from_pretrained(given.work / "model"),
        callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    return figures(given, ends, losses)


def rows_in_order(given: argparse.Namespace) -> list[dict]:
    """The pairs of prefkit's first steps, one after another."""
    from prefkit import manifest
    from prefkit.train import chat, run, tokenizer
    from prefkit.train.examples import Examples
    from prefkit.train.options import check_phase

    phase, _ = check_phase(phase_table(given), "benchmark")
    words = tokenizer.load_tokenizer(given.work / "model")
    made = manifest.read(given.data)
    how = chat.Tokenising(phase.max_length or None, phase.max_length_policy, None)
    options = {"cache": given.work / "cache", "progress": run.Silent()}
    examples = Examples.of(chat.tokenise(given.data, made, "train", words, how, **options))
    order = run.make_plan(examples, phase)
    base = np.concatenate([[0], np.cumsum(examples.counts())])
    shards = [pq.read_table(given.data / shard.path) for shard in made.of_split("train")]
    rows = []
    for step in range(given.steps):
        pairs = [pair for prompt in order.prompts(step) for pair in range(base[prompt], base[prompt + 1])]
        if len(pairs) != given.batch:
            sys.exit(f"step {step} has {len(pairs)} pairs: this needs a data set with one pair a prompt")
        for pair in pairs:
            shard, row = examples.origin_of_pair(pair)
            rows += shards[shard].select(["prompt", "chosen", "rejected"]).slice(row, 1).to_pylist()
    return rows


def figures(given: argparse.Namespace, ends: list[float], losses: list[float]) -> dict:
    """What both sides report; the first step is warm-up."""
    import resource

    return {
        "pairs_per_second": (len(ends) - 1) * given.batch / (ends[-1] - ends[0]),
        "losses": losses,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    main()
