"""The demo's judge: an exact, programmatic score for an answer to one of the demo's word games.

`data/make_demo.py` asks little games ("Which of the words pear, fig and banana has the most letters?"), each with one
right answer. `judge` reads the instruction, solves the game, and compares. It knows nothing of ratings or models, so it
measures, independently of the noisy preferences, whether training on them made generated answers better.

The score is right × brief, both in [0, 1]:

- *right*: the words of the answer that could be an answer to this game are lined up with the solution; the share of
  places that agree, over the longer of the two. Hedging and repeating cost, an answer that commits to nothing earns 0.
- *brief*: 1 up to SPARE_WORDS words more than the solution has, from there on that allowance over the number of words.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

SPARE_WORDS = 5
NUMBERS = (
    "zero one two three four five six seven eight nine ten "
    "eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen"
).split()
CATEGORIES = {
    "an animal": "cat elephant horse owl rabbit",
    "a fruit": "apple banana cherry fig lemon",
    "a tool": "axe hammer ladder saw wrench",
    "something to wear": "coat glove hat scarf sweater",
    "a piece of furniture": "bed chair desk table wardrobe",
    "a musical instrument": "drum flute guitar piano violin",
}
OPPOSITE_PAIRS = (
    "big small, clean dirty, cold hot, dry wet, early late, empty full, "
    "fast slow, hard soft, high low, old young, poor rich, strong weak"
)
OPPOSITES = {
    word: opposite
    for left, right in (pair.split() for pair in OPPOSITE_PAIRS.split(", "))
    for word, opposite in ((left, right), (right, left))
}


class Solution(NamedTuple):
    """The right answer to a game as a sequence of words, and all the words that count as an answer to it."""

    words: tuple[str, ...]
    choices: frozenset[str]


def judge(instruction: str, answer: str) -> float:
    """How good `answer` is, from 0 to 1. Raises ValueError if `instruction` is no game of the demo."""
    solution = solve(instruction)
    words = re.findall(r"\w+", answer.casefold())
    said = [word for word in words if word in solution.choices]
    agreeing = sum(one == other for one, other in zip(said, solution.words, strict=False))
    right: float = agreeing / max(len(said), len(solution.words))
    brief: float = (len(solution.words) + SPARE_WORDS) / max(1, len(words))
    return right * min(1.0, brief)


def solve(instruction: str) -> Solution:
    """The solution of a game. Raises ValueError if `instruction` is none of the demo's games."""
    for pattern, rule in GAMES.items():
        if match := re.search(pattern, instruction):
            return rule(listed(instruction), *match.groups())
    raise ValueError(f"not one of the demo's games: {instruction!r}")


def listed(instruction: str) -> list[str]:
    """The words of the list "pear, fig and banana" in an instruction; empty where there is none."""
    match = re.search(r"\w+(?:, \w+)* and \w+", instruction)
    return re.split(", | and ", match.group()) if match else []


def longest(words: list[str]) -> Solution:
    """Which word has the most letters?"""
    return Solution((max(words, key=len),), frozenset(words))


def starts(words: list[str], letter: str) -> Solution:
    """Which word starts with this letter?"""
    return Solution(tuple(word for word in words if word.startswith(letter)), frozenset(words))


def category(words: list[str], name: str) -> Solution:
    """Which word is an animal, a fruit, …?"""
    return Solution(tuple(word for word in words if word in CATEGORIES[name].split()), frozenset(words))


def place(words: list[str], where: str) -> Solution:
    """Which word comes first, or last?"""
    return Solution((words[0 if where == "first" else -1],), frozenset(words))


def count(words: list[str]) -> Solution:
    """How many words are there?"""
    return Solution((NUMBERS[len(words)],), frozenset(NUMBERS))


def add(_: list[str], left: str, right: str) -> Solution:
    """How much is this plus that?"""
    return Solution((NUMBERS[NUMBERS.index(left) + NUMBERS.index(right)],), frozenset(NUMBERS))


def opposite(_: list[str], word: str) -> Solution:
    """What is the opposite of this word? (Naming the word itself again is no answer, and no mistake.)"""
    return Solution((OPPOSITES[word],), frozenset(OPPOSITES) - {word})


def repeat(_: list[str], word: str, times: str) -> Solution:
    """Say this word so many times."""
    return Solution((word,) * NUMBERS.index(times), frozenset([word]))


# What an instruction says -> how it is solved, from its listed words and the pattern's groups.
GAMES: dict[str, Callable[..., Solution]] = {
    r"most letters|longest": longest,
    r"starts with the letter (\w)\b": starts,
    rf"\bis ({'|'.join(CATEGORIES)})\b": category,
    r"\b(first|last) word\b": place,
    r"\bhow many words\b": count,
    r"\b(\w+) plus (\w+)\b": add,
    r"\bthe opposite of (\w+)\b": opposite,
    r"\bthe word (\w+) (two|three|four) times\b": repeat,
}
