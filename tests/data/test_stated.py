import pytest
import torch

from course_lib.data.parser import parse
from course_lib.data.scenes import COLOURS, DIRECTIONS, SIZES, SPEEDS, STARTS, Mover, Scene
from course_lib.data.stated import Stated, StatedMover, agrees, complete, fill

FULL = StatedMover(3, "small", "red", "centre", "left", "fast")


def test_complete_needs_every_attribute():
    whole = Stated((FULL,), 16, 48, 64)
    assert complete(whole) == Scene((Mover(3, "small", "red", "centre", "left", "fast"),), 16, 48, 64)
    for gap in (
        Stated((FULL,), None, 48, 64),
        Stated((FULL,), 16, None, 64),
        Stated((FULL,), 16, 48, None),
        Stated((), 16, 48, 64),
        Stated((FULL, StatedMover(3)), 16, 48, 64),
        *(Stated((StatedMover(**(vars(FULL) | {name: None})),), 16, 48, 64) for name in vars(FULL)),
    ):
        assert complete(gap) is gap
    still = StatedMover(0, "small", "red", "centre", "still")  # digit 0 is a digit, and still needs no speed
    assert complete(Stated((still,), 16, 48, 64)) == Scene((Mover(0, "small", "red", "centre", "still"),), 16, 48, 64)


def test_fill_takes_defaults_and_keeps_what_is_stated():
    assert fill(parse("a red 3 moving left")) == Scene((Mover(3, colour="red", direction="left"),), 16, 64, 64)
    assert fill(parse("a 3, 8 frames"), frames=16, height=48, width=56) == Scene((Mover(3),), 8, 48, 56)
    scene = Scene((Mover(3, "small"), Mover(7)), 5, 41, 43)
    assert fill(scene) == scene
    with pytest.raises(ValueError, match="names no digit"):
        fill(parse("moving left"))
    with pytest.raises(ValueError, match="names no digit"):
        fill(Stated())


def test_fill_draws_what_is_open_and_nothing_else():
    g = torch.Generator().manual_seed(0)
    stated = parse("a red 3 and a digit moving up")
    drawn = [fill(stated, g, colour=True) for _ in range(600)]
    assert all(agrees(stated, scene) for scene in drawn)
    first, second = ([scene.movers[i] for scene in drawn] for i in (0, 1))
    assert {m.size for m in first} == set(SIZES) and {m.start for m in second} == set(STARTS)
    assert {m.digit for m in second} == set(range(10)) and {m.colour for m in second} == set(COLOURS)
    assert {m.speed for m in first} == set(SPEEDS) and {m.direction for m in second} == {"up"}
    assert {m.direction for m in (fill(Stated(), g).movers[0] for _ in range(200))} == set(DIRECTIONS)
    assert {fill(Stated(), g).movers[0].colour for _ in range(50)} == {"white"}
    small = {fill(Stated(), g, height=30, width=64).movers[0].size for _ in range(50)}
    assert small == {"small", "medium"}  # a large digit would not fit
    same = [fill(Stated(), torch.Generator().manual_seed(3)) for _ in range(2)]
    assert same[0] == same[1]
    with pytest.raises(ValueError, match="does not fit"):
        fill(parse("a large 3"), g, height=30)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red 3 moving left and a blue 7 moving up", True),
        ("a blue 7 moving up and a red 3", True),  # the order does not matter
        ("a blue 7", True),
        ("untitled", True),
        ("a blue 3 and a red 7", False),  # but binding does
        ("a red 3 moving up", False),
        ("two 3s", False),
        ("a 3, a 7 and a 7", False),
        ("a 3, 17 frames", False),
        ("a 3, 16 frames, 64 high and 48 wide", False),
        ("two digits", True),
        ("three digits", False),
    ],
)
def test_agrees_matches_movers_one_to_one(text, expected):
    scene = Scene((Mover(3, colour="red", direction="left"), Mover(7, colour="blue", direction="up")), 16, 48, 64)
    assert agrees(parse(text), scene) is expected


def test_the_speed_of_a_still_digit_cannot_disagree():
    assert agrees(parse("a fast 3"), Scene((Mover(3, direction="still"),)))
    assert agrees(Scene((Mover(3),)), Scene((Mover(3),)))
    assert not agrees(Scene((Mover(3),)), Scene((Mover(3, speed="fast"),)))
