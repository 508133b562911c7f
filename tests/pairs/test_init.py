"""`prefkit init`: which source it recognises, that what it writes builds pairs, and what it says where it cannot."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import pty
import shlex
import subprocess
import sys
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit import manifest, resolve
from prefkit.cli import main
from prefkit.config import load_pipeline
from prefkit.errors import UsageError
from prefkit.pairs import inputs, names, recognise
from prefkit.pairs.build import build_pairs
from prefkit.pairs.decode import decode
from prefkit.pairs.load import load_pairs
from prefkit.pairs.verify import verify
from tests.pairs.test_pipelines import FIXTURES
from tests.test_cli import fails

OF_TABLES = {
    "ratings_nested": "ratings",
    "skywork_preference": "pairs",
    "tulu_3_preference": "pairs",
    "ultrafeedback_binarized": "pairs",
}
OTHER = {"oasst_trees": "oasst"}
REAL = {
    "finegrained_rlhf/dev_feedback.json": "finegrained_rlhf",
    "hh_harmless/test.jsonl.gz": "hh_rlhf",
    "llamafactory/dpo_en_demo.json": "pairs",
    "llamafactory/kto_en_demo.json": "unpaired",
    "llamafactory/v1_dpo_demo.jsonl": "pairs",
    "oasst_trees/en_100_tree.jsonl": "oasst",
    "pandalm/testset-v1.json": "pandalm",
    "prometheus/ratings.jsonl.gz": "ultrafeedback",
    "ultrafeedback_binarized/train_1000.jsonl": "pairs",
}
ROWS = [
    {"question": f"What is {n}?", "reply": f"{n} is {word}.", "stars": stars, "bot": "a"}
    for n in range(8)
    for word, stars in (("odd or even", 5), ("a word", 1))
]


def init(out: Path, *arguments: object) -> dict[str, Any]:
    """Write a pipeline file; the entry of its inputs."""
    assert main(["init", *map(str, arguments), "--out", str(out)]) == 0
    (entry,) = tomllib.loads(out.read_text())["build"]["inputs"]
    return entry


def built(pipeline: Path, *overrides: str) -> manifest.Manifest:
    """The data set that a pipeline file builds, from its own paths."""
    out = pipeline.parent / "data"
    record = build_pairs(load_pipeline(pipeline, ["build.split.test=0", *overrides]), out)
    assert verify(out) == []
    return record


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("fixture", sorted(path.stem for path in FIXTURES.glob("*.jsonl")))
def test_every_format_is_recognised_and_its_file_builds_pairs(
    fixture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = {**OF_TABLES, **OTHER}.get(fixture, fixture)
    entry = init(tmp_path / "my.toml", FIXTURES / f"{fixture}.jsonl")
    assert entry["use"] == source
    said = capsys.readouterr().out
    assert f"rows read as {source}" in said
    overrides = {"helpsteer3": ["build.inputs.0.preference=overall"], "ratings_nested": ["build.filters=[]"]}
    assert built(tmp_path / "my.toml", *overrides.get(fixture, [])).rows("train") > 0


@pytest.mark.parametrize("name", REAL)
def test_real_files(real_data: Path, tmp_path: Path, name: str) -> None:
    assert init(tmp_path / "my.toml", real_data / name)["use"] == REAL[name]
    record = build_pairs(load_pipeline(tmp_path / "my.toml"), tmp_path / "data", limit=60)
    assert record.rows("train") + record.rows("test") > 0


def test_any_names_and_any_kind_of_file(tmp_path: Path) -> None:
    expected = {"prompt": "question", "response": "reply", "score": "stars"}
    text = io.StringIO()
    writer = csv.DictWriter(text, list(ROWS[0]))
    writer.writeheader()
    writer.writerows(ROWS)
    for number, (name, data) in enumerate(
        [
            ("a.csv", text.getvalue().encode()),
            ("a.json", json.dumps(ROWS).encode()),
            ("a.jsonl.gz", gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode())),
        ]
    ):
        (tmp_path / name).write_bytes(data)
        entry = init(tmp_path / f"{number}.toml", tmp_path / name)
        assert expected.items() <= entry.items(), name
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert expected.items() <= init(tmp_path / "p.toml", tmp_path / "a.parquet").items()
    assert built(tmp_path / "p.toml").rows("train") == 8


def test_pairs_of_csv_have_their_scores(tmp_path: Path) -> None:
    rows = "prompt,chosen,rejected,chosen_score,rejected_score\na?,b,c,4.5,2\nd?,e,f,1,3\ng?,h,i,,2\n"
    (tmp_path / "rows.csv").write_text(rows)
    entry = init(tmp_path / "my.toml", tmp_path / "rows.csv")
    assert (entry["use"], entry["chosen_score"], entry["rejected_score"]) == ("pairs", "chosen_score", "rejected_score")
    built(tmp_path / "my.toml")
    assert load_pairs(tmp_path / "data").select("chosen_score", "rejected_score").collect().rows() == [(4.5, 2.0)]


def test_paths_are_relative_to_the_file_as_the_inputs_were_to_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "pipelines").mkdir()
    jsonl(tmp_path / "raw" / "rows.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    assert init(Path("pipelines/my.toml"), "raw")["paths"] == ["../raw"]
    assert built(tmp_path / "pipelines" / "my.toml").rows("train") == 8


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"instruction": "a?", "output": "b", "Rating": "4"}, {"prompt": "instruction", "score": "Rating"}),
        ({"input": "a?", "responses": ["b", "c"], "scores": [1, 2]}, {"response": "responses", "score": "scores"}),
        (
            {"instruction": "a?", "generations": ["b", "c"], "ratings": [4, 2], "rationales": ["x", "y"]},
            {"prompt": "instruction", "response": "generations", "score": "ratings"},
        ),
        ({"prompt": "a?", "answer": "b", "rank": 1}, {"score": "rank", "higher_is_better": False, "absolute": False}),
        ({"prompt": "a?", "answer": "b", "scores": [1, 3]}, {"score": "scores", "aggregate": "mean"}),
        ({"query": "a?", "answers": [{"text": "b", "judge": {"total": 3}}]}, {"completions": "answers"}),
        ({"question": "a?", "chosen": "b", "rejected": "c"}, {"use": "pairs", "prompt": "question"}),
        ({"prompt": "a?", "response_chosen": "b", "response_rejected": "c"}, {"chosen": "response_chosen"}),
        (
            {"prompt": "a?", "chosen": "b", "rejected": "c", "chosen_rating": 4.5, "rejected_rating": 2},
            {"use": "pairs", "chosen_score": "chosen_rating", "rejected_score": "rejected_rating"},
        ),
        ({"question": "a?", "answer": "b", "thumbs_up": True}, {"use": "unpaired", "label": "thumbs_up"}),
        ({"prompt": "a?", "completion": "b", "label": "False"}, {"use": "unpaired", "label": "label"}),
        ({"prompt": "a?", "response": "b", "helpfulness": 3}, {"use": "ratings", "score": "helpfulness"}),
    ],
)
def test_columns_of_ones_own(row: dict[str, Any], options: dict[str, Any], tmp_path: Path) -> None:
    entry = init(tmp_path / "my.toml", jsonl(tmp_path / "rows.jsonl", [row] * 3))
    assert options.items() <= entry.items()


def test_decimals_of_parquet_are_scores(tmp_path: Path) -> None:
    rows = [{"prompt": "a?", "response": f"b{n}", "stars": Decimal(n) / 2} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert init(tmp_path / "my.toml", tmp_path / "rows.parquet")["score"] == "stars"
    assert built(tmp_path / "my.toml").rows("train") == 1


def test_a_conversation_that_ends_in_the_answer_needs_no_prompt(tmp_path: Path) -> None:
    turns = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"answer {n}"}] for n in range(6)]
    rows = [{"messages": talk, "label": n % 2 == 0} for n, talk in enumerate(turns)]
    entry = init(tmp_path / "my.toml", jsonl(tmp_path / "labels.jsonl", rows))
    assert "prompt" not in entry and entry["completion"] == "messages"
    assert built(tmp_path / "my.toml").rows("train") == 6


def test_labels_where_nothing_can_be_paired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"{n}?", "completion": f"answer {n}", "label": n % 2 == 0} for n in range(6)]
    init(tmp_path / "my.toml", jsonl(tmp_path / "labels.jsonl", rows))
    assert "as KTO takes them" in capsys.readouterr().out
    record = built(tmp_path / "my.toml")
    assert (record.kind, record.rows("train")) == ("labels", 6)
    message = fails(capsys, 2, "init", tmp_path / "labels.jsonl", "--out", tmp_path / "x.toml", "--recipe", "laptop")
    assert "it trains on pairs" in message
    both = [*rows, *({**row, "completion": "other", "label": not row["label"]} for row in rows)]
    init(tmp_path / "pairs.toml", jsonl(tmp_path / "both.jsonl", both))
    assert "labels" not in tomllib.loads((tmp_path / "pairs.toml").read_text())["build"]
    lone = [{"prompt": f"{n}?", "response": "a", "score": n} for n in range(3)]
    init(tmp_path / "lone.toml", jsonl(tmp_path / "lone.jsonl", lone))
    assert "No prompt among these rows has answers of different scores" in capsys.readouterr().out


def test_what_it_cannot_tell_it_says_with_the_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = jsonl(tmp_path / "two.jsonl", [{"prompt": "a?", "answer": "b", "accuracy": 1, "relevance": 3}])
    message = fails(capsys, 2, "init", two, "--out", tmp_path / "my.toml")
    assert "several columns could be the score: accuracy, relevance. Say which: --option score=accuracy" in message
    assert init(tmp_path / "my.toml", two, "--option", "score=relevance")["score"] == "relevance"
    capsys.readouterr()

    odd = jsonl(tmp_path / "odd.jsonl", [{"frage": "a?", "antwort": "b", "note": 2}])
    message = fails(capsys, 2, "init", odd, "--out", tmp_path / "odd.toml")
    assert "no source reads its first rows. Its columns are frage, antwort, note" in message
    assert "--source ratings" in message
    named = [f"--option={name}" for name in ("prompt=frage", "response=antwort", "score=note")]
    assert init(tmp_path / "odd.toml", odd, "--source", "ratings", *named)["response"] == "antwort"
    capsys.readouterr()
    message = fails(capsys, 2, "init", two, "--out", tmp_path / "x.toml", "--source", "nectar")
    assert "do not read as nectar (wrong_type 1)" in message
    assert 'Did you mean "ratings"' in fails(capsys, 2, "init", two, "--out", tmp_path / "x.toml", "--source", "rating")
    message = fails(capsys, 2, "init", two, "--out", tmp_path / "x.toml", "--option", "chsen=answer")
    assert 'Did you mean "chosen"' in message
    message = fails(capsys, 2, "init", two, "--out", tmp_path / "x.toml", "--option", "score=relevanz")
    assert 'no column "relevanz", which --option score names. Did you mean "relevance"?' in message
    message = fails(
        capsys, 2, "init", two, "--out", tmp_path / "x.toml", "--option=score=relevance", "--option=model=relev"
    )
    assert "no such column in the first rows of" in message and 'Did you mean "relevance"?' in message
    assert "a folder; --out is the name of a file" in fails(capsys, 2, "init", two, "--out", tmp_path)
    message = fails(capsys, 2, "init", two, "--out", tmp_path / "x.toml", "--source", "ratings", "--option", "promt=a")
    assert 'ratings has no "promt". Did you mean "prompt"?' in message
    nested = jsonl(tmp_path / "nested.jsonl", [{"meta": {"id": 1}, "q": "a?", "out": [{"t": "b", "j": {"s": 3}}]}])
    message = fails(capsys, 2, "init", nested, "--out", tmp_path / "x.toml")
    assert "Its columns are meta.id, q, out (a list of t, j.s). Say what they are" in message
    named = [f"--option={name}" for name in ("prompt=q", "completions=out", "response=t", "score=j.s")]
    assert init(tmp_path / "nested.toml", nested, *named)["score"] == "j.s"
    capsys.readouterr()
    chats = jsonl(tmp_path / "chats.jsonl", [{"messages": [{"role": "user", "content": "a?"}]}])
    assert "`prefkit adopt` takes them" in fails(capsys, 2, "init", chats, "--out", tmp_path / "x.toml")
    (tmp_path / "excel.csv").write_text("prompt;response;score\na?;b;3\n")
    message = fails(capsys, 1, "init", tmp_path / "excel.csv", "--out", tmp_path / "x.toml")
    assert "one column 'prompt;response;score', as if ';' stood between the fields" in message
    text = jsonl(tmp_path / "text.jsonl", [])
    text.write_text('"only text"\n17\n')
    message = fails(capsys, 2, "init", text, "--out", tmp_path / "x.toml")
    assert "no row among the first 200 is an object with columns. The first: wrong_type, Expected `object`" in message
    text.write_text("")
    assert "no rows, so there is nothing" in fails(capsys, 2, "init", text, "--out", tmp_path / "x.toml")
    text.write_bytes('{"prompt": "größer?"}\n'.encode("cp1252"))
    message = fails(capsys, 2, "init", text, "--out", tmp_path / "x.toml")
    assert "not UTF-8, as if in CP1252. Convert it: iconv -f CP1252 -t UTF-8 text.jsonl > utf8-text.jsonl" in message
    mixed = [FIXTURES / "shp.jsonl", FIXTURES / "ratings.jsonl"]
    message = fails(capsys, 2, "init", *mixed, "--out", tmp_path / "x.toml")
    assert "shp.jsonl reads as shp, ratings.jsonl as ratings" in message
    assert not (tmp_path / "x.toml").exists()


def test_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = jsonl(tmp_path / "rows.jsonl", ROWS)
    out = tmp_path / "my.toml"
    out.write_text("mine")
    assert "--force" in fails(capsys, 2, "init", rows, "--out", out)
    assert out.read_text() == "mine"
    assert init(out, rows, "--force")["use"] == "ratings"
    capsys.readouterr()
    assert "give the raw files" in fails(capsys, 2, "init", "--out", tmp_path / "x.toml")
    assert "no such file" in fails(capsys, 2, "init", tmp_path / "none.jsonl", "--out", tmp_path / "x.toml")
    assert "no folder" in fails(capsys, 2, "init", rows, "--out", tmp_path / "no" / "x.toml")
    assert "--model goes with --recipe" in fails(capsys, 2, "init", rows, "--out", tmp_path / "x.toml", "--model", "m")
    assert 'Did you mean "laptop"' in fails(capsys, 2, "init", rows, "--out", tmp_path / "x.toml", "--recipe", "lapto")
    assert "NAME=VALUE" in fails(capsys, 2, "init", rows, "--out", tmp_path / "x.toml", "--option", "score")


def test_a_recipe_and_a_model(tmp_path: Path) -> None:
    from prefkit.config import recipes
    from prefkit.train.options import check

    rows = jsonl(tmp_path / "rows.jsonl", ROWS)
    assert {"laptop", "zephyr-7b-dpo", "one-gpu-lora"} <= set(recipes())
    for recipe in recipes():
        init(tmp_path / "my.toml", rows, "--force", "--recipe", recipe, "--model", 'a "b"\\c')
        options = check(load_pipeline(tmp_path / "my.toml"))
        assert options.model.path == 'a "b"\\c'
        assert options.phases == check(load_pipeline(recipe)).phases
    init(tmp_path / "my.toml", FIXTURES / "ultrafeedback.jsonl", "--force")
    assert not {"train", "model"} & tomllib.loads((tmp_path / "my.toml").read_text()).keys()


WORDS = st.sampled_from([*names.PROMPT.split(), *names.RESPONSE.split(), *names.RESPONSES.split(), "chosen", "rejected",
    "score", "rating", "quality", "rank", "label", "model", "system", "subset", "completions", "odd"])  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.sampled_from(["", "a?", "b", "4", "user"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.sampled_from(["role", "content"]), inner),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.dictionaries(WORDS, VALUES, max_size=5), min_size=1, max_size=4))
def test_whatever_the_rows_are_they_are_read_or_the_reason_is_said(rows: list[dict[str, Any]]) -> None:
    """What is recognised does read rows: by another way, that of a build."""
    lines = [inputs.RawRow(n, json.dumps(row).encode(), None) for n, row in enumerate(rows, 1)]
    try:
        reading = recognise.of_rows(lines, inputs.RawFile("rows.jsonl", "rows.jsonl"), None, {})
    except UsageError as error:
        assert str(error).endswith((".", "?")) or "--option" in str(error)
        return
    call = resolve.check(f"prefkit.pairs.sources.{reading.source}:{reading.source}", reading.options, "test")
    good = [
        decoded
        for decoded in decode(lines, call, "rows.jsonl")
        if any(answer.score is not None for rated in decoded.found for answer in rated.completions)
    ]
    assert 0 < reading.used <= len(good)


def test_a_signed_url_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    url = "https://host.example/rows.jsonl?signature=secret"
    lines = [inputs.RawRow(n, json.dumps(row).encode(), None) for n, row in enumerate(ROWS, 1)]
    monkeypatch.setattr(inputs, "expand", lambda names, base, outside=None: list(names))
    monkeypatch.setattr(inputs, "first_rows", lambda file, count: lines)
    monkeypatch.setattr(inputs, "size", lambda file: 0)
    assert main(["init", url, "--out", str(tmp_path / "my.toml")]) == 0
    text = (tmp_path / "my.toml").read_text()
    assert "secret" not in text + capsys.readouterr().out
    assert "https://host.example/rows.jsonl" in text
    assert "paths" not in text


def at_a_terminal(folder: Path, answers: str) -> tuple[int, str]:
    """Exit code and output of `prefkit init` in a real terminal, where `answers` are typed."""
    own, child = pty.openpty()
    command = [sys.executable, "-m", "prefkit", "init"]
    process = subprocess.Popen(command, cwd=folder, stdin=child, stdout=child, stderr=child)
    os.close(child)
    os.write(own, answers.encode())
    said = b""
    while True:
        try:
            said += (piece := os.read(own, 10_000))
        except OSError:  # the other end is closed
            break
        if not piece:
            break
    return process.wait(), said.decode()


def test_at_a_terminal_it_asks(tmp_path: Path) -> None:
    """Which file, which column, which recipe, which model."""
    jsonl(tmp_path / "two.jsonl", [{"prompt": "a?", "answer": "b", "accuracy": 1, "relevance": 3}])
    code, said = at_a_terminal(tmp_path, "two.jsonl\nnonsense\n2\nlaptop\nmy/model\n")
    assert code == 0, said
    table = tomllib.loads((tmp_path / "pipeline.toml").read_text())
    assert table["build"]["inputs"][0]["score"] == "relevance"
    assert table["model"] == {"path": "my/model"}
    assert table["train"][0]["name"] == "apo"
    assert "none of them" in said


@pytest.mark.parametrize("kind", ["1", "ratings"])
def test_at_a_terminal_it_asks_what_columns_of_other_names_are(tmp_path: Path, kind: str) -> None:
    rows = [{"Frage": f"{n}?", "Antwort": f"{n} {k}", "Punkte": k} for n in range(20) for k in range(2)]
    jsonl(tmp_path / "fremd.jsonl", rows)
    code, said = at_a_terminal(tmp_path, f"fremd.jsonl\n{kind}\n1\nAntwort\n3\n\n")
    assert code == 0, said
    inputs_entry = tomllib.loads((tmp_path / "pipeline.toml").read_text())["build"]["inputs"][0]
    columns = {"prompt": "Frage", "response": "Antwort", "score": "Punkte"}
    assert inputs_entry == {"use": "ratings", "paths": ["fremd.jsonl"], **columns}
    assert build_pairs(tmp_path / "pipeline.toml", tmp_path / "out").rows("train") > 0


def test_the_commands_that_it_names_can_be_run_as_they_stand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = jsonl(tmp_path / "it's raw.jsonl", [{"prompt": "a?", "chosen": "b", "rejected": "c"}])
    init(tmp_path / "my file.toml", raw, "--recipe", "laptop")
    command = capsys.readouterr().out.partition("Next: ")[2]
    assert shlex.split(command) == ["prefkit", "build-pairs", str(tmp_path / "my file.toml"), "--out", "data"]
    comments = (tmp_path / "my file.toml").read_text().splitlines()[1:3]
    assert [shlex.split(line)[3] for line in comments] == [str(tmp_path / "my file.toml")] * 2


def test_at_a_terminal_columns_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    jsonl(tmp_path / "fremd.jsonl", [{"Frage": "1?", "Antwort": "2", "Punkte": "viele"}])
    code, said = at_a_terminal(tmp_path, "fremd.jsonl\n1\n1\n2\n3\n")
    assert code == 2 and "do not read as ratings" in said, said
