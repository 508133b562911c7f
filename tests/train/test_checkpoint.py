"""Checkpoints: all of the state, at once or not at all, and only the last few."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from prefkit.errors import TrainError
from prefkit.train import checkpoint, optimizer, policy
from prefkit.train.optimizer import eight_bit
from tests.train.conftest import make_model


def ready(name="Llama"):
    now = policy.ready(make_model(name), dtype="float32")
    return now, torch.optim.AdamW(now.trained().values(), lr=1e-2, fused=True)


def step(now, optimizer):
    """A step whose gradient depends on the weights and on the random state."""
    loss = sum((p * torch.randn_like(p)).square().sum() for p in now.trained().values())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("name", ["Llama", "Qwen3"])  # Qwen3 with tied embeddings
def test_goes_on_bitwise(tmp_path, name):
    now, optimizer = ready(name)
    torch.manual_seed(3)
    step(now, optimizer)
    checkpoint.save(tmp_path, 1, now, optimizer, {"num_tokens": 7}, keep=2)
    step(now, optimizer)
    expected = {key: value.clone() for key, value in now.trained().items()}
    torch.manual_seed(9)
    now, optimizer = ready(name)
    assert checkpoint.latest_state(tmp_path) == {"step": 1, "num_tokens": 7}
    checkpoint.restore(tmp_path, now, optimizer)
    step(now, optimizer)
    for key, value in now.trained().items():
        assert torch.equal(value, expected[key])


def test_a_run_that_began_without_a_gpu_goes_on_with_one(tmp_path, monkeypatch):
    """Its checkpoint has no random state of CUDA, so none is put back; one that has is."""
    put_back = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", put_back.append)
    monkeypatch.setattr(torch.cuda, "get_rng_state", torch.get_rng_state)
    now, optimizer = ready()
    on_gpu = replace(now, device=torch.device("cuda"))
    step(now, optimizer)
    checkpoint.save(tmp_path, 1, now, optimizer, {}, keep=2)
    checkpoint.restore(tmp_path, on_gpu, optimizer)
    assert put_back == []
    checkpoint.save(tmp_path, 2, on_gpu, optimizer, {}, keep=2)
    checkpoint.restore(tmp_path, on_gpu, optimizer)
    assert len(put_back) == 1


@pytest.mark.skipif(not find_spec("bitsandbytes"), reason="needs bitsandbytes")
def test_moments_in_8_bits_go_on_bitwise(tmp_path):
    """Through bitsandbytes' kernels, on the device that there is; the option itself wants CUDA for their speed."""

    def ready():
        now = policy.ready(make_model("Llama", hidden_size=64, intermediate_size=128), dtype="float32")
        groups = [{"params": list(now.trained().values()), "weight_decay": 0.01}]
        optimizer = eight_bit(groups, betas=(0.9, 0.99), eps=1e-8)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
        return now, optimizer

    now, optimizer = ready()
    torch.manual_seed(3)
    step(now, optimizer)
    assert {state["state1"].dtype for state in optimizer.state.values()} == {torch.uint8, torch.float32}
    checkpoint.save(tmp_path, 1, now, optimizer, {}, keep=2)
    step(now, optimizer)
    expected = {key: value.clone() for key, value in now.trained().items()}
    now, optimizer = ready()
    checkpoint.restore(tmp_path, now, optimizer)
    step(now, optimizer)
    for key, value in now.trained().items():
        assert torch.equal(value, expected[key])


def test_moments_in_8_bits_need_cuda():
    now, _ = ready()
    how = {"weight_decay": 0.0, "betas": (0.9, 0.999), "eps": 1e-8}
    assert type(optimizer.make(now, "adamw", **how)) is torch.optim.AdamW
    with pytest.raises(TrainError, match='optimizer = "adamw_8bit" needs a CUDA device, and this machine has none'):
        optimizer.make(replace(now, device=torch.device("cpu")), "adamw_8bit", **how)
    on_gpu = replace(now, device=torch.device("cuda"))
    with pytest.raises(TrainError, match="weights that are dealt to ranks"):
        optimizer.make(replace(on_gpu, sharded=True), "adamw_8bit", **how)


def test_keeps_the_last_ones(tmp_path):
    now, optimizer = ready()
    for number in (1, 2, 10, 200):
        checkpoint.save(tmp_path, number, now, optimizer, {}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000200"]
    assert checkpoint.latest_state(tmp_path)["step"] == 200


def test_unfinished_one_is_not_there(tmp_path, monkeypatch):
    now, optimizer = ready()
    checkpoint.save(tmp_path, 1, now, optimizer, {}, keep=2)

    def disk_full(*_arguments):
        raise OSError(28, "No space left on device")

    whole = checkpoint.save_file
    monkeypatch.setattr(checkpoint, "save_file", disk_full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, 2, now, optimizer, {}, keep=2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    monkeypatch.setattr(checkpoint, "save_file", whole)
    # What kill -9 leaves behind in the middle of writing is ignored, and replaced.
    (tmp_path / "step-00000002.tmp").mkdir()
    (tmp_path / "step-00000002.tmp" / "weights.safetensors").write_bytes(b"half")
    assert checkpoint.latest_state(tmp_path)["step"] == 1
    checkpoint.save(tmp_path, 2, now, optimizer, {}, keep=2)
    assert checkpoint.latest_state(tmp_path)["step"] == 2


def test_no_checkpoint(tmp_path):
    assert checkpoint.latest_state(tmp_path / "nothing") is None


@pytest.mark.parametrize("damage", ["cut", "flip"])
@pytest.mark.parametrize("file", ["state.json", "weights.safetensors", "optimizer.safetensors", "SHA256SUMS"])
def test_damaged_one_is_put_aside_aloud(tmp_path, file, damage):
    now, optimizer = ready()
    for number in (1, 2):
        step(now, optimizer)
        checkpoint.save(tmp_path, number, now, optimizer, {}, keep=2)
    (tmp_path / "step-00000001.old.tmp").mkdir()  # a kill -9 while it was deleted
    path = tmp_path / "step-00000002" / file
    whole = path.read_bytes()
    middle = len(whole) * 2 // 3  # of the tensors, for which a header says nothing
    path.write_bytes(
        whole[:9] if damage == "cut" else whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    )
    notes = []
    checkpoint.settle(tmp_path, notes.append)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged-step-00000002", "step-00000001"]
    assert len(notes) == 1
    # A flipped bit in the list of sums shows as damage of the file that the line is about.
    assert f"{'' if file == 'SHA256SUMS' else file}: damaged" in notes[0]
    checkpoint.restore(tmp_path, now, optimizer)
    (tmp_path / "step-00000001" / file).unlink()
    with pytest.raises(TrainError, match=f"{file}: damaged, and no earlier"):
        checkpoint.settle(tmp_path, notes.append)
