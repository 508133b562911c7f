"""`prefkit train`: phases one after another, each from the model that the one before left.

    RUN/run.json             what this run is: checked options, data set; written first, compared on --resume
    RUN/metrics.jsonl        one line a step, and one an evaluation, of all phases
    RUN/<phase>/             TensorBoard events, checkpoints/, model/ (not of the last phase), begun.json when it
                             begins, phase.json when it is finished
    RUN/report.html          figures, findings and curves for people (`prefkit.runs`)
    RUN/model/               the final model: a standard Hugging Face folder with tokenizer and model card
    RUN/tokenizer/           the tokenizer, if it was trained here

A phase tokenises (or finds the tokens in the cache), makes the plan of its steps, computes the reference's
log-probabilities, and then loops: the step's rows become token trees, the trees bins; each bin goes forward and
backward and adds its part of the step's exact gradient; the gradient is clipped, checked to be finite, and applied.
Everything but the speed is a function of data, options and seed. Resuming loads the weights that the phase started
from, derives the reference from those, and only then puts the checkpoint into place.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prefkit import __version__, runs, urls
from prefkit.config import Pipeline, load_pipeline
from prefkit.errors import TrainError
from prefkit.manifest import write_text_atomically
from prefkit.train import (
    adapters,
    chat,
    checkpoint,
    export,
    files,
    labelled,
    learner,
    metrics,
    parallel,
    policy,
    samples,
    shards,
    sinks,
    slices,
    splits,
    standing,
    tokenizer,
)
from prefkit.train import optimizer as optimizers
from prefkit.train.adapters import Lora
from prefkit.train.alarms import Alarms
from prefkit.train.arriving import supplied
from prefkit.train.claim import claimed, has_metrics
from prefkit.train.job import Job
from prefkit.train.loop import Loop, Tested, recalled, run_steps
from prefkit.train.metrics import Progress, Silent
from prefkit.train.objective import of_phase
from prefkit.train.options import Phase, check
from prefkit.train.samples import SampleOptions, Samples
from prefkit.train.splits import make_plan, open_splits
from prefkit.train.terms import Weighted

__all__ = ["check", "train"]


def train(
    pipeline: Pipeline | str | Path,
    *,
    data: Path | str,
    out: Path | str,
    model: str | None = None,
    cache: Path | None = None,
    shard_cache: float = shards.KEPT_GIGABYTES,
    resume: bool = False,
    max_steps: int | None = None,
    log_to: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run all phases of a pipeline file on a data set; returns the path of the model and what each phase reports.

    `pipeline` is a loaded one, a pipeline file, or the name of a shipped one. `data` is a folder or a URL; of the
    latter, up to `shard_cache` gigabytes of shards are kept in the cache. `model` replaces the pipeline's; `max_steps`
    bounds every phase; `log_to` names sinks (`prefkit.train.sinks`). Raises KeyboardInterrupt after a checkpoint if the
    user interrupts, and PrefkitError for what the user can mend.
    """
    pipeline, data, out = load_pipeline(pipeline), urls.place(data), Path(out)
    sinks.need(log_to)
    options = check(pipeline, model=model)
    manifest = shards.to_learn_from(data)
    labelled.check(options, manifest.kind)
    progress = (progress if parallel.is_first() else None) or Silent()
    policy.quiet_transformers()
    torch.set_flush_denormal(True)  # tiny gradients otherwise reach denormals, which halve the speed of a CPU
    with ExitStack() as of_first:
        writers: Sequence[sinks.Write] = ()
        if parallel.is_first():
            of_first.enter_context(claimed(out, options, manifest, max_steps, resume=resume))
            writers = of_first.enter_context(sinks.opened(log_to, out, options.table(), progress.note))
        parallel.alike({"the options": options.table(), "the data set": manifest.data_hash, "max_steps": max_steps})
        folder = data if isinstance(data, Path) else shards.mirror(data, manifest, cache or out / "cache", shard_cache)
        splits.check(options, folder, manifest)
        with parallel.first_before_others():
            words = tokenizer.of_run(options, folder, manifest, out)
        kept = Path(parallel.of_first(str(chat.cache_folder(folder, cache, out / "cache"))))
        reports = run_phases(Job(options, folder, manifest, out, kept, words, max_steps, writers, progress))
        if parallel.is_first():
            runs.write([out])
        return {"model": str(out / "model"), "phases": reports}


def run_phases(job: Job) -> dict[str, Any]:
    """All phases that are not finished yet, in turn; returns what each reports."""
    options = job.options
    reports = {phase.name: job.out / phase.name / "phase.json" for phase in options.phases}
    finished = parallel.of_first([file.exists() for file in reports.values()])
    for phase, losses, is_finished in zip(options.phases, options.losses, finished, strict=True):
        if not is_finished:
            look_ahead(job, phase, losses)
    for number, (name, file) in enumerate(reports.items()):
        if finished[number]:
            standing.check_unchanged(job, name, standing.read_report(file)["made_from"], standing.vocabulary(job))
            continue
        with policy.limits_named(name, partial(memory_mend, job, options.phases[number])):
            run_phase(job, number)
    return {name: standing.read_report(file) for name, file in reports.items()}


def memory_mend(job: Job, phase: Phase) -> str:
    """What to do where a phase does not fit the device: what it may go on with, and what makes it another run."""
    savers = {
        f"max_tokens below {phase.max_tokens:,}": True,
        'activation_checkpointing = "full"': phase.activation_checkpointing != "full",
        "cpu_offload = true": policy.own_device().type == "cuda" and phase.lora is None and not phase.cpu_offload,
        'reference = "cached"': phase.reference == "live" and phase.reference_sync is None and not phase.stream,
    }
    changers = {'dtype = "bfloat16"': phase.dtype == "float32", "lora": phase.lora is None}
    may, must = ([name for name, helps in names.items() if helps] for names in (savers, changers))
    anew = f" {' and '.join(must)} save more, and change the result: with these, choose another --out." if must else ""
    how = "go on with --resume" if has_metrics(job.out) else "start it again"
    return (
        f"In [[train]] {phase.name}, set {' or '.join(may)}, which decide memory and time alone, and {how}.{anew} "
        "--dry-run estimates what each takes."
    )


def look_ahead(job: Job, phase: Phase, losses: list[Weighted]) -> None:
    """What a phase would end for at once is said before the first one begins, which may take days."""
    of_phase(phase, losses)
    open_samples(job, phase)
    learner.need(phase)


def run_phase(job: Job, number: int) -> None:
    """One phase from its start, or from its newest checkpoint, to its exported model and `phase.json`."""
    phase, losses = job.options.phases[number], job.options.losses[number]
    objective = of_phase(phase, losses)
    taken = open_samples(job, phase)
    start = start_of(job, number)
    train_set, test_set = open_splits(job, phase, objective, start)
    train_set, order = make_plan(job, phase, losses, train_set)
    steps = min(limit for limit in (order.steps, phase.max_steps, job.max_steps) if limit is not None)
    tested = None if test_set is None else Tested.of(objective, test_set.whole)
    objective = objective.on(train_set.examples, "train")
    ready = learner.ready(job, phase, start)
    made_from = standing.made_from(job, phase, start, train_set, test_set)
    state = standing.of(job, number, made_from)
    # All that can be found wrong was looked at before this, since the reference takes long.
    torch.manual_seed(phase.seed)
    prompts = order.prompts_until(steps)
    learned = learner.with_reference(job, phase, objective, ready, train_set, test_set, prompts)
    now, moving = learned.policy, learned.moving
    optimizer = optimizers.make(now, phase.optimizer, weight_decay=phase.weight_decay, betas=phase.betas, eps=phase.eps)
    if state["step"]:
        checkpoint.restore(job.out / phase.name / "checkpoints", now, optimizer, moving)
        job.progress.note(standing.goes_on(phase, state, steps))
    standing.write_begun(job, phase.name, steps, state, now.device)
    loop = Loop(
        job=job,
        phase=phase,
        objective=objective,
        policy=now,
        optimizer=optimizer,
        train_set=train_set,
        order=order,
        steps=steps,
        reference=learned.reference,
        tested=tested and replace(tested, reference_logps=learned.of_test),
        log=open_log(job, phase, state),
        samples=taken,
        slices=slices.begun(train_set.examples, objective.names, state.get("slices")),
        memory=recalled(state),
        moving=moving,
    )
    finish(loop, number, run_loop(loop, state))


def open_samples(job: Job, phase: Phase) -> Samples | None:
    """What takes the samples of a phase, if it asks for any."""
    if phase.samples is None:
        return None
    options = SampleOptions(**phase.samples)
    return Samples(job.out, phase.name, options, samples.choose(options, job.data, job.manifest), job.tokenizer)


def start_of(job: Job, number: int) -> Any:
    """The model that a phase starts from, exactly as it was before the phase, also when resuming."""
    model, phase = job.options.model, job.options.phases[number]
    if number:
        before = job.out / job.options.phases[number - 1].name / "model"
        if (damaged := files.damaged(before)) is not None:
            raise TrainError(f"{damaged}: damaged. {standing.FINISH_AGAIN}")
        start = policy.load(before, trust_remote_code=model.trust_remote_code)
    elif model.config is not None:
        start = policy.create(model.config, job.tokenizer, seed=model.seed)
    else:
        start = policy.load(job.options.located(model.path or ""), trust_remote_code=model.trust_remote_code)
    if phase.lora is not None:
        adapters.prepare(start, Lora(**phase.lora), getattr(torch, phase.dtype))
    return start


def open_log(job: Job, phase: Phase, state: dict[str, Any]) -> metrics.Log | metrics.NoLog:
    """The log of the phase, cut back to where its checkpoint was written; the first rank keeps it."""
    if not parallel.is_first():
        return metrics.NoLog()
    return metrics.Log(
        job.out,
        phase.name,
        length=state["metrics_bytes"],
        first_step=state["step"] + 1,
        alarms=Alarms(**phase.alarms or {}),
        sinks=job.sinks,
        note=job.progress.note,
    )


def run_loop(loop: Loop, state: dict[str, Any]) -> int:
    """All steps after those of `state`; returns the length of the log."""
    examples, order = loop.train_set.examples, loop.order
    with closing(loop.log), supplied(examples, lambda: order.shards_needed(state["step"], loop.steps)):
        if loop.samples is not None:
            loop.samples.cut(state["step"] or -1)
        run_steps(loop, state)
        written = loop.log.length()
    if loop.train_set.store.counts and loop.phase.stream:  # none, where all steps were done before
        loop.job.progress.note(f"{loop.phase.name}, {loop.train_set.store.summary}")
    return written


def finish(loop: Loop, number: int, metrics_bytes: int) -> None:
    """Export the model of the phase, and then say in `phase.json` that it is finished."""
    job, name = loop.job, loop.phase.name
    weights = export.gathered(loop.policy)
    if parallel.is_first():
        report = report_of(loop, metrics_bytes)
        before = [phase.name for phase in job.options.phases[:number]]
        reports = {phase: standing.read_report(job.out / phase / "phase.json") for phase in before} | {name: report}
        merge = loop.phase.lora is None or loop.phase.lora["merge"]
        card = export.model_card(job.options, job.manifest.data_hash, reports, __version__, merge=merge)
        is_last = number == len(job.options.phases) - 1
        target = job.out / "model" if is_last else job.out / name / "model"
        export.export(loop.policy, job.tokenizer, target, card, merge=merge, weights=weights)
        write_text_atomically(job.out / name / "phase.json", json.dumps(report, indent=1) + "\n")
    parallel.wait()


def report_of(loop: Loop, metrics_bytes: int) -> dict[str, Any]:
    """What `phase.json` says of a finished phase; `metrics_bytes` is the length of the log at its end."""
    lines = metrics.read(loop.job.out, loop.phase.name)
    evaluations = [line for line in lines if "eval_loss" in line]
    return {
        "steps": max(line["step"] for line in lines),
        "metrics_bytes": metrics_bytes,
        "made_from": standing.vocabulary(loop.job),
        "tokens": loop.train_set.store.counts,
        "epochs": [loop.order.account(epoch) for epoch in range(loop.phase.epochs)],
        "last_step": next((line for line in reversed(lines) if "loss" in line), None),
        "eval_before": evaluations[0] if evaluations else None,
        "eval_after": evaluations[-1] if evaluations else None,
    }
