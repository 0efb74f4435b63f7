"""The training of the shipped CLIP: what is held out stays out, captions fit, and it ends in a checkpoint."""

import json

import pytest
import torch

from course_lib.data.digits import load_digits
from course_lib.data.moving_mnist import render_scenes, seeded
from course_lib.data.scenes import DIRECTIONS, Mover, Scene
from course_lib.data.tokenizer import Tokenizer
from course_lib.models.clip import CLIP, CLIPConfig
from course_lib.training.train_clip import (
    BATCHES,
    HELD_OUT,
    LEVEL_SHARES,
    caption,
    clip_scenes,
    held_out_scenes,
    is_held_out,
    main,
    train_clip,
    training_scenes,
)


def test_shares_are_shares():
    assert sum(LEVEL_SHARES.values()) == pytest.approx(1) and sum(BATCHES.values()) == pytest.approx(1)


def test_every_digit_and_every_direction_has_something_held_out():
    assert len(HELD_OUT) == 10 and set(HELD_OUT) == set(DIRECTIONS) - {"still"}


def test_training_never_shows_a_held_out_pair():
    kinds = set()
    for step in range(40):
        kind, scenes = training_scenes(50, seeded(0, step), step / 40)
        kinds.add(kind)
        assert len(scenes) == 50 and not is_held_out(scenes).any()
        for scene in scenes:
            assert all(HELD_OUT[m.digit] != m.direction for m in scene.movers)
    assert kinds == set(BATCHES)


def test_held_out_scenes_hold_nothing_else():
    scenes = held_out_scenes(30, seeded(0, 0))
    assert is_held_out(scenes).all() and scenes.digit[:, 0].bincount().tolist() == [3] * 10


def test_narrow_batches_differ_in_what_they_ask_for():
    for step in range(30):
        kind, scenes = training_scenes(40, seeded(1, step), 1.0)
        if kind == "all":
            continue
        assert scenes.colour.unique().numel() == 1 and scenes.digit.shape[1] == 1
        assert (scenes.direction.unique().numel() == 1) == (kind == "digit")


def test_captions_fit_the_tower():
    tokenizer, g = Tokenizer(), seeded(2, 0)
    texts = [caption(scene, g) for scene in clip_scenes(2000, g)]
    assert max(len(tokenizer.tokens(text)) + 2 for text in texts) <= CLIPConfig(len(tokenizer)).length
    assert any("pixel" in text for text in texts) and any("?" in text for text in texts)
    longest = Scene((Mover(8, "medium", "orange", "bottom-middle", "down-right", "slow"),) * 2, 32, 80, 80)
    lengths = [len(tokenizer.tokens(caption(longest, g))) + 2 for _ in range(500)]
    assert max(lengths) <= CLIPConfig(len(tokenizer)).length


def test_two_runs_from_one_seed_are_equal():
    config = CLIPConfig(len(Tokenizer()), d=16, heads=2, layers=1, d_out=8)
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        model = CLIP.build(config)
        losses.append([s.loss for s in train_clip(model, load_digits("embedded"), steps=3, batch=7)])
    assert losses[0] == losses[1]


def test_a_miniature_run_writes_a_checkpoint_that_can_be_used(tmp_path, capsys):
    out = tmp_path / "clip.safetensors"
    small = ["d=16", "heads=2", "layers=1", "d_out=8", "frames=[0,3]"]
    assert main(["--digits", "embedded", "--steps", "2", "--batch", "5", "--out", str(out), "--set", *small]) == 0
    figures = json.loads(capsys.readouterr().out.split("min\n", 1)[1])["figures"]
    assert {"held-out pair", "seen digit", "retrieval@1 of 64"} <= figures.keys()
    g = seeded(3, 0)
    clips = render_scenes(clip_scenes(3, g), load_digits("embedded"), g, channels=3)
    assert CLIP.from_checkpoint(out).embed_clips(clips).shape == (3, 8)


def test_settings_that_do_not_exist_are_refused(tmp_path, capsys):
    assert main(["--set", "colour=3", "--out", str(tmp_path / "x.safetensors")]) == 1
    assert "colour" in capsys.readouterr().err
