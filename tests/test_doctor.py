import ast
import json
import os
import re
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from course_lib import doctor as module
from course_lib import paths, speed
from course_lib.doctor import Finding, Report, doctor

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def quick(state, monkeypatch):
    monkeypatch.setattr(speed, "_factor", {})
    monkeypatch.setattr(speed, "measure", lambda: 1.5)
    monkeypatch.setattr(speed, "busy", lambda: False)
    monkeypatch.delenv("COURSE_SPEED")


def terminal(**environment: str) -> subprocess.CompletedProcess:
    """The doctor as a learner runs it."""
    command, env = [sys.executable, "-m", "course_lib.doctor"], {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=120)


def find(check: str) -> Finding:
    """What one check finds."""
    return module._guarded(module.CHECKS[check])


def test_every_check_reports_here():
    report = doctor()
    assert [finding.check for finding in report.findings] == list(module.CHECKS)
    assert report.healthy, report
    assert all(finding.fix for finding in report.findings if finding.level != "ok")


def test_in_the_terminal():
    done = terminal()
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    assert re.search(r"\[ok\] +torch +torch 2\.", done.stdout)
    assert done.stdout.splitlines()[-1].startswith("This machine is ready for the course.")


@pytest.mark.parametrize(
    "package, breakage",
    [
        ("torch", "raise ImportError('libtorch_cpu.so: cannot open shared object file')"),
        ("torch", "raise SystemExit(3)"),
        ("torch", ""),
        ("torchvision", "raise RuntimeError('operator torchvision::nms does not exist')"),
        ("psutil", "1 / 0"),
        ("ipywidgets", "import a_package_that_nobody_has"),
    ],
)
def test_a_broken_package_is_a_finding_and_no_traceback(tmp_path, package, breakage):
    (tmp_path / f"{package}.py").write_text(breakage + "\n")
    done = terminal(PYTHONPATH=str(tmp_path), COURSE_SPEED="1")
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    problems = [line for line in done.stdout.splitlines() if line.startswith("[PROBLEM]")]
    assert problems
    assert "-m pip install -c constraints.txt -e ." in done.stdout
    assert done.stdout.count("[") >= len(module.CHECKS)  # the other checks still ran


def test_an_old_python_is_told_so_and_nothing_else(monkeypatch):
    version = namedtuple("version_info", "major minor micro releaselevel serial")
    monkeypatch.setattr(sys, "version_info", version(3, 10, 13, "final", 0))
    report = doctor()
    (finding,) = report.findings
    assert finding.level == "problem" and "3.10.13" in finding.text and "3.11" in finding.fix
    assert not report.healthy


@pytest.mark.parametrize("name", ["__init__", "doctor", "paths", "torchvision_shim"])
def test_what_the_doctor_imports_can_be_read_by_an_old_python(name):
    ast.parse((ROOT / "course_lib" / f"{name}.py").read_text(encoding="utf-8"), feature_version=(3, 7))


def test_a_newer_python_than_tested_is_a_note(monkeypatch):
    version = namedtuple("version_info", "major minor micro releaselevel serial")
    monkeypatch.setattr(sys, "version_info", version(3, 99, 0, "final", 0))
    assert module.check_python().level == "note"


def test_a_package_in_a_wrong_version(monkeypatch):
    from importlib import metadata

    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.1" if name == "einops" else real(name))
    finding = find("packages")
    assert finding.level == "problem" and "einops 0.1 (needs >=0.8)" in finding.text


def test_a_missing_package(monkeypatch):
    from importlib import metadata

    real = metadata.version

    def version(name):
        if name == "einops":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    finding = find("packages")
    assert finding.level == "problem" and finding.text == "missing: einops"


def test_a_torchvision_of_another_torch(monkeypatch):
    from importlib import metadata

    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.24.1" if name == "torchvision" else real(name))
    finding = find("torchvision")
    assert finding.level == "problem" and "0.24.1" in finding.text and '"torchvision==0.' in finding.fix


@pytest.mark.parametrize("variable, value", [("COURSE_DEVICE", "gpu"), ("COURSE_PROFILE", "desktop")])
def test_a_setting_that_means_nothing(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    finding = find("torch")
    assert finding.level == "problem" and variable in finding.text and value in finding.text


def test_a_device_that_does_not_compute(monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", "cuda:7")
    finding = find("torch")
    assert finding.level == "problem" and "COURSE_DEVICE=cpu" in finding.fix


def test_one_thread_on_many_cores(monkeypatch):
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    finding = find("threads")
    assert finding.level == "note" and "unset OMP_NUM_THREADS" in finding.fix


@pytest.mark.parametrize("gib, level", [(1, "problem"), (3, "note"), (8, "ok")])
def test_memory(monkeypatch, gib, level):
    memory = namedtuple("svmem", "total available")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(16 * 2**30, gib * 2**30))
    assert find("memory").level == level


@pytest.mark.parametrize("gib, level", [(0.5, "problem"), (2, "note"), (8, "ok")])
def test_disk_space(monkeypatch, gib, level):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(0, 0, gib * 2**30))
    assert find("disk").level == level


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COURSE_STATE", str(tmp_path / "file" / "state"))
    finding = find("disk")
    assert finding.level == "problem" and "COURSE_STATE" in finding.fix


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"exercises": 3}', '{"exercises": {"a": 1}}', "\xff"])
def test_damaged_progress_is_reported_and_left_as_it_is(state, content):
    (state / "progress.json").write_text(content, encoding="latin-1")
    finding = find("progress")
    assert finding.level == "problem" and "my_code" in finding.fix
    assert (state / "progress.json").read_text(encoding="latin-1") == content


def test_progress_is_counted(state):
    exercises = {"reflect": {"state": "passed"}, "render": {"state": "failed"}}
    (state / "progress.json").write_text(json.dumps({"version": 1, "exercises": exercises}))
    assert find("progress").text.startswith("1 exercise passed")


def test_damaged_mnist(tmp_path, monkeypatch):
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        (tmp_path / name).write_bytes(b"half a download")
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    finding = find("digits")
    assert finding.level == "problem" and "t10k" in finding.text


def test_a_damaged_checkpoint(tmp_path, monkeypatch):
    (tmp_path / "generator.safetensors").write_bytes(b"\x08")
    monkeypatch.setattr(paths, "checkpoints_dir", lambda: tmp_path)
    finding = find("models")
    assert finding.level == "problem" and "generator.safetensors" in finding.text


def test_widgets_without_their_half_in_jupyterlab(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(module, "SYSTEM_PREFIXES", ())
    finding = module.check_widgets()
    assert finding.level == "problem" and "jupyterlab_widgets" in finding.fix


def test_slow_and_busy_machines_are_told_apart(monkeypatch):
    monkeypatch.setattr(speed, "measure", lambda: 7.0)
    assert find("speed").level == "note" and "7.0 times" in find("speed").text
    assert speed._stored()
    monkeypatch.setattr(speed, "busy", lambda: True)
    assert "other programs" in find("speed").text


def test_a_check_that_breaks_becomes_a_finding(monkeypatch):
    def breaks():
        raise BaseException("out of luck\nin many words")

    monkeypatch.setitem(module.CHECKS, "memory", breaks)
    finding = find("memory")
    assert finding.level == "problem" and finding.text.endswith("BaseException: out of luck") and finding.fix


def test_it_shows_itself_richly_and_plainly():
    report = Report([Finding("ok", "3 < 5", "", "a"), Finding("problem", "<b>", "run `x`", "b")])
    bundle = report._repr_mimebundle_()
    assert "[PROBLEM]" in bundle["text/plain"] and "To do: run `x`" in bundle["text/plain"]
    assert "&lt;b&gt;" in bundle["text/html"] and "<b></td>" not in bundle["text/html"]
    assert "1 problem to mend" in bundle["text/plain"] and "1 problem to mend" in bundle["text/html"]
    assert bundle["text/plain"].isascii()  # a Windows terminal may know nothing else
