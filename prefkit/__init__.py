"""prefkit: raw ratings of language-model answers in, preference pairs and an aligned model out.

    load_pipeline     a pipeline file, or the name of a shipped one, with options changed
    build_pairs       raw ratings -> a data set: Parquet shards and a manifest
    load_pairs        a data set -> a polars LazyFrame
    PairStream        a data set -> the token trees of each optimiser step, for a training loop of your own
    PackingCollator   rows of pairs -> token trees, as a `collate_fn` or `data_collator`
    train             the phases of a pipeline file -> an aligned model

Two halves meet at Parquet shards and a manifest: `prefkit.pairs` writes them, `prefkit.train` reads them, and neither
imports the other. Names are imported when they are first used: `import prefkit` and `prefkit --help` cost nothing, and
who only handles data needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefkit.config import load_pipeline
    from prefkit.pairs.build import build_pairs
    from prefkit.pairs.load import load_pairs
    from prefkit.train.collator import PackingCollator
    from prefkit.train.pair_stream import PairStream
    from prefkit.train.run import train

__version__ = "0.1.0"
__all__ = ["PackingCollator", "PairStream", "build_pairs", "load_pairs", "load_pipeline", "train"]

_HOMES = {
    "PackingCollator": "prefkit.train.collator",
    "PairStream": "prefkit.train.pair_stream",
    "build_pairs": "prefkit.pairs.build",
    "load_pairs": "prefkit.pairs.load",
    "load_pipeline": "prefkit.config",
}


if not TYPE_CHECKING:  # who checks types shall see the names above, and miss others

    def __getattr__(name: str) -> Any:
        if name == "train":  # a package that can be called, since both carry this name
            return importlib.import_module("prefkit.train")
        if name not in _HOMES:
            raise AttributeError(f"module 'prefkit' has no attribute {name!r}")
        try:
            return getattr(importlib.import_module(_HOMES[name]), name)
        except ModuleNotFoundError as error:
            if error.name in ("torch", "transformers"):
                from prefkit.extras import install

                raise ImportError(f"prefkit.{name} needs {error.name}: {install('train')}.") from error
            raise

    def __dir__() -> list[str]:
        return sorted([*globals(), *__all__])
