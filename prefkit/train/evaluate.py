"""How well does a model know the test split's preferences? Log-probabilities of pairs -> accuracy, margins, by slice.

Two questions, and two families of figures:

    logps/…     Does the model itself find the chosen answer likelier? `logps/accuracies` compares summed
                log-probabilities, `logps/accuracies_per_token` their means over tokens (sums favour short answers).
                Needs no reference.
    rewards/…   Has the model moved towards the chosen answer, seen from the reference? The implicit reward of DPO is
                beta x (log-probability minus the reference's); before any training it is 0 everywhere, and accuracy
                1/2. Labelled answers, which have no other to be compared with, have these alone (`judged.py`).

An exact tie counts half. Every accuracy comes with its 95 % Wilson interval over as many independent pairs as the
pairs are worth: several pairs of one prompt count as fewer. The same functions evaluate during training and serve
`prefkit evaluate`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prefkit import resolve
from prefkit.errors import DataError, TrainError, UsageError
from prefkit.intervals import independent_pairs, wilson
from prefkit.manifest import Manifest
from prefkit.train import chat, compare, judged, policy, reference, reward_bench, shards, slices, tokenizer
from prefkit.train.chat import Tokenising
from prefkit.train.examples import Examples
from prefkit.train.length import Policy
from prefkit.train.logps import pair_logps
from prefkit.train.metrics import Progress, Silent
from prefkit.train.objective import Preference, States, preferred
from prefkit.train.pack import Layout
from prefkit.train.policy import Dtype
from prefkit.train.store import length_hint
from prefkit.train.terms import Weighted

ALWAYS = ("source", "lang")  # slices that are reported even if there is one alone


@dataclass(frozen=True)
class Measured:
    """What a model says of the pairs, or the labelled answers, of a split: one value each of every figure, and which
    it is."""

    figures: dict[str, np.ndarray]
    prompts: np.ndarray
    labels: dict[str, np.ndarray]
    rows: list[tuple[int, int]]  # shard, and row in it
    counts: dict[str, int]
    labelled: bool  # answers, not pairs


@dataclass(frozen=True)
class Asked:
    """What a model is asked, and how: the same for both of two models."""

    manifest: Manifest
    folder: Path
    split: str
    how: Tokenising
    reference_model: str | Path | None
    beta: float
    max_tokens: int
    dtype: Dtype
    chat_template: str | None
    trust_remote_code: bool
    cache: Path
    progress: Progress


def evaluate(
    model: str | Path,
    *,
    data: Path | str,
    reference_model: str | Path | None = None,
    against: str | Path | None = None,
    split: str = "test",
    beta: float = 0.1,
    max_length: int = 1024,
    max_length_policy: Policy = "truncate_completion",
    max_tokens: int = 8192,
    dtype: Dtype = "float32",
    chat_template: str | None = None,
    trust_remote_code: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Figures of a model on one split of a data set, over all pairs or labelled answers and by slice.

    `data` is a data set's folder or URL, or a file in RewardBench's format. With a reference model: the DPO loss at
    `beta`, reward accuracy and margins, calibration. Without: log-probability accuracy alone, and of labels nothing.
    With a model to hold it `against`: that one's figures as well, and the differences. `max_length` are tokens of
    prompt and answer together (0: no limit), as for a phase of training. Raises PrefkitError for a split
    without rows, a model that is not there, or a tokenizer without a chat template.
    """
    policy.quiet_transformers()
    with tempfile.TemporaryDirectory() as scratch:
        manifest, folder = opened(data, split, cache, Path(scratch))
        check_reference(manifest, data, reference_model)
        asked = Asked(
            manifest=manifest,
            folder=folder,
            split=split,
            how=Tokenising(max_length or None, max_length_policy, column=None, labels=manifest.kind == "labels"),
            reference_model=reference_model,
            beta=beta,
            max_tokens=max_tokens,
            dtype=dtype,
            chat_template=chat_template,
            trust_remote_code=trust_remote_code,
            cache=chat.cache_folder(folder, cache, Path(scratch)),
            progress=progress or Silent(),
        )
        mend = f"Lower --max-tokens, which is {max_tokens:,}, or take --dtype bfloat16."
        with policy.limits_named("evaluate", lambda: mend):
            names = [model] if against is None else [model, against]
            found = [measured(name, asked) for name in names]
    reports = [report(name, of, asked) for name, of in zip(names, found, strict=True)]
    if against is None:
        return reports[0]
    return reports[0] | {"against": reports[1], "differences": side_by_side(*found)}


def opened(data: Path | str, split: str, cache: Path | None, scratch: Path) -> tuple[Manifest, Path]:
    """A data set of pairs or labels; a file in RewardBench's format is made into one. DataError if it is empty."""
    if isinstance(data, Path) and data.is_file():
        manifest, folder = reward_bench.as_data_set(data, scratch / "bench"), scratch / "bench"
    else:
        manifest = shards.manifest_of(data)
        folder = data if isinstance(data, Path) else shards.mirror(data, manifest, cache or scratch)
    if manifest.kind not in ("pairs", "labels"):
        raise DataError(f"{data}: holds {manifest.kind}, whose answers nobody has judged.")
    if split not in splits(manifest) or not manifest.rows(split):
        there = ", ".join(splits(manifest))
        raise DataError(f'{data}: the split "{split}" has no {manifest.kind}. Splits: {there}.')
    return manifest, folder


def check_reference(manifest: Manifest, data: Path | str, reference_model: str | Path | None) -> None:
    """UsageError where nothing can be said without a reference, and there is none."""
    if manifest.kind == "labels" and reference_model is None:
        raise UsageError(f"{data}: holds labels. What is judged of single answers are rewards: add --reference MODEL.")


def measured(name: str | Path, asked: Asked) -> Measured:
    """What a model says of the pairs or labelled answers, and what its reference does. TrainError if none is left."""
    words = tokenizer.load_tokenizer(name, trust_remote_code=asked.trust_remote_code)
    tokenizer.set_chat_template(words, asked.chat_template, Path())
    where: dict[str, Any] = {"cache": asked.cache, "progress": asked.progress}
    store = chat.tokenise(asked.folder, asked.manifest, asked.split, words, asked.how, **where)
    asked.progress.note(f"{name}, {store.summary}")
    examples = Examples.of(store)
    if not store.counts["examples"]:
        what = "answer" if asked.how.labels else "pair"
        raise TrainError(f"no {what} can be evaluated: {store.summary}.{length_hint(store.counts)}")

    def logps(name: str | Path, stage: str) -> np.ndarray:
        weights = policy.load(name, trust_remote_code=asked.trust_remote_code)
        policy.check_fits(weights, words, store.counts["longest"])
        ready = policy.ready(weights, dtype=asked.dtype)
        found = reference.compute(ready, examples, asked.max_tokens, progress=asked.progress, stage=stage)
        return finite(found, str(name))

    of_model = logps(name, "evaluating")
    of_reference = None if asked.reference_model is None else logps(asked.reference_model, "reference")
    labels = slices.of(examples) | {name: examples.values(name) for name in ALWAYS}
    if (good := examples.labels()) is not None and of_reference is not None:
        rewards = asked.beta * (of_model - of_reference)[examples.pairs()[:, 0]].astype(np.float64)
        figures = judged.columns(rewards, good)
        labels["label"] = np.where(good, "good", "bad")
    else:
        objective = None if of_reference is None else dpo(asked.beta)
        figures = pair_figures(objective, examples, of_model, of_reference)
    origins = [examples.origin_of_pair(pair) for pair in range(len(examples.pairs()))]
    return Measured(figures, prompt_of_pairs(examples), labels, origins, store.counts, asked.how.labels)


def dpo(beta: float) -> Preference:
    """The loss that rewards are reported of."""
    return Preference.of([Weighted(1.0, resolve.check("prefkit.train.losses:sigmoid", {"beta": beta}, "evaluate"))])


def report(model: str | Path, of: Measured, asked: Asked) -> dict[str, Any]:
    """All figures of a model as JSON-able data, with what it was asked."""
    reference = asked.reference_model
    result: dict[str, Any] = {
        "model": str(model),
        "reference": None if reference is None else str(reference),
        "split": asked.split,
        "data_hash": asked.manifest.data_hash,
        "beta": None if reference is None else asked.beta,
        "counts": of.counts,
    }
    summarise = judged.summary if of.labelled else summary
    result |= summarise(of.figures, of.prompts)
    for name, values in of.labels.items():
        result[f"by_{name}"] = by_slice(summarise, of.figures, of.prompts, values)
    if of.labelled:
        return result | {"calibration": judged.calibration(of.figures)}
    rewards = "rewards/margins" in of.figures
    accuracy = "rewards/accuracies" if rewards else "logps/accuracies"
    sections = reward_bench.sections(result["by_source"], accuracy)
    result |= {"reward_bench": {"accuracy": accuracy, **sections}} if sections else {}
    return result | ({"calibration": compare.calibration(of.figures["rewards/margins"])} if rewards else {})


def side_by_side(one: Measured, other: Measured) -> dict[str, Any]:
    """The differences over the rows that both models could be asked about, and how many those are."""
    what, differences = ("answers", judged.differences) if one.labelled else ("pairs", compare.differences)
    place = {row: at for at, row in enumerate(other.rows)}
    mine = np.array([at for at, row in enumerate(one.rows) if row in place], dtype=np.int64)
    theirs = np.array([place[one.rows[at]] for at in mine], dtype=np.int64)
    if not len(mine):
        raise TrainError(f"the two models have no {what} in common: max_length cuts others for each of them.")
    first = {name: values[mine] for name, values in one.figures.items()}
    second = {name: values[theirs] for name, values in other.figures.items()}
    return {what: len(mine), **differences(first, second, one.prompts[mine])}


def finite(logps: np.ndarray, name: str) -> np.ndarray:
    """The log-probabilities as they are; TrainError for a model that gives none."""
    if not np.isfinite(logps).all():
        raise TrainError(f"{name}: its log-probabilities are not finite, so its weights are of no use.")
    return logps


def pair_figures(
    objective: Preference | None,
    examples: Examples,
    logps: np.ndarray,
    reference_logps: np.ndarray | None,
    states: States = (),
    weights: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """One value a pair of everything that is reported; without an objective nothing that needs a loss.

    Of labelled answers one value an answer, and of them nothing that compares two answers to a prompt.
    A loss that looks at the whole step looks at the whole split, with the memory (`states`) of the steps before.
    `weights` are those of every sequence, by which WPO weighs the losses.
    """
    pairs = Layout(
        torch.from_numpy(examples.lengths()),
        torch.arange(examples.sequences),
        torch.from_numpy(examples.pairs()),
        torch.arange(len(examples.pairs())),
    )
    own_Q = torch.from_numpy(logps)
    own = pair_logps(own_Q, pairs)
    if objective is None:
        columns = {"logps/chosen": own.chosen_P, "logps/rejected": own.rejected_P}
    else:
        given = objective.given(own_Q, None if reference_logps is None else torch.from_numpy(reference_logps), pairs)
        weights_P = None if weights is None else torch.from_numpy(weights)[pairs.pairs_P2].prod(1)
        columns = objective.figures(objective.judge(given, states, weights_P)[0], given, pairs)
    if objective is None or objective.labels is None:
        columns["logps/accuracies"] = preferred(own.chosen_P, own.rejected_P)
        per_token = own.chosen_P / own.chosen_length_P, own.rejected_P / own.rejected_length_P
        columns["logps/accuracies_per_token"] = preferred(*per_token)
    return {name: values.double().numpy() for name, values in columns.items()}


def summary(figures: dict[str, np.ndarray], prompts: np.ndarray, chosen: np.ndarray | None = None) -> dict[str, Any]:
    """Means over the pairs (that `chosen` selects); accuracies with the two ends of their 95 % interval.

    `prompts` numbers the prompt of each pair.
    """
    everything = slice(None) if chosen is None else chosen
    of_prompt = prompts[everything]
    result: dict[str, Any] = {"pairs": len(of_prompt)}
    for name, values in figures.items():
        of_pairs = values[everything]
        result[name] = float(of_pairs.mean())
        if "accuracies" in name:
            ends = wilson(result[name], independent_pairs(of_pairs, of_prompt))
            result[f"{name}_low"], result[f"{name}_high"] = ends
    return result


def by_slice(
    summarise: Callable[..., dict[str, Any]], figures: dict[str, np.ndarray], prompts: np.ndarray, values: np.ndarray
) -> dict[str, Any]:
    """What `summarise` says of the rows of each value, largest slice first."""
    names, counts = np.unique(values.astype(str), return_counts=True)
    return {str(names[i]): summarise(figures, prompts, values == names[i]) for i in np.argsort(-counts, kind="stable")}


def prompt_of_pairs(examples: Examples) -> np.ndarray:
    """The number of each pair's prompt."""
    counts = examples.counts()
    return np.repeat(np.arange(len(counts)), counts)


def splits(manifest: Manifest) -> list[str]:
    """The splits that a data set has."""
    return list(dict.fromkeys(shard.split for shard in manifest.shards if shard.split != "rejects"))
