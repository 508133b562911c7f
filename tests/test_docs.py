"""What the documents say exists and works: commands run, links lead somewhere, examples in code do what they say.

Commands of README, tutorial and how-tos are run, one after another, in a folder with small data under the names that
they give, and a tiny model under the name of the one that they take.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from prefkit import manifest
from prefkit.cli import main, make_parser
from prefkit.config import Pipeline
from prefkit.pairs.build import build_pairs
from tests.conftest import PROJECT
from tests.pairs.raw import dirty_lines, write_lines
from tests.train.datasets_for_tests import TINY, toy_pairs, write_data_set

DOCUMENTS = [
    PROJECT / "README.md",
    PROJECT / "CONTRIBUTING.md",
    PROJECT / "CHANGELOG.md",
    *sorted((PROJECT / "docs").rglob("*.md")),
]
MADE = ("reference/", "index.md", "contributing.md", "changelog.md")  # of the site, while it is built: docs/hooks.py


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        place = (path.parent / target).resolve()
        made = place.is_relative_to(PROJECT / "docs") and str(place.relative_to(PROJECT / "docs")).startswith(MADE)
        if not target.startswith("http") and not made:
            assert place.exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_are_those_of_the_program(path: Path) -> None:
    targets = re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), flags=re.MULTILINE)
    for line in "\n".join(blocks(path, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["prefkit"]:
            make_parser().parse_args(words[1:])
        elif words[:1] == ["make"]:
            assert set(words[1:]) <= set(targets), line
        elif "python" in words:
            assert (PROJECT / words[words.index("python") + 1]).exists(), line


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_pipeline_excerpts_are_toml(path: Path) -> None:
    for text in blocks(path, "toml"):
        tomllib.loads(text)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_examples_in_python_compile(path: Path) -> None:
    for text in blocks(path, "python"):
        compile(text, str(path), "exec")


def test_no_placeholder_is_left() -> None:
    for path in DOCUMENTS:
        assert not re.search(r"\b[A-Z]+_(TABLE|SECONDS)\b|TODO", path.read_text(encoding="utf-8")), path


def test_the_example_loss_of_the_docs_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefkit.resolve import check
    from prefkit.train.objective import Preference
    from prefkit.train.terms import Weighted

    (example,) = blocks(PROJECT / "docs" / "losses.md", "python")
    (tmp_path / "my_losses.py").write_text(example)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert Preference.of([Weighted(1.0, check("my_losses:squared", {"beta": 0.2}, "docs"))]).takes_reference


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run commands in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(commands: list[str], without: tuple[str, ...] = ()) -> None:
    """Run the commands of prefkit among some lines; `without` are words of those that need what a test has not."""
    for line in commands:
        words = shlex.split(line, comments=True)
        if words[:1] == ["prefkit"] and not set(without) & set(words):
            assert main([word for word in words[1:] if word != "--open"]) == 0, line


def commands_of(path: Path) -> list[str]:
    return "\n".join(blocks(path, "sh")).splitlines()


def tiny_model(folder: Path) -> None:
    """A random model with a tokenizer of its own."""
    from prefkit.train import policy
    from prefkit.train.tokenizer import train_bpe

    made = write_data_set(folder / "words", toy_pairs(24))
    words = train_bpe(folder / "words", made, vocab_size=400)
    policy.create({**TINY, "max_position_embeddings": 4096}, words, seed=0).save_pretrained(folder)
    words.save_pretrained(folder)


def transcripts(count: int) -> bytes:
    """Rows as HH-RLHF has them."""
    subjects = ["river", "bridge", "garden", "letter", "window", "market", "winter"]
    rows = []
    for n in range(count):
        asked = f"\n\nHuman: Tell me fact {n} about a {subjects[n % 7]} {n * n}.\n\nAssistant:"
        rows.append({"chosen": f"{asked} Gladly: number {n} is old.", "rejected": f"{asked} No, I will not. "})
    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())


def test_the_tutorial_runs_and_prints_what_it_says(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = PROJECT / "docs" / "tutorial.md"
    tiny_model(here / "HuggingFaceTB" / "SmolLM2-135M-Instruct")
    (here / "raw").mkdir()
    (here / "raw" / "train.jsonl.gz").write_bytes(transcripts(260))
    run(commands_of(page))
    said = capsys.readouterr().out
    (printed,) = blocks(page, "text")
    assert printed in said
    steps = [json.loads(line) for line in (here / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("eval_loss" in step for step in steps)
    assert (here / "run" / "model" / "model.safetensors").exists()
    assert json.loads((here / "for-llamafactory" / "dataset_info.json").read_text())


def test_how_tos_run(here: Path) -> None:
    rows = [(f"What is {n}?", f"{word} {n}", score) for n in range(8) for word, score in (("a number", 2), ("no", 1))]
    for name, header in (("ratings", ["prompt", "answer", "rating"]), ("umfrage", ["frage", "antwort", "note"])):
        with open(here / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
    run(commands_of(PROJECT / "docs" / "howto" / "my-format.md"))
    assert tomllib.loads((here / "umfrage.toml").read_text())["build"]["inputs"][0]["score"] == "note"
    write_data_set(here / "data", toy_pairs(6), toy_pairs(8)[6:])
    run(commands_of(PROJECT / "docs" / "howto" / "other-trainers.md"))
    for format in ("axolotl", "llamafactory", "openrlhf", "nemo-rl", "kto"):
        assert list((here / f"for-{format}").iterdir()), format


def test_functions_of_ones_own(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = PROJECT / "docs" / "howto" / "extend.md"
    monkeypatch.syspath_prepend(str(here))
    for text in blocks(page, "python"):
        name = re.match(r'"""(\w+\.py)"""', text)
        assert name
        (here / name[1]).write_text(text)
    answers = [{"text": text, "up": up, "votes": 4} for text, up in (("Yes.", 3), ("NO NO", 4), ("no", 1))]
    few = {"text": "Rare.", "up": 2, "votes": 2}
    raw = [{"thread": {"question": f"Is {n} a number?", "answers": [*answers, few]}} for n in range(5)]
    (here / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*raw, {"other": 1}]))
    source, rule = (tomllib.loads(text)["build"] for text in blocks(page, "toml"))
    table = {"build": {**source, **rule, "split": {"test": 0.0}}}
    record = build_pairs(Pipeline("own", here / "own.toml", "", [], table), here / "data")
    assert record.rows("train") == 5
    rejected = {reason: count for stage in record.stages for reason, count in stage.rejected.items()}
    assert (rejected["no_thread"], rejected["no_shouting"]) == (1, 5)


def test_the_commands_of_the_readme_run(here: Path) -> None:
    tiny_model(here / "HuggingFaceTB" / "SmolLM2-360M-Instruct")
    (here / "raw").mkdir()
    write_lines(here / "raw" / "raw.jsonl", dirty_lines(150))
    write_lines(here / "new.jsonl", dirty_lines(170)[150:])
    run(commands_of(PROJECT / "README.md"), without=("--push-to-hub", "ray", "--watch", "view"))
    assert manifest.read(here / "data").rows("train")
    assert (here / "run" / "model" / "config.json").exists()


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    proxy = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(command, cwd=PROJECT, env={**os.environ, **proxy}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|img|iframe|source)[^>]* src="(https?:[^"]*)"', text)
        fetched += re.findall(r'<link[^>]* rel="(?:stylesheet|preconnect|icon)"[^>]* href="(https?:[^"]*)"', text)
        assert not fetched, page
    commands = (tmp_path / "site" / "reference" / "commands.html").read_text()
    assert "prefkit build-pairs ultrafeedback raw/ --out data" in commands
    python = (tmp_path / "site" / "reference" / "python.html").read_text()
    for name in ("PairStream", "PackingCollator", "build_pairs", "load_pairs", "train"):
        assert f"prefkit.{name}" in python
    plain = re.sub("<[^>]*>", "", python).replace("&#39;", "'")
    assert "engine: str = 'local'," in plain
    assert "max_length_policy: length.Policy = 'truncate_completion'," in plain
