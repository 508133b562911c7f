"""OpenAssistant's OASST1 and OASST2: trees of messages, with the replies to each ranked by people (arXiv:2304.07327).

The assistant's replies to one message are the completions of a prompt: the thread from the first message of the tree
down to that one. Rank 0 is best, so the score is -rank. Two shapes are read:

- a message a row (`*.messages.jsonl`, and the Parquet files). Parents are found by id, so the source needs the whole
  file at once. A row that is a question stands in its answers' prompts, and is itself a reject, `not_an_answer`.
- a tree a row, replies within replies (`*.trees.jsonl`). An answer's index is its number among all of its tree.

A reply is rejected if it has no rank (most only children have none), was deleted or failed in review, or if that
happened to a message of the thread before it. Trees are walked from their first messages down, so messages whose
parents run in a circle are never reached.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from prefkit.pairs.records import ROLES, BadRow, Completion, Message, Numbered, Rated


class Post(msgspec.Struct):
    text: str
    role: Literal["prompter", "assistant"]
    parent_id: str | None = None
    rank: float | None = None
    deleted: bool | None = None
    review_result: bool | None = None
    model_name: str | None = None


class Flat(Post, kw_only=True):
    message_id: str


class Nested(Post, kw_only=True):
    replies: list[Nested] | None = None


class Tree(msgspec.Struct):
    prompt: Nested


@dataclass
class Node:
    """A message with its place in the raw file, and its replies."""

    post: Post
    row: int
    index: int = 0
    replies: list[Node] = field(default_factory=list)


def oasst(rows: Sequence[Numbered], *, source: str = "oasst") -> Iterator[Rated | BadRow]:
    """OpenAssistant's messages, flat or as trees: the ranked replies to a message are the answers to its thread."""
    posts: dict[str, Node] = {}
    for number, value in rows:
        try:
            if "prompt" in value:
                yield from _tree(msgspec.convert(value, Tree), number, source)
            else:
                _add(msgspec.convert(value, Flat), number, posts)
        except msgspec.ValidationError as error:
            yield BadRow("wrong_type", str(error), number)
        except RecursionError:
            yield BadRow("wrong_type", "the tree is nested too deeply", number)
        except BadRow as bad:
            yield BadRow(bad.reason, bad.detail, number)
    yield from _flat(posts, source)


def _add(post: Flat, number: int, posts: dict[str, Node]) -> None:
    if earlier := posts.get(post.message_id):
        raise BadRow("duplicate_message_id", f"row {earlier.row} has it as well")
    posts[post.message_id] = Node(post, number)


def _flat(posts: dict[str, Node], source: str) -> Iterator[Rated | BadRow]:
    """Link the messages by their parents' ids; every row ends as an answer or as one bad row."""
    faults = {identity: fault for identity, node in posts.items() if (fault := _link(node, posts))}
    answered: set[int | None] = set()
    for identity, node in posts.items():
        if node.post.parent_id is None and identity not in faults:
            for rated in _prompts(node, source):
                answered.update(answer.row for answer in rated.completions)
                yield rated
    for identity, node in posts.items():
        if fault := faults.get(identity):
            yield fault
        elif node.post.role == "prompter":
            yield BadRow("not_an_answer", "a question; it stands in the prompts of its answers", node.row)
        elif node.row not in answered:
            yield BadRow("thread_without_start", "no thread leads to it from a tree's first message", node.row)


def _link(node: Node, posts: dict[str, Node]) -> BadRow | None:
    """Put a message among its parent's replies, or say why it cannot stand there."""
    if node.post.parent_id is None:
        if node.post.role == "assistant":
            return BadRow("answer_without_question", "an assistant's message without a parent", node.row)
        return None
    parent = posts.get(node.post.parent_id)
    if parent is None:
        return BadRow("parent_missing", f"no row has the message id {node.post.parent_id!r:.60}", node.row)
    if parent.post.role == node.post.role:
        return BadRow("roles_do_not_alternate", f"the {node.post.role} replies to the {node.post.role}", node.row)
    parent.replies.append(node)
    return None


def _tree(tree: Tree, number: int, source: str) -> Iterator[Rated]:
    if tree.prompt.role != "prompter":
        raise BadRow("answer_without_question", "the tree begins with an assistant's message")
    root = Node(tree.prompt, number)
    answers = 0
    stack = [(root, tree.prompt)]
    while stack:
        node, nested = stack.pop()
        for reply in nested.replies or []:
            if reply.role == nested.role:
                raise BadRow("roles_do_not_alternate", f"the {reply.role} replies to the {reply.role}")
            node.replies.append(Node(reply, number, answers))
            answers += reply.role == "assistant"
            stack.append((node.replies[-1], reply))
    if not answers:
        raise BadRow("no_completions", "the tree has no answer of the assistant")
    yield from _prompts(root, source)


def _prompts(root: Node, source: str) -> Iterator[Rated]:
    """All prompts below the first message of a tree: the thread to each question that has replies, and these."""
    stack: list[tuple[Node, list[Node]]] = [(root, [])]
    while stack:
        node, above = stack.pop()
        thread = [*above, node]
        stack += [(reply, thread) for reply in reversed(node.replies)]
        if node.post.role == "prompter" and node.replies:
            prompt = [Message(ROLES[turn.post.role], turn.post.text) for turn in thread]
            unusable = next((fault for turn in thread if (fault := _unusable(turn.post))), None)
            yield Rated(prompt, [_completion(reply, unusable) for reply in node.replies], source)


def _completion(node: Node, thread: str | None) -> Completion:
    post = node.post
    ranked = post.rank is not None and post.rank >= 0
    reject = _unusable(post) or (f"thread_{thread}" if thread else None if ranked else "unranked")
    score = 0.0 - post.rank if ranked and post.rank is not None else None
    return Completion(node.index, post.text, score, post.model_name, reject=reject, row=node.row)


def _unusable(post: Post) -> str | None:
    return "deleted" if post.deleted else "failed_review" if post.review_result is False else None
