"""Quotas: exact numbers against an independent count, whole prompts, nestedness, conservation, any cut of the input."""

from __future__ import annotations

import json
import random
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.errors import DataError, UsageError
from prefkit.manifest import Manifest
from prefkit.pairs import mix
from prefkit.pairs.build import build_pairs
from prefkit.pairs.options import check_build
from prefkit.pairs.verify import verify
from tests.pairs.raw import completion, row, write_lines
from tests.pairs.test_build import contents, pairs_of, pipeline, rejects_of

TWO = """
[build]
language = false
chunk_bytes = 20_000
[[build.inputs]]
use = "ultrafeedback"
paths = ["first.jsonl"]
[[build.inputs]]
use = "ultrafeedback"
paths = ["second.jsonl"]
[build.dedupe]
permutations = 16
[build.binarize]
use = "all_pairs"
[build.split]
test = 0.2
[build.shards]
pairs_per_shard = 100
"""
SIZES = {"first": 40, "second": 25}
CAP, WEIGHT = "build.inputs.{}.cap={}".format, "build.inputs.{}.weight={}".format


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("mix"), random.Random(4)
    for name, count in SIZES.items():
        rows = [row(rng, completions=[completion(rng, i) for i in range(rng.randint(2, 4))]) for _ in range(count)]
        write_lines(folder / f"{name}.jsonl", [json.dumps(one).encode() for one in rows])
    return folder


def build(folder: Path, out: Path, *overrides: str, workers: int = 1) -> Manifest:
    record = build_pairs(pipeline(folder, *overrides, text=TWO), out, workers=workers)
    assert verify(out) == []
    return record


@pytest.fixture(scope="module")
def every(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """All pairs, without quotas."""
    out = tmp_path_factory.mktemp("every") / "out"
    record = build(folder, out)
    assert not set(record.stages[-1].rejected) & set(mix.REASONS)
    return pairs_of(out)


def by_input(pairs: pl.DataFrame) -> Counter[str]:
    return Counter(name.removesuffix(".jsonl") for name in pairs["chosen_file"])


def longer(pairs: pl.DataFrame) -> list[bool]:
    sides = pairs.select("chosen", "rejected").rows()
    return [len(chosen[-1]["content"].strip()) > len(rejected[-1]["content"].strip()) for chosen, rejected in sides]


def test_a_cap_keeps_so_many_pairs_of_its_input_in_whole_prompts(
    folder: Path, every: pl.DataFrame, tmp_path: Path
) -> None:
    record = build(folder, tmp_path / "out", CAP(0, 50))
    kept = pairs_of(tmp_path / "out")
    assert by_input(kept) == by_input(every) | {"first": 50}
    assert record.stages[-1].rejected["cap"] == by_input(every)["first"] - 50
    of_prompts = [Counter(some.filter(pl.col("chosen_file") == "first.jsonl")["prompt_id"]) for some in (kept, every)]
    cut = [prompt for prompt, count in of_prompts[0].items() if count < of_prompts[1][prompt]]
    assert len(cut) <= 1 and len(of_prompts[0]) < len(of_prompts[1])
    fallen = rejects_of(tmp_path / "out").filter(pl.col("reason") == "cap")
    assert set(fallen["stage"]) == {"binarize"} and set(fallen["origin_file"]) == {"first.jsonl"}
    assert fallen["detail"].unique().to_list() == [f"cap=50: 50 of {by_input(every)['first']:,} pairs are kept"]


def test_what_a_smaller_cap_keeps_a_larger_one_keeps(folder: Path, every: pl.DataFrame, tmp_path: Path) -> None:
    kept = [set(every["pair_id"])]
    for cap in (64, 63, 30):
        build(folder, tmp_path / str(cap), CAP(0, cap), CAP(1, cap))
        kept.append(set(pairs_of(tmp_path / str(cap))["pair_id"]))
        assert len(kept[-1]) == sum(min(count, cap) for count in by_input(every).values())
        assert kept[-1] < kept[-2]


@pytest.mark.parametrize("weights, cap", [((0.3, 0.7), None), ((1, 1), 40), ((5, 0.1), None)])
def test_the_largest_mix_with_the_proportions(
    folder: Path, every: pl.DataFrame, tmp_path: Path, weights: tuple[float, float], cap: int | None
) -> None:
    capped = [CAP(0, cap)] if cap else []
    record = build(folder, tmp_path / "out", WEIGHT(0, weights[0]), WEIGHT(1, weights[1]), *capped)
    available = by_input(every)
    available["first"] = min(available["first"], cap or available["first"])
    exact = [Fraction(str(weight)) for weight in weights]
    sizes = range(sum(available.values()) * 100)  # in hundredths of a pair, by trying all
    fits = [n for n in sizes if all(n * w <= 100 * available[k] for k, w in zip(SIZES, exact, strict=True))]
    found = by_input(pairs_of(tmp_path / "out"))
    for name, weight in zip(SIZES, exact, strict=True):
        assert abs(found[name] - fits[-1] * weight / 100) <= 1 + weight / 100
    assert any(found[name] == available[name] for name in SIZES), "one input is used up"
    assert record.stages[-1].rejected["mix_weight"] == sum((available - found).values())


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_at_most_a_share_of_the_chosen_is_longer(
    folder: Path, every: pl.DataFrame, tmp_path: Path, share: float
) -> None:
    before = Counter(longer(every))
    assert before[True] > before[False] / 3, "or there is nothing to limit"
    record = build(folder, tmp_path / "out", f"build.balance.max_longer_share={share}")
    kept = pairs_of(tmp_path / "out")
    after = Counter(longer(kept))
    assert after[False] == before[False], "only longer ones fall"
    assert after[True] <= share * len(kept)
    if after[True] < before[True]:
        assert after[True] + 1 > share * (len(kept) + 1), "and no more than needed"
        assert record.stages[-1].rejected["length_balance"] == before[True] - after[True]
    assert f"max&#95;longer&#95;share = {share}" in (tmp_path / "out" / "README.md").read_text()


def test_quotas_do_not_depend_on_the_cut_of_the_input(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_of_them = [CAP(0, 90), WEIGHT(0, 2), WEIGHT(1, 1), "build.balance.max_longer_share=0.3"]
    record = build(folder, tmp_path / "one", *all_of_them)
    assert {"cap", "mix_weight", "length_balance"} <= set(record.stages[-1].rejected)
    build(folder, tmp_path / "two", *all_of_them, workers=2)
    monkeypatch.setattr("prefkit.pairs.steps.BUCKET_BYTES", 20_000)  # many buckets
    build(folder, tmp_path / "three", *all_of_them, "build.chunk_bytes=5_000")
    results = [
        {name: data for name, data in contents(tmp_path / which).items() if name.startswith("data/")}
        for which in ("one", "two", "three")
    ]
    assert results[0] == results[1] == results[2]
    rejects = [rejects_of(tmp_path / which).sort(pl.all().exclude("raw")) for which in ("one", "three")]
    assert rejects[0].equals(rejects[1])


def test_another_seed_keeps_other_prompts(folder: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        build(folder, tmp_path / str(seed), CAP(0, 30), f"build.split.seed={seed}")
    kept = [set(pairs_of(tmp_path / str(seed))["pair_id"]) for seed in (0, 1)]
    assert kept[0] != kept[1]


def test_a_changed_quota_redoes_no_earlier_step(folder: Path, tmp_path: Path) -> None:
    def steps(cap: int) -> dict[str, int]:
        text = pipeline(folder, CAP(0, cap), text=TWO)
        build_pairs(text, tmp_path / "out", overwrite=True, keep_work=True)
        work = tmp_path / "out" / ".work"
        return {step: len(list((work / step).iterdir())) for step in ("read", "select", "quotas", "mix")}

    first, second = steps(20), steps(21)
    assert second == first | {"quotas": 2, "mix": 2 * first["mix"]}


def test_scores_from_weights_over_aspects(folder: Path, tmp_path: Path) -> None:
    weights = {"helpfulness": 0.75, "honesty": -0.5}
    inline = "{" + ", ".join(f"{name} = {value}" for name, value in weights.items()) + "}"
    build(folder, tmp_path / "out", f"build.inputs.0.score_weights={inline}")
    lines = [json.loads(line) for line in (folder / "first.jsonl").read_bytes().splitlines()]

    def score(number: int, index: int) -> float:
        ratings: dict[str, Any] = lines[number - 1]["completions"][index]["annotations"]
        return sum(weight * float(ratings[name]["Rating"]) for name, weight in weights.items())

    pairs = pairs_of(tmp_path / "out").filter(pl.col("chosen_file") == "first.jsonl")
    assert len(pairs) > 50
    for side in ("chosen", "rejected"):
        for number, index, found in pairs.select(f"{side}_row", f"{side}_index", f"{side}_score").iter_rows():
            assert found == pytest.approx(score(number, index))


def test_an_aspect_that_is_not_rated_is_named(folder: Path, tmp_path: Path) -> None:
    record = build(folder, tmp_path / "out", "build.inputs.0.score_weights={helpfull = 1}")
    assert [remark.partition("; rated")[0] for remark in record.remarks] == [
        "first.jsonl: nothing is left once read. Most of it fell to missing_aspect. For example first.jsonl, row 1, "
        "missing_aspect: score_weights asks for helpfull"
    ]
    fallen = rejects_of(tmp_path / "out").filter(pl.col("reason") == "missing_aspect")
    assert set(fallen["origin_file"]) == {"first.jsonl"}
    assert all(text.startswith("score_weights asks for helpfull; rated are ") for text in fallen["detail"])
    assert any("helpfulness" in text for text in fallen["detail"])


def test_aspects_that_nothing_looks_at_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "Q", "response": "A", "score": 1, "c": 2}\n')
    text = '[[build.inputs]]\nuse = "ratings"\npaths = ["a.jsonl"]\naspects = { clear = "c" }\n'
    with pytest.raises(UsageError, match=r"\[\[build.inputs\]\] ratings: aspects have no effect"):
        check_build(pipeline(tmp_path, text=text))
    assert check_build(pipeline(tmp_path, text=text + "score_weights = { clear = 1.0 }\n"))
    (tmp_path / "clear_rule.py").write_text(
        "import polars as pl\ndef rated():\n    return pl.col('aspects').list.len() > 0\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        assert check_build(pipeline(tmp_path, text=text + '[[build.filters]]\nuse = "clear_rule:rated"\n'))


def test_files_of_which_nothing_is_left_are_told_by_their_reason(folder: Path, tmp_path: Path) -> None:
    for name, text in {"b": "", "c": "{}\n", "d": '{"instruction": "Q", "completions": []}\n{}\n{}\n'}.items():
        (tmp_path / f"{name}.jsonl").write_text(text)
    good = str(folder / "first.jsonl")
    text = TWO.replace('["first.jsonl"]', '["[a-d].jsonl"]').replace('["second.jsonl"]', f'["{good}"]')
    wrong = ["b.jsonl: no rows.", "c.jsonl and 1 more: nothing is left once read. Most of it fell to wrong_type."]
    said = build_pairs(pipeline(tmp_path, text=text), tmp_path / "out").remarks
    assert [remark.partition(" For example")[0] for remark in said] == wrong
    assert "c.jsonl, row 1, wrong_type: Object missing required field" in said[1]
    with pytest.raises(DataError, match=r"no pairs left of 4 rows.*wrong_type 3") as none:
        build_pairs(pipeline(tmp_path, text=text.replace(good, "c.jsonl").replace("[a-d]", "[bd]")), tmp_path / "none")
    assert "nothing is left once read" not in str(none.value)


@pytest.mark.parametrize(
    "override, words",
    [
        (WEIGHT(0, 1), "some entries have a weight"),
        ("build.inputs.1.score=1", r"test: \[\[build.inputs\]\] ultrafeedback \(entry 2 of 2\): option score"),
        ("build.inputs.1.use=ultrafedback", r"test: \[\[build.inputs\]\] \(entry 2 of 2\): there is no"),
        ("build.inputs.1.paths=3", r"test: \[\[build.inputs\]\] \(entry 2 of 2\): paths must be"),
        ("build.inputs.1.paths=[]", r"test: \[\[build.inputs\]\] \(entry 2 of 2\): no files. Add paths."),
        (CAP(1, 0), r"test: \[\[build.inputs\]\] ultrafeedback \(entry 2 of 2\): option cap"),
        (CAP(0, 0), "option cap"),
        (CAP(0, "true"), "option cap: Input should be a valid integer, not True"),
        (WEIGHT(0, -1), "option weight"),
        ("build.inputs.0.score_weights={}", "option score_weights"),
        ("build.inputs.0.caps=3", "caps"),
        ("build.balance.max_longer_share=1.5", "option max_longer_share"),
        ("build.balance.max_longer=1", "Did you mean"),
    ],
)
def test_quotas_that_make_no_sense(folder: Path, tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build(folder, tmp_path / "out", override)


def test_a_weight_for_an_input_without_pairs(folder: Path, tmp_path: Path) -> None:
    second = (folder / "second.jsonl").read_text()
    (tmp_path / "first.jsonl").write_text("{}\n")
    (tmp_path / "second.jsonl").write_text(second)
    with pytest.raises(DataError, match=r"entry 1 \(ultrafeedback\) has a weight"):
        build(tmp_path, tmp_path / "out", WEIGHT(0, 1), WEIGHT(1, 1))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1), st.booleans()), max_size=60), st.data())
@settings(max_examples=150, deadline=None)
def test_cuts_against_sorting(pairs: list[tuple[int, int, bool]], data: st.DataObject) -> None:
    """Thresholds over buckets keep what sorting all pairs by their draw and taking the first would keep."""
    import tempfile

    caps = data.draw(st.lists(st.none() | st.integers(1, 30), min_size=2, max_size=2))
    share = data.draw(st.none() | st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    quotas = mix.Quotas(["a", "b"], caps, [None, None], share, seed=3)
    with tempfile.TemporaryDirectory() as name:
        buckets = [[pair for pair in sorted(pairs) if pair[0] % 2 == number] for number in (0, 1)]
        folders = [Path(name) / str(number) for number in (0, 1)]
        for folder, members in zip(folders, buckets, strict=True):
            folder.mkdir()
            for column, (array, kind) in enumerate([("order", "u8"), ("entry", "i4"), ("longer", "?")]):
                np.save(folder / f"{array}.npy", np.array([pair[column] for pair in members], kind))
        mix.find_cuts(Path(name), folders, quotas)
        cuts = [mix.Cut(*fields) for fields in json.loads((Path(name) / "cuts.json").read_text())]
        left = []
        draws = {}
        for folder, members in zip(folders, buckets, strict=True):
            marks = mix._marks(folder, 3)
            draws |= {pair[0]: int(draw) for pair, draw in zip(members, marks.draw, strict=True)}
            stay = np.ones(len(members), bool)
            for cut in cuts:
                stay &= ~mix._fallen(cut, marks, stay)
            left += [pair for pair, stays in zip(members, stay, strict=True) if stays]
    expected = sorted(buckets[0] + buckets[1], key=lambda pair: draws[pair[0]])
    for entry, cap in enumerate(caps):
        mine = [pair for pair in expected if pair[1] == entry]
        gone = Counter(mine[cap:] if cap else [])
        expected = _without_last(expected, gone)
    if share is not None:
        others = [pair for pair in expected if not pair[2]]
        long = [pair for pair in expected if pair[2]]
        while long and len(long) > Fraction(str(share)) * (len(long) + len(others)):
            long.pop()
        expected = others + long
    assert Counter(left) == Counter(expected)


def _without_last(pairs: list[tuple[int, int, bool]], gone: Counter[tuple[int, int, bool]]) -> list[Any]:
    kept = []
    for pair in reversed(pairs):
        if gone[pair]:
            gone[pair] -= 1
        else:
            kept.append(pair)
    return kept[::-1]
