"""Progress of a build: a bar on a terminal is rich's; here is what a log gets."""

import pytest

from prefkit import progress


def test_a_log_gets_a_line_when_one_is_due(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Stages() as stages:
        stages.stage("reading", 4)
        for second in (20, 40, 60, 80):
            now[0] = second
            stages.advance(1)
    assert capsys.readouterr().err.splitlines() == ["reading: 50 %", "reading: 100 %"]


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "BETWEEN_LINES", 0)
    with progress.Stages(live=False) as stages:
        stages.stage("reading", 1)
        stages.advance(1)
    assert capsys.readouterr().err == ""
