"""The command line as a user meets it: what it prints, its exit codes, and one sentence for every mistake."""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prefkit.cli import main, make_parser
from prefkit.extras import install
from tests.pairs.raw import dirty_lines, write_lines

PREFKIT = [sys.executable, "-m", "prefkit"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("cli") / "raw.jsonl", dirty_lines(200))


def fails(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """Run a command that must fail; the one sentence that it prints."""
    assert main([str(argument) for argument in arguments]) == code
    message = capsys.readouterr().err.strip()
    assert message.startswith("prefkit: ")
    assert len(message.splitlines()) == 1, message
    assert "Traceback" not in message
    return message


def build(raw: Path, out: Path, *more: str) -> list[str]:
    return ["build-pairs", "ultrafeedback", str(raw), "--out", str(out), "--workers", "1", *more]


def test_build_then_verify(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(build(raw, tmp_path / "out")) == 0
    printed = capsys.readouterr()
    for words in ("exact_duplicate", "not_json", "pairs (", "rejected"):
        assert words in printed.out
    assert printed.err == "", "no progress where there is no terminal"
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert "whole" in capsys.readouterr().out
    next((tmp_path / "out" / "data").iterdir()).unlink()
    assert main(["verify", str(tmp_path / "out")]) == 1
    assert "missing" in capsys.readouterr().out


def test_inputs_may_stand_behind_the_options(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build-pairs", "ultrafeedback", "--out", str(tmp_path / "out"), "--workers", "1", str(raw)]) == 0
    assert main(["build-pairs", "ultrafeedback", "--out", str(tmp_path / "out"), "--workers", "1", str(raw)]) == 0
    assert "finished before" in capsys.readouterr().out
    with pytest.raises(SystemExit) as done:
        main(["build-pairs", "ultrafeedback", "--out", "x", "--wrokers", "1"])
    assert done.value.code == 2


def test_quiet_says_nothing(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(build(raw, tmp_path / "out", "--quiet")) == 0
    assert capsys.readouterr() == ("", "")


def test_dry_run_writes_nothing(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--set", "build.split.test=0.25", "--set", "build.redact={kinds=['ip']}"]
    assert main(build(raw, tmp_path / "out", "--dry-run", *more)) == 0
    printed = capsys.readouterr().out
    assert re.search(r'^redact +kinds = \["ip"\]$', printed, re.MULTILINE) and "sha256" not in printed
    assert re.search(r"^split +test = 0\.25, seed = 0$", printed, re.MULTILINE)
    assert re.search(r"^dedupe +threshold = 0\.7, ", printed, re.MULTILINE)
    assert "nothing was written" in printed
    assert main(build(raw, tmp_path / "out", "--dry-run", "--json", "--limit", "3")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["options"]["dedupe"]["threshold"] == 0.7
    assert found["plan"] == {
        "files": 1,
        "bytes": raw.stat().st_size,
        "rows_of_each": 3,
        "parts": 1,
        "workers": 1,
        "out": str(tmp_path / "out"),
    }
    assert "--json has no effect without --dry-run" in fails(capsys, 2, *build(raw, tmp_path / "out", "--json"))
    assert not (tmp_path / "out").exists()


def test_usage_mistakes(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    file = tmp_path / "p.toml"

    def message(*more: str) -> str:
        return fails(capsys, 2, *build(raw, out, *more))

    assert "no such file" in fails(capsys, 2, *build(tmp_path / "none.jsonl", out))
    assert 'Did you mean "prompt_length"' in message("--set", "build.filters.0.use=promt_length")
    assert 'unknown option "dney"' in message("--set", "build.filters.sources.dney=['x']")
    assert 'Did you mean "ultrafeedback"' in message("--set", "build.inputs.0.use=ultrafeedbck")
    assert "option threshold" in message("--set", "build.dedupe.threshold=1.5")
    assert 'Did you mean "dedupe"' in message("--set", "build.deduppe.threshold=0.5")
    file.write_text("[build\n")
    assert "not valid TOML" in fails(capsys, 2, "build-pairs", file, raw, "--out", out)
    file.write_text("[[train]]\nname = 'x'\n")
    assert "no [build] section" in fails(capsys, 2, "build-pairs", file, raw, "--out", out)
    assert "no files" in fails(capsys, 2, "build-pairs", "ultrafeedback", "--out", out)
    assert "Did you mean" in fails(capsys, 2, "build-pairs", "ultrafeedbak", raw, "--out", out)
    file.write_text('[build]\nlanguage = { model = "x.bin" }\n[[build.inputs]]\nuse = "pairs"\n')
    assert "x.bin" in fails(capsys, 2, "build-pairs", file, raw, "--out", out)
    message = fails(capsys, 2, "build-pairs", raw, "--out", out)
    assert "not a pipeline file, which is TOML" in message
    assert f"let init write one for them: prefkit init {raw}" in message
    assert "a folder, and no pipeline file" in fails(capsys, 2, "build-pairs", tmp_path, "--out", out)
    assert "A path begins there: build.split.test" in fails(capsys, 2, *build(raw, out, "--set", "split.test=0.1"))
    assert not out.exists()


@pytest.mark.parametrize(
    "command",
    [
        "build-pairs ultrafeedback EMPTY --out X",
        "build-pairs ultrafeedback raw.jsonl --out EMPTY",
        "build-pairs ultrafeedback --out X EMPTY",
        "build-pairs EMPTY raw.jsonl --out X",
        "build-pairs ultrafeedback raw.jsonl --out X --onto EMPTY",
        "build-pairs ultrafeedback raw.jsonl --out s3://a/b --work EMPTY",
        "init EMPTY",
        "init raw.jsonl --out EMPTY",
        "view EMPTY",
        "view X --flags EMPTY",
        "verify EMPTY",
        "why EMPTY 1",
        "why X EMPTY",
        "export EMPTY --format trl --out Y",
        "export X --format trl --out EMPTY",
        "report EMPTY",
        "report X --out EMPTY",
        "train laptop --data EMPTY --out Y",
        "train laptop --data X --out EMPTY",
        "train laptop --data X --out Y --cache EMPTY",
        "evaluate EMPTY --data X",
        "evaluate model --data X --chat-template EMPTY",
        "adopt EMPTY --out X",
        "adopt raw.jsonl --out EMPTY",
    ],
)
@pytest.mark.parametrize("empty", ["", " "])
def test_empty_arguments_are_refused(
    command: str, empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([empty if word == "EMPTY" else word for word in command.split()])
    assert stop.value.code == 2
    assert re.search(r"error: argument \S+: is empty\. Is a variable", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_filters_that_polars_refuses(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd_rules.py").write_text(
        "import polars as pl\n"
        "def number():\n    return pl.col('score') + 1\n"
        "def typo():\n    return pl.col('scoer') > 1\n"
        "def mixed():\n    return pl.col('score') > pl.col('margin')\n"
        "def text():\n    return 'hello'\n"
        "def broken():\n    raise KeyError('x')\n"
        "def tied():\n    return pl.col('score') > 1\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, words in [
        ("number", "true or false"),
        ("typo", '"scoer"'),
        ("mixed", "mixes"),
        ("text", "not a polars"),
        ("broken", "KeyError"),
        ("tied", "name is taken"),
    ]:
        use = f"build.filters.0={{use='odd_rules:{name}'}}"
        command = build(raw, tmp_path / "out", "--set", use.replace("filters.0=", "filters=[") + "]")
        assert words in fails(capsys, 2, *command)


def test_no_pairs_left_says_where_they_went(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule = "build.filters=[{use='prompt_length', min_characters=9999}]"
    message = fails(capsys, 1, *build(raw, tmp_path / "out", "--set", rule))
    assert "no pairs left of" in message
    assert "prompt_length" in message
    other = write_lines(tmp_path / "other.jsonl", [b'{"question": "a?", "answer": "b"}'])
    message = fails(capsys, 1, *build(other, tmp_path / "out"))
    assert "For example other.jsonl, row 1, wrong_type: Object missing required field `instruction`." in message
    assert "prefkit init FILE tells which one reads a file" in message
    assert not (tmp_path / "out" / "data").exists()
    (tmp_path / "empty.jsonl").touch()
    assert "no pairs, since there are no rows: the input is empty." in fails(
        capsys, 1, *build(tmp_path / "empty.jsonl", tmp_path / "out2")
    )


def test_a_file_that_is_none_and_a_folder_that_cannot_be(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jsonl.gz").write_bytes(b"no gzip")
    assert "broken.jsonl.gz" in fails(capsys, 1, *build(tmp_path / "broken.jsonl.gz", tmp_path / "out"))
    (tmp_path / "file").touch()
    assert "is a file" in fails(capsys, 2, *build(raw, tmp_path / "file"))
    assert "file" in fails(capsys, 1, *build(raw, tmp_path / "file" / "deeper"))


def test_options_that_contradict_each_other_are_found_before_anything_is_read(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, words in [
        (["build.dedupe.scope=response", "build.dedupe.action=keep"], "nothing would come of scope"),
        (["build.dedupe.threshold=0.05", "build.dedupe.permutations=8"], "needs more than 8 permutations"),
        ([f"build.decontaminate={{paths=['{raw}'], ngram=false, coverage=0.9}}"], "coverage: has no effect"),
    ]:
        command = build(raw, tmp_path / "out", *(word for option in options for word in ("--set", option)))
        assert words in fails(capsys, 2, *command)
        assert words in fails(capsys, 2, *command, "--dry-run")
        assert not (tmp_path / "out").exists()


def test_a_function_that_is_not_written_in_python(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.toml").write_text('[[build.inputs]]\nuse = "os:system"\n')
    for more in ([], ["--dry-run"]):
        message = fails(capsys, 2, "build-pairs", tmp_path / "p.toml", raw, "--out", tmp_path / "out", *more)
        assert '"os:system": not a function that is written in Python' in message


def limit_file_size() -> None:
    """A disk that takes no more than 20 kB a file: the nearest thing to a full one that needs no rights."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk(raw: Path, tmp_path: Path, workers: str) -> None:
    out = tmp_path / "out"
    command = [*PREFKIT, *build(raw, out), "--workers", workers]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit_file_size)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "large" in done.stderr
    assert not (out / "manifest.json").exists()
    assert not (out / "data").exists()
    subprocess.run([*PREFKIT, *build(raw, out)], check=True, capture_output=True)


def test_an_interrupt(tmp_path: Path) -> None:
    raw = write_lines(tmp_path / "raw.jsonl", dirty_lines(4000))
    out = tmp_path / "out"
    command = [*PREFKIT, *build(raw, out), "--workers", "2", "--set", "build.chunk_bytes=100000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(out.glob(".work/read/*/counts.json")) and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert message.strip() == "prefkit: interrupted. The same command goes on from the finished steps."
    assert not (out / "manifest.json").exists()
    assert main([*build(raw, out, "--quiet"), "--set", "build.chunk_bytes=100000"]) == 0
    assert main(["verify", str(out)]) == 0


def test_a_data_set_within_another_is_refused(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outer = tmp_path / "outer"
    assert main(build(raw, outer, "--quiet", "--no-report")) == 0
    for inner in (outer / "data" / "x", outer / "rejects", outer / "sketches" / "g0" / "x"):
        assert f"lies in the data set {outer.resolve()}" in fails(capsys, 2, *build(raw, inner))
    assert main(["verify", str(outer)]) == 0 and not (outer / "data" / "x").exists()


def test_two_builders_in_one_folder(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from prefkit.pairs.publish import only_builder

    with only_builder(tmp_path / "out"):
        for _ in range(2):
            assert "another prefkit is building here" in fails(capsys, 2, *build(raw, tmp_path / "out"))


def test_train_mistakes(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    assert main(build(raw, data, "--quiet")) == 0
    pipeline = tmp_path / "p.toml"

    def message(code: int, text: str, *more: str) -> str:
        pipeline.write_text(text)
        return fails(capsys, code, "train", pipeline, "--data", data, "--out", tmp_path / "run", *more)

    phase = '[[train]]\nobjective = "sigmoid"\n'
    assert "no such folder" in fails(
        capsys, 1, "train", "hh-rlhf", "--data", tmp_path / "no", "--out", tmp_path / "run"
    )
    assert "no_such_model" in message(1, f'[model]\npath = "{tmp_path}/no_such_model"\n{phase}')
    assert "no_such_model" in message(1, phase, "--model", "nobody/no_such_model")
    assert "bta" in message(2, f'[model]\npath = "x"\n{phase}bta = 1\n')
    assert 'Did you mean "sigmoid"' in message(2, '[model]\npath = "x"\n[[train]]\nobjective = "sigmoyd"\n')
    assert "[[train]]" in message(2, '[model]\npath = "x"\n')
    assert 'objective = "sigmoid"' in message(2, '[model]\npath = "x"\n[[train]]\nobjective = "dpo"\n')
    assert "one of sigmoid in the path: train.sigmoid.beta" in message(
        2, '[model]\npath = "x"\n[[train]]\nobjective = "sigmoid"\nname = "sigmoid"\n', "--set", "train.beta=1"
    )
    assert "no folder of a model: none of config.json" in message(1, phase, "--model", str(data))
    (tmp_path / "earlier" / "model").mkdir(parents=True)
    assert "Did you mean" in message(1, phase, "--model", str(tmp_path / "earlier"))
    assert not (tmp_path / "run" / "model").exists()


def test_an_interrupted_training_says_what_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefkit.train import run

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train", interrupted)
    command = ["train", "laptop", "--data", tmp_path, "--out", tmp_path / "run"]
    assert "before the run began. Start it with the same command." in fails(capsys, 130, *command)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").touch()
    assert "Go on with the same command and --resume." in fails(capsys, 130, *command)


def test_the_plan_of_training(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    main(build(raw, data, "--quiet"))
    command = ["train", "hh-rlhf", "--data", str(data), "--out", str(tmp_path / "run"), "--dry-run"]
    assert main([*command, "--set", "train.dpo.beta=0.3"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "beta = 0.3" in printed
    assert "by default " in printed
    assert main([*command, "--set", "train.dpo.beta=0.3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["options"]["train"][-1]["beta"] == 0.3
    assert "--json has no effect without --dry-run" in fails(capsys, 2, *command[:-1], "--json")
    assert not (tmp_path / "run").exists()


def test_without_the_training_half(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else real(name))
    message = fails(capsys, 2, "train", "hh-rlhf", "--data", tmp_path, "--out", tmp_path / "run")
    assert install("train") in message


def parsers() -> dict[str, argparse.ArgumentParser]:
    """All commands, and the program itself."""
    parser = make_parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return {"prefkit": parser, **commands.choices}


@pytest.mark.parametrize("name", parsers())
def test_every_command_has_help_with_examples_that_parse(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main([*([name] if name != "prefkit" else []), "--help"])
    assert done.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: prefkit {name if name != 'prefkit' else '['}")
    _, examples = said.split("\nexamples:\n")
    begins, ends = r"(?:^  (?:eval \"\$\()?|&& )prefkit ", r"(?=   |\)| &&| [|>]|$)"
    lines = re.findall(f"{begins}(.*?){ends}", examples.split("\n\n")[0], flags=re.MULTILINE)
    assert lines
    for line in lines:
        make_parser().parse_args(shlex.split(line))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["biuld-pairs"], 'Did you mean "build-pairs"?'),
        (["train", "x", "--data", "d", "--out", "o", "--modle=m"], 'unknown option --modle. Did you mean "--model"?'),
        (["train", "x", "--data", "d", "--out", "o", "--resme"], 'Did you mean "--resume"?'),
        (["evaluate", "m", "--data", "d", "--dtype", "float23"], 'Did you mean "float32"?'),
        (["train", "x"], "required: --data, --out. More: prefkit train --help"),
        (["build-pairs"], "required: PIPELINE, --out. More: prefkit build-pairs --help"),
        (["build-pairs", "x", "--out", "o", "--overwrit"], 'unknown option --overwrit. Did you mean "--overwrite"?'),
        (["train", "x", "--data", "d", "--out", "o", "--set", "a={", "r=1", "}"], "Quote a value that has spaces"),
    ],
)
def test_mistyped_words_are_met_with_the_likely_one(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        main(given)
    assert done.value.code == 2
    assert said in capsys.readouterr().err


def test_evaluate_prints_json(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    main(build(raw, data, "--quiet", "--set", "build.split.test=0.3"))
    train = ["train", "hh-rlhf", "--data", str(data), "--out", str(run), "--max-steps", "1"]
    assert main([*train, "--set", "model.tokenizer.vocab_size=400", "--set", "model.config.hidden_size=32"]) == 0
    last = capsys.readouterr().out.splitlines()[-2:]
    assert last == [f"model: {run / 'model'}", f"report: {run / 'report.html'}"]
    assert (run / "report.html").exists()
    assert main(["evaluate", str(run / "model"), "--data", str(data), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["logps/accuracies_low"] <= result["logps/accuracies"] <= result["logps/accuracies_high"]
    assert {"sharegpt", "evol_instruct"} <= set(result["by_source"])
    assert (
        main(["evaluate", str(run / "model"), "--data", str(data), "--reference", str(run / "model"), "--quiet"]) == 0
    )
    assert "95 %" in capsys.readouterr().out
