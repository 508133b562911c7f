"""Tens of thousands of broken lines: none stops a build, none is lost, and none harms the lines around it.

Each build reads some bystanders among thousands of mutated lines, and is compared with a build of the bystanders alone,
where blank lines stand for the others so that all line numbers agree.
"""

from __future__ import annotations

import copy
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from prefkit import manifest
from prefkit.pairs.build import build_pairs
from prefkit.pairs.verify import verify
from tests.pairs.raw import row, sentence
from tests.pairs.test_build import pairs_of, pipeline, rejects_of

HUGE = 5_000_000
JUNK: list[Any] = [
    None, True, False, 0, -1, 10**30, -(10**400), 1e308, 5e-324, float("nan"), float("inf"), -float("inf"), "", " \n",
    "NaN", "\x00", "\x00text", "\ud800", "a\udfffb", "\ufeff", "\u2028", "\x1b[2J", "5", "1e999", [], {}, [[]], [None],
    {"role": "user"}, {"": ""}, [{"role": "assistant", "content": None}], "\n\nHuman: x\n\nAssistant:", "é" * 3000,
]  # fmt: skip


# Mutations: of a parsed row, of its bytes


def places(value: Any, depth: int = 8) -> list[tuple[Any, Any]]:
    """All (container, key) of a parsed row, down to a depth."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys if depth for place in [(value, key), *places(value[key], depth - 1)]]


def swap(rng: random.Random, where: Any, key: Any) -> None:
    where[key] = copy.deepcopy(rng.choice(JUNK))


def retype(rng: random.Random, where: Any, key: Any) -> None:
    value = where[key]
    where[key] = rng.choice([str(value), [value], {"content": value}, len(str(value)), bool(value)])


def remove(rng: random.Random, where: Any, key: Any) -> None:
    del where[key]


def double(rng: random.Random, where: Any, key: Any) -> None:
    if isinstance(where, list):
        where.insert(key, where[key])
    else:
        where[f"{key}2"] = where.pop(key)


def nest(rng: random.Random, where: Any, key: Any) -> None:
    for _ in range(rng.choice([1, 3, 60, 150])):
        where[key] = rng.choice([[where[key]], {"x": where[key]}])


def cut(rng: random.Random, line: bytes) -> bytes:
    return line[: rng.randrange(len(line))] if rng.random() < 0.7 else line[rng.randrange(len(line)) :]


def flip(rng: random.Random, line: bytes) -> bytes:
    changed = bytearray(line)
    for _ in range(rng.choice([1, 1, 2, 30])):
        changed[rng.randrange(len(line))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def insert(rng: random.Random, line: bytes) -> bytes:
    what = [
        b"\x00", b"\xef\xbb\xbf", b"\r", b"\xff", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"NaN", b"-Infinity",
        b"1e999", b"9" * 5000, b'"', b"\\", b"{", b"]", b",", b"\xf0\x9f", b"//x", rng.randbytes(9),
    ]  # fmt: skip
    at = rng.choice([0, len(line), rng.randrange(len(line))])
    return line[:at] + rng.choice(what) + line[at:]


def number(rng: random.Random, line: bytes) -> bytes:
    digits = [at for at in range(len(line)) if line[at : at + 1].isdigit()]
    if not digits:
        return insert(rng, line)
    at = rng.choice(digits)
    return (
        line[:at] + rng.choice([b"1e999", b"9" * 400, b"NaN", b"-0", b"1e-999", b"0x1", b"01", b"1."]) + line[at + 1 :]
    )


def repeat_key(rng: random.Random, line: bytes) -> bytes:
    at = line.find(b'"')
    end = line.find(b'"', at + 1) + 1
    if at < 0 or not end:
        return insert(rng, line)
    return line[:at] + line[at:end] + b": " + json.dumps(rng.choice(JUNK)).encode() + b", " + line[at:]


def paste(rng: random.Random, line: bytes) -> bytes:
    one, other, to = (rng.randrange(len(line)) for _ in range(3))
    return line[:to] + line[min(one, other) : max(one, other)] + line[to:]


OF_VALUES = (swap, swap, retype, remove, double, nest)
OF_BYTES: tuple[Callable[[random.Random, bytes], bytes], ...] = (cut, flip, insert, number, repeat_key, paste)
WHOLE = (
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"null",
    b"[]",
    b"{}",
    b'""',
    b"17",
    b"\x00",
    b"\xef\xbb\xbf",
    b"\x1f\x8b\x08",
)


def mutated(rng: random.Random, line: bytes) -> bytes:
    """One line made from a good one, most often no longer good."""
    kind = rng.random()
    if kind < 0.01:
        line = rng.choice(WHOLE)
    elif kind < 0.5:
        value = json.loads(line)
        for _ in range(rng.choice([1, 1, 2, 5])):
            if found := places(value):
                rng.choice(OF_VALUES)(rng, *rng.choice(found))
        line = json.dumps(value).encode()
    else:
        for _ in range(rng.choice([1, 1, 3])):
            line = rng.choice(OF_BYTES)(rng, line or b"{}")
    line = line.replace(b"\n", b" ")
    return line + b"\r" if rng.random() < 0.1 else line


def huge(rng: random.Random, line: bytes) -> list[bytes]:
    """Lines of five megabytes: a long text, a long list, and long rubbish."""
    value = json.loads(line)
    texts = [(where, key) for where, key in places(value) if isinstance(where[key], str)]
    where, key = rng.choice(texts)
    where[key] = "long " * (HUGE // 5)
    many = json.loads(line) | {"models": ["x"] * (HUGE // 5)}
    return [json.dumps(value).encode(), json.dumps(many).encode(), rng.randbytes(HUGE).replace(b"\n", b" ")]


# The builds


def untouched(out: Path, rows: set[int], *ignored: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What a data set says of some rows: their pairs and their rejects."""
    pairs = pairs_of(out).filter(pl.col("chosen_row").is_in(rows)).drop("chosen_file", "rejected_file", *ignored)
    rejects = rejects_of(out).filter(pl.col("origin_row").is_in(rows)).drop("cluster_id", "origin_file")
    return pairs.sort("pair_id"), rejects.sort("origin_row", "completion_index")


def duplicates(out: Path) -> set[int]:
    """Rows that fell because of other rows: two broken prompts may well be the same rubbish."""
    of_others = ["exact_duplicate", "near_duplicate", "repeated_pair", "contradictory_labels"]
    return set(rejects_of(out).filter(pl.col("reason").is_in(of_others))["origin_row"])


def fuzz(
    folder: Path, use: str, rows: list[dict[str, Any]], of: int, *overrides: str, ignored: tuple[str, ...] = ()
) -> int:
    """Build `rows` of which only every `of`-th is left as it is, and check all that is promised.

    Every fifth bystander is broken itself, since reasons must not depend on the neighbours either. Returns the number
    of mutated lines.
    """
    rng = random.Random(len(rows))
    good = [json.dumps(one, ensure_ascii=bool(number % 2)).encode() for number, one in enumerate(rows)]
    sound = {number for number in range(1, len(rows) + 1) if number % of == 0 and number % (5 * of)}
    lines = [line if number in sound else mutated(rng, line) for number, line in enumerate(good, 1)]
    broken = {number for number in range(5 * of, len(rows) + 1, 5 * of) if lines[number - 1].strip()}
    bystanders = sound | broken
    alone = [line if number in bystanders else b"" for number, line in enumerate(lines, 1)]
    lines += huge(rng, good[0])
    text = f'[build]\nchunk_bytes = 700_000\nlanguage = false\n[[build.inputs]]\nuse = "{use}"\n'
    chosen = pipeline(folder, *overrides, text=text)
    for name, written in (("all", lines), ("alone", alone)):
        raw = folder / f"raw-{name}" / "rows.jsonl"  # of one name, as details of rejects tell it
        raw.parent.mkdir()
        raw.write_bytes(b"\n".join(written) + b"\n")
        build_pairs(chosen, folder / name, given=[str(raw)])
        assert verify(folder / name) == []
    read = sum(
        bool(line.removeprefix(b"\xef\xbb\xbf" if number == 0 else b"").strip()) for number, line in enumerate(lines)
    )
    assert manifest.read(folder / "all").inputs[0].rows == read
    bystanders -= broken & duplicates(folder / "all")
    for ours, theirs in zip(
        *(untouched(folder / name, bystanders, *ignored) for name in ("all", "alone")), strict=True
    ):
        assert ours.equals(theirs)
    told = untouched(folder / "all", bystanders)
    assert len(told[0]) > len(sound) / 2
    assert {*told[0]["chosen_row"], *told[0]["rejected_row"], *told[1]["origin_row"]} == bystanders
    reasons = {reason for stage in manifest.read(folder / "all").stages for reason in stage.rejected}
    assert {"not_json", "not_utf8", "wrong_type"} <= reasons, "the mutations must be able to do harm"
    print(
        f"{use}: {len(lines) - len(sound):,} of {len(lines):,} lines mutated; {len(bystanders):,} beside them compared"
    )
    return len(lines) - len(sound)


def test_mutated_ratings(tmp_path: Path) -> None:
    rng = random.Random(1)
    rows = [row(rng, sentence(rng, 25)) for _ in range(12_500)]
    assert fuzz(tmp_path, "ultrafeedback", rows, 10) > 11_000


def test_mutated_comparisons(tmp_path: Path) -> None:
    rng = random.Random(2)
    rows = [
        {
            "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": sentence(rng, 25)}],
            "chosen": [{"role": "assistant", "content": sentence(rng, 9)}],
            "rejected": sentence(rng, 9),
        }
        for _ in range(6_000)
    ]
    assert fuzz(tmp_path, "pairs", rows, 10) > 5_000


def test_mutated_transcripts(tmp_path: Path) -> None:
    rng = random.Random(3)
    rows = []
    for _ in range(5_000):
        asked = f"\n\nHuman: {sentence(rng, 25)}\n\nAssistant: {sentence(rng, 5)}\n\nHuman: why?\n\nAssistant: "
        rows.append({"chosen": asked + sentence(rng, 5), "rejected": asked + sentence(rng, 5)})
    assert fuzz(tmp_path, "hh_rlhf", rows, 10) > 4_000


REAL = {
    "prometheus/ratings.jsonl.gz": ("ultrafeedback", 10, "instruction"),
    "ultrafeedback_binarized/train_1000.jsonl": ("pairs", 2, "prompt"),
    "hh_harmless/test.jsonl.gz": ("hh_rlhf", 1, "chosen"),
    "oasst_trees/en_100_tree.jsonl": ("oasst", 8, "prompt"),
}


@pytest.mark.parametrize("name", REAL)
def test_mutated_real_rows(real_data: Path, tmp_path: Path, name: str) -> None:
    """Real rows, some times over, each with a mark in its prompt that makes it another one."""
    use, times, field = REAL[name]
    data = (real_data / name).read_bytes()
    text = gzip.decompress(data) if name.endswith(".gz") else data
    rng = random.Random(4)
    rows = [marked(json.loads(line), field, f"{rng.randbytes(9).hex()} ") for line in text.splitlines() * times]
    # The copies are near-duplicates, so a bystander's cluster depends on its neighbours; all else must not.
    fuzz(tmp_path, use, rows, 4, "build.dedupe.action=keep", ignored=("cluster_id",))


def marked(one: dict[str, Any], field: str, mark: str) -> dict[str, Any]:
    if field == "chosen":
        return {side: one[side].replace("\n\nHuman: ", f"\n\nHuman: {mark}", 1) for side in ("chosen", "rejected")}
    if isinstance(one[field], dict):  # a tree of messages, each known by its id
        return one | {field: one[field] | {"text": mark + one[field]["text"], "message_id": mark}}
    return one | {field: mark + one[field]}
