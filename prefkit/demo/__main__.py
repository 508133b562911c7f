"""The demo's run: the commands that a user would type, one after another, and a table of what they achieved.

What improved is measured twice, on prompts that no training saw: by held-out preferences (does the model find the
chosen answer likelier?), and by the judge, which solves the games itself and scores answers that the model generates.
Answers are sampled at temperature 1, which shows the model itself: the greedy answer of a small model flips with any
nudge.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from prefkit.config import load_pipeline
from prefkit.demo.judge import judge
from prefkit.errors import PrefkitError

SAMPLES = 3  # answers shown of each model


def main() -> int:
    """`python -m prefkit.demo --out DIR`: run everything, print the report, keep it as DIR/demo.json."""
    parser = argparse.ArgumentParser(prog="python -m prefkit.demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for pairs, run and report")
    given = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    try:
        run(given.out, console)
    except PrefkitError as error:
        print(f"prefkit demo: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("prefkit demo: interrupted. The same command goes on from there.", file=sys.stderr)
        return 130
    return 0


def run(out: Path, console: Console) -> dict[str, Any]:
    """Build, train, evaluate; returns the report. What an earlier, interrupted demo finished is not done again."""
    from prefkit.pairs import summary
    from prefkit.pairs.build import build_pairs
    from prefkit.pairs.publish import REPORT
    from prefkit.progress import Stages
    from prefkit.train import metrics
    from prefkit.train.run import train

    started = time.perf_counter()
    pipeline = load_pipeline("demo")
    data, trained = out / "pairs", out / "run"
    console.rule(f"prefkit build-pairs demo --out {data}")
    with Stages() as stages:
        record = build_pairs(pipeline, data, workers=2, progress=stages)
    summary.print_record(record, data, time.perf_counter() - started, console)
    seen = [data / REPORT, trained / "report.html"]

    console.rule(f"prefkit train demo --data {data} --out {trained}")
    with metrics.live_progress(console) as progress:
        train(pipeline, data=data, out=trained, resume=(trained / "run.json").exists(), progress=progress)

    console.rule("before and after DPO, on held-out prompts")
    before, after = trained / "sft" / "model", trained / "model"
    models = {"after SFT": measure(before, data, before), "after DPO": measure(after, data, before)}
    seconds = time.perf_counter() - started
    report = {"seconds": seconds, "test_pairs": record.rows("test"), "models": models}
    (out / "demo.json").write_text(json.dumps(report, indent=1) + "\n")
    show(models, console)
    console.print(f"{seconds:.0f} s in all. The model: {after}. These figures: {out / 'demo.json'}")
    console.print(f"To look at, in a browser: {seen[0]} (the data) and {seen[1]} (the training).")
    return report


def measure(model: Path, data: Path, reference: Path) -> dict[str, Any]:
    """Held-out preferences and the judge's score of generated answers, with 95 % intervals."""
    from prefkit.train.evaluate import evaluate

    figures = evaluate(model, data=data, reference_model=reference, max_length=256, beta=0.3)
    figures["judge"] = judged(model, test_prompts(data))
    return figures


def test_prompts(data: Path) -> list[str]:
    """The distinct prompts of the test split, in order."""
    import pyarrow.parquet as pq

    from prefkit import manifest

    shards = manifest.read(data).of_split("test")
    rows = [prompt for shard in shards for prompt in pq.read_table(data / shard.path)["prompt"].to_pylist()]
    return list(dict.fromkeys(prompt[-1]["content"] for prompt in rows))


def judged(model: Path, prompts: Sequence[str]) -> dict[str, Any]:
    """Mean score of sampled answers, its 95 % interval (normal, over prompts), and a few answers to look at."""
    from prefkit.train import policy, tokenizer
    from prefkit.train.generate import generate

    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    words = tokenizer.load_tokenizer(model)
    answers = generate(policy.load(model), words, chats, max_new_tokens=40, temperature=1.0, seed=0)
    scores = [judge(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    mean, half = statistics.mean(scores), 1.96 * statistics.stdev(scores) / math.sqrt(len(scores))
    shown = [list(pair) for pair in zip(prompts[:SAMPLES], answers[:SAMPLES], strict=True)]
    return {"mean": mean, "low": mean - half, "high": mean + half, "prompts": len(prompts), "samples": shown}


def show(models: dict[str, dict[str, Any]], console: Console) -> None:
    """The table of the report, and some answers of each model."""
    table = Table(header_style="bold")
    table.add_column("held-out")
    for name in models:
        table.add_column(name, justify="right")
    for label, key in ROWS.items():
        table.add_row(label, *(cell(figures, key) for figures in models.values()))
    console.print(table)
    for name, figures in models.items():
        for prompt, answer in figures["judge"]["samples"]:
            console.print(f"{name}: {prompt} -> {answer}", markup=False)


ROWS = {
    "pairs": "pairs",
    "finds chosen likelier": "logps/accuracies",
    "  per token": "logps/accuracies_per_token",
    "reward accuracy": "rewards/accuracies",
    "reward of chosen": "rewards/chosen",
    "reward of rejected": "rewards/rejected",
    "reward margin": "rewards/margins",
    "judge's score of answers": "judge",
}


def cell(figures: dict[str, Any], key: str) -> str:
    """A figure, with its interval where it has one."""
    if key == "judge":
        figures = {
            key: figures["judge"]["mean"],
            f"{key}_low": figures["judge"]["low"],
            f"{key}_high": figures["judge"]["high"],
        }
    value = figures[key]
    if key == "pairs":
        return f"{value:,}"
    if f"{key}_low" in figures:
        return f"{value:.3f} [{figures[f'{key}_low']:.3f}, {figures[f'{key}_high']:.3f}]"
    return f"{value:+.3f}"


if __name__ == "__main__":
    sys.exit(main())
