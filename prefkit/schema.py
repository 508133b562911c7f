"""The tables that flow through prefkit, as pyarrow schemas.

CANDIDATES  a completion of a prompt a row, completions of one prompt adjacent     (inside `prefkit build-pairs`)
PAIRS       a chosen and a rejected answer a row, pairs of one prompt adjacent     (the shards: the product)
LABELS      a good or a bad answer a row, answers to one prompt adjacent           (the shards, where labels are asked)
REJECTS     a raw row or a completion that is in none, with the one reason why     (nothing is dropped silently)

`prompt`, `chosen`, `rejected` and `completion` are message lists in TRL's explicit conversational formats for paired
and unpaired preferences, so that TRL and `datasets` read the shards as they are.

A data set holds PAIRS or LABELS, as its manifest says (`kind`). Its *sides* are the columns that hold an answer: where
the answer of SIDE stands is told by SIDE_file, SIDE_row and SIDE_index.
"""

from __future__ import annotations

import pyarrow as pa

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
LANGUAGES = pa.list_(pa.struct([("lang", pa.string()), ("prob", pa.float32())]))
ASPECTS = pa.list_(pa.struct([("name", pa.string()), ("score", pa.float64())]))

CANDIDATES = pa.schema(
    [
        ("prompt_id", pa.string()),  # 128-bit hash of the canonical prompt messages, as 32 hexadecimal digits
        ("source", pa.string()),
        ("prompt", MESSAGES),
        ("completion_index", pa.int32()),  # position of the completion in its raw row, from 0
        ("response", pa.string()),
        ("model", pa.string()),
        ("score", pa.float64()),  # null: not rated
        ("aspects", ASPECTS),
        ("origin_file", pa.string()),
        ("origin_row", pa.int64()),  # line or row of the raw file, from 1
        ("lang", pa.string()),
        ("lang_prob", pa.float32()),
        ("langs", LANGUAGES),  # the k best, best first; null for k = 1
        ("response_lang", pa.string()),  # null unless answers are tagged too
        ("response_lang_prob", pa.float32()),
    ]
)

PAIRS = pa.schema(
    [
        ("prompt", MESSAGES),
        ("chosen", MESSAGES),
        ("rejected", MESSAGES),
        ("pair_id", pa.string()),  # 128-bit hash of prompt_id, chosen and rejected
        ("prompt_id", pa.string()),
        ("source", pa.string()),
        ("chosen_score", pa.float64()),
        ("rejected_score", pa.float64()),
        ("margin", pa.float64()),  # chosen_score - rejected_score, always positive
        ("chosen_model", pa.string()),
        ("rejected_model", pa.string()),
        ("chosen_file", pa.string()),  # where the two candidates stand: raw file, row, completion_index
        ("chosen_row", pa.int64()),
        ("chosen_index", pa.int32()),
        ("rejected_file", pa.string()),
        ("rejected_row", pa.int64()),
        ("rejected_index", pa.int32()),
        ("strategy", pa.string()),
        ("lang", pa.string()),
        ("lang_prob", pa.float32()),
        ("langs", LANGUAGES),
        ("cluster_id", pa.string()),  # prompt_id of the first prompt of the near-duplicate cluster
    ]
)

LABELS = pa.schema(
    [
        ("prompt", MESSAGES),
        ("completion", MESSAGES),
        ("label", pa.bool_()),  # true: desirable
        ("answer_id", pa.string()),  # 128-bit hash of prompt_id and completion
        ("prompt_id", pa.string()),
        ("source", pa.string()),
        ("completion_score", pa.float64()),
        ("completion_model", pa.string()),
        ("completion_file", pa.string()),  # where the candidate stands: raw file, row, completion_index
        ("completion_row", pa.int64()),
        ("completion_index", pa.int32()),
        ("lang", pa.string()),
        ("lang_prob", pa.float32()),
        ("langs", LANGUAGES),
        ("cluster_id", pa.string()),
    ]
)

# By the kind of a data set.
SIDES = {"pairs": ("chosen", "rejected"), "labels": ("completion",)}
IDS = {"pairs": "pair_id", "labels": "answer_id", "conversations": "pair_id"}

REJECTS = pa.schema(
    [
        ("stage", pa.string()),  # read, filter, decontaminate, dedupe or binarize
        ("reason", pa.string()),
        ("origin_file", pa.string()),
        ("origin_row", pa.int64()),
        ("completion_index", pa.int32()),  # null: the whole raw row
        ("prompt_id", pa.string()),  # null: the row has no readable prompt
        ("cluster_id", pa.string()),  # null: it fell before near-duplicates were looked for
        ("detail", pa.string()),
        ("raw", pa.binary()),  # the bytes of a row that could not be decoded, else null
    ]
)

# What `prefkit adopt` makes.
CONVERSATIONS = pa.schema(
    [
        ("messages", MESSAGES),
        ("prompt", MESSAGES),
        ("pair_id", pa.string()),
        ("prompt_id", pa.string()),
        ("source", pa.string()),
        ("lang", pa.string()),
    ]
)

TABLES = {"pairs": PAIRS, "labels": LABELS, "conversations": CONVERSATIONS, "rejects": REJECTS}
