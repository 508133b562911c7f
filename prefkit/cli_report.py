"""The command `prefkit report`: of a data set or of runs, whichever a folder holds."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

from prefkit import manifest
from prefkit.arguments import command, fail
from prefkit.errors import DataError, UsageError

EXAMPLES = """examples:
  prefkit report data --open                  findings, charts and a sample of a data set
  prefkit report run                          a run of prefkit train: curves, evaluations, alarms, samples
  prefkit report run-a run-b --out ab.html    two runs side by side
  prefkit report run --watch --open           while it trains, from before it begins
"""
MOST_RUNS = 8  # colours that can be told apart
NEITHER = "neither a data set (no manifest.json) nor a run (no run.json)"


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    text = "Write report.html of a data set or a run, or of several runs compared: one file that works offline."
    parser = command(commands, "report", text, EXAMPLES)
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="a folder that build-pairs wrote, or some that train wrote"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where to write it (default: report.html in DIR; comparison.html in the first of several)",
    )
    parser.add_argument("--watch", action="store_true", help="serve the report of runs on this machine, as they go on")
    parser.add_argument("--port", type=int, metavar="N", help="with --watch: listen on this port (default: a free one)")
    parser.add_argument("--open", action="store_true", help="open it in the browser")
    parser.set_defaults(run=_report, interrupted="interrupted. The report of before is as it was.")


def _report(given: argparse.Namespace) -> int:
    if len(given.folders) > MOST_RUNS:
        raise UsageError(f"{len(given.folders)} folders: at most {MOST_RUNS} runs can be told apart in one chart.")
    if twice := [folder for at, folder in enumerate(given.folders) if folder in given.folders[:at]]:
        raise UsageError(f"{twice[0]} is given twice.")
    if given.out is not None and given.out.is_dir():
        raise UsageError(
            f"--out {given.out} is a folder. Give the name of a file, such as {given.out / 'report.html'}."
        )
    if given.out is not None and not given.out.parent.is_dir():
        raise UsageError(f"--out {given.out}: there is no such folder.")
    data_sets = [folder for folder in given.folders if (folder / "manifest.json").exists()]
    if given.watch:
        return _watch(given, data_sets)
    if given.port is not None:
        raise UsageError("--port has no effect without --watch, which alone serves the page.")
    for folder in given.folders:
        if folder not in data_sets and not (folder / "run.json").exists():
            raise DataError(
                f"{folder}: {manifest.what_else(folder) or NEITHER}. Give a folder that prefkit build-pairs or prefkit "
                "train wrote."
            )
    if data_sets and len(given.folders) > 1:
        raise UsageError(f"{data_sets[0]} is a data set; only runs are compared. Report it alone.")
    if data_sets:
        from prefkit.pairs import report

        path = report.write(data_sets[0], given.out)
    else:
        from prefkit import runs

        path = runs.write(given.folders, given.out)
    print(path)
    return _open(path.absolute().as_uri(), given.open, str(path))


def _watch(given: argparse.Namespace, data_sets: list[Path]) -> int:
    """Serve the page until Ctrl-C."""
    if data_sets:
        raise UsageError(f"{data_sets[0]} is a data set, which does not change; --watch is for runs.")
    if given.out is not None:
        raise UsageError("--out has no effect with --watch, which serves the page and writes nothing.")
    from prefkit.page.serve import served
    from prefkit.runs.watch import Watch

    for folder in given.folders:
        if not (folder / "run.json").exists():
            print(f"{folder}: no run has begun here yet. It shows when one does.")
    with ExitStack() as stack:
        try:
            server, url = stack.enter_context(served(Watch(given.folders).answer, given.port or 0))
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"--port {given.port}: cannot be listened on ({error}). Leave it out for a free one."
            ) from error
        print(f"{url}\nCtrl-C ends it; the runs go on.", flush=True)
        code = _open(url, given.open, url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return code


def _open(url: str, wanted: bool, name: str) -> int:
    if wanted:
        import webbrowser

        if not webbrowser.open(url):
            return fail(f"--open: no browser was found here. Open {name} yourself.", 1)
    return 0
