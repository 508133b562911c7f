"""fastText's classifier without fastText: the tags and probabilities of the library, in an eighth of its time.

A text's hidden vector is the mean of the vectors of its words and of their character n-grams; labels are the leaves of
a Huffman tree whose inner nodes each say how likely it is to go right (Joulin et al., arXiv:1607.01759 and 1612.03651).
The library looks every n-gram up in a hash map and makes a string of each; here the n-grams that the model kept are one
array, and a line's n-grams are hashed together, in vector instructions: each length goes on from the one before.

Arithmetic is done in the library's own order and precision, so results are equal bit by bit where its compiler does not
fuse multiplication and addition (x86-64); tests hold us to it. Models of another kind (a softmax, n-grams of words or
of single characters, a matrix that is not quantised) have no `Classifier`, and go through the library.

Cost: 9 to 10 µs a text of 320 characters on one core, against 77 µs of the library on the same texts.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from prefkit.errors import UsageError
from prefkit.pairs.classifier_kernel import predict, word_table
from prefkit.pairs.packed import Packed

MAGIC, VERSION = 793712314, 12
PREFIX = "__label__"
HIERARCHICAL_SOFTMAX, SUPERVISED = 1, 3
ENTRY = struct.Struct("<Bqb")  # behind a word or label: a zero, how often it was seen, and which of the two it is
KSUB = 256  # centroids of a sub-quantiser


class Classifier(NamedTuple):
    """The arrays of a model; H is the width of the hidden layer."""

    labels: list[str]  # without PREFIX
    vectors: npt.NDArray[np.float32]  # [rows, H]: of words, then of n-grams
    nodes: npt.NDArray[np.float32]  # [labels, H]: of the inner nodes, the root last; one row too many, as in the file
    children: npt.NDArray[np.int32]  # [2 labels - 1, 2]: left and right of each node; -1 of a leaf, which is a label
    rows: npt.NDArray[np.int32]  # [buckets]: the row of each n-gram hash, or -1
    kept: npt.NDArray[np.uint8]  # [buckets + 1] bits: whether a hash has a row; small enough for the cache
    words: npt.NDArray[np.uint32]  # [slots, 2], see `word_table`
    text: npt.NDArray[np.uint8]  # of all words, one after another
    ends: npt.NDArray[np.int64]  # [words + 1]
    shortest: int  # characters of an n-gram
    longest: int

    def predict(self, lines: Packed, characters: int, k: int) -> list[list[tuple[str, float]]]:
        """The `k` best labels of each line with their probabilities, best first, as the library's `predict` gives them
        for its first `characters` characters; none above 1, as rounding makes some of the library's.

        Words end at white space, newlines included, which for the library must be spaces; a line without words has no
        labels.
        """
        count = len(lines.ends) - 1
        scores = np.empty((count, k), np.float32)
        found = np.empty((count, k), np.int32)
        predict(lines.data, lines.ends, characters, *self[1:], scores, found)
        named = np.array([*self.labels, None], object)[found]  # -1, of no label, is the last
        return [
            [(label, probability) for label, probability in zip(*row, strict=True) if label]
            for row in zip(named.tolist(), np.minimum(scores, 1).tolist(), strict=True)
        ]


def load(path: Path) -> Classifier | None:
    """The classifier in a file of fastText's, or None where it is one for the library, or none at all. UsageError where
    it is cut short or damaged."""
    with open(path, "rb") as file:
        if file.read(8) != struct.pack("<ii", MAGIC, VERSION):
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _parsed(data)
            except (struct.error, ValueError) as error:
                raise UsageError(
                    f"[build.language] model: {path} is cut short or damaged. Download it again."
                ) from error


def _parsed(file: mmap.mmap) -> Classifier | None:
    file.seek(8)
    width, _, _, _, _, word_ngrams, loss, model, buckets, shortest, longest, _, _ = _read(file, "12id")
    if (loss, model, word_ngrams) != (HIERARCHICAL_SOFTMAX, SUPERVISED, 1) or not 1 < shortest <= longest:
        return None
    _, word_count, label_count, _, pruned = _read(file, "3i2q")
    words = [_entry(file)[0] for _ in range(word_count)]
    labels = [_entry(file) for _ in range(label_count)]
    if pruned < 1:
        return None
    kept_hashes, places = np.frombuffer(file.read(8 * pruned), "<i4").reshape(-1, 2).T
    if not _read(file, "?")[0]:
        return None
    vectors = _quantised(file, width)
    if _read(file, "?")[0]:
        return None
    shape = _read(file, "2q")
    nodes = np.frombuffer(file.read(4 * shape[0] * shape[1]), "<f4").reshape(shape).copy()
    rows = np.full(buckets, -1, np.int32)
    rows[kept_hashes] = places + word_count
    ends = np.concatenate([[0], np.cumsum([len(word) for word in words])]).astype(np.int64)
    text = np.frombuffer(b"".join(words), np.uint8)
    return Classifier(
        labels=[name.decode().removeprefix(PREFIX) for name, _ in labels],
        vectors=vectors,
        nodes=nodes,
        children=_huffman([count for _, count in labels]),
        rows=rows,
        kept=np.packbits(np.append(rows >= 0, False), bitorder="little"),
        words=word_table(text, ends),
        text=text,
        ends=ends,
        shortest=shortest,
        longest=longest,
    )


def _read(file: mmap.mmap, kinds: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{kinds}", file.read(struct.calcsize(f"<{kinds}")))


def _entry(file: mmap.mmap) -> tuple[bytes, int]:
    """A word or label of the dictionary, and how often the training data had it."""
    text = file.read(file.find(b"\0", file.tell()) - file.tell())
    _, count, _ = ENTRY.unpack(file.read(ENTRY.size))
    return text, count


def _quantised(file: mmap.mmap, width: int) -> npt.NDArray[np.float32]:
    """A product-quantised matrix, written out: 64 bytes a row of 16 columns."""
    has_norms = _read(file, "?")[0]
    rows, _, code_bytes = _read(file, "2qi")
    codes = np.frombuffer(file.read(code_bytes), np.uint8).reshape(rows, -1)
    values = _centroids(file)
    matrix = np.concatenate([part[codes[:, place]] for place, part in enumerate(values)], axis=1)
    assert matrix.shape == (rows, width)
    if has_norms:
        norm_codes = np.frombuffer(file.read(rows), np.uint8)
        matrix = _centroids(file)[0][norm_codes] * matrix
    return np.ascontiguousarray(matrix)


def _centroids(file: mmap.mmap) -> list[npt.NDArray[np.float32]]:
    """The centroids [KSUB, columns] of each sub-quantiser."""
    width, parts, size, last = _read(file, "4i")
    values = np.frombuffer(file.read(4 * width * KSUB), "<f4")
    sizes = [size] * (parts - 1) + [last]
    bounds = np.cumsum([0, *sizes]) * KSUB
    return [values[bounds[at] : bounds[at + 1]].reshape(KSUB, sizes[at]) for at in range(parts)]


def _huffman(counts: Sequence[int]) -> npt.NDArray[np.int32]:
    """Children of the nodes of the library's tree over labels, which it sorts by count from the most frequent on."""
    labels = len(counts)
    weights = [*counts, *[10**15] * (labels - 1)]
    children = np.full((2 * labels - 1, 2), -1, np.int32)
    leaf, node = labels - 1, labels
    for parent in range(labels, 2 * labels - 1):
        for side in range(2):
            if leaf >= 0 and weights[leaf] < weights[node]:
                children[parent, side], leaf = leaf, leaf - 1
            else:
                children[parent, side], node = node, node + 1
        weights[parent] = sum(weights[child] for child in children[parent])
    return children
