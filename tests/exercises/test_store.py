"""Progress survives crashes, damage, read-only disks and two writers."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from course_lib.exercises import store


def test_what_is_saved_is_loaded(state):
    store.update(lambda data: store.exercise_record(data, "mix").update(state="passed"))
    assert store.load()["exercises"]["mix"]["state"] == "passed"
    assert json.loads((state / "progress.json").read_text())["version"] == 1


@pytest.mark.parametrize(
    "damage", ["", "{", '{"version": 1}', "[]", '{"version": 99, "exercises": {}, "questions": {}}', "\x00"]
)
def test_a_damaged_file_is_set_aside_not_overwritten(state, damage, capsys):
    store._said.clear()
    (state / "progress.json").write_text(damage)
    assert store.load() == store.EMPTY
    store.update(lambda data: store.exercise_record(data, "mix"))
    kept = list(state.glob("progress.damaged-*.json"))
    assert [p.read_text() for p in kept] == [damage]
    assert "damaged" in capsys.readouterr().out


def test_bytes_that_are_no_text_count_as_damage(state):
    (state / "progress.json").write_bytes(b"\xff\xfe\x00\x80")
    assert store.load() == store.EMPTY


def test_a_disk_that_cannot_be_written_costs_a_message(state, monkeypatch, capsys):
    store._said.clear()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    store.update(lambda data: store.exercise_record(data, "mix"))
    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", full)
        store.update(lambda data: store.exercise_record(data, "gate"))
    assert "cannot be saved" in capsys.readouterr().out
    assert list(store.load()["exercises"]) == ["mix"]
    assert not list(state.glob(".progress*"))  # no half-written file is left


def test_a_stale_lock_does_not_block(state):
    (state / "progress.json.lock").write_text("")
    start = time.monotonic()
    store.update(lambda data: store.exercise_record(data, "mix"))
    assert time.monotonic() - start < 4
    assert "mix" in store.load()["exercises"]


def test_two_writers_lose_nothing(state):
    def write(names):
        for name in names:
            store.update(lambda data, n=name: store.exercise_record(data, n))

    groups = [[f"{k}{i}" for i in range(12)] for k in "abc"]
    threads = [threading.Thread(target=write, args=(g,)) for g in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(store.load()["exercises"]) == {n for g in groups for n in g}


def test_kill_9_during_a_write_loses_nothing_already_saved(state):
    """A process saves as fast as it can and reports each save; it is killed at many different moments."""
    program = textwrap.dedent("""
        import sys, itertools
        from course_lib.exercises import store
        start = len(store.load()["exercises"])
        for i in itertools.count(start):
            store.update(lambda d: store.exercise_record(d, f"e{i}").update(note="x" * 3000))
            print(i, flush=True)
    """)
    saved = -1
    for moment in (0.01, 0.05, 0.1, 0.02, 0.07):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        saved = max(saved, int(process.stdout.readline()))
        time.sleep(moment)
        process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        rest = process.communicate()[0].split()
        saved = max([saved, *(int(n) for n in rest)])
        (state / "progress.json.lock").unlink(missing_ok=True)
        names = store.load()["exercises"]
        assert {f"e{i}" for i in range(saved + 1)} <= set(names)
    assert not list(state.glob("progress.damaged-*"))
