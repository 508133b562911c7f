"""`why` tells of any row, prompt or pair what the Parquet files, read whole and searched naively, hold of it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from prefkit import manifest
from prefkit.arguments import as_json
from prefkit.cli import main
from prefkit.errors import DataError, UsageError
from prefkit.pairs.build import build_pairs
from prefkit.pairs.why import HEAD, MOST, lines, printable, why
from tests.pairs.raw import completion, dirty_lines, row, sentence, write_lines
from tests.pairs.test_build import pairs_of, pipeline, rejects_of

EVIL = "\x1b]0;owned\x07\x1b[31m[bold red]\u202e\x9b2J end"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two files, merged across rows, with near-duplicates, dirt, and texts that steer a terminal."""
    folder = tmp_path_factory.mktemp("why")
    rng = random.Random(5)
    evil = [completion(rng, i, response=f"{EVIL} {i} " + "x" * 200, overall_score=1.0 + i, model=EVIL) for i in (0, 1)]
    merged = sentence(rng, 30)
    rows = [json.dumps(row(rng, EVIL + sentence(rng, 20), source="s", completions=evil)).encode()]
    for score in (9.0, 2.0):
        one = completion(rng, 0, overall_score=score)
        rows.append(json.dumps(row(rng, merged, source="s", completions=[one])).encode())
    for name, raw in (("a", [*rows, b'{"broken \x1b[2J \xff']), ("b", dirty_lines(300))):
        (folder / name).mkdir()
        write_lines(folder / name / "raw.jsonl", raw)
    chosen = pipeline(folder, "build.dedupe.on_duplicate=merge")
    build_pairs(chosen, folder / "out", given=[str(folder / name / "raw.jsonl") for name in "ab"])
    return folder / "out"


def fates(row: dict[str, Any]) -> dict[int, set[tuple[Any, ...]]]:
    return {
        candidate["index"]: {(pair["side"], pair["pair_id"], pair["shard"]) for pair in candidate["pairs"]}
        if "pairs" in candidate
        else {tuple(candidate["rejected"].values())}
        for candidate in row["candidates"]
    }


def expected_fates(out: Path, file: str, number: int) -> dict[int, set[tuple[Any, ...]]]:
    found: dict[int, set[tuple[Any, ...]]] = {}
    for path in sorted((out / "data").iterdir()):
        for pair in pl.read_parquet(path).iter_rows(named=True):
            for side in ("chosen", "rejected"):
                if (pair[f"{side}_file"], pair[f"{side}_row"]) == (file, number):
                    name = path.relative_to(out).as_posix()
                    found.setdefault(pair[f"{side}_index"], set()).add((side, pair["pair_id"], name))
    for reject in rejects_of(out).iter_rows(named=True):
        here = (reject["origin_file"], reject["origin_row"]) == (file, number)
        if here and reject["completion_index"] is not None:
            found[reject["completion_index"]] = {(reject["stage"], reject["reason"], reject["detail"])}
    return found


def test_every_kind_of_row_as_a_naive_search_finds_it(data: Path) -> None:
    rejects = rejects_of(data).filter(pl.col("origin_file") == "b/raw.jsonl")
    one_of_each = rejects.unique("reason", keep="first", maintain_order=True)["origin_row"].to_list()
    paired = pairs_of(data).filter(pl.col("chosen_file") == "b/raw.jsonl")["chosen_row"].head(8).to_list()
    assert len(one_of_each) > 10
    for number in {*one_of_each, *paired}:
        (told,) = why(data, f"b/raw.jsonl:{number}")["rows"]
        assert fates(told) == expected_fates(data, "b/raw.jsonl", number)
        whole = rejects.filter((pl.col("origin_row") == number) & pl.col("completion_index").is_null())
        assert (told["rejected"] is not None) == (len(whole) == 1)
        if told["rejected"]:
            assert told["rejected"]["reason"] == whole["reason"][0]


def test_a_shard_and_the_row_in_it(data: Path) -> None:
    for path in (data / "data").iterdir():
        for number, identity in enumerate(pl.read_parquet(path)["pair_id"].head(3), 1):
            (pair,) = why(data, identity)["pairs"]
            assert (pair["shard"], pair["shard_row"]) == (path.relative_to(data).as_posix(), number)
            assert pair["split"] == path.name.partition("-")[0]


def test_the_draw_is_what_decided_the_split(data: Path) -> None:
    told = [why(data, identity)["pairs"][0] for identity in pairs_of(data)["pair_id"].sample(40, seed=1)]
    assert {pair["split"] for pair in told} == {"train", "test"}
    for pair in told:
        assert (pair["draw"] < pair["test_share"] == 0.2) == (pair["split"] == "test")


def test_clusters_and_their_other_rows(data: Path) -> None:
    pairs, rejects = pairs_of(data), rejects_of(data)
    near = rejects.filter(pl.col("reason") == "near_duplicate")
    for cluster in near["cluster_id"].unique().sort().head(5):
        members = {
            *pairs.filter(pl.col("cluster_id") == cluster).select("chosen_file", "chosen_row").iter_rows(),
            *rejects.filter(pl.col("cluster_id") == cluster).select("origin_file", "origin_row").iter_rows(),
        }
        file, number = near.filter(pl.col("cluster_id") == cluster).select("origin_file", "origin_row").row(0)
        facts = why(data, f"{file}:{number}")
        (told,) = facts["clusters"]
        assert {(one["file"], one["row"]) for one in told["others"]} == members - {(file, number)}
        assert told["others"][0]["first"], "the one that stands for the cluster comes first"
        assert "% of its n-grams" in facts["rows"][0]["candidates"][0]["rejected"]["detail"]


def test_a_pair_across_rows_is_told_from_both(data: Path) -> None:
    first, second = (why(data, f"a/raw.jsonl:{number}")["rows"][0]["candidates"][0]["pairs"][0] for number in (2, 3))
    assert first["pair_id"] == second["pair_id"]
    assert (first["side"], first["partner_row"]) == ("chosen", 3)
    assert (second["side"], second["partner_row"]) == ("rejected", 2)
    prompt = why(data, pairs_of(data).filter(pair_id=first["pair_id"])["prompt_id"][0])
    assert [one["row"] for one in prompt["rows"]] == [2, 3]
    assert prompt["kind"] == "prompt"


def test_beginnings_of_names_and_ids(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = pairs_of(data).row(0, named=True)
    for name in ("pair_id", "prompt_id"):
        assert why(data, pair[name][:10].upper())["name"] == pair[name]
    assert why(data, "a/raw.jsonl:2")["name"] == "a/raw.jsonl:2"
    assert why(data, "raw.jsonl:2")["matches"] == ["row a/raw.jsonl:2", "row b/raw.jsonl:2"]
    assert main(["why", str(data), "raw.jsonl:2"]) == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines() == ["row a/raw.jsonl:2", "row b/raw.jsonl:2"]
    assert printed.err.strip() == f"prefkit: raw.jsonl:2 is 2 things of {data}; name one of them."
    for asked, kind, words in [
        ("b/raw.jsonl:9999", DataError, "no row 9999 .b/raw.jsonl has"),
        ("c.jsonl:1", UsageError, "no input file ends with"),
        ("17", UsageError, "of which file"),
        ("0" * 32, DataError, "no pair_id and no prompt_id"),
        ("abc", UsageError, "neither"),
        ("raw.jsonl", UsageError, "neither"),
        ("b/raw.jsonl:x", UsageError, "neither"),
        ("", UsageError, "neither"),
    ]:
        with pytest.raises(kind, match=words):
            why(data, asked)
        if asked:  # an empty one is refused by the command line itself
            assert main(["why", str(data), asked]) == (2 if kind is UsageError else 1)
            assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_digits_may_be_a_row_and_an_id(tmp_path: Path) -> None:
    """With one input file, six digits may be a row as well as the beginning of an id: then both are named."""
    write_lines(tmp_path / "raw.jsonl", dirty_lines(30))
    out = tmp_path / "out"
    build_pairs(pipeline(tmp_path), out, given=[str(tmp_path / "raw.jsonl")])
    assert why(out, "3")["name"] == "raw.jsonl:3"
    (shard,) = manifest.read(out).of_split("rejects")
    forged = pl.read_parquet(out / shard.path).with_columns(prompt_id=pl.lit("123456" + "0" * 26), origin_row=123456)
    forged.write_parquet(out / shard.path)
    assert why(out, "123456")["matches"] == ["row raw.jsonl:123456", "prompt 123456" + "0" * 26]


def test_nothing_in_the_data_steers_the_terminal(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for asked in ("a/raw.jsonl:1", "a/raw.jsonl:4"):
        for more in ([], ["--json"]):
            assert main(["why", str(data), asked, *more]) == 0
            printed = capsys.readouterr().out
            assert all(one.isprintable() or one == "\n" for one in printed)
    text = "\n".join(lines(why(data, "a/raw.jsonl:1")))
    assert r"\x1b[31m[bold red]" in text
    assert "x" * HEAD not in text, "only the beginning of a text is shown"
    assert r'{"broken \x1b[2J \xff' in "\n".join(lines(why(data, "a/raw.jsonl:4")))
    assert printable("Grüße, 世界 🙂") == "Grüße, 世界 🙂"


def test_json_holds_the_facts(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["why", str(data), "a/raw.jsonl:2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == why(data, "a/raw.jsonl:2")


def test_a_large_cluster_is_cut(tmp_path: Path) -> None:
    rng = random.Random(6)
    scored = [completion(rng, index, overall_score=1.0 + index) for index in (0, 1)]
    same = [json.dumps(row(rng, "What is " + "the same prompt " * 9, completions=scored)).encode()] * (MOST + 7)
    write_lines(tmp_path / "raw.jsonl", same)
    text = '[build]\nlanguage = false\n[[build.inputs]]\nuse = "ultrafeedback"\n'
    build_pairs(pipeline(tmp_path, text=text), tmp_path / "out", given=[str(tmp_path / "raw.jsonl")])
    (cluster,) = why(tmp_path / "out", "1")["clusters"]
    assert (cluster["rows"], len(cluster["others"]), cluster["more"]) == (MOST + 7, MOST, 6)
    assert "  and 6 more" in list(lines(why(tmp_path / "out", "1")))


def test_a_damaged_data_set_is_said_to_be_one(tmp_path: Path) -> None:
    write_lines(tmp_path / "raw.jsonl", dirty_lines(30))
    build_pairs(pipeline(tmp_path), tmp_path / "out", given=[str(tmp_path / "raw.jsonl")])
    shard = next((tmp_path / "out" / "data").iterdir())
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DataError, match="prefkit verify"):
        why(tmp_path / "out", "1")
    shard.unlink()
    with pytest.raises(DataError, match="prefkit verify"):
        why(tmp_path / "out", "1")


def test_scores_whose_margin_no_number_holds_fall_and_json_is_strict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = [(1e308, -1e308, 1.5), (1e30, -1e30, 0.0), (1.1e30, 2.0, 1.0)]
    lines = [
        json.dumps({"prompt": f"What is the sum of {name}?", "response": f"{name} {at}", "score": score}).encode()
        for name, row in zip(("apples", "rivers", "clouds"), scores, strict=True)
        for at, score in enumerate(row)
    ]
    raw = write_lines(tmp_path / "raw.jsonl", lines)
    options = ['use = "ratings"', *(f'{name} = "{name}"' for name in ("prompt", "response", "score"))]
    chosen = tmp_path / "ratings.toml"
    chosen.write_text("[[build.inputs]]\n" + "\n".join(options) + '\n[build.dedupe]\non_duplicate = "merge"\n')
    build_pairs(chosen, tmp_path / "out", given=raw)
    margins = pairs_of(tmp_path / "out")["margin"]
    assert sorted(margins.to_list()) == [1.0, 2e30] and margins.cast(pl.Float32).is_finite().all()
    fell = rejects_of(tmp_path / "out").filter(pl.col("reason") == "score_too_large")
    told = dict(fell.select("origin_row", "detail").iter_rows())
    assert told == {1: "score: 1e+308", 2: "score: -1e+308", 7: "score: 1.1e+30"}
    assert main(["why", str(tmp_path / "out"), "4", "--json"]) == 0

    def never(name: str) -> None:
        raise AssertionError(name)

    assert json.loads(capsys.readouterr().out, parse_constant=never)["pairs"][0]["margin"] == 2e30
    assert as_json({"a": [1.5, float("inf")], "b": (float("nan"), {"c": -float("inf")})}) == as_json(
        {"a": [1.5, None], "b": [None, {"c": None}]}
    )
