"""What a practitioner looks for in the curves, looked for at every step: one small function a fault.

An alarm is a pure function of what the phase has logged so far. Training figures are looked at in windows of `window`
steps, as means; one step's are noise. An alarm that finds its fault is printed as a note and written to
RUN/alarms.jsonl with its step and figures; it speaks again only after it has looked CALM times in a row and found
nothing, so that a curve along its limit does not make it speak at each turn. What is logged is
the same for a run that was killed and resumed, so the alarms are, too: resuming reads the log again.

    [[train]]
    alarms = { kl = 30, saturation = false, stop = ["overfitting"] }    # a limit, off, and the end of the phase

Two faults are no alarms but errors, since nothing good can follow, and live in `prefkit.train.loop`: a first loss that
is not the one of policy = reference, and a loss or gradient that is not finite.

Cost: a few additions a step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Ge, Gt

from prefkit.manifest import write_text_atomically

FILE_NAME = "alarms.jsonl"
TRAINING = (
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/chosen_change",
    "kl",
    "longer/data",
    "longer/policy",
)
SURE = 3.0  # standard errors
CALM = 3

Limit = Annotated[float, Gt(0)] | Literal[False]
Name = Literal["displacement", "saturation", "length", "kl", "overfitting"]
Means = Mapping[str, float]


class Finding(NamedTuple):
    """A fault: the sentence that people read, and the figures that it was found by."""

    text: str
    figures: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Alarms:
    """The option `alarms`: the limit of each alarm, or false; its function says what it means."""

    window: Annotated[int, Ge(1)] = 20  # steps whose means are looked at
    displacement: Limit = 0.1  # of the chosen answers' log-probability, lost
    saturation: Limit = 5.0  # times the margin that there was when accuracy came where it is
    length: Limit = 0.1  # of all pairs, in which the longer answer is preferred for its length
    kl: Limit = 100.0  # nats an answer
    overfitting: Annotated[int, Ge(1)] | Literal[False] = 3  # evaluations without a better loss
    stop: tuple[Name, ...] = ()  # alarms that end the phase, as if its steps were over


@dataclass
class History:
    """What a phase has logged: means of the whole windows of training steps, and the loss of each evaluation."""

    windows: list[Means] = field(default_factory=list)
    eval_losses: list[float] = field(default_factory=list)


def displacement(history: History, limit: float) -> Finding | None:
    """Likelihood displacement: the margin grows because both answers lose likelihood, the rejected one faster.

    The probability that leaves goes to answers that nobody rated, at times to the opposite of what was meant (Razin et
    al. 2024, arXiv:2410.08847; Pal et al. 2024, arXiv:2402.13228). Fires where chosen answers have lost more than
    `limit` of their log-probability under the reference.
    """
    now = history.windows[-1]
    if "logps/chosen_change" not in now:
        return None
    before = now["logps/chosen"] - now["logps/chosen_change"]
    lost = now["logps/chosen_change"] / before if before else 0.0
    if lost <= limit:
        return None
    return Finding(
        f"chosen answers became less likely, by {-now['logps/chosen_change']:.1f} nats or {lost:.0%} of their "
        "log-probability: likelihood displacement. Look at the samples; add sft_weight, lower learning_rate, or drop "
        "pairs whose answers are nearly the same.",
        {"logps/chosen_change": now["logps/chosen_change"], "lost": lost},
    )


def saturation(history: History, limit: float) -> Finding | None:
    """Accuracy stands still while the margin explodes: pairs that are right already are pushed further apart.

    The loss still falls, and nothing is learned but to be surer (overoptimisation: Rafailov et al. 2024,
    arXiv:2406.02900; the IPO paper, arXiv:2310.12036, says why the logistic loss has no end). Fires where the margin is
    `limit` times that of the window in which accuracy came where it is in the last 4: within 0.02, or two standard
    errors.
    """
    now, accuracies = history.windows[-1], [w.get("rewards/accuracies", math.nan) for w in history.windows]
    if "rewards/margins" not in now or "rewards/accuracies" not in now:  # of labelled answers there is none
        return None
    level = sum(accuracies[-4:]) / len(accuracies[-4:])
    near = max(0.02, 2 * math.sqrt(level * (1 - level) / now["pairs"]))
    first = next(i for i, accuracy in enumerate(accuracies) if accuracy >= level - near)
    then = history.windows[first]["rewards/margins"]
    if len(accuracies) < 4 or then <= 0 or now["rewards/margins"] <= limit * then:
        return None
    return Finding(
        f"accuracy has stood at {level:.2f} for {len(accuracies) - 1 - first} windows, while the margin grew from "
        f"{then:.3g} to {now['rewards/margins']:.3g}: right pairs are pushed further apart. Stop here, lower "
        "learning_rate, or take label_smoothing, or ipo.",
        {"accuracy": level, "margin_then": then, "rewards/margins": now["rewards/margins"]},
    )


def length(history: History, limit: float) -> Finding | None:
    """Length exploitation: the policy prefers the longer answer more often than the data does.

    Summed log-ratios grow with length, and raters like long answers, so a policy that learns "longer" scores well and
    answers at length (Singhal et al. 2023, arXiv:2310.03716; Park et al. 2024, arXiv:2403.19159). Fires where the share
    is above the data's by `limit` and three standard errors, and by as much above what the policy's mistakes would give
    if they had nothing to do with length.
    """
    now = history.windows[-1]
    if "longer/policy" not in now:
        return None
    data, policy, right = now["longer/data"], now["longer/policy"], now["rewards/accuracies"]
    by_chance = right * data + (1 - right) * (1 - data)
    error = math.sqrt(max(policy * (1 - policy), 1 / now["pairs"]) / now["pairs"])
    if policy - max(data, by_chance) <= max(limit, SURE * error):
        return None
    return Finding(
        f"the policy prefers the longer answer in {policy:.0%} of the pairs, the data in {data:.0%}: length "
        "exploitation. Take a loss that is normalised by length (sigmoid_norm, simpo), or balance the lengths of the "
        "data.",
        {"longer/policy": policy, "longer/data": data},
    )


def kl(history: History, limit: float) -> Finding | None:
    """The policy is far from the reference: an estimate of the KL divergence above a bound, in nats an answer.

    Win rates rise with the distance and then fall again (Rafailov et al. 2024, arXiv:2406.02900; Gao et al. 2023,
    arXiv:2210.10760). Where that begins depends on model and data; `limit` is far beyond it. `prefkit.train.metrics`
    says what the estimate is.
    """
    now = history.windows[-1].get("kl", 0.0)
    if now <= limit:
        return None
    return Finding(
        f"the policy is {now:.0f} nats an answer away from the reference, above the bound of {limit:g}. Raise beta, or "
        "lower learning_rate.",
        {"kl": now},
    )


def overfitting(history: History, limit: float) -> Finding | None:
    """The loss on the test split has not become better for `limit` evaluations in a row.

    What early stopping goes by (Prechelt 1998, "Early stopping, but when?"): `stop = ["overfitting"]`.
    """
    losses = history.eval_losses
    best = min(range(len(losses)), key=losses.__getitem__, default=0)
    if len(losses) - 1 - best < limit:
        return None
    return Finding(
        f"the held-out loss was best {len(losses) - 1 - best} evaluations ago ({losses[best]:.4f}, now "
        f"{losses[-1]:.4f}). Train for fewer epochs, or lower learning_rate.",
        {"best": losses[best], "eval_loss": losses[-1]},
    )


OF_TRAINING = (displacement, saturation, length, kl)
OF_EVALUATION = (overfitting,)


class Watch:
    """The alarms of one phase, fed with the lines of its log; `stopped` once an alarm of `stop` has spoken."""

    def __init__(self, out: Path, phase: str, options: Alarms, logged: Iterable[Mapping[str, Any]]) -> None:
        """Watch a phase that has logged some lines already; RUN/alarms.jsonl becomes what those lines give."""
        self.stopped = False
        self._options = options
        self._path = out / FILE_NAME
        self._history = History()
        self._steps: list[Mapping[str, Any]] = []  # of the window that is not whole yet
        self._calm: dict[str, int] = {}  # how many times in a row an alarm that has spoken has found nothing
        before = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        self._phase = phase
        self._lines = [line for line in before if f'"phase": {json.dumps(phase)}, ' not in line]
        for line in logged:
            self._look(line)
        if self._lines != before:
            self._write()

    def see(self, line: Mapping[str, Any]) -> list[str]:
        """Look at one more line of the log; returns what is to be said aloud."""
        said = self._look(line)
        if said:
            self._write()
        return said

    def _look(self, line: Mapping[str, Any]) -> list[str]:
        if "eval_loss" in line:
            self._history.eval_losses.append(line["eval_loss"])
            return self._ask(OF_EVALUATION, line["step"])
        if "loss" not in line:
            return []
        self._steps.append(line)
        if len(self._steps) < self._options.window:
            return []
        self._history.windows.append(means(self._steps))
        self._steps = []
        return self._ask(OF_TRAINING, line["step"])

    def _ask(self, alarms: tuple[Any, ...], step: int) -> list[str]:
        said = []
        for alarm in alarms:
            name = alarm.__name__
            limit = getattr(self._options, name)
            finding = None if limit is False else alarm(self._history, limit)
            silent = self._calm.get(name, CALM)
            self._calm[name] = 0 if finding is not None else silent + 1
            if finding is not None and silent >= CALM:
                line = {"phase": self._phase, "step": step, "alarm": name, **finding._asdict()}
                self._lines.append(json.dumps(line))
                said.append(f"{self._phase}, step {step}, alarm {name}: {finding.text}")
                self.stopped |= name in self._options.stop
        return said

    def _write(self) -> None:
        write_text_atomically(self._path, "".join(f"{line}\n" for line in self._lines))


def means(steps: list[Mapping[str, Any]]) -> Means:
    """Means over all pairs of some steps, of the figures that the alarms look at; `pairs` is their number."""
    pairs = sum(step["pairs"] for step in steps)
    known = [name for name in TRAINING if name in steps[0]]
    return {name: sum(s[name] * s["pairs"] for s in steps) / pairs for name in known} | {"pairs": pairs}
