"""The process that workers are forked from: all that `warm` loads, and an end without tidying up.

It shares its output with the command that started it, so whoever reads that would wait for the end of both.
"""

from __future__ import annotations

import atexit
import os

from prefkit import collector

with collector.importing():
    from prefkit.pairs import warm  # noqa: F401

atexit.register(os._exit, 0)  # forked workers run no such function
