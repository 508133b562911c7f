"""MinHash sketches by a few compiled kernels, bit-compatible with datasketch 2 (scheme `affine32`).

A document is the set of its n-grams of words or of characters (shingles) over canonical text. A shingle's hash is xxh64
of its UTF-8 bytes; a document with fewer than n words (characters) is one shingle. The k-th signature value is the
minimum over shingles of a_k * fmix32(h) + b_k modulo 2^32, where h is the low half of the hash and (a, b) are
datasketch's own permutations. So datasketch gives the same signature with `hashfunc=lambda shingle:
xxh64_intdigest(shingle) & 0xFFFFFFFF`; the tests hold us to it.

A character is a Unicode code point. Character n-grams suit scripts that put no spaces between words, and typing errors;
they cost more, since a text has some six times as many characters as words.

The full 64-bit hashes are kept, sorted and distinct, because candidates are verified by their true Jaccard similarity.

Cost: about 40 ns a shingle of five words until it is hashed and in its place, and 12 ns for 128 permutations, on one
core; the loop over permutations is vectorised by the compiler, and what would be guessed wrong is not branched on.
Compiled once per machine (a few seconds), then cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from prefkit.errors import UsageError
from prefkit.pairs.compiled import compiled, inlined
from prefkit.pairs.packed import Packed

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Unit = Literal["words", "characters"]

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)
FEW = 16  # hashes of a document with equal leading bits
_FNV_PRIME = np.uint64(0x100000001B3)


def shingles(texts: Sequence[str] | Packed, ngram: int, unit: Unit = "words") -> tuple[U64, I64]:
    """Sorted distinct shingle hashes of each text, concatenated, and the offsets: text i owns
    hashes[offsets[i]:offsets[i+1]].

    `texts` must be canonical: words separated by single spaces.
    """
    hashes, offsets = ngrams(texts, ngram, unit)
    _sort_distinct(hashes, offsets)
    return hashes[: offsets[-1]], offsets


def ngrams(texts: Sequence[str] | Packed, ngram: int, unit: Unit = "words") -> tuple[U64, I64]:
    """Hashes of all n-grams of each text in their order, concatenated, and the offsets, as in `shingles`.

    The k-th hash of a text is that of the n-gram that begins with its k-th unit. A text of fewer than `ngram` units has
    one hash, that of the whole text.
    """
    data, ends = texts if isinstance(texts, Packed) else Packed.of(texts)
    characters = unit == "characters"
    offsets = np.zeros(len(ends), np.int64)
    _count_ngrams(data, ends, ngram, characters, offsets)
    hashes = np.empty(offsets[-1], np.uint64)
    _ngram_hashes(data, ends, ngram, characters, hashes, offsets)
    return hashes, offsets


def band_keys(signatures: npt.NDArray[np.uint32]) -> U64:
    """One LSH key a document from the signature values of one band [rows, documents]: equal where all rows are."""
    keys = np.full(signatures.shape[1], 0xCBF29CE484222325, np.uint64)
    for row in signatures:
        keys = (keys ^ row.astype(np.uint64)) * _FNV_PRIME
        keys ^= keys >> np.uint64(29)
    return keys


def order_of(keys: U64) -> I64:
    """What sorts band keys, equal ones in the order that they have: as `np.argsort(keys, kind="stable")`.

    Their places take the room of the lowest bits, so that one sort of plain numbers finds both. Where these bits would
    have decided, which among hashes is rare, the slow way is taken.
    """
    mask = np.uint64((1 << len(keys).bit_length()) - 1)
    packed = (keys & ~mask) | np.arange(len(keys), dtype=np.uint64)
    packed.sort()
    order = (packed & mask).astype(np.int64)
    ascending = keys[order]
    if (ascending[1:] < ascending[:-1]).any():
        return np.argsort(keys, kind="stable")
    return order


def signatures(hashes: U64, offsets: I64, permutations: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """MinHash signatures [documents, permutations] as datasketch computes them; `permutations` is [2, permutations]."""
    result = np.empty((len(offsets) - 1, permutations.shape[1]), np.uint32)
    _signatures(hashes, offsets, permutations[0].copy(), permutations[1].copy(), result)
    return result


def permutations(count: int, seed: int) -> npt.NDArray[np.uint32]:
    """datasketch's permutation parameters [2, count] for scheme `affine32`: odd factors, and summands.

    Drawn as datasketch draws them, whose import alone would take longer than 20,000 sketches.
    """
    draw = np.random.RandomState(seed)
    factors = draw.randint(0, 1 << 31, count, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return np.stack([factors, draw.randint(0, 1 << 32, count, dtype=np.uint32)])


def bands_and_rows(threshold: float, count: int, recall: float = 0.98) -> tuple[int, int]:
    """The most selective bands (most rows) that find a pair of similarity `threshold` with probability `recall`.

    The probability that such a pair shares a band is 1 - (1 - threshold^rows)^bands (Leskovec, Rajaraman and Ullman,
    Mining of Massive Datasets, 3.4.2). Candidates are verified, so only recall matters and selectivity is speed.
    """
    for rows in range(count, 1, -1):
        bands = count // rows
        if 1 - (1 - threshold**rows) ** bands >= recall:
            return bands, rows
    if 1 - (1 - threshold) ** count < recall:
        raise UsageError(f"[build.dedupe]: a threshold of {threshold} needs more than {count} permutations.")
    return count, 1


@inlined
def _rotate(value: Any, bits: Any) -> Any:
    return (value << np.uint64(bits)) | (value >> np.uint64(64 - bits))


@compiled
def _read(data: Any, at: Any, count: Any) -> Any:
    """`count` bytes as a little-endian number. Unsigned indices cannot be negative, so this compiles to one load."""
    value, first = np.uint64(0), np.uint64(at)
    for i in range(np.uint64(count)):
        value |= np.uint64(data[first + i]) << (np.uint64(8) * i)
    return value


@compiled
def _round(lane: Any, value: Any) -> Any:
    return _rotate(lane + value * _P2, 31) * _P1


@compiled
def xxh64(data: Any, start: int, end: int) -> Any:
    """xxHash64 with seed 0 of data[start:end] (github.com/Cyan4973/xxHash, doc/xxhash_spec.md)."""
    length = end - start
    at = start
    if length >= 32:
        one, two, three, four = _P1 + _P2, _P2, np.uint64(0), np.uint64(0) - _P1
        while at + 32 <= end:
            one = _round(one, _read(data, at, 8))
            two = _round(two, _read(data, at + 8, 8))
            three = _round(three, _read(data, at + 16, 8))
            four = _round(four, _read(data, at + 24, 8))
            at += 32
        value = _rotate(one, 1) + _rotate(two, 7) + _rotate(three, 12) + _rotate(four, 18)
        for lane in (one, two, three, four):
            value = (value ^ _round(np.uint64(0), lane)) * _P1 + _P4
    else:
        value = _P5
    value += np.uint64(length)
    while at + 8 <= end:
        value = _rotate(value ^ _round(np.uint64(0), _read(data, at, 8)), 27) * _P1 + _P4
        at += 8
    if at + 4 <= end:
        value = _rotate(value ^ (_read(data, at, 4) * _P1), 23) * _P2 + _P3
        at += 4
    while at < end:
        value = _rotate(value ^ (np.uint64(data[at]) * _P5), 11) * _P1
        at += 1
    value = (value ^ (value >> np.uint64(33))) * _P2
    value = (value ^ (value >> np.uint64(29))) * _P3
    return value ^ (value >> np.uint64(32))


@compiled
def _count_ngrams(data: Any, ends: Any, ngram: int, characters: bool, offsets: Any) -> None:
    """offsets[i + 1] - offsets[i]: how many hashes `_ngram_hashes` gives for text i."""
    for document in range(len(ends) - 1):
        units = 0 if characters else 1
        for at in range(ends[document], ends[document + 1]):
            units += data[at] & 0xC0 != 0x80 if characters else data[at] == 32
        offsets[document + 1] = offsets[document] + max(units - ngram + 1, 1)


@compiled
def _ngram_hashes(data: Any, ends: Any, ngram: int, characters: bool, hashes: Any, offsets: Any) -> None:
    gap = 0 if characters else 1  # the space between two words
    longest = 0
    for document in range(len(ends) - 1):
        longest = max(longest, ends[document + 1] - ends[document])
    begins = np.empty(longest + 2, np.int64)
    for document in range(len(ends) - 1):
        first, end, filled = ends[document], ends[document + 1], offsets[document]
        units = _unit_begins(data, first, end, characters, begins)
        if units < ngram:
            hashes[filled] = xxh64(data, first, end)
        for unit in range(units - ngram + 1):
            hashes[filled + unit] = xxh64(data, begins[unit], begins[unit + ngram] - gap)


@compiled
def _unit_begins(data: Any, first: Any, end: Any, characters: Any, begins: Any) -> Any:
    """How many words or characters data[first:end] has; where each begins, and after the last the next one would, into
    `begins`. Nothing is jumped over: where the next one begins cannot be foretold by a processor."""
    begins[0] = first
    units = 0 if characters else 1
    for at in range(first, end):
        if characters:
            begins[units] = at
            units += data[at] & 0xC0 != 0x80
        else:
            begins[units] = at + 1
            units += data[at] == 32
    begins[units] = end if characters else end + 1
    return units


@compiled
def _sort_distinct(hashes: Any, offsets: Any) -> None:
    """Sort the hashes of each document and drop repeated ones, in place; `offsets` become those of what is left."""
    longest = 1
    for document in range(len(offsets) - 1):
        longest = max(longest, offsets[document + 1] - offsets[document])
    dealt, slots = np.empty(longest, np.uint64), np.empty(2 * longest, np.int64)
    begin = distinct = 0
    for document in range(len(offsets) - 1):
        end = offsets[document + 1]
        _sort(hashes[begin:end], dealt, slots)
        for i in range(end - begin):
            if i == 0 or dealt[i] != dealt[i - 1]:
                hashes[distinct] = dealt[i]
                distinct += 1
        begin = end
        offsets[document + 1] = distinct


@compiled
def _sort(hashes: Any, dealt: Any, slots: Any) -> None:
    """Hashes, sorted, into the beginning of `dealt`.

    They are uniform, so that their leading bits put them into slots of about one each, and few are then out of order.
    Where a slot has many, as of a text that repeats itself, they are sorted as anything else.
    """
    bits = 1
    while 1 << bits < len(hashes):
        bits += 1
    shift, most, total = np.uint64(64 - bits), 0, 0
    slots[: 1 << bits] = 0
    for value in hashes:
        slots[value >> shift] += 1
    for slot in range(1 << bits):
        count, slots[slot] = slots[slot], total
        total += count
        most = max(most, count)
    for value in hashes:
        slot = value >> shift
        dealt[slots[slot]] = value
        slots[slot] += 1
    if most > FEW:
        dealt[: len(hashes)].sort()
        return
    for i in range(1, len(hashes)):
        value, at = dealt[i], i
        while at > 0 and dealt[at - 1] > value:
            dealt[at] = dealt[at - 1]
            at -= 1
        dealt[at] = value


@compiled
def _signatures(hashes: Any, offsets: Any, a: Any, b: Any, result: Any) -> None:
    for document in range(len(offsets) - 1):
        row = result[document]
        row[:] = np.uint32(0xFFFFFFFF)
        for i in range(offsets[document], offsets[document + 1]):
            h = np.uint32(hashes[i])
            h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
            h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
            h = np.uint32(h ^ (h >> np.uint32(16)))
            for k in range(len(a)):
                value = np.uint32(a[k] * h + b[k])
                row[k] = min(row[k], value)


@compiled
def jaccard(hashes: Any, offsets: Any, one: int, other: int) -> float:
    """True Jaccard similarity of two documents given as sorted distinct hashes."""
    i, i_end, j, j_end = offsets[one], offsets[one + 1], offsets[other], offsets[other + 1]
    total = (i_end - i) + (j_end - j)
    shared = 0
    while i < i_end and j < j_end:
        if hashes[i] == hashes[j]:
            shared += 1
            i += 1
            j += 1
        elif hashes[i] < hashes[j]:
            i += 1
        else:
            j += 1
    return shared / (total - shared)


@compiled
def _root(parents: Any, node: Any) -> Any:
    """The root of a node's tree; paths are halved on the way."""
    while parents[node] != node:
        parents[node] = parents[parents[node]]
        node = parents[node]
    return node


@compiled
def components(edges: Any, count: int) -> Any:
    """Of each of `count` nodes, the lowest of its connected component; `edges` is [edges, 2]."""
    parents = np.arange(count)
    for edge in range(len(edges)):
        one, other = _root(parents, edges[edge, 0]), _root(parents, edges[edge, 1])
        parents[max(one, other)] = min(one, other)
    for node in range(count):
        parents[node] = _root(parents, node)
    return parents


@compiled
def similar_pairs(runs: Any, members: Any, hashes: Any, offsets: Any, threshold: float) -> Any:
    """Verified edges among the documents of each run (same band key): rows of (one, other), and their similarities.

    members[runs[r]:runs[r+1]] are the documents of run r, ascending. A pair that earlier edges of the run already
    connect is not compared, which leaves the components the same, and a document that is connected to all before it is
    done. So a run of n equal documents takes n comparisons; it takes n^2 only where documents share a band key though
    they are not similar.
    """
    edges = [(np.int64(0), np.int64(0), 0.0) for _ in range(0)]
    for run in range(len(runs) - 1):
        begin, end = runs[run], runs[run + 1]
        parents = np.arange(end - begin)
        components = 1  # among the documents before j
        for j in range(1, end - begin):
            apart = components  # of these, how many j is not connected to
            for i in range(j):
                if apart == 0:
                    break
                root, mine = _root(parents, i), _root(parents, j)
                if root == mine:
                    continue
                similarity = jaccard(hashes, offsets, members[begin + i], members[begin + j])
                if similarity >= threshold:
                    edges.append((members[begin + i], members[begin + j], similarity))
                    parents[max(root, mine)] = min(root, mine)
                    apart -= 1
            components = apart + 1
    return edges


def is_compiled() -> bool:
    """Whether this machine has compiled the kernels before, told by one that every build needs."""
    return _signatures.is_kept()
