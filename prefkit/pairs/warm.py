"""What all tasks need, imported and loaded once: worker processes are forked from one that imported this.

A second that would otherwise be spent by each worker. Nothing here may start polars' threads, which do not
survive a fork.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow.compute  # noqa: F401  # which polars asks for with the first array of Arrow

from prefkit.pairs import canonical, language, minhash, read, select, shards  # noqa: F401
from prefkit.pairs.packed import Packed

_texts = canonical.canonical_texts(Packed.of(["to be or not to be", "to be or not to be"]))
canonical.identities(pl.Series(["user", "user"]), _texts, [1, 1])
language.language(_texts)
_hashes, _offsets = minhash.shingles(_texts, 2)
_signatures = minhash.signatures(_hashes, _offsets, minhash.permutations(8, 1)).T
minhash.band_keys(np.ascontiguousarray(_signatures[:2]))
minhash.similar_pairs(np.array([0, 2]), np.array([0, 1]), _hashes, _offsets, 0.5)
minhash.components(np.array([[0, 1]]), 2)
