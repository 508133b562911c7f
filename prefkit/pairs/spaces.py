"""Where words and characters end in UTF-8, for kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from prefkit.pairs.compiled import compiled

# Of each byte: 1 if it is white space, 2 if it may begin a character that is.
SPACE = np.array([2 if byte in (0xC2, 0xE1, 0xE2, 0xE3) else byte <= 32 for byte in range(256)], np.uint8)
SPACE[[*range(1, 9), *range(14, 28)]] = 0


@compiled
def wide_space(data: Any, at: Any) -> Any:
    """How many bytes the white space has that begins at a byte with a 2 in SPACE: one character that ends a word for
    Python's `str.split`; 0 if it is another."""
    one, two = data[at], data[at + 1]
    if one == 0xC2:
        return 2 if two == 0x85 or two == 0xA0 else 0
    if one == 0xE1:
        return 3 if two == 0x9A and data[at + 2] == 0x80 else 0
    if one == 0xE2:
        three = data[at + 2]
        general = two == 0x80 and (three <= 0x8A or three == 0xA8 or three == 0xA9 or three == 0xAF)
        return 3 if general or (two == 0x81 and three == 0x9F) else 0
    return 3 if two == 0x80 and data[at + 2] == 0x80 else 0


@compiled
def skip_space(data: Any, at: int, end: int) -> int:
    while at < end:
        kind = SPACE[data[at]]
        width = wide_space(data, at) if kind == 2 else kind
        if width == 0:
            break
        at += width
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
