"""CPU time of language tags against the fastText library, and of decontamination against 10,000 evaluation items.

    OMP_NUM_THREADS=1 python tests/benchmarks/tags_and_overlap.py TEXTS.jsonl [--columns prompt chosen] [--repeats 7]

The texts of these columns are what is tagged and what is searched. Both taggers use lid.176.ftz on one core and see the
first 500 characters. The library is given each line as it wants it, beforehand, so that nothing but its `predict` is
counted; ours begins with the texts as a build has them. Both take turns, and their tags are compared.

Evaluation items are 60 words drawn from the texts as often as they stand there, and each hundredth is one of the texts;
so most lookups are misses, as in a build, and some are not. Times are of the CPU, since machines are shared.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefkit.pairs.decontaminate import Index, decontaminate, files, write_index
from prefkit.pairs.language import SHIPPED, language, model_path
from prefkit.pairs.packed import Packed
from prefkit.pairs.text import canonical

ITEMS, WORDS = 10_000, 60
CHARACTERS = 500


def texts_of(path: Path, columns: list[str]) -> list[str]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [row[column] for row in rows for column in columns]
    return [text for text in texts if isinstance(text, str) and text.strip()]


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, and the result."""
    started = time.process_time()
    result = function()
    return time.process_time() - started, result


def tags(texts: list[str], repeats: int) -> None:
    """Ours and the library's in turn."""
    import fasttext

    predict = fasttext.load_model(str(model_path(SHIPPED))).f.predict
    lines = [" ".join(text[:CHARACTERS].split()) + "\n" for text in texts]
    packed = Packed.of(texts)
    sides = {
        "prefkit": lambda: language(packed).languages,
        "library": lambda: [predict(line, 1, 0.0, "strict")[0][1].removeprefix("__label__") for line in lines],
    }
    for side in sides.values():
        side()  # kernels are compiled, pages are read
    times: dict[str, list[float]] = {name: [] for name in sides}
    found: dict[str, Any] = {}
    for _ in range(repeats):
        for name, side in sides.items():
            spent, found[name] = seconds(side)
            times[name].append(spent)
    median = {name: statistics.median(spent) for name, spent in times.items()}
    for name, spent in times.items():
        low, high = (1e6 * edge / len(texts) for edge in (min(spent), max(spent)))
        print(f"tags, {name}: {1e6 * median[name] / len(texts):.1f} µs a text ({low:.1f} to {high:.1f})")
    equal = sum(one == other for one, other in zip(*found.values(), strict=True))
    length = statistics.mean(map(len, texts))
    print(f"ratio {median['library'] / median['prefkit']:.1f}; {equal:,} of {len(texts):,} tags are equal; "
          f"texts of {length:.0f} characters on average")  # fmt: skip


def overlap(texts: list[str], repeats: int) -> None:
    """The search of all texts, a thousand at a time, as a build has them."""
    rng = random.Random(0)
    words = [word for text in texts for word in text.split()]
    items = [" ".join(rng.choices(words, k=WORDS)) for _ in range(ITEMS)]
    items[::100] = [rng.choice(texts) for _ in items[::100]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "items.jsonl").write_text("".join(json.dumps({"prompt": item}) + "\n" for item in items))
        options = decontaminate(paths=files(["items.jsonl"], folder))
        spent, _ = seconds(lambda: write_index(folder, options))
        index = Index(folder, options)
    turns = [[canonical(text)] for text in texts]

    def search() -> list[Any]:
        return [match for first in range(0, len(turns), 1000) for match in index.matches(turns[first : first + 1000])]

    search()
    times, met = zip(*(seconds(search) for _ in range(repeats)), strict=True)
    low, middle, high = (1e6 * edge / len(texts) for edge in (min(times), statistics.median(times), max(times)))
    hits = sum(match is not None for match in met[0])
    print(f"decontamination: {middle:.1f} µs a prompt ({low:.1f} to {high:.1f}) against {ITEMS:,} items; {hits:,} of "
          f"{len(texts):,} met one; index written in {spent:.1f} s")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", type=Path, metavar="TEXTS.jsonl")
    parser.add_argument("--columns", nargs="+", default=["prompt"])
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    texts = texts_of(given.texts, given.columns)
    tags(texts, given.repeats)
    overlap(texts, given.repeats)


if __name__ == "__main__":
    main()
