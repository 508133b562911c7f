"""The commands of half two: `prefkit train | evaluate | adopt`."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from prefkit import collector
from prefkit.arguments import above_zero, add_pipeline, as_json, command, not_empty, not_negative, positive, share
from prefkit.errors import UsageError

TRAIN_EXAMPLES = """examples:
  prefkit train my.toml --data data --out run --model HuggingFaceTB/SmolLM2-360M-Instruct
  prefkit train my.toml --data data --out run --set train.dpo.beta=0.2 --max-steps 100
  prefkit train my.toml --data data --out run --resume
  prefkit train my.toml --data data --out run --resume --set train.dpo.max_tokens=4096    after it ran out of memory
"""
EVALUATE_EXAMPLES = """examples:
  prefkit evaluate run/model --data data --reference HuggingFaceTB/SmolLM2-135M-Instruct
  prefkit evaluate run/model --data data --against other/model --json > figures.json
  prefkit evaluate run/model --data reward-bench.parquet
"""
ADOPT_EXAMPLES = """examples:
  prefkit adopt chats.jsonl --out chats --test 0.02
  prefkit train sft.toml --data chats --out run-sft     with objective = "sft", column = "messages"
"""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the parser."""
    _add_train(commands)
    _add_evaluate(commands)
    _add_adopt(commands)


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = command(
        commands, "train", "Train a model on preference pairs: the [[train]] phases in turn.", TRAIN_EXAMPLES
    )
    add_pipeline(parser)
    _add_data(parser)
    parser.add_argument(
        "--shard-cache",
        type=above_zero,
        metavar="GB",
        help="of a data set at a URL, keep at most so much on disk (default: 20)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder for the run; made if missing")
    parser.add_argument("--model", metavar="NAME_OR_PATH", help="start from this model instead of the pipeline's")
    parser.add_argument("--resume", action="store_true", help="go on with the run in RUN, from its newest checkpoint")
    parser.add_argument("--max-steps", type=positive, metavar="N", help="stop every phase after N steps")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="for tokens and reference log-probs (default: beside the shards)"
    )
    parser.add_argument(
        "--log-to",
        action="append",
        default=[],
        choices=("wandb", "mlflow"),
        help="send the figures there as well (repeatable); RUN has JSON lines and TensorBoard events in any case",
    )
    parser.add_argument(
        "--rank-timeout",
        type=above_zero,
        metavar="SECONDS",
        help="under torchrun: how long one process waits for another before the run ends (default: 1800)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan, estimates and the checked options, and stop"
    )
    parser.add_argument("--json", action="store_true", help="with --dry-run: print JSON instead of a table")
    parser.add_argument(
        "--tflops",
        type=above_zero,
        metavar="N",
        help="10^12 FLOP/s that are really reached, for --dry-run (default: 400, an H100 at 40 %%)",
    )
    parser.add_argument("--quiet", action="store_true", help="say nothing but errors")
    parser.set_defaults(run=_train, interrupted="interrupted. Go on with the same command and --resume.")


def _add_data(parser: argparse.ArgumentParser, text: str = "a data set that build-pairs wrote") -> None:
    parser.add_argument("--data", type=_place, required=True, metavar="DIR_OR_URL", help=text)


def _place(name: str) -> Path | str:
    from prefkit import urls

    return urls.place(not_empty(name))


def _train(given: argparse.Namespace) -> int:
    if "WORLD_SIZE" not in os.environ:  # torchrun sets it
        if given.rank_timeout is not None:
            raise UsageError("--rank-timeout has no effect: this is one process, not started by torchrun.")
        return _train_here(given)
    _need_training_half()
    from prefkit.train import parallel

    with parallel.joined(given.rank_timeout or parallel.TIMEOUT):
        given.quiet = given.quiet or not parallel.is_first()
        return 0 if given.dry_run and not parallel.is_first() else _train_here(given)


@contextmanager
def _saying_how_to_go_on(out: Path) -> Iterator[None]:
    """An interrupt says which command goes on: --resume wants a run, and it may have come before there was one."""
    try:
        yield
    except KeyboardInterrupt as stop:
        begun = "interrupted. Go on with the same command and --resume."
        early = "interrupted before the run began. Start it with the same command."
        raise KeyboardInterrupt(str(stop) or (begun if (out / "run.json").exists() else early)) from stop


def _train_here(given: argparse.Namespace) -> int:
    from prefkit.config import load_pipeline

    pipeline = load_pipeline(given.pipeline, given.overrides)
    _need_training_half()
    with collector.importing():
        from rich.console import Console

        from prefkit.train import dry_run, estimate, metrics, run

    if given.shard_cache is not None and isinstance(given.data, Path):
        raise UsageError("--shard-cache has no effect: --data is a folder, of which nothing is fetched.")
    if given.tflops is not None and not given.dry_run:
        raise UsageError("--tflops has no effect without --dry-run.")
    if given.json and not given.dry_run:
        raise UsageError("--json has no effect without --dry-run.")
    if given.dry_run:
        options = run.check(pipeline, model=given.model)
        planned = estimate.plan(options, given.data, max_steps=given.max_steps, tflops=given.tflops or estimate.TFLOPS)
        if given.json:
            print(as_json({"options": options.table(), "plan": planned}))
        else:
            dry_run.render(pipeline, options, planned, Console(highlight=False))
        return 0
    fetching = {} if given.shard_cache is None else {"shard_cache": given.shard_cache}
    shown = nullcontext(metrics.Silent()) if given.quiet else metrics.live_progress(Console(stderr=True))
    with _saying_how_to_go_on(given.out), shown as progress:
        report = run.train(
            pipeline,
            data=given.data,
            out=given.out,
            model=given.model,
            cache=given.cache,
            resume=given.resume,
            max_steps=given.max_steps,
            log_to=given.log_to,
            **fetching,
            progress=progress,
        )
    if not given.quiet:
        print(f"model: {report['model']}\nreport: {given.out / 'report.html'}")
    return 0


def _add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = command(
        commands,
        "evaluate",
        "Measure a model, or two, on a data set: loss, accuracy, margins, calibration, by slice.",
        EVALUATE_EXAMPLES,
    )
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face model, by path or name")
    _add_data(parser, "a data set that build-pairs wrote, or a file in RewardBench's format")
    parser.add_argument("--reference", metavar="MODEL", help="also rewards, against this model")
    parser.add_argument("--against", metavar="MODEL", help="a second model, side by side, with the differences")
    parser.add_argument("--split", default="test", help="train or test (default: test)")
    parser.add_argument("--beta", type=above_zero, help="of the rewards and the loss (default: 0.1)")
    parser.add_argument(
        "--max-length",
        type=not_negative,
        metavar="N",
        help="tokens of prompt and answer (default: 1024; 0: no limit)",
    )
    parser.add_argument(
        "--max-length-policy",
        choices=("truncate_completion", "truncate_prompt_start", "drop", "error"),
        help="for what is longer (default: truncate_completion)",
    )
    parser.add_argument(
        "--max-tokens", type=positive, metavar="N", help="tokens of a bin: memory and speed (default: 8192)"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the computation; weights are always float32 (default)"
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="for tokens (default: beside the shards)")
    parser.add_argument("--chat-template", metavar="FILE", help="for a tokenizer that has none")
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=_evaluate, interrupted="interrupted.")


def _evaluate(given: argparse.Namespace) -> int:
    _need_training_half()
    from rich.console import Console

    with collector.importing():
        from prefkit.train import evaluate, metrics
        from prefkit.train.render import render

    if given.beta is not None and given.reference is None:
        raise UsageError("--beta has no effect without --reference: there are no rewards.")
    if given.max_length_policy is not None and given.max_length == 0:
        raise UsageError("--max-length-policy has no effect without a limit (--max-length 0).")
    names = ("beta", "max_length", "max_length_policy", "max_tokens", "dtype")
    chosen = {name: value for name in names if (value := getattr(given, name)) is not None}
    silent = given.quiet or given.json
    with nullcontext(metrics.Silent()) if silent else metrics.live_progress(Console(stderr=True)) as progress:
        result = evaluate.evaluate(
            given.model,
            data=given.data,
            reference_model=given.reference,
            against=given.against,
            split=given.split,
            chat_template=given.chat_template,
            cache=given.cache,
            trust_remote_code=given.trust_remote_code,
            progress=progress,
            **chosen,
        )
    if given.json:
        print(as_json(result))
    else:
        render(result, Console())
    return 0


def _add_adopt(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = command(
        commands,
        "adopt",
        "Make a data set of conversations as they are, to fine-tune on (objective = sft).",
        ADOPT_EXAMPLES,
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="FILE", help="JSONL or Parquet, a conversation a row")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the data set; a new or empty folder")
    parser.add_argument("--column", default="messages", help="where the messages are (default: messages)")
    parser.add_argument("--test", type=share, default=0.0, metavar="SHARE", help="of the test split (default: 0)")
    parser.set_defaults(run=_adopt, interrupted="interrupted.")


def _adopt(given: argparse.Namespace) -> int:
    from prefkit import adopt

    made = adopt.adopt(given.paths, given.out, column=given.column, test=given.test)
    train = made.rows("train")
    print(f"{train:,} conversation{'s' * (train != 1)} to train on, {made.rows('test'):,} to test on, in {given.out}")
    return 0


def _need_training_half() -> None:
    """Training needs torch and transformers, which a data user does not install."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        from prefkit.extras import install

        raise UsageError(f"this command needs {missing[0]}: {install('train')}.")
