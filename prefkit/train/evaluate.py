"""How well does a model know the test split's preferences? Log-probabilities of pairs -> accuracy, margins, by slice.

Two questions, and two families of figures:

    logps/…     Does the model itself find the chosen answer likelier? `logps/accuracies` compares summed
    log-probabilities,
                `logps/accuracies_per_token` their means over tokens (sums favour short answers). Needs no reference.
    rewards/…   Has the model moved towards the chosen answer, seen from the reference? The implicit reward of DPO is
                beta x (log-probability minus the reference's); before any training it is 0 everywhere, and accuracy
                1/2.

An exact tie counts half. Every accuracy comes with its 95 % Wilson interval over as many independent pairs as the
pairs are worth: several pairs of one prompt count as fewer. The same functions evaluate during training and serve
`prefkit evaluate`.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prefkit import resolve
from prefkit.errors import DataError, TrainError
from prefkit.manifest import Manifest
from prefkit.train import chat, policy, reference, shards, tokenizer
from prefkit.train.chat import Tokenising
from prefkit.train.examples import Examples
from prefkit.train.length import Policy
from prefkit.train.logps import pair_logps
from prefkit.train.metrics import Progress, Silent
from prefkit.train.objective import Preference, States, per_pair, preferred
from prefkit.train.pack import Layout
from prefkit.train.policy import Dtype
from prefkit.train.terms import Weighted

SLICES = ("source", "lang")
Z_95 = 1.959964


def evaluate(
    model: str | Path,
    *,
    data: Path | str,
    reference_model: str | Path | None = None,
    split: str = "test",
    beta: float = 0.1,
    max_length: int | None = 1024,
    max_length_policy: Policy = "truncate_completion",
    max_tokens: int = 8192,
    dtype: Dtype = "float32",
    chat_template: str | None = None,
    trust_remote_code: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Figures of a model on one split of a data set, over all pairs and by source and language.

    With a reference model: the DPO loss at `beta`, and reward accuracy and margins. Without: log-probability accuracy
    alone. Raises PrefkitError for a split without pairs, a model that is not there, or a tokenizer without a chat
    template.
    """
    progress = progress or Silent()
    policy.quiet_transformers()
    manifest = shards.manifest_of(data)
    if not manifest.rows(split):
        raise DataError(f'{data}: the split "{split}" has no pairs. Splits: {splits(manifest)}.')
    words = tokenizer.load_tokenizer(model, trust_remote_code=trust_remote_code)
    tokenizer.set_chat_template(words, chat_template, Path())
    how = Tokenising(max_length, max_length_policy, column=None)
    with tempfile.TemporaryDirectory() as scratch:
        folder = data if isinstance(data, Path) else shards.mirror(data, manifest, cache or Path(scratch))
        cache = chat.cache_folder(folder, cache, Path(scratch))
        store = chat.tokenise(folder, manifest, split, words, how, cache=cache, progress=progress)
        examples = Examples.of(store)
        if not store.counts["examples"]:
            raise TrainError(f"no pair can be evaluated: {store.summary}. Raise max_length?")

        def logps(name: str | Path, stage: str) -> np.ndarray:
            weights = policy.load(name, trust_remote_code=trust_remote_code)
            policy.check_fits(weights, words, store.counts["longest"])
            ready = policy.ready(weights, dtype=dtype)
            return finite(reference.compute(ready, examples, max_tokens, progress=progress, stage=stage), str(name))

        of_model = logps(model, "evaluating")
        of_reference = None if reference_model is None else logps(reference_model, "reference")
        slices = {name: examples.values(name) for name in SLICES}
    dpo = Weighted(1.0, resolve.check("prefkit.train.losses:sigmoid", {"beta": beta}, "evaluate"))
    figures = pair_figures(Preference.of([dpo]) if reference_model else None, examples, of_model, of_reference)
    prompts = prompt_of_pairs(examples)
    return {
        "model": str(model),
        "reference": None if reference_model is None else str(reference_model),
        "split": split,
        "data_hash": manifest.data_hash,
        "beta": None if reference_model is None else beta,
        "counts": store.counts,
        **summary(figures, prompts),
        **{f"by_{name}": by_slice(figures, prompts, values) for name, values in slices.items()},
    }


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
) -> dict[str, np.ndarray]:
    """One value a pair of everything that is reported; without an objective nothing that needs a loss.

    A loss that looks at the whole step looks at the whole split, with the memory (`states`) of the steps before.
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
        columns = per_pair(objective.judge(given, states)[0], given.policy, given.reference)
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


def by_slice(figures: dict[str, np.ndarray], prompts: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    """`summary` of the pairs of each value, largest slice first."""
    names, counts = np.unique(values.astype(str), return_counts=True)
    return {str(names[i]): summary(figures, prompts, values == names[i]) for i in np.argsort(-counts, kind="stable")}


def prompt_of_pairs(examples: Examples) -> np.ndarray:
    """The number of each pair's prompt."""
    counts = examples.counts()
    return np.repeat(np.arange(len(counts)), counts)


def independent_pairs(values: np.ndarray, prompts: np.ndarray) -> float:
    """How many independent pairs would make a mean as certain as these do.

    Pairs of one prompt tend to be right or wrong together. The binomial variance over the cluster-robust one (Liang
    and Zeger 1986), at least 1, at most the number of pairs.
    """
    share = float(values.mean())
    _, member = np.unique(prompts, return_inverse=True)
    sums = np.bincount(member, values - share)
    spread = float(sums @ sums)
    if spread == 0:  # all alike
        return float(len(sums))
    return min(float(len(values)), max(1.0, share * (1 - share) * len(values) ** 2 / spread))


def wilson(share: float, trials: float) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson 1927): sensible also near 0 and 1, and for few trials."""
    z2 = Z_95 * Z_95
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z_95 / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def splits(manifest: Manifest) -> str:
    """The splits that a data set has, for a message."""
    return ", ".join(dict.fromkeys(shard.split for shard in manifest.shards if shard.split != "rejects"))


def render(result: dict[str, Any], console: Any) -> None:
    """Print what `evaluate` returned as a table: all pairs first, then each slice."""
    from rich.table import Table

    table = Table(title=f"{result['model']} on {result['split']} ({result['data_hash'][:12]})", title_justify="left")
    rewards = result["reference"] is not None
    accuracy = "rewards/accuracies" if rewards else "logps/accuracies"
    heads = [
        "",
        "pairs",
        "accuracy",
        "95 %",
        "per token",
        *(["loss", "margin", "chosen", "rejected"] if rewards else []),
    ]
    for head in heads:
        table.add_column(head, justify="left" if not head else "right")

    def add(label: str, row: dict[str, Any]) -> None:
        cells = [
            f"{row['pairs']:,}",
            f"{row[accuracy]:.3f}",
            f"{row[accuracy + '_low']:.3f}–{row[accuracy + '_high']:.3f}",
        ]
        cells.append(f"{row['logps/accuracies_per_token']:.3f}")
        if rewards:
            cells += [f"{row[name]:.4f}" for name in ("loss", "rewards/margins", "rewards/chosen", "rewards/rejected")]
        table.add_row(label, *cells)

    add("all", result)
    for name in SLICES:
        for value, row in result[f"by_{name}"].items():
            add(f"{name} {value}", row)
    console.print(table)
