"""Chat templates: conversations -> text and tokens, and where the prompt ends in them.

The boundary between prompt and completion is TRL's: the prompt (with the generation prompt, which opens the
assistant's turn) and the whole conversation are rendered and tokenised apart, and the completion starts where the
common token prefix ends. So nothing is assumed of a template but that it can render both.

Text is tokenised with `add_special_tokens=False`: a template writes BOS and EOS itself where its model wants them, so
neither ever stands there twice. A template that asks for the date (`strftime_now`) gets `DATE`, whatever day it is.

What templates do to messages, and what becomes of it:

    a header that differs from the generation prompt (an empty thought)   belongs to the completion; counted
    thinking removed from earlier assistant turns                         as in inference: each turn is rendered as
                                                                          the last one of its own conversation
    the system message refused (Gemma)                                    put before the first user message, as later
                                                                          templates of the family do; counted
    the system message left out, aloud nowhere                            found with a probe; counted
    the answer left out or rewritten                                      the example is left out; counted
    the prompt's messages rewritten once an answer follows                the example is left out; counted

Cost: about 100 microseconds a conversation for a template, and a few megabytes of text a second and core for a
tokenizer; `tests/benchmarks/tokenise.py` measures both. Equal conversations of a batch are rendered once, equal texts
tokenised once.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from transformers.utils import chat_template_utils

from prefkit.errors import TrainError, one_line

DATE = datetime.date(2024, 7, 26)  # the one that Llama's templates fall back to
CLOCK = threading.Lock()  # one thread at a time sets it
PROBE = "prefkit probes the template"

Message = dict[str, str]
Conversation = list[Message]


class Sides(NamedTuple):
    """A prompt with some completions: tokens of each whole conversation; from `start` on they are completion.

    `moved`: the generation prompt is not how every completion begins, so `start` lies before its end.
    """

    start: int  # at least 1, as a first token has no prediction
    tokens: list[np.ndarray]
    moved: bool


def encode(tokenizer: Any, conversations: Sequence[Conversation], *, open_turn: bool = False) -> list[np.ndarray]:
    """Token ids of each conversation as the template renders it; `open_turn` appends the assistant's header."""
    return tokens_of(tokenizer, render(tokenizer, conversations, open_turn=open_turn))


def encode_examples(tokenizer: Any, examples: Sequence[tuple[Conversation, list[Conversation]]]) -> list[Sides | str]:
    """Each prompt with its completions in tokens, or the reason (a name of LOSSES) why the template spoils it."""
    prompts = render(tokenizer, [prompt for prompt, _ in examples], open_turn=True)
    whole = render(tokenizer, [prompt + side for prompt, sides in examples for side in sides], open_turn=False)
    tokens = iter(tokens_of(tokenizer, prompts + whole))
    prompt_tokens = [next(tokens) for _ in prompts]
    texts = iter(whole)
    result: list[Sides | str] = []
    for (prompt, sides), text, opened in zip(examples, prompts, prompt_tokens, strict=True):
        full_texts, full = [next(texts) for _ in sides], [next(tokens) for _ in sides]
        start = min(common_prefix(opened, side) for side in full)
        spoilt = [spoils(tokenizer, prompt, text, *side) for side in zip(sides, full_texts, strict=True)]
        result.append(next(filter(None, spoilt), None) or Sides(max(start, 1), full, start < len(opened)))
    return result


def spoils(tokenizer: Any, prompt: Conversation, opened: str, side: Conversation, whole: str) -> str | None:
    """Why a rendered conversation cannot be learned from: `prompt_rewritten`, `answer_rewritten`, or None.

    `opened` is the rendered prompt with the generation prompt. The prompt's messages must come out the same when an
    answer follows, and the text of the answer must stand behind them.
    """
    end = len(opened)
    if not whole.startswith(opened):  # the generation prompt may differ from the header of an answer; messages may not
        (closed,) = render(tokenizer, [prompt], open_turn=False)
        said = (prompt[-1]["content"] or "").strip() if prompt else ""
        end = closed.rfind(said) + len(said) if said in closed else len(closed)
        if not whole.startswith(closed[:end]):
            return "prompt_rewritten"
    answer = (side[-1]["content"] or "").strip()
    at = whole.rfind(answer)
    if at >= 0 and at + len(answer) >= end:
        return None
    return None if "".join(answer.split()) in "".join(whole[end:].split()) else "answer_rewritten"


def tokens_of(tokenizer: Any, texts: list[str]) -> list[np.ndarray]:
    """Token ids of each text, without any that the tokenizer would add."""
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return []
    ids = tokenizer(distinct, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    known = {text: np.array(tokens, dtype=np.int32) for text, tokens in zip(distinct, ids, strict=True)}
    return [known[text] for text in texts]


def render(tokenizer: Any, conversations: Sequence[Conversation], *, open_turn: bool) -> list[str]:
    """The text of each conversation; TrainError with the template's own complaint and the conversation it is about."""
    if any(has_system(conversation) for conversation in conversations) and system_role(tokenizer) == "refused":
        conversations = [into_user(conversation) for conversation in conversations]
    known: dict[tuple[tuple[tuple[str, str], ...], ...], str] = {}
    texts = []
    for conversation in conversations:
        key = tuple(tuple(message.items()) for message in conversation)
        if key not in known:
            known[key] = _apply(tokenizer, conversation, open_turn=open_turn)
        texts.append(known[key])
    return texts


def _apply(tokenizer: Any, conversation: Conversation, *, open_turn: bool) -> str:
    apply: Callable[..., str] = tokenizer.apply_chat_template
    try:
        with frozen_date():
            return apply(conversation, tokenize=False, add_generation_prompt=open_turn)
    except Exception as error:  # a template can fail in any way that Python can
        shown = json.dumps(conversation, ensure_ascii=False)[:160]
        raise TrainError(
            f"the chat template refuses a conversation ({one_line(error)}): {shown} … "
            "Filter such rows out, or give another chat template."
        ) from error


def has_system(conversation: Conversation) -> bool:
    """Whether a conversation begins with a system message."""
    return bool(conversation) and conversation[0]["role"] == "system"


def system_role(tokenizer: Any) -> Literal["kept", "refused", "left out"]:
    """What the template does with a system message."""
    user = {"role": "user", "content": "Hi"}
    try:
        text = _apply(tokenizer, [{"role": "system", "content": PROBE}, user], open_turn=True)
    except TrainError:
        return "refused"
    return "kept" if PROBE in text else "left out"


def into_user(conversation: Conversation) -> Conversation:
    """The system message put before the first user message's text, where one follows it."""
    if not has_system(conversation) or len(conversation) < 2 or conversation[1]["role"] != "user":
        return conversation
    system, user, *rest = conversation
    return [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest]


@contextlib.contextmanager
def frozen_date() -> Iterator[None]:
    """Within, the clock that transformers' `strftime_now` reads stands at `DATE`; templates take none of ours."""
    with CLOCK:
        clock = chat_template_utils.datetime
        chat_template_utils.datetime = _Frozen
        try:
            yield
        finally:
            chat_template_utils.datetime = clock


class _Frozen(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> _Frozen:
        return cls(DATE.year, DATE.month, DATE.day, tzinfo=tz)


def common_prefix(left: np.ndarray, right: np.ndarray) -> int:
    """Number of leading tokens that both have in common."""
    size = min(len(left), len(right))
    differing = np.flatnonzero(left[:size] != right[:size])
    return int(differing[0]) if len(differing) else size
