"""What `max_length` does to an example, by policy; every effect is counted under a name of `store.LOSSES`.

    truncate_completion     cut each completion's end; it then ends where it was cut, without an end-of-turn token. An
                            example whose prompt alone reaches max_length is left out
    truncate_prompt_start   keep completions whole and cut the prompt: its earliest turns go until the rest fits, which
                            then begins with a user message; if that is the last one and still too long, the beginning
                            of its text goes. The system message, and so what the template puts first (BOS), always
                            stays. An example without room for any of its prompt's last message is left out
    drop                    leave the example out
    error                   stop

A cut prompt is rendered anew, so its headers are those of a whole conversation. Pairs of one prompt that are all too
long get the same cut, so that they still share it.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from prefkit.errors import TrainError
from prefkit.train.template import Conversation, Sides, encode_examples, has_system

Policy = Literal["truncate_completion", "truncate_prompt_start", "drop", "error"]


class Limit(NamedTuple):
    """`max_length` tokens of prompt and completion together (None: any number), and what is done above it."""

    max_length: int | None
    policy: Policy


class Given(NamedTuple):
    """One example as the shard has it: where it stands, for messages, its prompt, and its completions."""

    where: str
    prompt: Conversation
    completions: list[Conversation]


def fit(
    group: Sequence[Given], encoded: Sequence[Sides | str], tokenizer: Any, limit: Limit, counts: Counter[str]
) -> list[Sides | None]:
    """The examples of one prompt within the limit; None, and counted, for those that cannot be used."""
    fitted: list[Sides | None] = []
    too_long: list[int] = []
    for at, (given, sides) in enumerate(zip(group, encoded, strict=True)):
        if not isinstance(sides, str) and not _whole(sides):
            sides = "empty_completion"
        if isinstance(sides, str):
            counts[sides] += 1
            fitted.append(None)
            continue
        counts["boundary_moved"] += sides.moved
        if _fits(sides, limit):
            fitted.append(sides)
        elif limit.policy == "truncate_prompt_start":
            too_long.append(at)
            fitted.append(None)
        else:
            fitted.append(_shortened(sides, limit, counts, given.where))
    if too_long:
        for at, cut in zip(too_long, cut_prompts([group[i] for i in too_long], tokenizer, limit), strict=True):
            counts["prompt_cut" if cut else "completion_too_long"] += 1
            fitted[at] = cut
    return fitted


def _whole(sides: Sides) -> bool:
    return all(len(tokens) > sides.start for tokens in sides.tokens)


def _fits(sides: Sides, limit: Limit) -> bool:
    return limit.max_length is None or all(len(tokens) <= limit.max_length for tokens in sides.tokens)


def _shortened(sides: Sides, limit: Limit, counts: Counter[str], where: str) -> Sides | None:
    """An example that is too long, by a policy that does not touch the prompt."""
    assert limit.max_length is not None, "without a limit everything fits"
    if limit.policy == "error":
        raise TrainError(
            f"{where}: {max(map(len, sides.tokens))} tokens, more than max_length = {limit.max_length}. Raise it, or "
            'say max_length_policy = "truncate_completion", "truncate_prompt_start" or "drop".'
        )
    if limit.policy == "drop":
        counts["too_long"] += 1
        return None
    if sides.start >= limit.max_length:
        counts["prompt_too_long"] += 1
        return None
    counts["completion_cut"] += 1
    return sides._replace(tokens=[tokens[: limit.max_length] for tokens in sides.tokens])


def cut_prompts(group: Sequence[Given], tokenizer: Any, limit: Limit) -> list[Sides | None]:
    """Examples whose prompts are cut at their start until they fit, together where prompts are equal; None: no room."""

    def encode(members: Sequence[Given], prompt: Conversation) -> list[Sides | str]:
        return encode_examples(tokenizer, [(prompt, given.completions) for given in members])

    def good(sides: Sides | str) -> bool:
        return not isinstance(sides, str) and _whole(sides) and _fits(sides, limit)

    def all_good(members: Sequence[Given], prompt: Conversation) -> bool:
        return all(map(good, encode(members, prompt)))

    cut: list[Sides | None] = [None] * len(group)
    for prompt in _distinct([given.prompt for given in group]):
        ends = user_ends(prompt)
        shortest = _cut_text(ends[-1], 1) if ends else None
        if shortest is None:
            continue
        alike = [at for at, given in enumerate(group) if given.prompt == prompt]
        fitting = [good(sides) for sides in encode([group[at] for at in alike], shortest)]
        alike = [at for at, fits in zip(alike, fitting, strict=True) if fits]
        if not alike:
            continue
        members = [group[at] for at in alike]
        kept = longest_end(ends, functools.partial(all_good, members))
        for at, sides in zip(alike, encode(members, kept), strict=True):
            assert not isinstance(sides, str), "longest_end gives what fits"
            cut[at] = sides
    return cut


def user_ends(prompt: Conversation) -> list[Conversation]:
    """The system message, if there is one, with the turns from each user message on: from the whole to the last."""
    first = int(has_system(prompt))
    return [prompt[:first] + prompt[at:] for at in range(first, len(prompt)) if prompt[at]["role"] == "user"]


def longest_end(ends: list[Conversation], fits: Callable[[Conversation], bool]) -> Conversation:
    """The first of `ends` that fits, else the last one with the beginning of its user message cut.

    The shortest cut, to one character, is known to fit; a binary search over characters finds a longer one that does.
    """
    for end in ends:
        if fits(end):
            return end
    last = ends[-1]
    low, high = 1, len(_user(last)["content"])  # `low` characters fit, `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(_cut_text(last, middle)) else (low, middle)
    return _cut_text(last, low)


def _cut_text(end: Conversation, characters: int) -> Conversation:
    """The end of a prompt with only the last `characters` of its user message's text."""
    at = int(has_system(end))
    return [*end[:at], {**end[at], "content": end[at]["content"][-characters:]}, *end[at + 1 :]]


def _user(end: Conversation) -> dict[str, str]:
    return end[int(has_system(end))]


def _distinct(prompts: list[Conversation]) -> list[Conversation]:
    return [prompt for at, prompt in enumerate(prompts) if prompt not in prompts[:at]]
