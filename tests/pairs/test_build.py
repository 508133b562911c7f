"""The five invariants of the pair builder, on raw data with all the dirt of `raw.py`."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefkit import manifest
from prefkit.config import Pipeline, load_pipeline
from prefkit.errors import DataError, UsageError
from prefkit.pairs import steps
from prefkit.pairs.build import build_pairs
from prefkit.pairs.text import canonical
from prefkit.pairs.verify import verify
from prefkit.pairs.why import why
from tests.pairs.kills import states
from tests.pairs.raw import completion, dirty_lines, row, write_lines

PIPELINE = """
[build]
chunk_bytes = 100_000
[[build.inputs]]
use = "ultrafeedback"
[[build.filters]]
use = "sources"
deny = ["truthful_qa"]
[[build.filters]]
use = "min_margin"
margin = 0.5
[[build.filters]]
use = "languages"
allow = ["en"]
min_probability = 0.1
[[build.filters]]
use = "prompt_length"
min_characters = 70
[build.dedupe]
threshold = 0.6
ngram = 3
[build.split]
test = 0.2
[build.shards]
pairs_per_shard = 60
row_group = 25
"""


def pipeline(folder: Path, *overrides: str, text: str = PIPELINE) -> Pipeline:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "test.toml"
    path.write_text(text)
    return load_pipeline(str(path), overrides)


def contents(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def pairs_of(out: Path, split: str = "*") -> pl.DataFrame:
    return pl.read_parquet(out / "data" / f"{split}-*.parquet")


def rejects_of(out: Path) -> pl.DataFrame:
    return pl.read_parquet(out / "rejects" / "*.parquet")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("raw") / "raw.jsonl", dirty_lines(600))


@pytest.fixture(scope="module")
def built(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    build_pairs(pipeline(folder), folder / "out", given=[str(raw)])
    return folder / "out"


# 1. Conservation


def test_every_row_and_candidate_is_accounted_for(raw: Path, built: Path) -> None:
    assert verify(built) == []
    record = manifest.read(built)
    reasons = {reason for stage in record.stages for reason in stage.rejected}
    expected = {
        "not_json", "not_utf8", "wrong_type", "no_completions", "ambiguous_ten", "empty_response", "missing_score",
        "sources", "exact_duplicate", "near_duplicate", "tied", "not_selected", "identical_responses", "prompt_length",
    }  # fmt: skip
    assert expected <= reasons, "the raw data must hold every kind of dirt for this test to mean anything"
    lines = [line for line in raw.read_bytes().split(b"\n") if line.strip()]
    assert record.inputs[0].rows == len(lines)


def test_undecodable_rows_keep_their_bytes_and_their_line(raw: Path, built: Path) -> None:
    lines = raw.read_bytes().split(b"\n")
    broken = rejects_of(built).filter(pl.col("reason").is_in(["not_json", "not_utf8", "wrong_type"]))
    assert len(broken) > 20
    for line, data in broken.select("origin_row", "raw").iter_rows():
        assert lines[line - 1].strip() == data


@given(st.integers(0, 10_000), st.integers(1, 40), st.sampled_from(["best_vs_worst", "best_vs_random", "all_pairs"]))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_dirt_is_conserved(tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, strategy: str) -> None:
    folder = tmp_path_factory.mktemp("any")
    path = write_lines(folder / "raw.jsonl", dirty_lines(count, seed))
    chosen = pipeline(folder, f"build.binarize.use={strategy}", "build.chunk_bytes=5000")
    try:
        build_pairs(chosen, folder / "out", given=[str(path)])
    except DataError as error:
        assert "no pairs left" in str(error) or "there are no rows" in str(error)
        assert not (folder / "out").exists() or not list((folder / "out").glob("*.json"))
    else:
        assert verify(folder / "out") == []


# 2. Determinism


@pytest.mark.parametrize(("workers", "chunk_bytes"), [(1, 7_000), (2, 100_000), (2, 30_000)])
def test_bytes_do_not_depend_on_workers_or_chunks(
    raw: Path, built: Path, tmp_path: Path, workers: int, chunk_bytes: int
) -> None:
    text = PIPELINE.replace("chunk_bytes = 100_000", f"chunk_bytes = {chunk_bytes}")
    build_pairs(pipeline(tmp_path, text=text), tmp_path / "out", given=[str(raw)], workers=workers)
    ours, theirs = contents(tmp_path / "out"), contents(built)
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name.endswith(".parquet"):
            assert ours[name] == theirs[name], name


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system has no posix_fadvise")
def test_what_memory_does_not_hold_leaves_the_page_cache_once_it_is_read(
    raw: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go: list[tuple[int, int]] = []
    tables: list[tuple[int, int]] = []

    def advise(file: int, start: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        (let_go if os.path.samestat(os.fstat(file), raw.stat()) else tables).append((start, length))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    build_pairs(pipeline(tmp_path), tmp_path / "small", given=[str(raw)])
    assert not let_go and not tables
    monkeypatch.setattr(steps, "MEMORY_SHARE", 0.0)
    build_pairs(pipeline(tmp_path), tmp_path / "large", given=[str(raw)])
    assert len(let_go) > 1, "several parts"
    ends = [0, *(start + length for start, length in let_go)]
    assert [start for start, _ in let_go] == ends[:-1], "all of the file, part by part"
    assert ends[-1] == raw.stat().st_size
    assert tables == [(0, 0)] * 2 * len(let_go), "prompts and answers of every part, before shards are written"
    assert contents(tmp_path / "large") == contents(tmp_path / "small")


def test_the_container_of_the_rows_does_not_matter(raw: Path, built: Path, tmp_path: Path) -> None:
    (tmp_path / "raw.jsonl").write_bytes(raw.read_bytes())
    (tmp_path / "raw.jsonl.gz").write_bytes(gzip.compress(raw.read_bytes()))
    build_pairs(pipeline(tmp_path), tmp_path / "out", given=[str(tmp_path / "raw.jsonl.gz")])
    keys = ["pair_id", "prompt", "chosen", "rejected", "chosen_row", "rejected_row", "cluster_id"]
    assert pairs_of(tmp_path / "out").select(keys).equals(pairs_of(built).select(keys))


def test_shards_hold_what_they_should_in_any_number(raw: Path, built: Path, tmp_path: Path) -> None:
    build_pairs(pipeline(tmp_path, "build.shards.pairs_per_shard=100000"), tmp_path / "out", given=[str(raw)])
    assert len(list((built / "data").glob("train-*"))) > 3
    for split in ("train", "test"):
        assert pairs_of(tmp_path / "out", split).equals(pairs_of(built, split))


def test_pairs_of_a_prompt_are_adjacent(raw: Path, tmp_path: Path) -> None:
    build_pairs(pipeline(tmp_path, "build.binarize.use=all_pairs"), tmp_path / "out", given=[str(raw)])
    for path in (tmp_path / "out" / "data").iterdir():
        ids = pl.read_parquet(path)["prompt_id"]
        assert ids.rle().len() == ids.n_unique()


# 3. Resume


def folders(out: Path, step: str) -> dict[str, float]:
    return {
        path.name: path.stat().st_mtime_ns for path in (out / ".work" / step).iterdir() if not path.name.endswith("tmp")
    }


def test_killed_again_and_again_it_ends_with_the_same_bytes(raw: Path, built: Path, tmp_path: Path) -> None:
    small = PIPELINE.replace("chunk_bytes = 100_000", "chunk_bytes = 20_000")
    pipeline(tmp_path, text=small)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "prefkit", "build-pairs", str(tmp_path / "test.toml"), str(raw), "--out", str(out)]
    rng = random.Random(0)
    kills = 0
    for _ in range(6):
        process = subprocess.Popen([*command, "--workers", "2"], start_new_session=True, stdout=subprocess.DEVNULL)
        wait_for_progress(out, process, rng)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        if not (out / "manifest.json").exists():
            assert kills, "only a kill may leave it unfinished"
    assert kills >= 3
    subprocess.run([*command, "--workers", "1", "--quiet"], check=True)
    ours, theirs = contents(out), contents(built)
    for name in theirs:
        if name.endswith(".parquet"):
            assert ours[name] == theirs[name], name
    assert verify(out) == []
    assert not (out / ".work").exists() or (out / "manifest.json").exists()


def test_a_begun_build_goes_on_in_another_place(raw: Path, built: Path, tmp_path: Path) -> None:
    begun, moved = tmp_path / "begun", tmp_path / "elsewhere" / "moved"
    build_pairs(pipeline(tmp_path), begun, given=[str(raw)], keep_work=True)
    shutil.rmtree(begun / ".work" / "select")
    (begun / "manifest.json").unlink()
    moved.parent.mkdir()
    begun.rename(moved)
    read = folders(moved, "read")
    build_pairs(pipeline(tmp_path), moved, given=[str(raw)], keep_work=True)
    assert folders(moved, "read") == read
    ours, theirs = contents(moved), contents(built)
    assert all(ours[name] == theirs[name] for name in theirs if name.endswith(".parquet"))


def wait_for_progress(out: Path, process: subprocess.Popen[bytes], rng: random.Random) -> None:
    """Until some more tasks are done, and then a moment, so that the kill falls into the middle of one."""
    before = len(list(out.glob(".work/*/*")))
    deadline = time.monotonic() + 60
    while process.poll() is None and len(list(out.glob(".work/*/*"))) <= before and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(rng.random() * 0.2)


def test_a_changed_option_redoes_its_step_and_no_earlier_one(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def build(*overrides: str) -> dict[str, dict[str, float]]:
        build_pairs(pipeline(tmp_path, *overrides), out, given=[str(raw)], overwrite=True, keep_work=True)
        return {step: folders(out, step) for step in ("read", "unite", "similar", "clusters", "select", "write")}

    first = build()
    again = build()
    assert again == first, "nothing to do: nothing done"
    margin = build("build.filters.min_margin.margin=2")
    assert margin["read"] == first["read"]
    assert margin["clusters"] == first["clusters"]
    assert len(margin["select"]) == 2 * len(first["select"])
    threshold = build("build.dedupe.threshold=0.8")
    assert threshold["read"] == first["read"]
    assert len(threshold["unite"]) == 2 * len(first["unite"])
    assert len(threshold["clusters"]) == 2
    length = build("build.filters.prompt_length.min_characters=30")
    assert len(length["read"]) > len(threshold["read"])


def test_a_finished_data_set_is_kept_unless_told(raw: Path, built: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    one = pipeline(tmp_path)
    build_pairs(one, out, given=[str(raw)])
    before = contents(out)
    build_pairs(one, out, given=[str(raw)])
    assert contents(out) == before
    other = pipeline(tmp_path, "build.split.test=0.5")
    with pytest.raises(UsageError, match="--overwrite"):
        build_pairs(other, out, given=[str(raw)])
    assert contents(out) == before
    build_pairs(other, out, given=[str(raw)], overwrite=True)
    assert verify(out) == []
    assert contents(out) != before


def test_a_failed_build_leaves_the_old_data_set_alone(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build_pairs(pipeline(tmp_path), out, given=[str(raw)])
    before = contents(out)
    with pytest.raises(DataError, match="no pairs left"):
        build_pairs(pipeline(tmp_path, "build.filters.min_margin.margin=99"), out, given=[str(raw)], overwrite=True)
    assert {name: data for name, data in contents(out).items() if not name.startswith(".work")} == before


def test_where_nothing_is_left_the_error_shows_a_row(raw: Path, tmp_path: Path) -> None:
    wanted = r"no pairs left of .* For example raw\.jsonl, row \d+, sources: .*; source: truthful_qa\."
    with pytest.raises(DataError, match=wanted):
        build_pairs(pipeline(tmp_path, "build.filters.min_margin.margin=99"), tmp_path / "out", given=[str(raw)])


def test_a_folder_of_somebody_else_is_not_touched(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(UsageError, match="no data set of prefkit"):
        build_pairs(pipeline(tmp_path), tmp_path / "out", given=[str(raw)])


def test_data_of_somebody_else_is_not_deleted(raw: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    (project / "README.md").write_text("mine")
    (project / "data" / "raw.jsonl").write_bytes(raw.read_bytes())
    before = contents(project)
    with pytest.raises(UsageError, match="no data set of prefkit"):
        build_pairs(pipeline(tmp_path), project, given=[str(project / "data" / "raw.jsonl")])
    assert contents(project) == before
    out = tmp_path / "out"
    build_pairs(pipeline(tmp_path), out, given=[str(raw)])
    (out / "data" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"notes\.txt"):
        build_pairs(pipeline(tmp_path, "build.split.test=0.5"), out, given=[str(raw)], overwrite=True)
    assert (out / "data" / "notes.txt").exists()
    assert (out / "manifest.json").exists()


def test_going_back_to_earlier_options(raw: Path, built: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for strategy in ("best_vs_worst", "all_pairs", "best_vs_worst"):
        chosen = pipeline(tmp_path, f"build.binarize.use={strategy}")
        build_pairs(chosen, out, given=[str(raw)], overwrite=True, keep_work=True)
        assert verify(out) == []
    assert {n: d for n, d in contents(out).items() if n.endswith(".parquet") and not n.startswith(".work")} == {
        name: data for name, data in contents(built).items() if name.endswith(".parquet")
    }


def test_killed_at_any_change_of_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a finished data set of other options, die at each change in turn; the next build must put it right.

    The next build is the same one after every second death, and one of the old options after the others.
    """
    raw = write_lines(tmp_path / "raw.jsonl", dirty_lines(40))
    text = '[build]\nlanguage = false\n[build.dedupe]\npermutations = 16\n[[build.inputs]]\nuse = "ultrafeedback"\n'
    old, new = (
        pipeline(tmp_path / use, f"build.binarize.use={use}", text=text) for use in ("best_vs_worst", "all_pairs")
    )
    out = tmp_path / "out"

    def build(chosen: Pipeline) -> dict[str, bytes]:
        build_pairs(chosen, out, given=[str(raw)], overwrite=True)
        return contents(out)

    expected = [build(chosen) for chosen in (new, old)]
    left = states(monkeypatch, out, tmp_path / "left", lambda: build(new))
    assert len(left) > 100
    for death, state in enumerate(left):
        shutil.rmtree(out)
        state.rename(out)
        if (out / "manifest.json").exists():
            assert verify(out) == [], death
        assert build((new, old)[death % 2]) == expected[death % 2], death


# 4. No leak


@pytest.mark.parametrize("action", ["drop", "keep"])
def test_no_cluster_and_no_near_duplicate_crosses_the_split(raw: Path, tmp_path: Path, action: str) -> None:
    build_pairs(pipeline(tmp_path, f"build.dedupe.action={action}"), tmp_path / "out", given=[str(raw)])
    sides = [pairs_of(tmp_path / "out", split) for split in ("train", "test")]
    assert min(len(side) for side in sides) > 15
    assert not set(sides[0]["cluster_id"]) & set(sides[1]["cluster_id"])
    grams = [[shingles(prompt[0]["content"]) for prompt in side["prompt"]] for side in sides]
    worst = max(len(a & b) / len(a | b) for a in grams[0] for b in grams[1])
    assert worst < 0.6
    clusters = pl.concat(sides)["cluster_id"]
    assert (clusters.n_unique() < len(clusters)) == (action == "keep"), "kept duplicates make clusters of several"


def shingles(text: str) -> set[str]:
    words = canonical(text).split()
    return {" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


# 5. Real preferences only


@pytest.mark.parametrize("strategy", ["best_vs_worst", "best_vs_random", "all_pairs"])
def test_chosen_is_better_than_rejected_in_the_raw_data(raw: Path, tmp_path: Path, strategy: str) -> None:
    import json

    build_pairs(pipeline(tmp_path, f"build.binarize.use={strategy}"), tmp_path / "out", given=[str(raw)])
    lines = raw.read_bytes().split(b"\n")
    pairs = pairs_of(tmp_path / "out")
    assert set(pairs["strategy"]) == {strategy}
    for pair in pairs.iter_rows(named=True):
        answers = json.loads(lines[pair["chosen_row"] - 1])["completions"]
        chosen, rejected = answers[pair["chosen_index"]], answers[pair["rejected_index"]]
        assert pair["chosen"] == [{"role": "assistant", "content": chosen["response"]}]
        assert pair["rejected"] == [{"role": "assistant", "content": rejected["response"]}]
        assert chosen["response"].strip() != rejected["response"].strip()
        assert pair["margin"] == pair["chosen_score"] - pair["rejected_score"] >= 0.5
        assert pair["chosen_model"] == chosen["model"]


# Around it


def test_limit_reads_the_first_rows_of_each_file(raw: Path, tmp_path: Path) -> None:
    record = build_pairs(pipeline(tmp_path, "build.chunk_bytes=9000"), tmp_path / "out", given=[str(raw)], limit=100)
    blank = raw.read_bytes().split(b"\n")[:100].count(b"")
    assert record.inputs[0].rows == 100 - blank
    assert verify(tmp_path / "out") == []


def test_several_files_and_sources(tmp_path: Path) -> None:
    rng = random.Random(1)
    import json

    write_lines(tmp_path / "uf.jsonl", [json.dumps(row(rng, source="uf")).encode() for _ in range(30)])
    ready = [
        {"prompt": f"What is {i} plus one, said in words?", "chosen": f"{i} and one", "rejected": "no"}
        for i in range(30)
    ]
    write_lines(tmp_path / "pairs.jsonl", [json.dumps(one).encode() for one in ready])
    text = """
    [[build.inputs]]
    use = "pairs"
    paths = ["pairs.jsonl"]
    source = "ready"
    [[build.inputs]]
    use = "ultrafeedback"
    paths = ["uf.jsonl"]
    """
    record = build_pairs(pipeline(tmp_path, text=text), tmp_path / "out")
    assert {file.path: file.rows for file in record.inputs} == {"pairs.jsonl": 30, "uf.jsonl": 30}
    assert set(pairs_of(tmp_path / "out")["source"]) == {"ready", "uf"}
    assert verify(tmp_path / "out") == []


def test_functions_from_outside(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rules.py").write_text(
        "import polars as pl\n"
        "def without(*, word: str):\n    return ~pl.col('response').str.contains(word, literal=True)\n"
        "def first_two(candidates):\n"
        "    return candidates.group_by('group').agg(chosen=pl.col('candidate').sort_by('score').last(),"
        " rejected=pl.col('candidate').sort_by('score').first())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    rule = '[[build.filters]]\nuse = "my_rules:without"\nword = "explain"\n'
    text = PIPELINE + rule + '[build.binarize]\nuse = "my_rules:first_two"\n'
    record = build_pairs(pipeline(tmp_path, text=text), tmp_path / "out", given=[str(raw)])
    assert set(pairs_of(tmp_path / "out")["strategy"]) == {"first_two"}
    assert verify(tmp_path / "out") == []
    assert not pairs_of(tmp_path / "out")["chosen"].list.first().struct.field("content").str.contains("explain").any()
    assert "without" in {reason for stage in record.stages for reason in stage.rejected}


def test_a_strategy_that_prefers_the_worse_is_overruled(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_bad_rules.py").write_text(
        "from prefkit.pairs.binarize import best_vs_worst\n"
        "def worst(candidates):\n"
        "    return best_vs_worst(candidates).rename({'chosen': 'rejected', 'rejected': 'chosen'})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DataError, match="not_better"):
        build_pairs(pipeline(tmp_path, "build.binarize.use=my_bad_rules:worst"), tmp_path / "out", given=[str(raw)])
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_parquet_rows_read_as_json_ones(tmp_path: Path) -> None:
    import json

    rng = random.Random(2)
    rows = [row(rng) for _ in range(40)]
    for one in rows:
        one.pop("models")
    write_lines(tmp_path / "a.jsonl", [json.dumps(one).encode() for one in rows])
    pl.DataFrame(rows).write_parquet(tmp_path / "a.parquet", row_group_size=9)
    outs = []
    for name in ("a.jsonl", "a.parquet"):
        folder = tmp_path / name.replace(".", "_")
        build_pairs(pipeline(folder), folder / "out", given=[str(tmp_path / name)])
        outs.append(pairs_of(folder / "out").drop("chosen_file", "rejected_file"))
    assert outs[0].equals(outs[1])


def test_system_prompts_kept_make_prompts_of_their_own(tmp_path: Path) -> None:
    import json

    rng = random.Random(3)
    rows = [row(rng, completions=[completion(rng, i, overall_score=1.0 + i) for i in range(4)]) for _ in range(20)]
    write_lines(tmp_path / "a.jsonl", [json.dumps(one).encode() for one in rows])
    chosen = pipeline(tmp_path, "build.inputs.ultrafeedback.system_prompt=keep", "build.dedupe.threshold=1.0")
    build_pairs(chosen, tmp_path / "out", given=[str(tmp_path / "a.jsonl")])
    pairs = pairs_of(tmp_path / "out")
    assert {prompt[0]["role"] for prompt in pairs["prompt"]} == {"system"}
    assert set(zip(pairs["chosen_index"], pairs["rejected_index"], strict=True)) == {(2, 0), (3, 1)}
    assert verify(tmp_path / "out") == []


def test_redaction_and_languages_of_answers(tmp_path: Path) -> None:
    import json

    english = "The weather in the mountains is getting colder every day now"
    german = "Das Wetter in den Bergen wird jetzt jeden Tag ein wenig kälter"
    rows = [
        {
            "prompt": f"{english}, write to me@firm.org please",
            "chosen": f"{english}.",
            "rejected": "No, me@firm.org",
        },
        {"prompt": f"Tell me once more: {english}, is it so?", "chosen": f"{german}!", "rejected": f"{english}!"},
    ]
    write_lines(tmp_path / "a.jsonl", [json.dumps(one).encode() for one in rows])
    text = """
    [build.redact]
    [build.language]
    responses = true
    k = 3
    [[build.inputs]]
    use = "pairs"
    [[build.filters]]
    use = "language_mismatch"
    min_probability = 0.5
    """
    build_pairs(pipeline(tmp_path, text=text), tmp_path / "out", given=[str(tmp_path / "a.jsonl")])
    assert verify(tmp_path / "out") == []
    (pair,) = pairs_of(tmp_path / "out").rows(named=True)
    assert pair["prompt"][0]["content"].endswith("write to [EMAIL] please")
    assert pair["rejected"][0]["content"] == "No, [EMAIL]"
    assert pair["langs"][0]["lang"] == pair["lang"] == "en"
    assert len(pair["langs"]) == 3
    fallen = rejects_of(tmp_path / "out").filter(pl.col("reason") == "language_mismatch").row(0, named=True)
    assert (fallen["origin_row"], fallen["completion_index"]) == (2, 0)
    assert "response_lang: de" in fallen["detail"]
    off = text.replace("responses = true", "")
    with pytest.raises(UsageError, match="responses = true"):
        build_pairs(pipeline(tmp_path, text=off), tmp_path / "no", given=[str(tmp_path / "a.jsonl")])


def test_the_detail_of_a_reject_tells_the_values_and_no_personal_data(tmp_path: Path) -> None:
    import json

    thirty = " ".join(map(str, range(30)))
    rows = [
        {"prompt": "Who?", "chosen": "ask jo@acme.org or 8.8.8.8", "rejected": "nobody", "a": 3.0, "b": 2.0},
        {"prompt": "Why?", "chosen": "x" * 5000, "rejected": "because", "a": 3.0, "b": 2.0},
        {"prompt": "When?", "chosen": "now", "rejected": "then", "a": 4.1, "b": 4.0},
        {"prompt": "Where?", "chosen": "here", "rejected": "there", "a": 3.0, "b": 1.0},
        {"prompt": "How?", "chosen": f"{thirty} so", "rejected": f"{thirty} thus", "a": 3.0, "b": 1.0},
        {"prompt": "What?", "chosen": "again and " * 40, "rejected": "once", "a": 3.0, "b": 1.0},
    ]
    write_lines(tmp_path / "a.jsonl", [json.dumps(one).encode() for one in rows])
    text = """
    [build]
    language = false
    [[build.inputs]]
    use = "pairs"
    chosen_score = "a"
    rejected_score = "b"
    [[build.filters]]
    use = "pii"
    [[build.filters]]
    use = "repetition"
    [[build.filters]]
    use = "length_ratio"
    [[build.filters]]
    use = "near_identical"
    [[build.filters]]
    use = "min_margin"
    margin = 0.5
    """
    build_pairs(pipeline(tmp_path, text=text), tmp_path / "out", given=[str(tmp_path / "a.jsonl")])
    fallen = rejects_of(tmp_path / "out").filter(pl.col("detail").is_not_null())
    details = dict(fallen.select("reason", "detail").rows())
    assert details["pii"].endswith("; prompt: Who?; response: ask [EMAIL] or [IP]")
    assert details["length_ratio"].endswith("; chosen: 5000 characters, rejected: 7 characters")
    assert details["min_margin"].endswith("; margin: 0.1")
    assert details["near_identical"] == "max_similarity=0.9, ngram=3; similarity: 0.933333", "28 of 30 are shared"
    assert "; top_2_gram_characters " in details["repetition"]
    (row,) = why(tmp_path / "out", "5")["rows"]
    assert {one["rejected"]["detail"] for one in row["candidates"]} == {details["near_identical"]}


def test_the_detail_of_what_a_source_rejects_quotes_no_personal_data(tmp_path: Path) -> None:
    import json

    said = {"I.": True, "You.": False, "They.": "jo@acme.org"}
    rows = [{"prompt": "Who?", "completion": text, "label": label} for text, label in said.items()]
    write_lines(tmp_path / "a.jsonl", [json.dumps(one).encode() for one in rows])
    text = '[build]\nlanguage = false\n[[build.inputs]]\nuse = "unpaired"\n[build.dedupe]\non_duplicate = "merge"\n'
    build_pairs(pipeline(tmp_path, text=text), tmp_path / "out", given=[str(tmp_path / "a.jsonl")])
    fallen = rejects_of(tmp_path / "out")
    assert fallen["detail"].to_list() == ["\"label\" is '[EMAIL]', not true or false"]
    assert b"jo@acme.org" in fallen["raw"][0], "the row as it was"


def test_a_measure_from_outside_is_told_and_checked(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_measures.py").write_text(
        "import polars as pl\n"
        "from prefkit.pairs.rules import Measured\n"
        "TEXT = pl.col('response').str\n"
        "SPACES = TEXT.count_matches(' ')\n"
        "def few(*, at_most: int = 9):\n    return Measured(SPACES <= at_most, pl.format('{} spaces', SPACES))\n"
        "def number():\n    return Measured(SPACES <= 9, SPACES)\n"
        "def nothing():\n    return Measured(SPACES <= 9, 'spaces')\n"
        "def fails():\n    return Measured(SPACES <= 9, TEXT.to_integer().cast(pl.String))\n"
        "def both():\n    return Measured(SPACES <= 9, pl.col('margin').cast(pl.String))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def build(rule: str) -> Path:
        text = PIPELINE + f'[[build.filters]]\nuse = "my_measures:{rule}"\n'
        build_pairs(pipeline(tmp_path, text=text), tmp_path / rule, given=[str(raw)])
        return tmp_path / rule

    told = rejects_of(build("few")).filter(pl.col("reason") == "few")["detail"]
    assert told.str.contains(r"^at_most=9; [1-9]\d spaces$").all()
    for rule, words in {
        "number": "must be text, not UInt32",
        "nothing": "returned str, not a polars expression",
        "fails": r"filters\]\] fails failed",
        "both": "mixes columns of candidates and of pairs",
    }.items():
        with pytest.raises(UsageError, match=words):
            build(rule)


def test_a_build_imports_neither_pandas_nor_torch(raw: Path, tmp_path: Path) -> None:
    """pandas takes a third of a second of each worker, and comes in by innocent calls of pyarrow."""
    code = (
        "import sys; from pathlib import Path; from prefkit.config import load_pipeline\n"
        "from prefkit.pairs.build import build_pairs\n"
        f"build_pairs(load_pipeline('ultrafeedback'), Path({str(tmp_path / 'out')!r}), given=[{str(raw)!r}])\n"
        "print([name for name in ('pandas', 'torch', 'scipy.sparse') if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert found.stdout.splitlines()[-1] == "[]"
