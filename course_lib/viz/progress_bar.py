"""A progress bar on one line that says how long the rest will take."""

import html
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator

REDRAW_EVERY = 0.2  # seconds; a notebook that gets more updates than that becomes sluggish
RECENT = 40  # the time left is judged by that many last redraws (8 s): stages of a run differ in speed


def progress(iterable: Iterable, total: int | None = None, *, label: str = "") -> "Progress":
    """Yields the items of ``iterable`` and keeps one line up to date: share done, time taken, time left.

    Args:
        iterable: anything to loop over.
        total: the number of items where ``len(iterable)`` does not tell it; without either, only a count is shown.
        label: what is going on, in a word or two.

    The result also has ``note``, a text shown at the end of the line: ``bar.note = f"loss {loss:.3f}"``.
    """
    return Progress(iterable, total, label)


class Progress:
    """See `progress`."""

    def __init__(self, iterable: Iterable, total: int | None, label: str):
        if total is None and hasattr(iterable, "__len__"):
            total = len(iterable)
        if total is not None and total < 0:
            raise ValueError(f"total={total} is negative; give the number of items, or None if it is unknown")
        self.iterable, self.total, self.label, self.note = iterable, total, label, ""
        self.done = 0

    def __len__(self) -> int:
        if self.total is None:
            raise TypeError("the number of items is unknown")
        return self.total

    def __iter__(self) -> Iterator:
        line = _notebook_line() or _terminal_line
        self.done, self._start = 0, time.perf_counter()
        self._recent = deque([(self._start, 0)], maxlen=RECENT)
        drawn = self._start
        line(self, "running")
        ended = "stopped"
        try:
            for item in self.iterable:
                yield item
                self.done += 1
                now = time.perf_counter()
                if now - drawn >= REDRAW_EVERY:
                    drawn = now
                    self._recent.append((now, self.done))
                    line(self, "running")
            ended = "done"
        finally:  # also when the caller leaves the loop early or an error flies past
            line(self, ended)

    @property
    def seconds(self) -> float:
        """Time since the loop began."""
        return time.perf_counter() - self._start

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the recent speed; None while nothing can be said."""
        since, before = self._recent[0]
        if self.total is None or self.done <= before:
            return None
        return (time.perf_counter() - since) / (self.done - before) * max(0, self.total - self.done)

    def text(self, state: str) -> str:
        """What the line says, without the bar."""
        count = f"{self.done}/{self.total}" if self.total is not None else str(self.done)
        parts = [count, clock(self.seconds)]
        if state == "running" and self.seconds_left is not None:
            parts[-1] += f", about {clock(self.seconds_left)} left"
        if state == "stopped":
            parts.append("stopped early")
        return " · ".join([part for part in [self.label, *parts, self.note] if part])

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return min(1.0, self.done / self.total) if self.total else float(self.total == 0)


def clock(seconds: int | float) -> str:
    """``0.4 s``, ``42 s``, ``3 min 07 s``, ``1 h 02 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _notebook_line():
    """A function that draws into one output of the running cell, or None outside a notebook."""
    from course_lib.viz.widgets import in_notebook

    if not in_notebook():
        return None
    from IPython.display import display

    handle = None

    def draw(bar: Progress, state: str) -> None:
        nonlocal handle
        bundle = {"text/plain": _ascii_bar(bar, state), "text/html": _html_bar(bar, state)}
        if handle is None:
            handle = display(bundle, raw=True, display_id=True)
        else:
            handle.update(bundle, raw=True)

    return draw


def _html_bar(bar: Progress, state: str) -> str:
    # <progress> follows the theme and tells its value to a screen reader; inline styles survive in untrusted notebooks.
    value = "" if bar.total is None and state == "running" else f' value="{bar.share if bar.total else 1:.4f}"'
    words = html.escape(bar.text(state))
    return (
        f'<div style="font-family:var(--jp-ui-font-family,sans-serif);font-variant-numeric:tabular-nums">'
        f'<progress max="1"{value} style="width:180px;vertical-align:middle"></progress> {words}</div>'
    )


def _ascii_bar(bar: Progress, state: str, width: int = 24) -> str:
    if bar.total is None:
        return bar.text(state)
    filled = round(bar.share * width)
    return f"[{'#' * filled}{'.' * (width - filled)}] {bar.text(state)}"


def _terminal_line(bar: Progress, state: str) -> None:
    """One line rewritten in place; in a log file only the last state, so that logs stay readable."""
    if sys.stdout.isatty():
        # \x1b[K clears what a longer earlier line left behind.
        sys.stdout.write(f"\r{_ascii_bar(bar, state)}\x1b[K" + ("" if state == "running" else "\n"))
    elif state != "running":
        sys.stdout.write(_ascii_bar(bar, state) + "\n")
    sys.stdout.flush()
