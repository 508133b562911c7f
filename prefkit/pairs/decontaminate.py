"""Prompts that overlap with evaluation prompts: the same text, a shared n-gram, or nearly all of an item.

An evaluation item is a user turn of an evaluation row. Three methods look for it among the user turns of a prompt, and
the first that finds it gives the reason:

exact_overlap   The canonical texts are equal: that of the whole prompt, or of one of its turns.
ngram_overlap   They share sequences of `ngram` (13) words, and these cover at least half of the item's words. GPT-3
                chose 13, and a single one sufficed (Brown et al., arXiv:2005.14165, appendix C); half of the item in
                one training prompt is what Tulu 3 asks for, with sequences of 8 (Lambert et al., arXiv:2411.15124,
                3.2; allenai/open-instruct, decontamination). It spares prompts that only share a set phrase.
containment     The prompt holds at least `containment` (0.8) of the item's word 5-grams (Broder, On the resemblance and
                containment of documents, 1997). This finds items of which some words were changed or left out.

Like GPT-3's, these n-grams ignore punctuation (see `words`). An item shorter than `ngram` is one sequence of its own
length. One shorter than `min_words` (8, GPT-3's smallest n) stands in many prompts that have nothing to do with it, so
it counts only where it is the whole prompt; likewise one turn of several stands for itself only from `min_words` on.
Items should be bare questions: an instruction that all items of a file begin with counts as their text (and costs each
prompt that has it some 0.7 µs an item).

How: all 5-grams of all items lie as sorted 64-bit hashes, with their places in the items, in files that worker
processes map into memory and share (1.5 kB for an item of 60 words). A prompt's 5-grams are looked up by the first bits
of their hashes, after a filter of one bit each that says of nine in ten that no item has them. Places that follow each
other as in the prompt add up to longer sequences, so one look-up serves both methods and any `ngram`. Containment is
thus exact; a MinHash estimate would be off by 0.1 with 128 permutations, and not faster. Cost: 12 µs for a prompt of
1,000 characters against 10,000 items, and 12 bytes of memory for each 5-gram of the items while a batch runs. Texts
with equal hashes are taken for equal: among 10^8 words of prompts and 10^6 of items, 10^-5 is the probability that any
two are not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from annotated_types import Ge, Gt, Le, MinLen

from prefkit import urls
from prefkit.errors import DataError, UsageError
from prefkit.pairs import globs, inputs, minhash
from prefkit.pairs.inputs import RawFile, RawRow
from prefkit.pairs.records import BadRow, messages
from prefkit.pairs.redact import KINDS, replace
from prefkit.pairs.text import canonical
from prefkit.pairs.words import I32, SHINGLE, U8, Words, kinds_of_characters, words_of

COVERAGE = 0.5  # of an item's words, where nothing else is said
NO_LIMIT = 1 << 40  # more words than a text has, and more bytes than a file


@dataclass(frozen=True)
class Decontamination:
    """Against which evaluation prompts, and what counts as an overlap with them."""

    files: list[RawFile]
    column: str
    ngram: int | Literal[False]
    coverage: float
    containment: float | Literal[False]
    min_words: int


def decontaminate(
    *,
    paths: Annotated[list[str], MinLen(1)],
    column: str = "prompt",
    ngram: Annotated[int, Ge(SHINGLE), Le(100)] | Literal[False] = 13,
    coverage: Annotated[float, Ge(0), Le(1)] = COVERAGE,
    containment: Annotated[float, Gt(0), Le(1)] | Literal[False] = 0.8,
    min_words: Annotated[int, Ge(SHINGLE)] = 8,
) -> Decontamination:
    """Remove prompts that overlap with evaluation prompts: the same text, shared n-grams, or nearly all of an item.

    `paths` are files as `files` gives them. `column` holds a text, a list of texts (turns) or of messages, and may be
    dotted for a nested field. `coverage` is the share of the item's words that shared n-grams must cover; 0 asks for
    one n-gram. `ngram` and `containment` are switched off by false.
    """
    if ngram is False and coverage != COVERAGE:
        raise UsageError("[build.decontaminate] coverage: has no effect with ngram = false; leave it out.")
    return Decontamination(_named(paths), column, ngram, coverage, containment, min_words)


def files(paths: Sequence[str], base: Path) -> list[str]:
    """Evaluation files by name, folder, glob (relative to `base`) or URL, as absolute paths and URLs.

    JSONL, JSON, Parquet, CSV with a header, text with a prompt a line; all but Parquet also as .gz or .zst. A folder
    gives its raw files as for `[[build.inputs]]`; text must be named, since a folder may hold a LICENSE.txt.
    Raises UsageError where nothing is found.
    """
    found: list[inputs.Place] = []
    for name in map(os.path.expanduser, paths):
        if _suffix(name) != ".txt":
            found += inputs.expand([name], base)
        elif (base / name).is_file():
            found.append(base / name)
        elif matches := globs.matches(name, base):
            found += matches
        else:
            raise UsageError(f"{base / name}: no such file, or glob with a match.")
    return [path if isinstance(path, str) else os.path.abspath(path) for path in found]


def identity(paths: Sequence[str]) -> dict[str, str]:
    """The evaluation files that a data set was cleaned of: the name of each, and the SHA-256 of its bytes."""
    return {file.name: inputs.index(file, NO_LIMIT).sha256 for file in _named(paths)}


def _named(paths: Sequence[str]) -> list[RawFile]:
    return inputs.name_files([[path if urls.is_url(path) else Path(path) for path in paths]])[0]


def _pieces(prompts: Sequence[Sequence[str]], min_words: int, kinds: U8) -> tuple[list[str], list[int]]:
    """The texts by which conversations (canonical turns) are compared, and the conversation that each belongs to.

    First all conversations, each as one text; then each turn of several that has `min_words` words.
    """
    turns = [(turn, owner) for owner, turns in enumerate(prompts) if len(turns) > 1 for turn in turns]
    counts = np.diff(words_of([turn for turn, _ in turns], kinds).starts)
    long = [turn for turn, count in zip(turns, counts, strict=True) if count >= min_words]
    texts = ["\n".join(turns) for turns in prompts]  # no canonical text holds a line break
    return texts + [turn for turn, _ in long], [*range(len(prompts)), *(owner for _, owner in long)]


# ---- the index -------------------------------------------------------------------------------------------------------


class Items(NamedTuple):
    """All evaluation items, and their 5-grams, each at its place; the fields are the files of an index."""

    kinds: U8  # see kinds_of_characters
    rows: I32  # [items, 2]: file (its number) and row of each item
    text_hashes: minhash.U64  # [items]: of their texts, sorted
    text_owners: I32  # [items]: whose
    hashes: minhash.U64  # [places]: of all 5-grams, sorted
    places: I32  # [places]: where each of them is
    owners: I32  # [places]: the item that each place belongs to
    starts: I32  # [items + 1]: item i has the places starts[i] to starts[i + 1] - 1; none if it is too short
    buckets: I32  # [2^bits + 1]: hashes[buckets[b]:buckets[b + 1]] begin with the bits b
    filter: minhash.U64  # [2^bits / 8]: a bit for each beginning of bits + 3 bits, set where a hash has it


def write_index(folder: Path, options: Decontamination) -> None:
    """Read the evaluation files and write what `Index` needs into `folder`: a task. Raises DataError for a bad row."""
    rows: list[tuple[int, int]] = []
    prompts: list[list[str]] = []
    for number, file in enumerate(options.files):
        found = [(row, turns) for row, turns in _evaluation_prompts(file, options.column) if turns]
        if not found:
            raise DataError(f"{file.path}: there is no evaluation prompt in it.")
        rows += [(number, row) for row, _ in found]
        prompts += [turns for _, turns in found]
    kinds = kinds_of_characters()
    first: dict[str, int] = {}
    for text, owner in zip(*_pieces(prompts, options.min_words, kinds), strict=True):
        first.setdefault(text, owner)
    items = _items(words_of(list(first), kinds), options.min_words, kinds, np.array(rows)[list(first.values())])
    for name, array in items._asdict().items():
        np.save(folder / f"{name}.npy", array)


def _items(words: Words, min_words: int, kinds: U8, rows: npt.NDArray[Any]) -> Items:
    counts = np.diff(words.starts)
    sizes = np.where(counts >= min_words, counts - SHINGLE + 1, 0)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    hashes = words.grams[np.arange(starts[-1]) + np.repeat(words.starts[:-1] - starts[:-1], sizes)]
    order, text_order = np.argsort(hashes, kind="stable"), np.argsort(words.hashes, kind="stable")
    bits = max(3, len(hashes).bit_length())
    filled = np.bincount(hashes >> np.uint64(64 - bits), minlength=1 << bits)
    present = np.zeros(1 << bits + 3, bool)
    present[hashes >> np.uint64(64 - bits - 3)] = True
    return Items(
        kinds=kinds,
        rows=rows.astype(np.int32),
        text_hashes=words.hashes[text_order],
        text_owners=text_order.astype(np.int32),
        hashes=hashes[order],
        places=order.astype(np.int32),
        owners=np.repeat(np.arange(len(counts), dtype=np.int32), sizes),
        starts=starts.astype(np.int32),
        buckets=np.concatenate([[0], np.cumsum(filled)]).astype(np.int32),
        filter=np.packbits(present, bitorder="little").view("<u8"),
    )


# ---- the search ------------------------------------------------------------------------------------------------------


REASONS = ("exact_overlap", "ngram_overlap", "containment")


class Match(NamedTuple):
    """The evaluation item that a prompt overlaps with most, and how.

    `share` is the share of the item's words that lie in shared n-grams, or that of its 5-grams that the prompt holds.
    `shared` is what the prompt shares first: its words from the begin to the end of an n-gram, without personal data;
    nothing where such data goes on beyond them.
    """

    reason: str  # one of REASONS
    item: int
    share: float
    shared: str = ""


class Index:
    """The evaluation items that `write_index` left in a folder, and the search for them."""

    def __init__(self, folder: Path, options: Decontamination):
        self.options = options
        self.items = Items(*(np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in Items._fields))

    def matches(self, prompts: Sequence[Sequence[str]]) -> list[Match | None]:
        """For each prompt, given as the canonical texts of its user turns, the item that it overlaps with most."""
        texts, owners = _pieces(prompts, self.options.min_words, self.items.kinds)
        words = words_of(texts, self.items.kinds)
        found = self._equal(words.hashes, owners, len(prompts))
        shares, where = np.zeros((len(prompts), 2)), np.zeros((len(prompts), 3), np.int64)
        ngram = self.options.ngram or NO_LIMIT
        _overlaps(words.grams, words.starts[: len(prompts) + 1], self.items, ngram, shares, where)
        covered = (shares[:, 0] > 0) & (shares[:, 0] >= self.options.coverage) & bool(self.options.ngram)
        contained = (shares[:, 1] >= self.options.containment) & bool(self.options.containment)
        for prompt in np.flatnonzero(covered | contained).tolist():
            item, holder, last = where[prompt].tolist()
            if found[prompt] is None and covered[prompt]:
                shared = _quoted(words.text(last - self._ngram(item) + 1, last), texts[prompt])
                found[prompt] = Match("ngram_overlap", item, float(shares[prompt, 0]), shared)
            elif found[prompt] is None:
                found[prompt] = Match("containment", holder, float(shares[prompt, 1]))
        return found

    def _equal(self, hashes: minhash.U64, owners: list[int], count: int) -> list[Match | None]:
        found: list[Match | None] = [None] * count
        known = self.items.text_hashes
        at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        for hit in np.flatnonzero(known[at] == hashes)[::-1]:  # so that the whole prompt comes before its turns
            found[owners[hit]] = Match("exact_overlap", int(self.items.text_owners[at[hit]]), 1.0)
        return found

    def _ngram(self, item: int) -> int:
        """Words in the sequences that an item may share: its own length where that is less than `ngram`."""
        places = self.items.starts[item + 1] - self.items.starts[item]
        return min(self.options.ngram or NO_LIMIT, int(places) + SHINGLE - 1)

    def describe(self, match: Match) -> str:
        """A match in words: file and row of the evaluation item, and what of it the prompt holds."""
        file, row = self.items.rows[match.item].tolist()
        place = f"{self.options.files[file].name}, row {row}"
        if match.reason == "exact_overlap":
            return f"{place}: the same text"
        if match.reason == "containment":
            return f"{place}: {match.share:.0%} of its {SHINGLE}-grams"
        first = f', first "{match.shared}"' if match.shared else ""
        return f"{place}: {match.share:.0%} of its words in {self._ngram(match.item)}-grams{first}"


def _quoted(part: str, text: str) -> str:
    """A part of a text without personal data, as rules quote it. Where its ends cut through such data, what is left of
    this would not show what it is, so nothing is quoted."""
    clean, *pieces = replace(pl.Series([text, *text.partition(part)]), KINDS)
    return pieces[1] if clean == "".join(pieces) else ""


@minhash.compiled
def _overlaps(grams: Any, bounds: Any, items: Any, ngram: int, shares: Any, where: Any) -> None:
    """For each prompt, shares: the highest coverage by n-grams and the highest containment of any item.

    where: the first items that have them, and the last word of the first n-gram shared with the first of these items.
    Prompt p has the words bounds[p] to bounds[p + 1] - 1.
    """
    hashes, places, owners, starts, buckets = items.hashes, items.places, items.owners, items.starts, items.buckets
    shift = np.uint64(64 - np.int64(np.log2(len(buckets) - 1)))
    filter_shift = shift - np.uint64(3)
    last = np.full(len(places), -1, np.int32)  # where 5-grams of prompts met each place of an item last
    run = np.zeros(len(places), np.int32)  # and how many in a row then met the places up to it
    ending = np.full(len(places), -1, np.int32)  # the last prompt that shares the n-gram which ends with each place
    met = np.zeros(len(starts) - 1, np.int32)  # how many places of each item the prompt has met
    shared = np.empty(len(starts) - 1, np.int32)
    touched = np.empty(len(starts) - 1, np.int32)
    for prompt in range(len(bounds) - 1):
        count = 0
        for word in range(bounds[prompt], bounds[prompt + 1] - SHINGLE + 1):
            bit = grams[word] >> filter_shift
            if not items.filter[np.int64(bit >> np.uint64(6))] >> (bit & np.uint64(63)) & np.uint64(1):
                continue
            bucket = np.int64(grams[word] >> shift)
            for k in range(buckets[bucket + 1] - 1, buckets[bucket] - 1, -1):
                if hashes[k] != grams[word]:
                    continue
                place = places[k]  # descending, so that last[place - 1] is not yet this word where 5-grams repeat
                item = owners[place]
                if met[item] == 0:
                    touched[count], shared[item] = item, -1
                    count += 1
                met[item] += last[place] < bounds[prompt]
                follows = place > starts[item] and last[place - 1] == word - 1
                run[place] = run[place - 1] + 1 if follows else 1
                last[place] = word
                if run[place] >= min(ngram - SHINGLE + 1, starts[item + 1] - starts[item]):
                    ending[place] = prompt
                    shared[item] = word + SHINGLE - 1 if shared[item] < 0 else shared[item]
        for item in touched[:count]:
            size = starts[item + 1] - starts[item]
            share = met[item] / size
            if share > shares[prompt, 1] or (share == shares[prompt, 1] and item < where[prompt, 1]):
                shares[prompt, 1], where[prompt, 1] = share, item
            met[item] = 0
            if shared[item] < 0:
                continue
            share = _covered(ending[starts[item] : starts[item + 1]], prompt, min(ngram, size + SHINGLE - 1))
            if share > shares[prompt, 0] or (share == shares[prompt, 0] and item < where[prompt, 0]):
                shares[prompt, 0], where[prompt, 0], where[prompt, 2] = share, item, shared[item]


@minhash.compiled
def _covered(ending: Any, prompt: int, ngram: int) -> float:
    """The share of an item's words that lie in n-grams which the prompt shares: where they end is marked with it."""
    covered, previous = 0, -ngram
    for place in range(len(ending)):
        if ending[place] == prompt:
            covered += min(ngram, place - previous)
            previous = place
    return covered / (len(ending) + SHINGLE - 1)


# ---- reading evaluation files ----------------------------------------------------------------------------------------


def _suffix(path: str) -> str:
    """The suffix of a file's name that says its format, without that of a compression."""
    name = path.lower()
    for compression in inputs.COMPRESSIONS:
        name = name.removesuffix(compression)
    return Path(name).suffix


def _evaluation_prompts(file: RawFile, column: str) -> Iterator[tuple[int, list[str]]]:
    """The number of each row (line, element, row of Parquet, row below the header of CSV) and its user turns."""
    for row in _rows(file):
        try:
            if row.problem is not None:
                raise BadRow(*row.problem)
            turns = _user_turns(row, column, is_line=_suffix(file.path) == ".txt")
        except (BadRow, ValueError, RecursionError) as error:
            detail = error.detail if isinstance(error, BadRow) else str(error)
            raise DataError(
                f"{file.path}, row {row.number}: {detail}. Mend the row, or name the column of the evaluation prompts "
                "in [build.decontaminate]."
            ) from error
        yield row.number, turns


def _rows(file: RawFile) -> Iterator[RawRow]:
    for part in inputs.index(file, NO_LIMIT).parts:
        yield from inputs.rows(part)


def _user_turns(row: RawRow, column: str, is_line: bool) -> list[str]:
    """Canonical texts of the user turns in a row, none where it has no text; BadRow or ValueError where it is wrong."""
    if is_line:
        value: Any = row.text.decode()
    else:
        value = _field(json.loads(row.text) if row.value is None else row.value, column)
    if value is None:
        return []
    if isinstance(value, list) and all(isinstance(turn, str) for turn in value):
        turns = value
    else:
        turns = [turn.content for turn in messages(value, field=column, text_role="user") if turn.role == "user"]
    "".join(turns).encode()  # ValueError for a lone surrogate, which is no text
    return [text for text in map(canonical, turns) if text]


def _field(value: Any, column: str) -> Any:
    """The column of a row, by its name or along its dots."""
    for name in [column] if isinstance(value, dict) and column in value else column.split("."):
        if not isinstance(value, dict) or name not in value:
            known = f" among {', '.join(value)}" if isinstance(value, dict) else ""
            raise BadRow("no_column", f'there is no "{column}"{known}')
        value = value[name]
    return value
