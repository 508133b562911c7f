"""`prefkit view` in a real browser: Playwright drives the system's Chromium, since it brings none of its own here."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefkit.pairs import flags, why
from prefkit.pairs.flags import Flag
from prefkit.pairs.view import api, routes
from tests.pairs.raw import completion, dirty_lines, row, write_lines
from tests.pairs.test_report import INJECTIONS
from tests.pairs.viewing import LABELS, Client, build, viewing

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

WIDTHS = {1440: 900, 768: 1024, 390: 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("view"), dirty_lines(150))


@pytest.fixture
def client(data: Path, tmp_path: Path) -> Iterator[Client]:
    with viewing(data, tmp_path / "flags.jsonl") as found:
        yield found


@pytest.fixture
def page(browser: Browser, client: Client) -> Iterator[Page]:
    with opened(browser, client) as found:
        yield found


class opened:
    """The page of a server; what it says on the console, or throws, fails the test."""

    def __init__(self, browser: Browser, client: Client, width: int = 1440, **options: Any) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": WIDTHS[width]}, **options)
        self.wrong: list[str] = []
        self.page.set_default_timeout(30_000)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", self._console)
        self.page.goto(client.address)
        self.page.wait_for_selector("#rows a")
        self.page.wait_for_function("() => document.getElementById('reason').options.length > 1")

    def _console(self, message: ConsoleMessage) -> None:
        if not message.text.startswith("Failed to load resource: the server responded with a status of 4"):  # a refusal
            self.wrong.append(message.text)

    def __enter__(self) -> Page:
        return self.page

    def __exit__(self, kind: Any, *rest: Any) -> None:
        self.page.close()
        assert kind or self.wrong == []


def settled(page: Page, position: str) -> None:
    """Until the list says where it is."""
    page.wait_for_function("text => document.getElementById('position').textContent === text", arg=position)


def press(page: Page, key: str, title: str) -> None:
    """A key, and until what is open has this title."""
    page.keyboard.press(key)
    page.wait_for_function("text => document.querySelector('#item h2')?.textContent === text", arg=title)


def title(one: dict[str, Any]) -> str:
    return f"Pair {one['pair_id'][:12]}…"


def texts(page: Page) -> list[str]:
    return page.locator("#item .text").all_inner_texts()


def test_browsing_from_page_to_page(page: Page, client: Client) -> None:
    rows = client.rows()
    settled(page, f"1–50 of {len(rows)}")
    assert page.locator("#rows .head").all_inner_texts() == [one["head"] for one in rows[:50]]
    for one in rows[:3]:
        press(page, "j", title(one))
    pair = client.get("pair", row=rows[2]["row"])
    assert texts(page) == [pair[side][-1]["content"] for side in ("prompt", "chosen", "rejected")]
    assert pair["pair_id"] in page.locator("#item dl").inner_text()
    press(page, "k", title(rows[1]))
    page.go_back()
    page.wait_for_function("() => !location.hash.includes('row')")
    assert page.locator("#none").is_visible()
    page.locator("#rows a").nth(49).click()
    press(page, "j", title(rows[50]))
    settled(page, f"51–100 of {len(rows)}")
    assert page.locator("#rows [aria-current]").inner_text().startswith(rows[50]["head"][:20])
    press(page, "k", title(rows[49]))
    settled(page, f"1–50 of {len(rows)}")
    page.locator("#page-after").click()
    settled(page, f"51–100 of {len(rows)}")
    page.reload()
    settled(page, f"51–100 of {len(rows)}")


def test_differing_words_are_marked(page: Page, client: Client) -> None:
    press(page, "j", title(client.rows()[0]))
    pair = client.get("pair", row=0)
    chosen, rejected = (pair[side][-1]["content"] for side in ("chosen", "rejected"))
    sides = page.locator("#item .sides .text")
    for side, mark, text in ((0, "ins", chosen), (1, "del", rejected)):
        marked = sides.nth(side).locator(mark).all_inner_texts()
        assert sides.nth(side).inner_text() == text
        assert 0 < len("".join(marked)) <= len(text)
    page.keyboard.press("d")
    page.wait_for_function("() => document.querySelectorAll('#item ins, #item del').length === 0")
    assert texts(page)[1:] == [chosen, rejected]


def test_searching_and_filtering(page: Page, client: Client) -> None:
    page.keyboard.press("/")
    page.keyboard.type("river")
    found = client.rows(text="river")
    settled(page, f"1–50 of {len(found)}")
    page.select_option("#source", label=next(
        text for text in page.locator("#source option").all_inner_texts() if text.startswith("sharegpt")
    ))  # fmt: skip
    page.fill("#least", "3")
    found = client.rows(text="river", source="sharegpt", least=3)
    settled(page, f"1–{len(found)} of {len(found)}")
    assert 0 < len(found) < 50
    assert page.locator("#rows .head").all_inner_texts() == [one["head"] for one in found]
    page.select_option("#sort-pairs", "margin descending")
    in_order = client.rows(text="river", source="sharegpt", least=3, sort="margin", order="descending")
    page.wait_for_function(
        "text => document.querySelector('#rows .meta').textContent.startsWith(text)",
        arg=f"margin {in_order[0]['margin']:g}",
    )
    page.keyboard.press("Escape")  # leaves the field
    press(page, "j", title(in_order[0]))
    page.fill("#text", "nowhere to be found")
    settled(page, "nothing matches")
    page.locator("#clear").click()
    settled(page, f"1–50 of {len(client.rows())}")
    assert page.locator("#text").input_value() == page.locator("#least").input_value() == ""


def test_typing_and_choosing_at_once_loses_neither(page: Page, client: Client) -> None:
    page.locator("#text").fill("river")
    page.select_option("#split", "test")
    found = client.rows(text="river", split="test")
    settled(page, f"1–{min(50, len(found))} of {len(found)}")
    assert page.locator("#text").input_value() == "river"


def test_values_too_many_to_list_are_counted_and_can_be_asked_for(
    browser: Browser, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    (most, _), (second, _), (third, _) = client.get("choices")["pairs"]["source"]["values"]
    monkeypatch.setattr(api, "CHOICES", 1)
    with viewing(client.folder) as fewer, opened(browser, fewer) as page:
        options = page.locator("#source option").all_inner_texts()
        assert options[1].startswith(most)
        assert options[2:] == ["and 2 rarer ones"]
        for source in (second, third, second):
            page.evaluate("to => { location.hash = `source=${to}`; }", source)
            settled(page, f"1–50 of {len(client.rows(source=source))}")
            assert page.locator("#source option:checked").inner_text() == source
        page.select_option("#split", "test")
        found = client.rows(source=second, split="test")
        settled(page, f"1–{min(50, len(found))} of {len(found)}")
        page.select_option("#source", label=third)
        found = client.rows(source=third, split="test")
        settled(page, f"1–{min(50, len(found))} of {len(found)}")


def test_what_the_server_refuses_is_shown(page: Page) -> None:
    page.fill("#id", "xyz")
    page.wait_for_selector("#said:not([hidden])")
    assert "id" in page.locator("#said").inner_text()
    page.fill("#id", "")
    page.wait_for_selector("#said", state="hidden")
    assert page.evaluate(
        "performance.getEntriesByType('resource').every((one) => one.name.startsWith(location.origin))"
    )


def test_flagging_with_the_keyboard(page: Page, client: Client, tmp_path: Path) -> None:
    rows = client.rows()
    path = tmp_path / "flags.jsonl"
    press(page, "j", title(rows[0]))
    page.keyboard.press("f")
    page.keyboard.type("not <b>better</b>")
    page.keyboard.press("Enter")
    page.wait_for_selector("#rows .flag")
    assert page.locator("#rows .flag").all_inner_texts() == ["⚑ not <b>better</b>"]
    page.wait_for_function("() => document.getElementById('flag-count').textContent === '1'")
    assert flags.read(path) == [Flag("pair", rows[0]["pair_id"], "not <b>better</b>")]
    press(page, "j", title(rows[1]))
    press(page, "k", title(rows[0]))
    assert page.locator("#note").input_value() == "not <b>better</b>"
    page.keyboard.press("f")
    page.keyboard.type("worse")
    page.select_option("#flag-kind", "prompt")
    page.locator("#flag button", has_text="Change").click()
    page.wait_for_selector("#unflag-prompt")
    assert flags.read(path)[1] == Flag("prompt", rows[0]["prompt_id"], "worse")
    page.locator("#show-flagged").click()
    flagged = client.rows(flagged="yes")
    settled(page, f"1–{len(flagged)} of {len(flagged)}")
    press(page, "j", title(flagged[0]))
    page.keyboard.press("u")
    page.wait_for_function("() => document.getElementById('flag-count').textContent === '1'")
    page.wait_for_selector("#unflag-pair", state="detached")
    assert [flag.kind for flag in flags.read(path)] == ["prompt"]
    page.reload()
    page.wait_for_selector("#unflag-prompt")


def test_a_flag_that_cannot_be_saved_is_said(page: Page, client: Client, tmp_path: Path) -> None:
    press(page, "j", title(client.rows()[0]))
    (tmp_path / "flags.jsonl").write_text("broken\n")
    page.keyboard.press("f")
    page.keyboard.press("Enter")
    page.wait_for_selector("#flag .look")
    assert "line 1: no flag" in page.locator("#flag .look").inner_text()


def test_rejects_and_history(page: Page, client: Client, data: Path) -> None:
    page.keyboard.press("r")
    rejects = client.rows("rejects")
    settled(page, f"1–50 of {len(rejects)}")
    page.select_option("#reason", label=next(
        text for text in page.locator("#reason option").all_inner_texts() if text.startswith("not_json")
    ))  # fmt: skip
    broken = client.rows("rejects", reason="not_json")
    settled(page, f"1–{len(broken)} of {len(broken)}")
    press(page, "j", "Rejected at read: not_json")
    assert client.get("reject", row=broken[0]["row"])["raw"] in texts(page)
    page.keyboard.press("p")
    rows = client.rows()
    settled(page, f"1–50 of {len(rows)}")
    press(page, "j", title(rows[0]))
    page.keyboard.press("h")
    page.wait_for_function("() => document.querySelector('.history')?.textContent.startsWith('pair ')")
    assert page.locator(".history").inner_text() == "\n".join(why.lines(why.why(data, rows[0]["pair_id"])))
    page.keyboard.press("h")
    page.wait_for_selector(".history", state="detached")
    page.locator("#of-prompt").click()
    same = client.rows(id=rows[0]["prompt_id"])
    settled(page, f"1–{len(same)} of {len(same)}")


def test_labels(browser: Browser, tmp_path: Path) -> None:
    data = build(tmp_path / "labels", dirty_lines(60), pipeline=LABELS)
    with viewing(data) as client, opened(browser, client) as page:
        rows = client.rows("labels", label="false")
        page.wait_for_function("() => document.getElementById('label').options.length > 2")
        page.select_option("#label", label=f"bad ({len(rows)})")
        settled(page, f"1–{min(50, len(rows))} of {len(rows)}")
        page.keyboard.press("Escape")
        press(page, "j", f"Answer {rows[0]['answer_id'][:12]}…")
        assert texts(page)[1] == client.get("label", row=rows[0]["row"])["completion"][0]["content"]
        page.keyboard.press("f")
        page.keyboard.type("good in truth")
        page.keyboard.press("Enter")
        page.wait_for_selector("#unflag-pair")
        assert flags.read(data / "flags.jsonl") == [Flag("pair", rows[0]["answer_id"], "good in truth")]
        page.keyboard.press("u")
        page.wait_for_function("() => document.getElementById('flag-count').textContent === '0'")
        assert page.evaluate(OUTSIDE) <= 0
        assert page.evaluate(UNNAMED) == []


def test_help_names_every_key(page: Page) -> None:
    page.keyboard.press("?")
    page.wait_for_selector("#help[open]")
    shown = set(page.locator("#help dt").all_inner_texts())
    keys = set(page.evaluate("Object.keys(KEYS)"))
    assert shown == {"Esc" if key == "Escape" else key for key in keys}
    page.keyboard.press("Enter")
    page.wait_for_selector("#help:not([open])", state="attached")


CONTRAST = """
() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (color) => {
    const linear = (v) => (v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    const [r, g, b] = rgb(color).map((v) => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ground = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (rgb(color)[3] === 255) return color;
    }
    return "white";
  };
  const wrong = [];
  for (const one of document.querySelectorAll("body *")) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !one.checkVisibility() || one.matches(":disabled, option")) continue;
    const [a, b] = [light(getComputedStyle(one).color), light(ground(one))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) wrong.push(`${one.tagName} ${one.textContent.slice(0, 20)}: ${ratio.toFixed(2)}`);
  }
  return wrong;
}
"""
UNNAMED = """
() => [...document.querySelectorAll("input, select, button, a, dialog, section")].filter((one) => one.checkVisibility()
  && !one.labels?.length && !one.getAttribute("aria-label") && !one.getAttribute("aria-labelledby")
  && !one.textContent.trim()).map((one) => one.outerHTML)
"""
OUTSIDE = "document.scrollingElement.scrollWidth - innerWidth"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_is_named_and_can_be_read(browser: Browser, client: Client, width: int, scheme: str) -> None:
    client.post("flag", row=0, kind="pair", note="x" * 200)
    with opened(browser, client, width, color_scheme=scheme) as page:
        if width < 800:
            assert not page.locator("#filters").is_visible(), "the list comes first on a phone"
            page.locator("#filter summary").click()

        def good() -> None:
            assert page.evaluate(OUTSIDE) <= 0
            assert page.evaluate(CONTRAST) == []
            assert page.evaluate(UNNAMED) == []

        good()
        press(page, "j", title(client.rows()[0]))
        page.keyboard.press("h")
        page.wait_for_function("() => document.querySelector('.history')?.textContent.startsWith('pair ')")
        good()
        assert page.locator("#list").is_visible() == (width > 800)
        if width < 800:
            assert page.evaluate("() => document.activeElement.id") == "one", "what had the focus is hidden"
            page.locator("#back").click()
            page.wait_for_selector("#list", state="visible")
            assert page.evaluate("() => document.activeElement.closest('#list') !== null")
        page.keyboard.press("r")
        settled(page, f"1–50 of {len(client.rows('rejects'))}")
        good()
        assert page.locator("main").count() == page.locator("header").count() == page.locator("h1").count() == 1


# Text of the data is never run


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with an injection wherever a raw file can put text: sources, models, prompts, answers, broken rows."""
    rng = random.Random(1)
    lines = []
    for number, bad in enumerate(INJECTIONS):
        answers = [completion(rng, at, model=bad, response=f"{bad} {number} {at}", overall_score=at) for at in (1, 2)]
        lines.append(json.dumps(row(rng, f"{bad} {rng.random()}", source=bad, completions=answers)).encode())
        lines.append(f'{{"broken": {number} {bad}'.encode())
    folder = tmp_path_factory.mktemp("hostile")
    write_lines(folder / "raw.jsonl", lines)
    return build(folder, lines, "build.dedupe.action=keep")


def walk(page: Page, client: Client) -> None:
    """Show every pair with its history, and every reject, and flag a pair with each of the injections."""
    for at, bad in enumerate(INJECTIONS):
        client.post("flag", row=at, kind="pair", note=bad)
    page.reload()
    page.wait_for_selector("#rows a")
    for key, kind in (("p", "pairs"), ("r", "rejects")):
        page.keyboard.press(key)
        count = len(client.rows(kind))
        page.wait_for_function(f"() => document.getElementById('position').textContent.endsWith('of {count}')")
        for _ in range(count):
            page.keyboard.press("j")
            page.wait_for_timeout(20)
        page.wait_for_function("row => open?.row === row", arg=count - 1)
        page.keyboard.press("h")
        page.wait_for_function("() => document.querySelector('.history')?.textContent.includes('raw.jsonl')")
    page.wait_for_timeout(200)


def test_nothing_of_the_data_runs(
    browser: Browser, hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with viewing(hostile, tmp_path / "flags.jsonl") as client:
        assert len(client.get("choices")["pairs"]["source"]["values"]) > 5, "injections did reach the data set"
        with opened(browser, client) as page:
            walk(page, client)
            assert page.title() == "Data: p"
            assert page.locator("script").count() == 1
            assert page.locator("img, svg, style").count() == 0
        monkeypatch.setattr(routes, "POLICY", "default-src * 'unsafe-inline'")
        assert client.routes
        kind, script = client.routes.assets["view.js"]
        careless = script.replace(b"made.textContent = text", b"made.innerHTML = text")
        assert careless != script
        client.routes.assets["view.js"] = kind, careless
        held = opened(browser, client)
        for _ in INJECTIONS:
            held.page.keyboard.press("j")
        held.page.wait_for_function("() => document.title === 'broken in'")  # so the test would see it
        held.page.close()
