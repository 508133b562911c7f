"""The judge, on instructions and answers written by hand."""

from __future__ import annotations

import pytest

from prefkit.demo.judge import CATEGORIES, OPPOSITES, judge, solve

GAMES = {
    "Which of the words cat, elephant and owl has the most letters?": "elephant",
    "Ben is bored at work. Out of fig, lemon and axe, which word is the longest here?": "lemon",
    "Which of the words desk, drum and saw starts with the letter s, please?": "saw",
    "My card says hat, piano, lemon and cat on it. Name the word that is a musical instrument there.": "piano",
    "Out of hat, table and lemon, which word is something to wear for you?": "hat",
    "If I say cat, owl and fig to you, what is the last word?": "fig",
    "My card says cat, owl and fig on it. Name the first word there.": "cat",
    "Please tell me how many words cat and owl make.": "two",
    "If I say cat, owl, fig, saw and axe to you, how many words is that?": "five",
    "How much is six plus four in the end?": "ten",
    "My card says the opposite of cold is needed here.": "hot",
    "I want to hear the word fig three times now.": "fig, fig, fig",
}
LONGEST = "Which of the words cat, elephant and owl has the most letters?"
REPEAT = "Please say the word cat two times for me."


@pytest.mark.parametrize(("instruction", "solution"), GAMES.items())
def test_the_solution_alone_and_in_a_sentence_are_perfect(instruction: str, solution: str) -> None:
    assert judge(instruction, solution) == 1
    assert judge(instruction, f"The answer is {solution}.") == 1
    assert solve(instruction).words == tuple(solution.split(", "))


@pytest.mark.parametrize("instruction", GAMES)
def test_saying_nothing_or_refusing_is_worth_nothing(instruction: str) -> None:
    assert judge(instruction, "") == 0
    assert judge(instruction, "I am sorry, but I cannot help with that.") == 0


@pytest.mark.parametrize(
    ("instruction", "answer", "score"),
    [
        (LONGEST, "It is owl.", 0),
        (LONGEST, "It is elephant. It is elephant.", 1 / 2),  # said twice
        (LONGEST, "Elephant or cat or owl?", 1 / 3),  # hedged
        (LONGEST, "Elephant!", 1),
        (LONGEST, "Oh, what a nice thing to ask me, and I say elephant.", 6 / 12),  # twelve words, six are allowed
        (REPEAT, "cat", 1 / 2),
        (REPEAT, "cat, cat, cat", 2 / 3),
        ("What is the opposite of cold in your view?", "The opposite of cold is hot.", 1),
        ("What is the opposite of cold in your view?", "The opposite of cold is low.", 0),
    ],
)
def test_partial_scores(instruction: str, answer: str, score: float) -> None:
    assert judge(instruction, answer) == pytest.approx(score)


def test_an_unknown_instruction_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not one of the demo's games: 'Write a poem\.'"):
        judge("Write a poem.", "Roses are red.")


def test_the_vocabulary_is_unambiguous() -> None:
    words = [word for members in CATEGORIES.values() for word in members.split()]
    assert len(set(words)) == len(words)
    assert not set(words) & set(OPPOSITES)
    assert all(OPPOSITES[OPPOSITES[word]] == word for word in OPPOSITES)
