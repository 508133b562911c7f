"""Formats of `prefkit export`: the pairs of one prompt -> the records that a trainer reads.

A format is one function; its name is the value of --format, with "-" for "_". It gets all pairs of one prompt (rows of
PAIRS as dicts, in the order of the data set; those in OF_LABELS take rows of LABELS as well) and yields the records of
one line each. What the format cannot hold it yields as LeftOut, never as nothing and never changed. The first line of
its docstring says what it is; the rest tells how a trainer takes the files, and is printed after an export and put into
its README.md, with {out}, {train} and {test} filled in: a paragraph that names a file which was not written is left
out.

Each follows its consumer's own documentation: TRL's "Dataset formats", LLaMA-Factory's data/README.md, axolotl's
"RLHF", the DPO guide of NVIDIA NeMo RL, the README and `RewardDataset` of OpenRLHF.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

Pair = dict[str, Any]
Record = dict[str, Any]


OF_LABELS = ("kto", "jsonl")


class LeftOut(NamedTuple):
    """Something that a format cannot hold: `reason` is counted, `detail` says what and where."""

    reason: str
    detail: str


def trl(pairs: Sequence[Pair]) -> Iterator[Record | LeftOut]:
    """TRL's conversational preference type with an explicit prompt.

    No scores: TRL's RewardTrainer takes a column named margin, wherever there is one, into its loss.

        from datasets import load_dataset
        train = load_dataset("json", data_files="{train}", split="train")

        test = load_dataset("json", data_files="{test}", split="train")

        DPOTrainer(model, train_dataset=train, ...)
    """
    for pair in pairs:
        yield {name: pair[name] for name in ("prompt", "chosen", "rejected")}


def kto(pairs: Sequence[Pair]) -> Iterator[Record | LeftOut]:
    """TRL's conversational unpaired preference type: every distinct completion of a prompt once, labelled.

    Of a data set of labels, these; of pairs, true for a completion that is chosen in all its pairs and false for one
    that is rejected in all. One that is chosen in some and rejected in others has no label, and is left out
    (chosen_and_rejected).

        from datasets import load_dataset
        train = load_dataset("json", data_files="{train}", split="train")

        test = load_dataset("json", data_files="{test}", split="train")

        KTOTrainer(model, train_dataset=train, ...)
    """
    if "label" in pairs[0]:
        yield from ({name: answer[name] for name in ("prompt", "completion", "label")} for answer in pairs)
        return
    sides = {side: {_key(pair[side]): pair for pair in pairs} for side in ("chosen", "rejected")}
    done = set()
    for pair in pairs:
        for side, other in (("chosen", "rejected"), ("rejected", "chosen")):
            key = _key(pair[side])
            if key in done:
                continue
            done.add(key)
            if opposite := sides[other].get(key):
                yield LeftOut("chosen_and_rejected", f"{side} in pair {_id(pair)}, {other} in pair {_id(opposite)}")
            else:
                yield {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}


SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def llamafactory(pairs: Sequence[Pair]) -> Iterator[Record | LeftOut]:
    """LLaMA-Factory's sharegpt preference format, with a dataset_info.json beside the data.

    LLaMA-Factory skips a conversation unless human (or tool) and assistant take turns in it, after at most one system
    turn at its start; pairs of such a prompt are left out (turns_do_not_alternate).

        dataset_dir: {out}
        stage: dpo

        dataset: prefkit_train  # {train}

        eval_dataset: prefkit_test  # {test}
    """
    for pair in pairs:
        roles = [message["role"] for message in pair["prompt"]]
        turns = roles[1:] if roles[0] == "system" else roles
        takes_turns = all((role == "assistant") == (place % 2 == 1) for place, role in enumerate(turns))
        if takes_turns and len(turns) % 2 == 1 and "system" not in turns:
            yield {
                "conversations": [_sharegpt(message) for message in pair["prompt"]],
                "chosen": _sharegpt(_answer(pair, "chosen")),
                "rejected": _sharegpt(_answer(pair, "rejected")),
            }
        else:
            yield LeftOut("turns_do_not_alternate", f"the prompt of pair {_id(pair)} is {', '.join(roles)}")


def _sharegpt(message: dict[str, str]) -> dict[str, str]:
    return {"from": SHAREGPT[message["role"]], "value": message["content"]}


def axolotl(pairs: Sequence[Pair]) -> Iterator[Record | LeftOut]:
    """axolotl's chat_template.default for DPO and IPO: messages, and one message each for chosen and rejected.

    axolotl looks for the answer in the text that the chat template gives. A template that trims (Llama 3's does) hides
    an answer that begins or ends with white space, of which axolotl then keeps the last character alone.

        rl: dpo

        datasets:
          - path: {train}
            ds_type: json
            split: train
            type: chat_template.default
            field_messages: messages
            field_chosen: chosen
            field_rejected: rejected
            roles: {system: [system], user: [user], assistant: [assistant], tool: [tool]}

        test_datasets:
          - path: {test}
            ds_type: json
            split: train
            type: chat_template.default
    """
    for pair in pairs:
        answers = {side: _answer(pair, side) for side in ("chosen", "rejected")}
        yield {"messages": pair["prompt"], **answers}


def openrlhf(pairs: Sequence[Pair]) -> Iterator[Record | LeftOut]:
    """OpenRLHF's reward and DPO format as message lists, with the margin of the scores.

    The margin is used in training a reward model, where its margin loss is switched on. Versions before the dotted
    options call these --dataset, --prompt_key, --apply_chat_template, --eval_dataset and --eval_split.

        --data.prompt_key prompt --data.chosen_key chosen --data.rejected_key rejected --data.apply_chat_template

        --data.dataset {train}

        --eval.dataset {test} --eval.split train
    """
    for pair in pairs:
        yield {name: pair[name] for name in ("prompt", "chosen", "rejected", "margin")}


def nemo_rl(pairs: Sequence[Pair]) -> Iterator[Record | LeftOut]:
    """NVIDIA NeMo RL's PreferenceDataset, two ranked completions a record, which DPO and reward training ask for.

    In the configuration of the run:

        data:
          default:
            dataset_name: PreferenceDataset

          train:
            data_path: {train}
            split: train

          validation:
            data_path: {test}
            split: train
    """
    for pair in pairs:
        yield _ranked(pair["prompt"], [pair["chosen"], pair["rejected"]])


def nemo_rl_rankings(pairs: Sequence[Pair]) -> Iterator[Record | LeftOut]:
    """NeMo RL's PreferenceDataset, all completions of a prompt in one record where its pairs rank them.

    The pairs of a prompt are a ranking if each completion is compared with the next one, and has one score in all of
    them. Other pairs become a record each. NeMo RL's own DPO and reward training stop at more than two completions
    (--format nemo-rl); this is for data processors of your own.

        data:
          default:
            dataset_name: PreferenceDataset

          train:
            data_path: {train}
            split: train

          validation:
            data_path: {test}
            split: train
    """
    if (ranking := _ranking(pairs)) is not None:
        yield _ranked(pairs[0]["prompt"], ranking)
    else:
        yield from nemo_rl(pairs)


def jsonl(pairs: Sequence[Pair]) -> Iterator[Record | LeftOut]:
    """JSON lines with all columns of the data set as they are.

    prompt, chosen, rejected and completion are lists of {role, content}.

        from datasets import load_dataset
        train = load_dataset("json", data_files="{train}", split="train")

        test = load_dataset("json", data_files="{test}", split="train")
    """
    yield from pairs


def _ranked(prompt: list[dict[str, str]], completions: Sequence[list[dict[str, str]]]) -> Record:
    ranks = [{"rank": rank, "completion": completion} for rank, completion in enumerate(completions)]
    return {"context": prompt, "completions": ranks}


def _ranking(pairs: Sequence[Pair]) -> list[list[dict[str, str]]] | None:
    """All completions from best to worst, if each has one score and is compared with the next one; else None."""
    completions: dict[tuple[str, ...], list[dict[str, str]]] = {}
    scores: dict[tuple[str, ...], float] = {}
    compared = set()
    for pair in pairs:
        keys = {side: _key(pair[side]) for side in ("chosen", "rejected")}
        compared.add((keys["chosen"], keys["rejected"]))
        for side, key in keys.items():
            completions[key] = pair[side]
            if scores.setdefault(key, pair[f"{side}_score"]) != pair[f"{side}_score"]:
                return None
    order = sorted(scores, key=lambda key: -scores[key])
    return [completions[key] for key in order] if compared.issuperset(pairwise(order)) else None


def _key(completion: list[dict[str, str]]) -> tuple[str, ...]:
    """What makes two completions of a prompt the same one."""
    return tuple(part for message in completion for part in (message["role"], message["content"]))


def _answer(pair: Pair, side: str) -> dict[str, str]:
    """The one message of a completion."""
    (message,) = pair[side]
    return dict(message)


def _id(pair: Pair) -> str:
    return str(pair["pair_id"])[:12]
