"""Pipeline files, `--set`, and how a name becomes a function with checked options."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any, Literal

import pytest

from prefkit import config, resolve
from prefkit.errors import UsageError

FILE = """
[build]
chunk_bytes = 5
[[build.filters]]
use = "prompt_length"
[[build.filters]]
use = "sources"
[[train]]
name = "sft"
[[train]]
name = "dpo"
beta = 0.1
lora = { r = 8 }
"""


def load(folder: Path, *overrides: str, text: str = FILE) -> dict[str, Any]:
    path = folder / "p.toml"
    path.write_text(text)
    return config.load_pipeline(str(path), overrides).table


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("build.chunk_bytes=7", ("build", "chunk_bytes"), 7),
        ("build.split.test = 0.5", ("build", "split", "test"), 0.5),
        ("build.filters.sources.deny=['a', 'b']", ("build", "filters", 1, "deny"), ["a", "b"]),
        ("build.filters.0.max_characters=9", ("build", "filters", 0, "max_characters"), 9),
        ("train.dpo.beta=0.2", ("train", 1, "beta"), 0.2),
        ("train.dpo.objective=ipo", ("train", 1, "objective"), "ipo"),
        ("train.dpo.lora.r=16", ("train", 1, "lora", "r"), 16),
        ("model.path=a=b", ("model", "path"), "a=b"),
        ("build.language=false", ("build", "language"), False),
    ],
)
def test_set(tmp_path: Path, override: str, path: tuple[Any, ...], value: Any) -> None:
    table: Any = load(tmp_path, override)
    for key in path:
        table = table[key]
    assert table == value


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.dpo", "key.path=value"),
        ("tarin.dpo.beta=1", 'Did you mean "train"'),
        ("train.dop.beta=1", 'no entry named "dop". There are '),
        ("build.inputs.ratings.score=x", r"no \[\[build.inputs\]\] to change"),
        ("train.beta=1", "is a list"),
        ("build.chunk_bytes.x=1", "is a value"),
        ("build..x=1", "key.path=value"),
    ],
)
def test_set_that_cannot_be(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load(tmp_path, override)


def test_a_phase_without_a_name_goes_by_its_loss(tmp_path: Path) -> None:
    text = '[[train]]\nobjective = "sft"\n\n[[train]]\nobjective = [{ use = "sigmoid" }]\n'
    assert load(tmp_path, "train.sft.epochs=3", text=text)["train"][0]["epochs"] == 3
    with pytest.raises(UsageError, match="There are sft, 1, which also go by their index"):
        load(tmp_path, "train.dpo.epochs=3", text=text)


def test_files_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"not valid TOML.*line 2"):
        load(tmp_path, text="[build]\nx = = 1\n")
    with pytest.raises(UsageError, match=r'unknown section "biuld".*"build"'):
        load(tmp_path, text="[biuld]\n")
    with pytest.raises(UsageError, match="no such pipeline file"):
        config.load_pipeline(str(tmp_path / "none.toml"))
    with pytest.raises(UsageError, match='Did you mean "ultrafeedback"'):
        config.load_pipeline("ultrafedback")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        config.load_pipeline(str(tmp_path / "binary.toml"))


def test_every_shipped_pipeline_is_found_by_name() -> None:
    names = config.shipped_pipelines()
    assert {"ultrafeedback", "ultrafeedback-binarized", "hh-rlhf", "demo"} <= set(names)
    for name in names:
        pipeline = config.load_pipeline(name)
        assert pipeline.table["description"]


def sample(first: int, *, count: int, kind: Literal["a", "b"] = "a", names: list[str] | None = None) -> None:
    """A function to be resolved."""


def here(name: str) -> str:
    return f"{__name__}:{name}"


def test_options_are_the_keyword_only_parameters() -> None:
    call = resolve.check(here("sample"), {"count": 3}, "here")
    assert call.options == {"count": 3, "kind": "a", "names": None}
    assert call.name == "sample"
    assert resolve.summary(sample) == "A function to be resolved."


def test_a_summary_is_the_first_paragraph() -> None:
    def long() -> None:
        """One sentence that goes
        on and on.

        And another.
        """

    assert resolve.summary(long) == "One sentence that goes on and on."


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "option count"),
        ({"count": "many"}, "option count.*'many'"),
        ({"count": "3"}, "option count.*not '3'"),
        ({"count": True}, "option count.*not True"),
        ({"count": 1, "kind": "c"}, "option kind"),
        ({"count": 1, "knid": "a"}, 'unknown option "knid".*"kind"'),
        ({"count": 1, "first": 2}, 'unknown option "first"'),
        ({"count": 1, "names": [1]}, "option names"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resolve.check(here("sample"), options, "here")


bound = functools.partial(sample, 1)


def unknown_type(*, value: NotThere = 1) -> None:  # type: ignore[name-defined]  # noqa: F821
    """As if the type were imported for type checkers alone."""


def no_option(*, value: threading.Thread | None = None) -> None:
    """Of a type that no value in a pipeline file has."""


@pytest.mark.parametrize("name", [here("bound"), here("unknown_type"), here("no_option"), "builtins:min"])
def test_functions_whose_parameters_cannot_be_options(name: str) -> None:
    with pytest.raises(UsageError, match=f'"{name}": its parameters cannot be read as options'):
        resolve.check(name, {}, "here")


def test_names_that_do_not_exist() -> None:
    with pytest.raises(UsageError, match='Did you mean "prompt_length"'):
        resolve.find("promt_length", "prefkit.pairs.filters", "here")
    with pytest.raises(UsageError, match='Did you mean "ultrafeedback"'):
        resolve.find("ultrafeedbak", "prefkit.pairs.sources.", "here")
    with pytest.raises(UsageError, match="cannot import"):
        resolve.load("no_such_package.module:function")
    with pytest.raises(UsageError, match="no function"):
        resolve.load(here("no_such_function"))
    assert resolve.find("my.module:function", "prefkit.pairs.filters", "here") == "my.module:function"
