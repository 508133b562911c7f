"""Personal data in texts: e-mail addresses, phone numbers and IP addresses, found and put out of sight.

What counts is kept narrow, since a false hit damages text:

- e-mail: `name@domain.tld`, also in letters that are not ASCII. Not the domains that are reserved for examples (RFC
  2606: example.com, .test, …), and not `git@`, which names a repository.
- phone: an international number (`+49 30 901820` or `(+49) 30 901820`, 9 to 13 digits), or a North American one whose
  groups stand apart by parentheses, hyphens or dots (`(212) 736-5000`, `800.555.2368`). Not dates, not digits without
  separators, not groups apart by spaces alone, and not 555-01xx, which is reserved for fiction.
- ip: an address of the public internet. Private, local and documentation addresses (10.0.0.1, 127.0.0.1, 192.0.2.1,
  2001:db8::1) name nobody, as in datatrove's PIIFormatter. A version number of four parts is a known false hit. Of IPv6
  that is what IANA assigns from, 2000::/3 as far as it is in use: four digits of which the first is 2. At least three
  groups must be written out, which tells an address from `a[2000::2]`; no time, MAC address or `std::` looks like that.

The kinds are those that Dolma masks (Soldaini et al., arXiv:2402.00159). Names, postal addresses and national identity
numbers are not found; no pattern finds them well. A find may stand right beside letters of scripts that put no space
between words, or particles behind them (Chinese, Japanese, Korean, Thai, …), and beside no others.

How: one scan by Rust's regular expressions finds the few texts that might hold something (3 to 5 µs a text of 1,200
characters); only those are looked at by Python's, which can look around and ask `ipaddress`.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, NamedTuple

import polars as pl
from annotated_types import MinLen

Kind = Literal["email", "phone", "ip"]
Kinds = Annotated[tuple[Kind, ...], MinLen(1)]
KINDS: tuple[Kind, ...] = ("email", "phone", "ip")


class Pattern(NamedTuple):
    """`hint` (for Rust) matches wherever `exact` (for Python, which compiles it when a hint first matches) does;
    `is_personal` has the last word on a match."""

    hint: str
    exact: str
    is_personal: Callable[[str], bool]


def redact(candidates: pl.DataFrame, *, kinds: Kinds = KINDS) -> pl.DataFrame:
    """Replace e-mail addresses, phone numbers and IP addresses in prompts and responses by [EMAIL], [PHONE] and [IP].

    Works on the columns `prompt` (message lists) and `response`, as far as the table has them.
    """
    content = pl.field("content").map_batches(lambda texts: replace(texts, kinds), pl.String, is_elementwise=True)
    columns = {
        "prompt": pl.col("prompt").list.eval(pl.element().struct.with_fields(content)),
        "response": pl.col("response").map_batches(lambda texts: replace(texts, kinds), pl.String, is_elementwise=True),
    }
    return candidates.with_columns(columns[name] for name in columns if name in candidates.columns)


def replace(texts: pl.Series, kinds: Sequence[Kind]) -> pl.Series:
    """Texts with every find of the given kinds replaced by the kind's name in brackets."""
    wanted = [kind for kind in PATTERNS if kind in kinds]
    places = _suspects(texts, wanted).arg_true()
    values = [_replace_all(text, wanted) for text in texts.gather(places)]
    return texts.clone().scatter(places, pl.Series(values, dtype=pl.String)) if values else texts


def _replace_all(text: str, kinds: Sequence[Kind]) -> str:
    """Until nothing is left: two numbers that run together look like none, until the second is replaced."""
    before = ""
    while text != before:
        before = text
        for kind in kinds:
            text = _replace(text, kind)
    return text


def contains(texts: pl.Series, kinds: Sequence[Kind]) -> pl.Series:
    """Whether each text holds anything that `replace` would replace; null for null."""
    found = _suspects(texts, kinds)
    places = found.arg_true()
    hits = [any(_replace(text, kind) != text for kind in kinds) for text in texts.gather(places)]
    return found.scatter(places, pl.Series(hits, dtype=pl.Boolean)) if hits else found


def _suspects(texts: pl.Series, kinds: Sequence[Kind]) -> pl.Series:
    return texts.str.contains("|".join(PATTERNS[kind].hint for kind in kinds))


def _replace(text: str, kind: Kind) -> str:
    _, exact, is_personal = PATTERNS[kind]
    return re.sub(exact, lambda match: f"[{kind.upper()}]" if is_personal(match[0]) else match[0], text)


def fingerprint(kinds: Sequence[Kind]) -> str:
    """SHA-256 of the patterns of some kinds, and of what becomes of fixed texts by them: where two are equal, the same
    personal data was replaced."""
    patterns = [[kind, PATTERNS[kind].hint, PATTERNS[kind].exact] for kind in PATTERNS if kind in kinds]
    left = replace(pl.Series(PROBES), kinds).to_list()
    return hashlib.sha256(json.dumps([patterns, left]).encode()).hexdigest()


def _is_someones_email(address: str) -> bool:
    domain = address.partition("@")[2].lower()
    name, _, top = domain.rpartition(".")
    is_example = name.rpartition(".")[2] == "example" and top in ("com", "net", "org")
    return not is_example and top not in ("example", "test", "invalid", "localhost") and not address.startswith("git@")


def _is_someones_phone(number: str) -> bool:
    digits = re.sub(r"\D", "", number)
    is_decimal = number.count(".") == 1
    return 9 <= len(digits) <= 13 and not is_decimal and not digits[-7:].startswith("55501")


def _is_public(address: str) -> bool:
    written = len([group for group in address.split(":") if group])
    if ":" in address and not 3 <= written <= 8 - ("::" in address):
        return False
    return ipaddress.ip_address(address).is_global


# Letters and digits, but those of scripts beside which a find may stand: Thai to Tibetan, Burmese, Khmer, kana, Han and
# Hangul.
_CLOSE = r"\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u31f0-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff66-\uffdc"
_WORD = rf"[^\W{_CLOSE}]"
_LETTER_OR_DIGIT = rf"[^\W_{_CLOSE}]"
_LETTER = rf"[^\W\d_{_CLOSE}]"
_NO_ASCII = "\x80-\U0010ffff"  # for hints, which need not be exact

_GROUP = "[0-9A-Fa-f]{1,4}"
_GROUPS = f"(?::{_GROUP})"
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"

# In the order of replacement: an IP address may end what looks like a phone number. None begins right after a bracket,
# so that what stands behind a replacement is not judged otherwise than before.
PATTERNS: dict[Kind, Pattern] = {
    "email": Pattern(
        hint=rf"[A-Za-z0-9_%+{_NO_ASCII}-]@[A-Za-z0-9{_NO_ASCII}-]",
        exact=(
            rf"(?<!{_WORD})(?<![\].%+@-]){_WORD}(?:(?:{_WORD}|[.%+-]){{0,62}}(?:{_WORD}|[%+-]))?@"
            rf"(?:{_LETTER_OR_DIGIT}(?:(?:{_LETTER_OR_DIGIT}|-){{0,61}}{_LETTER_OR_DIGIT})?\.)+{_LETTER}{{2,24}}(?!{_WORD}|-)"
        ),
        is_personal=_is_someones_email,
    ),
    "ip": Pattern(
        hint=r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|2[0-9A-Fa-f]{3}:[0-9A-Fa-f]{0,4}:",
        exact=(
            rf"(?<!{_WORD})(?<![\].])(?:{_BYTE}\.){{3}}{_BYTE}(?!{_WORD}|\.[0-9])"
            rf"|(?<!{_WORD})(?<![\].])(?:(?<![0-9A-Fa-f:]:)|(?<=v6:))"  # an end of a longer address is none; [IPv6:…]
            rf"2[0-9A-Fa-f]{{3}}(?:{_GROUPS}{{7}}|{_GROUPS}{{0,6}}::(?:{_GROUP}{_GROUPS}{{0,5}})?)(?!{_WORD}|:|\.[0-9])"
        ),
        is_personal=_is_public,
    ),
    "phone": Pattern(
        hint=r"\+[1-9]|[2-9][0-9]{2}(?:\)[ -]?|[-.])[0-9]{3}[-. ][0-9]{4}",
        exact=(
            rf"(?<!{_WORD})(?<![\]+.-])(?:"
            r"(?:\+1|\(\+1\))[-. ]?(?:\([2-9][0-9]{2}\)|[2-9][0-9]{2})[-. ]?[0-9]{3}[-. ]?[0-9]{4}"
            r"|(?:\+[2-9][0-9]*+|\(\+[2-9][0-9 ]{0,8}\))(?:[ ./-]?(?:\([0-9]++\)|[0-9]++)){0,6}+"
            r"|(?:1[-. ])?(?:\([2-9][0-9]{2}\)[ -]?|[2-9][0-9]{2}[-.])[0-9]{3}[-. ][0-9]{4}"
            rf")(?!{_WORD}|-|[.,/][0-9])"
        ),
        is_personal=_is_someones_phone,
    ),
}

# Texts by which the last words on matches show themselves, besides the patterns.
PROBES = (
    "jane@doe.org, jane@example.com, jane@doe.test, git@doe.org",
    "+49 30 901820, (212) 736-5000, 212-555-0142, 1234567.890, +1 23",
    "8.8.8.8, 10.0.0.1, 127.0.0.1, 192.0.2.1, 2606:4700:4700::1111, 2001:db8::1, 2606::1",
)
