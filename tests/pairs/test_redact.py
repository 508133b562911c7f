"""Redaction: what counts as personal data and what does not, in texts and in tables."""

from __future__ import annotations

import gzip
import ipaddress
import json
import re
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.errors import UsageError
from prefkit.pairs.redact import KINDS, PATTERNS, Kind, contains, redact, replace
from prefkit.resolve import check

PERSONAL: dict[Kind, list[str]] = {
    "email": [
        "jo@acme.org",
        "Jo.Neil+news@mail.acme.co.uk",
        "first_last-1@sub-domain.acme.museum",
        "1234@qq.com",
        "JO@ACME.ORG",
        "jo@uni-köln.de",
        "josé@acme.org",
        "иван@пример.рф",
    ],
    "phone": [
        "+49 30 901820",
        "+44 (0)20 7946 0958",
        "+1 (202) 456-1111",
        "+1-202-456-1111",
        "+14155552671",
        "+33 1 42 68 53 00",
        "+86 138 0013 8000",
        "(512) 555-2994",
        "(512)555-2994",
        "(512)-555-2994",
        "800-555-2368",
        "1-800-555-2368",
        "202.456.1111",
        "(+49) 30 1234567",
        "(+49)30/1234567",
        "(+49 30) 1234567",
        "(+44) (0)20 7946 0958",
        "(+1) 202-456-1111",
        "(+380) 44 364 55 85",
    ],
    "ip": [
        *("8.8.8.8", "1.1.1.1", "172.15.0.1", "172.32.0.1", "192.169.1.1", "100.128.0.1", "223.255.255.254"),
        "2001:4860:4860::8888",
        "2606:4700:4700:0:0:0:0:1111",
        "2A00:1450:4001:081B:0000:0000:0000:200E",
        "2a02:26f0:fb::",
        "2620:0:1cfe:face:b00c::3",
    ],
}
NOBODYS: dict[Kind, list[str]] = {
    "email": [
        "jo@example.com",
        "jo@mail.example.org",
        "jo@site.test",
        "jo@localhost",
        "git@github.com:jo/code.git",
        "@jo",
        "a@b",
        "@app.route('/')",
        "@jo@mastodon.social",
        "react@17.0.2",
        "x @ y.com",
        "5 @ 3.99",
    ],
    "phone": [
        "2024-05-06",
        "1234567890123",
        "2010-2020",
        "978-3-16-148410-0",
        "1,234,567",
        "3.14159",
        "+3.14159265358",
        "4111-1111-1111-1111",
        "123-45-6789",
        "12:30:45",
        "x + 5",
        "C++11",
        "+40.7127837",
        "192.168.100.1000",
        "200 300 4000",
        "+123",
        "+1234567890123456789",
        "1+2345678901",
        "(555) 555-0123",
        "+1 212 555 0199",
        "RFC-212-456-11112",
        "212-456-1111-2222",
        "100-200-3000",
        "(+2)",
        "(+7) | 15 (+2) | 24",
        "(+49) 30",
        "(+79) 123456789012",
    ],
    "ip": [
        "10.0.0.1",
        "127.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.1.1",
        "100.64.0.1",
        "192.0.2.1",
        "198.51.100.7",
        "203.0.113.9",
        "0.0.0.0",
        "255.255.255.255",
        "256.1.1.1",
        "8.8.8",
        "1.2.3.4.5",
        "v1.2.3.4",
        "8.8.8.08",
        "2024.05.06.01",
        "2001:db8::8a2e:370:7334",
        "fe80::1ff:fe23:4567:890a",
        "fd00:2abc:1::2",
        "fe80::2abc:1:2:3",
        "::1",
        "12:30:45",
        "2024:05:06 12:30:45",
        "2024-05-06T12:30:45",
        "00:1b:44:11:3a:b7",
        "2a:b3:c4:d5:e6:f7:a8:b9:ca:db:ec:fd:0e:1f:20:31",
        "std::vector<int>",
        "dead::beef::cafe",
        "2fad::max::value",
        "a[::2]",
        "a[2000::2]",
        "a[2001:3000:2]",
        "d41d8cd9:8f00b204:e9800998:ecf8427e",
        "2abc:1:2:3:4:5:6",
        "2abc:1:2:3:4:5:6:7:8",
        "2abc:1:2:3:4:5:6::7:8",
        "2abc:1::2::3",
        "sha256:2c26b46b68ffc68ff99b453c1d304134",
        "2.0::1",
    ],
}
AROUND = [
    *("{}", "Write to {}.", "({})", "a {}, b", "<{}>", "\n{}\n", "tel:{}", "{} {}"),
    *("是{}。", "请发到{}谢谢", "連絡は{}まで", "메일은 {}로", "ติดต่อ{}ครับ"),  # scripts without spaces there
]


def one(text: str, kind: Kind) -> str:
    result = replace(pl.Series([text]), [kind])[0]
    assert isinstance(result, str)
    return result


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in PERSONAL.items() for text in texts])
def test_personal_data_is_replaced_wherever_it_stands(kind: Kind, text: str) -> None:
    for frame in AROUND:
        if frame == "{} {}" and text.startswith("+") and not text.startswith("+1"):
            continue  # a number right after an international one is read as one number that is too long
        assert one(frame.format(text, text), kind) == frame.format(*[f"[{kind.upper()}]"] * 2)


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in NOBODYS.items() for text in texts])
def test_what_is_nobodys_stays(kind: Kind, text: str) -> None:
    for frame in AROUND:
        assert one(frame.format(text, text), kind) == frame.format(text, text)


@given(st.ip_addresses(v=4))
@settings(max_examples=200, deadline=None)
def test_addresses_are_public_or_stay(address: ipaddress.IPv4Address) -> None:
    assert one(f"at {address}.", "ip") == ("at [IP]." if address.is_global else f"at {address}.")


@given(st.one_of(st.ip_addresses(v=6, network="2000::/4"), st.ip_addresses(v=6)), st.booleans())
@settings(max_examples=300, deadline=None)
def test_addresses_of_the_new_kind_are_in_use_and_public_or_stay(address: ipaddress.IPv6Address, long: bool) -> None:
    text = address.exploded if long else str(address)
    written = [group for group in text.split(":") if group]
    in_use = address in ipaddress.ip_network("2000::/4") and len(written) >= 3
    assert one(f"at {text}.", "ip") == ("at [IP]." if address.is_global and in_use else f"at {text}.")
    assert one(f"<[IPv6:{text}]/64>", "ip") == one(f"at {text}.", "ip").replace("at ", "<[IPv6:")[:-1] + "]/64>"


@given(st.lists(st.sampled_from(["2001", "2a00", "0", "1", "f00d", "12345", "g", ":", "::", "."]), max_size=16))
@settings(max_examples=300, deadline=None)
def test_only_what_is_an_address_is_taken_for_one(parts: list[str]) -> None:
    text = "".join(parts)
    assert _is_address(text) == (one(text, "ip") == "[IP]")


def _is_address(text: str) -> bool:
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return address.is_global and text.startswith("2") and len(list(filter(None, text.split(":")))) >= 3


PIECES = st.sampled_from(
    [*(text for texts in PERSONAL.values() for text in texts), "+", "@", ".", "-", "(", "1", "a.b"]
)
TEXTS = st.lists(st.one_of(PIECES, st.sampled_from([" ", ", ", "\n", ""]), st.text(max_size=3)), max_size=8).map(
    lambda parts: "".join(parts).encode("utf-8", "ignore").decode()
)


@given(st.lists(st.one_of(st.none(), TEXTS), max_size=6), st.sets(st.sampled_from(KINDS), min_size=1))
@settings(max_examples=150, deadline=None)
def test_contains_says_what_replace_does(texts: list[str | None], kinds: set[Kind]) -> None:
    series = pl.Series(texts, dtype=pl.String)
    changed = replace(series, list(kinds))
    found = contains(series, list(kinds))
    assert series.to_list() == texts, "the input is as it was"
    assert found.to_list() == [None if a is None else a != b for a, b in zip(texts, changed, strict=True)]
    assert replace(changed, list(kinds)).to_list() == changed.to_list()


def test_numbers_that_run_together_all_go() -> None:
    texts = pl.Series(["+33 1 42 68 53 00 (512)555-2994"])
    assert replace(texts, ["phone"]).to_list() == ["[PHONE] [PHONE]"]


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_the_quick_look_misses_nothing(text: str) -> None:
    for hint, exact, _ in PATTERNS.values():
        assert not re.search(exact, text) or re.search(hint, text)


def test_a_long_run_of_digits_does_not_hang() -> None:
    texts = pl.Series(["+1" * 100_000, "+" + "1" * 200_000, "1." * 100_000, "a@" * 100_000, "a@" + "b." * 100_000])
    assert replace(texts, KINDS).to_list() == texts.to_list()


MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))


def test_redact_changes_prompts_and_responses_and_nothing_else() -> None:
    turns = [{"role": "system", "content": "Be jo@acme.org."}, {"role": "user", "content": None}]
    table = pl.DataFrame(
        {
            "prompt": [turns, [], None, [{"role": "user", "content": "Call 800-555-2368, not 8.8.8.8"}]],
            "response": ["8.8.8.8", None, "", "no"],
            "model": ["jo@acme.org"] * 4,
        },
        schema_overrides={"prompt": MESSAGES},
    )
    changed = redact(table)
    assert changed.schema == table.schema
    assert changed["model"].to_list() == ["jo@acme.org"] * 4
    assert changed["response"].to_list() == ["[IP]", None, "", "no"]
    assert changed["prompt"].to_list() == [
        [{"role": "system", "content": "Be [EMAIL]."}, {"role": "user", "content": None}],
        [],
        None,
        [{"role": "user", "content": "Call [PHONE], not [IP]"}],
    ]
    only = redact(table, kinds=("ip",))
    assert only["prompt"][3][0]["content"] == "Call 800-555-2368, not [IP]"
    assert redact(table.select("model")).equals(table.select("model"))
    assert redact(table[:0]).schema == table.schema


def test_options_of_a_pipeline_file() -> None:
    address = "prefkit.pairs.redact:redact"
    assert check(address, {}, "[build.redact]").options == {"kinds": ["email", "phone", "ip"]}
    assert check(address, {"kinds": ["ip"]}, "[build.redact]").options == {"kinds": ["ip"]}
    for wrong in ([], ["name"]):
        with pytest.raises(UsageError, match="kinds"):
            check(address, {"kinds": wrong}, "[build.redact]")


def test_real_dialogues_keep_everything_else(real_data: Path) -> None:
    lines = gzip.decompress((real_data / "hh_harmless" / "test.jsonl.gz").read_bytes()).splitlines()[:500]
    texts = pl.Series([json.loads(line)["chosen"] for line in lines])
    changed = replace(texts, KINDS)
    marks = re.compile(r"\[(?:EMAIL|PHONE|IP)\]")
    touched = [(a, b) for a, b in zip(texts, changed, strict=True) if a != b]
    assert touched
    for before, after in touched:
        pattern = "(.+?)".join(re.escape(part) for part in marks.split(after))
        assert re.fullmatch(pattern, before, re.DOTALL), "only the marks stand for something else"
