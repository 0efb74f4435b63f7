"""Many scenes at once: a batch of scenes as integer tensors, drawn at random, and placed to the pixel."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from course_lib.data.digits import Digits
from course_lib.data.scenes import (
    COLOURS,
    DIRECTIONS,
    MAX_MOVERS,
    SIZES,
    SPEEDS,
    STARTS,
    Mover,
    Scene,
    cell_range,
    check_fits,
    check_name,
    trajectory,
)

NAMES = {  # what the integers of a SceneBatch stand for: positions in these tuples
    "size": tuple(SIZES),
    "colour": tuple(COLOURS),
    "start": STARTS,
    "direction": tuple(DIRECTIONS),
    "speed": tuple(SPEEDS),
}
EDGES = torch.tensor(list(SIZES.values()))
SPEED_PIXELS = torch.tensor(list(SPEEDS.values()))
DOWN_RIGHT = torch.tensor([(dy, dx) for dx, dy in DIRECTIONS.values()])  # (top, left) order, like a path


@dataclass(frozen=True, eq=False)
class SceneBatch:
    """``b`` scenes of up to ``k`` movers on canvases of one size, as int64 tensors of shape (b, k).

    ``digit`` is -1 where a scene has fewer movers (those come last); every other tensor counts positions in ``NAMES``.
    ``len(batch)`` scenes; ``batch[i]`` is the i-th as a ``Scene``, ``batch[2:5]`` or ``batch[index_tensor]`` a smaller
    batch.
    """

    digit: Int[Tensor, "b k"]
    size: Int[Tensor, "b k"]
    colour: Int[Tensor, "b k"]
    start: Int[Tensor, "b k"]
    direction: Int[Tensor, "b k"]
    speed: Int[Tensor, "b k"]
    frames: int = 16
    height: int = 64
    width: int = 64

    def __len__(self) -> int:
        return len(self.digit)

    def __getitem__(self, index: "int | slice | Tensor") -> "Scene | SceneBatch":
        if not isinstance(index, int):
            attributes = {name: getattr(self, name)[index] for name in ("digit", *NAMES)}
            return SceneBatch(**attributes, frames=self.frames, height=self.height, width=self.width)
        rows = zip(*(getattr(self, name)[index].tolist() for name in ("digit", *NAMES)), strict=True)
        movers = (
            Mover(digit, **{name: NAMES[name][i] for name, i in zip(NAMES, rest, strict=True)})
            for digit, *rest in rows
            if digit >= 0
        )
        return Scene(tuple(movers), self.frames, self.height, self.width)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def to_scenes(self) -> list[Scene]:
        """The batch as a list of ``Scene``."""
        return list(self)

    @classmethod
    def from_scenes(cls, scenes: Sequence[Scene]) -> "SceneBatch":
        """The inverse of ``to_scenes``. Raises ValueError if the canvases differ or the list is empty."""
        canvases = {(scene.frames, scene.height, scene.width) for scene in scenes}
        if len(canvases) != 1:
            raise ValueError(
                "a batch needs scenes that agree in frames, height and width, got "
                f"{sorted(canvases) if canvases else 'no scene'}; make one batch per canvas"
            )
        slots = max(len(scene.movers) for scene in scenes)
        rows = {name: torch.zeros(len(scenes), slots, dtype=torch.long) for name in ("digit", *NAMES)}
        rows["digit"].fill_(-1)
        for i, scene in enumerate(scenes):
            for k, mover in enumerate(scene.movers):
                rows["digit"][i, k] = mover.digit
                for name, known in NAMES.items():
                    rows[name][i, k] = known.index(getattr(mover, name))
        frames, height, width = canvases.pop()
        return cls(**rows, frames=frames, height=height, width=width)

    @classmethod
    def concatenate(cls, parts: "Sequence[SceneBatch]") -> "SceneBatch":
        """One batch of several with the same canvas and number of slots."""
        attributes = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("digit", *NAMES)}
        return cls(**attributes, frames=parts[0].frames, height=parts[0].height, width=parts[0].width)

    @property
    def present(self) -> Bool[Tensor, "b k"]:
        """True where there is a mover."""
        return self.digit >= 0

    @property
    def edge(self) -> Int[Tensor, "b k"]:
        """Edge of each glyph tile in pixels."""
        return EDGES[self.size]

    @property
    def velocity(self) -> Int[Tensor, "b k 2"]:
        """(down, right) in pixels per frame."""
        return DOWN_RIGHT[self.direction] * SPEED_PIXELS[self.speed][..., None]

    @property
    def limit(self) -> Int[Tensor, "b k 2"]:
        """The last valid (top, left) of each tile."""
        return torch.tensor([self.height, self.width]) - self.edge[..., None]


@dataclass(frozen=True, eq=False)
class Placement:
    """What a scene leaves open: the handwriting (``glyph``, an index into Digits) and the start pixel (top, left)."""

    glyph: Int[Tensor, "b k"]
    corner: Int[Tensor, "b k 2"]

    def __getitem__(self, index: "slice | Tensor") -> "Placement":
        return Placement(self.glyph[index], self.corner[index])

    @classmethod
    def concatenate(cls, parts: "Sequence[Placement]") -> "Placement":
        """One placement of several with the same number of slots."""
        return cls(torch.cat([part.glyph for part in parts]), torch.cat([part.corner for part in parts]))


def sample_scenes(
    n: int,
    generator: torch.Generator,
    *,
    movers: tuple[int, int] = (1, 1),
    frames: int = 16,
    height: int = 64,
    width: int = 64,
    colour: bool = False,
    labels: Sequence[int] = tuple(range(10)),
    sizes: Sequence[str] = ("medium",),
    colours: Sequence[str] | None = None,
    starts: Sequence[str] = STARTS,
    directions: Sequence[str] = tuple(DIRECTIONS),
    speeds: Sequence[str] = tuple(SPEEDS),
) -> SceneBatch:
    """Draw ``n`` scenes, every attribute independently and uniformly from what is allowed.

    Args:
        generator: all randomness; equal generators give equal scenes.
        movers: fewest and most movers per scene.
        colour: draw colours from ``colours`` (all by default); otherwise every digit is white.
        labels, sizes, colours, starts, directions, speeds: the allowed values; repeat one to make it more frequent.
    Raises: ValueError for an unknown name, an empty choice, or a size that does not fit the canvas.
    """
    fewest, most = movers
    if not 1 <= fewest <= most <= MAX_MOVERS:
        raise ValueError(f"movers must be (fewest, most) with 1 <= fewest <= most <= {MAX_MOVERS}, got {movers}")
    if min(n, frames, height, width) < 1:
        raise ValueError(f"n, frames, height and width must be at least 1, got {n}, {frames}, {height}, {width}")
    if colours is not None and not colour:
        raise ValueError("colours are given but colour is False; pass colour=True")
    if not labels or not set(labels) <= set(range(10)):
        raise ValueError(f"labels must be some of the digits 0 to 9, got {list(labels)}")
    for size in sizes:
        check_name("size", size, SIZES)
        check_fits(size, height, width)
    shape = (n, most)

    def draw(allowed: Sequence[int]) -> Tensor:
        choice = torch.randint(len(allowed), shape, generator=generator)
        return torch.as_tensor(list(allowed))[choice]

    def positions(what: str, names: Sequence[str]) -> list[int]:
        for name in names:
            check_name(what, name, NAMES[what])
        if not names:
            raise ValueError(f"no {what} is allowed; name at least one of {', '.join(NAMES[what])}")
        return [NAMES[what].index(name) for name in names]

    count = torch.randint(fewest, most + 1, (n, 1), generator=generator)
    digit = draw(labels).masked_fill(torch.arange(most) >= count, -1)
    allowed = {
        "size": sizes,
        "colour": ("white",) if not colour else tuple(COLOURS) if colours is None else colours,
        "start": starts,
        "direction": directions,
        "speed": speeds,
    }
    drawn = {what: draw(positions(what, names)) for what, names in allowed.items()}
    drawn["speed"] = drawn["speed"].masked_fill(drawn["direction"] == NAMES["direction"].index("still"), 0)
    absent = digit < 0
    drawn = {what: values.masked_fill(absent, 0) for what, values in drawn.items()}
    return SceneBatch(digit, **drawn, frames=frames, height=height, width=width)


def place(scenes: SceneBatch, digits: Digits, generator: torch.Generator) -> Placement:
    """Draw what the scenes leave open: a handwriting of each digit, and a start pixel uniform in its cell."""
    glyph = digits.draw(scenes.digit.clamp(min=0), generator)
    chance = torch.rand((*scenes.digit.shape, 2), generator=generator, dtype=torch.float64)
    cell = torch.stack([scenes.start // 3, scenes.start % 3], dim=-1)
    first, last = cell_range(cell, scenes.limit)
    return Placement(glyph, first + (chance * (last - first + 1)).long())


def paths(scenes: SceneBatch, placement: Placement) -> Int[Tensor, "b k f 2"]:
    """The exact (top, left) of every mover's tile in every frame; meaningless where no mover is ``present``."""
    return trajectory(placement.corner, scenes.velocity, scenes.limit, scenes.frames)
