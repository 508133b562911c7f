"""What a pipeline file may say of training, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefkit.config import load_pipeline
from prefkit.errors import UsageError
from prefkit.train.options import Phase, check, warmup_steps


def pipeline(folder: Path, text: str):
    (folder / "p.toml").write_text(text)
    return load_pipeline(str(folder / "p.toml"))


RANDOM = """
[model]
config = { model_type = "llama" }
tokenizer = { vocab_size = 300 }
[[train]]
objective = "sigmoid"
"""


def test_a_model_from_the_command_line_brings_its_own_tokenizer(tmp_path: Path) -> None:
    checked = check(pipeline(tmp_path, RANDOM), model="some/model")
    assert (checked.model.path, checked.model.config, checked.model.tokenizer) == ("some/model", None, None)
    assert isinstance(check(pipeline(tmp_path, RANDOM)).model.tokenizer, dict)


def test_a_new_tokenizer_fits_no_trained_weights(tmp_path: Path) -> None:
    text = RANDOM.replace('config = { model_type = "llama" }', 'path = "some/model"')
    with pytest.raises(UsageError, match="trained anew"):
        check(pipeline(tmp_path, text))


@pytest.mark.parametrize("option", ["warmup = 1.5", "seed = -1", "learning_rate = inf", "learning_rate = 0"])
def test_values_that_cannot_be(tmp_path: Path, option: str) -> None:
    with pytest.raises(UsageError, match=option.split()[0]):
        check(pipeline(tmp_path, f"{RANDOM}{option}\n"))


@pytest.mark.parametrize(("warmup", "steps", "expected"), [(0.1, 100, 10), (0.1, 1, 0), (50, 9, 8), (0, 5, 0)])
def test_the_warm_up_leaves_a_step_at_the_peak(warmup: float, steps: int, expected: int) -> None:
    assert warmup_steps(Phase(objective="sigmoid", warmup=warmup), steps) == expected


def losses(folder: Path, body: str) -> str:
    name = f"losses_{abs(hash(body))}"
    (folder / f"{name}.py").write_text(
        "from prefkit.train.losses import LossOutput\n"
        "def mine(policy, reference):\n"
        "    d = policy.chosen_P - reference.chosen_P - policy.rejected_P + reference.rejected_P\n"
        f"    {body}\n"
    )
    return f"{name}:mine"


@pytest.mark.parametrize(
    ("body", "fits"),
    [
        ("return LossOutput((1 - d) ** 2, d, d)", True),
        ("return LossOutput((1 - d - d.sum()) ** 2, d, d)", False),
        ("return LossOutput(((1 - d) ** 2).mean(), d, d)", False),
        ("return LossOutput(d / undefined, d, d)", False),
    ],
)
def test_losses_from_outside_judge_each_pair_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, fits: bool
) -> None:
    from prefkit.resolve import Call
    from prefkit.train.objective import Preference

    address = losses(tmp_path, body)
    monkeypatch.syspath_prepend(str(tmp_path))
    if fits:
        assert Preference.of(Call(address, {}), 0.0).takes_reference
    else:
        with pytest.raises(UsageError, match="mine"):
            Preference.of(Call(address, {}), 0.0)
