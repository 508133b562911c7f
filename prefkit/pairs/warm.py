"""What all tasks need, imported and loaded once: worker processes are forked from one that imported this.

A second and a half that would otherwise be spent by each worker. Nothing here may start polars' threads, which do not
survive a fork.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import scipy.sparse.csgraph  # noqa: F401

from prefkit.pairs import language, minhash, read, select, shards  # noqa: F401

_hashes, _offsets = minhash.shingles(["to be or not to be", "to be or not to be"], 2)
_signatures = minhash.signatures(_hashes, _offsets, minhash.permutations(8, 1)).T
minhash.band_keys(np.ascontiguousarray(_signatures[:2]))
minhash.similar_pairs(np.array([0, 2]), np.array([0, 1]), _hashes, _offsets, 0.5)
language.language(["to be or not to be"])
pa.array([""])  # imports pandas, where there is one
