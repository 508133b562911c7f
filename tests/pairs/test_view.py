"""`prefkit view`, asked over HTTP: its answers against DuckDB's, who is refused, and flags that stay."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefkit import manifest
from prefkit.cli import main
from prefkit.config import load_pipeline
from prefkit.errors import DataError, UsageError
from prefkit.pairs import flags, view, why
from prefkit.pairs.build import build_pairs
from prefkit.pairs.flags import Flag
from prefkit.pairs.verify import verify
from prefkit.pairs.view.api import Browser
from prefkit.pairs.view.query import OfPairs, words
from prefkit.pairs.view.table import Table
from tests.pairs.chats import build as ready_made
from tests.pairs.chats import conversations
from tests.pairs.raw import completion, dirty_lines, row, write_lines
from tests.pairs.viewing import LABELS, Client, build, viewing


def answer(rng: random.Random, text: str, at: int) -> dict[str, Any]:
    model = None if at == 1 else f"model-{at}"
    return completion(rng, at, model=model, response=f"{text} {at}", overall_score=at + 1)


def lines() -> list[bytes]:
    """Raw rows with every kind of dirt, some in other languages, some with texts that are patterns or quotes."""
    rng = random.Random(3)
    odd = ["100% (sure)", "a.c [x] \\d+ ^$", "Straße NAÏVE", 'it\'s "quoted"', "ΣΊΣΥΦΟΣ 💡", "semi;colon -- '"]
    german = "Das ist eine Frage nach dem Wetter in Hamburg und nach dem Fluss, bitte schreibe etwas dazu"
    special = [
        row(rng, f"{german} {number}: {text}", completions=[answer(rng, f"{text} {number}", at) for at in range(3)])
        for number, text in enumerate(odd * 2)
    ]
    return [*dirty_lines(260), *(json.dumps(one).encode() for one in special)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("view"), lines())


@pytest.fixture(scope="module")
def client(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with viewing(data, tmp_path_factory.mktemp("flags") / "flags.jsonl") as found:
        yield found


@pytest.fixture(scope="module")
def oracle(data: Path) -> duckdb.DuckDBPyConnection:
    """The shards in DuckDB: pairs and rejects, with `place`, theirs in the order of the manifest."""
    record, base = duckdb.connect(), 0
    text = "list_transform({}, lambda turn: turn.content)".format
    for table, splits in (("pairs", ("train", "test")), ("rejects", ("rejects",))):
        base, parts = 0, []
        for split in splits:
            for shard in manifest.read(data).of_split(split):
                parts.append(
                    f"select *, '{split}' as split, {base} + file_row_number as place "
                    f"from read_parquet('{data / shard.path}', file_row_number = true)"
                )
                base += shard.rows
        record.execute(f"create table {table} as {' union all '.join(parts)}")
    record.execute(
        f"create view texts as select *, array_to_string({text('prompt')}, chr(10)) as prompt_text, "
        "chosen[-1].content as chosen_text, rejected[-1].content as rejected_text, "
        "lower(prompt_text || chr(10) || chosen_text || chr(10) || rejected_text) as everything from pairs"
    )
    return record


def expected(
    oracle: duckdb.DuckDBPyConnection, where: str, *values: Any, order: str = "place", of: str = "texts"
) -> list[int]:
    return [
        place
        for (place,) in oracle.execute(f"select place from {of} where {where} order by {order}", values).fetchall()
    ]


def found(client: Client, kind: str = "pairs", **query: Any) -> list[int]:
    return [one["row"] for one in client.rows(kind, **query)]


# What is found


def test_without_a_filter_all_rows_come_once_in_their_order(client: Client, data: Path) -> None:
    record = manifest.read(data)
    assert len(record.of_split("train")) > 2
    assert found(client) == list(range(record.rows("train") + record.rows("test")))
    assert found(client, "rejects") == list(range(record.rows("rejects")))
    assert client.get("about") == {"pairs": 0, "rejects": 0, "flags": 0} | {
        "pairs": record.rows("train") + record.rows("test"), "rejects": record.rows("rejects"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("query", "where", "values"),
    [
        ({"source": "sharegpt"}, "source = ?", ["sharegpt"]),
        ({"source": "Sharegpt"}, "source = ?", ["Sharegpt"]),
        ({"source": "' or true --"}, "source = ?", ["' or true --"]),
        ({"lang": "de"}, "lang = ?", ["de"]),
        ({"split": "test"}, "split = 'test'", []),
        ({"least": "2", "most": "3.5"}, "margin between 2 and 3.5", []),
        ({"least": "1e300"}, "false", []),
        ({"strategy": "all_pairs", "chosen_model": "model-2"}, "chosen_model = 'model-2'", []),
        ({"none": "chosen_model"}, "chosen_model is null", []),
        ({"none": "chosen_model,lang"}, "chosen_model is null and lang is null", []),
        ({"rejected_model": "model-0", "lang": "de"}, "rejected_model = 'model-0' and lang = 'de'", []),
        ({"text": "river"}, "contains(everything, 'river')", []),
        ({"text": "RIVER Bridge"}, "contains(everything, 'river') and contains(everything, 'bridge')", []),
        ({"text": "river", "within": "chosen"}, "contains(lower(chosen_text), 'river')", []),
        ({"text": "river", "within": "prompt"}, "contains(lower(prompt_text), 'river')", []),
        ({"text": "100% (sure)"}, "contains(rejected_text, '100%')", []),
        ({"text": '"a.c [x] \\d+ ^$"'}, "contains(rejected_text, 'a.c [x]')", []),
        ({"text": "a.c"}, "contains(everything, 'a.c')", []),
        ({"text": ".*"}, "false", []),
        ({"text": "straße naïve"}, "contains(rejected_text, 'Straße NAÏVE')", []),
        ({"text": "σίσυφος 💡"}, "contains(rejected_text, '💡')", []),
        ({"text": "'"}, "contains(everything, chr(39))", []),
    ],
)  # fmt: skip
def test_filters_find_what_duckdb_finds(
    client: Client, oracle: duckdb.DuckDBPyConnection, query: dict[str, str], where: str, values: list[Any]
) -> None:
    rows = found(client, **query)
    assert rows == expected(oracle, where, *values)
    assert rows or where == "false" or "Sharegpt" in values or "--" in str(values) or "lang is null" in where


def test_rejects_are_found_likewise(client: Client, oracle: duckdb.DuckDBPyConnection) -> None:
    assert found(client, "rejects", reason="not_json") == expected(oracle, "reason = 'not_json'", of="rejects") != []
    assert found(client, "rejects", stage="dedupe", text="row 7") == expected(
        oracle, "stage = 'dedupe' and contains(detail, 'row') and contains(detail, '7')", of="rejects"
    )
    fallen = oracle.execute("select place, detail, raw from rejects order by place").fetchall()
    for word in ("source", "overall", "please river"):
        texts = [(place, f"{detail}\n{(raw or b'').decode(errors='replace')}".lower()) for place, detail, raw in fallen]
        holding = [place for place, text in texts if all(one in text for one in word.split())]
        assert found(client, "rejects", text=word) == holding != []
    by_row = expected(oracle, "true", order="origin_row, place", of="rejects")
    assert found(client, "rejects", sort="origin_row") == by_row


def test_ids_by_their_beginning(client: Client, oracle: duckdb.DuckDBPyConnection) -> None:
    pair, prompt = oracle.execute("select pair_id, prompt_id from pairs where place = 11").fetchall()[0]
    assert found(client, id=pair) == [11]
    assert 11 in found(client, id=pair[:6])
    same = expected(oracle, "prompt_id = ? or cluster_id = ?", prompt, prompt)
    assert found(client, id=prompt) == same
    assert len(same) > 1
    at, prompt = oracle.execute("select place, prompt_id from rejects where prompt_id is not null limit 1").fetchall()[
        0
    ]
    assert at in found(client, "rejects", id=prompt)


@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize("sort", ["margin", "chosen_score", "rejected_score", "lang_prob", "source", "lang"])
def test_sorts_are_stable(client: Client, oracle: duckdb.DuckDBPyConnection, sort: str, order: str) -> None:
    way = "asc" if order == "ascending" else "desc"
    in_order = expected(oracle, "margin > 1", order=f"{sort} {way} nulls last, place")
    assert found(client, sort=sort, order=order, least="1.0001") == in_order
    if order == "ascending":
        assert found(client, sort=sort, least="1.0001") == in_order


FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "source": st.sampled_from(["sharegpt", "evol_instruct", "truthful_qa"]),
        "lang": st.sampled_from(["en", "de", "fr"]),
        "chosen_model": st.sampled_from(["model-0", "model-2", "model-3"]),
        "split": st.sampled_from(["train", "test"]),
        "least": st.floats(0, 5),
        "most": st.floats(0, 9),
        "sort": st.sampled_from(["margin", "rejected_score", "lang"]),
    },
)


@given(FILTERS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_filters_together(client: Client, oracle: duckdb.DuckDBPyConnection, query: dict[str, Any]) -> None:
    bounds = {"least": "margin >= ?", "most": "margin <= ?"}
    rules = [bounds.get(name, f"{name} = ?") for name in query if name != "sort"]
    values = [value for name, value in query.items() if name != "sort"]
    order = f"{query['sort']} asc nulls last, place" if "sort" in query else "place"
    assert found(client, **query) == expected(oracle, " and ".join(rules) or "true", *values, order=order)


def test_a_page_looks_no_further_than_it_must(client: Client, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    matches = Table.matches
    monkeypatch.setattr(
        Table, "matches", lambda self, number, *rest: (looked.append(number), matches(self, number, *rest))[1]
    )
    first = client.get("pairs", text="please")
    assert looked == [0]
    assert not first["complete"]
    client.get("pairs", text="please", page=1)
    assert looked == [0], "the first file had two pages"
    total = client.get("pairs/count", text="please")["found"]
    assert looked == list(range(len(looked)))
    assert client.get("pairs", text="please") == first | {"found": total, "complete": True}
    assert len(looked) == len(set(looked))


def test_pages_beyond_the_end_are_empty(client: Client) -> None:
    answer = client.get("pairs", page=9999)
    assert answer["rows"] == []
    assert answer["complete"]


def test_one_pair_is_all_of_it(client: Client, oracle: duckdb.DuckDBPyConnection) -> None:
    names = ["pair_id", "prompt_id", "source", "margin", "chosen_score", "rejected_score", "chosen_file", "chosen_row",
             "chosen_index", "strategy", "split", "cluster_id", "prompt", "chosen", "rejected"]  # fmt: skip
    for at in (0, 39, 40, 150, 251):  # ends of row groups and of files
        theirs = oracle.execute(f"select {', '.join(names)} from pairs where place = {at}").fetchall()[0]
        ours = client.get("pair", row=at)
        assert {name: ours[name] for name in names} == dict(zip(names, theirs, strict=True))
        assert ours["row"] == at
        assert ours["flags"] == {"pair": None, "prompt": None}


def test_one_reject_with_the_prompt_that_is_known(client: Client, oracle: duckdb.DuckDBPyConnection) -> None:
    seen = {"prompt": 0, "cluster_prompt": 0, "raw": 0}
    known = dict(oracle.execute("select prompt_id, prompt from pairs").fetchall())
    for at, prompt, cluster, raw in oracle.execute("select place, prompt_id, cluster_id, raw from rejects").fetchall()[
        ::4
    ]:
        ours = client.get("reject", row=at)
        assert ours["prompt"] == known.get(prompt)
        assert ours["cluster_prompt"] == (known.get(cluster) if prompt not in known else None)
        assert (ours["raw"] is None) == (raw is None)
        for name in seen:
            seen[name] += ours[name] is not None
    assert all(seen.values())


def test_history_is_what_why_prints(client: Client, data: Path) -> None:
    pair = client.get("pair", row=7)
    assert client.get("pair/why", row=7)["lines"] == list(why.lines(why.why(data, pair["pair_id"])))
    for at in (0, 5):
        reject = client.get("reject", row=at)
        place = f"{reject['origin_file']}:{reject['origin_row']}"
        assert client.get("reject/why", row=at)["lines"] == list(why.lines(why.why(data, place)))


def test_choices_are_the_values_with_their_counts(client: Client, oracle: duckdb.DuckDBPyConnection) -> None:
    choices = client.get("choices")
    for kind in ("pairs", "rejects"):
        for name, held in choices[kind].items():
            theirs = oracle.execute(f"select {name}, count(*) from {kind} group by 1").fetchall()
            assert {name: count for name, count in held["values"]} == dict(theirs)  # noqa: C416  # they are lists
            counts = [count for _, count in held["values"]]
            assert counts == sorted(counts, reverse=True)
            assert held["left_out"] == 0


def test_conversations_and_scores_at_both_ends(tmp_path: Path) -> None:
    rows = [one | {"chosen_score": 1e30, "rejected_score": -1e30} for one in conversations(3)]
    data = ready_made(tmp_path, rows, 'chosen_score = "chosen_score"\nrejected_score = "rejected_score"')
    with viewing(data) as client:
        everything = client.rows()
        assert [one["margin"] for one in everything] == [2e30] * len(rows)
        turns = [len(client.get("pair", row=one["row"])["prompt"]) for one in everything]
        assert {len(one["prompt"]) for one in rows} == set(turns)
        assert len(client.rows(text="brief")) == sum(one["prompt"][0]["role"] == "system" for one in rows), "all turns"
        assert client.rows("rejects") == []
        assert client.get("choices")["rejects"]["reason"] == {"values": [], "left_out": 0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  ", []),
        ("a b", ["a", "b"]),
        ('"a b" c', ["a b", "c"]),
        ('"', []),
        ('a"b c"d', ["a", "b c", "d"]),
        ('"open end', ["open", "end"]),
    ],
)
def test_words_and_phrases(text: str, expected: list[str]) -> None:
    assert words(text) == expected


# What is refused


@pytest.mark.parametrize(
    ("name", "query", "says"),
    [
        ("pairs", {"nonsense": "1"}, "nonsense"),
        ("pairs", {"least": "much"}, "least"),
        ("pairs", {"least": "nan"}, "no number"),
        ("pairs", {"label": "true"}, "label"),
        ("pairs", {"page": "-1"}, "page"),
        ("pairs", {"page": "x"}, "page"),
        ("pairs", {"sort": "prompt"}, "sort"),
        ("pairs", {"sort": "margin; drop table"}, "sort"),
        ("pairs", {"order": "descending"}, "order goes with sort"),
        ("pairs", {"sort": "margin", "order": "down"}, "order"),
        ("pairs", {"split": "rejects"}, "split"),
        ("pairs", {"within": "raw"}, "within"),
        ("pairs", {"flagged": "maybe"}, "flagged"),
        ("pairs", {"id": "xyz!"}, "hexadecimal digits"),
        ("pairs", {"id": "abc"}, "id"),
        ("pairs", {"none": "margin"}, "none has no"),
        ("pairs", {"reason": "tied"}, "reason"),
        ("pairs", {"text": "a " * 30}, "too many"),
        ("pairs", {"text": "a" * 3000}, "text"),
        ("rejects", {"source": "x"}, "source"),
        ("rejects", {"flagged": "yes"}, "flagged"),
        ("pair", {}, "row"),
        ("pair", {"row": "999999999"}, "no row 999999999"),
        ("pair", {"row": "-1"}, "row"),
        ("pair", {"row": "1", "page": "2"}, "page"),
        ("pair/why", {"row": "1.5"}, "row"),
        ("choices", {"of": "source"}, "of"),
        ("about", {"x": ""}, "x"),
    ],
)
def test_a_bad_request_is_told_in_a_sentence(client: Client, name: str, query: dict[str, str], says: str) -> None:
    status, answer = client.asked(name, **query)
    assert status == 400
    assert says in answer
    assert answer.endswith(".")


def test_queries_that_are_no_queries(client: Client) -> None:
    for query in ("source=a&source=b", "source", "%ff=1&text=%ff", "&".join(f"x{n}=1" for n in range(99))):
        status, _, content = client.request("GET", client.at(f"api/pairs?{query}"))
        assert status == 400
        assert content.endswith(b".")


PATHS = ["/", "/a-toke/", "/a-token2/", "//", "/api/pairs", "/A-TOKEN/", "/%61-token/", "/x/a-token/api/about", "/é/"]


@pytest.mark.parametrize("path", PATHS)
def test_without_the_token_nothing_is_told(client: Client, path: str) -> None:
    host = f"127.0.0.1:{client.port}"
    with socket.create_connection(("127.0.0.1", client.port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("latin-1"))
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.split(b" ")[1] == b"403"
    assert b"token" in answer


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "", "[::1]:{port}"]
)
def test_a_foreign_host_name_is_refused(client: Client, host: str) -> None:
    for method, path in (("GET", client.at("api/about")), ("GET", client.at("")), ("POST", client.at("api/flag"))):
        given = {"Host": host.format(port=client.port), "Content-Type": "application/json"}
        assert client.request(method, path, b"{}" if method == "POST" else None, given)[0] == 403
    good = {"Host": f"localhost:{client.port}"}
    assert client.request("GET", client.at("api/about"), headers=good)[0] == 200


def test_another_page_is_refused_and_never_invited(client: Client) -> None:
    port = client.port
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"):
        given = {"Origin": origin, "Content-Type": "application/json"}
        status, headers, _ = client.request("POST", client.at("api/flag"), b'{"row": 0, "kind": "pair"}', given)
        assert status == 403
        assert not [name for name in headers if name.lower().startswith("access-control")]
    assert client.request("OPTIONS", client.at("api/flag"))[0] == 501
    assert client.get("about")["flags"] == 0
    status, headers, content = client.request("GET", client.at(""), headers={"Origin": f"http://localhost:{port}"})
    assert status == 200
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert not re.search(rb"<script(?![^>]*src=)|<style|\son\w+=|style=", content), "nothing inline"


def test_no_path_touches_the_file_system(client: Client) -> None:
    for path in (
        "../manifest.json",
        "..%2fmanifest.json",
        "manifest.json",
        "data/",
        "api/",
        "api/pairs/",
        "view.js/x",
        ".",
    ):
        assert client.request("GET", client.at(path))[0] == 404
    assert client.request("POST", client.at("api/nothing"), b"{}", {"Content-Type": "application/json"})[0] == 404
    assert client.request("POST", client.at("api/pairs"), b"{}", {"Content-Type": "application/json"})[0] == 405
    assert client.request("GET", client.at("api/flag"))[0] == 405


def test_only_a_small_json_body_flags(client: Client) -> None:
    path, good = client.at("api/flag"), {"Content-Type": "application/json"}
    body = b'{"row": 0, "kind": "pair"}'
    assert client.request("POST", path, body, {"Content-Type": "text/plain"})[0] == 415
    assert client.request("POST", path, body, {"Content-Type": "application/x-www-form-urlencoded"})[0] == 415
    assert client.request("POST", path, body, good | {"Content-Length": "99999999999999999999"})[0] == 413
    assert client.request("POST", path, body, good | {"Content-Length": "65537"})[0] == 413
    assert client.request("POST", path, body, good | {"Content-Length": "-1"})[0] == 411
    assert client.request("POST", path, body, good | {"Transfer-Encoding": "chunked"})[0] == 411
    pair: dict[str, Any] = {"row": 0, "kind": "pair"}
    changes = [{"kind": "row"}, {"row": "0"}, {"row": 10**9}, {"row": -1}, {"note": "x" * 2001}, {"pair_id": "0" * 32}]
    for wrong in ([], {"row": 0}, *(pair | change for change in changes)):
        status, answer = client.told("flag", wrong)
        assert status == 400
        assert answer
    assert client.told("flag", b"{")[0] == 400
    assert client.told("flag", b'{"row": 0, "kind": "pair", "note": "\\ud800"}')[0] == 400
    assert client.told("unflag", {"kind": "pair", "id": "0"})[0] == 400
    assert client.get("about")["flags"] == 0


def test_it_listens_on_the_loopback_interface_alone(client: Client) -> None:
    with pytest.raises(ConnectionRefusedError):  # it would answer there, listened it on all interfaces
        socket.create_connection(("127.0.0.2", client.port))


# Flags


def test_flags_are_in_the_file_and_the_data_is_as_it_was(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    before = manifest.read(copy)
    with viewing(copy) as client:
        pair = client.get("pair", row=3)
        other = client.get("pair", row=60)
        assert client.post("flag", row=3, kind="pair", note=" the <b>worse</b>\n one “is” chosen ")["flags"] == 1
        assert client.post("flag", row=60, kind="prompt", note="")["flags"] == 2
        assert flags.read(copy / "flags.jsonl") == [
            Flag("pair", pair["pair_id"], "the <b>worse</b> one “is” chosen"), Flag("prompt", other["prompt_id"], ""),
        ]  # fmt: skip
        assert client.get("pair", row=3)["flags"] == {"pair": "the <b>worse</b> one “is” chosen", "prompt": None}
        flagged = [one["row"] for one in client.rows(flagged="yes")]
        rest = [one["row"] for one in client.rows(flagged="no")]
        assert {3, 60} <= set(flagged)
        assert sorted(flagged + rest) == list(range(client.get("about")["pairs"]))
        assert {one["row"] for one in client.rows() if one["flag"] is not None} == set(flagged)
        prompts = {client.get("pair", row=one)["prompt_id"] for one in flagged if one != 3}
        assert prompts == {other["prompt_id"]}
        client.post("flag", row=3, kind="pair", note="changed")
        assert client.get("about")["flags"] == 2
        assert client.get("pair", row=3)["flags"]["pair"] == "changed"
        client.post("unflag", kind="prompt", id=other["prompt_id"])
        assert [one["row"] for one in client.rows(flagged="yes")] == [3]
    assert verify(copy) == []
    assert manifest.read(copy) == before
    with viewing(copy) as client:
        assert client.get("pair", row=3)["flags"]["pair"] == "changed", "and after a new start"


def test_a_file_changed_by_others_is_read_again_and_a_broken_one_told(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    with viewing(data, path) as client:
        pair = client.get("pair", row=5)
        path.write_text(json.dumps({"pair_id": pair["pair_id"], "note": "by hand"}) + "\n")
        assert client.get("pair", row=5)["flags"]["pair"] == "by hand"
        path.write_text("broken\n")
        status, answer = client.told("flag", {"row": 6, "kind": "pair"})
        assert status == 409
        assert "mine.jsonl, line 1: no flag" in answer
        assert path.read_text() == "broken\n"
        path.unlink()
        assert client.get("about")["flags"] == 0
        os.mkdir(path)
        status, answer = client.told("flag", {"row": 6, "kind": "pair"})
        assert status == 409
        assert "mine.jsonl" in answer


def test_a_flag_that_was_answered_survives_a_kill_and_leaves_the_build(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "prefkit", "view", str(data), "--flags", str(tmp_path / "flags.jsonl")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        client = Client(re.findall(r"http://\S+", process.stdout.readline())[0])
        assert len(client.token) >= 32
        noted = {}
        for at in range(0, 40, 2):
            client.post("flag", row=at, kind="pair", note=f"note {at}")
            noted[client.get("pair", row=at)["pair_id"]] = f"pair_id: note {at}"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert {flag.id: f"pair_id: {flag.note}" for flag in flags.read(tmp_path / "flags.jsonl")} == noted
    pipeline = load_pipeline(str(data.parent / "p.toml"), [f"build.exclude={tmp_path / 'flags.jsonl'}"])
    record = build_pairs(pipeline, tmp_path / "out", given=[str(data.parent / "raw.jsonl")])
    assert verify(tmp_path / "out") == []
    assert record.remarks == []
    assert next(stage for stage in record.stages if stage.unit == "pairs").rejected["flagged"] == len(noted)
    with viewing(tmp_path / "out") as left:
        assert {left.get("reject", row=one["row"])["detail"] for one in left.rows("rejects", reason="flagged")} <= set(
            noted.values()
        )
        assert not {one["pair_id"] for one in left.rows()} & set(noted)


# A data set of labels


def test_labels_are_browsed_and_flagged_as_pairs_are(tmp_path: Path) -> None:
    data = build(tmp_path / "labels", dirty_lines(120), pipeline=LABELS)
    shards = [str(data / shard.path) for split in ("train", "test") for shard in manifest.read(data).of_split(split)]
    everything = duckdb.sql(f"select * from read_parquet({shards!r})").fetchall()
    names = duckdb.sql(f"select * from read_parquet({shards!r})").columns
    rows = [dict(zip(names, one, strict=True)) for one in everything]

    def places(rule: Callable[[dict[str, Any]], bool]) -> list[int]:
        return [at for at, one in enumerate(rows) if rule(one)]

    with viewing(data) as client:
        assert client.get("about")["labels"] == len(rows) == len(client.rows("labels"))
        assert found(client, "labels", label="true", most=8) == places(
            lambda one: one["label"] and one["completion_score"] <= 8
        )
        assert found(client, "labels", label="false") == places(lambda one: not one["label"]) != []
        assert found(client, "labels", text="river", within="completion") == places(
            lambda one: "river" in one["completion"][0]["content"].lower()
        )
        by_score = sorted(range(len(rows)), key=lambda at: (rows[at]["completion_score"], at))
        assert found(client, "labels", sort="completion_score") == by_score
        counted = {value: count for value, count in client.get("choices")["labels"]["label"]["values"]}  # noqa: C416
        assert counted == {value: len(places(lambda one: one["label"] is value)) for value in (True, False)}  # noqa: B023
        one = client.get("label", row=7)
        assert {name: one[name] for name in ("answer_id", "label", "completion", "prompt")} == {
            name: rows[7][name] for name in ("answer_id", "label", "completion", "prompt")
        }
        assert client.get("label/why", row=7)["lines"] == list(why.lines(why.why(data, rows[7]["answer_id"])))
        client.post("flag", row=7, kind="pair", note="wrong")
        assert flags.read(data / "flags.jsonl") == [Flag("pair", rows[7]["answer_id"], "wrong")]
        assert found(client, "labels", flagged="yes") == [7]
        assert client.asked("labels", chosen_model="x")[0] == 400
        assert client.asked("pairs")[0] == 404
    pipeline = load_pipeline(str(data.parent / "p.toml"), ["build.exclude=data/flags.jsonl"])
    record = build_pairs(pipeline, tmp_path / "out", given=[str(data.parent / "raw.jsonl")])
    assert record.remarks == []
    assert record.rows("train") + record.rows("test") == len(rows) - 1


# The data set below it


def test_a_data_set_that_is_replaced_is_not_mistaken(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    copy = build(folder, dirty_lines(60))
    with viewing(copy) as client:
        client.get("pair", row=0)
        pipeline = load_pipeline(str(folder / "p.toml"), ["build.split.test=0.5"])
        build_pairs(pipeline, copy, given=[str(folder / "raw.jsonl")], overwrite=True)
        for status, answer in (client.asked("pair", row=0), client.told("flag", {"row": 0, "kind": "pair"})):
            assert status == 409
            assert "built anew" in answer


def test_a_file_that_breaks_is_told_and_mended(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    shard = sorted(copy.glob("data/train-*.parquet"))[1]
    whole = shard.read_bytes()
    with viewing(copy) as client:
        shard.unlink()
        shard.write_bytes(b"no Parquet")
        status, answer = client.asked("pairs/count", text="please")
        assert status == 409
        assert "prefkit verify" in answer
        assert client.get("pairs", text="please")["rows"], "what stands in other files"
        shard.write_bytes(whole)
        assert client.get("pairs/count", text="please")["found"] == len(client.rows(text="please"))


def test_whoever_is_gone_is_not_searched_for(data: Path, tmp_path: Path) -> None:
    browser = Browser(data, tmp_path / "flags.jsonl")
    from prefkit.page.serve import Gone

    calls = iter([False, True])
    with pytest.raises(Gone):
        browser.count_kept({"text": "please"}, lambda: next(calls))
    total = browser.count_kept({"text": "please"}, lambda: False)["found"]
    assert total == len(browser.find_kept({"text": "please"}, lambda: False)["rows"]) or total > 50
    assert total == Browser(data, tmp_path / "flags.jsonl").count_kept({"text": "please"}, lambda: False)["found"]


def test_what_cannot_be_viewed_is_said(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", str(tmp_path)]) == 1
    assert "no manifest.json" in capsys.readouterr().err
    chats = [json.dumps({"messages": [{"role": role, "content": "a"} for role in ("user", "assistant")]}).encode()]
    raw = write_lines(tmp_path / "chats.jsonl", chats)
    assert main(["adopt", str(raw), "--out", str(tmp_path / "chats")]) == 0
    capsys.readouterr()
    assert main(["view", str(tmp_path / "chats")]) == 1
    assert "not pairs" in capsys.readouterr().err
    assert main(["view", str(data), "--flags", str(tmp_path / "nowhere" / "flags.jsonl")]) == 2
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "flags.jsonl").write_text("{")
    assert main(["view", str(data), "--flags", str(tmp_path / "flags.jsonl")]) == 1
    assert "line 1: no flag" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["view", str(data), "--port", str(taken.getsockname()[1])]) == 2
    assert "--port" in capsys.readouterr().err
    assert main(["view", str(data), "--port", "99999"]) == 2
    assert "--port 99999" in capsys.readouterr().err
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    next(copy.glob("data/*.parquet")).unlink()
    with pytest.raises(DataError, match="missing"):
        Browser(copy, copy / "flags.jsonl")


def test_the_command_prints_the_address_and_ends_with_ctrl_c(data: Path) -> None:
    process = subprocess.Popen([sys.executable, "-m", "prefkit", "view", str(data)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    line = process.stdout.readline()
    assert line.startswith(f"{data}: http://127.0.0.1:")
    assert str(data / "flags.jsonl") in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    process.stdout.close()


def test_asked_structs_name_real_columns() -> None:
    from prefkit import schema
    from prefkit.pairs.view.query import EQUAL, IDS, OfRejects

    for kind, known in ((OfPairs, schema.PAIRS), (OfRejects, schema.REJECTS)):
        assert set(EQUAL[kind]) | set(IDS[kind]) <= set(known.names)


def test_a_port_of_the_users_choice(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    told: list[str] = []

    def ready(address: str) -> None:
        told.append(address)
        raise KeyboardInterrupt

    view.serve(data, port=port, ready=ready)
    assert f":{port}/" in told[0]
    with pytest.raises(UsageError):
        view.serve(data, port=70000, ready=ready)
