"""Which prompts are nearly the same: verified near-duplicates, and their clusters.

1. similar    a task an LSH band and range of keys: prompts that share a key, compared by true Jaccard similarity
2. clusters   connected components over the verified edges; the first prompt in input order stands for its cluster

Prompts go by their number: the buckets of `unite` in order, and in each its prompts by id. Where a data set is added
to, its sketches are buckets in front of them (the first `old` ones): only what shares a band key with a new prompt is
looked at there, and old prompts stay in the clusters that they have. A task holds at most
KEYS_A_TASK band keys and SHINGLES_AT_ONCE shingles; text is never read again. Only the edges are global: about 100
bytes for each prompt that has a near-duplicate, in one task.

A pair of similarity `threshold` is found with probability 0.98 or more, a more similar one nearly always (0.9998 of
all pairs above 0.7 on 64,000 prompts); no pair below the threshold ever joins a cluster by itself. Bands and rows
follow from that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Gt, Le, Lt

from prefkit.errors import UsageError
from prefkit.pairs import minhash, tables
from prefkit.pairs.engine import RunTasks, Task, key
from prefkit.pairs.unite import Sketching, Uniting

KEYS_A_TASK = 4_000_000
SHINGLES_AT_ONCE = 16_000_000


@dataclass(frozen=True)
class Dedupe:
    """What counts as a duplicate, and what becomes of it."""

    uniting: Uniting
    threshold: float


def dedupe(
    *,
    threshold: Annotated[float, Gt(0), Le(1)] = 0.7,
    ngram: Annotated[int, Ge(1), Le(100)] = 5,
    unit: minhash.Unit = "words",
    fold_case: bool = True,
    permutations: Annotated[int, Ge(8), Le(4096)] = 128,
    seed: Annotated[int, Ge(0), Lt(2**32)] = 1,
    scope: Literal["prompt", "prompt_response", "response"] = "prompt",
    on_duplicate: Literal["first", "merge"] = "first",
    action: Literal["drop", "keep"] = "drop",
) -> Dedupe:
    """Duplicates by MinHash over n-grams: drop all but the first, or keep similar prompts together in one split.

    With another `scope` than prompt it is answers that are dropped (see `answers`), and prompts are kept together.
    """
    if scope != "prompt" and action == "keep":
        raise UsageError(f'[build.dedupe] action = "keep": nothing would come of scope = "{scope}"; leave one out.')
    bands, rows = minhash.bands_and_rows(threshold, permutations)
    sketching = Sketching(ngram, unit, fold_case, minhash.permutations(permutations, seed), bands, rows)
    return Dedupe(Uniting(on_duplicate, action == "drop" and scope == "prompt", sketching), threshold)


def find(
    buckets: Sequence[Path],
    counts: Sequence[int],
    options: Dedupe,
    work: Path,
    run: RunTasks,
    old: int = 0,
    before: str = "",
    also: Sequence[Path] = (),
) -> Path:
    """Run both steps over finished buckets of `counts` prompts each; the folder of the clusters.

    The first `old` buckets are of the data set that `before` names. `also` are other sketches of the same texts, which
    must be similar by these as well.
    """
    names = [before, *(bucket.name for bucket in [*buckets, *also])]
    edges, others = (_similar_tasks(each, counts, options, work, old, before) for each in (buckets, also))
    run("near duplicates", [*edges, *others])
    folder = work / "clusters" / key(names, options.threshold)
    arguments = ([task.folder for task in edges], buckets, counts, old, [task.folder for task in others])
    run("clusters", [Task(folder, clusters, arguments)])
    return folder


def _similar_tasks(
    buckets: Sequence[Path], counts: Sequence[int], options: Dedupe, work: Path, old: int, before: str
) -> list[Task]:
    """The tasks of the first step; none without buckets."""
    if not buckets:
        return []
    names = [before, *(bucket.name for bucket in buckets)]
    ranges = -(-sum(counts[old:]) // KEYS_A_TASK)
    return [
        Task(
            work / "similar" / key(names, options.threshold, band, number, ranges),
            similar,
            (band, (number << 64) // ranges, ((number + 1) << 64) // ranges, options.threshold, buckets, counts, old),
        )
        for band in range(options.uniting.sketching.bands)
        for number in range(ranges)
    ]


def similar(
    folder: Path,
    band: int,
    low: int,
    high: int,
    threshold: float,
    buckets: Sequence[Path],
    counts: Sequence[int],
    old: int,
) -> None:
    """edges.npy [edges, 2] and similarity.npy: verified near-duplicates among prompts that share a key in [low,
    high)."""
    keys, prompts = _keys(band, low, high, buckets, counts, old)
    first_new = sum(counts[:old])
    order = minhash.order_of(keys)
    members, runs = _runs(keys[order], prompts[order])
    edges = [np.empty((0, 2), np.int64)]
    similarities = [np.empty(0, np.float32)]
    spans = look_up(members, "spans", buckets, counts)
    for first, last in _blocks(spans[:, 1] - spans[:, 0], runs):
        mine = members[runs[first] : runs[last]]
        documents, local = np.unique(mine, return_inverse=True)
        hashes, offsets = _shingles(documents, buckets, counts)
        found = minhash.similar_pairs(runs[first : last + 1] - runs[first], local, hashes, offsets, threshold)
        if found:
            pairs = documents[np.array([(one, other) for one, other, _ in found], np.int64)]
            is_new = pairs[:, 1] >= first_new
            edges.append(pairs[is_new])
            similarities.append(np.array([similarity for _, _, similarity in found], np.float32)[is_new])
    np.save(folder / "edges.npy", np.concatenate(edges))
    np.save(folder / "similarity.npy", np.concatenate(similarities))


def _keys(
    band: int, low: int, high: int, buckets: Sequence[Path], counts: Sequence[int], old: int
) -> tuple[minhash.U64, minhash.I64]:
    """The keys of a band in [low, high), and the numbers of their prompts, in the order of those; of old buckets only
    the keys that new ones have."""
    new_keys, new_prompts = band_range(band, low, high, buckets[old:], counts[old:])
    if not old:
        return new_keys, new_prompts
    wanted = np.unique(new_keys)
    keys, prompts = [], []
    base = 0
    for bucket, count in zip(buckets[:old], counts[:old], strict=True):
        ascending, owners = _band(bucket, band)
        begins = np.searchsorted(ascending, wanted)
        lengths = np.searchsorted(ascending, wanted, side="right") - begins
        places = np.arange(lengths.sum()) + np.repeat(begins - np.cumsum(lengths) + lengths, lengths)
        keys.append(ascending[places])
        prompts.append(owners[places] + np.int64(base))
        base += count
    return np.concatenate([*keys, new_keys]), np.concatenate([*prompts, new_prompts + base])


def band_range(
    band: int, low: int, high: int, buckets: Sequence[Path], counts: Sequence[int]
) -> tuple[minhash.U64, minhash.I64]:
    """All keys of a band in [low, high), and the numbers of their prompts, in the order of those."""
    keys = [np.empty(0, np.uint64)]
    prompts = [np.empty(0, np.int64)]
    base = 0
    for bucket, count in zip(buckets, counts, strict=True):
        ascending, owners = _band(bucket, band)
        first = int(np.searchsorted(ascending, np.uint64(low)))
        last = count if high >= 1 << 64 else int(np.searchsorted(ascending, np.uint64(high)))
        keys.append(ascending[first:last])
        prompts.append(owners[first:last] + np.int64(base))
        base += count
    return np.concatenate(keys), np.concatenate(prompts)


def _band(bucket: Path, band: int) -> tuple[minhash.U64, npt.NDArray[np.int32]]:
    """The ascending keys of a band of a bucket, and whose they are."""
    keys, owners = (mapped(bucket, name) for name in ("band_keys", "band_prompts"))
    return keys[band], owners[band]


def mapped(bucket: Path, name: str) -> npt.NDArray[Any]:
    """An array of a bucket, memory-mapped."""
    return tables.array(bucket / f"{name}.npy")


def _runs(keys: npt.NDArray[Any], prompts: minhash.I64) -> tuple[minhash.I64, minhash.I64]:
    """Members of all runs of two or more equal keys, and where each run begins (with the end of the last)."""
    bounds = np.concatenate([[0], np.flatnonzero(keys[1:] != keys[:-1]) + 1, [len(keys)]]).astype(np.int64)
    lengths = np.diff(bounds)
    shared = lengths > 1
    members = prompts[np.repeat(shared, lengths)]
    return members, np.concatenate([[0], np.cumsum(lengths[shared])]).astype(np.int64)


def _blocks(lengths: minhash.I64, runs: minhash.I64) -> Iterator[tuple[int, int]]:
    """Ranges of runs whose members have at most SHINGLES_AT_ONCE shingles; a single larger run by itself."""
    ends = np.concatenate([[0], np.cumsum(lengths)])[runs]
    first = 0
    while first < len(runs) - 1:
        last = int(np.searchsorted(ends, ends[first] + SHINGLES_AT_ONCE, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last


def _shingles(
    documents: minhash.I64, buckets: Sequence[Path], counts: Sequence[int]
) -> tuple[minhash.U64, minhash.I64]:
    """The shingles of some prompts (ascending numbers), and their offsets."""
    spans = look_up(documents, "spans", buckets, counts)
    pieces = [np.empty(0, np.uint64)]
    borders = np.searchsorted(documents, np.concatenate([[0], np.cumsum(counts)]))
    for bucket, (first, last) in zip(buckets, pairwise(borders), strict=True):
        if first < last:
            pieces += _at(bucket, spans[first:last])
    return np.concatenate(pieces), np.concatenate([[0], np.cumsum(spans[:, 1] - spans[:, 0])]).astype(np.int64)


def _at(bucket: Path, spans: minhash.I64) -> Iterator[minhash.U64]:
    """The shingles of a bucket in some spans (ascending), which count through all its files."""
    files = [tables.array(path) for path in shingle_files(bucket)]
    bounds = np.cumsum([0, *map(len, files)])
    borders = np.searchsorted(spans[:, 0], bounds[1:-1])
    for hashes, base, mine in zip(files, bounds, np.split(spans, borders), strict=False):
        yield from (hashes[begin:end] for begin, end in (mine - base).tolist())


def shingle_files(bucket: Path) -> list[Path]:
    """The files of the shingles of a bucket in order: one, or in sketches that are kept (see `extend`) several."""
    return sorted(bucket.glob("shingles*.npy"))


def clusters(
    folder: Path,
    edges: Sequence[Path],
    buckets: Sequence[Path],
    counts: Sequence[int],
    old: int,
    also: Sequence[Path] = (),
) -> None:
    """members.npy, the ascending numbers of all prompts that have a near-duplicate, and of each its representative.npy
    (the first of its cluster in input order) and similarity.npy (that to its twin, the earliest it was similar to).

    A representative is its own twin. What later steps say of these two is looked up here once, not by every bucket
    again: representative_ids.npy, twin_ids.npy and twin_origins.npy, each [members, 2]. joined.npy [joints, 2] are the
    representatives of clusters that hold several old ones, with that of each of these. Of the edges only those count
    that stand in `also` too, where it is given.
    """
    ends = _ends(edges)
    weights = np.concatenate([np.empty(0, np.float32), *(np.load(task / "similarity.npy") for task in edges)])
    if also:
        numbers = np.array([sum(counts), 1])
        shared = np.isin(np.sort(ends) @ numbers, np.sort(_ends(also)) @ numbers)
        ends, weights = ends[shared], weights[shared]
    old_members = np.unique(ends[ends < sum(counts[:old])])
    heads = look_up(old_members, "heads", buckets, counts) if len(old_members) else old_members
    members, flat = np.unique(np.concatenate([ends, np.stack([old_members, heads], axis=1)]), return_inverse=True)
    joints, local = flat.reshape(-1, 2), flat.reshape(-1, 2)[: len(ends)]
    ordinals = look_up(members, "ordinals", buckets, counts)
    labels = minhash.components(joints, len(members))
    in_order = np.argsort(ordinals, kind="stable")
    first = np.full(len(members), -1, np.int64)
    first[labels[in_order[::-1]]] = in_order[::-1]  # the earliest is written last and stays
    twin, similarity = np.arange(len(members)), np.ones(len(members), np.float32)
    swap = ordinals[local[:, 0]] > ordinals[local[:, 1]]
    early, late = np.where(swap, local[:, 1], local[:, 0]), np.where(swap, local[:, 0], local[:, 1])
    earliest_last = np.lexsort((-weights, -early, -ordinals[early], late))
    twin[late[earliest_last]], similarity[late[earliest_last]] = early[earliest_last], weights[earliest_last]
    representative = members[first[labels]] if len(members) else members
    old_heads = np.unique(heads)
    joined = np.stack([representative[np.searchsorted(members, old_heads)], old_heads], axis=1)
    np.save(folder / "joined.npy", joined[joined[:, 0] != joined[:, 1]])
    np.save(folder / "members.npy", members)
    np.save(folder / "representative.npy", representative)
    np.save(folder / "similarity.npy", similarity)
    np.save(folder / "representative_ids.npy", look_up(representative, "ids", buckets, counts))
    np.save(folder / "twin_ids.npy", look_up(members[twin], "ids", buckets, counts))
    np.save(folder / "twin_origins.npy", look_up(members[twin], "origins", buckets, counts))


def _ends(edges: Sequence[Path]) -> minhash.I64:
    """The edges [edges, 2] of some tasks."""
    return np.concatenate([np.empty((0, 2), np.int64), *(np.load(task / "edges.npy") for task in edges)])


def look_up(prompts: minhash.I64, name: str, buckets: Sequence[Path], counts: Sequence[int]) -> npt.NDArray[Any]:
    """The rows of an array of the buckets that belong to some prompts, given by their numbers."""
    bases = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    order = np.argsort(prompts, kind="stable")
    cuts = np.searchsorted(prompts[order], bases)
    first = mapped(buckets[0], name)
    result = np.zeros((len(prompts), *first.shape[1:]), first.dtype)
    for bucket, base, mine in zip(buckets, bases, map(slice, cuts, cuts[1:]), strict=False):
        if mine.start < mine.stop:
            result[order[mine]] = mapped(bucket, name)[prompts[order[mine]] - base]
    return result
