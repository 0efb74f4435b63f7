"""What one learner has done, in one JSON file that survives crashes, damage and two notebooks at once."""

import contextlib
import copy
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from course_lib.paths import state_dir, write_atomically

EMPTY: dict[str, Any] = {"version": 1, "exercises": {}, "questions": {}}


def now() -> str:
    """Local time to the second, such as ``2025-03-01 14:05:09``."""
    return datetime.now().isoformat(sep=" ", timespec="seconds")


def progress_file() -> Path:
    """Where progress is kept: ``progress.json`` in the learner's state folder."""
    return state_dir() / "progress.json"


def load() -> dict[str, Any]:
    """The saved progress; a damaged file is set aside under another name, with a message, and an empty one returned."""
    path = progress_file()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not _is_sound(data):
            raise ValueError("it is not a progress file of this course")
        return data
    except FileNotFoundError:
        return copy.deepcopy(EMPTY)
    except OSError as error:
        _say(f"Progress cannot be read ({error}). The course goes on without it.")
        return copy.deepcopy(EMPTY)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError included
        aside = path.with_name(f"progress.damaged-{time.strftime('%Y%m%d-%H%M%S')}.json")
        with contextlib.suppress(OSError):
            os.replace(path, aside)
            _say(f"The progress file was damaged ({error}). It is kept as {aside.name}; counting starts anew.")
        return copy.deepcopy(EMPTY)


def update(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Load, apply ``change`` in place, save, return the result.

    The file is replaced in one step after the new one is on disk, so a crash at any moment leaves the old or the new
    one, whole. A disk that cannot be written costs a message, never an exception.
    """
    with _locked():
        data = load()
        change(data)
        try:
            _write(progress_file(), data)
        except OSError as error:
            _say(f"Progress cannot be saved ({error}). Make {progress_file().parent} writable, or set COURSE_STATE.")
    return data


def exercise_record(data: dict[str, Any], name: str) -> dict[str, Any]:
    """The record of one exercise inside loaded progress, created when it is new."""
    return data["exercises"].setdefault(name, {"state": "not attempted", "attempts": 0, "hints": 0})


def _write(path: Path, data: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def _is_sound(data: Any) -> bool:
    return (
        isinstance(data, dict)
        and data.get("version") == EMPTY["version"]
        and all(isinstance(data.get(part), dict) for part in ("exercises", "questions"))
        and all(isinstance(record, dict) for part in ("exercises", "questions") for record in data[part].values())
    )


@contextlib.contextmanager
def _locked(patience: float = 2.0):
    """Keep two kernels from losing each other's update; a lock left behind by a crash is ignored after ``patience``."""
    lock = progress_file().with_suffix(".json.lock")
    deadline, mine = time.monotonic() + patience, False
    while not mine and time.monotonic() < deadline:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
            mine = True
        except FileExistsError:
            time.sleep(0.02)
        except OSError:
            break  # a read-only disk: `update` will say so
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()


_said: set[str] = set()


def _say(text: str) -> None:
    """Tell the learner once per process; not a warning, which Python would decorate with our source line."""
    if text not in _said:
        _said.add(text)
        print(text, file=sys.stdout)
