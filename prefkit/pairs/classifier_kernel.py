"""The kernel of `classifier`: lines -> their words and n-grams -> the labels that their vectors lead to.

The steps of a line are functions of their own, in the order of this file. What a processor guesses wrong (where a word
ends, whether the model kept an n-gram) is asked once, or not branched on.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from prefkit.pairs.compiled import compiled
from prefkit.pairs.spaces import SPACE, cut, skip_space, wide_space

_FNV_OFFSET, _FNV_PRIME = np.uint32(2166136261), np.uint32(16777619)


def word_table(text: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """A hash table (open addressing) of words: in each slot a word's hash, and its number plus one; 0 where empty."""
    slots = np.zeros((1 << max(4, (4 * len(ends)).bit_length()), 2), np.uint32)
    _fill(text, ends, slots)
    return slots


@compiled
def _fill(text: Any, ends: Any, slots: Any) -> None:
    for word in range(len(ends) - 1):
        value = _hash(text, ends[word], ends[word + 1])
        slot = value & np.uint32(len(slots) - 1)
        while slots[slot, 1] > 0:
            slot = (slot + np.uint32(1)) & np.uint32(len(slots) - 1)
        slots[slot, 0], slots[slot, 1] = value, word + 1


@compiled
def _hash_on(value: Any, byte: Any) -> Any:
    """One more byte of the library's FNV-1a, which takes bytes as signed."""
    return np.uint32((value ^ np.uint32(np.int32(np.int8(byte)))) * _FNV_PRIME)


@compiled
def _hash(data: Any, start: int, end: int) -> Any:
    value = _FNV_OFFSET
    for at in range(start, end):
        value = _hash_on(value, data[at])
    return value


@compiled
def _find(data: Any, start: int, end: int, value: Any, words: Any, text: Any, ends: Any) -> Any:
    """The number of the word data[start:end], whose hash is `value`, or -1."""
    slot = value & np.uint32(len(words) - 1)
    while words[slot, 1] > 0:
        if words[slot, 0] == value:
            word = np.int32(words[slot, 1]) - 1
            first, last = ends[word], ends[word + 1]
            if last - first == end - start:
                same = True
                for i in range(end - start):
                    if text[first + i] != data[start + i]:
                        same = False
                        break
                if same:
                    return word
        slot = (slot + np.uint32(1)) & np.uint32(len(words) - 1)
    return -1


@compiled
def _has_nul(data: Any, start: int, end: int) -> bool:
    found = 0
    for at in range(start, end):
        found += data[at] == 0
    return found > 0


@compiled
def _is_label(data: Any, start: int, end: int) -> Any:
    """Whether a token begins with "__label__", which the library takes for a label and no word."""
    mark = (95, 95, 108, 97, 98, 101, 108, 95, 95)
    if end - start < len(mark):
        return False
    equal = 0
    for i in range(len(mark)):
        equal += data[start + i] == mark[i]
    return equal == len(mark)


@compiled
def _split(
    data: Any, start: int, end: int, words: Any, text: Any, ends: Any, end_of_line: int,
    known: Any, begins: Any, letters: Any, widths: Any, closes: Any,
) -> int:  # fmt: skip
    """The words of data[start:end] and of the end of the line: the number that the model has for each, or -1, and where
    its characters begin. Returns how many words; 0 where the line has none.

    Of each character of <word>: its bytes, the first one lowest, how many they are, and whether it is the last bracket.
    A word is gone through once, since where it ends is what a processor guesses wrong.
    """
    at = skip_space(data, start, end)
    begins[0] = 0
    if at == end and not _has_nul(data, start, end):  # NUL ends words for the library, but is no white space for Python
        return 0
    count = 0
    while at < end:
        first, spot, value = at, np.uint64(begins[count]), _FNV_OFFSET
        letters[spot], widths[spot], closes[spot] = 60, 1, 0  # <
        for place in range(np.uint64(at), np.uint64(end)):
            byte = data[place]
            if SPACE[byte] > 0 and (SPACE[byte] == 1 or wide_space(data, np.int64(place)) > 0):
                break
            value = _hash_on(value, byte)
            if byte & 0xC0 == 0x80:
                letters[spot] |= np.uint32(byte) << np.uint32(8 * widths[spot])
                widths[spot] += 1
            else:
                spot += np.uint64(1)
                letters[spot], widths[spot], closes[spot] = byte, 1, 0
            at += 1
        if data[first] != 95 or not _is_label(data, first, at):
            known[count] = _find(data, first, at, value, words, text, ends)
            if known[count] == end_of_line and end_of_line >= 0:
                break
            spot += np.uint64(1)
            letters[spot], widths[spot], closes[spot] = 62, 1, 1  # >
            count += 1
            begins[count] = spot + np.uint64(1)
        at = skip_space(data, at, end)
    if end_of_line >= 0:
        known[count], begins[count + 1] = end_of_line, begins[count]
        count += 1
    return count


@compiled
def _hash_ngrams(
    count: int, letters: Any, widths: Any, closes: Any, left: Any, states: Any, buckets: Any, shortest: int, size: int
) -> None:
    """The hash, modulo `size`, of the n-grams that begin at each of `count` characters: of n >= shortest of them into
    buckets[n - 1]; `size` where the word ends before.

    Within the loops nothing depends on the text, so that the compiler makes vector instructions of them. That is why,
    where one character has more than one byte, all have four here, of which some do not count; and why the quotient
    comes from a float, which is off by one at the most.
    """
    divisor, inverse, behind = np.uint32(size), 1.0 / size, np.int32(0)
    for i in range(count - 1, -1, -1):  # how many characters are left of each one's word
        behind = np.int32(1) if closes[i] else np.int32(behind + 1)
        left[i] = behind
    is_ascii = widths[: count + len(buckets)].max() == 1
    states[:count] = _FNV_OFFSET
    for more in range(len(buckets)):
        if is_ascii:
            for i in range(count):
                states[i] = _hash_on(states[i], np.uint8(letters[i + more]))
        else:
            for i in range(count):
                value, letter, width = states[i], letters[i + more], widths[i + more]
                for byte in range(4):
                    longer = _hash_on(value, np.uint8(letter >> np.uint32(8 * byte)))
                    value = longer if byte < width else value
                states[i] = value
        for i in range(count if more >= shortest - 1 else 0):
            value = states[i]
            rest = np.uint32(value - np.uint32(np.float64(value) * inverse) * divisor)
            rest = np.uint32(rest + divisor) if rest > np.uint32(0x7FFFFFFF) else rest
            rest = np.uint32(rest - divisor) if rest >= divisor else rest
            buckets[more, i] = rest if left[i] > more else divisor


@compiled
def _pick(count: int, known: Any, begins: Any, buckets: Any, kept: Any, shortest: int, found: Any) -> int:
    """Into `found`, in the library's order: the known words, as -1 - number, and the buckets of the n-grams that the
    model kept. Returns how many."""
    to = np.uint64(0)  # unsigned, since numba lets other numbers count from the end
    for word in range(count):
        if known[word] >= 0:
            found[to] = -1 - known[word]
            to += np.uint64(1)
        for first in range(np.uint64(begins[word]), np.uint64(begins[word + 1])):
            for more in range(np.uint64(shortest - 1), np.uint64(len(buckets))):
                bucket = buckets[more, first]
                found[to] = bucket
                to += np.uint64(kept[bucket >> np.uint32(3)] >> np.uint8(bucket & np.uint32(7)) & np.uint8(1))
    return int(to)


@compiled
def _hide(hidden: Any, vectors: Any, rows: Any, found: Any) -> None:
    """The mean of the vectors that `_pick` found, into `hidden`."""
    hidden[:] = 0
    for one in found:
        row = rows[one] if one >= 0 else np.int32(-1 - one)
        for i in range(len(hidden)):
            hidden[i] += vectors[row, i]
    hidden *= np.float32(1.0 / len(found))


@compiled
def _log(value: Any) -> Any:
    return np.float32(math.log(np.float64(value) + 1e-5))


@compiled
def _best(hidden: Any, nodes: Any, children: Any, scores: Any, found: Any, pending: Any, pending_scores: Any) -> None:
    """The best labels and their log-probabilities, best first; -1 where there are fewer.

    Depth first, left before right; a branch that is less likely than all `k` found so far is left out. `pending` is
    scratch for the nodes to come.
    """
    k, leaves, count = len(found), len(nodes), 0
    found[:] = -1
    scores[:] = -np.inf
    pending[0], pending_scores[0], waiting = len(children) - 1, np.float32(0.0), 1
    lowest = _log(np.float32(0.0))
    while waiting:
        waiting -= 1
        node, score = pending[waiting], pending_scores[waiting]
        if score < lowest or (count == k and score < scores[k - 1]):
            continue
        if node < leaves:
            place = min(count, k - 1)
            if count == k and score <= scores[k - 1]:
                continue
            while place > 0 and scores[place - 1] < score:
                scores[place], found[place] = scores[place - 1], found[place - 1]
                place -= 1
            scores[place], found[place] = score, node
            count = min(count + 1, k)
            continue
        product = np.float32(0.0)
        for i in range(len(hidden)):
            product += hidden[i] * nodes[node - leaves, i]
        right = np.float32(1.0 / np.float64(np.float32(1.0) + math.exp(-product)))
        pending[waiting], pending_scores[waiting] = children[node, 1], score + _log(right)
        left = np.float32(1.0 - np.float64(right))
        pending[waiting + 1], pending_scores[waiting + 1] = children[node, 0], score + _log(left)
        waiting += 2


@compiled
def predict(
    data: Any, starts: Any, characters: int, vectors: Any, nodes: Any, children: Any, rows: Any, kept: Any,
    words: Any, text: Any, ends: Any, shortest: int, longest: int, scores: Any, found: Any,
) -> None:  # fmt: skip
    mark = np.array([60, 47, 115, 62], np.uint8)  # </s>
    end_of_line = _find(mark, 0, 4, _hash(mark, 0, 4), words, text, ends)
    longest_line = 0
    for line in range(len(starts) - 1):
        longest_line = max(longest_line, starts[line + 1] - starts[line])
    most = min(longest_line, 4 * characters) + 1  # words of a line; with brackets, it has at most thrice the characters
    known, begins = np.empty(most, np.int32), np.empty(most + 1, np.int64)
    letters, widths = np.empty(3 * most + longest, np.uint32), np.empty(3 * most + longest, np.uint8)
    closes, left, states = np.empty(3 * most, np.uint8), np.empty(3 * most, np.int32), np.empty(3 * most, np.uint32)
    buckets, seen = np.empty((longest, 3 * most), np.uint32), np.empty((3 * longest + 1) * most, np.int32)
    hidden = np.empty(vectors.shape[1], np.float32)
    pending, pending_scores = np.empty(len(children), np.int64), np.empty(len(children), np.float32)
    for line in range(len(starts) - 1):
        begin, end = starts[line], cut(data, starts[line], starts[line + 1], characters)
        count = _split(data, begin, end, words, text, ends, end_of_line, known, begins, letters, widths, closes)
        _hash_ngrams(begins[count], letters, widths, closes, left, states, buckets, shortest, len(rows))
        count = _pick(count, known, begins, buckets, kept, shortest, seen)
        if count == 0:
            found[line] = -1
            scores[line] = -np.inf
            continue
        _hide(hidden, vectors, rows, seen[:count])
        _best(hidden, nodes, children, scores[line], found[line], pending, pending_scores)
        for place in range(scores.shape[1]):
            scores[line, place] = math.exp(scores[line, place])
