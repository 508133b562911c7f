"""A finished data set from a list of pairs, without the pairs half: what the trainer's tests train on."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from prefkit import manifest
from prefkit.config import Pipeline
from prefkit.manifest import Manifest, Shard
from prefkit.schema import LABELS, PAIRS, TABLES

TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def pair(prompt: str, chosen: str, rejected: str, /, **columns: object) -> dict:
    """One row of PAIRS; columns that are not given are made up."""
    row = {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "pair_id": f"pair of {prompt} {chosen} {rejected}"[:60],
        "prompt_id": f"id of {prompt}"[:60],
        "source": "test",
        "lang": "en",
    }
    return dict.fromkeys(PAIRS.names) | row | columns


def toy_pairs(prompts: int = 24, answers: int = 2) -> list[dict]:
    """Pairs with something to learn: of the answers, that with fewer "no" is better; all pairs of each prompt."""
    rows = []
    for n in range(prompts):
        prompt = f"What is {n} and {n * 7 % 11}? " + "Think about it. " * (n % 4)
        texts = [f"It is {n + n * 7 % 11}, yes." + " no" * (2 * a) + "!" * (n % 3) for a in range(answers)]
        for better in range(answers):
            for worse in range(better + 1, answers):
                scores = {"chosen_score": -better / 2, "rejected_score": -worse / 2, "margin": (worse - better) / 2}
                source = "odd" if n % 2 else "even"
                rows.append(pair(prompt, texts[better], texts[worse], source=source, **scores))
    return rows


def answer(prompt: str, completion: str, label: bool, /, **columns: object) -> dict:
    """One row of LABELS; columns that are not given are made up."""
    row = {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": completion}],
        "label": label,
        "answer_id": f"answer {prompt} {completion}"[:60],
        "prompt_id": f"id of {prompt}"[:60],
        "source": "test",
        "lang": "en",
        "completion_score": float(label),
    }
    return dict.fromkeys(LABELS.names) | row | columns


def toy_labels(prompts: int = 24, answers: int = 2) -> list[dict]:
    """Answers with something to learn: one without "no" is good; of every third prompt all are, of the next one none
    are."""
    rows = []
    for n in range(prompts):
        prompt = f"What is {n} and {n * 7 % 11}? " + "Think about it. " * (n % 4)
        for a in range(answers):
            good = [True, False, a % 2 == 0][n % 3]
            text = f"It is {n + n * 7 % 11}, yes." + "!" * (n % 3 + a) + " no no no" * (not good)
            rows.append(answer(prompt, text, good, source="odd" if n % 2 else "even"))
    return rows


def write_data_set(
    folder: Path, train: list[dict], test: list[dict] = (), shards: int = 1, kind: str = "pairs"
) -> Manifest:
    """A data set directory as `prefkit build-pairs` leaves it, `train` dealt to `shards` files prompt by prompt."""
    (folder / "data").mkdir(parents=True)
    prompts = list(dict.fromkeys(row["prompt_id"] for row in train))
    listed = []
    for number in range(shards):
        mine = set(prompts[number::shards])
        listed.append(
            _write(folder, f"train-{number:05d}", "train", [row for row in train if row["prompt_id"] in mine], kind)
        )
    if test:
        listed.append(_write(folder, "test-00000", "test", list(test), kind))
    made = Manifest("test", "", [], {}, {}, [], [], listed, kind=kind)
    (folder / manifest.FILE_NAME).write_text(manifest.dump(made))
    return made


def _write(folder: Path, name: str, split: str, rows: list[dict], kind: str) -> Shard:
    path = folder / "data" / f"{name}.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=TABLES[kind]), path)
    return Shard(f"data/{path.name}", split, len(rows), path.stat().st_size, manifest.file_sha256(path))


def pipeline(folder: Path, *phases: dict, **model: object) -> Pipeline:
    """A pipeline as if read from a file in `folder`; a tiny random Llama with a tokenizer of its own by default."""
    table = {"model": model or {"config": TINY, "tokenizer": {"vocab_size": 400}}, "train": [dict(p) for p in phases]}
    return Pipeline("test", folder / "test.toml", json.dumps(table), [], table)
