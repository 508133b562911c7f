"""The report of labels: its figures against counts made otherwise, its sentences, and that no text of data runs."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from prefkit import manifest
from prefkit.config import load_pipeline
from prefkit.pairs import report
from prefkit.pairs.build import build_pairs
from prefkit.pairs.report import contents, findings, shares
from prefkit.pairs.verify import verify
from tests.pages import INJECTIONS, Outline
from tests.pairs.chats import shards
from tests.pairs.raw import sentence, write_lines
from tests.pairs.test_report import visited

PIPELINE = """
[build]
language = false
[[build.inputs]]
use = "ratings"
completions = "answers"
model = "model"
source_column = "source"
[build.dedupe]
on_duplicate = "merge"
permutations = 16
[build.labels]
desirable_at_least = 4
undesirable_at_most = 2
[build.split]
test = 0.3
[build.shards]
pairs_per_shard = 60
"""


def build(folder: Path, rows: list[dict[str, Any]], *overrides: str) -> Path:
    raw = write_lines(folder / "raw.jsonl", [json.dumps(row).encode() for row in rows])
    (folder / "p.toml").write_text(PIPELINE)
    build_pairs(load_pipeline(str(folder / "p.toml"), overrides), folder / "data", given=[str(raw)])
    return folder / "data"


def rated(rng: random.Random, words: int, score: float, **more: Any) -> dict[str, Any]:
    return {"response": sentence(rng, words), "score": score, "model": f"m{rng.randint(0, 2)}", **more}


def table(rng: random.Random, count: int, longer: int = 0) -> list[dict[str, Any]]:
    """Prompts with up to four answers, where good ones have so many words more."""
    made = []
    for _ in range(count):
        scores = [rng.randint(1, 5) for _ in range(rng.randint(1, 4))]
        answers = [rated(rng, rng.randint(5, 25) + longer * (score >= 4), score) for score in scores]
        made.append({"prompt": sentence(rng, 25), "source": rng.choice("xyz"), "answers": answers})
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("labels"), table(random.Random(0), 300))


def said(folder: Path) -> list[str]:
    record = manifest.read(folder)
    figures = contents.gather(folder, record, {}).figures
    return [("Look: " if one.look else "") + one.text for one in findings.findings(record, figures)]


def test_counts_are_those_of_plain_python(data: Path) -> None:
    record = manifest.read(data)
    held = contents.gather(data, record, {})
    rows = {split: shards(data, split) for split in ("train", "test")}
    everything = rows["train"] + rows["test"]
    assert len(record.of_split("train")) > 1, "figures of several shards are what is tested"
    figures = held.figures
    for name, column in (("good by source", "source"), ("models", "completion_model")):
        good = Counter(row[column] for row in everything if row["label"])
        met = Counter(row[column] for row in everything)
        assert {key: (one.hits, one.total) for key, one in figures.shares[name].items()} == {
            key: (good[key], met[key]) for key in met
        }
    for split, of in rows.items():
        one = figures.shares["good by split"][split]
        assert (one.hits, one.total) == (sum(row["label"] for row in of), len(of))
    for side in (True, False):
        name = "good_score" if side else "bad_score"
        scores = Counter(row["completion_score"] for row in everything if row["label"] is side)
        scale = figures.scales["score"]
        assert {
            float(scale.label(int(key or 0))): sum(of.values()) for key, of in figures.counts[name].items()
        } == scores
    labels: dict[str, set[bool]] = {}
    for row in everything:
        labels.setdefault(row["prompt_id"], set()).add(row["label"])
    assert sum(figures.counts["prompts"][None].values()) == len(labels)
    assert sum(figures.counts["prompts with both"][None].values()) == sum(len(of) == 2 for of in labels.values())
    logs = {
        side: np.log([len(row["completion"][0]["content"]) for row in everything if row["label"] is side])
        for side in (True, False)
    }
    ratio = figures.lengths["all"]
    assert ratio.typical == pytest.approx([math.exp(logs[side].mean()) for side in (True, False)])
    assert ratio.value == pytest.approx(ratio.typical[0] / ratio.typical[1])
    ids = sorted(row["answer_id"] for row in everything)
    assert [row["answer_id"] for row in held.rows] == ids[:200]


def test_the_interval_of_a_ratio_holds_the_truth_as_often_as_it_says() -> None:
    """Also where the answers of a prompt are alike: half of the variance of their lengths is their prompt's."""
    rng = np.random.default_rng(0)
    inside, runs, prompts = 0, 300, 120
    for _ in range(runs):
        n = rng.integers(1, 6, prompts)
        prompt = np.repeat(np.arange(prompts), n)
        good = rng.random(len(prompt)) < rng.uniform(0.2, 0.8, prompts)[prompt]
        logs = 6 + 0.4 * rng.normal(size=prompts)[prompt] + 0.4 * rng.normal(size=len(prompt)) + 0.1 * good
        answers = pl.DataFrame({"prompt": prompt, "side": np.where(good, "good", "bad"), "chars": np.exp(logs)})
        halves = [answers.filter(pl.col("prompt") % 2 == at) for at in (0, 1)]  # as two shards
        sums = pl.concat([shares.lengths_of_prompts(half, pl.lit("all"), ("good", "bad")) for half in halves])
        found = shares.ratios(sums)["all"]
        inside += found.low <= math.exp(0.1) <= found.high
    assert 0.92 <= inside / runs <= 0.98


def test_length_that_is_liked_is_said_where_it_is(tmp_path: Path) -> None:
    for longer, expected in ((0, False), (15, True)):
        (folder := tmp_path / str(longer)).mkdir()
        (text,) = [one for one in said(build(folder, table(random.Random(1), 300, longer))) if "as long as" in one]
        assert text.startswith("Look") is expected, text
        assert ("is it length that is liked?" in text) is expected


def test_the_weights_that_balance_are_those_of_training(data: Path, tmp_path: Path) -> None:
    from prefkit.resolve import check
    from prefkit.train.labelled import balance
    from prefkit.train.terms import Weighted

    def advice(folder: Path) -> str:
        train = shards(folder, "train")
        good = sum(row["label"] for row in train)
        weights = {"desirable_weight": 1.0, "undesirable_weight": 1.0}
        return balance(
            good, len(train) - good, [Weighted(1.0, check("prefkit.train.losses.whole_step:kto", weights, "here"))]
        )

    text = next(one for one in said(data) if "of answers are good" in one)
    assert not text.startswith("Look")
    rng = random.Random(4)
    rows = [
        {"prompt": sentence(rng, 25), "source": "a", "answers": [rated(rng, 9, 1 if at % 5 else 5)]}
        for at in range(200)
    ]
    few = build(tmp_path, rows)
    text = next(one for one in said(few) if "of answers are good" in one)
    (weights,) = re.findall(r"^Look: .* desirable_weight = (.*) does it\.$", text)
    assert f"desirable_weight {weights}," in advice(few)


def test_a_name_that_gives_the_label_away_is_said(tmp_path: Path) -> None:
    rng = random.Random(2)
    rows = [
        {"prompt": sentence(rng, 25), "source": source, "answers": [rated(rng, 9, score)]}
        for source, score in [("thumbs up", 5), ("thumbs down", 1)] * 60
    ]
    (text,) = [one for one in said(build(tmp_path, rows)) if "thumbs" in one and "gives the label away" in one]
    assert text.startswith("Look: Good are 100.0\u00a0% [9")
    assert "No prompt has both a good and a bad answer, so these data make no pairs." in said(tmp_path / "data")


def test_one_label_alone_is_said(tmp_path: Path) -> None:
    rng = random.Random(2)
    rows = [{"prompt": sentence(rng, 25), "source": "a", "answers": [rated(rng, 9, 5)]} for _ in range(20)]
    folder = build(tmp_path, rows)
    assert any("with one label alone, there is nothing to tell apart" in one for one in said(folder))
    Outline((folder / "report.html").read_text("utf-8"))


def test_the_page_is_the_same_again_and_shows_what_labels_have(data: Path, tmp_path: Path) -> None:
    text = (data / "report.html").read_text("utf-8")
    assert report.write(data, tmp_path / "again.html").read_text("utf-8") == text
    assert verify(data) == []
    outline = Outline(text)
    named = [given["id"] for name, given in outline.elements if name == "section"]
    links = [
        (given["href"] or "")[1:] for name, given in outline.elements if name == "a" and not given.get("data-reason")
    ]
    assert named == links[1:], "the menu names every section"
    assert "margin" not in re.sub(r"<(style|script).*?</\1>", "", text, flags=re.DOTALL).lower()
    between = pl.read_parquet(data / "rejects" / "*.parquet").filter(pl.col("reason") == "no_label")
    assert f"bad what is scored 2 or less; {len(between):,} answers in between fell (no_label)." in text


def test_nothing_of_the_data_runs_in_a_browser(tmp_path: Path) -> None:
    rng = random.Random(1)
    rows = [
        {"prompt": f"{bad} {sentence(rng, 12)}", "source": bad, "answers": [
            {"response": f"{bad} {sentence(rng, 8)}", "score": score, "model": bad} for score in (1, 3, 5)
        ]}
        for bad in INJECTIONS * 2
    ]  # fmt: skip
    folder = build(tmp_path, rows)
    page = visited((folder / "report.html").read_text("utf-8"), tmp_path / "browser", keys="ar")
    ends = re.findall(r"at the end: (\d+) of (\d+) ", page)
    assert [at for at, _ in ends] == [of for _, of in ends], "the page's own script did run"
    assert len(ends) == 2
    assert all(int(of) > 20 for _, of in ends)
    assert "<title>Data report: p</title>" in page, "no injected script changed the title"
    assert page.count("<script") == 3
    assert "<img" not in page
