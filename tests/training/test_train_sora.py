"""The generator's training: every stage in miniature, continued where it was, and refused where it cannot be."""

import json

import pytest
import torch

from course_lib.models.sora import Sora
from course_lib.models.sora_pipeline import SoraPipeline
from course_lib.models.video_tokenizer import VideoTokenizer
from course_lib.training import train_sora
from course_lib.training.train_sora import PRESETS, changed, main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sora")
    assert main(["--preset", "mini", "--digits", "embedded", "--out", str(folder)]) == 0
    return folder


def test_every_stage_leaves_its_file(folder):
    names = {path.name for path in folder.iterdir()}
    assert {"run.json", "latents.safetensors", "network.safetensors", "sora.safetensors", "metrics.json"} <= names
    assert {"sheet-000004.png", "sheet-000008.png"} <= names
    metrics = json.loads((folder / "metrics.json").read_text())
    assert len(metrics["losses"]) == PRESETS["mini"].steps and set(metrics["figures"]) == {"1 digit", "2 digits"}
    assert metrics["figures"]["1 digit"]["real"]["digit"] > metrics["figures"]["1 digit"]["generated"]["digit"]


def test_what_was_trained_makes_videos(folder):
    pipeline = SoraPipeline(Sora.from_checkpoint(folder / "sora.safetensors"), VideoTokenizer.from_checkpoint())
    random = torch.Generator().manual_seed(0)
    video, picture = pipeline.videos(["a red 3 moving left", "a 7"], [9, 1], (32, 32), generator=random)
    assert video.shape == (3, 9, 32, 32) and picture.shape == (3, 1, 32, 32) and video.isfinite().all()


def test_a_finished_network_is_not_trained_again(folder, monkeypatch):
    before = json.loads((folder / "metrics.json").read_text())
    monkeypatch.setattr(train_sora, "known_loss", None)
    assert main(["--preset", "mini", "--digits", "embedded", "--out", str(folder)]) == 0
    after = json.loads((folder / "metrics.json").read_text())
    assert after["losses"] == before["losses"]
    for name in ("1 digit", "2 digits"):
        assert after["figures"][name]["generated"]["residual"] == before["figures"][name]["generated"]["residual"]


def test_other_settings_do_not_continue_a_run(folder, capsys):
    options = ["--preset", "mini", "--digits", "embedded", "--out", str(folder), "--set", "batch=2"]
    assert main(options) == 1 and "--fresh" in capsys.readouterr().err


def test_settings_are_checked():
    assert changed(PRESETS["mini"], ["steps=5", "attention=windowed"]).attention == "windowed"
    with pytest.raises(ValueError, match="'stepz'"):
        changed(PRESETS["mini"], ["stepz=5"])
    with pytest.raises(ValueError, match="steps='many' is not of type int"):
        changed(PRESETS["mini"], ["steps=many"])
