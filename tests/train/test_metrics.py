"""The metrics log: one line a step, cut back on resume, and the same numbers as TensorBoard events."""

import io
import json

from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from prefkit import progress
from prefkit.train import metrics


def test_lines_and_events(tmp_path):
    log = metrics.Log(tmp_path, "dpo", length=0, first_step=1)
    for step in (1, 2):
        log.write(step, {"loss": 0.5 / step, "rewards/chosen": 1.0})
    assert log.length() == (tmp_path / metrics.FILE_NAME).stat().st_size
    log.close()
    assert [line["loss"] for line in metrics.read(tmp_path)] == [0.5, 0.25]
    assert metrics.read(tmp_path, "sft") == []
    events = EventAccumulator(str(tmp_path / "dpo"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]


def test_resume_cuts_what_came_after_the_checkpoint(tmp_path, monkeypatch):
    # TensorBoard reads files in the order of their names: the second, the process, and a number without leading zeros,
    # so the tenth writer of a process comes before the ninth of the same second. Runs resume in another process.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    log = metrics.Log(tmp_path, "dpo", length=0, first_step=1)
    log.write(1, {"loss": 1.0})
    length = log.length()
    log.write(2, {"loss": 2.0})
    log.close()
    with open(tmp_path / metrics.FILE_NAME, "ab") as file:
        file.write(b'{"half a li')  # as a crash leaves it
    log = metrics.Log(tmp_path, "dpo", length=length, first_step=2)
    log.write(2, {"loss": 3.0})
    log.close()
    assert [line["loss"] for line in metrics.read(tmp_path)] == [1.0, 3.0]
    events = EventAccumulator(str(tmp_path / "dpo"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 3.0)]


def test_each_line_is_there_as_soon_as_it_is_written(tmp_path):
    log = metrics.Log(tmp_path, "sft", length=0, first_step=1)
    log.write(1, {"loss": 1.0})
    assert json.loads((tmp_path / metrics.FILE_NAME).read_text())["step"] == 1
    log.close()


def test_progress_shows_notes_alone_where_there_is_no_terminal():
    console = Console(file=io.StringIO())
    with metrics.live_progress(console) as progress:
        progress.update("dpo", 1, 2, "loss 0.5")
        progress.note("3 rows cut")
    assert console.file.getvalue().strip() == "3 rows cut"
    terminal = Console(file=io.StringIO(), force_terminal=True, width=120)
    with metrics.live_progress(terminal) as progress:
        progress.update("dpo", 1, 2, "loss 0.5")
    assert "loss 0.5" in terminal.file.getvalue()


def test_a_note_is_printed_as_it_is_and_in_a_log_on_one_line():
    text = 'cut. Give some: prompts = ["…"], or [red]none[/red] ' + "and so on " * 20
    console = Console(file=io.StringIO(), width=80)
    with metrics.live_progress(console) as progress:
        progress.note(text)
    assert console.file.getvalue() == text + "\n"


def last_seen(*updates):
    """What a terminal shows last of these updates of progress."""
    terminal = Console(file=io.StringIO(), force_terminal=True, width=120)
    with metrics.live_progress(terminal) as progress:
        for update in updates:
            progress.update(*update)
    return [drawn for drawn in terminal.file.getvalue().split("\x1b[2K") if "━" in drawn][-1]


def test_on_a_terminal_finished_stages_make_room_for_those_at_work():
    evaluations = [(f"evaluation {step} [/]", 5, 5) for step in range(3)]
    shown = last_seen(("dpo", 1, 3), *evaluations)
    assert "1/3" in shown and "evaluation 2 [/]" in shown
    assert "evaluation 0" not in shown and "evaluation 1" not in shown
    shown = last_seen(("dpo", 1, 3), *evaluations, ("dpo", 2, 3))
    assert "2/3" in shown and "evaluation" not in shown


def test_a_log_gets_a_line_when_one_is_due(monkeypatch):
    monkeypatch.setattr(progress, "BETWEEN_LINES", 0)
    console = Console(file=io.StringIO())
    with metrics.live_progress(console) as shown:
        shown.update("dpo", 1200, 2000, "loss [0.5]")
        shown.update("eval", 1, 2)
    assert console.file.getvalue().splitlines() == ["dpo: 1,200 of 2,000, loss [0.5]", "eval: 1 of 2"]


def test_length_is_that_of_the_file_after_a_cut(tmp_path):
    (tmp_path / metrics.FILE_NAME).write_bytes(b"{}\n" * 100)
    log = metrics.Log(tmp_path, "dpo", length=30, first_step=1)
    assert log.length() == 30
    log.close()
