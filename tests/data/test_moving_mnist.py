from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from course_lib.data.digits import Digits, load_digits
from course_lib.data.moving_mnist import (
    CaptionedMovingMNIST,
    Placement,
    SceneBatch,
    as_moving_mnist_layout,
    batches,
    paths,
    place,
    render_scenes,
    sample_scenes,
    seeded,
    to_bytes,
    to_unit_range,
)
from course_lib.data.parser import parse
from course_lib.data.scenes import COLOURS, DIRECTIONS, SIZES, SPEEDS, Mover, Scene


@pytest.fixture(scope="module")
def digits() -> Digits:
    return load_digits("embedded", "heldout")


def everything(n: int, seed: int, **options) -> SceneBatch:
    options = {
        "movers": (1, 3),
        "colour": True,
        "sizes": tuple(SIZES),
        "frames": 7,
        "height": 41,
        "width": 53,
    } | options
    return sample_scenes(n, seeded(seed, 0), **options)


def draw_slowly(batch: SceneBatch, digits: Digits, placement: Placement, channels: int) -> np.ndarray:
    """The usual loops: one clip, one frame, one digit after the other."""
    path = paths(batch, placement).numpy()
    video = np.zeros((len(batch), channels, batch.frames, batch.height, batch.width), np.uint8)
    for i, scene in enumerate(batch):
        for k, mover in enumerate(scene.movers):
            edge = SIZES[mover.size]
            glyph = digits.at_size(edge)[placement.glyph[i, k]].numpy().astype(np.float32)
            for f in range(batch.frames):
                top, left = path[i, k, f]
                for c in range(channels):
                    tint = COLOURS[mover.colour][c] / 255 if channels == 3 else 1
                    patch = video[i, c, f, top : top + edge, left : left + edge]
                    np.maximum(patch, np.round(glyph * np.float32(tint)).astype(np.uint8), out=patch)
    return video


@pytest.mark.parametrize("colour", [False, True])
def test_rendering_equals_the_usual_loops(digits, colour):
    batch = everything(23, 1, colour=colour)
    placement = place(batch, digits, seeded(1, 1))
    video = render_scenes(batch, digits, placement=placement, dtype=torch.uint8)
    assert video.shape == (23, 3 if colour else 1, 7, 41, 53)
    expected = torch.from_numpy(draw_slowly(batch, digits, placement, video.shape[1]))
    assert (video.int() - expected.int()).abs().max() <= (1 if colour else 0)  # one rounding of a tint
    assert video.amax((1, 2, 3, 4)).min() > 200


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("speed", SPEEDS)
def test_the_picture_moves_as_the_scene_says(digits, direction, speed):
    """Measured on the pixels, so that text, scene and video cannot disagree about left, up and fast."""
    scene = Scene((Mover(3, direction=direction, speed=speed),), frames=3)
    video = render_scenes([scene] * 5, digits, seeded(2, 0))
    brightness = (video[:, 0] + 1) / 2
    mass = brightness.sum((2, 3))
    y = (brightness.sum(3) * torch.arange(64)).sum(2) / mass
    x = (brightness.sum(2) * torch.arange(64)).sum(2) / mass
    dx, dy = DIRECTIONS[direction]
    pixels = SPEEDS[speed] if direction != "still" else 0
    assert torch.allclose(x[:, 1] - x[:, 0], torch.tensor(float(dx * pixels)), atol=1e-3)
    assert torch.allclose(y[:, 2] - y[:, 1], torch.tensor(float(dy * pixels)), atol=1e-3)


def test_the_cell_and_the_colour_are_where_the_scene_says(digits):
    scenes = [Scene((Mover(0, "small", "red", "top-left"), Mover(1, "small", "blue", "bottom-right")), 1, 96, 96)]
    video = render_scenes(scenes, digits, seeded(0, 0), dtype=torch.uint8)[0, :, 0].float()
    red, _green, blue = video
    assert red[:48, :48].max() > 220 and blue[48:, 48:].max() > 220
    assert red[:48, :48].sum() > 2 * blue[:48, :48].sum() and blue[48:, 48:].sum() > 2 * red[48:, 48:].sum()
    assert video[:, :48, 48:].max() == 0 and video[:, 48:, :48].max() == 0


def test_floats_and_bytes_are_the_same_video(digits):
    batch = everything(5, 3)
    placement = place(batch, digits, seeded(3, 1))
    as_bytes = render_scenes(batch, digits, placement=placement, dtype=torch.uint8)
    as_floats = render_scenes(batch, digits, placement=placement)
    assert as_floats.dtype == torch.float32 and as_floats.min() == -1 and 0.7 < as_floats.max() <= 1
    assert torch.equal(to_bytes(as_floats), as_bytes)
    every = torch.arange(256, dtype=torch.uint8)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(to_bytes(to_unit_range(every, dtype)), every)
    assert to_unit_range(every)[[0, 255]].tolist() == [-1, 1]
    assert to_bytes(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]
    half = render_scenes(batch, digits, placement=placement, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.min() == -1


def test_a_scene_a_list_and_a_batch_render_alike(digits):
    batch = everything(4, 4)
    scenes = batch.to_scenes()
    video = render_scenes(batch, digits, seeded(4, 1), channels=3)
    assert torch.equal(video, render_scenes(scenes, digits, seeded(4, 1), channels=3))
    one = render_scenes(Scene((Mover(3),)), digits, seeded(0, 0))
    assert one.shape == (1, 1, 16, 64, 64)
    assert torch.equal(one, render_scenes([Scene((Mover(3),))], digits, seeded(0, 0)))
    assert render_scenes(Scene((Mover(3),)), digits, seeded(0, 0), channels=3).shape[1] == 3


def test_rendering_errors_say_what_to_do(digits):
    scene = Scene((Mover(3, colour="red"),))
    with pytest.raises(ValueError, match=r"either a generator.*or a placement"):
        render_scenes(scene, digits)
    placement = place(SceneBatch.from_scenes([scene]), digits, seeded(0, 0))
    with pytest.raises(ValueError, match="either a generator"):
        render_scenes(scene, digits, seeded(0, 0), placement=placement)
    with pytest.raises(ValueError, match="3 for coloured digits; got 1"):
        render_scenes(scene, digits, seeded(0, 0), channels=1)
    with pytest.raises(ValueError, match="got 2"):
        render_scenes(Scene((Mover(3),)), digits, seeded(0, 0), channels=2)


def test_seeds_give_unrelated_streams():
    pairs = [(seed, index) for seed in range(40) for index in range(40)]
    pairs += [(seed, index) for seed in (-1, 2**63, 2**64 - 5) for index in (0, 10**12)]
    first = {tuple(torch.randint(2**62, (2,), generator=seeded(*pair)).tolist()) for pair in pairs}
    assert len(first) == len(pairs)
    drawn = torch.stack([torch.rand(2, generator=seeded(7, index)) for index in range(4000)])
    assert (drawn.mean(0) - 0.5).abs().max() < 0.03 and torch.corrcoef(drawn.T)[0, 1].abs() < 0.06
    assert torch.corrcoef(torch.stack([drawn[:-1, 0], drawn[1:, 0]]))[0, 1].abs() < 0.06


def same(one: dict, other: dict) -> bool:
    return (
        all(one[name] == other[name] for name in ("caption", "scene"))
        and torch.equal(one["video"], other["video"])
        and torch.equal(one["path"], other["path"])
    )


def test_an_item_depends_on_seed_and_index_only(digits):
    options = {"level": "short", "paraphrase": "train", "movers": (1, 3), "colour": True, "frames": 5}
    dataset = CaptionedMovingMNIST(digits, 11, seed=7, **options)
    again = CaptionedMovingMNIST(digits, 11, seed=7, **options)
    longer = CaptionedMovingMNIST(digits, 999, seed=7, **options)
    other = CaptionedMovingMNIST(digits, 11, seed=8, **options)
    backwards = [again[i] for i in reversed(range(11))][::-1]
    for i in range(11):
        assert same(dataset[i], backwards[i]) and same(dataset[i], longer[i]) and not same(dataset[i], other[i])
    assert same(dataset[-1], dataset[10])
    assert len({dataset[i]["caption"] for i in range(11)}) > 5
    torch.manual_seed(0)
    before = torch.rand(1)
    torch.manual_seed(0)
    dataset[3]
    assert torch.equal(torch.rand(1), before)  # the global generator is left alone


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores: slow, not wrong
@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_gives_the_same_clips(digits, workers):
    dataset = CaptionedMovingMNIST(digits, 14, seed=3, movers=(2, 2), frames=5, height=37, width=41, paraphrase="train")

    def load(workers: int) -> list[dict]:
        return list(DataLoader(dataset, batch_size=5, num_workers=workers, collate_fn=CaptionedMovingMNIST.collate))

    alone, together = load(0), load(workers)
    assert [batch["video"].shape for batch in alone] == [(5, 1, 5, 37, 41)] * 2 + [(4, 1, 5, 37, 41)]
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one["video"], other["video"])
        assert one["caption"] == other["caption"] and one["scene"] == other["scene"]
        assert all(torch.equal(*pair) for pair in zip(one["path"], other["path"], strict=True))


def test_an_item_belongs_together(digits):
    dataset = CaptionedMovingMNIST(digits, 9, seed=1, movers=(1, 3), colour=True, sizes=tuple(SIZES))
    for i in range(9):
        item = dataset[i]
        scene = item["scene"]
        assert parse(item["caption"]) == scene
        assert item["video"].shape == (3, 16, 64, 64) and item["path"].shape == (len(scene.movers), 16, 2)
        bright = (item["video"] > -0.5).any(0)
        covered = torch.zeros(16, 64, 64, dtype=torch.bool)
        for mover, path in zip(scene.movers, item["path"].tolist(), strict=True):
            for f, (top, left) in enumerate(path):
                covered[f, top : top + SIZES[mover.size], left : left + SIZES[mover.size]] = True
        assert not (bright & ~covered).any()


def test_canvases_mix_durations_and_shapes(digits):
    canvases = [(1, 36, 96), (5, 64, 48), (9, 32, 32)]
    dataset = CaptionedMovingMNIST(digits, 30, canvases=canvases)
    items = [dataset[i] for i in range(30)]
    shapes = {tuple(item["video"].shape[1:]) for item in items}
    assert shapes == set(canvases)
    for item in items:
        scene = item["scene"]
        assert (scene.frames, scene.height, scene.width) == tuple(item["video"].shape[1:])
    mixed = CaptionedMovingMNIST.collate(items)
    assert isinstance(mixed["video"], list) and len(mixed["video"]) == 30
    assert CaptionedMovingMNIST.collate([items[0], items[0]])["video"].shape[0] == 2


def test_dataset_errors(digits):
    dataset = CaptionedMovingMNIST(digits, 3)
    for index in (3, -4):
        with pytest.raises(IndexError):
            dataset[index]
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        CaptionedMovingMNIST(digits, 0)
    assert len(CaptionedMovingMNIST("embedded", 3, split="heldout").digits) == len(digits)


def test_batches_are_endless_fresh_and_resumable(digits):
    options = {"movers": (2, 2), "frames": 5, "height": 37, "width": 41}
    first = list(islice(batches(digits, 6, 1, **options), 4))
    resumed = list(islice(batches(digits, 6, 1, start=2, **options), 2))
    for one, other in zip(first[2:], resumed, strict=True):
        assert torch.equal(one.video, other.video) and torch.equal(one.path, other.path)
        assert one.scenes.to_scenes() == other.scenes.to_scenes()
    assert not torch.equal(first[0].video, first[1].video)
    assert not torch.equal(first[0].video, next(batches(digits, 6, 2, **options)).video)
    clips = first[0]
    assert clips.video.shape == (6, 1, 5, 37, 41) and clips.video.dtype == torch.float32
    assert torch.equal(clips.path, paths(clips.scenes, clips.placement))
    assert [parse(text) for text in clips.captions()] == clips.scenes.to_scenes()
    again = render_scenes(clips.scenes, digits, placement=clips.placement)
    assert torch.equal(clips.video, again)
    coloured = next(batches(digits, 3, colour=True, colours=["white"], dtype=torch.uint8))
    assert coloured.video.shape[1] == 3 and coloured.video.dtype == torch.uint8  # also when no digit happens to be red


def test_the_layout_of_the_official_file(digits):
    clips = next(batches(digits, 3, frames=5, height=37, width=41, dtype=torch.uint8))
    layout = as_moving_mnist_layout(clips.video)
    assert layout.shape == (5, 3, 37, 41) and layout.dtype == torch.uint8 and layout.is_contiguous()
    assert torch.equal(layout[4, 2], clips.video[2, 0, 4])
    assert torch.equal(as_moving_mnist_layout(to_unit_range(clips.video)), layout)


def test_the_same_seed_means_the_same_clips_on_every_machine_and_in_every_release():
    """Numbers written down: results, checkpoints and held-out clips refer to seeds, so streams must never change."""
    everywhere = {"movers": (1, 3), "colour": True, "sizes": ("small", "medium", "large")}
    dataset = CaptionedMovingMNIST("embedded", 10, seed=0, **everywhere)
    assert dataset[0]["path"][:, [0, -1]].tolist() == [[[6, 14], [6, 14]]]
    assert dataset[7]["path"][:, [0, -1]].tolist() == [[[10, 18], [25, 3]]]
    assert [dataset[i]["scene"].movers[0].digit for i in (0, 7)] == [9, 2]
    clips = next(batches(dataset.digits, 4, 5))
    assert clips.scenes.digit[:, 0].tolist() == [4, 1, 6, 5]
    assert clips.path[:, 0, 0].tolist() == [[4, 18], [4, 33], [17, 4], [17, 35]]
    assert clips.placement.glyph[:, 0].tolist() == [163, 45, 953, 197]
