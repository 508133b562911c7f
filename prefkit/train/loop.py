"""The optimiser steps of one phase: bins forward and backward, the step's exact gradient, metrics, checkpoints.

A step's bins go through one after another, on each rank its own; each adds its part of the gradient of the step's mean
loss. What decides how the run goes on (the loss, a signal) is told to all ranks first, so that all decide alike.
Then the gradient is clipped, checked to be finite, and applied: the weights are never spoilt by a NaN, and the error
names the pairs that made it. At the first step the policy still is the reference, so the loss must have a known value;
if it has not, the cached log-probabilities are another model's, and the run stops.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from prefkit.errors import TrainError
from prefkit.manifest import write_text_atomically
from prefkit.schema import IDS
from prefkit.train import checkpoint, evaluate, metrics, parallel, reference, shards, slices, two_pass
from prefkit.train.alarms import Alarms
from prefkit.train.examples import Examples
from prefkit.train.job import Job, SplitData
from prefkit.train.learner import ReferenceOf
from prefkit.train.objective import BinLoss, Preference, Supervised
from prefkit.train.options import Phase, warmup_steps
from prefkit.train.pack import Bin
from prefkit.train.policy import Policy
from prefkit.train.reference import Sync
from prefkit.train.samples import Samples
from prefkit.train.stream import Plan, Step, make_step

# How far the loss of the first step may be from that of policy = reference, relative to it: rounding, no more.
START_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
ECHO = 1.0  # seconds


@dataclass(frozen=True)
class Tested:
    """What evaluation during the phase needs: the reference's log-probabilities of the test split do not change."""

    objective: Preference | Supervised
    examples: Examples
    reference_logps: np.ndarray | None
    labels: slices.Labels

    @classmethod
    def of(cls, objective: Preference | Supervised, examples: Examples) -> Tested:
        """A test split whose reference is not computed yet."""
        return cls(objective.on(examples, "test"), examples, None, slices.of(examples))


@dataclass(frozen=True)
class Loop:
    """All that the steps of one phase work with."""

    job: Job
    phase: Phase
    objective: Preference | Supervised
    policy: Policy
    optimizer: torch.optim.Optimizer
    train_set: SplitData
    order: Plan
    steps: int
    reference: ReferenceOf | None
    tested: Tested | None
    log: metrics.Log | metrics.NoLog
    samples: Samples | None
    slices: slices.Sums | None
    memory: list[Tensor | None]  # what the losses remember of the steps so far, one a loss; goes into checkpoints
    moving: Policy | None  # the live reference, if the phase moves it; goes into checkpoints as well


def learning_rate(phase: Phase, step: int, steps: int) -> float:
    """Learning rate of step `step`, from 0: the curves of transformers' schedulers, whose warm-up starts at 0."""
    warm = warmup_steps(phase, steps)
    peak = phase.learning_rate or 0.0
    if step < warm:
        return peak * step / max(1, warm)
    done = (step - warm) / max(1, steps - warm)
    if phase.schedule == "linear":
        return peak * (1 - done)
    if phase.schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    return peak


def run_steps(loop: Loop, state: dict[str, Any]) -> None:
    """The loop: step, log, evaluate, checkpoint; after an interrupt, checkpoint and stop."""
    phase, progress = loop.phase, loop.job.progress
    done, tokens = state["step"], state["num_tokens"]
    loop.policy.model.train()
    if done == 0:
        evaluate_now(loop, 0)
        sample_now(loop, 0)
    with interruptible() as interrupted:
        [alarmed] = parallel.any_rank(loop.log.stopped)
        while done < loop.steps and not alarmed:
            step, figures, speed = timed_step(loop, done)
            done, tokens = done + 1, tokens + step.tokens
            line = {"epoch": loop.order.epoch(done), **figures, **sliced(loop, done)}
            loop.log.write(done, {**line, "num_tokens": tokens, **speed})
            progress.update(phase.name, done, loop.steps, in_short(figures, speed))
            alarmed, stop = parallel.any_rank(loop.log.stopped, interrupted())
            last = done == loop.steps or alarmed
            saves = last or stop or is_turn(done, phase.checkpoint_every)
            evaluates = last or is_turn(done, phase.eval_every)
            if last:
                progress.note(f"{phase.name}, step {done} of {loop.steps}: {in_short(figures, speed)}")
            if saves or evaluates:
                check_weights(loop, done)
            if evaluates:
                evaluate_now(loop, done)
                [alarmed] = parallel.any_rank(loop.log.stopped)  # it may be what the evaluation found
            if last or alarmed or (loop.samples and is_turn(done, loop.samples.options.every)):
                sample_now(loop, done)
            if saves or alarmed:
                save(loop, done, tokens, state)
            if stop:
                raise KeyboardInterrupt(
                    f"stopped after step {done} of {loop.steps} of {phase.name}; go on with --resume"
                )
    if alarmed and done < loop.steps:
        progress.note(f"{phase.name} ends after step {done} of {loop.steps}, as alarms.stop asks.")


def is_turn(step: int, every: int | None) -> bool:
    """Whether what happens `every` so many steps comes after this one."""
    return every is not None and step % every == 0


def timed_step(loop: Loop, at: int) -> tuple[Step, dict[str, float], dict[str, float]]:
    """Step `at`, from 0: what it was made of, its metrics, and its speed from reading rows to updated weights."""
    started = time.perf_counter()
    prompts = loop.order.prompts(at)
    step = make_step(loop.train_set.examples, prompts, loop.phase.max_tokens, parallel.rank(), parallel.size())
    waited = time.perf_counter() - started
    figures = train_step(loop, step, at)
    seconds = time.perf_counter() - started
    speed = {
        "pairs_per_second": step.examples / seconds,
        "tokens_per_second": step.tokens / seconds,
        "data_wait": waited / seconds,
    }
    return step, figures, speed


def save(loop: Loop, done: int, tokens: int, state: Mapping[str, Any]) -> None:
    """Write the checkpoint of step `done`; `state` is the one that the phase began or went on with."""
    kept = {
        "num_tokens": tokens,
        "metrics_bytes": loop.log.length(),
        "memory": remembered(loop),
        "made_from": state["made_from"],
        "ran_with": state["ran_with"],
    }
    if loop.slices is not None:
        kept["slices"] = parallel.summed(torch.from_numpy(loop.slices.sums.copy())).tolist()
    folder, keep = loop.job.out / loop.phase.name / "checkpoints", loop.phase.keep_checkpoints
    checkpoint.save(folder, done, loop.policy, loop.optimizer, kept, keep=keep, reference=loop.moving)


def sliced(loop: Loop, done: int) -> dict[str, Any]:
    """The figures by slice, with the last step of a window of them."""
    window = Alarms(**loop.phase.alarms or {}).window
    if loop.slices is None or (done % window and done != loop.steps):
        return {}
    parallel.summed(torch.from_numpy(loop.slices.sums))
    return {"slices": loop.slices.taken()}


def in_short(figures: Mapping[str, Any], speed: Mapping[str, float] | None = None) -> str:
    """What people are shown at once of a step, or of an evaluation, which has no speed."""
    shown = {"loss": "loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin"}
    parts = [f"{word} {figures[name]:.3f}" for name, word in shown.items() if name in figures]
    return ", ".join(parts if speed is None else [*parts, f"{speed['pairs_per_second']:.1f} pairs/s"])


def recalled(state: dict[str, Any]) -> list[Tensor | None]:
    """What the losses remembered at a checkpoint."""
    return [None if kept is None else torch.tensor(kept, dtype=torch.float64) for kept in state["memory"]]


def remembered(loop: Loop) -> list[list[float] | None]:
    """What the losses remember, as JSON holds it: exactly."""
    return [None if state is None else state.tolist() for state in loop.memory]


def train_step(loop: Loop, step: Step, at: int) -> dict[str, float]:
    """One optimiser step over all bins; returns its metrics.

    TrainError, and weights untouched, if anything is not finite.
    """
    loop.optimizer.zero_grad(set_to_none=True)
    if isinstance(loop.objective, Preference) and loop.objective.whole_step:
        results = [two_pass.backward(loop.objective, loop.policy, loop.reference, step, loop.memory)]
    else:
        results = [backward(loop, bin.to(loop.policy.device), step) for bin in step.bins]
    parameters = list(loop.policy.trained().values())
    parallel.sum_gradients(parameters)
    limit = loop.phase.max_grad_norm or math.inf
    norm = parallel.whole(torch.nn.utils.clip_grad_norm_(parameters, limit)).item()
    sums = parallel.summed(torch.stack([result.figures_NP.sum(1) for result in results]).sum(0).double().cpu()).tolist()
    figures = {name: value / step.examples for name, value in zip(loop.objective.names, sums, strict=True)}
    if loop.slices is not None:
        columns_NP = torch.cat([result.figures_NP.cpu() for result in results], dim=1).double().numpy()
        rows_P = torch.cat([bin.pair_rows_P for bin in step.bins]).numpy()
        loop.slices.add(rows_P, dict(zip(loop.objective.names, columns_NP, strict=True)))
    if not math.isfinite(figures["loss"]) or not math.isfinite(norm):
        raise not_finite(loop, step, results, at)
    if at == 0:
        check_start(loop, figures["loss"], results, step)
    rate = learning_rate(loop.phase, at, loop.steps)
    for group in loop.optimizer.param_groups:
        group["lr"] = rate
    loop.optimizer.step()
    loop.memory[:] = results[-1].states
    if loop.moving is not None:
        follow = Sync(**loop.phase.reference_sync or {})
        if (at + 1) % follow.every == 0:
            reference.move(loop.moving, loop.policy, follow.alpha)
    return {
        **figures,
        **loop.policy.take_router_loss(),
        "grad_norm": norm,
        "learning_rate": rate,
        "pairs": step.examples,
        "packing_efficiency": step.tokens / (len(step.bins) * parallel.size() * loop.phase.max_tokens),
        "sharing_factor": step.separate_tokens / step.tokens,
    }


def backward(loop: Loop, bin: Bin, step: Step) -> BinLoss:
    """Add the gradient of a bin's part of the step's loss to the parameters; returns the loss and its figures."""
    reference_Q = None if loop.reference is None else loop.reference(bin)
    own, weighs = loop.policy, loop.objective.wpo
    logps_Q, weights_Q = own.weighted_logps(bin) if weighs else (own.sequence_logps(bin), None)
    result = loop.objective.of_bin(logps_Q, reference_Q, bin, step, weights_Q=weights_Q)
    result.total.backward()
    return result._replace(total=result.total.detach())


def check_start(loop: Loop, loss: float, results: list[BinLoss], step: Step) -> None:
    """At the first step the policy still is the reference, so the loss has a known value (ln 2 for sigmoid)."""
    sums = [result.expected for result in results if result.expected is not None]
    if not sums:
        return
    expected = parallel.summed(torch.stack(sums).sum().double().cpu()).item() / step.examples
    if abs(loss - expected) > START_TOLERANCE[loop.phase.dtype] * max(1.0, abs(expected)):
        raise TrainError(
            f"{loop.phase.name}: the loss of the first step is {loss:.5f}, but must be {expected:.5f}, since the "
            "policy still is the reference. The cached log-probabilities are another model's (delete "
            f"{loop.job.cache}), or the model does not give the same result twice."
        )


def check_weights(loop: Loop, done: int) -> None:
    """The update of step `done`, before its weights are measured or kept: TrainError if it spoilt them."""
    mine = all(bool(parallel.local(parameter).isfinite().all()) for parameter in loop.policy.trained().values())
    if not all(parallel.gathered(mine)):
        raise TrainError(
            f"{loop.phase.name}: step {done} made weights that are not finite. Begin anew with a lower learning_rate, "
            "in another --out: it changes the result, so this run cannot go on with it."
        )


def not_finite(loop: Loop, step: Step, results: list[BinLoss], at: int) -> TrainError:
    """The error that names the pairs of a step whose loss or gradient is NaN or infinite."""
    examples = loop.train_set.examples
    preferences = isinstance(loop.objective, Preference)
    mine = torch.cat([bin.pair_rows_P if preferences else bin.sequence_rows_Q for bin in step.bins])
    losses = torch.cat([result.figures_NP[0].cpu() for result in results])
    ranks = parallel.gathered([mine.tolist(), mine[~losses.isfinite()].tolist()])
    rows, bad = (sorted(row for rank in ranks for row in rank[which]) for which in (0, 1))
    what = "the loss" if bad else "the gradient"
    origin = examples.origin_of_pair if preferences else examples.origin_of_sequence
    batch = dict(zip(rows, pair_ids(loop.job, [origin(row) for row in rows]), strict=True))
    named = [batch[row] for row in bad or rows]
    path = loop.job.out / loop.phase.name / "not-finite.json"
    if parallel.is_first():
        table = {"step": at + 1, "what": what, "pairs": named, "batch": list(batch.values())}
        write_text_atomically(path, json.dumps(table, indent=1) + "\n")
    shown = ", ".join(named[:8]) + (f" and {len(named) - 8} more" if len(named) > 8 else "")
    rounded = "" if loop.phase.dtype == "float32" else ', or dtype = "float32",'
    return TrainError(
        f"{loop.phase.name}: {what} of step {at + 1} is not finite; the weights are as before it. "
        f"Pairs: {shown}; the whole batch stands in {path}. Begin anew with a lower "
        f"learning_rate{rounded} in another --out: it changes the result, so this run cannot go on with it."
    )


def pair_ids(job: Job, origins: list[tuple[int, int]]) -> list[str]:
    """The pair_id (or answer_id) of each (shard, row) of the train split."""
    listed, name = job.manifest.of_split("train"), IDS[job.manifest.kind]
    columns = {
        shard: pq.read_table(shards.local(job.data, listed[shard]), columns=[name])[name]
        for shard in {shard for shard, _ in origins}
    }
    return [columns[shard][row].as_py() for shard, row in origins]


def evaluate_now(loop: Loop, step: int) -> None:
    """Evaluate on the test split, if there is one, and log the figures with `eval_` before their names."""
    if loop.tested is None:
        return
    examples, objective = loop.tested.examples, loop.tested.objective
    stage = f"{loop.phase.name}, evaluation at step {step}"

    def of(model: Policy, *, weighted: bool = False) -> np.ndarray:
        how: dict[str, Any] = {"weighted": weighted, "progress": loop.job.progress, "stage": stage}
        return reference.compute(model, examples, loop.phase.max_tokens, **how)

    logps, weights = of(loop.policy, weighted=True) if objective.wpo else (of(loop.policy), None)
    if isinstance(objective, Preference):
        base = loop.tested.reference_logps if loop.moving is None else of(loop.moving)
        figures = evaluate.pair_figures(objective, examples, logps, base, loop.memory, weights)
        result = evaluate.summary(figures, evaluate.prompt_of_pairs(examples))
        result |= {"slices": slices.table(loop.tested.labels, figures)} if loop.tested.labels else {}
    else:
        result = {"pairs": len(logps), "loss": float(-logps.sum(dtype=np.float64) / examples.lengths().sum())}
    loop.log.write(step, {f"eval_{name}": value for name, value in result.items()})
    loop.job.progress.note(f"{loop.phase.name}, step {step}, held out: {in_short(result)}")


def sample_now(loop: Loop, step: int) -> None:
    """Let the model answer the prompts of `samples`, if there are any."""
    if loop.samples is not None:
        stage = f"{loop.phase.name}, samples at step {step}"
        loop.job.progress.update(stage, 0, 1)
        loop.samples.take(loop.policy, step)
        loop.job.progress.update(stage, 1, 1)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Within, the first Ctrl-C or SIGTERM is only noted, so that the step can end; a second one interrupts at once.

    What comes within ECHO seconds of the first is the first again: launchers (torchrun, timeout, schedulers) pass on to
    their processes what these were sent already.
    """
    noted: list[float] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # signals reach the main thread alone
        return

    def note(number: int, _frame: object) -> None:
        if noted and time.monotonic() - noted[0] > ECHO:
            raise KeyboardInterrupt
        noted.append(time.monotonic())

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(noted)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
