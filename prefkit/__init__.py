"""prefkit: raw ratings of language-model answers in, preference pairs and an aligned model out.

Two halves meet at Parquet shards and a manifest: `prefkit.pairs` writes them, `prefkit.train` reads them, and neither
imports the other. This module imports nothing heavy, so that `prefkit --help` answers at once.
"""

__version__ = "0.1.0"
