import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.data.scenes import (
    COLOURS,
    DIRECTIONS,
    SIZES,
    SPEEDS,
    STARTS,
    Mover,
    Scene,
    cell_range,
    reflect,
    render,
    trajectory,
)


def walk(start: int, velocity: int, frames: int, limit: int) -> list[int]:
    """A ball that moves one pixel at a time and turns at each wall."""
    position, step, path = start, 1 if velocity > 0 else -1, [start]
    for _ in range(frames):
        for _ in range(abs(velocity)):
            if limit == 0:
                break
            if not 0 <= position + step <= limit:
                step = -step
            position += step
        path.append(position)
    return path


@given(data=st.data(), limit=st.integers(0, 41), velocity=st.integers(-97, 97), frames=st.integers(1, 29))
@settings(deadline=None, derandomize=True, max_examples=300)
def test_reflect_equals_a_walk_pixel_by_pixel_in_both_directions_of_time(data, limit, velocity, frames):
    start = data.draw(st.integers(0, limit))
    frame = torch.arange(frames + 1)
    fixed = [torch.tensor(value) for value in (start, velocity)]
    assert reflect(*fixed, frame, torch.tensor(limit)).tolist() == walk(start, velocity, frames, limit)
    assert reflect(*fixed, -frame, torch.tensor(limit)).tolist() == walk(start, -velocity, frames, limit)


def test_reflect_broadcasts_and_keeps_integers():
    position = reflect(torch.tensor([[1], [4]]), torch.tensor([2, -3, 5]), torch.tensor(7), torch.tensor([[11], [0]]))
    assert position.dtype == torch.int64 and position.shape == (2, 3)
    expected = [[walk(1, v, 7, 11)[-1] for v in (2, -3, 5)], [0, 0, 0]]
    assert position.tolist() == expected


def test_trajectory_moves_each_axis_by_its_own_wall():
    start, velocity, limit = torch.tensor([[3, 5], [0, 2]]), torch.tensor([[2, -1], [-3, 3]]), torch.tensor([7, 13])
    path = trajectory(start, velocity, limit.expand(2, 2), 17)
    assert path.shape == (2, 17, 2)
    for mover in range(2):
        for axis in range(2):
            walked = walk(int(start[mover, axis]), int(velocity[mover, axis]), 16, int(limit[axis]))
            assert path[mover, :, axis].tolist() == walked


@given(st.integers(0, 80))
def test_cells_partition_the_positions_of_an_axis(limit):
    ranges = [cell_range(torch.tensor(cell), torch.tensor(limit)) for cell in range(3)]
    positions = [position for first, last in ranges for position in range(int(first), int(last) + 1)]
    assert set(positions) == set(range(limit + 1))
    if limit >= 2:
        assert sorted(positions) == list(range(limit + 1))  # each exactly once
        lengths = [int(last - first) for first, last in ranges]
        assert max(lengths) - min(lengths) <= 1


def draw_slowly(glyphs, path, height, width):
    video = torch.zeros(path.shape[1], height, width, dtype=glyphs.dtype)
    for k, glyph in enumerate(glyphs):
        for f, (top, left) in enumerate(path[k].tolist()):
            for y in range(glyph.shape[0]):
                for x in range(glyph.shape[1]):
                    video[f, top + y, left + x] = max(video[f, top + y, left + x], glyph[y, x])
    return video


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_render_equals_drawing_pixel_by_pixel_with_overlaps_by_maximum(dtype):
    g = torch.Generator().manual_seed(0)
    glyphs = torch.randint(0, 256, (3, 5, 7), generator=g).to(dtype)
    path = torch.stack(
        [torch.randint(0, 13 - 5 + 1, (3, 11), generator=g), torch.randint(0, 17 - 7 + 1, (3, 11), generator=g)], 2
    )
    path[:, 0] = torch.tensor([[0, 0], [8, 10], [2, 3]])  # the far corners, too
    video = render(glyphs, path, 13, 17)
    assert video.dtype == dtype
    assert torch.equal(video, draw_slowly(glyphs, path, 13, 17))


@pytest.mark.parametrize("corner", [(-1, 0), (0, -1), (9, 0), (0, 11)])
def test_render_refuses_a_path_that_leaves_the_canvas(corner):
    path = torch.tensor([[[0, 0], corner]])
    with pytest.raises(ValueError, match=r"leaves the 13x17 canvas.*\(8, 10\)"):
        render(torch.ones(1, 5, 7), path, 13, 17)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"digit": 10}, "0 to 9, got 10"),
        ({"digit": -1}, "0 to 9, got -1"),
        ({"digit": True}, "got True"),
        ({"size": "huge"}, "size 'huge' is unknown.*small, medium, large"),
        ({"colour": "pink"}, "colour 'pink' is unknown.*white, red"),
        ({"start": "top"}, "start 'top' is unknown.*top-left"),
        ({"direction": "north"}, "direction 'north' is unknown.*still"),
        ({"speed": "warp"}, "speed 'warp' is unknown.*slow, medium, fast"),
    ],
)
def test_a_mover_names_what_is_wrong_with_it(wrong, message):
    with pytest.raises(ValueError, match=message):
        Mover(**{"digit": 3, **wrong})


def test_a_scene_names_what_is_wrong_with_it():
    with pytest.raises(ValueError, match="1 to 3 movers, got 0"):
        Scene(())
    with pytest.raises(ValueError, match="1 to 3 movers, got 4"):
        Scene((Mover(1),) * 4)
    with pytest.raises(ValueError, match="frames must be at least 1, got 0"):
        Scene((Mover(1),), frames=0)
    with pytest.raises(ValueError, match=r"large digit needs 36x36.*35 high and 64 wide.*small or medium"):
        Scene((Mover(1, size="large"),), height=35)
    with pytest.raises(ValueError, match=r"small digit needs 20x20.*use a larger canvas"):
        Scene((Mover(1, size="small"),), width=19)
    assert Scene((Mover(1, size="large"),), height=36, width=36).frames == 16  # fits exactly


def test_a_still_mover_has_no_speed_and_movers_may_come_as_a_list():
    assert Mover(3, direction="still", speed="fast") == Mover(3, direction="still", speed="slow")
    assert Mover(3, speed="fast") != Mover(3, speed="slow")
    assert hash(Scene([Mover(3)])) == hash(Scene((Mover(3),)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Mover(3).digit = 4


def test_names_are_single_distinct_words():
    names = [*SIZES, *COLOURS, *STARTS, *DIRECTIONS, *SPEEDS]
    assert all(" " not in name for name in names)
    assert len(STARTS) == 9 and len(DIRECTIONS) == 9
    assert not set(STARTS) & set(DIRECTIONS)
    for name, (dx, dy) in DIRECTIONS.items():  # y points down
        words = name.split("-")
        assert dx == ("right" in words) - ("left" in words) and dy == ("down" in words) - ("up" in words)
    rows, columns = ("top", "middle", "bottom"), ("left", "middle", "right")
    cells = [f"{row}-{column}" for row in rows for column in columns]
    assert STARTS == tuple("centre" if cell == "middle-middle" else cell for cell in cells)
