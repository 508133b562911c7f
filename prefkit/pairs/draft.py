"""A pipeline file as text: what `prefkit init` writes.

A known data set has a shipped pipeline, whose text is taken as it is, with its filters, cautions and licence, and the
paths put in. For a table of one's own, `[[build.inputs]]` names the columns that were recognised, and the rest is what
most preference data wants. A recipe's `[model]` and `[[train]]` are put behind. The text is checked as a build would
check it before it is written.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Sequence
from pathlib import Path

from prefkit import config
from prefkit.config import Pipeline
from prefkit.errors import UsageError, did_you_mean
from prefkit.pairs.options import check_build
from prefkit.pairs.recognise import ANY_TABLE, Reading
from prefkit.toml import as_toml

# What each option of a source for any table means, to stand beside it.
MEANS = {
    "prompt": "text or messages",
    "response": "the answer",
    "completions": "a list of answers; what follows are columns of its items",
    "completion": "the answer",
    "chosen": "text or messages",
    "rejected": "text or messages",
    "label": "true or 1: good",
    "score": "a number; higher is better, unless higher_is_better = false",
    "aggregate": 'where a score is a list, one of each annotator; or "median", "majority", "unanimous"',
    "chosen_score": "a pair without a score, or with a tie, is rejected",
    "higher_is_better": "1 is the best rank",
    "absolute": "ranks compare only within a row",
    "model": "who answered",
    "source_column": "what the source of a row is called",
}
SHARED_PROMPT = "what chosen and rejected share from the start"

REST = """
[[build.filters]]
use = "prompt_length"
max_characters = 20_000

[[build.filters]]
use = "response_length"
min_characters = 1
max_characters = 20_000

[build.dedupe]
{dedupe}

{makes}

[build.split]
test = 0.05
"""
PAIRS = """[build.binarize]
use = "best_vs_worst"           # or "all_pairs", "best_vs_random": docs/formats.md"""
LABELS = """[build.labels]                  # each answer by itself, for KTO; [build.binarize] in its place makes pairs
desirable_at_least = 1          # true
undesirable_at_most = 0         # false"""
ONE_ANSWER_A_ROW = 'on_duplicate = "merge"          # the answers to a prompt may stand in rows of their own'
ALL_ANSWERS_A_ROW = "threshold = 0.7                 # Jaccard similarity of word 5-grams"
CHECK = "# Look at a few pairs and rejects before you trust them: prefkit report DATA --open"


def write(
    reading: Reading,
    shown: str,
    given: Sequence[str],
    paths: Sequence[str],
    name: Path,
    *,
    recipe: str | None = None,
    model: str | None = None,
) -> str:
    """The text of the pipeline file `name`.

    Its inputs are `shown` to people so, and found at `paths` from there; where no path may stand in a file, they have
    to be `given` to each build.
    """
    if recipe and reading.makes_labels:
        raise UsageError(
            f"--recipe {recipe}: it trains on pairs, and these rows make labels, since few answers have another to be "
            "paired with. Leave it out; `prefkit train kto` trains on labels."
        )
    command = shlex.quote(str(name))
    own = reading.source in ANY_TABLE or ":" in reading.source
    entry = _table(reading, paths) if own else _known(reading, paths)
    head = [
        f"# Written by prefkit init. {shown}: {reading.summary}.",
        f"#   prefkit build-pairs {command} {'' if paths else 'URL '}--out DATA",
        *([f"#   prefkit train {command} --data DATA --out RUN"] if recipe else []),
        "#",
    ]
    text = "\n".join([*head, entry.strip()]) + "\n"
    if recipe:
        text += "\n" + _training(recipe, model)
    _check(text, name, [] if paths else given)
    return text


def _known(reading: Reading, paths: Sequence[str]) -> str:
    """The shipped pipeline of a known data set without its training, with paths and options put in."""
    blocks = _blocks(config.load_pipeline(reading.source.replace("_", "-")).text)
    kept = [text for header, text in blocks if not header.startswith(("[model", "[[train"))]
    at = next(number for number, text in enumerate(kept) if "[[build.inputs]]" in text)
    lines = kept[at].rstrip().splitlines()
    for option, value in {**({"paths": list(paths)} if paths else {}), **reading.options}.items():
        lines = [line for line in lines if not line.startswith(f"{option} =")]
        use = next(number for number, line in enumerate(lines) if line.startswith("use ="))
        lines.insert(use + 1, f"{option} = {as_toml(value)}")
    kept[at] = "\n".join(lines) + "\n\n"
    return "".join(kept)


def _table(reading: Reading, paths: Sequence[str]) -> str:
    """A pipeline for a table of one's own."""
    lines = [CHECK, "", "[[build.inputs]]", f'use = "{reading.source}"']
    lines += [f"paths = {as_toml(list(paths))}"] if paths else []
    for option, value in reading.options.items():
        means = SHARED_PROMPT if option == "prompt" and value == "" else MEANS.get(option, "")
        lines.append(f"{option} = {as_toml(value)}".ljust(30) + (f"  # {means}" if means else ""))
    apart = reading.source != "pairs" and "completions" not in reading.options
    makes = LABELS if reading.makes_labels else PAIRS
    rest = REST.format(dedupe=ONE_ANSWER_A_ROW if apart else ALL_ANSWERS_A_ROW, makes=makes)
    return "\n".join(line.rstrip() for line in lines) + "\n" + rest


def _training(recipe: str, model: str | None) -> str:
    """`[model]` and `[[train]]` of a recipe, with its comments."""
    if recipe not in config.recipes():
        raise UsageError(f'--recipe: there is no "{recipe}".{did_you_mean(recipe, config.recipes())}')
    text = config.load_pipeline(recipe).text
    about = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    blocks = [block for header, block in _blocks(text) if header.startswith(("[model", "[[train"))]
    body = "".join(blocks)
    if model is not None:
        body = re.sub(r"^path = .*$", lambda _: f"path = {as_toml(model)}", body, count=1, flags=re.MULTILINE)
    return f"# The recipe {recipe}:\n{about}{body}"


def _blocks(text: str) -> list[tuple[str, str]]:
    """A TOML file cut before each table header, and before the comments right above it; the first has no header."""
    lines = text.splitlines(keepends=True)
    starts = [0]
    for number, line in enumerate(lines):
        if line.startswith("["):
            while number > starts[-1] and lines[number - 1].startswith("#"):
                number -= 1
            starts.append(number)
    cut = ["".join(lines[start:end]) for start, end in zip(starts, [*starts[1:], len(lines)], strict=True)]
    return [(next((line for line in block.splitlines() if line.startswith("[")), ""), block) for block in cut if block]


def _check(text: str, name: Path, given: Sequence[str]) -> None:
    """Check the text as a build would."""
    path = name.absolute()
    check_build(Pipeline(path.stem, path, text, [], tomllib.loads(text)), given)
