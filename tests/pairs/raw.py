"""Raw ratings for tests: UltraFeedback-shaped rows with all the dirt that a real file has, from a seed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

WORDS = (
    "river mountain garden winter summer market bridge teacher doctor window kitchen letter number animal flower "
    "science history language music picture travel morning evening village ocean forest island station engine paper "
    "simple quick bright narrow honest quiet modern ancient gentle clever explain describe compare write list name"
).split()


def sentence(rng: random.Random, words: int) -> str:
    return "Please " + " ".join(rng.choice(WORDS) for _ in range(words)) + " for me today."


def completion(rng: random.Random, index: int, **changes: Any) -> dict[str, Any]:
    ratings = {name: str(rng.randint(1, 5)) for name in ("helpfulness", "honesty", "truthfulness")}
    base = {
        "model": f"model-{index}",
        "principle": "helpfulness",
        "custom_system_prompt": "Be kind." if index % 2 else "Be exact.",
        "response": sentence(rng, rng.randint(3, 30)),
        "critique": "ok",
        "overall_score": float(rng.randint(2, 18)) / 2,
        "fine-grained_score": 3.5,
        "annotations": {name: {"Rating": rating, "Rationale": "because"} for name, rating in ratings.items()},
    }
    return base | changes


def row(rng: random.Random, instruction: str | None = None, **changes: Any) -> dict[str, Any]:
    base = {
        "source": rng.choice(["sharegpt", "evol_instruct", "truthful_qa"]),
        "instruction": instruction or sentence(rng, rng.randint(5, 40)),
        "models": [],
        "completions": [completion(rng, index) for index in range(4)],
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    }
    return base | changes


def nearly(rng: random.Random, text: str) -> str:
    """The text with one word appended: a near-duplicate where the text is long enough."""
    return f"{text} {rng.choice(WORDS)}"


def dirty_lines(count: int, seed: int = 0) -> list[bytes]:
    """`count` lines, about a third of them with something wrong."""
    rng = random.Random(seed)
    lines: list[bytes] = []
    instructions: list[str] = []
    while len(lines) < count:
        kind = rng.random()
        if kind < 0.06 and instructions:
            text: dict[str, Any] = row(rng, rng.choice(instructions).upper())
        elif kind < 0.12 and instructions:
            text = row(rng, nearly(rng, rng.choice(instructions)))
        elif kind < 0.15:
            lines.append(json.dumps(row(rng)).encode()[: rng.randint(5, 200)])
            continue
        elif kind < 0.17:
            lines.append(b'{"instruction": "\xff\xfe", "completions": []}')
            continue
        elif kind < 0.19:
            lines.append(
                json.dumps(row(rng, completions=[completion(rng, 0, overall_score=float("nan"))] * 4)).encode()
            )
            continue
        elif kind < 0.21:
            lines.append(json.dumps(row(rng, instruction=17)).encode())
            continue
        elif kind < 0.24:
            same = completion(rng, 0, overall_score=5.0)
            text = row(rng, completions=[same, same, same])
        elif kind < 0.27:
            same = completion(rng, 0)
            text = row(rng, completions=[same | {"overall_score": 7.0}, same | {"overall_score": 4.0}])
        elif kind < 0.30:
            text = row(rng, completions=[completion(rng, i, response=r) for i, r in enumerate(["", None, " \n"])])
        elif kind < 0.32:
            text = row(rng, completions=[])
        elif kind < 0.34:
            ten = {"overall_score": 10.0}
            mean = {name: {"Rating": str(rng.randint(1, 5))} for name in ("honesty", "helpfulness")}
            text = row(rng, completions=[completion(rng, i, **ten, annotations=mean) for i in range(2)])
        elif kind < 0.35:
            lines.append(b"")
            continue
        else:
            text = row(rng)
            instructions.append(str(text["instruction"]))
        lines.append(json.dumps(text, ensure_ascii=False).encode())
    return lines


def write_lines(path: Path, lines: list[bytes]) -> Path:
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path
