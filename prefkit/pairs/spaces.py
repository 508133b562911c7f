"""Where words and characters end in UTF-8, for kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from prefkit.pairs.compiled import compiled

MAY_BE_SPACE = np.array([byte <= 32 or byte in (0xC2, 0xE1, 0xE2, 0xE3) for byte in range(256)])  # if it begins one


@compiled
def _space(data: Any, at: Any) -> Any:
    """How many bytes of white space begin at a byte: 0, or those of one character that ends a word for fastText
    (as NUL does) or for Python's `str.split`."""
    one = data[at]
    if one <= 32:
        return int(one == 32 or 9 <= one <= 13 or one >= 28 or one == 0)
    if one < 0xC2 or one > 0xE3:
        return 0
    two = data[at + 1]
    if one == 0xC2:
        return 2 if two == 0x85 or two == 0xA0 else 0
    if one == 0xE1:
        return 3 if two == 0x9A and data[at + 2] == 0x80 else 0
    if one == 0xE2:
        three = data[at + 2]
        general = two == 0x80 and (three <= 0x8A or three == 0xA8 or three == 0xA9 or three == 0xAF)
        return 3 if general or (two == 0x81 and three == 0x9F) else 0
    return 3 if one == 0xE3 and two == 0x80 and data[at + 2] == 0x80 else 0


@compiled
def skip_space(data: Any, at: int, end: int) -> int:
    while at < end:
        width = _space(data, at)
        if width == 0:
            break
        at += width
    return at


@compiled
def word_end(data: Any, at: int, end: int) -> int:
    while at < end and not (MAY_BE_SPACE[data[at]] and _space(data, at)):
        at += 1
    return at


@compiled
def cut(data: Any, at: int, end: int, characters: int) -> int:
    """Where the first `characters` characters end."""
    count = 0
    while at < end and count < characters:
        step = min(characters - count, end - at)
        for i in range(at, at + step):
            count += data[i] & 0xC0 != 0x80
        at += step
    while at < end and data[at] & 0xC0 == 0x80:
        at += 1
    return at
