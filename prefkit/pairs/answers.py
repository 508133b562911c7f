"""Duplicate answers: `[build.dedupe] scope = "response"`, or `"prompt_response"` for a prompt and its answer together.

The same sketches, bands and verified similarities as for prompts (`unite`, `dedupe`), over all answers that are left in
their sets; the first in input order stays, whatever prompt it belongs to. Prompts are then only clustered, so that
similar ones stand on one side of the split.

With "prompt_response" an answer must be similar to the other by itself, too: else any two answers to one long prompt
would be duplicates, and with them the pair.

Cost: 1.5 kB an answer of 150 words, and the time that a prompt of its length takes; so about four times that of
prompts where a prompt has four answers, and twice that where prompt and answer are looked at together.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from prefkit.pairs import tables
from prefkit.pairs.bucket import Bucket
from prefkit.pairs.read import prompt_texts
from prefkit.pairs.text import canonical, digest
from prefkit.pairs.unite import Sketches, Sketching, sets_of, sketch_texts


@dataclass(frozen=True)
class Twins:
    """The sketched answers of all buckets, how many each has, and what `dedupe` found among them."""

    sketches: Sequence[Path]
    counts: Sequence[int]
    clusters: Path


def sketch_answers(folder: Path, sets: Path, rows: Bucket, files: Sequence[str], scope: str, how: Sketching) -> None:
    """Write the sketches of a bucket's answers, in their order, and counts.json into `folder`: a task."""
    prompts, answers = sets_of(sets, rows)
    texts = answers["response"].to_list()
    if scope == "prompt_response":
        asked = dict(zip(prompts["group"], prompt_texts(prompts), strict=True))
        texts = [f"{asked[group]} {text}" for group, text in zip(answers["group"], texts, strict=True)]
    numbers = {name: number for number, name in enumerate(files)}
    origins = [[numbers[name], row] for name, row in answers.select("origin_file", "origin_row").iter_rows()]
    plain = [canonical(text, how.fold_case) for text in texts]
    keys, owners, hashes, spans = sketch_texts(plain, how)
    ids = b"".join(bytes.fromhex(digest(text)) for text in plain)
    sketches = Sketches(
        ids=np.frombuffer(ids, ">u8").astype(np.uint64).reshape(-1, 2),
        ordinals=answers["group"].to_numpy(),
        origins=np.array(origins, np.int64).reshape(-1, 2),
        band_keys=keys,
        band_prompts=owners,
        shingles=hashes,
        spans=spans,
    )
    for name, array in sketches._asdict().items():
        np.save(folder / f"{name}.npy", array)
    (folder / "counts.json").write_text(json.dumps({"answers": len(answers)}))


def fallen(bucket: int, twins: Twins, files: Sequence[str]) -> pl.DataFrame:
    """The answers of a bucket that repeat an earlier one: `at` (their place in it), reason and detail."""
    names = ("members", "representative", "twin_ids", "twin_origins", "similarity")
    members, heads, ids, origins, similarity = (tables.array(twins.clusters / f"{name}.npy") for name in names)
    first = sum(twins.counts[:bucket])
    begin, end = np.searchsorted(members, [first, first + twins.counts[bucket]])
    mine = begin + np.flatnonzero(members[begin:end] != heads[begin:end])
    places = members[mine] - first
    equal = (tables.array(twins.sketches[bucket] / "ids.npy")[places] == ids[mine]).all(axis=1)
    details = [
        f"{files[file]}, row {row} " + ("has the same text" if same else f"shares {share:.1%} of its n-grams")
        for (file, row), same, share in zip(origins[mine].tolist(), equal, similarity[mine], strict=True)
    ]
    reasons = np.where(equal, "exact_duplicate", "near_duplicate").tolist()
    columns = {"at": places, "reason": reasons, "detail": details}
    return pl.DataFrame(columns, {"at": pl.Int64, "reason": pl.String, "detail": pl.String})
