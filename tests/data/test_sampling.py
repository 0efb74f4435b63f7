import pytest
import torch

from course_lib.data.digits import load_digits
from course_lib.data.sampling import NAMES, SceneBatch, paths, place, sample_scenes
from course_lib.data.scenes import COLOURS, DIRECTIONS, SIZES, SPEEDS, STARTS, Mover, Scene, cell_range


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def everything(n: int, seed: int, **options) -> SceneBatch:
    options = {
        "movers": (1, 3),
        "colour": True,
        "sizes": tuple(SIZES),
        "frames": 11,
        "height": 41,
        "width": 53,
    } | options
    return sample_scenes(n, generator(seed), **options)


def test_a_batch_and_its_scenes_are_the_same_thing():
    batch = everything(97, 0)
    scenes = batch.to_scenes()
    again = SceneBatch.from_scenes(scenes)
    for name in ("digit", *NAMES):
        assert torch.equal(getattr(batch, name), getattr(again, name)), name
    assert (again.frames, again.height, again.width) == (11, 41, 53)
    assert again.to_scenes() == scenes and len(again) == 97
    assert {len(scene.movers) for scene in scenes} == {1, 2, 3}
    assert batch[5:8].to_scenes() == scenes[5:8]
    assert batch[torch.tensor([3, 1])].to_scenes() == [scenes[3], scenes[1]]
    assert batch[-1] == scenes[-1]


def test_from_scenes_needs_one_canvas():
    with pytest.raises(ValueError, match="agree in frames, height and width"):
        SceneBatch.from_scenes([Scene((Mover(1),)), Scene((Mover(1),), frames=7)])
    with pytest.raises(ValueError, match="no scene"):
        SceneBatch.from_scenes([])


def test_every_allowed_value_is_drawn_about_equally_often():
    batch = everything(9000, 1)
    present = batch.present
    for name, count in {"digit": 10, "size": 3, "colour": 7, "start": 9, "direction": 9}.items():
        share = torch.bincount(getattr(batch, name)[present], minlength=count) / present.sum()
        assert len(share) == count and (share * count - 1).abs().max() < 0.1, name
    moving = present & (batch.direction != NAMES["direction"].index("still"))
    share = torch.bincount(batch.speed[moving], minlength=3) / moving.sum()
    assert (share * 3 - 1).abs().max() < 0.1
    counts = torch.bincount(present.sum(1))[1:] / 9000
    assert (counts * 3 - 1).abs().max() < 0.1


def test_choices_are_respected():
    batch = sample_scenes(
        200,
        generator(2),
        movers=(2, 2),
        colour=True,
        labels=[7, 8],
        sizes=["small"],
        colours=["red", "blue"],
        starts=["centre"],
        directions=["up", "still"],
        speeds=["fast"],
    )
    for scene in batch:
        assert len(scene.movers) == 2
        for mover in scene.movers:
            assert mover.digit in (7, 8) and mover.size == "small" and mover.colour in ("red", "blue")
            assert mover.start == "centre" and mover.direction in ("up", "still")
            assert mover.speed == ("fast" if mover.direction == "up" else "slow")
    assert set(batch.digit.unique().tolist()) == {7, 8}
    plain = sample_scenes(50, generator(0))
    assert {m.colour for s in plain for m in s.movers} == {"white"} and (plain.frames, plain.height) == (16, 64)


def test_equal_generators_give_equal_scenes_and_others_do_not():
    one, same, other = everything(31, 3), everything(31, 3), everything(31, 4)
    assert one.to_scenes() == same.to_scenes() != other.to_scenes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"movers": (0, 1)}, "movers must be"),
        ({"movers": (3, 2)}, "movers must be"),
        ({"movers": (1, 4)}, "movers must be"),
        ({"n": 0}, "at least 1"),
        ({"frames": 0}, "at least 1"),
        ({"colours": ["red"]}, "pass colour=True"),
        ({"labels": [10]}, r"digits 0 to 9, got \[10\]"),
        ({"labels": []}, "digits 0 to 9"),
        ({"sizes": ["vast"]}, "size 'vast' is unknown"),
        ({"sizes": ["large"], "height": 32}, "does not fit a canvas 32 high"),
        ({"starts": ["here"]}, "start 'here' is unknown"),
        ({"directions": []}, "no direction is allowed"),
        ({"speeds": ["warp"]}, "speed 'warp' is unknown"),
    ],
)
def test_wrong_choices_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        sample_scenes(options.pop("n", 3), generator(0), **options)


def test_placement_keeps_what_the_scene_says_and_varies_the_rest():
    digits = load_digits("embedded")
    batch = everything(500, 5)
    placement = place(batch, digits, generator(6))
    assert torch.equal(digits.labels[placement.glyph][batch.present], batch.digit[batch.present])
    cell = torch.stack([batch.start // 3, batch.start % 3], dim=-1)
    first, last = cell_range(cell, batch.limit)
    inside = (placement.corner >= first) & (placement.corner <= last)
    assert inside.all()
    assert (placement.corner == first).any() and (placement.corner == last).any()  # the whole cell is used
    threes = placement.glyph[batch.present & (batch.digit == 3)]
    assert len(threes.unique()) > 30
    assert torch.equal(place(batch, digits, generator(6)).glyph, placement.glyph)
    assert not torch.equal(place(batch, digits, generator(7)).corner, placement.corner)


@pytest.mark.parametrize("canvas", [(1, 36, 36), (32, 37, 36), (23, 36, 97), (5, 61, 47)])
def test_paths_start_at_the_corner_and_never_leave_any_canvas(canvas):
    frames, height, width = canvas
    batch = everything(300, 8, frames=frames, height=height, width=width)
    placement = place(batch, load_digits("embedded"), generator(9))
    path = paths(batch, placement)
    assert path.shape == (300, 3, frames, 2)
    assert torch.equal(path[:, :, 0], placement.corner)
    edge = batch.edge[:, :, None]
    assert path.min() >= 0
    assert ((path[..., 0] + edge) <= height).all() and ((path[..., 1] + edge) <= width).all()


def test_velocity_has_the_asked_direction_and_speed():
    scenes = [Scene((Mover(1, direction=d, speed=s),)) for d in DIRECTIONS for s in SPEEDS]
    velocity = SceneBatch.from_scenes(scenes).velocity[:, 0].tolist()
    for scene, (down, right) in zip(scenes, velocity, strict=True):
        (mover,) = scene.movers
        dx, dy = DIRECTIONS[mover.direction]
        assert (right, down) == (dx * SPEEDS[mover.speed], dy * SPEEDS[mover.speed])


def test_names_count_like_the_scene_tables():
    assert NAMES == {
        "size": tuple(SIZES),
        "colour": tuple(COLOURS),
        "start": STARTS,
        "direction": tuple(DIRECTIONS),
        "speed": tuple(SPEEDS),
    }
    batch = SceneBatch.from_scenes([Scene((Mover(4, "large", "blue", "bottom-left", "up", "fast"),))])
    assert batch[0] == Scene((Mover(4, "large", "blue", "bottom-left", "up", "fast"),))
    assert batch.edge.tolist() == [[36]] and batch.limit.tolist() == [[[28, 28]]]
