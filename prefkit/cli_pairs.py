"""The commands of half one: `prefkit build-pairs | view | verify | why | export`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from prefkit import collector
from prefkit.arguments import add_pipeline, as_json, command, fail, positive
from prefkit.errors import UsageError

if TYPE_CHECKING:
    from prefkit.config import Pipeline
    from prefkit.manifest import Manifest

BUILD_EXAMPLES = """examples:
  prefkit build-pairs ultrafeedback raw/ --out data
  prefkit build-pairs helpsteer2 hf://datasets/nvidia/HelpSteer2/train.jsonl.gz --out data
  prefkit build-pairs my.toml --out data --workers 8 --set build.binarize.use=all_pairs
  prefkit build-pairs hh-rlhf train.jsonl.gz --out data --dry-run
  prefkit build-pairs ultrafeedback new.jsonl --onto data --out data2

shipped pipelines: {pipelines}
"""
VIEW_EXAMPLES = """examples:
  prefkit view data --open                  browse, search, filter and flag in the browser; Ctrl+C ends it
  prefkit view data --port 8765             then from elsewhere: ssh -L 8765:127.0.0.1:8765 HOST
  prefkit view data --flags mine.jsonl      keep the flags elsewhere, as for data that may not be written to

A pipeline leaves out what is flagged: exclude = "data/flags.jsonl" in its [build].
"""
VERIFY_EXAMPLES = """examples:
  prefkit verify data
  prefkit build-pairs my.toml --out data && prefkit verify data
"""
WHY_EXAMPLES = """examples:
  prefkit why data train.jsonl:17      line 17, with the fate of each of its answers
  prefkit why data 3fa9c1              the pair, labelled answer or prompt whose id begins so

Rows are counted from 1. FILE may be any end of the file's name that says which one; ROW alone will do for one file.
"""
EXPORT_EXAMPLES = """examples:
  prefkit export data --format axolotl --out for-axolotl
  prefkit export data --format kto --out for-kto --split train --leave-out
  prefkit export data --push-to-hub me/my-pairs --private

formats:
{formats}
"""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the parser."""
    _add_build_pairs(commands)
    _add_view(commands)
    _add_verify(commands)
    _add_why(commands)
    _add_export(commands)


def _add_build_pairs(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from prefkit.config import shipped_pipelines

    epilog = BUILD_EXAMPLES.format(pipelines=", ".join(shipped_pipelines()))
    parser = command(commands, "build-pairs", "Build preference pairs from raw ratings.", epilog)
    add_pipeline(parser)
    parser.add_argument(
        "inputs",
        nargs="*",
        default=[],
        metavar="INPUT",
        help="files, folders, globs or URLs in place of the pipeline's paths",
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder for the data set, made if missing; or s3://… or gs://…"
    )
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="with --out URL: where it is built first (default: in your cache)",
    )
    parser.add_argument(
        "--workers", type=positive, metavar="N", help="processes (default: all cores, or all that the cluster has)"
    )
    parser.add_argument(
        "--engine",
        default="local",
        metavar="ENGINE",
        help="where tasks run: local, ray, or package.module:function for any executor (default: local)",
    )
    parser.add_argument("--address", metavar="ADDRESS", help="of a running cluster; for ray: auto, HOST:PORT, ray://…")
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="read only the first N rows of each file (of JSONL: lines)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the checked options and the plan, and stop")
    parser.add_argument("--json", action="store_true", help="with --dry-run: print JSON instead of text")
    parser.add_argument("--overwrite", action="store_true", help="replace a finished data set in DIR")
    parser.add_argument(
        "--keep-work", action="store_true", help="keep finished steps in DIR/.work, for a next build with other options"
    )
    parser.add_argument(
        "--onto",
        type=Path,
        metavar="OLD",
        help="add the inputs to this finished data set: DIR gets all of OLD and more",
    )
    parser.add_argument(
        "--no-report", action="store_true", help="write no report.html, the page of findings, charts and a sample"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress and no table")
    parser.set_defaults(run=_build_pairs, interrupted="interrupted. The same command goes on from the finished steps.")


def _build_pairs(given: argparse.Namespace) -> int:
    from prefkit.pairs import engines

    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's, whose threads nothing here needs, spin at the start
    if given.engine == "local" and given.workers != 1 and not given.dry_run:
        engines.prepare()  # while this process imports what it needs itself

    with collector.importing():
        from prefkit import urls
        from prefkit.config import load_pipeline
        from prefkit.pairs import minhash, remote
        from prefkit.pairs.build import build_pairs
        from prefkit.progress import Stages

    if given.json and not given.dry_run:
        raise UsageError("--json has no effect without --dry-run.")
    url = given.out if urls.is_url(given.out) else None
    if given.work and not url:
        raise UsageError("--work: only --out with a URL is built elsewhere first; a folder is built where it is.")
    out = (given.work or remote.work_folder(url)) if url else Path(given.out)
    workers = given.workers or (os.cpu_count() or 1 if given.engine == "local" else None)
    pipeline = load_pipeline(given.pipeline, given.overrides)
    if given.dry_run:
        return _dry_run(given, pipeline, url or out, out, workers)
    started = time.perf_counter()
    finished_before = (out / "manifest.json").exists() and not given.overwrite
    if given.engine == "local" and not (given.quiet or finished_before or minhash.is_compiled()):
        print("prefkit: kernels are compiled for this machine first: some 10 seconds.", file=sys.stderr)
    same = {name: getattr(given, name) for name in ("engine", "address", "limit", "overwrite", "keep_work", "onto")}
    with Stages(live=not given.quiet) as progress:
        record = build_pairs(
            pipeline,
            out,
            given=given.inputs,
            workers=workers,
            upload_to=url,
            progress=progress,
            with_report=not given.no_report,
            **same,
        )
    if not given.quiet:
        _tell_built(record, given.out, None if url else out, finished_before, time.perf_counter() - started)
    return 0


def _dry_run(given: argparse.Namespace, pipeline: Pipeline, target: Path | str, out: Path, workers: int | None) -> int:
    """Print the checked options and the plan of a build into `target`, which is `out` or a URL."""
    from rich.console import Console

    from prefkit.pairs import extend, summary
    from prefkit.pairs.options import check_build

    before = extend.open_before(given.onto, out)
    options = check_build(pipeline, given.inputs, target, before.known.files)
    extend.check(before, options)
    planned = summary.plan(options, given.out, workers, given.limit)
    if given.json:
        print(as_json(planned))
    else:
        summary.print_plan(planned, Console(highlight=False))
    return 0


def _tell_built(record: Manifest, shown: str, folder: Path | None, finished_before: bool, seconds: float) -> None:
    """The account of a build, and how to look at what is in its `folder`, unless it went to a URL."""
    from rich.console import Console

    from prefkit.pairs import summary
    from prefkit.pairs.publish import REPORT

    if folder and finished_before:
        print(f"{folder}: finished before, from the same inputs and options; nothing to do.")
    summary.print_record(record, shown, seconds, Console(highlight=False))
    if folder and (folder / REPORT).exists():
        page, all_of_it = shlex.quote(str(folder / REPORT)), shlex.quote(str(folder))
        print(f"To look at it: {page}, and all of it: prefkit view {all_of_it}")


def _add_view(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = (
        "Browse a whole data set, search, filter and flag it, in the browser. It is served to this machine alone, at "
        "an address with a secret in it."
    )
    parser = command(commands, "view", text, VIEW_EXAMPLES)
    parser.add_argument("data", type=Path, metavar="DIR", help="a folder that build-pairs wrote")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="listen on this port (default: a free one)")
    parser.add_argument("--flags", type=Path, metavar="FILE", help="where flags are kept (default: DIR/flags.jsonl)")
    parser.add_argument("--open", action="store_true", help="open it in the browser")
    parser.set_defaults(run=_view, interrupted="interrupted.")


def _view(given: argparse.Namespace) -> int:
    from prefkit.pairs import view

    def ready(address: str) -> None:
        print(f"{given.data}: {address}", flush=True)
        print(f"Whoever has this address can read and flag the data. Flags: {given.flags or given.data / view.FLAGS}. "
              "Ctrl+C ends it.", flush=True)  # fmt: skip
        if given.open:
            import webbrowser

            if not webbrowser.open(address):
                fail("--open: no browser was found here. Open the address yourself.", 1)

    view.serve(given.data, port=given.port, flags=given.flags, ready=ready)
    return 0


def _add_verify(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = (
        "Check a data set: hashes, schema, that every row is accounted for. Exit 0, or 1 and a list of what is wrong."
    )
    parser = command(commands, "verify", text, VERIFY_EXAMPLES)
    parser.add_argument("data", type=Path, metavar="DIR", help="a folder that build-pairs wrote")
    parser.set_defaults(run=_verify, interrupted="interrupted.")


def _verify(given: argparse.Namespace) -> int:
    from prefkit import manifest
    from prefkit.pairs.verify import verify

    problems = verify(given.data)
    for problem in problems:
        print(problem)
    if problems:
        return fail(f"{given.data}: {len(problems)} thing{'s' * (len(problems) > 1)} wrong.", 1)
    record = manifest.read(given.data)
    rows = sum(file.rows for file in record.inputs)
    train, test = record.rows("train"), record.rows("test")
    print(f"{given.data}: whole. {train:,} train and {test:,} test {record.kind}, {rows:,} raw rows accounted for.")
    return 0


def _add_why(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "Tell what happened to a raw row, a prompt or a pair of a data set, and why."
    parser = command(commands, "why", text, WHY_EXAMPLES)
    parser.add_argument("data", type=Path, metavar="DIR", help="a folder that build-pairs wrote")
    parser.add_argument(
        "asked", metavar="ROW_OR_ID", help="FILE:ROW, or the beginning of a prompt_id, pair_id or answer_id"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.set_defaults(run=_why, interrupted="interrupted.")


def _why(given: argparse.Namespace) -> int:
    from prefkit.pairs import why

    facts = why.why(given.data, given.asked)
    print(as_json(facts) if given.json else "\n".join(why.lines(facts)))
    if "matches" in facts:
        return fail(f"{given.asked} is {len(facts['matches']):,} things of {given.data}; name one of them.", 1)
    return 0


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from prefkit.pairs import formats
    from prefkit.resolve import functions_of, summary

    known = {name.replace("_", "-"): summary(getattr(formats, name)) for name in functions_of(formats)}
    epilog = EXPORT_EXAMPLES.format(formats="\n".join(f"  {name:<17} {text}" for name, text in known.items()))
    parser = command(
        commands,
        "export",
        "Write a data set in the format of another trainer, or push it to the Hugging Face Hub.",
        epilog,
    )
    parser.add_argument(
        "data", type=Path, metavar="DIR", help="a folder that build-pairs (or export, to push it) wrote"
    )
    parser.add_argument(
        "--format", metavar="FORMAT", help=f"one of {', '.join(known)}; without it, DIR is pushed as it is"
    )
    parser.add_argument("--out", type=Path, metavar="OUT", help="folder for the export; made if missing")
    parser.add_argument("--split", choices=("train", "test", "all"), help="which pairs (default: all)")
    parser.add_argument(
        "--leave-out",
        action="store_true",
        help="leave out, and count, what the format cannot hold, instead of stopping",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in OUT")
    parser.add_argument(
        "--push-to-hub", metavar="NAME/REPO", help="send it to this data set repository, made if missing"
    )
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="push to this branch, made if missing (default: main)")
    parser.add_argument("--quiet", action="store_true", help="say nothing but errors")
    parser.set_defaults(run=_export, interrupted="interrupted. Nothing half-written is left, here or on the Hub.")


def _export(given: argparse.Namespace) -> int:
    from prefkit.pairs import export, hub
    from prefkit.progress import Stages

    if given.format is None and given.push_to_hub is None:
        raise UsageError("give --format and --out, --push-to-hub, or all of them.")
    if (given.format is None) != (given.out is None):
        raise UsageError("--format and --out go together.")
    if given.format is None and (given.split or given.leave_out or given.overwrite):
        raise UsageError("--split, --leave-out and --overwrite go with --format; a data set is pushed whole.")
    if given.push_to_hub is None and (given.private or given.revision):
        raise UsageError("--private and --revision go with --push-to-hub.")
    api = hub.connect(given.push_to_hub, quiet=given.quiet) if given.push_to_hub is not None else None
    if given.format is not None:
        with Stages(live=not given.quiet) as progress:
            made = export.export(
                given.data,
                given.out,
                format=given.format,
                split=given.split or "all",
                leave_out=given.leave_out,
                overwrite=given.overwrite,
                progress=progress,
            )
        if not given.quiet:
            print(export.report(made, given.out))
    if api is not None:
        folder = given.data if given.format is None else given.out
        url = hub.push(api, folder, given.push_to_hub, private=given.private, revision=given.revision)
        if not given.quiet:
            print(f"pushed: {url}")
    return 0
