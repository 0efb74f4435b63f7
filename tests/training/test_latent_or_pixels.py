"""The race between latents and pixels, for a moment: both are trained and measured, and the table says so."""

import json

import torch

from course_lib.training import latent_or_pixels
from course_lib.training.latent_or_pixels import LATENT, PIXEL, arms, main


def test_both_models_read_captions_alike_and_the_table_has_a_row_for_each_time(tmp_path, monkeypatch):
    assert [w for w in PIXEL.widths if w == 1] == [1, 1, 1] and len(PIXEL.attend) == len(LATENT.attend) == 2
    made = arms()
    same = [n for n, p in made["latents"].text_encoder.named_parameters()]
    assert same == [n for n, p in made["pixels"].text_encoder.named_parameters()]
    for name, number in {"TRAINING": 16, "TESTED": 6, "REAL": 80}.items():
        monkeypatch.setattr(latent_or_pixels, name, number)
    threads = torch.get_num_threads()
    assert main(["--minutes", "0.05", "--out", str(tmp_path / "table.json")]) == 0
    torch.set_num_threads(threads)
    table = json.loads((tmp_path / "table.json").read_text())
    assert [(row["model"], row["minutes"]) for row in table["rows"]] == [
        (name, minutes) for minutes in (0.0125, 0.025, 0.05) for name in ("latents", "pixels")
    ]
    assert all(row["steps"] >= 1 and row["frechet"] > table["real"]["frechet"] for row in table["rows"])
    assert table["real"]["colour"] == 1.0
