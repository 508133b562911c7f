"""Filters on small tables: what each keeps, and that each judges a row by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit import schema
from prefkit.errors import UsageError
from prefkit.pairs import filters, redact, rules, tables
from prefkit.pairs.patterns import BOILERPLATE, LANGUAGES, REFUSALS
from prefkit.pairs.rules import Measured
from prefkit.resolve import check, functions_of, load, options_of, summary


def candidates(*rows: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(
        [dict.fromkeys(schema.CANDIDATES.names) | row for row in rows], schema=tables.empty(schema.CANDIDATES).schema
    )


def pairs(*rows: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(
        [dict.fromkeys(schema.PAIRS.names) | row for row in rows], schema=tables.empty(schema.PAIRS).schema
    )


def kept(rule: pl.Expr | Measured, table: pl.DataFrame) -> list[bool]:
    """Verdicts as the pipeline reads them: null is no pass."""
    keep = rule.keep if isinstance(rule, Measured) else rule
    return table.select(keep.fill_null(False).alias("keep"))["keep"].to_list()


def kept_answers(rule: pl.Expr | Measured, *answers: str | None) -> list[bool]:
    return kept(rule, candidates(*({"response": answer, **prompt("?")} for answer in answers)))


def prompt(*texts: str | None) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": text} for text in texts]}


def pair(chosen: str, rejected: str) -> dict[str, Any]:
    sides = {"chosen": chosen, "rejected": rejected}
    return {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}


# --- lengths, names, languages


def test_prompt_length_counts_characters_of_all_turns() -> None:
    rule = filters.prompt_length(min_characters=2, max_characters=4)
    rows = candidates(prompt("a"), prompt("é漢"), prompt("ab", "cd"), prompt("ab", "cde"))
    assert kept(rule, rows) == [False, True, True, False]


def test_response_length_ignores_outer_white_space() -> None:
    rule = filters.response_length(min_characters=1, max_characters=2)
    assert kept_answers(rule, "  a ", " ", "abc", None) == [True, False, False, False]


@pytest.mark.parametrize("column", ["source", "model"])
def test_names_are_allowed_or_denied(column: str) -> None:
    rule = getattr(filters, f"{column}s")
    rows = candidates({column: "a"}, {column: "b"}, {column: "A"})
    assert kept(rule(deny=["b"]), rows) == [True, False, True]
    assert kept(rule(allow=["b"]), rows) == [False, True, False]
    assert kept(rule(allow=["a", "b"], deny=["b"]), rows) == [True, False, False]
    with pytest.raises(UsageError, match="give allow or deny"):
        rule()


def test_an_unknown_model_is_not_denied_and_not_allowed() -> None:
    assert kept(filters.models(deny=["b"]), candidates({"model": None})) == [True]
    assert kept(filters.models(allow=["b"]), candidates({"model": None})) == [False]


def test_languages() -> None:
    rule = filters.languages(allow=["en", "de"], min_probability=0.6)
    tags = [("en", 0.7), ("en", 0.5), ("fr", 0.9), (None, None)]
    rows = candidates(*({"lang": tag, "lang_prob": probability} for tag, probability in tags))
    assert kept(rule, rows) == [True, False, False, False]


@pytest.mark.parametrize(
    ("of_prompt", "of_answer", "keep"),
    [
        (("en", 0.9), ("en", 0.9), True),
        (("en", 0.9), ("de", 0.9), False),
        (("en", 0.5), ("de", 0.9), True),
        (("en", 0.9), ("de", 0.5), True),
        ((None, None), ("de", 0.9), True),
        (("en", 0.9), (None, None), True),
        (("und", 0.85), ("de", 0.9), True),
    ],
)
def test_language_mismatch_judges_where_both_tags_are_sure(
    of_prompt: tuple[str, float], of_answer: tuple[str, float], keep: bool
) -> None:
    row = dict(zip(("lang", "lang_prob", "response_lang", "response_lang_prob"), of_prompt + of_answer, strict=True))
    assert kept(filters.language_mismatch(), candidates(row)) == [keep]


# --- what an answer says


REFUSING = {
    "en": "I'm sorry, but I can't help with that.",
    "de": "Es tut mir leid, aber ich kann dir dabei nicht helfen.",
    "fr": "Je suis désolé, mais je ne peux pas vous aider.",
    "es": "Lo siento, pero no puedo ayudarte con eso.",
    "it": "Mi dispiace, ma non posso aiutarti.",
    "pt": "Desculpe, mas não posso ajudar com isso.",
    "ru": "Извините, но я не могу помочь с этим.",
    "zh": "抱歉，我无法回答这个问题。",
    "ja": "申し訳ありませんが、そのご質問にはお答えできません。",
    "ko": "죄송하지만 그 요청은 도와드릴 수 없습니다.",
}
AS_A_MACHINE = {
    "en": "As an AI language model, here is the list you asked for.",
    "de": "Als KI-Sprachmodell empfehle ich die folgenden Bücher.",
    "fr": "En tant que modèle de langage, voici ma réponse.",
    "es": "Como modelo de lenguaje, te propongo esta lista.",
    "it": "Come modello linguistico, ecco la lista.",
    "pt": "Como um modelo de linguagem, aqui está a lista.",
    "ru": "Как языковая модель, предлагаю такой список.",
    "zh": "作为一个人工智能语言模型，以下是清单。",
    "ja": "AI言語モデルとして、次のリストを提案します。",
    "ko": "저는 AI 언어 모델이며, 목록은 다음과 같습니다.",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_refusals_of_every_language(language: str) -> None:
    both = (REFUSING[language], AS_A_MACHINE[language])
    assert kept_answers(filters.refusals(), *both) == [False, False]
    assert kept_answers(filters.refusals(boilerplate=False), *both) == [False, True]
    others = tuple(other for other in LANGUAGES if other != language)
    assert kept_answers(filters.refusals(languages=others), *both) == [True, True]
    assert set(REFUSALS) == set(BOILERPLATE) == set(LANGUAGES)


def test_refusals_in_other_words() -> None:
    refusing = [
        "I’m sorry, I cannot write that.",
        "Sorry, but I am unable to browse the internet.",
        "Unfortunately, I can't access the file.",
        "  I can’t assist with that request.",
        "I apologize, but I cannot provide a translation.",
        "I must respectfully decline.",
        "I'm just an AI, so take this with a grain of salt.",
        "I am a large language model trained by somebody.",
    ]
    answering = [
        "I can't wait to tell you about Rome!",
        "I'm sorry to hear that. Let us look at what you can do.",
        "Sorry for the delay: the answer is 4.",
        "You cannot divide by zero, since no number times zero is one.",
        "An AI language model is a program that predicts text.",
        "Light cannot travel faster than this, unfortunately for us.",
        "我不能没有你，这是一首歌的名字。",
        "Leider war der Sommer kurz.",
    ]
    assert kept_answers(filters.refusals(), *refusing) == [False] * len(refusing)
    assert kept_answers(filters.refusals(), *answering) == [True] * len(answering)


def test_refusals_looks_at_the_beginning_unless_told() -> None:
    late = "Rome was founded long ago. " * 10 + "I'm sorry, but I can't say more."
    assert kept_answers(filters.refusals(), late) == [True]
    assert kept_answers(filters.refusals(within=10_000), late) == [False]


LONG = "All of this was said before. " * 50


@pytest.mark.parametrize(
    "end",
    [
        "And that is the end of it.",
        "Is that the end of a very long question?",
        "He said that this would be the end of it.”",
        "(which we knew from the very beginning of this)",
        "and **this is how it ends, in bold letters.**",
        "这就是故事的结尾，一切都说完了，大家都回家去了，没有什么可以补充的。",
        "これで話は終わりです。皆さん、ありがとうございました。またお会いしましょう！",
        "यह कहानी का अंत है और सब लोग अपने अपने घर चले गए।",
        "هل هذه هي نهاية القصة الطويلة التي بدأناها منذ وقت؟",
        "นี่คือจุดจบของเรื่องที่ยาวมากเรื่องหนึ่งที่เราเล่ากันมา",
        "Here is the code that you asked for:\n```python\nprint(1)\n```",
        "And these are all the things you need:\n- a pound of butter and a very big bowl to mix it in",
        "And these are all the things you need:\n3. a pound of butter and a very big bowl to mix it in",
        "| a table with a few cells | and another one of them that is long |",
        "Therefore the final result of the whole calculation is 42",
        "I wish you a wonderful journey through all of it 😊",
        "Read on at https://example.org/a/very/long/path/to/the/page",
        "Kind regards,\nThe Team of the Library",
        "and so on and so forth, until the end of all days …",
    ],
)
def test_an_answer_that_ends(end: str) -> None:
    assert kept_answers(filters.truncated(), LONG + "\n\n" + end, LONG + "\n\n" + end + " \n") == [True, True]


@pytest.mark.parametrize(
    "end",
    [
        "And that is why the people of the old town never went back to the",
        "And that is why the people of the old town, the river and the hills,",
        "These are the reasons why the people of the old town left it forever:",
        "And that is why the people of the old town (those who still knew it",
        "И вот почему жители старого города больше никогда не возвращались в",
        "这就是为什么老城的人们再也没有回到那座他们曾经生活过的城市，也没有再看到那条河流，他们后来一直都",
        "Here is the code that you asked for:\n```python\ndef f(x):\n    return x +",
    ],
)
def test_an_answer_that_is_cut_short(end: str) -> None:
    assert kept_answers(filters.truncated(), LONG + "\n\n" + end, end) == [False, True], "short answers are not judged"


def test_repetition_rejects_what_repeats_itself() -> None:
    loop = "I think so. " * 60
    chorus = "\n".join(f"verse {n} has its own words\nla la la this is the chorus of it" for n in range(30))
    plain = " ".join(f"word{n} and{n * 7}" for n in range(100))
    assert kept_answers(filters.repetition(), loop, chorus, plain) == [False, False, True]
    assert kept_answers(filters.repetition(min_words=1000), loop, chorus, plain) == [True, True, True]
    assert kept_answers(filters.repetition(factor=100), loop, chorus, plain) == [True, True, True]


def test_each_limit_of_repetition_is_its_own_measure() -> None:
    open_wide: dict[str, Any] = {
        "max_duplicate_lines": 1,
        "max_duplicate_line_characters": 1,
        "max_duplicate_paragraphs": 1,
        "max_duplicate_paragraph_characters": 1,
        "max_top_ngrams": [10] * 3,
        "max_duplicate_ngrams": [10] * 6,
        "max_duplicate_sentences": 1,
    }
    text = "\n\n".join(["One is. Two is. Three is a much longer one than these two."] * 9)
    address = "prefkit.pairs.filters:repetition"
    assert kept_answers(check(address, open_wide, "test").call(), text) == [True]
    for name, limit in open_wide.items():
        closed = {name: 0 if isinstance(limit, int) else [0, *limit[1:]]}
        assert kept_answers(check(address, open_wide | closed, "test").call(), text) == [False], name


TOKENS = [
    "Fine.<|im_end|>",
    "<|start_header_id|>assistant<|end_header_id|>\n\nFine.<|eot_id|>",
    "<|START_OF_TURN_TOKEN|>Fine",
    "[INST] Fine [/INST]",
    "<<SYS>> be good <</SYS>>",
    "<start_of_turn>model\nFine",
    "Fine.</s>",
    "Fine.</s><s> Next",
    "<｜Assistant｜>Fine<｜end▁of▁sentence｜>",
    "<|assistant|>\nFine.",
]


@pytest.mark.parametrize("text", TOKENS)
def test_template_tokens_in_prompt_or_answer(text: str) -> None:
    rows = candidates(
        {"response": text, **prompt("Hello")},
        {"response": "Fine.", **prompt("Hello", text)},
        {"response": "Fine.", **prompt("Hello")},
    )
    assert kept(filters.template_tokens(), rows) == [False, False, True]


def test_what_only_looks_like_a_template_token() -> None:
    fine = [
        "a <| b |> c",
        "if x<s>y",
        "<s>old</s> and new",
        "<s>open",
        "[INSTALL]",
        "1 << 2 >> 3",
        "x <|> y",
        "|im_end|",
        "<b>",
    ]
    assert kept_answers(filters.template_tokens(), *fine) == [True] * len(fine)
    assert kept_answers(filters.template_tokens(extra=["<|>", "a.c"]), "x <|> y", "abc", "a.c") == [False, True, False]


def test_pii_rejects_what_redact_would_replace() -> None:
    rows = candidates(
        {"response": "mail me: jo@acme.org", **prompt("Hello")},
        {"response": "Fine.", **prompt("call +49 30 901820")},
        {"response": "see 8.8.8.8", **prompt("Hello")},
        {"response": "Fine.", **prompt("Hello", "you")},
    )
    assert kept(filters.pii(), rows) == [False, False, False, True]
    assert kept(filters.pii(kinds=("phone",)), rows) == [True, False, True, True]
    changed = redact.redact(rows)
    assert [a == b for a, b in zip(rows.rows(), changed.rows(), strict=True)] == kept(filters.pii(), rows)


# --- pairs


def test_length_ratio_counts_very_short_answers_as_longer() -> None:
    rows = pairs(pair("a" * 2000, "b" * 200), pair("a" * 200, "b" * 2001), pair("Yes.", "No. " * 450), pair("", ""))
    assert kept(filters.length_ratio(), rows) == [True, False, True, True]
    assert kept(filters.length_ratio(floor=1), rows) == [True, False, False, True]


def test_near_identical() -> None:
    text = " ".join(f"word{n}" for n in range(100))
    changed = text.replace("word50", "other")
    half = " ".join(f"word{n}" for n in range(50))
    rows = pairs(pair(text, changed), pair(text, half), pair(text, text.upper()), pair("A beats B", "B beats A"))
    assert kept(filters.near_identical(), rows) == [False, True, False, True]
    assert kept(filters.near_identical(max_similarity=0.95), rows) == [True, True, False, True], "95/101 are shared"
    assert kept(filters.near_identical(ngram=1), rows) == [False, True, False, False]


def test_near_identical_on_real_pairs(real_data: Path) -> None:
    lines = (real_data / "ultrafeedback_binarized" / "train_1000.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    verdicts = kept(filters.near_identical(), pairs(*(pair(row["chosen"], row["rejected"]) for row in rows)))
    for row, keep in zip(rows, verdicts, strict=True):
        if row["chosen"].lower().split() == row["rejected"].lower().split():
            assert not keep
    assert 0 < verdicts.count(False) < 10


def test_pairs_per_prompt_keeps_the_largest_margins_and_of_ties_the_first() -> None:
    margins = {"p": [1.0, 3.0, 2.0, 3.0, 3.0], "q": [1.0], "r": [2.0, 2.0, 2.0]}
    rows = pairs(*({"prompt_id": name, "margin": margin} for name, values in margins.items() for margin in values))
    two = [False, True, False, True, False, True, True, True, False]
    assert kept(filters.pairs_per_prompt(at_most=2), rows) == two
    assert all(kept(filters.pairs_per_prompt(at_most=5), rows))


def test_margins_are_compared_as_on_paper() -> None:
    assert 4.1 - 3.1 < 1 < 8.3 - 7.3
    rows = pairs(*({"prompt_id": "p", "margin": margin} for margin in (4.1 - 3.1, 2.0 - 1.0, 8.3 - 7.3, 0.999)))
    assert kept(filters.min_margin(margin=1), rows) == [True, True, True, False]
    assert kept(filters.pairs_per_prompt(at_most=1), rows) == [True, False, False, False]


@pytest.mark.parametrize("name", ["prompt_length", "response_length"])
def test_bounds_that_no_length_meets_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="min_characters = 10 is more than max_characters = 5"):
        load(f"prefkit.pairs.filters:{name}")(min_characters=10, max_characters=5)


# --- what is said of rejects


def said(name: str, table: pl.DataFrame, **options: Any) -> list[str]:
    rule = rules.rule(check(f"prefkit.pairs.filters:{name}", options, "test"))
    return [text.removeprefix(rule.options + "; ") for text in rules.detail(rule, table)]


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12), st.lists(st.sampled_from("abc"), min_size=1))
@settings(max_examples=60, deadline=None)
def test_near_identical_tells_the_similarity(one: list[str], other: list[str]) -> None:
    grams = [{tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))} for words in (one, other)]
    share = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
    table = pairs(pair(" ".join(one), " ".join(other)))
    (told,) = said("near_identical", table)
    assert told.startswith("similarity: ")
    assert float(told.removeprefix("similarity: ")) == pytest.approx(share, abs=1e-6)
    assert kept(filters.near_identical(max_similarity=share), table) == [True]


def test_repetition_tells_each_limit_that_is_passed_and_by_what() -> None:
    line = "All work and no play makes Jack a dull boy, they said."
    other = [f"On day {word} he wrote of {word} things that {word} had seen." for word in ("one", "two", "three")]
    text = "\n".join([line, line, line, *other])
    shares = dict(each.split() for each in said("repetition", candidates({"response": text}))[0].split(", "))
    assert float(shares["duplicate_lines"]) == pytest.approx(2 / 6, abs=1e-6)
    assert float(shares["duplicate_line_characters"]) == pytest.approx(2 * len(line) / len(text), abs=1e-6)
    assert "duplicate_10_gram_characters" in shares
    assert "duplicate_paragraphs" not in shares
    assert not kept_answers(filters.repetition(), text)[0]
    only = said("repetition", candidates({"response": text}), factor=1.2)[0]
    assert {each.split()[0] for each in only.split(", ")} < shares.keys(), "0.33 is no more than 1.2 · 0.3"


def test_lengths_are_told_as_the_rule_counts_them() -> None:
    rows = candidates({"response": " ab \n", **prompt("ab", "cde")})
    assert said("prompt_length", rows, min_characters=9) == ["prompt: 5 characters"]
    assert said("response_length", rows, min_characters=9) == ["response: 2 characters"]
    assert said("length_ratio", pairs(pair(" ab ", "c" * 900))) == ["chosen: 2 characters, rejected: 900 characters"]


def test_nothing_personal_is_quoted_whatever_the_rule() -> None:
    rows = candidates({"response": "I cannot help; ask jo@acme.org or 8.8.8.8", **prompt("call (212) 736-5000")})
    assert said("refusals", rows) == ["response: I cannot help; ask [EMAIL] or [IP]"]
    assert said("pii", rows) == ["prompt: call [PHONE]; response: I cannot help; ask [EMAIL] or [IP]"]


# --- all of them

REQUIRED: dict[str, dict[str, Any]] = {
    "sources": {"deny": ["a"]},
    "models": {"deny": ["a"]},
    "languages": {"allow": ["en"]},
    "min_margin": {"margin": 1.0},
    "pairs_per_prompt": {"at_most": 2},
}
OF_PAIRS = {"min_margin", "length_ratio", "near_identical", "pairs_per_prompt"}
NAMES = functions_of(filters)


def rule_of(name: str) -> pl.Expr:
    """The rule as a pipeline file gets it: options checked, defaults filled in, through plain data."""
    return rules.rule(check(f"prefkit.pairs.filters:{name}", REQUIRED.get(name, {}), "test")).keep


@pytest.mark.parametrize("name", NAMES)
def test_a_filter_names_its_columns_and_says_what_it_keeps(name: str) -> None:
    columns = set(rule_of(name).meta.root_names())
    known, other = (schema.PAIRS, schema.CANDIDATES) if name in OF_PAIRS else (schema.CANDIDATES, schema.PAIRS)
    assert columns and columns <= set(known.names)
    assert not columns <= set(other.names) or not OF_PAIRS & {name}
    verdict = tables.empty(known).select(rule_of(name).alias("keep"))["keep"]
    assert verdict.dtype == pl.Boolean
    function = load(f"prefkit.pairs.filters:{name}")
    assert summary(function).startswith("Keep ") and summary(function).endswith(".")
    assert options_of(function), "all options are keyword-only"


ODD = [
    "",
    " ",
    "\n",
    "```",
    "\u200d",
    "\ufffe",
    "\u0301",
    "\U0010ffff",
    "a" * 2000,
    "ا،",
    "+1",
    "1.1.1.1",
    "@",
    "<|x|>",
]
TEXT = st.one_of(st.none(), st.sampled_from(ODD), st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
MESSAGES = st.one_of(
    st.none(),
    st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": TEXT}), max_size=3),
)
TAG = st.sampled_from([None, "en", "de", "und"])
PROBABILITY = st.sampled_from([None, 0.0, 0.5, 0.9, 1.0])
CANDIDATE = st.fixed_dictionaries(
    {
        "source": st.sampled_from(["a", "b"]),
        "model": st.sampled_from([None, "a", "b"]),
        "prompt": MESSAGES,
        "response": TEXT,
        "lang": TAG,
        "lang_prob": PROBABILITY,
        "response_lang": TAG,
        "response_lang_prob": PROBABILITY,
    }
)
PAIR = st.fixed_dictionaries(
    {
        "prompt_id": st.sampled_from("pqr"),
        "chosen": MESSAGES,
        "rejected": MESSAGES,
        "margin": st.sampled_from([0.5, 2.0]),
    }
)


@given(st.lists(CANDIDATE, max_size=8), st.integers(0, 8))
@settings(max_examples=40, deadline=None)
def test_a_candidate_is_judged_by_itself(rows: list[dict[str, Any]], cut: int) -> None:
    table = candidates(*rows)
    for name in set(NAMES) - OF_PAIRS:
        rule = rule_of(name)
        assert kept(rule, table) == kept(rule, table[:cut]) + kept(rule, table[cut:]), name


@given(st.lists(PAIR, max_size=8), st.integers(0, 8))
@settings(max_examples=40, deadline=None)
def test_a_pair_is_judged_within_its_prompt(rows: list[dict[str, Any]], cut: int) -> None:
    table = pairs(*sorted(rows, key=lambda row: row["prompt_id"]))
    while 0 < cut < len(table) and table["prompt_id"][cut] == table["prompt_id"][cut - 1]:
        cut += 1
    for name in OF_PAIRS:
        rule = rule_of(name)
        assert kept(rule, table) == kept(rule, table[:cut]) + kept(rule, table[cut:]), name


def test_a_missing_answer_passes_no_rule_about_answers() -> None:
    rows = candidates({"response": None, **prompt("Hello")})
    about_answers = {name for name in NAMES if "response" in rule_of(name).meta.root_names()}
    assert about_answers >= {"response_length", "refusals", "truncated", "repetition", "template_tokens", "pii"}
    assert [name for name in about_answers if kept(rule_of(name), rows) != [False]] == []
