"""Figures of generated videos: what is asked is found in real clips, and missed where it is not there."""

import pytest
import torch

from course_lib.data.digits import load_digits
from course_lib.data.moving_mnist import render_scenes, seeded
from course_lib.evaluation.generated import apart, ask, colour_as_asked, draw, evaluate, figures, one_mover, prompts

WORLD = {"frames": 9, "height": 48, "width": 48, "directions": ("right", "up", "down-left"), "speeds": ("medium",)}
HELD_OUT = [load_digits("embedded", "heldout")]


@pytest.fixture(scope="module")
def two():
    scenes = ask(60, 2, 0, WORLD)
    return scenes, draw(scenes, HELD_OUT, seeded(0, 1))


def test_two_movers_differ_in_digit_and_colour(two):
    scenes = two[0]
    assert (scenes.digit[:, 0] != scenes.digit[:, 1]).all() and (scenes.colour[:, 0] != scenes.colour[:, 1]).all()
    assert torch.bincount(scenes.digit[:, 0]).tolist() == [6] * 10
    assert all(" while " in prompt and "pixels" not in prompt for prompt in prompts(scenes))


def test_movers_are_told_apart_by_their_colours():
    scenes = ask(40, 2, 1, WORLD | {"starts": ("top-left",), "directions": ("still",)})
    scenes.start[:, 1] = 8  # the other one stands at the bottom right
    video = draw(scenes, HELD_OUT, seeded(1, 1))
    first, second = apart(video, scenes)
    grey = video.amax(dim=1, keepdim=True)
    assert torch.equal(torch.maximum(first, second), grey)
    shared = (first > -0.6) & (second > -0.6)
    assert not shared.any()
    for k, alone in enumerate((first, second)):
        only = render_scenes(one_mover(scenes, k), HELD_OUT[0], seeded(1, 2), channels=3).amax(dim=1, keepdim=True)
        assert abs((alone > -0.5).sum() / (only > -0.5).sum() - 1) < 0.15  # other handwriting, as much ink


def test_real_clips_do_what_was_asked_and_others_do_not(two):
    for scenes in (ask(80, 1, 2, WORLD), two[0]):
        real = draw(scenes, HELD_OUT, seeded(2, scenes.digit.shape[1]))
        found = figures(real, scenes)
        assert found["digit"] > 0.85 and found["direction"] > 0.9 and found["residual"] < 1
        wrong = figures(real.roll(1, 0), scenes)
        assert wrong["digit"] < 0.3 and wrong["direction"] < 0.7 * found["direction"]


def test_colours_are_read():
    scenes = ask(70, 1, 3, WORLD)
    real = draw(scenes, HELD_OUT, seeded(3, 1))
    assert colour_as_asked(real, scenes).mean() == 1
    assert colour_as_asked(real.flip(0), scenes).mean() < 0.4


def test_the_columns_stand_beside_each_other():
    asked = []

    def generate(texts, random):
        asked.extend(texts)
        return torch.randn(len(texts), 3, 9, 48, 48, generator=random).clamp(-1, 1)

    found = evaluate(generate, lambda video: video, HELD_OUT, n=40, world=WORLD)
    assert len(asked) == 40 and list(found) == ["generated", "tokenizer", "real"]
    assert found["tokenizer"] == found["real"] and found["generated"]["digit"] < 0.4 < found["real"]["digit"]
    assert found["generated"]["frechet"] > 5 * found["real"]["frechet"]
