import time

import pytest

from course_lib import viz
from course_lib.viz import progress_bar as module
from course_lib.viz import widgets


@pytest.fixture
def frozen(monkeypatch):
    """A clock that only moves when told."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_items_arrive_in_order_and_a_log_gets_one_line(capsys):
    assert list(viz.progress(range(7), label="counting")) == list(range(7))
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("\n") == 1 and out.startswith("[########################] counting · 7/7 · 0.0 s")


def test_the_time_left_follows_the_speed(frozen):
    bar = viz.progress(range(10))
    items = iter(bar)
    for _ in range(4):  # the fourth next() reports that three items are done
        next(items)
        frozen[0] += 2.0
    assert bar.done == 3
    # 3 items in 8 s: the item in progress does not count as done.
    assert bar.seconds_left == pytest.approx(8 / 3 * 7)
    assert "3/10 · 8.0 s, about 19 s left" in bar.text("running")


def test_a_stage_that_is_slower_raises_the_estimate(frozen):
    bar = viz.progress(range(1000))
    items = iter(bar)
    for step in range(501):
        next(items)
        frozen[0] += 0.25 if step < 400 else 2.5
    assert bar.seconds_left == pytest.approx(2.5 * 500, rel=0.1)


def test_an_unknown_number_of_items_is_counted(capsys):
    list(viz.progress(x for x in range(3)))
    assert capsys.readouterr().out.startswith("3 · ")


def test_leaving_the_loop_early_is_said(capsys):
    for item in viz.progress(range(10), label="search"):
        if item == 3:
            break
    assert "search · 3/10" in (out := capsys.readouterr().out) and "stopped early" in out


def test_an_error_passes_through_and_ends_the_line(capsys):
    with pytest.raises(KeyError):
        for _ in viz.progress(range(10)):
            raise KeyError("x")
    assert "stopped early" in capsys.readouterr().out


def test_the_note_is_shown(capsys):
    bar = viz.progress(range(3))
    for item in bar:
        bar.note = f"loss {item}"
    assert "loss 2" in capsys.readouterr().out


def test_nothing_to_do_is_done_at_once(capsys):
    assert list(viz.progress([])) == []
    assert "0/0" in capsys.readouterr().out


def test_a_terminal_line_is_rewritten_in_place(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr(module, "REDRAW_EVERY", 0.0)
    list(viz.progress(range(5)))
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and out.count("\r") == 7  # start, five items, end


def test_in_a_notebook_one_output_is_updated(monkeypatch):
    displayed, updates = [], []

    class Handle:
        def update(self, bundle, raw):
            updates.append(bundle)

    def display(bundle, raw, display_id):
        displayed.append(bundle)
        return Handle()

    monkeypatch.setattr(widgets, "in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", display)
    list(viz.progress(range(5), label="<b>"))
    assert len(displayed) == 1 and len(updates) == 1  # start and end; five quick items need no more
    assert 'value="1.0000"' in updates[-1]["text/html"] and "&lt;b&gt; · 5/5" in updates[-1]["text/html"]
    assert "[########################]" in updates[-1]["text/plain"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.44, "0.4 s"), (9.97, "10 s"), (59.7, "1 min 00 s"), (187, "3 min 07 s"), (3720, "1 h 02 min")],
)
def test_times_are_written_for_people(seconds, words):
    assert module.clock(seconds) == words
