"""MinHash signatures against datasketch, rensa and daft; near-duplicates against exact all-pairs Jaccard similarity.

    OMP_NUM_THREADS=1 taskset -c 0 python tests/benchmarks/minhash_vs_peers.py RAW.jsonl [--limit 64000]

RAW is UltraFeedback-shaped JSONL; its `instruction`s, canonical, are the documents. Word 5-grams, 128 permutations, one
core. Every peer gets what suits it best: datasketch its bulk interface and the same shingles as bytes with our hash
function, rensa its own shingles from words, daft its own n-grams. Times include shingling, but where a peer takes ready
shingles, that part is also given alone.

Recall and precision count pairs of documents: the truth is an inverted index over exact shingles that finds every pair
of true Jaccard similarity at the threshold or above; found are the verified edges of all bands.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import xxhash

from prefkit.pairs import dedupe, engine, minhash, unite
from prefkit.pairs.text import canonical, digest


def clock(name: str, function: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    seconds, result = [], None
    for _ in range(repeats):
        started = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - started)
    print(f"{name}: {sorted(seconds)[len(seconds) // 2]:.2f} s", flush=True)
    return sorted(seconds)[len(seconds) // 2], result


def shingled(texts: list[str]) -> list[list[str]]:
    words = [text.split() for text in texts]
    return [[" ".join(some[i : i + 5]) for i in range(max(1, len(some) - 4))] for some in words]


def ours(texts: list[str]) -> Any:
    hashes, offsets = minhash.shingles(texts, 5)
    return minhash.signatures(hashes, offsets, minhash.permutations(128, 1))


def with_datasketch(shingles: list[list[bytes]]) -> Any:
    from datasketch import MinHash

    return MinHash.bulk(
        shingles, num_perm=128, seed=1, scheme="affine32", hashfunc=lambda s: xxhash.xxh64_intdigest(s) & 0xFFFFFFFF
    )


def with_rensa(texts: list[str]) -> Any:
    from rensa import RMinHash

    found = []
    for some in shingled(texts):
        sketch = RMinHash(num_perm=128, seed=1)
        sketch.update(some)
        found.append(sketch.digest())
    return found


def with_daft(texts: list[str]) -> Any:
    import daft

    table = daft.from_pydict({"text": texts})
    return table.select(daft.col("text").minhash(num_hashes=128, ngram_size=5, seed=1)).to_pydict()


def near_duplicates(texts: list[str], threshold: float) -> set[tuple[int, int]]:
    """The verified edges that `dedupe` finds among distinct documents."""
    options = dedupe.dedupe(threshold=threshold)
    with tempfile.TemporaryDirectory() as scratch:
        bucket = Path(scratch) / "bucket"
        bucket.mkdir()
        heads = pl.DataFrame(
            {
                "prompt_id": [digest(text) for text in texts],
                "ordinal": np.arange(len(texts)),
                "file": 0,
                "origin_row": np.arange(len(texts)),
                "canonical": texts,
            }
        )
        for name, array in unite.sketch(heads, options.uniting.sketching)._asdict().items():
            np.save(bucket / f"{name}.npy", array)

        def run(name: str, tasks: Any) -> None:
            engine.run(tasks, engine.InThisProcess(), lambda task: None)

        dedupe.find([bucket], [len(texts)], options, Path(scratch) / "work", run)
        folders = (Path(scratch) / "work" / "similar").iterdir()
        edges = np.concatenate([np.load(folder / "edges.npy") for folder in folders])
    return {(min(a, b), max(a, b)) for a, b in edges.tolist()}


def exact(texts: list[str], threshold: float) -> set[tuple[int, int]]:
    """All pairs at the threshold or above, by an inverted index over all shingles."""
    sets = [set(some) for some in shingled(texts)]
    where: dict[str, list[int]] = defaultdict(list)
    for number, some in enumerate(sets):
        for shingle in some:
            where[shingle].append(number)
    shared: Counter[tuple[int, int]] = Counter()
    for members in where.values():
        for j, other in enumerate(members):
            shared.update((one, other) for one in members[:j])
    return {(a, b) for (a, b), count in shared.items() if count >= threshold * (len(sets[a]) + len(sets[b]) - count)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path)
    parser.add_argument("--limit", type=int, default=64_000)
    parser.add_argument("--threshold", type=float, default=0.7)
    given = parser.parse_args()
    with open(given.raw, "rb") as file:
        texts = [canonical(json.loads(line)["instruction"]) for line, _ in zip(file, range(given.limit), strict=False)]
    print(f"{len(texts):,} documents, {sum(map(len, texts)) / 1e6:.0f} MB")
    ours(texts[:10])
    mine, signatures = clock("prefkit, shingles and signatures", lambda: ours(texts))
    hashes, offsets = minhash.shingles(texts, 5)
    permutations = minhash.permutations(128, 1)
    alone, _ = clock("prefkit, signatures alone", lambda: minhash.signatures(hashes, offsets, permutations))
    as_bytes = [[shingle.encode() for shingle in some] for some in shingled(texts)]
    sketched, theirs = clock("datasketch bulk, ready shingles", lambda: with_datasketch(as_bytes), 1)
    assert (np.array([one.hashvalues for one in theirs]) == signatures).all(), "not datasketch's signatures"
    print(
        f"  the same signatures; ours alone: {sketched / alone:.0f} times faster, {sketched / mine:.0f} with shingling"
    )
    for name, peer in (("rensa, its own shingles", with_rensa), ("daft, its own n-grams", with_daft)):
        seconds, _ = clock(name, lambda peer=peer: peer(texts))  # type: ignore[misc]
        print(f"  {seconds / mine:.1f} times as long")
    distinct = list(dict.fromkeys(texts))
    _, found = clock(
        "prefkit, near-duplicates from text to edges", lambda: near_duplicates(distinct, given.threshold), 1
    )
    truth = exact(distinct, given.threshold)
    joined = connected(found)  # edges that earlier edges of a run already imply are not listed
    recall = sum(joined[a] == joined[b] for a, b in truth) / max(1, len(truth))
    precision = len(found & truth) / max(1, len(found))
    print(f"{len(truth):,} true pairs at {given.threshold}: recall {recall:.4f}, precision {precision:.4f}")


def connected(edges: set[tuple[int, int]]) -> defaultdict[int, int]:
    """The component of each document, one of its own for a document without an edge."""
    parent: dict[int, int] = {}

    def root(one: int) -> int:
        while parent.get(one, one) != one:
            one = parent[one]
        return one

    for a, b in edges:
        parent[root(a)] = root(b)
    alone = itertools.count(-1, -1)
    found: defaultdict[int, int] = defaultdict(lambda: next(alone))
    found.update({one: root(one) for pair in edges for one in pair})
    return found


if __name__ == "__main__":
    main()
