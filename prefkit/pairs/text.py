"""Canonical text, by which prompts are compared, and the ids made from it.

Two prompts are the same if their canonical texts are: Unicode NFKC, case folded, every run of white space one space.
Data itself is never changed; canonical text lives only in hashes and sketches.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

from prefkit.pairs.records import Message


def canonical(text: str) -> str:
    """NFKC, case folded, white space collapsed."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def prompt_id(prompt: Sequence[Message]) -> str:
    """128-bit hash of the roles and canonical contents, as 32 hexadecimal digits."""
    return digest(*(part for message in prompt for part in (message.role, canonical(message.content))))


def digest(*parts: str) -> str:
    """BLAKE2b of the parts, each with its length in front so that no two lists of parts run together."""
    hasher = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode()
        hasher.update(len(data).to_bytes(8, "little"))
        hasher.update(data)
    return hasher.hexdigest()


def uniform(*parts: str) -> int:
    """A seeded 64-bit hash, uniform over 0 … 2^64 - 1: the source of every deterministic "random" choice."""
    return int(digest(*parts)[:16], 16)
