"""What a source yields for one raw row, before it becomes a table: prompts with their rated completions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from msgspec import Struct

Aspects = Sequence[tuple[str, float]]


class Message(NamedTuple):
    """One turn. `role` is system, user, assistant or tool."""

    role: str
    content: str


class Completion(Struct, frozen=True):
    """One answer. `index` is its position in the raw row; `reject` is a reason not to use it, with `detail`.

    `aspects` may be a function that gives them, where they are work that few pipelines need. `row` is the raw row that
    it stands in, where a source reads whole files; else it is the row being read.
    """

    index: int
    response: str | None
    score: float | None = None
    model: str | None = None
    aspects: Aspects | Callable[[], Aspects] = ()
    reject: str | None = None
    detail: str | None = None
    row: int | None = None


class Rated(Struct, frozen=True):
    """A prompt and completions of it whose scores compare with one another.

    `absolute` says that scores mean the same in every row of the input (ratings on one scale), so that completions of
    equal prompts in several rows may be compared too; comparisons and ranks say nothing beyond their row.
    """

    prompt: Sequence[Message]
    completions: Sequence[Completion]
    source: str
    absolute: bool = False


class Numbered(NamedTuple):
    """A raw row with its number, from 1: what a source gets that reads whole files."""

    number: int
    value: dict[str, Any]


class BadRow(Exception):
    """A raw row that is not what its format promises; `reason` is counted, `detail` says what was seen.

    Raised by a source that reads single rows; one that reads whole files yields it instead, with the `row`.
    """

    def __init__(self, reason: str, detail: str, row: int | None = None):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.row = row


KINDS = {
    "NoneType": "null",
    "dict": "an object",
    "list": "a list",
    "bool": "true or false",
    "int": "a number",
    "float": "a number",
    "str": "text",
    "bytes": "binary",
}
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
}


def messages(value: Any, *, field: str, text_role: str) -> list[Message]:
    """A field that holds a string (one turn of `text_role`), one message, or a list of messages.

    A message is `{role, content}` or `{from, value}`; content is text or a list of typed text parts. Raises BadRow.
    """
    if isinstance(value, str):
        return [Message(text_role, value)]
    if isinstance(value, Mapping):
        return [_message(value, field)]
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_message(item, field) for item in value]
    raise BadRow("wrong_type", f'"{field}" is {_kind(value)}, not text or messages')


def _message(value: Any, field: str) -> Message:
    if not isinstance(value, Mapping):
        raise BadRow("wrong_type", f'"{field}" holds {_kind(value)} where a message is expected')
    role = value.get("role", value.get("from"))
    if not isinstance(role, str) or role not in ROLES:
        raise BadRow("unknown_role", f'"{field}" has a message of role {role!r}')
    if value.get("tool_calls") or value.get("function_call"):
        raise BadRow("not_text", f'"{field}" has a message that calls tools, which is more than text')
    content = value.get("content", value.get("value"))
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(_part(part, field) for part in content)
    if not isinstance(content, str):
        raise BadRow("wrong_type", f'"{field}" has a message whose content is {_kind(content)}, not text')
    return Message(ROLES[role], content)


def _part(part: Any, field: str) -> str:
    text = (
        part.get("text", part.get("value"))
        if isinstance(part, Mapping) and part.get("type", "text") == "text"
        else None
    )
    if not isinstance(text, str):
        raise BadRow("not_text", f'"{field}" has a content part that is not text')
    return text


def _kind(value: Any) -> str:
    name = type(value).__name__
    return KINDS.get(name, f"a {name}")


TURN = re.compile(r"\n\n(Human|Assistant):")


def transcript(text: str, *, field: str) -> list[Message]:
    """The turns of a transcript in which "\\n\\nHuman:" and "\\n\\nAssistant:" begin them; the last is the assistant's.

    White space around a turn is not part of it, so the last one is empty where it is still to be written. Raises
    BadRow.
    """
    before, *parts = TURN.split(text)
    turns = [Message(ROLES[role.lower()], turn.strip()) for role, turn in zip(parts[::2], parts[1::2], strict=True)]
    if before.strip() or len(turns) < 2 or turns[-1].role != "assistant":
        raise BadRow("not_a_transcript", f'"{field}" does not begin with a Human turn and end with an Assistant turn')
    for earlier, later in pairwise(turns):
        if earlier.role == later.role:
            raise BadRow("roles_do_not_alternate", f'"{field}" has two {later.role} turns in a row')
    return turns


def with_system(system: str | None, prompt: Sequence[Message]) -> list[Message]:
    """A prompt behind its system message, where there is one and the prompt has none of its own."""
    if system and (not prompt or prompt[0].role != "system"):
        return [Message("system", system), *prompt]
    return list(prompt)


def without_prompt(prompt: Sequence[Message], turns: list[Message]) -> list[Message]:
    """`turns` without the prompt, where they repeat it."""
    return turns[len(prompt) :] if shared_turns(prompt, turns) == len(prompt) else turns


def shared_turns(first: Sequence[Message], second: Sequence[Message]) -> int:
    """Length of the longest common prefix of two conversations, in turns."""
    shared = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        shared += 1
    return shared


def final_answer(turns: Sequence[Message], *, field: str) -> str:
    """The text of what must be exactly one assistant turn; BadRow otherwise."""
    if len(turns) != 1 or turns[0].role != "assistant":
        roles = ", ".join(turn.role for turn in turns) or "nothing"
        raise BadRow("not_one_answer", f'"{field}" goes on after the prompt with {roles}, not with one assistant turn')
    return turns[0].content
