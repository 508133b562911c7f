"""`prefkit view` on a million pairs: how long a page takes, and what it costs in memory.

    python tests/benchmarks/view.py DIR [--pairs 1000000] [--repeats 3]
    python tests/benchmarks/view.py DIR --browser            # what a person waits for, in Chromium
    python tests/benchmarks/view.py DIR --engines            # the work of a page by polars and by DuckDB

DIR gets a data set of word salad with the lengths of real answers (100 words of prompt, 150 of each answer, 2.5 kB a
pair) and of 20 % rejects, unless it holds one. Then `prefkit view` is started as a process of its own, as often as
there are repeats, and asked over HTTP, as its page does: medians, on a warm page cache. Memory is that of the process
at the end, as the kernel counts it: what is its own (anonymous) now, and the peak with the file pages that it mapped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from prefkit import manifest, schema
from prefkit.manifest import InputFile, Manifest, Shard, StageReport
from prefkit.pairs import shards

if TYPE_CHECKING:
    from playwright.sync_api import Page

A_SHARD, ROW_GROUP, LEVEL = 25_000, 2_500, 1
REJECTS_SHARE = 0.2
WORDS = {"prompt": 100, "chosen": 150, "rejected": 150}
SOURCES = ["evol_instruct", "sharegpt", "flan", "ultrachat", "false_qa", "truthful_qa"]
LANGUAGES = ["en", "de", "fr", "es", "zh", "ja", None]
MODELS = [f"model-{number}" for number in range(17)]
RARE = "zyzzyva"  # stands in one pair of 100,000


def vocabulary(rng: np.random.Generator) -> pa.Array:
    letters = rng.integers(97, 123, (20_000, 9)).astype(np.uint8)
    return pa.array([bytes(row[: 2 + at % 8]).decode() for at, row in enumerate(letters)])


def texts(rng: np.random.Generator, words: pa.Array, count: int, mean: int) -> pa.Array:
    """Texts of about `mean` words, common words more often than rare ones."""
    lengths = rng.integers(mean // 3, mean * 5 // 3, count)
    numbers = (len(words) * rng.random(lengths.sum()) ** 3).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pc.binary_join(pa.ListArray.from_arrays(offsets, words.take(pa.array(numbers))), " ")


def ids(rng: np.random.Generator, count: int) -> list[str]:
    text = rng.bytes(16 * count).hex()
    return [text[at : at + 32] for at in range(0, len(text), 32)]


def messages(role: str, content: pl.Series) -> pl.Series:
    return pl.select(pl.concat_list(pl.struct(role=pl.lit(role), content=content)))[:, 0]


def pairs(rng: np.random.Generator, words: pa.Array, count: int, first: int) -> pl.DataFrame:
    held = {name: pl.Series(texts(rng, words, count, mean)) for name, mean in WORDS.items()}
    rare = pl.Series((np.arange(first, first + count) % 100_000) == 77_777)
    held["rejected"] = pl.select(pl.when(rare).then(held["rejected"] + f" {RARE}").otherwise(held["rejected"]))[:, 0]
    scores = rng.integers(2, 21, (2, count)) / 2
    prompts = ids(rng, count)
    chosen = np.maximum(*scores) + 0.5
    columns: dict[str, Any] = {
        name: messages("user" if name == "prompt" else "assistant", text) for name, text in held.items()
    }
    columns |= {
        "pair_id": ids(rng, count), "prompt_id": prompts, "cluster_id": prompts, "strategy": ["best_vs_worst"] * count,
        "source": [SOURCES[at] for at in rng.integers(0, len(SOURCES), count)],
        "lang": [LANGUAGES[min(at, len(LANGUAGES) - 1)] for at in rng.geometric(0.6, count) - 1],
        "chosen_score": chosen, "rejected_score": np.minimum(*scores), "margin": chosen - np.minimum(*scores),
        "lang_prob": rng.random(count, np.float32), "langs": pl.Series([None] * count),
    }  # fmt: skip
    for number, side in enumerate(("chosen", "rejected")):
        columns[f"{side}_model"] = [MODELS[at] for at in rng.integers(0, len(MODELS), count)]
        columns[f"{side}_file"] = ["raw.jsonl"] * count
        columns[f"{side}_row"] = np.arange(first, first + count) + 1
        columns[f"{side}_index"] = np.full(count, number)
    return pl.DataFrame(columns, strict=False)


def rejects(rng: np.random.Generator, count: int, first: int) -> pl.DataFrame:
    reasons = [("filter", "tied"), ("binarize", "not_selected"), ("dedupe", "near_duplicate"), ("read", "not_json")]
    drawn = [reasons[at] for at in rng.integers(0, len(reasons), count)]
    columns = {
        "stage": [stage for stage, _ in drawn], "reason": [reason for _, reason in drawn],
        "origin_file": ["raw.jsonl"] * count, "origin_row": np.arange(first, first + count) + 1,
        "completion_index": np.full(count, 2), "prompt_id": ids(rng, count), "cluster_id": ids(rng, count),
        "detail": [f"margin: {number}" for number in range(count)], "raw": pl.Series([None] * count),
    }  # fmt: skip
    return pl.DataFrame(columns, strict=False)


def write(folder: Path, count: int) -> None:
    """A data set whose shards and manifest are as build-pairs writes them; only the account is made up."""
    rng = np.random.default_rng(0)
    words = vocabulary(rng)
    fallen = int(count * REJECTS_SHARE)
    held: list[Shard] = []

    def add(split: str, number: int, of: int, rows: pl.DataFrame, kind: pa.Schema) -> None:
        name = f"{'rejects' if split == 'rejects' else 'data'}/{split}-{number:05d}-of-{of:05d}.parquet"
        place = folder / name
        work = folder / "scratch"
        for one in (place.parent, work):
            one.mkdir(parents=True, exist_ok=True)
        shards.write_rows(work, rows, kind, ROW_GROUP, LEVEL)
        facts = json.loads((work / "shard.json").read_text())
        (work / "data.parquet").rename(place)
        held.append(Shard(name, split, **facts))

    for split, rows, base in (("train", count - count // 50, 0), ("test", count // 50, count - count // 50)):
        of = -(-rows // A_SHARD)
        for number in range(of):
            first = base + number * A_SHARD
            size = min(A_SHARD, base + rows - first)
            add(split, number, of, pairs(rng, words, size, first), schema.PAIRS)
    add("rejects", 0, 1, rejects(rng, fallen, count), schema.REJECTS)
    stages = [StageReport("binarize", "pairs", count, {}, count)]
    inputs = [InputFile("raw.jsonl", 0, "", count + fallen)]
    options = {"split": {"test": 0.02, "seed": 0}, "decontaminate": False}
    record = Manifest("bench", "", [], options, {"prefkit": "0"}, inputs, stages, held)
    (folder / "scratch" / "shard.json").unlink()
    (folder / "scratch").rmdir()
    (folder / manifest.FILE_NAME).write_text(json.dumps(dataclasses.asdict(record)))


class Viewer:
    """`prefkit view` as a process; asks it over HTTP."""

    def __init__(self, folder: Path) -> None:
        started = time.perf_counter()
        command = [sys.executable, "-m", "prefkit", "view", str(folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        line = self.process.stdout.readline()
        self.url = re.findall(r"http://\S+", line)[0]
        self.started = time.perf_counter() - started

    def get(self, name: str, **query: Any) -> tuple[float, Any]:
        started = time.perf_counter()
        address = f"{self.url}api/{name}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(address) as answer:
            found = json.loads(answer.read())
        return time.perf_counter() - started, found

    def memory(self) -> str:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        held = {name: int(value.split()[0]) for name, value in (line.split(":\t") for line in lines if "kB" in line)}
        return f"now {held['RssAnon'] / 2**20:.2f} GiB its own; peak {held['VmHWM'] / 2**20:.2f} GiB with mapped files"


def requests(folder: Path, repeats: int) -> None:
    """Start the viewer `repeats` times, and time each kind of request in each."""
    common = str(vocabulary(np.random.default_rng(0))[3])
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "first page": ("pairs", {}),
        "what there is to choose from": ("choices", {}),
        "a filtered page": ("pairs", {"source": "flan", "least": 3}),
        "its count": ("pairs/count", {"source": "flan", "least": 3}),
        "page 500 of it": ("pairs", {"source": "flan", "least": 3, "page": 500}),
        "a sorted page": ("pairs", {"sort": "margin", "order": "descending"}),
        "a sorted and filtered page": ("pairs", {"sort": "chosen_score", "lang": "de"}),
        "a common word": ("pairs", {"text": common}),
        "a word in 10 pairs": ("pairs", {"text": RARE}),
        "a pair by its id": ("pairs", {"id": "7db48d"}),
        "a pair, all of it": ("pair", {"row": 654_321}),
        "its history": ("pair/why", {"row": 654_321}),
        "rejects of a reason": ("rejects", {"reason": "tied"}),
        "a reject, with its prompt": ("reject", {"row": 77}),
    }
    times: dict[str, list[float]] = {name: [] for name in ("start, until it can be asked", *kinds)}
    for _ in range(repeats):
        viewer = Viewer(folder)
        try:
            times["start, until it can be asked"].append(viewer.started)
            for name, (path, query) in kinds.items():
                times[name].append(viewer.get(path, **query)[0])
            memory = viewer.memory()
        finally:
            viewer.process.kill()
            viewer.process.wait()
    for name, seconds in times.items():
        print(f"{name:30} {statistics.median(seconds):7.3f} s   ({', '.join(f'{one:.3f}' for one in seconds)})")
    print(memory)


def seen(folder: Path, repeats: int) -> None:
    """Start the viewer and a browser `repeats` times; from an action until what it asks for is on the page."""
    from playwright.sync_api import sync_playwright

    times: dict[str, list[float]] = {}

    def until(name: str, page: Page, act: Callable[[Page], Any], shown: str) -> None:
        started = time.perf_counter()
        act(page)
        page.wait_for_function(shown)
        times.setdefault(name, []).append(time.perf_counter() - started)

    def key(page: Page) -> None:
        page.keyboard.press("j")

    most = "() => document.querySelector('#rows .meta').textContent.startsWith('margin 9.5')"
    with sync_playwright() as driver:
        for _ in range(repeats):
            viewer = Viewer(folder)
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page, address = browser.new_page(), viewer.url
            rows = "() => document.querySelectorAll('#rows a').length === 50"
            until("the first page, from an empty tab", page, lambda page, to=address: page.goto(to), rows)  # type: ignore[misc]
            until("a pair opened", page, key, "() => document.querySelector('#item .sides')")
            until("the next one", page, key, "() => open?.row === 1")
            until("sorted by margin", page, lambda page: page.select_option("#sort-pairs", "margin descending"), most)
            browser.close()
            viewer.process.kill()
            viewer.process.wait()
    for name, seconds in times.items():
        print(f"{name:34} {statistics.median(seconds):7.3f} s   ({', '.join(f'{one:.3f}' for one in seconds)})")


def engines(files: list[str]) -> None:
    """What a page needs, by polars and by DuckDB, both with all cores."""
    import duckdb

    query = duckdb.connect().execute
    source = f"read_parquet({files!r}, file_row_number = true)"
    texts = [pl.col(side).list.last().struct.field("content") for side in WORDS]
    holds = pl.any_horizontal(text.str.contains(f"(?i){RARE}") for text in texts)
    like = " or ".join(f"{side}[-1].content ilike '%{RARE}%'" for side in WORDS)

    def scan() -> pl.LazyFrame:
        return pl.scan_parquet(files, row_index_name="row")

    work: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "filter": (
            lambda: scan().filter((pl.col("source") == "flan") & (pl.col("margin") > 3)).select("row").collect(
                engine="streaming"
            ),
            lambda: query(f"select file_row_number from {source} where source = 'flan' and margin > 3").fetchnumpy(),
        ),
        "sort": (
            lambda: scan().select("row", "margin").collect(engine="streaming").sort("margin", maintain_order=True),
            lambda: query(f"select file_row_number from {source} order by margin, filename, 1").fetchnumpy(),
        ),
        "count by source": (
            lambda: scan().group_by("source").len().collect(engine="streaming"),
            lambda: query(f"select source, count(*) from {source} group by 1").fetchall(),
        ),
        "search all texts": (
            lambda: scan().filter(holds).select("row").collect(engine="streaming"),
            lambda: query(f"select file_row_number from {source} where {like}").fetchnumpy(),
        ),
    }  # fmt: skip
    for name, (ours, theirs) in work.items():
        taken = []
        for run in (ours, theirs):
            run()
            started, used = time.perf_counter(), time.process_time()
            run()
            taken += [time.perf_counter() - started, time.process_time() - used]
        print("{:18} polars {:6.3f} s (CPU {:6.3f})   DuckDB {:6.3f} s (CPU {:6.3f})".format(name, *taken))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--browser", action="store_true", help="what is seen in Chromium instead (Playwright)")
    parser.add_argument("--engines", action="store_true", help="polars and DuckDB by themselves instead")
    given = parser.parse_args()
    if not (given.folder / manifest.FILE_NAME).exists():
        write(given.folder, given.pairs)
    record = manifest.read(given.folder)
    size = sum(shard.bytes for shard in record.shards)
    print(f"{record.rows('train') + record.rows('test'):,} pairs, {size / 2**30:.2f} GiB of Parquet")
    if given.engines:
        engines([str(given.folder / shard.path) for shard in record.shards if shard.split != "rejects"])
    elif given.browser:
        seen(given.folder, given.repeats)
    else:
        requests(given.folder, given.repeats)


if __name__ == "__main__":
    main()
