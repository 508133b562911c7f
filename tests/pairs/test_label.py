"""Labels in place of pairs: every answer by an account of our own, and the invariants that pairs have."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefkit import manifest
from prefkit.cli import main
from prefkit.errors import DataError, UsageError
from prefkit.manifest import Manifest
from prefkit.pairs.build import build_pairs
from prefkit.pairs.verify import verify
from tests.pairs.kills import killed_at
from tests.pairs.raw import sentence, write_lines
from tests.pairs.test_build import contents, pairs_of, pipeline, rejects_of
from tests.pairs.test_verify import forge, found

LABELS = """
[build]
language = false
[[build.inputs]]
use = "ratings"
completions = "answers"
[build.dedupe]
on_duplicate = "merge"
permutations = 16
[build.labels]
desirable_at_least = 4
undesirable_at_most = 2
[build.split]
test = 0.3
[build.shards]
pairs_per_shard = 40
row_group = 7
"""
rng = random.Random(3)
PROMPTS = [sentence(rng, 30) for _ in range(4)]  # no near-duplicates
ANSWERS = ["yes", "no", "perhaps", "Yes"]
SCORES = [1.0, 2.0, 3.0, 4.0, 5.0, None]


def raw_row(prompt: str, *answers: tuple[str, float | None]) -> dict[str, Any]:
    return {"prompt": prompt, "answers": [{"response": text, "score": score} for text, score in answers]}


def build(folder: Path, rows: list[dict[str, Any]], *overrides: str, out: str = "out", **more: Any) -> Manifest:
    raw = write_lines(folder / f"{out}.jsonl", [json.dumps(row).encode() for row in rows])
    made = build_pairs(pipeline(folder, *overrides, text=LABELS), folder / out, given=[str(raw)], **more)
    assert verify(folder / out) == []
    return made


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    rng = random.Random(5)
    return [
        raw_row(
            sentence(rng, 25),
            *((sentence(rng, 8), rng.choice([1, 2, 3, 4, 5, None])) for _ in range(rng.randint(1, 4))),
        )
        for _ in range(120)
    ]


answer = st.tuples(st.sampled_from(ANSWERS), st.sampled_from(SCORES))
table_of_rows = st.lists(
    st.tuples(st.sampled_from(PROMPTS), st.lists(answer, min_size=1, max_size=3)), min_size=1, max_size=8
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=table_of_rows)
def test_each_answer_has_the_label_of_its_score_or_one_reason(
    table: list[tuple[str, list[tuple[str, float | None]]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("labels")
    scores: dict[tuple[str, str], list[float]] = {}
    for prompt, answers in table:
        for text, score in answers:
            if score is not None:
                scores.setdefault((prompt, text), []).append(score)
    expected = {
        where: given[0] >= 4
        for where, given in scores.items()
        if len(set(given)) == 1 and (given[0] >= 4 or given[0] <= 2)
    }
    try:
        record = build(folder, [raw_row(prompt, *answers) for prompt, answers in table], workers=1)
    except DataError as error:
        assert "no labels left" in str(error) and not expected
        return
    kept = pairs_of(folder / "out")
    made = {(r["prompt"][-1]["content"], r["completion"][0]["content"]): r["label"] for r in kept.to_dicts()}
    assert made == expected and len(kept) == len(expected)
    fell = Counter[str]()
    for stage in record.stages[:-1]:
        fell.update(stage.rejected)
    contradicting = sum(len(given) for given in scores.values() if len(set(given)) > 1)
    assert fell["identical_responses"] == contradicting
    assert fell["no_label"] == sum(set(given) == {3.0} for given in scores.values())
    assert fell["missing_score"] == sum(score is None for _, answers in table for _, score in answers)


def test_the_same_bytes_however_the_input_is_cut_and_where_it_is_killed(
    rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path, rows)
    expected = {name: data for name, data in contents(tmp_path / "out").items() if name.endswith(".parquet")}
    build(tmp_path, rows, "build.chunk_bytes=3000", out="cut", workers=1)
    raw = tmp_path / "out.jsonl"
    cut = pipeline(tmp_path, "build.chunk_bytes=2000", text=LABELS)
    assert killed_at(monkeypatch, 25, lambda: build_pairs(cut, tmp_path / "killed", given=[str(raw)]))
    build_pairs(cut, tmp_path / "killed", given=[str(raw)])
    for name, file in (("killed", raw.name), ("cut", "cut.jsonl")):
        again = {n: data for n, data in contents(tmp_path / name).items() if n.endswith(".parquet")}
        assert again.keys() == expected.keys()
        assert again == expected or file != raw.name  # another name of the raw file stands in the rows
        assert pairs_of(tmp_path / name)["answer_id"].equals(pairs_of(tmp_path / "out")["answer_id"])


def test_the_manifest_says_what_it_holds_and_every_answer_is_accounted_for(
    rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    record = build(tmp_path, rows)
    assert manifest.read(tmp_path / "out").kind == "labels"
    labelled = sum(a["score"] in (1, 2, 4, 5) for row in rows for a in row["answers"])
    assert record.rows("train") + record.rows("test") == labelled
    assert record.stages[-1].unit == "labels" and record.stages[-1].went_out == labelled
    assert "- kto" in (tmp_path / "out" / "README.md").read_text()


def test_quotas_and_scopes_hold_for_labels(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    assert build(tmp_path, rows, "build.inputs.ratings.cap=50").stages[-1].went_out == 50
    twice = [*rows, raw_row(sentence(random.Random(9), 25), (rows[0]["answers"][0]["response"], 5))]
    made = build(tmp_path, twice, "build.dedupe.scope=response", out="scoped")
    (dedupe,) = [stage for stage in made.stages if stage.stage == "dedupe"]
    assert dedupe.rejected == {"exact_duplicate": 1}


def test_labels_of_prompts_that_stay_apart_agree(tmp_path: Path) -> None:
    """Rankings are sets of their own, so one text can have two labels, which its set does not show."""
    prompt = sentence(random.Random(1), 20)
    rows = [raw_row(prompt, ("good", 5), ("same", 1)), raw_row(prompt, ("same", 5), ("good", 4))]
    apart = ["build.inputs.ratings.absolute=false", "build.split.test=0.0"]
    record = build(tmp_path, rows, *apart)
    assert record.stages[-1].rejected == {"contradictory_labels": 2, "repeated_label": 1}
    assert set(rejects_of(tmp_path / "out").select("origin_row", "completion_index", "detail").rows()) == {
        (1, 1, "out.jsonl, row 2 labels it good"),
        (2, 0, "out.jsonl, row 1 labels it bad"),
        (2, 1, "out.jsonl, row 1 has the same answer"),
    }
    assert pairs_of(tmp_path / "out")["completion"].to_list() == [[{"role": "assistant", "content": "good"}]]


def test_more_rows_are_added_to_labels_and_not_to_pairs(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    build(tmp_path, rows[:80])
    record = build(tmp_path, rows[80:], out="more", onto=tmp_path / "out")
    assert record.kind == "labels" and len(record.inputs) == 2
    of_all = build(tmp_path, rows, out="all")
    assert record.stages[-1].went_out == of_all.stages[-1].went_out
    text = LABELS.replace("[build.labels]\ndesirable_at_least = 4\nundesirable_at_most = 2\n", "")
    pairs = pipeline(tmp_path, text=text)
    with pytest.raises(UsageError, match="holds labels, and this pipeline makes pairs"):
        build_pairs(pairs, tmp_path / "p", given=[str(tmp_path / "more.jsonl")], onto=tmp_path / "out")


def test_verify_finds_labels_that_were_turned_lost_or_repeated(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    build(tmp_path, rows, "build.shards.pairs_per_shard=1000")
    out = tmp_path / "out"
    whole = {path: path.read_bytes() for path in [out / "manifest.json", *out.glob("data/*")]}
    changes = {
        "scored no higher": pl.col("label").not_(),
        "has no label": pl.lit(None, pl.Boolean).alias("label"),
        "stands under its prompt before": pl.col("answer_id").first(),
        "conservation": pl.lit(99).cast(pl.Int32).alias("completion_index"),
    }
    for words, change in changes.items():
        forge(out, "train", lambda rows, change=change: rows.with_columns(change), kind="labels")
        assert found(out, words), words
        for path, data in whole.items():
            path.write_bytes(data)
    assert verify(out) == []


def test_what_a_person_flagged_falls(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    build(tmp_path, rows)
    kept = pairs_of(tmp_path / "out")
    flag = {"pair_id": kept["answer_id"][0], "note": "sarcasm"}
    (tmp_path / "flags.jsonl").write_text(json.dumps(flag) + "\n")
    text = LABELS.replace("[build]\n", '[build]\nexclude = "flags.jsonl"\n')
    build_pairs(pipeline(tmp_path, text=text), tmp_path / "less", given=[str(tmp_path / "out.jsonl")])
    assert verify(tmp_path / "less") == []
    assert pairs_of(tmp_path / "less").equals(kept.filter(pl.col("answer_id") != flag["pair_id"]))
    fell = rejects_of(tmp_path / "less").filter(reason="flagged")
    assert fell["detail"].to_list() == ["pair_id: sarcasm"]


def test_what_asks_for_pairs_is_refused(tmp_path: Path) -> None:
    refused = {
        "build.binarize.use=all_pairs": r"\[build.binarize\] has no effect",
        "build.balance.max_longer_share=0.5": "max_longer_share has no effect",
        "build.labels.undesirable_at_most=4": "must be below",
        "build.labels.desirable_at_least=yes": "desirable_at_least",
    }
    for override, words in refused.items():
        with pytest.raises(UsageError, match=words):
            build(tmp_path, [raw_row("p", ("a", 1))], override)
    filtered = LABELS + '[[build.filters]]\nuse = "min_margin"\nmargin = 1\n'
    with pytest.raises(UsageError, match="judges pairs"):
        build_pairs(pipeline(tmp_path, text=filtered), tmp_path / "f", given=[str(tmp_path / "out.jsonl")])


def test_the_commands_tell_of_labels(
    rows: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(tmp_path, rows)
    out = str(tmp_path / "out")
    first = pairs_of(tmp_path / "out").row(0, named=True)
    assert main(["why", out, f"out.jsonl:{first['completion_row']}"]) == 0
    said = capsys.readouterr().out
    assert ("desirable" if first["label"] else "undesirable") in said and first["answer_id"] in said
    assert main(["why", out, first["answer_id"]]) == 0
    assert "because its cluster draws" in capsys.readouterr().out
    assert main(["export", out, "--format", "kto", "--out", str(tmp_path / "kto")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "kto" / "train.jsonl").read_text().splitlines()]
    trained = pl.concat(pl.read_parquet(path) for path in sorted((tmp_path / "out" / "data").glob("train-*")))
    assert lines == trained.select("prompt", "completion", "label").to_dicts()
    capsys.readouterr()
    assert main(["export", out, "--format", "axolotl", "--out", str(tmp_path / "x")]) == 2
    assert "holds labels" in capsys.readouterr().err
    assert main(["verify", out]) == 0
    assert "labels" in capsys.readouterr().out
