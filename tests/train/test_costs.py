"""A run goes on with other options that decide its cost alone, as if it had always had them; and with no others."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prefkit import runs
from prefkit.errors import TrainError, UsageError
from prefkit.runs.record import changes
from prefkit.train import attention, metrics, policy, run
from prefkit.train.options import COSTS
from tests.train.datasets_for_tests import TINY, pipeline, toy_labels, toy_pairs, write_data_set
from tests.train.ranks_for_tests import on_ranks
from tests.train.test_run import KillAt, Killed, Noting

DPO = {"name": "dpo", "objective": "sigmoid", "learning_rate": 1e-3, "pairs_per_step": 20, "checkpoint_every": 1}
SFT = {"name": "dpo", "objective": "sft", "learning_rate": 1e-3, "pairs_per_step": 20, "checkpoint_every": 1}
SMALL = 90  # tokens: a step has several bins, and some prompts are split
PHASES = {
    "sigmoid": {**DPO, "epochs": 2},
    "sft": {**SFT, "epochs": 2},
    "bco_pair": {**DPO, "objective": "bco_pair", "epochs": 2},  # of the whole step, and remembers those before
    "reference_sync": {**DPO, "epochs": 2, "reference": "live", "reference_sync": {"every": 2, "alpha": 0.5}},
    "kto": {**DPO, "objective": "kto", "pairs_per_step": 12},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = toy_pairs(24, answers=3)
    write_data_set(folder / "pairs", rows[:54], rows[54:], shards=2)
    write_data_set(folder / "labels", toy_labels(24), kind="labels")
    return folder


def train(data: Path, out: Path, phase: dict, *, model: dict | None = None, **options) -> list[dict]:
    """The lines of training of a run that has a cache of its own, or it would find what another one computed."""
    of = data / ("labels" if phase["objective"] == "kto" else "pairs")
    table = pipeline(data, phase, config=model or TINY, tokenizer={"vocab_size": 400})
    run.train(table, data=of, out=out, cache=out.parent / f"{out.name}-cache", **options)
    return [line for line in metrics.read(out) if "loss" in line]


def killed(data: Path, out: Path, phase: dict, step: int, **options) -> None:
    """A run that dies when the metrics of a step are written, and so goes on from the checkpoint before."""
    with pytest.raises(Killed):
        train(data, out, phase, progress=KillAt(step), **options)


def apart(some: Path, others: Path) -> dict[str, float]:
    """How far two runs are from each other, at most: losses, gradients' norms (relative), weights."""
    ours, theirs = ([line for line in metrics.read(out) if "loss" in line] for out in (some, others))
    assert [(line["step"], line["epoch"], line["pairs"]) for line in ours] == [
        (line["step"], line["epoch"], line["pairs"]) for line in theirs
    ]
    loss, norm = (
        np.array([[line[name] for line in lines] for lines in (ours, theirs)]) for name in ("loss", "grad_norm")
    )
    weights, other = (load_file(out / "model" / "model.safetensors") for out in (some, others))
    far = max((tensor - other[name]).abs().max().item() for name, tensor in weights.items())
    return {"loss": abs(loss[0] - loss[1]).max(), "norm": abs(norm[0] / norm[1] - 1).max(), "weights": far}


@pytest.fixture(scope="module")
def original(data, tmp_path_factory):
    """Runs that nothing interrupts, by phase and max_tokens."""
    folder, made = tmp_path_factory.mktemp("original"), {}

    def of(name: str, max_tokens: int) -> Path:
        if (name, max_tokens) not in made:
            made[name, max_tokens] = folder / f"{name}-{max_tokens}"
            train(data, made[name, max_tokens], {**PHASES[name], "max_tokens": max_tokens})
        return made[name, max_tokens]

    return of


@pytest.mark.parametrize("name", PHASES)
@pytest.mark.parametrize(("before", "after", "step"), [(8192, SMALL, 2), (SMALL, 8192, 3)])
def test_other_bins_from_any_step_on_leave_the_same_run(data, original, tmp_path, name, before, after, step):
    """As near to the run with the old bins throughout, and to that with the new ones, as these are to each other."""
    phase = PHASES[name]
    killed(data, tmp_path / "r", {**phase, "max_tokens": before}, step)
    resumed = train(data, tmp_path / "r", {**phase, "max_tokens": after}, resume=True)
    efficiency = [line["packing_efficiency"] for line in resumed]
    whole, fresh = original(name, before), original(name, after)
    as_before = [line["packing_efficiency"] for line in metrics.read(whole) if "loss" in line]
    assert efficiency[: step - 1] == as_before[: step - 1]
    assert np.all(np.array(efficiency[step - 1 :]) != np.array(as_before[step - 1 :])), "the bins are others"
    for far in (apart(tmp_path / "r", whole), apart(tmp_path / "r", fresh), apart(whole, fresh)):
        assert far["loss"] < 2e-6 and far["norm"] < 1e-4 and far["weights"] < 2e-5, far


def test_steps_before_are_bit_by_bit_what_they_were(data, original, tmp_path):
    killed(data, tmp_path / "r", {**PHASES["sigmoid"], "max_tokens": 8192}, 4)
    resumed = train(data, tmp_path / "r", {**PHASES["sigmoid"], "max_tokens": SMALL}, resume=True)
    whole = [line for line in metrics.read(original("sigmoid", 8192)) if "loss" in line]
    assert [line["loss"] for line in resumed[:3]] == [line["loss"] for line in whole[:3]]


def test_the_test_would_see_a_position_that_is_kept_in_bins(data, original, tmp_path):
    """A run whose data come in another order, as they would after a resume at a wrong place, is far away."""
    train(data, tmp_path / "r", {**PHASES["sigmoid"], "seed": 1})
    assert apart(tmp_path / "r", original("sigmoid", 8192))["loss"] > 1e-3


@pytest.mark.parametrize(
    "other",
    [
        {"activation_checkpointing": "full"},
        {"activation_checkpointing": 0.02},
        {"activation_checkpointing": "matmuls", "keep_checkpoints": 1, "checkpoint_every": 3},
        {"reference": "live"},
    ],
)
def test_memory_for_time_leaves_the_same_run(data, original, tmp_path, other):
    phase = {**PHASES["sigmoid"], "max_tokens": 8192}
    killed(data, tmp_path / "r", phase, 3)
    train(data, tmp_path / "r", {**phase, **other}, resume=True)
    far = apart(tmp_path / "r", original("sigmoid", 8192))
    if "reference" in other:  # in other bins than when it was computed beforehand
        assert far["loss"] < 2e-6 and far["weights"] < 2e-5
    else:
        assert far == {"loss": 0, "norm": 0, "weights": 0}


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False)])
def test_layers_compiled_or_not_leave_the_same_run(data, original, tmp_path, monkeypatch, before, after):
    """Layers are traced as the compiler traces them, and the graphs run as they are, which takes seconds."""
    real, compiled = torch.compile, []

    def traced(function, **options):
        compiled.append(function)
        return real(function, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", traced)
    phase = {**PHASES["sigmoid"], "max_tokens": 8192}
    torch._dynamo.reset()
    killed(data, tmp_path / "r", {**phase, "compile": before}, 3)
    assert len(compiled) == TINY["num_hidden_layers"] * before
    train(data, tmp_path / "r", {**phase, "compile": after}, resume=True)
    assert len(compiled) == TINY["num_hidden_layers"], "of the other part none"
    torch._dynamo.reset()
    assert [entry["compile"] for entry in ran_with(tmp_path / "r")] == [before, after]
    far = apart(tmp_path / "r", original("sigmoid", 8192))
    assert far["loss"] < 2e-6 and far["norm"] < 1e-4 and far["weights"] < 2e-5, far


def test_another_kernel_of_attention_leaves_the_same_run(data, original, tmp_path, monkeypatch):
    """Without CUDA all kernels are torch's own, so the bits are the same; which one is asked for is another."""
    phase, choose, chosen = {**PHASES["sigmoid"], "max_tokens": 8192}, attention.choose, []

    def noted(kernel, device, dtype):
        chosen.append(kernel)
        return choose(kernel, device, dtype)

    monkeypatch.setattr(attention, "choose", noted)
    killed(data, tmp_path / "r", phase, 3)
    assert {*chosen} == {"auto"}
    chosen.clear()
    train(data, tmp_path / "r", {**phase, "attention": "sdpa"}, resume=True)
    assert {*chosen} == {"sdpa"}
    assert [entry["attention"] for entry in ran_with(tmp_path / "r")] == ["auto", "sdpa"]
    assert apart(tmp_path / "r", original("sigmoid", 8192)) == {"loss": 0, "norm": 0, "weights": 0}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(("before", "after"), [("varlen", "sdpa"), ("sdpa", "varlen")])
def test_another_kernel_on_cuda_leaves_nearly_the_same_run(data, tmp_path, before, after):
    """In bfloat16, as the kernels are to each other."""
    phase = {**PHASES["sigmoid"], "dtype": "bfloat16"}
    for kernel in (before, after):
        train(data, tmp_path / kernel, {**phase, "attention": kernel})
    killed(data, tmp_path / "r", {**phase, "attention": before}, 3)
    train(data, tmp_path / "r", {**phase, "attention": after}, resume=True)
    assert [entry["attention"] for entry in ran_with(tmp_path / "r")] == [before, after]
    for other in (before, after):
        assert apart(tmp_path / "r", tmp_path / other)["loss"] < 2e-2


def ran_with(out: Path) -> list[dict]:
    """Which steps ran with which options of cost, as the run says."""
    return json.loads((out / "dpo" / "begun.json").read_text())["ran_with"]


def test_weights_go_to_main_memory_and_come_back(data, original, tmp_path):
    """On a machine without a GPU this is the path of sharded weights in one process."""
    phase = {**PHASES["sigmoid"], "max_tokens": 8192}
    offloaded = {**phase, "cpu_offload": True}
    killed(data, tmp_path / "r", phase, 3)
    on_ranks(1, killed_or_whole, data, tmp_path / "r", offloaded, 5, said=tmp_path / "said")
    on_ranks(1, killed_or_whole, data, tmp_path / "r", phase, None, said=tmp_path / "said again")
    far = apart(tmp_path / "r", original("sigmoid", 8192))
    assert far["loss"] < 2e-6 and far["weights"] < 2e-5
    assert [(entry["from_step"], entry["cpu_offload"]) for entry in ran_with(tmp_path / "r")] == [
        (1, False),
        (3, True),
        (5, False),
    ]


def killed_or_whole(data: Path, out: Path, phase: dict, step: int | None) -> None:
    """What a process of its own does: a run is resumed, and dies at a step, if one is given."""
    if step is None:
        train(data, out, phase, resume=True)
    else:
        killed(data, out, phase, step, resume=True)


def test_which_steps_ran_with_what_is_recorded_and_reported(data, tmp_path):
    out, notes = tmp_path / "r", Noting()
    phase = {**PHASES["sigmoid"], "checkpoint_every": 2}
    killed(data, out, {**phase, "max_tokens": 8192}, 3)
    killed(data, out, {**phase, "max_tokens": 200}, 3, resume=True)  # its third step is lost
    train(data, out, {**phase, "max_tokens": SMALL, "reference": "live"}, resume=True, progress=notes)
    assert any(
        said == 'dpo goes on after step 2 of 6, with max_tokens = 90 (before: 8192), reference = "live" '
        '(before: "cached").'
        for said in notes.said
    ), notes.said
    begun = json.loads((out / "dpo" / "begun.json").read_text())
    assert [(entry["from_step"], entry["max_tokens"]) for entry in begun["ran_with"]] == [(1, 8192), (3, SMALL)]
    assert all({"from_step", *COSTS} == set(entry) for entry in begun["ran_with"])
    assert json.loads((out / "run.json").read_text())["options"]["train"][0]["max_tokens"] == SMALL
    page = runs.write([out]).read_text(encoding="utf-8")
    assert "dpo: max_tokens = 90 (before: 8192) from step 3 on, which changes memory and time alone." in page
    train(data, out, {**phase, "max_tokens": SMALL, "reference": "live"}, resume=True)  # finished: nothing to change
    assert json.loads((out / "dpo" / "begun.json").read_text()) == begun


def test_changes_are_told_from_what_ran_with_what():
    held = [(1, 1, None), (4, 2, "x"), (9, 2, None)]
    entries = [{"from_step": step, "a": a, "b": b} for step, a, b in held]
    assert list(changes(entries)) == [
        (4, "a = 2 (before: 1)"),
        (4, 'b = "x" (before: null)'),
        (9, 'b = null (before: "x")'),
    ]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"beta": 0.2}, r"options\.train\.dpo\.beta was 0\.1 and is now 0\.2: the result depends on it. Set it back"),
        ({"pairs_per_step": 6, "max_tokens": 80}, r"cannot resume, options\.train\.dpo\.pairs_per_step was 20 and is"),
        ({"seed": 3, "epochs": 1}, r"dpo\.epochs was 2 and is now 1; options\.train\.dpo\.seed was 0 and is now 3"),
        ({"shuffle_window": 1}, "shuffle_window"),
        ({"max_length": 60}, "max_length"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"lora": {"r": 2}}, "lora"),
    ],
)
def test_what_decides_the_result_does_not_change(data, tmp_path, other, words):
    killed(data, tmp_path / "r", PHASES["sigmoid"], 2)
    record = (tmp_path / "r" / "run.json").read_text()
    with pytest.raises(UsageError, match=words) as refused:
        train(data, tmp_path / "r", {**PHASES["sigmoid"], **other}, resume=True)
    assert "What may change is what decides memory and time alone: max_tokens, activation_ch" in str(refused.value)
    assert (tmp_path / "r" / "run.json").read_text() == record


def test_bins_count_for_dropout_and_for_a_router_loss(data, tmp_path):
    """There the result does depend on max_tokens, so it is refused; recomputing and an equal value are not."""
    mixture = {**TINY, "model_type": "mixtral", "num_local_experts": 4, "output_router_logits": True}
    dropping = {**DPO, "lora": {"r": 2, "dropout": 0.1}}
    for name, phase, model, words in (
        ("router", DPO, mixture, "max_tokens (a router loss is a mean over bins) of phase dpo has changed"),
        ("dropout", dropping, TINY, "max_tokens or compile (dropout falls on bins) of phase dpo has changed"),
    ):
        killed(data, tmp_path / name, phase, 2, model=model)
        with pytest.raises(TrainError) as refused:
            train(data, tmp_path / name, {**phase, "max_tokens": SMALL}, model=model, resume=True)
        assert words in str(refused.value) and "Bring it back, or choose another --out." in str(refused.value)
        train(data, tmp_path / name, {**phase, "activation_checkpointing": "full"}, model=model, resume=True)
        train(data, tmp_path / f"{name} whole", phase, model=model)
        assert apart(tmp_path / name, tmp_path / f"{name} whole") == {"loss": 0, "norm": 0, "weights": 0}


def test_too_little_memory_is_met_by_going_on_as_the_message_says(data, original, tmp_path, monkeypatch):
    whole, passes = policy.Policy.sequence_logps, iter(range(1000))

    def too_much(self, bin):
        if torch.is_grad_enabled() and bin.input_ids_1T.shape[1] > SMALL and next(passes) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(self, bin)

    monkeypatch.setattr(policy.Policy, "sequence_logps", too_much)
    phase = {**PHASES["sigmoid"], "max_tokens": 8192, "reference": "live"}
    with pytest.raises(TrainError) as caught:
        train(data, tmp_path / "r", phase)
    assert str(caught.value).startswith(
        "dpo: the device has not enough memory. In [[train]] dpo, set max_tokens below 8,192 or "
        'activation_checkpointing = "full" or reference = "cached", which decide memory and time alone, and go on with '
        '--resume. dtype = "bfloat16" and lora save more, and change the result: with these, choose another --out. '
        "--dry-run estimates what each takes. (OutOfMemoryError"
    )
    train(data, tmp_path / "r", {**phase, "max_tokens": SMALL}, resume=True)
    far = apart(tmp_path / "r", original("sigmoid", 8192))
    assert far["loss"] < 2e-6 and far["weights"] < 2e-5


def test_a_run_that_did_not_begin_for_want_of_memory_is_started_again(data, tmp_path, monkeypatch):
    def too_much(self, bin):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(policy.Policy, "sequence_logps", too_much)
    with pytest.raises(TrainError, match=r"below 4,096 or act.* which decide .* alone, and start it again\."):
        train(data, tmp_path / "r", {**DPO, "max_tokens": 4096})
    assert not (tmp_path / "r").exists()
