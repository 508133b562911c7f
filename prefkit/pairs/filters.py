"""Rules: one function a rule, its options in, a polars expression out; true keeps.

A rule over the columns of CANDIDATES judges each candidate, before duplicates are looked for; one that needs a column
of PAIRS (`margin`, `chosen`, …) judges each pair. Which of the two follows from the columns that the expression
names, so a rule is nothing but its expression; one that measures what its columns do not show gives that beside it,
for the detail of its rejects (`rules.Measured`). An expression must judge each row by itself, or within its prompt:
rows come in batches whose borders mean nothing. The function's name is the reject reason. A null verdict rejects: a
rule that cannot be decided was not passed.

Lengths are in characters (Unicode code points), which needs no tokenizer and means the same in every language.

Nothing here is on unless a pipeline asks for it. What polars' own expressions cannot say looks at whole columns at once
(`map_batches`). Cost is given where it is more than 3 µs an answer of 1,200 characters on one core.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Annotated

import numpy as np
import polars as pl
from annotated_types import Ge, Gt, Le, MinLen

from prefkit.errors import UsageError
from prefkit.pairs import ngrams, redact
from prefkit.pairs.patterns import (
    BOILERPLATE,
    GOES_ON,
    LANGUAGES,
    OPEN_LINE,
    REFUSALS,
    SENTENCE_END,
    TEMPLATE_TOKENS,
    Language,
)
from prefkit.pairs.rules import Measured
from prefkit.pairs.scores import on_paper
from prefkit.pairs.trimmed import trimmed

Count = Annotated[int, Ge(0)]
Positive = Annotated[int, Ge(1)]
Fraction = Annotated[float, Ge(0), Le(1)]
Limit = Annotated[float, Ge(0)]
Names = Annotated[list[str], MinLen(1)]
Languages = Annotated[tuple[Language, ...], MinLen(1)]

LAST_LINE = 300  # characters of an answer in which its last line is looked for


def prompt_length(*, min_characters: Count = 1, max_characters: Count = 20_000) -> Measured:
    """Keep prompts whose turns together have between min_characters and max_characters."""
    lengths = pl.col("prompt").list.eval(pl.element().struct.field("content").str.len_chars())
    return _within("prompt", lengths.list.sum(), min_characters, max_characters)


def response_length(*, min_characters: Count = 1, max_characters: Count = 20_000) -> Measured:
    """Keep responses with between min_characters and max_characters, outer white space not counted."""
    return _within("response", trimmed(pl.col("response")).str.len_chars(), min_characters, max_characters)


def sources(*, allow: Names | None = None, deny: Names | None = None) -> pl.Expr:
    """Keep rows by the name of their source: those in allow (if given), none in deny."""
    return _listed("source", allow, deny)


def models(*, allow: Names | None = None, deny: Names | None = None) -> pl.Expr:
    """Keep answers by the model that gave them: those in allow (if given), none in deny.

    An answer whose model is not known passes `deny` and fails `allow`.
    """
    return _listed("model", allow, deny)


def languages(*, allow: Names, min_probability: Fraction = 0.5) -> pl.Expr:
    """Keep prompts tagged as one of the allowed languages with at least min_probability."""
    return pl.col("lang").is_in(allow) & (pl.col("lang_prob") >= min_probability)


def language_mismatch(*, min_probability: Fraction = 0.8) -> pl.Expr:
    """Keep answers in the language of their prompt, and all where either tag is unsure or missing.

    A tag is unsure below min_probability. Needs [build.language] responses = true. Known false hits: prompts that ask
    for a translation or for another language, and prompts or answers that are mostly code.
    Source: language confusion of models (Marchisio et al., arXiv:2406.20052), who tag answers by fastText as well.
    """
    sure = pl.lit(True)
    for tag in ("lang", "response_lang"):
        sure &= (pl.col(f"{tag}_prob") >= min_probability) & (pl.col(tag) != "und")
    return ~sure.fill_null(False) | (pl.col("lang") == pl.col("response_lang"))


def refusals(*, within: Positive = 200, boilerplate: bool = True, languages: Languages = LANGUAGES) -> pl.Expr:
    """Keep answers that neither decline ("I'm sorry, but I can't …") nor speak of themselves as an AI.

    Looks at the first `within` characters, so that an answer may quote a refusal later on; a large number looks
    everywhere. boilerplate = false lets "As an AI language model, …" pass where no refusal follows. In safety data
    the refusal often is the preferred answer: leave the rule out there. About 6 µs an answer.
    Source: the lists of phrases that cleaned WizardLM's and ShareGPT's "unfiltered" data; see `patterns`.
    """
    lists = [REFUSALS, BOILERPLATE] if boilerplate else [REFUSALS]
    phrases = [pattern for phrases in lists for language in languages for pattern in phrases[language]]
    beginning = pl.col("response").str.strip_chars_start().str.slice(0, within).str.to_lowercase()
    return ~_judged(beginning, functools.partial(_any_of, patterns=phrases))


def truncated(*, at_least: Count = 1000, last_line: Count = 40) -> pl.Expr:
    """Keep answers that end where a text can end, and all that are shorter than at_least characters.

    Cut short is an answer whose last character asks for more (a letter, comma, colon, hyphen, opening bracket), or
    that leaves a code fence open. Entries of lists and tables, headings, links, and last lines of fewer than last_line
    characters (signatures, verses) count as ended, and so does Thai and other text that needs no mark at its end.
    Source: C4 (Raffel et al., arXiv:1910.10683) keeps lines that end in a terminal mark; here for the end of an answer,
    which generation stops at its token limit, with the marks of all scripts (Unicode's Sentence_Terminal).
    """
    text = pl.col("response").str.strip_chars_end()
    cut = _judged(text, lambda texts: _is_cut_short(texts, last_line))
    return (text.str.len_chars() < at_least) | ~cut


def repetition(
    *,
    max_duplicate_lines: Fraction = 0.30,
    max_duplicate_line_characters: Fraction = 0.20,
    max_duplicate_paragraphs: Fraction = 0.30,
    max_duplicate_paragraph_characters: Fraction = 0.20,
    max_top_ngrams: tuple[Limit, Limit, Limit] = (0.20, 0.18, 0.16),
    max_duplicate_ngrams: tuple[Limit, Limit, Limit, Limit, Limit, Limit] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10),
    max_duplicate_sentences: Fraction = 0.20,
    factor: Annotated[float, Gt(0)] = 1.0,
    min_words: Count = 50,
) -> Measured:
    """Keep answers that do not repeat themselves: lines, paragraphs, sentences and word n-grams.

    The limits are Gopher's for web pages (Rae et al., arXiv:2112.11446, table A1): of repeated lines and paragraphs
    and of the characters in them, of the characters in the most frequent 2-, 3- and 4-gram, and in repeated 5- to
    10-grams; and one after C4 (arXiv:1910.10683), of the characters in repeated spans of three sentences. Measured as
    datatrove does; `ngrams` says exactly how. Answers of fewer than min_words words are kept: their fractions mean
    nothing, and Gopher has no page under 50. `factor` scales all limits. Known false hits: songs with a chorus, code,
    calculations that restate every step. Of real UltraFeedback answers 5 % fail at factor 1, 2 % at 1.5, 0.8 % at 2.
    About 25 µs an answer.
    """
    limits = [
        max_duplicate_lines,
        max_duplicate_line_characters,
        max_duplicate_paragraphs,
        max_duplicate_paragraph_characters,
        *max_top_ngrams,
        *max_duplicate_ngrams,
        max_duplicate_sentences,
    ]

    def repeats(texts: pl.Series) -> pl.Series:
        measures, words = ngrams.repetition(texts)
        return pl.Series((words >= min_words) & (measures > factor * np.array(limits)).any(axis=1))

    def told(texts: pl.Series) -> pl.Series:
        found = (zip(ngrams.MEASURES, of_text, limits, strict=True) for of_text in ngrams.repetition(texts)[0].tolist())
        above = ([f"{name} {share:.6g}" for name, share, limit in each if share > factor * limit] for each in found)
        return pl.Series(map(", ".join, above), dtype=pl.String)

    text = pl.col("response")
    return Measured(text.is_not_null() & ~_judged(text, repeats), text.map_batches(told, pl.String))


def template_tokens(*, extra: list[Annotated[str, MinLen(1)]] | None = None) -> pl.Expr:
    """Keep rows in whose prompt and answer no token of a chat template stands, such as <|im_end|> or [INST].

    Such tokens would be read as the end of a turn when the pair is trained on; they mostly come from broken scraping or
    generation. `extra` are further texts to look for. Texts that explain chat templates are a known false hit.
    Source: the special tokens of the published templates of ChatML, Llama, Mistral, Gemma, DeepSeek, GLM and Phi.
    """
    tokens = [*TEMPLATE_TOKENS, *(pl.escape_regex(token) for token in extra or ())]
    return ~_in_prompt_or_response(functools.partial(_any_of, patterns=tokens))


def pii(*, kinds: redact.Kinds = redact.KINDS) -> pl.Expr:
    """Keep rows in whose prompt and answer no e-mail address, phone number or IP address stands.

    What [build.redact] would replace; see `redact` for what counts. About 4 µs an answer, and as much a prompt.
    Source: the kinds that Dolma masks (Soldaini et al., arXiv:2402.00159).
    """
    return ~_in_prompt_or_response(functools.partial(redact.contains, kinds=kinds))


def min_margin(*, margin: Limit) -> pl.Expr:
    """Keep pairs whose chosen answer is scored at least margin above the rejected one, as on paper: 4.1 - 3.1 is 1."""
    return on_paper(pl.col("margin")) >= margin


def length_ratio(*, max_ratio: Annotated[float, Ge(1)] = 10.0, floor: Positive = 200) -> Measured:
    """Keep pairs whose longer answer has at most max_ratio times the characters of the shorter.

    An answer of fewer than `floor` characters counts as that long, so that "Yes." against two sentences passes.
    Source: preference optimisation learns length where pairs differ in it (Park et al., arXiv:2403.19159; Singhal et
    al., arXiv:2310.03716).
    """
    lengths = [trimmed(_text(side)).str.len_chars() for side in ("chosen", "rejected")]
    counted = [length.clip(lower_bound=floor) for length in lengths]
    keep = pl.max_horizontal(counted) <= max_ratio * pl.min_horizontal(counted)
    return Measured(keep, pl.format("chosen: {} characters, rejected: {} characters", *lengths))


def near_identical(*, max_similarity: Fraction = 0.9, ngram: Positive = 3) -> Measured:
    """Keep pairs whose answers differ: the Jaccard similarity of their word n-grams is at most max_similarity.

    Compared in lower case; words are those of `ngrams`. One changed word in 60 lies at 0.9. About 25 µs a pair.
    Source: pairs at a small edit distance push down the likelihood of both answers (Pal et al., arXiv:2402.13228;
    Razin et al., arXiv:2410.08847).
    """

    def similarities(sides: pl.Series) -> pl.Series:
        chosen, rejected = (sides.struct.field(side).str.to_lowercase() for side in ("chosen", "rejected"))
        return pl.Series(ngrams.similarity(chosen, rejected, ngram))

    both = pl.struct(chosen=_text("chosen"), rejected=_text("rejected"))
    known = pl.col("chosen").is_not_null() & pl.col("rejected").is_not_null()
    similarity = both.map_batches(similarities, pl.Float64, is_elementwise=True)
    return Measured(known & (similarity <= max_similarity), pl.format("similarity: {}", similarity.round(6)))


def pairs_per_prompt(*, at_most: Positive) -> pl.Expr:
    """Keep at most at_most pairs of a prompt: those with the largest margins, of equal ones the first.

    So no prompt weighs more than others only because it has many answers.
    Source: many comparisons of one prompt, seen as if they were independent, overfit (InstructGPT, Ouyang et al.,
    arXiv:2203.02155, section 3.5).
    """
    return on_paper(pl.col("margin")).rank("ordinal", descending=True).over("prompt_id") <= at_most


def _within(what: str, length: pl.Expr, least: int, most: int) -> Measured:
    if least > most:
        raise UsageError(
            f"[[build.filters]] {what}_length: min_characters = {least} is more than max_characters = {most}."
        )
    return Measured(length.is_between(least, most), pl.format(f"{what}: {{}} characters", length))


def _listed(column: str, allow: list[str] | None, deny: list[str] | None) -> pl.Expr:
    if allow is None and deny is None:
        raise UsageError(f"[[build.filters]] {column}s: give allow or deny, a list of names.")
    allowed = pl.lit(True) if allow is None else pl.col(column).is_in(allow)
    return allowed & ~pl.col(column).is_in(deny or []).fill_null(False)


def _text(column: str) -> pl.Expr:
    """The turns of a message list as one text."""
    return pl.col(column).list.eval(pl.element().struct.field("content")).list.join("\n")


def _judged(texts: pl.Expr, judge: Callable[[pl.Series], pl.Series]) -> pl.Expr:
    """The verdicts of a function that sees many texts at once and judges each by itself."""
    return texts.map_batches(judge, pl.Boolean, is_elementwise=True)


def _in_prompt_or_response(judge: Callable[[pl.Series], pl.Series]) -> pl.Expr:
    """Whether a function's verdict is true of the response or of any turn of the prompt."""
    of_turns = pl.col("prompt").list.eval(_judged(pl.element().struct.field("content"), judge))
    return _judged(pl.col("response"), judge) | of_turns.list.any()


def _any_of(texts: pl.Series, patterns: list[str]) -> pl.Series:
    return functools.reduce(operator.or_, (texts.str.contains(pattern) for pattern in patterns))


def _is_cut_short(texts: pl.Series, last_line: int) -> pl.Series:
    last = texts.str.tail(LAST_LINE).str.split("\n").list.last()
    in_code = texts.str.count_matches("```", literal=True) % 2 == 1
    in_sentence = (last.str.len_chars() >= last_line) & last.str.contains(GOES_ON) & ~last.str.contains(OPEN_LINE)
    return (in_code & ~last.str.contains(SENTENCE_END)) | (~in_code & in_sentence)
