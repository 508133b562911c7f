"""`prefkit report RUN --watch`: the page follows a run from before it begins to its end, whatever happens to it."""

from __future__ import annotations

import fcntl
import json
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

from prefkit.page.serve import Request, Response, served
from prefkit.runs.watch import Watch
from tests.pages import rendered
from tests.runs.made import PHASE, SFT, dpo_lines, sft_line, write_run

ASK = Request("GET", "", {}, b"")


def text_of(watch: Watch) -> str:
    response = watch.answer(ASK)
    assert response.status == 200
    return response.body.decode()


def state(text: str) -> list[str]:
    """What the header says of each phase."""
    return [re.sub(r"<[^>]*>", "", item).strip() for item in re.findall(r"<li>(.*?)</li>", text[: text.index("<main")])]


def test_a_run_from_before_it_begins_to_its_end(tmp_path: Path) -> None:
    out = tmp_path / "r"
    watch = Watch([out])
    assert state(text_of(watch)) == ["r: no run has begun here yet"]
    lines = [*(sft_line(step) for step in range(1, 21)), *dpo_lines(20, {0: 0.5, 20: 0.7})]
    whole = "".join(json.dumps(line) + "\n" for line in lines).encode()
    write_run(out, [], (SFT, PHASE), finished=False, planned=20)
    (out / "dpo" / "begun.json").rename(out / "later")
    with open(out / ".lock", "w") as lock, open(out / "metrics.jsonl", "ab") as log:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert state(text_of(watch)) == ["sft: step 0 of 20", "dpo: not begun"]
        at = 0
        for count in (3, 7, 19):
            end = len(b"".join(whole.splitlines(keepends=True)[:count]))
            log.write(whole[at : end + 10])  # the next line is half-written
            log.flush()
            at = end + 10
            assert state(text_of(watch))[0].startswith(f"sft: step {count} of 20, about ")
        log.write(whole[at:])
        log.flush()
        (out / "sft" / "phase.json").write_text('{"tokens": {}, "epochs": []}')
        (out / "later").rename(out / "dpo" / "begun.json")
        first, second = state(text_of(watch))
        assert first == "sft: finished after step 20"
        assert second.startswith("dpo: step 20 of 20")
    assert state(text_of(watch))[1] == "dpo: stopped after step 20 of 20; go on with --resume"
    (out / "dpo" / "phase.json").write_text('{"tokens": {}, "epochs": []}')
    assert state(text_of(watch))[1] == "dpo: finished after step 20"


def test_nothing_new_is_nothing_to_send_and_a_resumed_run_is_read_anew(tmp_path: Path) -> None:
    out = write_run(tmp_path / "r", dpo_lines(30), finished=False)
    watch = Watch([out])
    first = watch.answer(ASK)
    assert watch.answer(ASK) is first
    assert first.tag
    lines = [*dpo_lines(10), *dpo_lines(40, seed=1)[10:]]  # cut back to step 10, and on to step 40 before the next look
    (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    second = watch.answer(ASK)
    assert second.tag != first.tag
    assert second == Watch([out]).answer(ASK), "as if it had been read at once"
    assert state(second.body.decode()) == ["dpo: stopped after step 40 of 100; go on with --resume"]


def test_a_damaged_file_is_said_until_it_is_mended(tmp_path: Path) -> None:
    out = write_run(tmp_path / "r", dpo_lines(5), finished=False)
    watch = Watch([out])
    (out / "alarms.jsonl").write_text("{")
    response = watch.answer(ASK)
    assert (response.status, response.kind) == (500, "text/plain; charset=utf-8")
    assert b"alarms.jsonl: damaged" in response.body
    (out / "alarms.jsonl").write_text("")
    assert watch.answer(ASK).status == 200
    for request in (Request("POST", "", {}, b""), Request("GET", "other", {}, b"")):
        assert watch.answer(request).status == 404


def test_a_browser_shows_what_is_new_and_keeps_what_is_open(tmp_path: Path) -> None:
    out = write_run(tmp_path / "r", dpo_lines(10, {0: 0.5}), finished=False)
    watch = Watch([out])
    asked = 0

    def answer(request: Request) -> Response:
        nonlocal asked
        asked += request.path == ""
        if asked == 3:  # the page itself, its first look, and then there is more
            lines = dpo_lines(20, {0: 0.5, 20: 0.9})
            (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return watch.answer(request)

    with served(answer) as (server, url):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = rendered(url, tmp_path / "profile")
        server.shutdown()
    assert asked >= 3
    assert "dpo: stopped after step 20 of 100" in page
    assert "0.900 [0.880,&nbsp;0.920]" in page
    assert 'role="slider"' in page[page.index('id="phase-0"') :], "the new charts can be walked through"
    assert re.search(r'id="live">Live\. Newest of ', page)


def test_the_command_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    out = write_run(tmp_path / "r", dpo_lines(5), finished=False)
    command = [sys.executable, "-m", "prefkit", "report", str(out), str(tmp_path / "later"), "--watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert (
            process.stdout.readline() == f"{tmp_path / 'later'}: no run has begun here yet. It shows when one does.\n"
        )
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(url, timeout=30) as page:
            assert "Training report: r, later compared" in page.read().decode()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    assert not (out / "report.html").exists(), "it writes nothing"
