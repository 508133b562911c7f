"""Tokenising pairs: prefkit's token store against TRL's preparation, tokens a second and core.

    python tests/benchmarks/tokenise.py DATA TOKENIZER [--pairs 2000 --repeats 3]

DATA is a data set that `prefkit build-pairs` wrote, TOKENIZER a folder or name with a chat template. Both sides render
and tokenise the same pairs from the same Parquet file, prompt and both whole conversations of each, in turns; prefkit
also lays them into token trees, and both write Arrow files. The tokenizer's threads are off, and processor time is
counted, so the figures are of one core. Tokens are those of both full sequences of every pair, which both sides must
find equal. Printed as one JSON object, medians of the repeats.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from trl.trainer.dpo_trainer import DPOTrainer

from prefkit import manifest
from prefkit.manifest import Manifest, Shard, file_sha256
from prefkit.train import chat, tokenizer
from prefkit.train.chat import Tokenising
from prefkit.train.examples import Examples
from prefkit.train.metrics import Silent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("tokenizer")
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    datasets.disable_progress_bars()
    words = tokenizer.load_tokenizer(given.tokenizer)
    sides: dict[str, Callable] = {"prefkit": on_prefkit, "trl": on_trl}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    tokens: set[int] = set()
    with tempfile.TemporaryDirectory() as folder:
        made = first_pairs(given.data, given.pairs, Path(folder))
        for repeat in range(given.repeats):
            for side, run in sides.items():
                work = Path(folder) / f"{side}-{repeat}"
                work.mkdir()
                started = time.process_time()
                found = run(Path(folder), made, words, work)
                seconds[side].append(time.process_time() - started)
                tokens.add(found())
    assert len(tokens) == 1, f"the sides find different tokens: {tokens}"
    print(json.dumps(summary(made, tokens.pop(), {side: statistics.median(s) for side, s in seconds.items()})))


def summary(made: Manifest, tokens: int, seconds: dict[str, float]) -> dict:
    """Figures of both sides and their ratio."""
    rates = {f"{side}, tokens/s a core": round(tokens / spent) for side, spent in seconds.items()}
    ratio = round(seconds["trl"] / seconds["prefkit"], 2)
    return {"pairs": made.rows("train"), "tokens": tokens, **rates, "ratio": ratio}


def first_pairs(data: Path, pairs: int, folder: Path) -> Manifest:
    """The first pairs of a data set as one shard in `folder`."""
    tables = [pq.read_table(data / shard.path) for shard in manifest.read(data).of_split("train")]
    path = folder / "train.parquet"
    pq.write_table(pa.concat_tables(tables).slice(0, pairs), path)
    rows = pq.read_metadata(path).num_rows
    shard = Shard(path.name, "train", rows, path.stat().st_size, file_sha256(path))
    return Manifest("benchmark", "", [], {}, {}, [], [], [shard])


def on_prefkit(folder: Path, made: Manifest, words: object, work: Path) -> Callable[[], int]:
    """Write the token store."""
    how = Tokenising(None, "truncate_completion", None)
    store = chat.tokenise(folder, made, "train", words, how, cache=work, progress=Silent())

    def count() -> int:
        examples = Examples.of(store)
        full = examples.lengths() + [start for view in examples.shards for start in view.starts]
        return int(full[examples.pairs()].sum())

    return count


def on_trl(folder: Path, made: Manifest, words: object, work: Path) -> Callable[[], int]:
    """TRL's own preparation of a data set, in one process."""
    rows = datasets.load_dataset(
        "parquet", data_files=str(folder / made.shards[0].path), split="train", cache_dir=str(work)
    ).select_columns(["prompt", "chosen", "rejected"])
    arguments = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    prepared = DPOTrainer._prepare_dataset(None, rows, words, arguments, "train")

    def count() -> int:
        return sum(2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in prepared)

    return count


if __name__ == "__main__":
    main()
