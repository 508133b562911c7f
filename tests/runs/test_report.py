"""`prefkit report RUN`: its figures are those of the log, text of data and models never runs, and what it costs."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit import runs
from prefkit.cli import main
from prefkit.page import curves
from tests.pages import INJECTIONS, Outline, rendered
from tests.runs.made import PHASE, SFT, dpo_lines, eval_line, sft_line, step_line, write_lines, write_run

ALARM = {"phase": "dpo", "step": 30, "alarm": "kl", "text": "far away.", "figures": {}}
SLICES = {"margin": {"up to 2": {"pairs": 5, "rewards/accuracies": 0.5, "rewards/margins": 0.1},
                     "above 2": {"pairs": 7, "rewards/accuracies": 0.9, "rewards/margins": 0.8}}}  # fmt: skip


def sample(step: int, answer: str, prompt: str = "Say yes.") -> dict[str, Any]:
    return {"phase": "dpo", "step": step, "prompt": [{"role": "user", "content": prompt}], "answer": answer}


def lines_drawn(text: str) -> dict[tuple[str, str], dict[str, list[float]]]:
    """The numbers of each line of each chart, by title and name."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    title = ""
    for name, element in Outline(text).elements:
        if name == "svg" and element.get("role") == "img" and element["aria-label"]:
            title = element["aria-label"].partition(" by step. ")[0]
        if element.get("data-name"):
            names = ("x", "mean", "least", "greatest", "low", "high")
            held = {key: element[f"data-{key}"] for key in names if element.get(f"data-{key}")}
            numbers = {key: [float(word) for word in words.split()] for key, words in held.items() if words}
            found[(title, element["data-name"])] = numbers
    return found


def test_every_figure_of_the_log_is_in_the_page_with_its_values(tmp_path: Path) -> None:
    lines = [*(sft_line(step) for step in range(1, 31)), *dpo_lines(100, {0: 0.5, 50: 0.7, 100: 0.8})]
    lines[-3] |= {"router_loss": 0.25, "slices": SLICES}
    out = write_run(tmp_path / "r", lines, (SFT, PHASE), alarms=(ALARM,))
    text = runs.write([out]).read_text("utf-8")
    _, _, dpo = re.split(r'<section id="phase-\d+"', text)
    drawn = lines_drawn(dpo[dpo.index(">") + 1 : dpo.index("</section>")])
    trained = [line for line in lines if line["phase"] == "dpo" and "loss" in line]
    figures = {name for line in trained for name in line} - {"phase", "step", "epoch", "num_tokens", "pairs", "slices"}
    for name in figures:
        values = [line[name] for line in trained if name in line]
        same = [held for held in drawn.values() if held["least"] == pytest.approx(values, rel=1e-5)]
        assert same, name
        assert same[0]["x"] == [line["step"] for line in trained if name in line]
        if len(values) == 100 and name != "learning_rate":
            means = [np.mean(values[max(0, at - 3) : at + 1]) for at in range(100)]  # 100 // 25 steps
            assert same[0]["mean"] == pytest.approx(means, rel=1e-5)
    held = drawn[("Reward accuracy", "held-out")]
    assert (held["x"], held["mean"]) == ([0, 50, 100], [0.5, 0.7, 0.8])
    assert held["low"] == pytest.approx([0.5, 0.68, 0.78])
    assert drawn[("Rewards", "chosen")]["least"] == pytest.approx(
        [line["rewards/chosen"] for line in trained], rel=1e-5
    )
    assert dpo.count("step 30: kl: far away.") == len(re.findall('<figure class="curves"', dpo)), (
        "marked on every chart"
    )
    for words in (
        "Evaluations on 2,000 held-out pairs",
        "0.800 [0.780,\u00a00.820]",
        "What became of the rows",
        "too long",
    ):
        assert words in dpo
    for words in ("finished after step 100", "t" * 64, "d" * 64, "3,000 train, 2,000 test", "max_grad_norm", "1 × cpu"):
        assert words in text


def test_equal_runs_give_equal_reports_that_hold_no_path(tmp_path: Path) -> None:
    out = write_run(
        tmp_path / "one" / "r", dpo_lines(50, {0: 0.5, 50: 0.8}), samples=(sample(0, "no"), sample(50, "yes"))
    )
    shutil.copytree(out, tmp_path / "other" / "r")
    texts = [runs.write([tmp_path / name / "r"]).read_text("utf-8") for name in ("one", "other")]
    assert texts[0] == texts[1]
    assert str(tmp_path) not in texts[0]


def test_a_long_run_makes_a_small_page_without_losing_a_peak(tmp_path: Path) -> None:
    rng = random.Random(0)
    lines = [step_line("dpo", step, rng) for step in range(1, 20_001)]
    lines[12_345]["loss"] = 77.0
    text = runs.write([write_run(tmp_path / "r", lines)]).read_text("utf-8")
    assert len(text) < 600_000
    loss = lines_drawn(text)[("Loss", "loss")]
    assert len(loss["x"]) == curves.POINTS
    assert max(loss["greatest"]) == 77.0
    assert min(loss["least"]) == pytest.approx(min(line["loss"] for line in lines), rel=1e-5)
    assert "Bold: mean of the last 800 steps. Faint: every step, in stretches of 84." in text


def test_two_runs_of_other_lengths_and_losses_one_unfinished(tmp_path: Path) -> None:
    other = PHASE | {"name": "simpo", "objective": "simpo", "gamma": 1.0}
    a = write_run(
        tmp_path / "a",
        dpo_lines(100, {0: 0.5, 100: 0.8}),
        samples=(sample(0, "no"), sample(100, "yes")),
        alarms=(ALARM,),
    )
    lines = dpo_lines(40, {0: 0.5, 20: 0.6}, phase="simpo", seed=1)
    for line in lines:
        line.pop("logps/chosen_change", None)  # of a reference that there is none of
    b = write_run(tmp_path / "b", lines, (other,), finished=False, samples=())
    path = runs.write([a, b], tmp_path / "ab.html")
    text = path.read_text("utf-8")
    drawn = lines_drawn(text)
    assert drawn[("Loss", "a")]["x"] == list(range(1, 101))
    assert drawn[("Loss", "b")]["x"] == list(range(1, 41))
    assert drawn[("Loss", "b")]["least"] == pytest.approx([line["loss"] for line in lines if "loss" in line], rel=1e-5)
    assert drawn[("Reward accuracy", "b, held-out")]["x"] == [0, 20]
    assert ("Away from the reference: change of chosen", "a") in drawn
    assert ("Away from the reference: change of chosen", "b") not in drawn
    ticks = {}
    for title in ("Rewards: chosen", "Rewards: rejected"):
        figure = text[text.index(f'aria-label="{title} by step') :]
        ticks[title] = re.findall(r'text-anchor="end">([^<]*)<', figure[: figure.index("</svg>")])
    assert ticks["Rewards: chosen"] == ticks["Rewards: rejected"], "one axis for both"
    for words in (
        "b: stopped after step 40 of 100",
        "a: finished",
        "gamma",
        "First and last evaluation of each run",
    ):
        assert words in text
    assert runs.write([a, b]) == a / "comparison.html"


def test_a_run_that_is_getting_ready(tmp_path: Path) -> None:
    out = write_run(tmp_path / "r", [], finished=False)
    (out / "dpo" / "begun.json").unlink()
    (out / "metrics.jsonl").unlink()
    text = runs.write([out]).read_text("utf-8")
    assert "dpo: not begun" in text
    assert "Nothing has been logged yet." in text
    Outline(text)


def test_a_run_of_one_step(tmp_path: Path) -> None:
    line = step_line("dpo", 1, random.Random(0), learning_rate=0.0, data_wait=0.0)
    text = runs.write([write_run(tmp_path / "r", [line], planned=1)]).read_text("utf-8")
    assert lines_drawn(text)[("Learning rate", "learning rate")]["least"] == [0.0]
    assert "nan" not in text


@settings(deadline=None, max_examples=20)
@given(rng=st.randoms(use_true_random=False), labels=st.booleans())
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_any_figures_make_a_page(tmp_path_factory: pytest.TempPathFactory, rng: random.Random, labels: bool) -> None:
    """Whatever a run logs, and whatever it does not, its report is written."""
    always = {"phase", "step", "eval_pairs", "loss", "eval_loss", "pairs", "pairs_per_second"}
    steps = rng.randint(0, 30)
    lines = dpo_lines(steps, dict.fromkeys(range(0, steps + 1, 3), 0.7))
    gone = set(rng.sample(sorted({*lines[0], *lines[-1]} - always), 4))
    for line in lines:
        for name in rng.sample(sorted({*line} - always), 3):
            line[name] = rng.choice([0.0, 1.0, 0.5, -1e-300, 1e300, math.nan, -5.0, rng.random()])
        for name in gone & line.keys():
            del line[name]
    folder = tmp_path_factory.mktemp("any")
    outs = [write_run(folder / name, lines, kind="labels" if labels else "pairs") for name in ("a", "b")]
    for some in ([outs[0]], outs):
        Outline(runs.write(some, folder / "x.html").read_text("utf-8"))


def hostile(folder: Path) -> Path:
    """A run with an injection wherever text can stand: names, options, slices, alarms, samples, versions."""
    lines, samples, alarms, phases = [], [], [], []
    for number, bad in enumerate(INJECTIONS):
        phase = PHASE | {"name": f"p{number}", "objective": bad, bad: bad}
        table = {bad: {bad: {"pairs": 5, "rewards/accuracies": 0.5}, "x": {"pairs": 5, "rewards/accuracies": 0.9}}}
        rng = random.Random(0)
        lines += [step_line(f"p{number}", step, rng, **{bad: 1.0}, slices=table) for step in range(1, 4)]
        lines.append(eval_line(f"p{number}", 3, 0.7, eval_slices=table))
        samples += [sample(step, bad, bad) | {"phase": f"p{number}"} for step in (0, 3)]
        alarms.append({"phase": f"p{number}", "step": 2, "alarm": bad, "text": bad, "figures": {}})
        phases.append(phase)
    out = write_run(
        folder,
        lines,
        tuple(phases),
        samples=tuple(samples),
        alarms=tuple(alarms),
        data=INJECTIONS[0],
        data_hash=INJECTIONS[1],
    )
    (out / "p0" / "not-finite.json").write_text(
        json.dumps({"step": 1, "what": INJECTIONS[0], "pairs": [], "batch": []})
    )
    begun = json.loads((out / "p0" / "begun.json").read_text())
    begun |= {
        "made_from": {bad: bad for bad in INJECTIONS},
        "versions": {bad: bad for bad in INJECTIONS},
        "device": INJECTIONS[0],
    }
    for number in range(len(INJECTIONS)):
        (out / f"p{number}" / "begun.json").write_text(json.dumps(begun))
    return out


def test_text_of_a_run_is_text_in_the_page(tmp_path: Path) -> None:
    expected = {
        "html", "head", "meta", "title", "style", "body", "header", "nav", "main", "section", "h1", "h2", "h3", "h4",
        "p", "a", "code", "ul", "li", "strong", "small", "span", "div", "figure", "figcaption", "details", "summary",
        "table", "caption", "thead", "tbody", "tr", "th", "td", "svg", "g", "path", "circle", "line", "text", "rect",
        "progress", "output", "script",
    }  # fmt: skip
    folders = [hostile(tmp_path / "</title><script>1<"), hostile(tmp_path / "'\"><img src=x>")]
    for some in ([folders[0]], folders):
        text = runs.write(some, tmp_path / "page.html").read_text("utf-8")
        page = Outline(text)
        assert {name for name, _ in page.elements} <= expected
        assert not [key for _, held in page.elements for key in held if key.startswith("on") or key == "style"]
        assert all(held["href"].startswith("#") for name, held in page.elements if name == "a" and held["href"])
        assert not [held for _, held in page.elements if {"src", "action", "srcset"} & held.keys()]
        style, script = page.scripts()
        policy = next(held["content"] for _, held in page.elements if held.get("http-equiv"))
        assert policy == (
            f"default-src 'none'; style-src {digest(style[1])}; script-src {digest(script[1])}; base-uri 'none'; "
            "form-action 'none'"
        )


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


VISIT = """
const figures = [...document.querySelectorAll("figure.curves")];
const svg = figures[0].querySelector(":scope > svg");
const box = svg.getBoundingClientRect();
const x = box.left + box.width * (62 + 0.5 * (472 - 62)) / 480;
svg.dispatchEvent(new PointerEvent("pointermove", { clientX: x, clientY: box.top + 20 }));
const legend = figures[0].querySelector(".legend");
document.body.append(` pointer: ${legend.textContent} | ${figures[1].querySelector(".at").textContent} `);
svg.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
document.body.append(` key: ${svg.getAttribute("aria-valuetext")} `);
svg.dispatchEvent(new KeyboardEvent("keydown", { key: "Home", bubbles: true }));
document.body.append(` home: ${svg.getAttribute("aria-valuenow")} ${svg.getAttribute("role")} `);
svg.dispatchEvent(new PointerEvent("pointerleave"));
document.body.append(` after: ${legend.textContent} crosses ${document.querySelectorAll(".cross").length} `);
for (const details of document.querySelectorAll("details")) details.open = true;
for (const one of document.querySelectorAll("figure.curves > svg"))
  one.dispatchEvent(new PointerEvent("pointermove", { clientX: x, clientY: 1 }));
"""


def visited(text: str, folder: Path, policy: bool = True) -> str:
    """A page after a browser moved through its charts: by a script of the test, which the policy is told to allow."""
    folder.mkdir()
    text = text.replace("script-src ", f"script-src {digest(VISIT)} ", 1) if policy else text
    (folder / "page.html").write_text(text.replace("</body>", f"<script>{VISIT}</script></body>"), "utf-8")
    return rendered(folder / "page.html", folder / "profile")


def test_the_crosshair_says_the_values_of_the_log(tmp_path: Path) -> None:
    lines = dpo_lines(100, {0: 0.5, 50: 0.7, 100: 0.8})
    page = visited(runs.write([write_run(tmp_path / "r", lines)]).read_text("utf-8"), tmp_path / "visit")
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}

    def said(step: int) -> str:
        mean = curves.number(float(np.mean([losses[at] for at in range(step - 3, step + 1)])))
        return f"{curves.number(losses[step])} (mean {mean})"

    held = curves.number(0.69 - 50 / 1000)
    assert f"pointer:  training {said(50)} held-out {held}step 50 | step 50 " in page
    assert f"key: step 51: training {said(51)}, held-out {held} " in page
    assert "home: 0 slider" in page
    last = curves.number(float(np.mean([losses[at] for at in range(97, 101)])))
    assert f"after:  training {last} held-out {curves.number(0.59)} crosses 0 " in page


def test_nothing_of_a_run_runs_in_a_browser(tmp_path: Path) -> None:
    text = runs.write(
        [hostile(tmp_path / "</title><script>1<"), hostile(tmp_path / "r")], tmp_path / "p.html"
    ).read_text("utf-8")
    page = visited(text, tmp_path / "as it is")
    assert "home: 1 slider" in page, "the page's own script did run"
    assert "broken in</title>" not in page
    assert page.count("<script") == 2
    assert "<img" not in page
    careless = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    careless = careless.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&#x27;", "'")
    assert "<title>broken in</title>" in visited(careless, tmp_path / "careless", policy=False), "the test would see it"


def fails(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    assert main(["report", *map(str, arguments)]) == code
    message = capsys.readouterr().err.strip()
    assert len(message.splitlines()) == 1, message
    assert message.startswith("prefkit: ")
    return message


def test_the_command_tells_what_a_folder_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (write_run(tmp_path / name, dpo_lines(10), finished=False) for name in "ab")
    assert main(["report", str(a)]) == 0
    assert capsys.readouterr().out.split() == [str(a / "report.html")]
    assert main(["report", str(a), str(b), "--out", str(tmp_path / "x.html")]) == 0
    assert (tmp_path / "x.html").exists()
    assert "neither a data set (no manifest.json) nor a run (no run.json)" in fails(capsys, 1, tmp_path)
    assert "neither a data set" in fails(capsys, 1, a, tmp_path / "missing")
    assert main(["verify", str(a)]) == 1
    assert f"{a}: a run of prefkit train, and no data set" in capsys.readouterr().err
    assert "is given twice" in fails(capsys, 2, a, a)
    assert "at most 8 runs" in fails(capsys, 2, *(tmp_path / str(number) for number in range(9)))
    assert "is a folder. Give the name of a file" in fails(capsys, 2, a, "--out", tmp_path)
    assert "no/x.html: there is no such folder" in fails(capsys, 2, a, "--out", tmp_path / "no" / "x.html")
    assert "--out has no effect with --watch" in fails(capsys, 2, a, "--watch", "--out", tmp_path / "x.html")
    assert "--port has no effect without --watch" in fails(capsys, 2, a, "--port", 8000)
    assert "--port 99999: cannot be listened on" in fails(capsys, 2, a, "--watch", "--port", 99999)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "manifest.json").write_text("{}")
    assert "only runs are compared" in fails(capsys, 2, a, tmp_path / "set")
    assert "--watch is for runs" in fails(capsys, 2, tmp_path / "set", "--watch")
    write_lines(a / "metrics.jsonl", [{"step": 1}])
    assert f"{a / 'metrics.jsonl'}, line 1: no line of metrics" in fails(capsys, 1, a)


def test_it_needs_neither_torch_nor_polars(tmp_path: Path) -> None:
    out = write_run(tmp_path / "r", dpo_lines(10))
    heavy = {"torch", "transformers", "polars", "pyarrow", "numba", "prefkit.train", "prefkit.pairs.report"}
    code = (
        f"import sys; from prefkit.cli import main; assert main(['report', {str(out)!r}]) == 0;"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
