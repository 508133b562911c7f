"""The options of `[model]` and `[[train]]`: names, types, defaults, meaning, and the check of a pipeline file.

The keyword-only parameters of `Model` and `Phase` are the options, as everywhere in prefkit. The options of an
objective stand in the same `[[train]]` table: they are the keyword-only parameters of its function in
`prefkit.train.losses`, or of `package.module:function`. An option that neither the phase nor its objective knows is
refused. TOML has no null: `false` switches off what a phase has only if it is asked for, as `samples = false`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from prefkit import config, resolve
from prefkit.config import Pipeline
from prefkit.errors import UsageError, did_you_mean
from prefkit.train import length, terms
from prefkit.train.attention import Kernel
from prefkit.train.blocks import Keeping
from prefkit.train.optimizer import Kind
from prefkit.train.policy import Dtype
from prefkit.train.terms import Weighted

Count = Annotated[int, Ge(1)]
NotNegative = Annotated[float, Ge(0)]
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
Names = Annotated[list[str], MinLen(1)]
Fraction = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True, kw_only=True)
class Model:
    """`[model]`: where the first phase starts."""

    path: str | None = None  # a folder (relative to the pipeline file) or a name on the Hugging Face Hub
    config: dict[str, Any] | None = None  # instead of a path: random weights of this configuration
    tokenizer: str | dict[str, Any] | None = None  # path, name, or { vocab_size = … } to train one; default: model's
    chat_template: str | None = None  # a Jinja file, or a built-in name; default: the tokenizer's
    trust_remote_code: bool = False  # run Python code that comes with the model
    seed: Seed = 0  # of random weights


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One `[[train]]` table, without the options of its objective."""

    name: str = ""  # of the phase's folder and in `--set train.NAME.…`; default: the objective
    objective: str | list[dict[str, Any]]  # "sft", a loss (docs/losses.md), package.module:function, or a sum of losses
    pairs_per_step: Count = 32  # whole prompts until there are as many pairs (answers, for sft)
    max_tokens: Count = 8192  # of a bin: memory and speed, never the result
    max_length: Annotated[int, Ge(0)] = 1024  # of prompt and completion together; 0: no limit
    max_length_policy: length.Policy = "truncate_completion"  # or truncate_prompt_start, drop (the example), error
    learning_rate: Annotated[float, Gt(0), Le(1e6)] | None = None  # default: 1e-6 for preferences, 2e-5 for sft
    schedule: Literal["constant", "linear", "cosine"] = "cosine"  # after the warm-up; the last two fall to 0
    warmup: NotNegative = 0.1  # below 1: a fraction of the steps; else a number of steps
    epochs: Count = 1
    max_steps: Count | None = None  # stop earlier, with the schedule fitted to it
    optimizer: Kind = "adamw"  # adamw_8bit: moments in 8 bits; CUDA with bitsandbytes
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)  # AdamW
    eps: Annotated[float, Gt(0)] = 1e-8  # AdamW
    weight_decay: NotNegative = 0.0  # AdamW; of matrices and embeddings, not of norms and biases
    max_grad_norm: NotNegative = 1.0  # clip the gradient of the whole step to this norm; 0: never
    sft_weight: NotNegative = 0.0  # preferences: weight of the chosen answer's mean negative log-likelihood
    wpo: bool = False  # preferences: weigh each pair by how much both answers are the policy's own
    length_normalisation: bool = False  # preferences: means over an answer's tokens take the place of sums
    ld_alpha: Fraction | None = None  # preferences: weight of what a longer answer has beyond the length of the shorter
    column: str = "chosen"  # sft: the answers to learn, or a message column whose assistant turns are all learned
    reference: Literal["cached", "live"] = "cached"  # computed once and kept, or every step by a second model in memory
    reference_sync: dict[str, Any] | None = None  # every, alpha: a live reference follows the policy (reference.py)
    dtype: Dtype = "float32"  # of the computation; weights are always float32
    attention: Kernel = "auto"  # varlen: one flash call a layer, CUDA and bfloat16; sdpa: one call a segment, anywhere
    lora: dict[str, Any] | None = None  # r, alpha, dropout, target_modules, use_rslora, quantize, merge: adapters.py
    activation_checkpointing: Keeping = "none"  # matmuls, full: what to keep; or GiB for the activations of a bin
    cpu_offload: bool = False  # full training: weights, gradients and AdamW's state stay in main memory; slow
    compile: bool = False  # the layers, once for all bins
    seed: Seed = 0  # of the order of the data, and of LoRA
    shuffle_window: Count = 16  # how many shards are shuffled together
    stream: bool = False  # tokenise while training goes on, not before; preferences: with reference = "live"
    sources: Names | None = None  # train on examples of these sources alone
    langs: Names | None = None  # and of these languages
    min_margin: float | None = None  # and, for preferences, of at least this margin of scores
    source_weights: dict[str, NotNegative] | None = None  # how often an epoch takes a prompt of a source; default: 1
    lang_weights: dict[str, NotNegative] | None = None  # the same by language; both multiply
    source_caps: Count | dict[str, Count] | None = None  # at most so many examples an epoch, of each source or of some
    lang_caps: Count | dict[str, Count] | None = None  # the same by language
    curriculum: Literal["easy_first", "hard_first"] | None = None  # preferences: by margin within each source
    alarms: dict[str, Any] | None = None  # limits of prefkit.train.alarms; false: off; stop, window
    samples: dict[str, Any] | None = None  # answers now and then: every, prompts, max_new_tokens, temperature, seed
    eval_every: Count | None = None  # steps between evaluations; at the beginning and the end in any case
    checkpoint_every: Count = 100  # steps between checkpoints
    keep_checkpoints: Count = 2  # older ones are deleted

    @property
    def longest(self) -> int:
        """Tokens that a sequence may have."""
        return min(self.max_tokens, self.max_length or self.max_tokens)


# Options that decide the memory, disk and time that a phase takes, and nothing of its result but the order in which
# floating-point numbers are added: a run may be resumed with others. Where LoRA's dropout or a router loss make one of
# them count, `prefkit.train.standing` refuses that.
COSTS = (
    "max_tokens",
    "activation_checkpointing",
    "cpu_offload",
    "compile",
    "attention",
    "reference",
    "checkpoint_every",
    "keep_checkpoints",
)
# Options that have an effect on one kind of objective only, and are refused elsewhere.
SFT_ONLY = ("column",)
PREFERENCE_ONLY = (
    "sft_weight",
    "wpo",
    "length_normalisation",
    "ld_alpha",
    "reference",
    "reference_sync",
    "min_margin",
    "curriculum",
)
# Alarms that have nothing to look at where an option has no effect: there is no reference, or there are no pairs.
ALARMS_NEED = {"displacement": "reference", "kl": "reference", "saturation": "sft_weight", "length": "sft_weight"}
# What options of TRL's trainers are called here.
OF_TRL = {
    "batch_size": "pairs_per_step",
    "per_device_train_batch_size": "pairs_per_step",
    "gradient_accumulation_steps": "pairs_per_step",
    "lr": "learning_rate",
    "lr_scheduler_type": "schedule",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "num_train_epochs": "epochs",
    "optim": "optimizer",
    "loss_type": "objective",
    "rpo_alpha": "sft_weight",
    "use_weighting": "wpo",
    "sync_ref_model": "reference_sync",
    "precompute_ref_log_probs": "reference",
    "bf16": "dtype",
    "fp16": "dtype",
    "gradient_checkpointing": "activation_checkpointing",
    "attn_implementation": "attention",
    "eval_steps": "eval_every",
    "save_steps": "checkpoint_every",
    "save_total_limit": "keep_checkpoints",
}
NEVER_OFF = ("learning_rate", "alarms")  # options whose None stands for something
TABLES = {  # options that are tables, and what they are checked by
    "lora": "prefkit.train.adapters:Lora",
    "reference_sync": "prefkit.train.reference:Sync",
    "samples": "prefkit.train.samples:SampleOptions",
}
DEFAULT_LEARNING_RATE = {"sft": 2e-5, "preference": 1e-6}  # those of TRL's trainers
MIN_STEPS_OF_WARMUP = 1.0


@dataclass(frozen=True)
class TrainOptions:
    """A checked pipeline: `losses[i]` are the losses of `phases[i]`, none for supervised fine-tuning."""

    model: Model
    phases: list[Phase]
    losses: list[list[Weighted]]
    path: Path  # of the pipeline file

    @property
    def folder(self) -> Path:
        """Where relative paths start."""
        return self.path.parent

    def located(self, name: str) -> str:
        """A path as the pipeline file means it, relative to the file, if there is one; else the name as it is."""
        return str(self.folder / name) if (self.folder / name).is_dir() else name

    def table(self) -> dict[str, Any]:
        """All options with defaults filled in, as JSON-able data: for --dry-run, the model card and RUN/run.json."""
        phases = []
        for phase, losses in zip(self.phases, self.losses, strict=True):
            unused = SFT_ONLY if losses else PREFERENCE_ONLY
            shown = {key: value for key, value in dataclasses.asdict(phase).items() if key not in unused}
            if isinstance(phase.objective, str):
                shown |= losses[0].call.options if losses else {}
            else:
                names = zip(phase.objective, losses, strict=True)
                shown["objective"] = [{"use": e["use"], "weight": w, **call.options} for e, (w, call) in names]
            phases.append(shown)
        return {"model": dataclasses.asdict(self.model), "train": phases}


def check(pipeline: Pipeline, *, model: str | None = None) -> TrainOptions:
    """The checked training half of a pipeline file; `model` is the command line's, and replaces path and config.

    Raises UsageError for an unknown option, a wrong value, no phase, no model, or two phases of one name.
    """
    where = str(pipeline.path)
    given = config.section(pipeline.table, "model", where)
    if model is not None:
        model = str(Path(model).resolve()) if Path(model).is_dir() else model  # relative to here, not to the file
        given = {key: value for key, value in given.items() if key not in ("path", "config", "seed")} | {"path": model}
        if isinstance(given.get("tokenizer"), dict):  # of the random start that the model replaces
            del given["tokenizer"]
    checked = Model(**resolve.check("prefkit.train.options:Model", given, f"{where}: [model]").options)
    _check_model(checked, where)
    if checked.path is not None and "seed" in given:
        raise UsageError(f'{where}: [model] option "seed" has no effect: no weights are random, they come from path.')
    tables = config.tables(pipeline.table, "train", where)
    if not tables:
        raise UsageError(f"{where}: no [[train]] phase, so there is nothing to train.")
    pairs = [
        check_phase(table, f"{where}: [[train]] {table.get('name', number)}") for number, table in enumerate(tables)
    ]
    names = [phase.name for phase, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f'{where}: two [[train]] phases are named "{name}". Give each its own name.')
    _check_bases(checked, [phase for phase, _ in pairs], where)
    return TrainOptions(checked, [phase for phase, _ in pairs], [loss for _, loss in pairs], pipeline.path)


def check_phase(table: Mapping[str, Any], where: str) -> tuple[Phase, list[Weighted]]:
    """A phase and its losses: the options of both stand in one table, and are told apart by their signatures."""
    objective = table.get("objective")
    if not isinstance(objective, str | list):
        what = "is missing" if objective is None else "must be a name or a list of losses"
        raise UsageError(f'{where}: objective {what}, for example objective = "sigmoid", or "sft".')
    found = terms.addresses(objective, where)
    of_loss = resolve.options_of(resolve.load(found[0])) if found and isinstance(objective, str) else {}
    of_phase = resolve.options_of(Phase)
    foreign = terms.without_effect(found) | dict.fromkeys(SFT_ONLY, "") if found else dict.fromkeys(PREFERENCE_ONLY, "")
    _check_keys(table, foreign, [*of_phase, *of_loss], where)
    if "max_length_policy" in table and table.get("max_length") == 0:
        raise UsageError(f'{where}: option "max_length_policy" has no effect without a limit (max_length = 0).')
    defaults = {
        "name": "-".join(address.rpartition(":")[2] for address in found) or "sft",
        "learning_rate": DEFAULT_LEARNING_RATE["preference" if found else "sft"],
    }
    may_be_off = {key for key, option in of_phase.items() if option.default is None and key not in NEVER_OFF}
    off = {key for key in may_be_off if table.get(key) is False}
    given = defaults | {key: value for key, value in table.items() if key in of_phase and key not in off}
    phase = Phase(**resolve.check("prefkit.train.options:Phase", given, where).options)
    lacking = {name: figure in foreign for name, figure in ALARMS_NEED.items()}
    tables: dict[str, Any] = {"alarms": check_alarms(phase.alarms or {}, lacking, f"{where}: alarms")}
    for name, address in TABLES.items():
        if (inner := getattr(phase, name)) is not None:
            tables[name] = resolve.check(address, inner, f"{where}: {name}").options
    phase = dataclasses.replace(phase, **tables)
    _check_name(phase.name, where)
    _check_together(phase, foreign, where)
    losses = terms.weighted(objective, {key: value for key, value in table.items() if key in of_loss}, where)
    if phase.length_normalisation:
        terms.check_sums(losses, where)
    return phase, losses


def _check_together(phase: Phase, foreign: Mapping[str, str], where: str) -> None:
    """UsageError for options that exclude each other; `foreign` are those that mean nothing to the objective."""
    if phase.reference_sync is not None and (phase.reference != "live" or phase.lora is not None):
        raise UsageError(
            f'{where}: reference_sync moves a second model in memory: it needs reference = "live", and no lora, '
            "under which the reference is the model without its adapter."
        )
    if phase.samples is not None and phase.samples["seed"] and not phase.samples["temperature"]:
        raise UsageError(f"{where}: samples: seed has no effect at temperature 0, where nothing is drawn.")
    if phase.lora is not None and phase.cpu_offload:
        raise UsageError(f'{where}: option "cpu_offload" has no effect with lora.')
    if phase.stream and "reference" not in foreign and phase.reference == "cached":
        raise UsageError(f'{where}: stream = true computes no reference beforehand. Set reference = "live".')
    if phase.compile and phase.activation_checkpointing == "matmuls":
        raise UsageError(
            f'{where}: activation_checkpointing = "matmuls" has no effect on compiled layers: the compiler decides what'
            ' they keep. Leave one of the two out, or set "full" or a number of GiB.'
        )
    if phase.warmup >= MIN_STEPS_OF_WARMUP and phase.warmup != int(phase.warmup):
        raise UsageError(f"{where}: option warmup: {phase.warmup} is neither a fraction below 1 nor a number of steps.")


def _check_keys(table: Mapping[str, Any], foreign: Mapping[str, str], known: list[str], where: str) -> None:
    """UsageError for an option that nobody knows, or that would do nothing with this objective."""
    shown = f'objective "{table["objective"]}"' if isinstance(table["objective"], str) else "a sum of losses"
    for key in table:
        if key in foreign:
            why = f": {foreign[key]}" if foreign[key] else ""
            raise UsageError(f'{where}: option "{key}" has no effect on {shown}{why}.')
        if key not in known:
            there = [name for name in known if name not in foreign]
            named_here = OF_TRL.get(key)
            hint = f' Here it is "{named_here}".' if named_here in there else did_you_mean(key, there)
            raise UsageError(f'{where}: {shown} has no option "{key}".{hint}')


def check_alarms(given: Mapping[str, Any], lacking: Mapping[str, bool], where: str) -> dict[str, Any]:
    """The alarms of a phase; `lacking` says which have nothing to look at, and so are off, and refused if asked for."""
    for name in (*given, *given.get("stop", [])):
        if lacking.get(name, False):
            raise UsageError(f'{where}: "{name}" has nothing to look at under this objective.')
    off = {name: False for name, lacks in lacking.items() if lacks}
    checked = resolve.check("prefkit.train.alarms:Alarms", {**off, **given}, where).options
    for name in checked["stop"]:
        if checked[name] is False:
            raise UsageError(f'{where}: stop names "{name}", which is switched off.')
    return checked


def warmup_steps(phase: Phase, steps: int) -> int:
    """Steps of the warm-up: a fraction of all where `warmup` is below 1. One step at least is left at the peak."""
    wanted = math.ceil(phase.warmup * steps) if phase.warmup < MIN_STEPS_OF_WARMUP else int(phase.warmup)
    return min(wanted, steps - 1)


def _check_model(model: Model, where: str) -> None:
    if (model.path is None) == (model.config is None):
        raise UsageError(
            f"{where}: [model] needs either path (or --model) or config, "
            f"{'not both' if model.path else 'and has neither'}."
        )
    if model.config is not None and model.tokenizer is None:
        raise UsageError(
            f'{where}: [model] config needs a tokenizer as well: tokenizer = "PATH", or '
            "{ vocab_size = 2048 } to train one."
        )
    if model.path is not None and isinstance(model.tokenizer, dict):
        raise UsageError(f"{where}: [model] has weights in path, which a tokenizer that is trained anew does not fit.")
    if isinstance(model.tokenizer, dict):
        resolve.check("prefkit.train.tokenizer:train_bpe", model.tokenizer, f"{where}: [model] tokenizer")


def _check_bases(model: Model, phases: list[Phase], where: str) -> None:
    """UsageError for a phase that would leave an adapter whose base others cannot load."""
    alone = [phase.lora is not None and not phase.lora["merge"] for phase in phases]
    for phase, is_alone, on_adapter in zip(phases, alone, [False, *alone], strict=False):
        if is_alone and (on_adapter or (phase is phases[0] and model.config is not None)):
            raise UsageError(
                f"{where}: [[train]] {phase.name}: lora: merge = false leaves an adapter alone, and it starts from "
                f"{'one itself' if on_adapter else 'random weights'}, so it would have no base. Leave merge out."
            )


RESERVED = ("model", "tokenizer", "cache", "wandb")


def _check_name(name: str, where: str) -> None:
    if name in RESERVED or not name.replace("-", "").replace("_", "").isalnum():
        raise UsageError(
            f'{where}: name = "{name}" must be letters, digits, "-" and "_", and none of {", ".join(RESERVED)}: '
            "it names the phase's folder."
        )
