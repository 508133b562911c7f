"""Language tags: the library's own, bit by bit, however texts are laid out."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefkit.config import load_pipeline
from prefkit.errors import UsageError
from prefkit.pairs import classifier
from prefkit.pairs.language import SHIPPED, UNDETERMINED, _load, language, model_path
from prefkit.pairs.options import check_build
from prefkit.resolve import check

SENTENCES = {
    "en": "How are you doing today, my friend?",
    "de": "Wie geht es dir heute, mein Freund?",
    "fr": "Comment vas-tu aujourd'hui, mon ami ?",
    "es": "¿Cómo estás hoy, amigo mío?",
    "ru": "Как у тебя сегодня дела, мой друг?",
    "zh": "我的朋友，你今天过得怎么样？",
    "ja": "今日の調子はどうですか、友よ。",
    "ar": "كيف حالك اليوم يا صديقي؟",
}


@pytest.mark.parametrize("tag", SENTENCES)
def test_languages_are_told_apart(tag: str) -> None:
    found = language([SENTENCES[tag]])
    assert found.languages == [tag]
    assert found.probabilities[0] is not None and 0.5 < found.probabilities[0] <= 1


def test_nothing_is_said_of_nothing() -> None:
    assert language(["", " \n ", "\u3000"], k=3) == ([None] * 3, [None] * 3, [[], [], []])
    assert language([]) == ([], [], [])


@pytest.fixture(scope="module")
def plain() -> object:
    """The library as its own documentation calls it."""
    import fasttext

    return fasttext.load_model(str(model_path(SHIPPED)))


ODD = ["def", "x=1", "😀", "\ufffe", "a\u0301", "a\0b", "</s>", "__label__de", "__label__", "_" * 300, "<", "e\u200b"]
WORDS = st.sampled_from([*" ".join(SENTENCES.values()).split(), *ODD])
GAPS = st.sampled_from([" ", "\n", "\r\n", "\t", "  ", "\n\n", "\v", "\f", "\x1c", "\u2028", "\u3000"])
LAID_OUT = st.lists(st.tuples(WORDS, GAPS), min_size=1, max_size=30)


@given(LAID_OUT, st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_tags_are_those_of_a_plain_call_on_one_line(plain: object, parts: list[tuple[str, str]], k: int) -> None:
    one_line = " ".join(word for word, _ in parts)
    labels, probabilities = plain.predict(one_line, k=k)  # type: ignore[attr-defined]
    text = "".join(word + gap for word, gap in parts)
    found = language(["", text, text], k=k, characters=10_000)
    expected = [(label.removeprefix("__label__"), min(p, 1.0)) for label, p in zip(labels, probabilities, strict=True)]
    assert found.best == [[], expected, expected]
    assert (found.languages[1], found.probabilities[1]) == expected[0]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), max_size=5), st.integers(1, 5))
@example(["", "\0", " \0 "], 1)
@settings(max_examples=200, deadline=None)
def test_a_batch_of_any_texts_is_tagged_as_by_the_library(texts: list[str], k: int) -> None:
    ours = language(texts, k=k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "load", lambda path: None)
        _load.cache_clear()
        assert language(texts, k=k) == ours
    _load.cache_clear()


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@settings(max_examples=200, deadline=None)
def test_no_text_is_too_odd(text: str) -> None:
    found = language([text], k=2)
    assert len(found.best[0]) <= 2
    assert found.probabilities[0] is None or 0 <= found.probabilities[0] <= 1


def test_k_best_are_in_order_and_do_not_change_the_first() -> None:
    texts = list(SENTENCES.values())
    one, three = language(texts, k=1), language(texts, k=3)
    assert three[:2] == one[:2]
    for best in three.best:
        assert len({tag for tag, _ in best}) == len(best) == 3
        assert [p for _, p in best] == sorted((p for _, p in best), reverse=True)


def test_an_unsure_tag_becomes_undetermined_and_keeps_its_probability() -> None:
    texts = [SENTENCES["en"], "ok", ""]
    sure = language(texts)
    assert sure.probabilities[1] is not None and sure.probabilities[1] < 0.9 < (sure.probabilities[0] or 0)
    unsure = language(texts, unsure_below=0.9)
    assert unsure.languages == ["en", UNDETERMINED, None]
    assert unsure[1:] == sure[1:]


def test_only_the_first_characters_count() -> None:
    text = SENTENCES["de"] + " " + SENTENCES["ru"] * 20
    assert language([text]).languages == ["ru"]
    assert language([text], characters=len(SENTENCES["de"])).languages == ["de"]


def test_options_of_a_pipeline_file() -> None:
    address = "prefkit.pairs.language:language"
    options = {"model": SHIPPED, "characters": 500, "k": 1, "unsure_below": 0.0, "responses": False}
    assert check(address, {}, "[build.language]").options == options
    assert check(address, {"responses": True}, "[build.language]").call(["ok"]) == language(["ok"])
    for wrong in ({"k": 0}, {"unsure_below": 1.5}, {"characters": 0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            check(address, wrong, "[build.language]")


def test_the_shipped_model_is_one_for_the_kernel(tmp_path: Path) -> None:
    assert classifier.load(model_path(SHIPPED)) is not None
    data = bytearray(model_path(SHIPPED).read_bytes())
    data[8 + 6 * 4] = 3  # a softmax, in place of a tree
    (tmp_path / "softmax.ftz").write_bytes(data)
    assert classifier.load(tmp_path / "softmax.ftz") is None


def test_a_model_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file"):
        language(["ok"], model=str(tmp_path / "lid.bin"))
    (tmp_path / "lid.bin").write_bytes(b"no model")
    with pytest.raises(UsageError, match="not a fastText model"):
        language(["ok"], model=str(tmp_path / "lid.bin"))


@pytest.mark.parametrize("left", [8, 60, 5_000, 400_000, 900_000, -1])
def test_a_model_that_is_cut_short(tmp_path: Path, left: int) -> None:
    (tmp_path / "lid.ftz").write_bytes(model_path(SHIPPED).read_bytes()[:left])
    with pytest.raises(UsageError, match="cut short"):
        language(["ok"], model=str(tmp_path / "lid.ftz"))


def test_more_tags_than_the_model_has_are_refused(tmp_path: Path) -> None:
    (tmp_path / "raw.jsonl").touch()
    text = '[[build.inputs]]\nuse = "pairs"\npaths = ["raw.jsonl"]\n[build.language]\nk = {}\n'
    for k in (176, 177):
        (tmp_path / "p.toml").write_text(text.format(k))
        with pytest.raises(UsageError, match="k = 177: the model has no more than 176") if k > 176 else nullcontext():
            check_build(load_pipeline(tmp_path / "p.toml"))


def test_a_language_that_no_text_is_tagged_as_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raw.jsonl").touch()
    text = '[[build.inputs]]\nuse = "pairs"\npaths = ["raw.jsonl"]\n[[build.filters]]\nuse = "languages"\nallow = {}\n'
    for allow, refused in ((["en", "zh", UNDETERMINED], ""), (["en", "german"], "german"), (["jp"], "jp")):
        (tmp_path / "p.toml").write_text(text.format(json.dumps(allow)))
        pipeline = load_pipeline(tmp_path / "p.toml")
        with pytest.raises(UsageError, match=f'no text is ever tagged "{refused}"') if refused else nullcontext():
            check_build(pipeline)
