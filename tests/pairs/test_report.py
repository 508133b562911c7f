"""`prefkit report`: its figures against counts made otherwise, its sentences, and that text from data never runs."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from prefkit import manifest
from prefkit.cli import main
from prefkit.config import load_pipeline
from prefkit.errors import DataError
from prefkit.page.html import tag
from prefkit.pairs import report, scan
from prefkit.pairs.build import build_pairs
from prefkit.pairs.report import contents, fallen, figures, findings, sample, shares
from prefkit.pairs.verify import verify
from tests.pages import INJECTIONS, Outline, rendered
from tests.pairs.chats import build as ready_made
from tests.pairs.chats import conversations, shards
from tests.pairs.raw import completion, dirty_lines, row, write_lines

PIPELINE = """
[build]
shards = { pairs_per_shard = 300 }
[[build.inputs]]
use = "ultrafeedback"
[build.split]
test = 0.2
[build.binarize]
use = "all_pairs"
[build.decontaminate]
paths = ["evaluation.txt"]
"""


def build(folder: Path, lines: list[bytes], *overrides: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    raw = write_lines(folder / "raw.jsonl", lines)
    (folder / "evaluation.txt").write_text("Please river mountain garden winter summer market bridge teacher\n")
    (folder / "p.toml").write_text(PIPELINE)
    build_pairs(load_pipeline(str(folder / "p.toml"), overrides), folder / "data", given=[str(raw)])
    return folder / "data"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("report"), dirty_lines(500))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with an injection wherever a raw file can put text: sources, models, prompts, answers, broken rows."""
    rng = random.Random(1)
    lines = []
    for number, bad in enumerate(INJECTIONS * 3):
        answers = [
            completion(rng, at, model=bad, response=f"{bad} {number} {at}", overall_score=at) for at in (1, 2, 3)
        ]
        lines.append(json.dumps(row(rng, f"{bad} {rng.random()}", source=bad, completions=answers)).encode())
        lines.append(f'{{"broken": {number} {bad}'.encode())
    return build(tmp_path_factory.mktemp("hostile"), lines, "build.dedupe.action=keep")


def test_counts_are_those_of_plain_python(data: Path) -> None:
    record = manifest.read(data)
    assert len(record.of_split("train")) > 1, "figures of several shards are what is tested"
    held = contents.gather(data, record, {})
    found = held.figures
    rows = {split: shards(data, split) for split in ("train", "test")}
    for name in ("source", "lang"):
        for split, of in rows.items():
            assert {key: count for key, splits in found.counts[name].items() if (count := splits[split])} == Counter(
                pair[name] for pair in of
            )
    everything = rows["train"] + rows["test"]
    texts = [(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in everything]
    longer = found.shares["longer"]["all"]
    assert (longer.hits, longer.total) == (sum(len(a) > len(b) for a, b in texts), len(texts))
    assert found.shares["shorter"]["all"].hits == sum(len(a) < len(b) for a, b in texts)
    wins = Counter(pair["chosen_model"] for pair in everything)
    met = wins + Counter(pair["rejected_model"] for pair in everything)
    assert {name: (one.hits, one.total) for name, one in found.shares["models"].items()} == {
        name: (wins[name], met[name]) for name in met
    }
    for name in ("chosen_score", "rejected_score", "margin"):
        scale = found.scales[name.rpartition("_")[2]]
        assert scale.step == 0.5, "the scores are halves, so a bin is a score"
        bins = {scale.label(int(key or 0)): sum(of.values()) for key, of in found.counts[name].items()}
        assert bins == Counter(f"{pair[name]:g}" for pair in everything)
    chars = sum(sum(splits.values()) for splits in found.counts["chosen_chars"].values())
    assert chars == len(texts)
    near = pl.read_parquet(data / "rejects" / "*.parquet").filter(pl.col("reason") == "near_duplicate")
    clusters = Counter(dict.fromkeys(near.select("cluster_id", "origin_file", "origin_row").iter_rows()).keys())
    sizes = sorted(Counter(key[0] for key in clusters).values(), reverse=True)
    assert [count for _, count in held.clusters] == sizes[: fallen.LARGEST]


@given(st.lists(st.floats(allow_nan=False), min_size=2), st.floats(allow_nan=False, allow_infinity=False))
def test_bins_are_few_whatever_the_scores(values: list[float], low: float) -> None:
    values = [max(low, value) for value in values] + [low]
    scale = figures.scale(low, max(values))
    bins = pl.DataFrame({"x": values}).select(scale.bin(pl.col("x")))["x"].to_list()
    assert all(0 <= number <= figures.MOST_BINS + 1 for number in bins)
    assert [number for _, number in sorted(zip(values, bins, strict=True))] == sorted(bins)
    if max(values) < 1e300 and low > -1e300:  # all within reach: each stands in the bin nearest to it
        for value, number in zip(values, bins, strict=True):
            assert abs(value - (scale.start + number * scale.step)) <= scale.step * 0.51 + 1e-9 * abs(value)
    assert all(
        float(scale.label(number)) == pytest.approx(scale.start + number * scale.step, 1e-4, scale.step / 10)
        for number in bins
    )


def test_an_interval_holds_the_truth_as_often_as_it_says_also_where_pairs_of_a_prompt_agree() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        n = rng.integers(1, 7, 150).astype(float)
        x = np.where(rng.random(150) < 0.3, n, 0.0)  # all pairs of a prompt agree: worth 150, not 525
        found = shares.share(x.sum(), n.sum(), (x * x).sum(), (x * n).sum(), (n * n).sum(), 150.0)
        inside += found.low <= 0.3 <= found.high
    assert 0.92 <= inside / 400 <= 0.98
    alone = shares.share(30.0, 100.0, 30.0, 30.0, 100.0, 100.0)  # a pair a prompt: n / (n - 1) of Wilson's own variance
    assert (alone.low, alone.high) == pytest.approx(binomtest(30, 100).proportion_ci(0.95, "wilson"), abs=1e-3)
    none = shares.share(0.0, 40.0, 0.0, 0.0, 40.0, 40.0)
    assert none.low == 0.0
    assert 0.05 < none.high < 0.15


@pytest.mark.parametrize(("better", "word"), [("longer", "longer"), ("shorter", "shorter")])
def test_length_bias_is_said_where_it_is(tmp_path: Path, better: str, word: str) -> None:
    rng = random.Random(0)
    lines = []
    for number in range(60):
        answers = [
            completion(
                rng, at, response=f"{number} " + "word " * (at + 3), overall_score=at if better == "longer" else 9 - at
            )
            for at in range(2)
        ]
        lines.append(json.dumps(row(rng, completions=answers)).encode())
    folder = build(tmp_path, lines)
    record = manifest.read(folder)
    said = findings.findings(record, contents.gather(folder, record, {}).figures)
    assert said[0].look
    assert re.match(rf"The {word} answer wins in 100\.0\s% \[9\d\.\d,\s100\.0\] of pairs", said[0].text)
    assert ("max_longer_share" in said[0].text) == (better == "longer")


def test_without_a_bias_none_is_claimed(data: Path) -> None:
    record = manifest.read(data)
    said = findings.findings(record, contents.gather(data, record, {}).figures)
    (length,) = [one for one in said if "longer answer wins" in one.text and "source" not in one.text]
    assert not length.look


def test_the_sample_shows_every_reason_and_is_bounded(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = manifest.read(data)
    held = contents.gather(data, record, {})
    rejects = held.rejects
    assert {(row["stage"], row["reason"]) for row in rejects} == {
        (stage.stage, reason) for stage in record.stages if stage.unit != "pairs" for reason in stage.rejected
    }
    assert len(rejects) <= fallen.REJECTS
    assert all(row["raw"] for row in rejects if row["reason"] == "not_json")
    shown = held.rows
    ids = sorted(pair["pair_id"] for split in ("train", "test") for pair in shards(data, split))
    assert [pair["pair_id"] for pair in shown] == ids[: scan.ROWS]
    assert {pair["split"] for pair in shown} == {"train", "test"}
    monkeypatch.setattr(sample, "CHARACTERS", 10)
    cut = contents.gather(data, record, {}).rows[0]
    assert cut["chosen"].endswith(f"({cut['chosen_chars'] - 10:,} more characters)")


def test_remarks_of_the_build_are_findings(tmp_path: Path) -> None:
    out = build(tmp_path, dirty_lines(40), "build.filters=[{use='sources', deny=['<b>nobody</b>']}]")
    (remark,) = manifest.read(out).remarks
    assert findings.findings(manifest.read(out), contents.gather(out, manifest.read(out), {}).figures)[0] == (
        True,
        remark,
    )
    page = (out / "report.html").read_text()
    assert "no row that was read has the source" in page and "<b>nobody" not in page


def test_what_the_data_does_not_tell_is_said_so(tmp_path: Path) -> None:
    folder = ready_made(tmp_path, conversations(1)[:1])
    text = report.write(folder).read_text("utf-8")
    for words in ("name no models", "Not tagged", "Nothing fell", "no test split", "Nothing was compared"):
        assert words in text
    Outline(text)


def test_scores_at_both_ends_are_shown(tmp_path: Path) -> None:
    rng = random.Random(0)
    answers = [completion(rng, at, overall_score=score) for at, score in enumerate([-1e30, 0.0, 1e30])]
    folder = build(tmp_path, [json.dumps(row(rng, completions=answers)).encode()])
    assert {pair["margin"] for pair in shards(folder, "train") + shards(folder, "test")} >= {2e30}
    (held,) = [text for part, text in Outline(report.write(folder).read_text("utf-8")).scripts() if "id" in part]
    json.loads(held, parse_constant=pytest.fail)  # Python's own reader takes Infinity, a browser's does not


def test_whole_scores_stand_in_bins_of_whole_numbers() -> None:
    assert figures.scale(-7.0, -1.0, True) == (-7.0, 1.0)
    assert figures.scale(-7.0, -1.0) == (-7.0, 0.25)


def test_equal_data_sets_give_equal_reports(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "elsewhere")
    texts = [report.write(folder).read_text("utf-8") for folder in (data, tmp_path / "elsewhere")]
    assert texts[0] == texts[1]
    assert str(tmp_path) not in texts[0]
    assert verify(data) == []


def test_a_build_reads_no_shard_again_for_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned = 0

    def watched(rows: pl.LazyFrame, kind: str) -> pl.DataFrame:
        nonlocal scanned
        scanned += 1
        return of_rows(rows, kind)

    of_rows = scan.scan
    monkeypatch.setattr(scan, "scan", watched)
    out = build(tmp_path, dirty_lines(500))
    written = len(scan.data(manifest.read(out)))
    assert scanned == written > 2
    assert (out / "report.html").read_bytes() == report.write(out, tmp_path / "of-the-shards.html").read_bytes()
    assert scanned == 2 * written


def test_text_of_the_data_is_text_in_the_page(hostile: Path, data: Path) -> None:
    expected = {
        "html", "head", "meta", "title", "style", "body", "header", "nav", "main", "section", "h1", "h2", "h3", "p",
        "a", "code", "ul", "ol", "li", "b", "strong", "small", "span", "div", "figure", "figcaption", "details",
        "summary", "table", "caption", "thead", "tbody", "tr", "th", "td", "svg", "rect", "line", "text", "form",
        "label", "select", "option", "input", "button", "output", "kbd", "noscript", "script",
    }  # fmt: skip
    for folder in (hostile, data):
        text = report.write(folder).read_text("utf-8")
        page = Outline(text)
        assert {name for name, _ in page.elements} <= expected
        assert not [key for _, given in page.elements for key in given if key.startswith("on") or key == "style"]
        assert all(given["href"].startswith("#") for name, given in page.elements if name == "a" and given["href"])
        assert not [given for _, given in page.elements if {"src", "action", "srcset"} & given.keys()]
        parts = list(page.scripts())
        assert [part["name"] for part, _ in parts] == ["style", "script", "script"]
        policy = next(given["content"] for _, given in page.elements if given.get("http-equiv"))
        assert policy
        assert policy.startswith("default-src 'none'; ")
        for number in (0, 2):
            digest = base64.b64encode(hashlib.sha256(parts[number][1].encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy
        assert "unsafe" not in policy
        held = json.loads(parts[1][1])
        assert held["rows"]
        assert held["rejects"]
    sources = {pair["source"] for split in ("train", "test") for pair in shards(hostile, split)}
    assert len(sources) > 5, "injections must have reached the data set for this test to mean anything"


def test_what_is_not_made_by_tag_is_escaped() -> None:
    assert tag("p", "<b>", tag("b", "&"), class_='"') == '<p class="&quot;">&lt;b&gt;<b>&amp;</b></p>'


VISIT = """
for (const key of KEYS) {
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  for (let n = 0; n < 300; n++) document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "j", bubbles: true }));
  document.body.append(` at the end: ${document.getElementById("position").textContent} `);
}
"""


def visited(text: str, folder: Path, policy: bool = True, keys: str = "pr") -> str:
    """A page after a browser showed all of its sample: by a script of the test, which the policy is told to allow."""
    folder.mkdir()
    visit = VISIT.replace("KEYS", json.dumps(list(keys)))
    digest = base64.b64encode(hashlib.sha256(visit.encode()).digest()).decode()
    text = text.replace("script-src ", f"script-src 'sha256-{digest}' ", 1) if policy else text
    (folder / "page.html").write_text(text.replace("</body>", f"<script>{visit}</script></body>"), "utf-8")
    return rendered(folder / "page.html", folder / "profile")


def test_nothing_of_the_data_runs_in_a_browser(hostile: Path, tmp_path: Path) -> None:
    text = report.write(hostile).read_text("utf-8")
    page = visited(text, tmp_path / "as it is")
    ends = re.findall(r"at the end: (\d+) of (\d+) ", page)
    assert len(ends) == 2, "the page's own script did run"
    assert all(at == of and int(of) > 30 for at, of in ends)
    assert "<title>Data report: p</title>" in page, "no injected script changed the title"
    assert page.count("<script") == 3
    assert "<img" not in page
    careless = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    careless = careless.replace(
        "document.createTextNode(run.text)", "Object.assign(document.createElement('p'), { innerHTML: run.text })"
    )
    careless = careless.replace("made.textContent = text", "made.innerHTML = text")
    assert "<title>broken in</title>" in visited(careless, tmp_path / "careless", policy=False), "the test would see it"


def test_a_build_writes_its_report_and_none_is_ever_stale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, out = write_lines(tmp_path / "raw.jsonl", dirty_lines(60)), tmp_path / "my data"
    arguments: list[Any] = ["build-pairs", "ultrafeedback", str(raw), "--out", str(out), "--workers", "1"]
    assert main(arguments) == 0
    page = out / "report.html"
    said = f"To look at it: '{page}', and all of it: prefkit view '{out}'"
    assert capsys.readouterr().out.splitlines()[-1] == said
    first = page.read_bytes()
    assert report.write(out, tmp_path / "again.html").read_bytes() == first
    page.unlink()  # as after a kill
    assert main(arguments) == 0
    assert page.read_bytes() == first, "the next run of the same command makes up for it"
    assert main([*arguments, "--overwrite", "--set", "build.split.test=0.5"]) == 0
    assert page.read_bytes() != first
    assert verify(out) == []
    page.write_bytes(first)
    assert verify(out) == [f"report.html: is of another data set; prefkit report {out} makes it anew."]
    assert main([*arguments, "--overwrite", "--no-report"]) == 0
    assert not page.exists()
    assert "To look at it" not in capsys.readouterr().out.splitlines()[-1]


def test_the_report_is_the_same_with_any_number_of_workers_and_onto_another(tmp_path: Path) -> None:
    raw = write_lines(tmp_path / "raw.jsonl", dirty_lines(80))
    new = write_lines(tmp_path / "new.jsonl", dirty_lines(40, seed=5))
    pages = []
    for workers in (1, 2):
        old, both = tmp_path / f"old{workers}", tmp_path / f"both{workers}"
        build_pairs("ultrafeedback", old, given=[str(raw)], workers=workers)
        record = build_pairs("ultrafeedback", both, given=[str(new)], onto=old, workers=workers)
        pages.append([(folder / "report.html").read_bytes() for folder in (old, both)])
        assert verify(both) == []
    assert pages[0] == pages[1]
    assert f"{record.rows('train') + record.rows('test'):,} preference pairs".encode() in pages[0][1]


def test_a_report_that_cannot_be_written_costs_no_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, out = write_lines(tmp_path / "raw.jsonl", dirty_lines(60)), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(findings, "findings", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_pairs("ultrafeedback", out, given=[str(raw)])
    assert verify(out) == []
    assert not (out / "report.html").exists()
    build_pairs("ultrafeedback", out, given=[str(raw)])
    assert (out / "report.html").exists()
    assert not (out / ".work").exists()


def test_the_command(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import webbrowser

    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: bool(opened.append(url)) or True)
    assert main(["report", str(data), "--open"]) == 0
    assert capsys.readouterr().out.split("\n")[0] == str(data / "report.html")
    assert opened == [(data / "report.html").as_uri()]
    assert main(["report", str(data), "--out", str(tmp_path / "x.html")]) == 0
    assert (tmp_path / "x.html").read_bytes() == (data / "report.html").read_bytes()


def test_a_damaged_shard_is_said(data: Path, tmp_path: Path) -> None:
    for name in ("data", "rejects"):
        folder = shutil.copytree(data, tmp_path / name)
        path = next((folder / name).iterdir())
        path.write_bytes(b"x" * path.stat().st_size)
        with pytest.raises(DataError, match="no report, since a shard cannot be read"):
            report.write(folder)


def test_what_cannot_be_reported_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 1
    assert "no manifest.json" in capsys.readouterr().err
    chats = [
        json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}).encode()
    ]
    raw = write_lines(tmp_path / "chats.jsonl", chats)
    assert main(["adopt", str(raw), "--out", str(tmp_path / "chats")]) == 0
    capsys.readouterr()
    assert main(["report", str(tmp_path / "chats")]) == 1
    assert "holds conversations, of which there is no report" in capsys.readouterr().err
