"""The whole pipeline in miniature: what it writes, and that a killed run ends like one that was left alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from course_lib.training import train as pipeline
from course_lib.training.checkpoint import load_checkpoint
from course_lib.video_generator import VideoGenerator

MINI = ["--preset", "mini", "--digits", "embedded"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COURSE_DEVICE": "cpu"}
COMMAND = [sys.executable, "-m", "course_lib.training.train", *MINI]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert pipeline.main([*MINI, "--out", str(folder)]) == 0
    return folder


def test_it_writes_what_it_promises(finished):
    assert (finished / "samples.gif").read_bytes().startswith(b"GIF8")
    for picture in ("loss.png", "sheet.png"):
        assert (finished / picture).read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((finished / "metrics.json").read_text(), parse_constant=pytest.fail)  # no NaN: real JSON
    assert metrics["figures"].keys() == {"descriptive", "short", "autoencoder", "real"}
    assert len(metrics["losses"]["autoencoder"]) == 12 and len(metrics["losses"]["transformer"]) == 16
    video = VideoGenerator.from_checkpoint(finished).generate("a 3 moving left", steps=2)
    assert video.shape == (1, 4, 32, 32)
    sheet = load_checkpoint(finished / "transformer.safetensors").tensors["extra.sheet"]
    assert len(sheet) == 2


def test_a_finished_run_is_left_alone_and_other_settings_are_refused(finished, capsys):
    before = (finished / "metrics.json").stat().st_mtime_ns
    assert pipeline.main([*MINI, "--out", str(finished)]) == 0
    assert "finished" in capsys.readouterr().out
    for change in ("dim=12", "steps=5"):
        assert pipeline.main([*MINI, "--out", str(finished), "--set", change]) == 1
        assert "other settings" in capsys.readouterr().err
    assert pipeline.main([*MINI, "--out", str(finished), "--seed", "1"]) == 1
    assert (finished / "metrics.json").stat().st_mtime_ns == before


def test_a_finished_run_can_be_given_more_steps(finished, tmp_path):
    folder = tmp_path / "longer"
    shutil.copytree(finished, folder)
    assert pipeline.main([*MINI, "--out", str(folder), "--set", "steps=20"]) == 0
    short, long = (json.loads((f / "metrics.json").read_text())["losses"]["transformer"] for f in (finished, folder))
    assert len(long) == 20 and long[:16] == short
    assert json.loads((folder / "run.json").read_text())["settings"]["steps"] == 20


def test_fresh_never_deletes_a_folder_that_is_no_run(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("precious")
    assert pipeline.main([*MINI, "--out", str(tmp_path), "--fresh"]) == 1
    assert "not a training run" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_damaged_state_is_named(finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "metrics.json").unlink()
    state = folder / "transformer.safetensors"
    state.write_bytes(state.read_bytes()[:-1000])
    assert pipeline.main([*MINI, "--out", str(folder)]) == 1
    assert "transformer.safetensors is damaged" in capsys.readouterr().err


def test_a_run_killed_again_and_again_ends_with_the_same_losses_and_weights(finished, tmp_path):
    folder = tmp_path / "killed"
    command = [*COMMAND, "--out", str(folder), "--save-seconds", "0"]
    states = [folder / name for name in ("autoencoder.safetensors", "transformer.safetensors")]
    kills = []
    for state, after in ((states[0], 3), (states[1], 5)):
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2], env=ENVIRONMENT, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if state.exists() and len(load_checkpoint(state).tensors["history"]) >= after:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills.append(process.returncode)
    assert signal.SIGKILL * -1 in kills  # at least one came in time
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    mine, theirs = (json.loads((f / "metrics.json").read_text()) for f in (folder, finished))
    assert mine["resumed"]
    assert mine["losses"] == theirs["losses"]
    assert mine["figures"] == theirs["figures"]
    a, b = (load_checkpoint(f / "generator.safetensors").tensors for f in (folder, finished))
    assert all(torch.equal(a[name], b[name]) for name in b)
    assert not list(folder.glob(".*.tmp"))
