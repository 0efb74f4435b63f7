"""The judge: what ships is a judge, and its training works."""

import torch

from course_lib.data.digits import load_digits
from course_lib.evaluation.judge import _jitter, _tiles, load_judge, main, train_judge


def test_the_shipped_judge_reads_held_out_digits():
    held_out = load_digits("embedded", "heldout")
    with torch.no_grad():
        read = load_judge()(_tiles(held_out.images)).argmax(dim=-1)
    assert (read == held_out.labels).float().mean() > 0.96


def test_jitter_keeps_the_digit_about_where_and_how_bright_it_was():
    images = _tiles(load_digits("embedded", "heldout").images[:50])
    moved = _jitter(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape and moved.min() >= 0 and moved.max() <= 1
    assert not torch.allclose(moved, images, atol=0.1)
    assert torch.cosine_similarity(moved.flatten(1), images.flatten(1)).mean() > 0.5


def test_training_learns_in_a_few_steps_and_writes_a_file_that_loads(tmp_path, monkeypatch):
    _, accuracy = train_judge(steps=25, batch=64)
    assert 0.3 < accuracy["embedded"] < 1
    path = tmp_path / "judge.safetensors"
    monkeypatch.setattr("sys.argv", ["judge", "--steps", "1", "--out", str(path)])
    main()
    load_judge.cache_clear()
    assert load_judge(path)(torch.rand(2, 28, 28)).shape == (2, 10)
    load_judge.cache_clear()
