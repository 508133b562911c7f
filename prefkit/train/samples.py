"""What the model says now: answers to a few fixed prompts every so many steps, before and after side by side.

    [[train]]
    samples = { every = 200, prompts = 4, max_new_tokens = 128 }

Prompts are those of the test split with the smallest `prompt_id`, which is a hash, or texts that the option gives.
RUN/samples.jsonl has a line an answer; RUN/samples.md shows each phase's first answers beside its newest.

Answers are greedy by default, or drawn with a seed of their own, and training's random state is put back afterwards:
a run with samples trains bitwise like one without. A resumed run drops what was said after its checkpoint.

Cost: a forward pass for each token of the answers, with attention over padded rows, as transformers generates.
"""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet as pq
from annotated_types import Ge, MinLen

from prefkit.errors import TrainError
from prefkit.manifest import Manifest, write_text_atomically
from prefkit.train import parallel, shards
from prefkit.train.generate import generate
from prefkit.train.policy import Policy
from prefkit.train.template import Message

FILE_NAME = "samples.jsonl"
PAGE = "samples.md"


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """The option `samples`."""

    every: Annotated[int, Ge(1)] = 100  # steps; before the first and after the last in any case
    prompts: Annotated[int, Ge(1)] | Annotated[list[str], MinLen(1)] = 4  # of the test split, or these texts
    max_new_tokens: Annotated[int, Ge(1)] = 128
    temperature: Annotated[float, Ge(0)] = 0.0  # 0: greedy
    seed: Annotated[int, Ge(0)] = 0


@dataclass(frozen=True)
class Samples:
    """The samples of one phase."""

    out: Path
    phase: str
    options: SampleOptions
    prompts: list[list[Message]]
    tokenizer: Any

    def take(self, policy: Policy, step: int) -> None:
        """Let the model answer, on all ranks alike, and write the answers down as those of this step."""
        how = {key: getattr(self.options, key) for key in ("max_new_tokens", "temperature", "seed")}
        with policy.autocast():
            answers = generate(policy.model, self.tokenizer, self.prompts, **how)
        new = [
            {"phase": self.phase, "step": step, "prompt": prompt, "answer": text}
            for prompt, text in zip(self.prompts, answers, strict=True)
        ]
        self.cut(step - 1, then=new)

    def cut(self, step: int, then: list[dict[str, Any]] | None = None) -> None:
        """Drop what this phase said after `step`; add what it says then. One rank writes for all."""
        if not parallel.is_first():
            return
        before = read(self.out)
        lines = [line for line in before if line["phase"] != self.phase or line["step"] <= step] + (then or [])
        if lines == before:
            return
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_text_atomically(self.out / FILE_NAME, text)
        write_text_atomically(self.out / PAGE, page(lines))


def read(out: Path) -> list[dict[str, Any]]:
    """The lines of RUN/samples.jsonl, none if there is no such file."""
    path = out / FILE_NAME
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]  # answers may hold other line ends


def choose(options: SampleOptions, data: Path, manifest: Manifest) -> list[list[Message]]:
    """The prompts: the given texts, or the first of the test split by `prompt_id`; TrainError if that is empty."""
    if isinstance(options.prompts, list):
        return [[{"role": "user", "content": text}] for text in options.prompts]
    first: dict[str, list[Message]] = {}
    for shard in manifest.of_split("test"):
        table = pq.read_table(shards.local(data, shard), columns=["prompt_id", "prompt"])
        first |= dict(zip(table["prompt_id"].to_pylist(), table["prompt"].to_pylist(), strict=True))
        first = {key: first[key] for key in sorted(first)[: options.prompts]}
    if not first:
        raise TrainError('samples: the data set has no test split to take prompts from. Give some: prompts = ["…"].')
    return list(first.values())


def page(lines: list[dict[str, Any]]) -> str:
    """The samples as Markdown: for each phase and prompt, what was said first and what was said last."""
    parts = ["# Samples\n"]
    for phase in dict.fromkeys(line["phase"] for line in lines):
        mine = [line for line in lines if line["phase"] == phase]
        first, last = mine[0]["step"], mine[-1]["step"]
        parts.append(f"## {phase}\n")
        for number, line in enumerate([line for line in mine if line["step"] == first], start=1):
            after = next(x["answer"] for x in mine if x["step"] == last and x["prompt"] == line["prompt"])
            said = "\n\n".join(f"{message['role']}: {message['content']}" for message in line["prompt"])
            parts.append(
                f"### {number}\n\n{_cell(said)}\n\n<table>\n<tr><th>step {first}</th><th>step {last}</th></tr>\n"
                f"<tr><td>{_cell(line['answer'])}</td><td>{_cell(after)}</td></tr>\n</table>\n"
            )
    return "\n".join(parts)


def _cell(text: str) -> str:
    """Text that shows as it is within a page: escaped, on one line, so that no blank line ends the table."""
    return "<pre>" + html.escape(text).replace("\n", "<br>") + "</pre>"
