import json
import os
import time

import pytest

from course_lib import speed


@pytest.fixture(autouse=True)
def fresh(state, monkeypatch):
    monkeypatch.setattr(speed, "_factor", {})
    monkeypatch.setattr(speed, "busy", lambda: False)
    monkeypatch.delenv("COURSE_SPEED", raising=False)


@pytest.fixture
def half_as_fast(monkeypatch):
    """A machine of factor 2, and the list of probes that ran."""
    probes = []
    monkeypatch.setattr(speed, "measure", lambda: probes.append(1) or 2.0)
    return probes


@pytest.mark.parametrize(
    "reference, phrase",
    [(0, "a second"), (0.4, "a second"), (2, "4 s"), (20.9, "40 s"), (43, "85 s"), (45, "1.5 min"), (140, "4.5 min"),
     (300, "10 min"), (1000, "35 min"), (3600, "2 h")],
)  # fmt: skip
def test_about_scales_and_rounds(half_as_fast, reference, phrase):
    assert speed.about(reference) == f"about {phrase} on this machine"


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_about_refuses_what_is_no_duration(half_as_fast, seconds):
    with pytest.raises(ValueError, match=str(seconds)):
        speed.about(seconds)


def test_one_probe_per_machine(half_as_fast, monkeypatch):
    assert speed.factor() == speed.factor() == 2.0
    monkeypatch.setattr(speed, "_factor", {})  # the next process
    assert speed.factor() == 2.0
    assert len(half_as_fast) == 1
    monkeypatch.setattr(speed, "_machine", lambda: "another laptop")
    speed.factor()
    assert len(half_as_fast) == 2
    assert len(json.loads(speed._file().read_text())) == 2


@pytest.mark.parametrize(
    "content",
    ["", "{", "[1]", "null", '{"MACHINE": "fast"}', '{"MACHINE": 0}', '{"MACHINE": -3}', '{"MACHINE": NaN}', "\xff"],
)
def test_a_damaged_file_means_a_new_probe(half_as_fast, content):
    speed._file().write_text(content.replace("MACHINE", speed._machine()), encoding="latin-1")
    assert speed.factor() == 2.0
    assert json.loads(speed._file().read_text())[speed._machine()] == 2.0
    assert [path.name for path in speed._file().parent.iterdir()] == ["speed.json"]


def test_a_folder_that_cannot_be_written_is_no_error(half_as_fast, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("COURSE_STATE", str(tmp_path / "file"))
    assert speed.factor() == 2.0


def test_a_full_disk_leaves_nothing_behind(half_as_fast, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert speed.factor() == 2.0
    assert list(speed._file().parent.iterdir()) == []


def test_what_a_busy_machine_measured_is_not_kept(half_as_fast, monkeypatch):
    monkeypatch.setattr(speed, "busy", lambda: True)
    assert speed.factor() == speed.factor() == 2.0
    assert len(half_as_fast) == 1
    assert not speed._file().exists()


def test_a_factor_can_be_set(half_as_fast, monkeypatch):
    monkeypatch.setenv("COURSE_SPEED", "0.5")
    assert speed.about(120) == "about 60 s on this machine"
    assert half_as_fast == []


@pytest.mark.parametrize("value", ["fast", "0", "-1", "nan"])
def test_a_factor_that_is_none_is_refused(half_as_fast, monkeypatch, value):
    monkeypatch.setenv("COURSE_SPEED", value)
    with pytest.raises(ValueError, match=value):
        speed.factor()


def test_the_probe_itself():
    start = time.perf_counter()
    found = speed.measure(seconds=0.2)
    assert 1e-4 < found < 1e4
    assert time.perf_counter() - start < 30  # one round in any case, and then the 0.2 s
