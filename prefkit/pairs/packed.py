"""Many texts as one run of UTF-8 bytes: what Arrow holds of a column, and what kernels work on."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa


class Packed(NamedTuple):
    """Text i is data[ends[i]:ends[i+1]]. Neither is ever written to; that they say so keeps it at one compiled version
    of a kernel."""

    data: npt.NDArray[np.uint8]
    ends: npt.NDArray[np.int64]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Packed:
        return cls.of_bytes([text.encode() for text in texts])

    @classmethod
    def of_bytes(cls, texts: list[bytes]) -> Packed:
        """Texts that are UTF-8 already."""
        ends = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([len(text) for text in texts], out=ends[1:])
        return cls(np.frombuffer(b"".join(texts), np.uint8), read_only(ends))

    @classmethod
    def of_column(cls, texts: pl.Series) -> Packed:
        """A column without nulls."""
        array = texts.to_arrow()
        _, ends, data = array.buffers()
        assert array.offset == 0 and not array.null_count
        return cls(np.frombuffer(data or b"", np.uint8), np.frombuffer(ends, np.int64)[: len(array) + 1])

    def column(self) -> pl.Series:
        buffers = [None, pa.py_buffer(self.ends), pa.py_buffer(self.data)]
        array = pa.Array.from_buffers(pa.large_string(), len(self.ends) - 1, buffers)
        column = pl.from_arrow(array)
        assert isinstance(column, pl.Series)
        return column

    def bytes(self) -> list[bytes]:
        """Each text by itself, in UTF-8."""
        data = self.data.tobytes()
        return [data[begin:end] for begin, end in pairwise(self.ends.tolist())]


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.flags.writeable = False
    return array


def numbers_of(ids: pl.Series) -> npt.NDArray[np.uint64]:
    """The 128 bits of ids of 32 hexadecimal digits each, [ids, 2]."""
    digits = Packed.of_column(ids).data.tobytes().decode()
    return np.frombuffer(bytes.fromhex(digits), ">u8").astype(np.uint64).reshape(-1, 2)


def hexadecimal(numbers: npt.NDArray[np.uint64]) -> pl.Series:
    """The ids of which `numbers` [ids, 2] are the bits."""
    digits = numbers.astype(">u8").tobytes().hex().encode()
    return Packed(np.frombuffer(digits, np.uint8), np.arange(0, len(digits) + 1, 32)).column()
