"""What a pipeline file may say of training, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefkit import resolve
from prefkit.config import load_pipeline
from prefkit.errors import UsageError
from prefkit.train.options import OF_TRL, Phase, check, warmup_steps


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


@pytest.mark.parametrize(
    "option",
    [
        "warmup = 1.5",
        "seed = -1",
        "learning_rate = inf",
        "learning_rate = 0",
        "warmup = inf",
        "beta = inf",
        "eps = nan",
        "weight_decay = inf",
        "lora = { alpha = inf }",
        "source_weights = { a = inf }",
    ],
)
def test_values_that_cannot_be(tmp_path: Path, option: str) -> None:
    with pytest.raises(UsageError, match=option.split()[0]):
        check(pipeline(tmp_path, f"{RANDOM}{option}\n"))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (
            'activation_checkpointing = "ful"',
            "option activation_checkpointing: Input should be 'none', 'matmuls' or "
            "'full' or a valid number, not 'ful'.",
        ),
        ("activation_checkpointing = 0", "'full' or greater than 0, not 0."),
        ("activation_checkpointing = nan", "'full' or a finite number, not nan."),
        ("samples = { prompts = [7] }", "samples: option prompts.0: Input should be a valid string, not 7."),
        ("source_caps = { a = 0 }", "option source_caps.a: Input should be greater than or equal to 1, not 0."),
        ("lora = true", "option lora: Input should be a table, not True."),
        ("betas = [0.9, 1.0]", "option betas.1: Input should be less than 1, not 1.0."),
    ],
)
def test_what_an_option_may_be_is_said_in_all_its_kinds(tmp_path: Path, option: str, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        check(pipeline(tmp_path, f"{RANDOM}{option}\n"))
    assert str(refused.value).endswith(words)


@pytest.mark.parametrize("name", OF_TRL)
def test_names_of_trl_are_told_what_they_are_called_here(tmp_path: Path, name: str) -> None:
    assert name not in resolve.options_of(Phase)
    assert OF_TRL[name] in resolve.options_of(Phase)
    with pytest.raises(UsageError) as refused:
        check(pipeline(tmp_path, f"{RANDOM}{name} = 1\n"))
    assert str(refused.value).endswith(f'objective "sigmoid" has no option "{name}". Here it is "{OF_TRL[name]}".')


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (RANDOM.replace('objective = "sigmoid"', "objective = 3"), "objective must be a name or a list of losses"),
        (RANDOM.replace('objective = "sigmoid"', "beta = 0.1"), "objective is missing, for example"),
        (RANDOM.replace('"sigmoid"', '"SFT"'), 'no objective "SFT". Did you mean "sft"?'),
        (RANDOM.replace("[[train]]", "[train]"), "[[train]] must be a list of tables: write each with two brackets"),
        (RANDOM.replace("[model]", "[[model]]"), "there is one [model], so write it with one bracket at each side."),
        (
            f"{RANDOM}rpo_alpha = 1\n".replace('"sigmoid"', '"sft"'),
            'objective "sft" has no option "rpo_alpha". Known: ',
        ),
    ],
)
def test_what_newcomers_write_is_met_with_the_mend(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        check(pipeline(tmp_path, text))
    assert words in str(refused.value)


def test_the_weight_of_a_loss_is_finite(tmp_path: Path) -> None:
    text = RANDOM.replace('"sigmoid"', '[{ use = "sigmoid", weight = inf }]')
    with pytest.raises(UsageError, match="weight must be a number above 0, not inf"):
        check(pipeline(tmp_path, text))


ASKED_FOR = """
samples = { every = 5 }
eval_every = 5
lora = { r = 4 }
max_steps = 5
ld_alpha = 0.5
sources = ["a"]
langs = ["en"]
min_margin = 1.0
source_weights = { a = 2.0 }
lang_weights = { en = 2.0 }
source_caps = 5
lang_caps = { en = 5 }
curriculum = "hard_first"
"""


def test_false_switches_off_what_is_off_by_itself(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(RANDOM + ASKED_FOR)
    names = [line.split()[0] for line in ASKED_FOR.strip().splitlines()]
    (plain,), (asked,) = (check(pipeline(tmp_path, text)).phases for text in (RANDOM, RANDOM + ASKED_FOR))
    assert all(getattr(asked, name) != getattr(plain, name) for name in names)
    off = load_pipeline(tmp_path / "p.toml", [f"train.0.{name}=false" for name in names])
    assert check(off).phases == [plain]


@pytest.mark.parametrize("option", ["learning_rate", "alarms", "max_tokens", "dtype"])
def test_false_is_no_value_of_what_is_always_there(tmp_path: Path, option: str) -> None:
    with pytest.raises(UsageError, match=f"option {option}"):
        check(pipeline(tmp_path, f"{RANDOM}{option} = false\n"))


def test_false_is_refused_where_the_option_has_no_effect(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='"curriculum" has no effect'):
        check(pipeline(tmp_path, RANDOM.replace("sigmoid", "sft") + "curriculum = false\n"))


@pytest.mark.parametrize(("warmup", "steps", "expected"), [(0.1, 100, 10), (0.1, 1, 0), (50, 9, 8), (0, 5, 0)])
def test_the_warm_up_leaves_a_step_at_the_peak(warmup: float, steps: int, expected: int) -> None:
    assert warmup_steps(Phase(objective="sigmoid", warmup=warmup), steps) == expected


def losses(folder: Path, body: str, returns: str = "LossOutput", also: str = "") -> str:
    name = f"losses_{abs(hash((body, returns, also)))}"
    (folder / f"{name}.py").write_text(
        "from prefkit.train.losses import LossOutput, StepOutput\n"
        f"def mine(policy, reference{also}) -> {returns}:\n"
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
    from prefkit.train.terms import Weighted

    address = losses(tmp_path, body)
    monkeypatch.syspath_prepend(str(tmp_path))
    if fits:
        assert Preference.of([Weighted(1.0, Call(address, {}))]).takes_reference
    else:
        with pytest.raises(UsageError, match="mine"):
            Preference.of([Weighted(1.0, Call(address, {}))])


def test_a_loss_from_outside_may_look_at_the_whole_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefkit.resolve import Call
    from prefkit.train.objective import Preference
    from prefkit.train.terms import Weighted

    monkeypatch.syspath_prepend(str(tmp_path))
    address = losses(tmp_path, "return StepOutput((1 - d - d.mean()) ** 2, d, d)", "StepOutput")
    assert Preference.of([Weighted(1.0, Call(address, {}))]).whole_step
    address = losses(tmp_path, "return LossOutput(d, d, d)", also=", weather")
    with pytest.raises(UsageError, match="asks for weather; a loss is given policy, reference, margins_P"):
        Preference.of([Weighted(1.0, Call(address, {}))])
    for name in ("mismatched_M", "state"):  # a bin has not all of the one, and the other is kept between steps
        address = losses(tmp_path, "return LossOutput(d, d, d)", also=f", {name}")
        with pytest.raises(UsageError, match=f"asks for {name}, which only a loss of the whole step is given"):
            Preference.of([Weighted(1.0, Call(address, {}))])
    address = losses(tmp_path, "return LossOutput(d, d, d)", returns="Unheard")
    with pytest.raises(UsageError, match="Unheard"):
        check(pipeline(tmp_path, RANDOM.replace("sigmoid", address)))


def test_a_sum_of_losses(tmp_path: Path) -> None:
    entries = '[{ use = "sigmoid", weight = 0.8, label_smoothing = 0.1 }, { use = "bco_pair" }]'
    checked = check(pipeline(tmp_path, RANDOM.replace('"sigmoid"', entries) + "sft_weight = 1.0\n"))
    (losses_of_phase,) = checked.losses
    assert [(term.weight, term.call.name) for term in losses_of_phase] == [(0.8, "sigmoid"), (1.0, "bco_pair")]
    assert checked.phases[0].name == "sigmoid-bco_pair"
    (shown,) = checked.table()["train"]
    assert shown["objective"][1] == {"use": "bco_pair", "weight": 1.0, "beta": 0.1}
    assert shown["objective"][0]["label_smoothing"] == 0.1
    assert "beta" not in shown


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("[]", "names no loss"),
        ('["sigmoid", "hinge"]', 'write each loss of a sum as { use = "sigmoid"'),
        ('[{ use = "sigmoid", weight = 0 }]', "weight must be a number above 0, not 0"),
        ('[{ use = "sigmoid", gama = 1.0 }]', 'unknown option "gama"'),
        ('[{ use = "sft" }]', "write sft_weight"),
        ('"plackett_luc"', 'Did you mean "plackett_luce"'),
        ('[{ use = "sigmoid" }]\nbeta = 0.2', 'a sum of losses has no option "beta"'),
        ('"hinge"\nlabel_smoothing = 0.1', 'objective "hinge" has no option "label_smoothing"'),
        ('"nca_pair"\nf_divergence = "forward_kl"', 'has no option "f_divergence"'),
        ('"sigmoid"\nf_divergence = "hellinger"', "f_divergence"),
        ('"sigmoid"\nf_divergence = nan', "f_divergence"),
        ('"exo_pair"\nlabel_smoothing = 0.0', "label_smoothing"),
        ('"orpo"\nreference = "live"', 'has no effect on objective "orpo": its loss takes none'),
        ('"aot"\nwpo = true', "a loss of the whole step has no loss of a single pair"),
        ('"simpo"\nld_alpha = 0.5', "defined for losses of pairs with a reference"),
        ('"kto"\nld_alpha = 0.5', "defined for losses of pairs with a reference"),
        ('"plackett_luce"\nld_alpha = 0.5', "defined for losses of pairs with a reference"),
        ('"sigmoid"\nld_alpha = 1.0', "ld_alpha"),
        ('"sigmoid"\nreference_sync = { every = 2 }', 'needs reference = "live", and no lora'),
        ('"sigmoid"\nreference = "live"\nlora = { r = 4 }\nreference_sync = { every = 2 }', "and no lora"),
        ('"sigmoid"\nreference = "live"\nreference_sync = { alpha = 0.0 }', "reference_sync: option alpha"),
        ('"simpo"\nreference_sync = { every = 2 }', "its loss takes none"),
        ('"ipo"\nlength_normalisation = true', "no effect on ipo, which has its own"),
        ('[{ use = "hinge" }, { use = "orpo" }]\nlength_normalisation = true', "no effect on orpo"),
        ('"kto"\nlength_normalisation = true', "not defined for kto"),
        ('"sigmoid"\nmax_length_policy = "truncate"', "truncate_completion"),
        ('"sft"\nlength_normalisation = true', "has no effect on objective"),
        ('"sft"\nwpo = true', 'option "wpo" has no effect on objective "sft"'),
        ('[{ use = "simpo" }, { use = "cpo" }]\nreference = "live"', "has no effect on a sum of losses"),
    ],
)
def test_what_a_loss_does_not_define_is_refused(tmp_path: Path, objective: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check(pipeline(tmp_path, RANDOM.replace('"sigmoid"', objective)))
    assert message in str(caught.value)


@pytest.mark.parametrize("objective", ["sigmoid", "hinge", "robust", "nca_pair", "apo_zero", "odpo", "aot", "bco_pair"])
def test_losses_of_sums_can_be_normalised_by_length(tmp_path: Path, objective: str) -> None:
    text = RANDOM.replace("sigmoid", objective) + "length_normalisation = true\n"
    assert check(pipeline(tmp_path, text)).phases[0].length_normalisation


def test_a_loss_of_somebody_else_that_fails_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "fails_on_a_pair.py").write_text("def loss(policy, *, beta: float = 1.0):\n    return policy.chosen\n")
    text = RANDOM.replace("sigmoid", "fails_on_a_pair:loss") + "length_normalisation = true\n"
    with pytest.raises(UsageError, match=r"fails_on_a_pair:loss failed on a pair: AttributeError: .* has no attribute"):
        check(pipeline(tmp_path, text))
