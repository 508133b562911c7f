"""Write the demo's raw ratings: `python data/make_demo.py` makes demo.jsonl.gz and its companions beside this file.

Everything is invented here: little word games with answers that a program can check (`prefkit.demo.judge.judge`
does), the answers of four made-up models, and the ratings of made-up, slightly moody raters, in the raw format of
UltraFeedback. The dirt of real rating data is planted on purpose, one kind a row, and demo.truth.json lists the lines
it went to, so that what a pipeline rejects can be checked against what is there. demo.benchmark.jsonl plays the
evaluation set that training data must not contain. The output is a function of SEED.

The games are such that a small transformer, trained from scratch for a minute, becomes fair at them: find the word that
matters in the instruction, and say it. The answers leave room to learn from ratings: even the best of four is often
wrong, wordy or evasive, so imitating the preferred answers is not enough.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefkit.demo.judge import CATEGORIES, NUMBERS, OPPOSITES

SEED = 20260411
CLEAN_ROWS = 3600
BENCHMARK_PROMPTS = 40
LEAK_WORDS = 13  # the shortest instruction that leaks: a benchmark is usually searched for by word 13-grams
HERE = Path(__file__).parent

# ---- the games -------------------------------------------------------------------------------------------------------

WORDS = [word for words in CATEGORIES.values() for word in words.split()]
QUESTIONS: dict[str, tuple[str, ...]] = {
    "longest": (
        "Which of the words {words} has the most letters?",
        "Out of {words}, which word is the longest here?",
        "My card says {words} on it. Name the longest word there.",
    ),
    "starts": (
        "Which of the words {words} starts with the letter {letter}, please?",
        "Out of {words}, which word starts with the letter {letter} here?",
        "My card says {words} on it. Name the word that starts with the letter {letter} there.",
    ),
    "category": (
        "Which of the words {words} is {category}, please?",
        "Out of {words}, which word is {category} for you?",
        "My card says {words} on it. Name the word that is {category} there.",
    ),
    "place": (
        "Out of {words}, which is the {place} word here?",
        "My card says {words} on it. Name the {place} word there.",
        "If I say {words} to you, what is the {place} word?",
    ),
    "count": (
        "Please tell me how many words {words} make.",
        "My card says {words} on it. Do you know how many words that is?",
        "If I say {words} to you, how many words is that?",
    ),
    "repeat": (
        "Please say the word {word} {number} times for me.",
        "Can you please write down the word {word} {number} times?",
        "I want to hear the word {word} {number} times now.",
    ),
    "sum": (
        "How much is {left} plus {right} in the end?",
        "Please tell me what {left} plus {right} makes here.",
        "If I have {left} plus {right} coins, how many is that?",
    ),
    "opposite": (
        "What is the opposite of {word} in your view?",
        "Please tell me the opposite of {word} if you can.",
        "My card says the opposite of {word} is needed here.",
    ),
}
SOURCES = {"longest": "word_games", "starts": "word_games", "category": "word_games", "opposite": "word_games"}
SOURCES |= {"place": "list_games", "repeat": "list_games", "count": "number_games", "sum": "number_games"}


@dataclass(frozen=True)
class Game:
    """One question with its words in place; `choices` are what a wrong answer may say instead of `answer`."""

    kind: str
    question: str
    answer: list[str]
    choices: list[str]


def draw_game(rng: random.Random) -> Game:
    """A question with exactly one right answer."""
    kind = rng.choice(list(QUESTIONS))
    draw = {"sum": draw_sum, "opposite": draw_opposite, "repeat": draw_repeat}.get(kind)
    slots, answer, choices = draw(rng) if draw else draw_list(kind, rng)
    return Game(kind, rng.choice(QUESTIONS[kind]).format(**slots), answer, choices)


Draw = tuple[dict[str, str], list[str], list[str]]  # slots of the question, answer, choices


def draw_sum(rng: random.Random) -> Draw:
    """Two numbers to add."""
    left, right = rng.randint(1, 6), rng.randint(1, 6)
    return {"left": NUMBERS[left], "right": NUMBERS[right]}, [NUMBERS[left + right]], NUMBERS


def draw_opposite(rng: random.Random) -> Draw:
    """A word that has an opposite."""
    word = rng.choice(list(OPPOSITES))
    return {"word": word}, [OPPOSITES[word]], [other for other in OPPOSITES if other != word]


def draw_repeat(rng: random.Random) -> Draw:
    """A word to say several times."""
    word, times = rng.choice(WORDS), rng.randint(2, 4)
    return {"word": word, "number": NUMBERS[times]}, [word] * times, [word]


def draw_list(kind: str, rng: random.Random) -> Draw:
    """A list of words to choose from or to count, drawn again until the answer is unique."""
    while True:
        words = rng.sample(WORDS, rng.randint(2, 6) if kind == "count" else rng.randint(3, 4))
        category, letter, place = rng.choice(list(CATEGORIES)), rng.choice(words)[0], rng.choice(["first", "last"])
        slots = {"words": f"{', '.join(words[:-1])} and {words[-1]}"}
        slots |= {"category": category, "letter": letter, "place": place}
        answers = {
            "longest": [word for word in words if len(word) == max(map(len, words))],
            "starts": [word for word in words if word[0] == letter],
            "category": [word for word in words if word in CATEGORIES[category].split()],
            "place": [words[0 if place == "first" else -1]],
            "count": [NUMBERS[len(words)]],
        }
        if len(answers[kind]) == 1:
            return slots, answers[kind], NUMBERS if kind == "count" else words


# ---- instructions ----------------------------------------------------------------------------------------------------

NAMES = "Anna Ben Clara David Emma Frank Grace Henry Julia Karl Laura Martin Nina Oscar Paula Robert Sarah Tom".split()
DOINGS = "is bored|wants to play|has a riddle|needs some help|cannot sleep|has a question".split("|")
SETTINGS = "at school|on the train|in the kitchen|at work|by the sea|on the bus|after dinner|this morning".split("|")
CLOSINGS = ("Please keep it short.", "Thank you very much!", "I am in a hurry.", "Just the answer, please.")
SAME_FROM = 0.6  # two clean instructions are less alike than this, so that no rule of 0.7 takes them for duplicates


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """The word 5-grams by which near-duplicates are told; a shorter text is one shingle."""
    words = re.findall(r"\w+", text.lower())
    return frozenset(tuple(words[start : start + 5]) for start in range(max(1, len(words) - 4)))


def jaccard(left: frozenset[tuple[str, ...]], right: frozenset[tuple[str, ...]]) -> float:
    """Shared part of two sets of shingles."""
    return len(left & right) / len(left | right)


class Novelty:
    """Remembers instructions, and tells whether another is unlike them all (Jaccard of 5-grams below SAME_FROM)."""

    def __init__(self) -> None:
        self.holders: dict[tuple[str, ...], list[frozenset[tuple[str, ...]]]] = {}

    def accepts(self, text: str) -> bool:
        mine = shingles(text)
        rivals = {other for gram in mine for other in self.holders.get(gram, ())}
        if any(jaccard(mine, other) >= SAME_FROM for other in rivals):
            return False
        for gram in mine:
            self.holders.setdefault(gram, []).append(mine)
        return True


def dress(question: str, rng: random.Random) -> str:
    """The question in some small talk, so that no two instructions read alike."""
    opening = f"{rng.choice(NAMES)} {rng.choice(DOINGS)} {rng.choice(SETTINGS)}. " if rng.random() < 0.5 else ""
    closing = f" {rng.choice(CLOSINGS)}" if rng.random() < 0.3 else ""
    return opening + question + closing


# ---- answers ---------------------------------------------------------------------------------------------------------

PLAIN = ("It is {a}.", "The answer is {a}.", "That would be {a}.", "My answer: {a}.")
CHATTY_STARTS = ("Oh, what a lovely question!", "Well, let me think for a moment.", "Sure, I am happy to help you!")
CHATTY_ENDS = ("I hope this helps you a lot.", "Do ask me anything else you like.", "Is this game not a lot of fun?")
REFUSALS = (
    "I am sorry, but I cannot help with that.",
    "I would rather not say.",
    "Please ask somebody else.",
    "I do not know what you mean.",
)


@dataclass(frozen=True)
class Model:
    """How an invented model behaves: how often it is right, and the odds of its manners."""

    name: str
    right: float
    manners: dict[str, float]


MODELS = (
    Model("atlas-13b", 0.85, {"plain": 0.50, "chatty": 0.40, "twofold": 0.10}),
    Model("brook-7b", 0.80, {"plain": 0.20, "chatty": 0.60, "twofold": 0.10, "refuse": 0.10}),
    Model("comet-3b", 0.50, {"plain": 0.40, "chatty": 0.30, "twofold": 0.20, "refuse": 0.10}),
    Model("dune-1b", 0.40, {"plain": 0.15, "chatty": 0.35, "twofold": 0.25, "refuse": 0.25}),
)
WORTH = {"plain": 8.5, "chatty": 6.0, "twofold": 5.0, "refuse": 2.0}  # to a rater, of a right answer
WRONG = 4.0  # how much less a wrong one is worth
MOOD = 1.1  # standard deviation of a rater's mood, in points of 10


@dataclass(frozen=True)
class Answer:
    """What a model said, and what it is worth to an unmoody rater (1 to 10)."""

    model: str
    text: str
    worth: float


def mistake(game: Game, rng: random.Random) -> list[str]:
    """A plausible wrong answer: another word, a number close by, the right word too often or not often enough."""
    if game.kind == "repeat":
        return game.choices * (len(game.answer) + rng.choice([-1, 1, 2]))
    right = game.choices.index(game.answer[0])
    near = (right - 2, right - 1, right + 1, right + 2) if game.choices is NUMBERS else range(len(game.choices))
    return [game.choices[rng.choice([place for place in near if place != right and 0 <= place < len(game.choices)])]]


def speak(game: Game, model: Model, rng: random.Random) -> Answer:
    """One answer of a model."""
    manner = rng.choices(list(model.manners), list(model.manners.values()))[0]
    if manner == "refuse":
        return Answer(model.name, rng.choice(REFUSALS), WORTH[manner])
    right = rng.random() < model.right
    said = ", ".join(game.answer if right else mistake(game, rng))
    text = rng.choice(PLAIN).format(a=said)
    if manner == "chatty":
        text = f"{rng.choice(CHATTY_STARTS)} {text} {rng.choice(CHATTY_ENDS)}"
    elif manner == "twofold":
        text = f"{text} {rng.choice(PLAIN).format(a=said)}"
    return Answer(model.name, text, max(1.0, WORTH[manner] - (0.0 if right else WRONG)))


def four_answers(game: Game, rng: random.Random) -> list[Answer]:
    """An answer of each model, no two of them the same."""
    while True:
        answers = [speak(game, model, rng) for model in MODELS]
        if len({answer.text for answer in answers}) == len(MODELS):
            return answers


# ---- ratings, in UltraFeedback's format ------------------------------------------------------------------------------

Row = dict[str, Any]
PRINCIPLES = {
    "helpfulness": "As an AI assistant, give the user an answer that is of use to them.",
    "honesty": "Be candid about what you know and what you do not know.",
    "truthfulness": "Answer with facts, and do not make things up.",
    "verbalized_calibration": "Say how sure you are of your answer.",
}
CUSTOM_SYSTEM_PROMPTS = (
    "User: answer the children's questions as a kind librarian would.",
    "You are a quiz master. Give the solution first.",
    "You talk like a pirate, but you never lie.",
)
VERDICTS = ("Poor.", "Weak in several respects.", "Some flaws.", "Good, only small flaws.", "Just what was asked for.")
ASPECTS = ("honesty", "instruction_following", "truthfulness", "helpfulness")


def stars(score: float) -> int:
    """A score of 1 to 10 as a rating of 1 to 5."""
    return min(5, max(1, round(score / 2)))


def annotate(score: float, rng: random.Random) -> dict[str, dict[str, Any]]:
    """The four aspects, each a Rating string and a Rationale, around a score of 1 to 10."""
    ratings = {aspect: stars(score + rng.gauss(0, MOOD)) for aspect in ASPECTS}
    notes: dict[str, dict[str, Any]] = {
        aspect: {"Rating": str(rating), "Rationale": VERDICTS[rating - 1]} for aspect, rating in ratings.items()
    }
    for aspect in ("truthfulness", "helpfulness"):
        notes[aspect]["Type"] = "None" if ratings[aspect] == 5 else [str(rng.randint(1, 3))]
        notes[aspect]["Rationale For Rating"] = notes[aspect]["Rationale"]
    return notes


def rate(answer: Answer, rng: random.Random) -> Row:
    """A completion: the answer with a moody rater's scores, in half points from 1 to 10."""
    score = min(10.0, max(1.0, round(2 * (answer.worth + rng.gauss(0, MOOD))) / 2))
    principle = rng.choice(list(PRINCIPLES))
    custom = rng.random() < 0.03
    notes = annotate(score, rng)
    return {
        "model": answer.model,
        "principle": principle,
        "custom_system_prompt": rng.choice(CUSTOM_SYSTEM_PROMPTS) if custom else PRINCIPLES[principle],
        "response": answer.text,
        "critique": VERDICTS[stars(score) - 1],
        "overall_score": score,
        "fine-grained_score": mean_rating(notes),
        "annotations": notes,
    }


def mean_rating(notes: dict[str, dict[str, Any]]) -> float:
    """UltraFeedback's fine-grained score: the mean of the ratings that are numbers, 0 where there is none."""
    ratings = [int(note["Rating"]) for note in notes.values() if note["Rating"].isdigit()]
    return sum(ratings) / len(ratings) if ratings else 0.0


def rate_all(answers: list[Answer], rng: random.Random) -> list[Row]:
    """Completions of one instruction, with one best and one worst score that no other completion shares."""
    while True:
        completions = [rate(answer, rng) for answer in answers]
        scores = sorted(completion["overall_score"] for completion in completions)
        if scores[0] < scores[1] and scores[-2] < scores[-1] < 10:  # 10 is left to the planted rows
            return completions


def make_row(source: str, instruction: str, answer: str, completions: list[Row]) -> Row:
    """A raw row in UltraFeedback's key order."""
    return {
        "source": source,
        "instruction": instruction,
        "models": [completion["model"] for completion in completions],
        "completions": completions,
        "correct_answers": [answer],
        "incorrect_answers": ["None"],
    }


@dataclass
class Maker:
    """Draws rows, all from one seeded generator."""

    rng: random.Random
    novelty: Novelty = field(default_factory=Novelty)
    benchmark: list[str] = field(default_factory=list)

    def row(self) -> Row:
        """A clean row, its instruction unlike every earlier one."""
        while True:
            game = draw_game(self.rng)
            instruction = dress(game.question, self.rng)
            if self.novelty.accepts(instruction):
                completions = rate_all(four_answers(game, self.rng), self.rng)
                return make_row(SOURCES[game.kind], instruction, ", ".join(game.answer), completions)

    def again(self, row: Row, instruction: str) -> Row:
        """The same question in other words, answered alike and rated anew."""
        answers = [Answer(c["model"], c["response"], c["overall_score"]) for c in row["completions"]]
        return make_row(row["source"], instruction, row["correct_answers"][0], rate_all(answers, self.rng))


# ---- dirt: each function spoils a clean row and returns the line (or lines) to write ---------------------------------


def encode(row: Any) -> bytes:
    """A line without its end."""
    return json.dumps(row, ensure_ascii=False).encode()


def exact_duplicate(row: Row, maker: Maker) -> list[bytes]:
    """A row, and its instruction once more."""
    return [encode(row), encode(maker.again(row, row["instruction"]))]


def near_duplicate(row: Row, maker: Maker) -> list[bytes]:
    """A row, and its instruction once more with a word put in front or behind (Jaccard of 5-grams at least 0.75)."""
    text = row["instruction"]
    variants = [f"Hello! {text}", f"{text} Cheers!", f"{text} Okay?", f"Hi. {text} Bye."]
    near = [variant for variant in variants if jaccard(shingles(text), shingles(variant)) >= 0.75]
    return [encode(row), encode(maker.again(row, maker.rng.choice(near)))]


def tied(row: Row, maker: Maker) -> list[bytes]:
    """All overall scores are the same, so are the ratings."""
    first = row["completions"][0]
    for completion in row["completions"]:
        for key in ("overall_score", "fine-grained_score", "annotations", "critique"):
            completion[key] = first[key]
    return [encode(row)]


def same_answer(row: Row, maker: Maker) -> list[bytes]:
    """All four models say the same; the raters disagree nevertheless."""
    for completion in row["completions"]:
        completion["response"] = row["completions"][0]["response"]
    return [encode(row)]


def empty_response(row: Row, maker: Maker) -> list[bytes]:
    """One response is empty, blank or null."""
    maker.rng.choice(row["completions"])["response"] = maker.rng.choice(["", "  \n", None])
    return [encode(row)]


def missing_score(row: Row, maker: Maker) -> list[bytes]:
    """One completion was never rated: no scores, no ratings."""
    completion = maker.rng.choice(row["completions"])
    completion["overall_score"] = completion["fine-grained_score"] = None
    for note in completion["annotations"].values():
        note["Rating"] = "N/A"
    return [encode(row)]


def not_applicable(row: Row, maker: Maker) -> list[bytes]:
    """The rating of honesty is "N/A" in one completion; its overall score stands."""
    completion = maker.rng.choice(row["completions"])
    completion["annotations"]["honesty"]["Rating"] = "N/A"
    completion["fine-grained_score"] = mean_rating(completion["annotations"])
    return [encode(row)]


def ten_meant_one(row: Row, maker: Maker) -> list[bytes]:
    """UltraFeedback's known bug: the worst answer, rated 1 or 2 in every aspect, has an overall score of 10."""
    worst = min(row["completions"], key=lambda completion: completion["overall_score"])
    worst["annotations"] = annotate(1.0, random.Random(0)) | {"honesty": {"Rating": "2", "Rationale": VERDICTS[1]}}
    for note in worst["annotations"].values():
        note["Rating"] = str(min(2, int(note["Rating"])))
    worst["fine-grained_score"], worst["overall_score"] = mean_rating(worst["annotations"]), 10.0
    return [encode(row)]


def true_ten(row: Row, maker: Maker) -> list[bytes]:
    """A score of 10 that means 10: the best answer, rated 5 in every aspect."""
    best = max(row["completions"], key=lambda completion: completion["overall_score"])
    for note in best["annotations"].values():
        note.update(Rating="5", Rationale=VERDICTS[4])
    best["fine-grained_score"], best["overall_score"] = 5.0, 10.0
    return [encode(row)]


def three_completions(row: Row, maker: Maker) -> list[bytes]:
    """One of the four completions is lost."""
    lost = row["completions"].pop(maker.rng.randrange(4))
    row["models"].remove(lost["model"])
    return [encode(row)]


def lone_completion(row: Row, maker: Maker) -> list[bytes]:
    """Only one completion: nothing to compare."""
    del row["completions"][1:], row["models"][1:]
    return [encode(row)]


def no_completions(row: Row, maker: Maker) -> list[bytes]:
    """Not one completion."""
    return [encode(row | {"completions": [], "models": []})]


def truncated_json(row: Row, maker: Maker) -> list[bytes]:
    """The line breaks off."""
    line = encode(row)
    return [line[: maker.rng.randrange(len(line) // 4, len(line) - 1)]]


def not_utf8(row: Row, maker: Maker) -> list[bytes]:
    """A response with a letter in Latin-1."""
    response = row["completions"][0]["response"]
    row["completions"][0]["response"] = "Voilà! " + response
    return [encode(row).replace("à".encode(), "à".encode("latin-1"))]


def nan_score(row: Row, maker: Maker) -> list[bytes]:
    """An overall score of NaN, which Python writes and JSON does not know."""
    maker.rng.choice(row["completions"])["overall_score"] = float("nan")
    return [encode(row)]


def wrong_type(row: Row, maker: Maker) -> list[bytes]:
    """JSON that is not a rating row: a list, a number as instruction, null as completions, or a missing key."""
    lacking = {key: value for key, value in row.items() if key != "instruction"}
    spoilt: list[Any] = [[row["instruction"]], row | {"instruction": 7}, row | {"completions": None}, lacking]
    return [encode(maker.rng.choice(spoilt))]


def leaked(row: Row, maker: Maker) -> list[bytes]:
    """The instruction stands in the benchmark, but for some small talk around it."""
    while len(row["instruction"].split()) < LEAK_WORDS:
        row = maker.row()
    maker.benchmark.append(row["instruction"])
    return [encode(row | {"instruction": f"Well. {row['instruction']} Many thanks indeed."})]


def blank_line(row: Row, maker: Maker) -> list[bytes]:
    """A row, and an empty line."""
    return [encode(row), b""]


# question, reply, words
FOREIGN = (
    (
        "Welches der Wörter {words} hat die meisten Buchstaben? Bitte antworte kurz.",
        "Das längste Wort ist {a}.",
        "Apfel Brücke Fenster Kartoffel Löwe Schmetterling Tür Wolke Zwiebel Eichhörnchen",
    ),
    (
        "Lequel des mots suivants est le plus long : {words} ? Réponds simplement, s'il te plaît.",
        "Le mot le plus long est {a}.",
        "pomme fenêtre chat parapluie rivière oiseau château clé montagne bibliothèque",
    ),
    (
        "¿Cuál de las palabras {words} tiene más letras? Contesta con una sola frase, por favor.",
        "La palabra más larga es {a}.",
        "manzana ventana gato paraguas río pájaro castillo llave montaña biblioteca",
    ),
    (
        "Quale tra le parole {words} è la più lunga? Rispondi con una frase breve, per favore.",
        "La parola più lunga è {a}.",
        "mela finestra gatto ombrello fiume uccello castello chiave montagna biblioteca",
    ),
    (
        "Welk van de woorden {words} heeft de meeste letters? Geef alsjeblieft een kort antwoord.",
        "Het langste woord is {a}.",
        "appel venster kat paraplu rivier vogel kasteel sleutel berg bibliotheek",
    ),
    (
        "Какое из слов {words} самое длинное? Пожалуйста, ответь одним предложением.",
        "Самое длинное слово: {a}.",
        "яблоко окно кошка зонтик река птица замок ключ гора библиотека",
    ),
)


def foreign(row: Row, maker: Maker) -> list[bytes]:
    """A row in another language."""
    question, reply, words = maker.rng.choice(FOREIGN)
    while True:
        drawn = maker.rng.sample(words.split(), 4)
        instruction = question.format(words=", ".join(drawn))
        if maker.novelty.accepts(instruction):
            break
    best = max(drawn, key=len)
    answers = [
        Answer(model.name, reply.format(a=word), 8.5 if word == best else 4.5)
        for model, word in zip(MODELS, drawn, strict=True)
    ]
    return [encode(make_row("word_games", instruction, best, rate_all(answers, maker.rng)))]


DIRT: dict[Callable[[Row, Maker], list[bytes]], int] = {
    exact_duplicate: 60,
    near_duplicate: 80,
    foreign: 72,
    tied: 40,
    same_answer: 30,
    empty_response: 24,
    missing_score: 30,
    not_applicable: 60,
    ten_meant_one: 40,
    true_ten: 40,
    three_completions: 3,
    lone_completion: 8,
    no_completions: 4,
    truncated_json: 12,
    not_utf8: 6,
    nan_score: 6,
    wrong_type: 8,
    blank_line: 5,
    leaked: 16,
}

# ---- the file --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demo:
    """The raw lines, the prompts of the benchmark, and the 1-based numbers of the lines that each kind of dirt went to.

    Of a row and its duplicate, or a row and a blank line, the later line is the dirt.
    """

    lines: list[bytes]
    benchmark: list[str]
    planted: dict[str, list[int]]


def make(seed: int = SEED, clean_rows: int = CLEAN_ROWS) -> Demo:
    """Everything that main writes."""
    maker = Maker(random.Random(seed))
    groups = [("", [encode(maker.row())]) for _ in range(clean_rows)]
    groups += [(spoil.__name__, spoil(maker.row(), maker)) for spoil, count in DIRT.items() for _ in range(count)]
    maker.rng.shuffle(groups)
    lines: list[bytes] = []
    planted: dict[str, list[int]] = {spoil.__name__: [] for spoil in DIRT}
    for kind, group in groups:
        lines += group
        if kind:
            planted[kind].append(len(lines))
    unleaked = [maker.row()["instruction"] for _ in range(BENCHMARK_PROMPTS - DIRT[leaked])]
    return Demo(lines, sorted(maker.benchmark + unleaked), planted)


def main() -> None:
    """Write the three files."""
    demo = make()
    raw = b"".join(line + b"\n" for line in demo.lines)
    (HERE / "demo.jsonl.gz").write_bytes(gzip.compress(raw, compresslevel=9, mtime=0))
    (HERE / "demo.benchmark.jsonl").write_bytes(b"".join(encode({"prompt": p}) + b"\n" for p in demo.benchmark))
    truth = {"lines": len(demo.lines), "planted": demo.planted}
    (HERE / "demo.truth.json").write_text(json.dumps(truth) + "\n")


if __name__ == "__main__":
    main()
