"""Samples: the same prompts each time, written down safely, and training does not notice them."""

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefkit.errors import TrainError, UsageError
from prefkit.train import generate, run, samples
from tests.train.datasets_for_tests import pair, pipeline, toy_pairs, write_data_set
from tests.train.test_run import DPO, SFT, KillAt, Killed, lines

TAKE = {"every": 3, "prompts": 3, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "d"
    rows = toy_pairs(24, answers=3)
    write_data_set(folder, rows[:54], rows[54:])
    return folder


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_training_does_not_notice_them(data, tmp_path, temperature):
    """With dropout, so that the random state matters to what follows; weights are the same bit by bit."""
    phase = {**DPO, "lora": {"r": 4, "dropout": 0.3}}
    run.train(pipeline(data, phase), data=data, out=tmp_path / "without")
    taken = {**phase, "samples": {**TAKE, "temperature": temperature}}
    run.train(pipeline(data, taken), data=data, out=tmp_path / "with")
    assert lines(tmp_path / "with") == lines(tmp_path / "without")
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("with", "without")]
    assert weights[0] == weights[1]


def test_before_during_and_after_in_each_phase_also_when_killed(data, tmp_path):
    phases = [{**SFT, "samples": TAKE, "max_steps": 5}, {**DPO, "checkpoint_every": 4, "samples": TAKE}]
    table = pipeline(data, *phases)
    run.train(table, data=data, out=tmp_path / "whole")
    said = samples.read(tmp_path / "whole")
    steps = [(phase, step) for phase, last in (("sft", 5), ("dpo", 9)) for step in sorted({*range(0, last, 3), last})]
    assert [(line["phase"], line["step"]) for line in said[::3]] == steps
    assert len({str(line["prompt"]) for line in said}) == 3
    for number, step in enumerate((2, 7)):
        with pytest.raises(Killed):
            run.train(table, data=data, out=tmp_path / "cut", resume=number > 0, progress=KillAt(step))
    run.train(table, data=data, out=tmp_path / "cut", resume=True)
    for name in (samples.FILE_NAME, samples.PAGE):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    model, words = (
        kind.from_pretrained(tmp_path / "whole" / "model") for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    last = said[-3:]
    assert [line["answer"] for line in last] == generate.generate(
        model, words, [line["prompt"] for line in last], max_new_tokens=6
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_the_model_s_whatever_settings_it_came_with(data, tmp_path, temperature):
    run.train(pipeline(data, {**SFT, "max_steps": 2}), data=data, out=tmp_path / "r")
    model, words = (kind.from_pretrained(tmp_path / "r" / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    ask = {"prompts": [[{"role": "user", "content": "Say yes."}]], "max_new_tokens": 12, "temperature": temperature}
    plain = generate.generate(model, words, **ask)
    model.generation_config.update(repetition_penalty=50.0, top_p=0.01, do_sample=True)
    before = model.generation_config.to_dict()
    assert generate.generate(model, words, **ask) == plain
    assert model.generation_config.to_dict() == before
    model.generation_config.eos_token_id = list(range(len(words)))
    assert generate.generate(model, words, **ask) != plain, "but where an answer ends is the model's own"


def test_prompts_are_the_first_by_hash_whatever_their_order(tmp_path):
    rows = [pair(f"Say {n}.", "yes", "no", prompt_id=f"{n * 7 % 10}") for n in range(10)]
    found = []
    for name, test in (("a", rows), ("b", rows[::-1])):
        manifest = write_data_set(tmp_path / name, rows, test)
        found.append(samples.choose(samples.SampleOptions(prompts=3), tmp_path / name, manifest))
    assert found[0] == found[1] == [[{"role": "user", "content": f"Say {n}."}] for n in (0, 3, 6)]
    given = samples.choose(samples.SampleOptions(prompts=["Hi"]), tmp_path / "a", manifest)
    assert given == [[{"role": "user", "content": "Hi"}]]
    manifest = write_data_set(tmp_path / "none", rows)
    with pytest.raises(TrainError, match="no test split to take prompts from"):
        samples.choose(samples.SampleOptions(), tmp_path / "none", manifest)


def test_a_page_shows_what_was_said_and_nothing_else():
    evil = "</pre></td><script>alert(1)</script>\n\n# Heading"
    prompt = [{"role": "user", "content": evil}]
    both = [{"phase": "dpo", "step": step, "prompt": prompt, "answer": f"{evil}{step}"} for step in (0, 8)]
    text = samples.page(both)
    assert "<script>" not in text
    assert "step 0</th><th>step 8" in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;<br><br># Heading8" in text
    assert not any(line.startswith("# Heading") for line in text.splitlines())


def test_options_are_checked(data):
    wrong = ({"evry": 3}, 'unknown option "evry"'), ({"prompts": 0}, "prompts"), ({"prompts": []}, "prompts")
    wrong += (({"seed": 3}, "samples: seed has no effect at temperature 0"),)
    for given, message in wrong:
        with pytest.raises(UsageError, match=message):
            run.check(pipeline(data, {**DPO, "samples": given}))


def test_answers_may_hold_any_line_end(tmp_path):
    said = [{"phase": "dpo", "step": step, "prompt": [], "answer": "a\u2028b\u0085c\r\nd\x0be"} for step in (0, 3)]
    taken = samples.Samples(tmp_path, "dpo", samples.SampleOptions(), [], None)
    taken.cut(0, then=said)
    assert samples.read(tmp_path) == said
