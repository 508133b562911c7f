"""Reads inputs, here or in a process of its own with its own environment: `python -m tests.pairs.reader URL …`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from prefkit import urls
from prefkit.errors import PrefkitError
from prefkit.pairs import inputs

PROJECT = Path(__file__).parent.parent.parent
CHUNK = 20_000


def read(given: str) -> list[tuple[str, int, Any]]:
    """Name, number and value of all rows that an input gives, in parts as small as may be."""
    (files,) = inputs.name_files([inputs.expand([given], Path())])
    found: list[tuple[str, int, Any]] = []
    for file in files:
        for part in inputs.index(file, CHUNK).parts:
            found += [(file.name, row.number, row.value or json.loads(row.text)) for row in inputs.rows(part)]
    return found


def read_elsewhere(given: list[str], **environment: str) -> list[Any]:
    """`read` of each input, or the message of its failure, in a new process."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "AWS_", "FSSPEC_"))}
    done = subprocess.run(
        [sys.executable, "-m", "tests.pairs.reader", *given],
        env=inherited | environment,
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


if __name__ == "__main__":
    urls.WAITS = (0.01, 0.01, 0.01)
    urls.BLOCK = 16_384
    for url in sys.argv[1:]:
        try:
            print(json.dumps(read(url)))
        except PrefkitError as error:
            print(json.dumps(f"{type(error).__name__}: {error}"))
