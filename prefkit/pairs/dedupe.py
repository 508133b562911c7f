"""Which prompts are the same, and which nearly: exact groups, verified near-duplicates, clusters.

1. exact      prompts of equal id (equal canonical text); the first in input order stands for the group
2. band       one task an LSH band: prompts that share a band key are compared by their true Jaccard similarity
3. clusters   connected components over the verified edges; the first prompt in input order stands for its cluster

Prompts go by their ordinal: the position among all surviving prompts in input order, which does not depend on how the
input was cut into parts. Only ids, band keys and edges are held for all prompts at once (16, 12 and 20 bytes each);
shingles are memory-mapped and gathered for the prompts that share a key, and text is never read again.

A pair of similarity `threshold` is found with probability 0.98 or more, a more similar one nearly always (0.9998 of
all pairs above 0.7 on 64,000 prompts); no pair below the threshold ever joins a cluster by itself. Bands and rows
follow from that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from prefkit.pairs import minhash
from prefkit.pairs.engine import Task, key
from prefkit.pairs.read import Sketching

RunTasks = Callable[[str, Sequence[Task]], None]


@dataclass(frozen=True)
class Dedupe:
    """What counts as a near-duplicate, and whether duplicates are dropped or only clustered."""

    sketching: Sketching
    threshold: float
    drop: bool


def dedupe(
    *,
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.7,
    ngram: Annotated[int, Field(ge=1, le=100)] = 5,
    permutations: Annotated[int, Field(ge=8, le=4096)] = 128,
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1,
    action: Literal["drop", "keep"] = "drop",
) -> Dedupe:
    """Duplicate prompts by MinHash over word n-grams: drop all but the first, or keep them together in one split."""
    minhash.bands_and_rows(threshold, permutations)  # UsageError where they cannot find what is asked for
    return Dedupe(Sketching(ngram, minhash.permutations(permutations, seed)), threshold, action == "drop")


def find(parts: Sequence[Path], options: Dedupe, work: Path, run: RunTasks) -> Path:
    """Run the three steps over finished parts; the folder of the clusters. Parts carry their sketches' options by
    name."""
    names = [part.name for part in parts]
    exact_folder = work / "exact" / key(names)
    run("exact duplicates", [Task(exact_folder, exact, (parts,))])
    bands, rows = minhash.bands_and_rows(options.threshold, options.sketching.permutations.shape[1])
    tasks = [
        Task(
            work / "similar" / key(names, options.threshold, band),
            similar,
            (slice(band * rows, (band + 1) * rows), options.threshold, parts, exact_folder),
        )
        for band in range(bands)
    ]
    run("near duplicates", tasks)
    band_folders = [task.folder for task in tasks]
    folder = work / "clusters" / key(names, options.threshold)
    run("clusters", [Task(folder, clusters, (exact_folder, band_folders))])
    return folder


def exact(folder: Path, parts: Sequence[Path]) -> None:
    """first.npy: for each prompt the ordinal of the first one with the same id; bases.npy: where each part begins."""
    ids = np.concatenate([np.load(part / "prompt_ids.npy") for part in parts])
    order = np.lexsort((ids[:, 1], ids[:, 0]))  # stable: equal ids stay in input order
    starts = np.ones(len(ids), bool)
    starts[1:] = (ids[order][1:] != ids[order][:-1]).any(axis=1)
    first = np.empty(len(ids), np.int64)
    first[order] = order[np.flatnonzero(starts)][np.cumsum(starts) - 1]
    np.save(folder / "first.npy", first)
    counts = [len(np.load(part / "counts.npy", mmap_mode="r")) for part in parts]
    np.save(folder / "bases.npy", np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def similar(folder: Path, band: slice, threshold: float, parts: Sequence[Path], exact_folder: Path) -> None:
    """edges.npy [edges, 2] and similarity.npy: verified near-duplicates among prompts that agree in a band of rows."""
    first = np.load(exact_folder / "first.npy")
    distinct = np.flatnonzero(first == np.arange(len(first)))
    rows = [np.load(part / "signatures.npy", mmap_mode="r")[band] for part in parts]
    keys = minhash.band_keys(np.concatenate(rows, axis=1)[:, distinct])
    order = np.argsort(keys, kind="stable")
    members, runs = _runs(keys[order], distinct[order])
    documents, local = np.unique(members, return_inverse=True)
    hashes, offsets = _gather(parts, documents)
    found = minhash.similar_pairs(runs, local, hashes, offsets, threshold) if len(documents) else []
    edges = np.array([(one, other) for one, other, _ in found], np.int64).reshape(-1, 2)
    np.save(folder / "edges.npy", documents[edges] if len(edges) else edges)
    np.save(folder / "similarity.npy", np.array([similarity for _, _, similarity in found], np.float32))


def _runs(keys: npt.NDArray[Any], ordinals: minhash.I64) -> tuple[minhash.I64, minhash.I64]:
    """Members of all runs of two or more equal keys, and where each run begins (with the end of the last)."""
    bounds = np.concatenate([[0], np.flatnonzero(keys[1:] != keys[:-1]) + 1, [len(keys)]]).astype(np.int64)
    lengths = np.diff(bounds)
    shared = lengths > 1
    members = ordinals[np.repeat(shared, lengths)]
    return members, np.concatenate([[0], np.cumsum(lengths[shared])]).astype(np.int64)


def _gather(parts: Sequence[Path], documents: minhash.I64) -> tuple[minhash.U64, minhash.I64]:
    """The shingles of some prompts (ascending ordinals), and their offsets."""
    pieces: list[minhash.U64] = []
    lengths: list[int] = []
    base = 0
    for part in parts:
        counts = np.load(part / "counts.npy")
        mine = documents[np.searchsorted(documents, base) : np.searchsorted(documents, base + len(counts))] - base
        base += len(counts)
        if not len(mine):
            continue
        ends = np.cumsum(counts)
        shingles = np.load(part / "shingles.npy", mmap_mode="r")
        pieces += [np.asarray(shingles[ends[i] - counts[i] : ends[i]]) for i in mine]
        lengths += counts[mine].tolist()
    hashes = np.concatenate(pieces) if pieces else np.empty(0, np.uint64)
    return hashes, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def clusters(folder: Path, exact_folder: Path, band_folders: Sequence[Path]) -> None:
    """For each prompt: representative.npy (first of its cluster); exact.npy, twin.npy, similarity.npy: why.

    A twin is the earliest prompt that this one was found equal or similar to; a representative is its own twin or a
    later prompt's.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first = np.load(exact_folder / "first.npy")
    count = len(first)
    edges = np.concatenate([np.load(band / "edges.npy") for band in band_folders])
    weights = np.concatenate([np.load(band / "similarity.npy") for band in band_folders])
    itself = np.arange(count)
    ends = np.concatenate([edges, np.stack([first, itself], axis=1)])
    graph = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    earliest = np.full(count, count, np.int64)
    np.minimum.at(earliest, labels, itself)
    twin, similarity = first.copy(), np.ones(count, np.float32)
    later_first = np.lexsort(
        (-edges[:, 0], edges[:, 1])
    )  # of several edges the earliest twin is written last and stays
    low, high = edges[later_first, 0], edges[later_first, 1]
    twin[high], similarity[high] = low, weights[later_first]
    np.save(folder / "bases.npy", np.load(exact_folder / "bases.npy"))
    np.save(folder / "representative.npy", earliest[labels])
    np.save(folder / "exact.npy", first != itself)
    np.save(folder / "twin.npy", twin)
    np.save(folder / "similarity.npy", similarity)
