"""The server of pages: behind its token, by the loopback address alone, and nothing but what it is asked to answer."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from prefkit.page.serve import Request, Response, served


@contextmanager
def running(response: Response) -> Iterator[tuple[str, list[Request]]]:
    asked: list[Request] = []

    def answer(request: Request) -> Response:
        asked.append(request)
        return response

    with served(answer) as (server, url):
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield url, asked
        server.shutdown()
        thread.join()


def get(url: str, *, body: bytes | None = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body, headers=named), timeout=10) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def test_what_is_asked_reaches_the_page_and_its_answer_the_browser() -> None:
    with running(Response("å".encode(), tag="v1")) as (url, asked):
        assert url.startswith("http://127.0.0.1:")
        status, body, headers = get(f"{url}rows?page=2&q=a%20b")
        assert (status, body.decode()) == (200, "å")
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert get(url, body=b'"flag"', Content_Type="application/json")[0] == 200
        first, second = asked
        assert first[:4] == ("GET", "rows", {"page": "2", "q": "a b"}, b"")
        assert second[:4] == ("POST", "", {}, b'"flag"')
        assert get(url, If_None_Match='"v1"')[:2] == (304, b"")
        assert get(url, If_None_Match='"v0"')[:2] == (200, "å".encode())


def test_without_the_token_or_by_another_name_there_is_nothing() -> None:
    with running(Response(b"secret")) as (url, asked):
        base, token = url.rstrip("/").rsplit("/", 1)
        for path in ("", "/", "/favicon.ico", f"/{token[:-1]}/", f"/{token}x/", f"/x/{token}/"):
            status, body, _ = get(base + path)
            assert status == 403
            assert body.startswith(b"The address lacks its token")
        assert get(url, Host="evil.example:80")[0] == 403, "a name of the web that leads here"
        assert get(url, Host=f"localhost:{base.rsplit(':', 1)[1]}")[0] == 200, "a tunnel's name"
        assert len(asked) == 1
        assert get(url, body=b"", Content_Type="application/json", Content_Length=str(1 << 40))[0] == 413


def test_each_server_has_a_token_of_its_own() -> None:
    with running(Response(b"")) as (one, _), running(Response(b"")) as (other, _):
        assert one.rsplit("/", 2)[1] != other.rsplit("/", 2)[1]
        assert len(one.rsplit("/", 2)[1]) >= 32


def test_what_is_no_request_is_refused() -> None:
    with running(Response(b"x")) as (url, asked):
        assert get(f"{url}?a=1&a=2")[0] == 400
        assert get(f"{url}?a=%ff")[0] == 400
        assert get(url, Content_Length="5")[0] == get(url, content_length="5")[0] == 400
        assert get(url, body=b"a=1")[0] == 415, "a form, which another page could send"
        assert get(url, Origin="http://evil.example")[0] == 403
        assert asked == []


@pytest.mark.parametrize("status", [200, 500])
def test_the_status_is_the_answers(status: int) -> None:
    with running(Response(b"x", "text/plain", status)) as (url, _):
        assert get(url)[0] == status
