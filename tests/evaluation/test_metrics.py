"""The metrics on clips with known faults: every figure reacts to its own fault and to no other."""

import math

import pytest
import torch

from course_lib.data.digits import load_digits
from course_lib.data.moving_mnist import render_scenes, sample_scenes, seeded
from course_lib.data.sampling import SceneBatch, paths, place
from course_lib.data.scenes import DIRECTIONS, Mover, Scene
from course_lib.evaluation.judge import load_judge
from course_lib.evaluation.metrics import COLUMNS, best_start, first_flight, measure, table

MOVING = tuple(name for name in DIRECTIONS if name != "still")
CANVAS = {"frames": 16, "height": 48, "width": 48}


@pytest.fixture(scope="module")
def real() -> tuple[torch.Tensor, SceneBatch]:
    g = seeded(0, 0)
    scenes = sample_scenes(101, g, directions=MOVING, speeds=("slow", "medium"), **CANVAS)
    return render_scenes(scenes, load_digits("embedded", "heldout"), g), scenes


def test_real_clips_are_as_asked(real):
    figures = measure(*real).summary()
    assert figures.keys() == COLUMNS.keys()
    assert figures["digit"] > 0.93 and figures["digit_frames"] > 0.93 and figures["identity"] > 0.93
    assert figures["direction"] == 1 and figures["start"] > 0.97
    assert (
        figures["angle"] < 0.1 and figures["speed"] < 0.01 and figures["residual"] < 0.05 and figures["flicker"] < 0.01
    )


def test_another_digit_is_noticed_and_motion_is_not_blamed(real):
    video, scenes = real
    other = SceneBatch(**{**vars(scenes), "digit": (scenes.digit + 1) % 10})
    figures = measure(video, other).summary()
    assert figures["digit"] < 0.05 and figures["digit_frames"] < 0.05
    assert figures["direction"] == 1 and figures["residual"] < 0.05


def test_a_wrong_direction_is_noticed_and_the_digit_is_not_blamed(real):
    video, scenes = real
    turned = SceneBatch(**{**vars(scenes), "direction": (scenes.direction + 1) % 8})
    figures = measure(video, turned).summary()
    assert figures["direction"] < 0.1 and 30 < figures["angle"] < 60 and figures["residual"] > 1
    assert figures["digit"] > 0.93


def test_one_frame_of_another_digit_breaks_identity_but_not_the_clip(real):
    video, scenes = real
    broken = video.clone()
    broken[:, :, 7] = video[:, :, 7].roll(1, 0)
    before, after = measure(video, scenes), measure(broken, scenes)
    assert after.identity.mean() < 0.3 < before.identity.mean()
    assert after.digit.mean() > 0.9 and after.digit_frames.mean() == pytest.approx(15 / 16, abs=0.05)
    assert after.flicker.mean() > before.flicker.mean() + 0.02


def test_jumps_raise_the_residual_by_what_they_are(real):
    video, scenes = real
    jittered = video.clone()
    jittered[:, :, ::2] = video[:, :, ::2].roll(2, -1)  # every other frame 2 px to the right: deviation 1 px
    residual = measure(jittered, scenes).residual
    assert residual.median() == pytest.approx(1, abs=0.1)


def test_empty_and_noisy_clips_give_numbers(real):
    video, scenes = real
    for bad in (torch.full_like(video, -1), torch.rand(video.shape) * 2 - 1):
        figures = measure(bad, scenes).summary()
        assert figures["digit"] < 0.3
        assert all(math.isfinite(v) for v in figures.values() if v is not None)


def test_first_flight_ends_at_the_wall_and_short_flights_do_not_count():
    corner = torch.tensor([[5.0, 0], [5, 2], [5, 4], [5, 6], [5, 8], [5, 10], [5, 8], [5, 6]])  # bounces at 10
    limit = torch.tensor([[20, 10], [20, 10], [20, 10]])
    start_late = corner + torch.tensor([0.0, 6.0])
    velocity = torch.tensor([[0, 2], [0, 2], [0, 0]])
    slope, counts = first_flight(torch.stack([corner, start_late, corner]), velocity, limit)
    assert torch.allclose(slope[0], torch.tensor([0.0, 2.0]))
    assert counts.tolist() == [True, False, False]  # too close to the wall; asked to stay still


def test_the_best_start_is_the_true_one_up_to_an_offset_below_a_pixel():
    g = seeded(1, 0)
    scenes = sample_scenes(53, g, directions=MOVING, **CANVAS)
    placement = place(scenes, load_digits("embedded"), g)
    path = paths(scenes, placement)[:, 0].float()
    start, residual = best_start(path + 0.4, scenes.velocity[:, 0], scenes.limit[:, 0])
    assert (residual < 1e-3).all()
    assert ((start - placement.corner[:, 0]).abs().amax(-1) <= 1).all()


def test_sizes_that_do_not_fit_are_refused(real):
    video, scenes = real
    with pytest.raises(ValueError, match="100 clips"):
        measure(video[:100], scenes)
    with pytest.raises(ValueError, match="frames x height x width"):
        measure(video[:, :, :8], scenes)
    two = SceneBatch.from_scenes([Scene((Mover(1), Mover(2)), **CANVAS)])
    with pytest.raises(ValueError, match="one digit"):
        measure(video[:1], two)


def test_the_table_has_a_line_per_figure(real):
    text = table({"real": measure(*real).summary()})
    assert len(text.splitlines()) == 1 + len(COLUMNS)
    assert "digit as asked" in text and "nan" not in text


def test_the_table_shows_chosen_rows_dashes_and_zeros_without_a_sign():
    figures = {"digit": None, "speed": math.nan, "flicker": -1.2e-8, "angle": -0.26}
    lines = table({"ours": figures}, rows=("flicker", "digit", "speed", "angle")).splitlines()
    assert [line.split()[-1] for line in lines] == ["ours", "0.000", "\u2013", "\u2013", "-0.3"]


def test_the_judge_reads_both_orders_of_batches_alike(real):
    video, _scenes = real
    judge = load_judge()
    assert torch.equal(judge.read_clips(video[:7]), judge.read_clips(video)[:7])
    assert judge.read_frames(video[:3]).exp().sum(-1).sub(1).abs().max() < 1e-5
