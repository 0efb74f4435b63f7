"""``python -m course_lib.evaluate``: the table from a checkpoint, and refusals that say what to do."""

import json

import pytest
import torch

from course_lib import evaluate
from course_lib.models.sora import Sora, SoraConfig
from course_lib.models.sora_pipeline import SoraPipeline


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("evaluate") / "sora.safetensors"
    world = {
        "canvases": [[1.0, 9, 32, 32]],
        "movers": [1, 2],
        "colours": ["white", "red"],
        "directions": ["right", "up"],
        "speeds": ["slow"],
        **{"guidance": 2.0, "sample_steps": 2, "shift": 2.5},
    }
    Sora(SoraConfig(d=24, depth=1, heads=2)).save(path, {"settings": world})
    return path


def test_the_settings_travel_with_the_weights(checkpoint):
    pipeline = SoraPipeline.from_checkpoint(checkpoint)
    assert pipeline.settings._asdict() == {"guidance": 2.0, "steps": 2, "shift": 2.5, "method": "euler"}


def test_the_table_has_a_column_for_each_kind_of_clips(checkpoint, tmp_path, capsys):
    out = tmp_path / "figures.json"
    assert evaluate.main(["--clips", "40", "--checkpoint", str(checkpoint), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "40 clips of 1 digit\n" in said and "40 clips of 2 digits\n" in said
    for words in ("generated", "tokenizer", "real", "digit as asked", "Fréchet distance"):
        assert words in said
    found = json.loads(out.read_text())
    assert found["1"]["real"]["digit"] > 0.8 > 0.5 > found["1"]["generated"]["digit"]


def test_what_cannot_be_measured_is_refused(checkpoint, tmp_path, capsys):
    assert evaluate.main(["--clips", "7", "--checkpoint", str(checkpoint)]) == 1
    assert "40 or more" in capsys.readouterr().err
    assert evaluate.main(["--checkpoint", str(tmp_path / "absent.safetensors")]) == 1
    assert "absent.safetensors" in capsys.readouterr().err
