"""Shell completion: what is offered where, and real shells at a real terminal that offer it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from prefkit import config
from prefkit.cli import main, make_parser
from prefkit.completion import complete
from tests.conftest import PROJECT

SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], """eval "$(prefkit completion bash)"; PS1='go''-on> '"""),
    "zsh": (
        ["zsh", "-f", "-i"],
        """autoload -U compinit; compinit -u -D; eval "$(prefkit completion zsh)"; PS1='go''-on> '""",
    ),
    "fish": (
        ["fish", "--no-config", "--interactive"],
        "prefkit completion fish | source; function fish_prompt; echo -n 'go''-on> '; end",
    ),
}


def offered(*words: str) -> list[str]:
    return [word for word, _ in complete(make_parser(), words)]


def test_commands_and_options_are_those_of_the_parser() -> None:
    assert {"build-pairs", "train", "init", "doctor", "completion"} <= set(offered(""))
    assert offered("build") == ["build-pairs"]
    assert offered("nonsense", "") == []
    assert {"--data", "--out", "--model", "--set", "--dry-run"} <= set(offered("train", "x.toml", "--"))
    assert "--data" not in offered("train", "x.toml", "--data", "d", "--")
    assert "--set" in offered("train", "x.toml", "--set", "a.b=1", "--"), "it may be repeated"
    assert ("--dry-run", "print the plan, estimates and the checked options, and stop") in complete(
        make_parser(), ["train", "--dry"]
    )


def test_values() -> None:
    assert offered("build-pairs", "") == config.shipped_pipelines()
    assert offered("build-pairs", "ultrafeedback") == ["ultrafeedback", "ultrafeedback-binarized"], "whole, or more"
    assert offered("train", "--data", "d", "one") == ["one-gpu-lora"], "values of options are no positional arguments"
    assert offered("evaluate", "m", "--dtype", "") == ["bfloat16", "float32"]
    assert offered("evaluate", "m", "--dtype=b") == ["bfloat16"]
    assert offered("completion", "") == ["bash", "fish", "zsh"]
    assert offered("completion", "bash", "") == []
    assert offered("init", "raw.jsonl", "--recipe", "lap") == ["laptop"]
    for files in (("verify", ""), ("train", "laptop", "--out", ""), ("build-pairs", "ultrafeedback", "raw/")):
        assert offered(*files) == [], "file names are the shell's"


def test_set_paths_are_those_of_the_pipeline_and_all_can_be_set(tmp_path: Path) -> None:
    assert offered("train", "laptop", "--set", "train.apo.b") == ["train.apo.beta="]
    assert offered("train", "laptop", "--set", "=", "train.apo.b") == ["train.apo.beta="], "as bash cuts --set=…"
    assert offered("train", "laptop", "--set=train.apo.b") == ["train.apo.beta="]
    assert offered("train", "no-such-pipeline", "--set", "") == []
    own = tmp_path / "own.toml"
    own.write_text('[build]\nchunk_bytes = 5\n[[build.filters]]\nuse = "a"\n[[build.filters]]\nuse = "a"\nx = 1\n')
    paths = offered("build-pairs", str(own), "--set", "")
    assert paths == ["build.chunk_bytes=", "build.filters.0.use=", "build.filters.1.use=", "build.filters.1.x="]
    for name in config.shipped_pipelines():
        for path in offered("train", name, "--set", ""):
            config.load_pipeline(name, [f"{path}1"])


def test_the_command_prints_scripts_and_candidates(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in SHELLS:
        assert main(["completion", shell]) == 0
        assert f"completion {shell} --" in capsys.readouterr().out
    assert main(["completion", "bash", "--", "train", "--data", "x", "--se"]) == 0
    assert capsys.readouterr().out.startswith("--set\toverride one option")
    with pytest.raises(SystemExit):
        main(["completion", "tcsh"])


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """With `prefkit` on the PATH, as if installed, and a file in the home folder, where the shell is."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "prefkit"
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{PROJECT}" exec "{sys.executable}" -m prefkit "$@"\n')
    command.chmod(0o755)
    (tmp_path / "qq-my-raw-ratings.jsonl").touch()
    return {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "TERM": "xterm",
    }


def _control() -> None:
    """Make the terminal that of the session, as an interactive shell wants it."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """A shell at a terminal of its own."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.own, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("4H", 40, 300, 0, 0))  # so wide that no line is broken
        streams = {"stdin": child, "stdout": child, "stderr": child}
        where = {"env": environment, "cwd": environment["HOME"], "start_new_session": True}
        self.process = subprocess.Popen(command, **streams, **where, preexec_fn=_control)  # type: ignore[call-overload]
        os.close(child)

    def type(self, text: str, until: str, seconds: float = 30) -> str:
        """Type something, and read until a text appears; what was read."""
        os.write(self.own, text.encode())
        read, end = "", time.monotonic() + seconds
        while until not in read:
            ready, _, _ = select.select([self.own], [], [], max(0, end - time.monotonic()))
            if not ready:
                raise AssertionError(f"{until!r} did not appear in {read!r}")
            read += os.read(self.own, 10_000).decode(errors="replace")
        return read

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.own)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_real_shell_completes(shell: str, environment: dict[str, str]) -> None:
    command, setup = SHELLS[shell]
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {shell}")
    terminal = Terminal(command, environment)
    try:
        terminal.type(f"{setup}\r", "go-on> ")
        terminal.type("prefkit build-p\t", "build-pairs")
        terminal.type("skyw\t", "skywork-preference")
        terminal.type("qq-my\t", "qq-my-raw-ratings.jsonl")
        terminal.type("--set build.dedupe.thr\t", "build.dedupe.threshold=")
        terminal.type("0.5 --dry-\t", "--dry-run")
    finally:
        terminal.close()
