"""What a text says about a scene, and what it leaves open: the common ground of captions, prompts and evaluation."""

from dataclasses import dataclass, fields, replace
from itertools import permutations

import torch

from course_lib.data.scenes import COLOURS, DIRECTIONS, SIZES, SPEEDS, STARTS, Mover, Scene


@dataclass(frozen=True)
class StatedMover:
    """The attributes of one mover that a text states; None where it says nothing."""

    digit: int | None = None
    size: str | None = None
    colour: str | None = None
    start: str | None = None
    direction: str | None = None
    speed: str | None = None


@dataclass(frozen=True)
class Stated:
    """What a text states about a scene; None where it says nothing. ``movers`` are those it mentions, in its order."""

    movers: tuple[StatedMover, ...] = ()
    frames: int | None = None
    height: int | None = None
    width: int | None = None


def complete(stated: Stated) -> Scene | Stated:
    """The ``Scene`` if every attribute is stated (a still digit needs no speed), else ``stated`` itself."""
    movers = [replace(m, speed="slow") if m.direction == "still" else m for m in stated.movers]
    values = [stated.frames, stated.height, stated.width, *(v for m in movers for v in vars(m).values())]
    if not movers or None in values:
        return stated
    return Scene(tuple(Mover(**vars(m)) for m in movers), stated.frames, stated.height, stated.width)


def fill(
    stated: Scene | Stated,
    generator: torch.Generator | None = None,
    *,
    frames: int = 16,
    height: int = 64,
    width: int = 64,
    colour: bool = False,
) -> Scene:
    """Decide what a text leaves open; what it states is kept as it is.

    Args:
        generator: draws every open attribute uniformly (sizes among those that fit). Without it, open attributes take
            the defaults of ``Mover``, and the digit must be stated.
        frames, height, width: of the clip, where the text is silent.
        colour: whether an open colour is drawn too; otherwise it is white.
    Raises: ValueError if no digit is stated and there is no generator, or a digit does not fit the canvas.
    """
    canvas = {"frames": frames, "height": height, "width": width}
    canvas = {
        name: default if getattr(stated, name) is None else getattr(stated, name) for name, default in canvas.items()
    }
    choices = {
        "digit": tuple(range(10)),
        "size": tuple(size for size, edge in SIZES.items() if edge <= min(canvas["height"], canvas["width"])),
        "colour": tuple(COLOURS) if colour else ("white",),
        "start": STARTS,
        "direction": tuple(DIRECTIONS),
        "speed": tuple(SPEEDS),
    }
    movers = []
    for mover in stated.movers or (StatedMover(),):
        known = {name: value for name, value in vars(mover).items() if value is not None}
        if generator is None:
            if "digit" not in known:
                raise ValueError(
                    "the text names no digit; say which, for example 'a 3 moving left', or pass a generator"
                )
        else:
            for name, allowed in choices.items():
                if name not in known and allowed:
                    known[name] = allowed[int(torch.randint(len(allowed), (), generator=generator))]
        movers.append(Mover(**known))
    return Scene(tuple(movers), **canvas)


def agrees(stated: Scene | Stated, scene: Scene) -> bool:
    """True if nothing that is stated contradicts the scene; each stated mover needs a mover of its own (binding)."""
    for name in ("frames", "height", "width"):
        if getattr(stated, name) not in (None, getattr(scene, name)):
            return False
    if len(stated.movers) > len(scene.movers):
        return False

    def fits(said: StatedMover | Mover, mover: Mover) -> bool:
        names = [f.name for f in fields(said)]
        if mover.direction == "still":
            names.remove("speed")
        return all(getattr(said, name) in (None, getattr(mover, name)) for name in names)

    orders = permutations(scene.movers, len(stated.movers))
    return any(all(map(fits, stated.movers, order)) for order in orders)
