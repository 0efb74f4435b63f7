"""A scene is data first: who moves where, on which canvas. Pixels and captions are both derived from it.

A position is the pixel of a glyph tile's top-left corner, y points down, and a path lists ``(top, left)`` per frame.
Walls reflect without loss of speed, so every position has a closed form and every clip can be played backwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, Num
from torch import Tensor

SIZES = {"small": 20, "medium": 28, "large": 36}  # edge of the square glyph tile in pixels; its ink spans 5/7 of that
COLOURS = {
    "white": (255, 255, 255),
    "red": (255, 70, 60),
    "orange": (255, 150, 0),
    "yellow": (255, 235, 60),
    "green": (40, 210, 90),
    "blue": (70, 130, 255),
    "purple": (200, 90, 255),
}
STARTS = (  # reading order: cell i lies in row i // 3 and column i % 3
    *("top-left", "top-middle", "top-right"),
    *("middle-left", "centre", "middle-right"),
    *("bottom-left", "bottom-middle", "bottom-right"),
)
DIRECTIONS = {  # name -> (dx, dy); y points down
    "right": (1, 0),
    "down-right": (1, 1),
    "down": (0, 1),
    "down-left": (-1, 1),
    "left": (-1, 0),
    "up-left": (-1, -1),
    "up": (0, -1),
    "up-right": (1, -1),
    "still": (0, 0),
}
SPEEDS = {"slow": 1, "medium": 2, "fast": 3}  # pixels per frame and axis
MAX_MOVERS = 3


def check_name(what: str, name: str, known: Mapping[str, object] | tuple[str, ...]) -> None:
    """Raise ValueError unless ``name`` is one of ``known``; the message lists them."""
    if name not in known:
        raise ValueError(f"{what} {name!r} is unknown; choose one of {', '.join(known)}")


def check_fits(size: str, height: int, width: int) -> None:
    """Raise ValueError if a digit of this size is larger than the canvas."""
    if SIZES[size] > min(height, width):
        smaller = [name for name, edge in SIZES.items() if edge <= min(height, width)]
        way_out = f"use size {' or '.join(smaller)}, or a larger canvas" if smaller else "use a larger canvas"
        raise ValueError(
            f"a {size} digit needs {SIZES[size]}x{SIZES[size]} pixels and does not fit a canvas {height} high and "
            f"{width} wide; {way_out}"
        )


@dataclass(frozen=True)
class Mover:
    """One digit and how it moves; every attribute is a name, so that a caption can say it.

    A still digit has no speed. It is stored as ``"slow"``, so that two scenes that look the same are equal.

    Raises: ValueError for a digit outside 0-9 or an unknown name.
    """

    digit: int
    size: str = "medium"
    colour: str = "white"
    start: str = "centre"  # the cell of a 3x3 grid; the exact pixel is drawn when the scene is placed
    direction: str = "right"  # at the first frame: walls turn it later
    speed: str = "slow"

    def __post_init__(self):
        if isinstance(self.digit, bool) or not isinstance(self.digit, int) or not 0 <= self.digit <= 9:
            raise ValueError(f"digit must be an integer from 0 to 9, got {self.digit!r}")
        check_name("size", self.size, SIZES)
        check_name("colour", self.colour, COLOURS)
        check_name("start", self.start, STARTS)
        check_name("direction", self.direction, DIRECTIONS)
        check_name("speed", self.speed, SPEEDS)
        if self.direction == "still":
            object.__setattr__(self, "speed", "slow")


@dataclass(frozen=True)
class Scene:
    """One to three movers on a canvas of ``frames`` frames, ``height`` rows and ``width`` columns.

    Raises: ValueError for no or too many movers, an empty clip, or a digit larger than the canvas.
    """

    movers: Sequence[Mover]  # kept as a tuple
    frames: int = 16
    height: int = 64
    width: int = 64

    def __post_init__(self):
        object.__setattr__(self, "movers", tuple(self.movers))
        if not 1 <= len(self.movers) <= MAX_MOVERS:
            raise ValueError(f"a scene has 1 to {MAX_MOVERS} movers, got {len(self.movers)}")
        for name in ("frames", "height", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for mover in self.movers:
            check_fits(mover.size, self.height, self.width)


def cell_range(cell: Int[Tensor, "*n"], limit: Int[Tensor, "*n"]) -> tuple[Int[Tensor, "*n"], Int[Tensor, "*n"]]:
    """First and last position of row or column ``cell`` (0, 1 or 2) of the 3x3 grid on positions 0 to ``limit``.

    The ranges are disjoint and cover [0, limit] as soon as there are three positions; with fewer, cells share them.
    """
    first = torch.minimum(cell * (limit + 1) // 3, limit)
    return first, torch.maximum(first, (cell + 1) * (limit + 1) // 3 - 1)


def reflect(
    start: Int[Tensor, "*#n"],
    velocity: Int[Tensor, "*#n"],
    frame: Int[Tensor, "*#n"],
    limit: Int[Tensor, "*#n"],
) -> Int[Tensor, "..."]:
    """Position after ``frame`` frames of a point that flies back and forth between two walls, at 0 and at ``limit``.

    A wall turns the point round without loss: with ``limit`` 5, start 3 and velocity 1 it is at 3, 4, 5, 4, 3, 2, 1, 0,
    1, … No loop over the frames is needed, so that frame 1000 costs what frame 1 costs.

    Args:
        start: positions at frame 0, from 0 to ``limit``, in pixels.
        velocity: pixels per frame, to either side, and of any size: it may exceed ``limit``.
        frame: frame numbers; negative ones ask where the point came from.
        limit: the far wall, 0 or more. Where it is 0 there is no room to move, and the position is 0.
            All four hold integers and broadcast against each other.
    Returns: integers from 0 to ``limit``, in the broadcast shape.
    """
    # Without walls the point flies straight on. Fold that line back: it repeats after a trip there and back.
    period = (2 * limit).clamp(min=1)  # a room without width would divide by zero
    unfolded = (start + velocity * frame) % period  # never negative: the result of % has the sign of the period
    return limit - (limit - unfolded).abs()


def trajectory(
    start: Int[Tensor, "*#n 2"], velocity: Int[Tensor, "*#n 2"], limit: Int[Tensor, "*#n 2"], frames: int
) -> Int[Tensor, "*n f 2"]:
    """The path of each mover: ``reflect`` for every frame and both axes.

    Args:
        start: (top, left) at frame 0; velocity: (down, right) pixels per frame; limit: the last valid (top, left).
        frames: how many frames, >= 1.
    Returns: ``(*n, frames, 2)``, the (top, left) of every frame.
    """
    frame = torch.arange(frames, device=start.device)[:, None]
    return reflect(start[..., None, :], velocity[..., None, :], frame, limit[..., None, :])


def paint(
    video: Num[Tensor, "n h w"],
    row: Int[Tensor, "*#m"],
    glyph: Num[Tensor, "*#m gh gw"],
    top: Int[Tensor, "*#m"],
    left: Int[Tensor, "*#m"],
) -> None:
    """Write each glyph into ``video[row]`` at ``(top, left)``, in place; the brighter pixel wins.

    All frames at once: in a sliding-window view of the video, ``windows[row, top, left]`` *is* the patch with that
    corner, so one indexed assignment paints them all. ``row``, ``top``, ``left`` and the leading axes of ``glyph``
    broadcast; no row may occur twice. In numpy, on the same memory, because it is twice as fast as torch at this and
    stays on one thread: threads that wait for each other cost more than they bring when the machine is busy.
    """
    size = tuple(glyph.shape[-2:])
    windows = np.lib.stride_tricks.sliding_window_view(video.numpy(), size, axis=(1, 2), writeable=True)
    where = row.numpy(), top.numpy(), left.numpy()
    windows[where] = np.maximum(windows[where], glyph.numpy())


def render(
    glyphs: Num[Tensor, "k gh gw"], path: Int[Tensor, "k f 2"], height: int, width: int
) -> Num[Tensor, "f {height} {width}"]:
    """Draw ``k`` glyphs along their paths on a dark canvas; where they overlap, the brighter pixel wins.

    Args:
        glyphs: values of 0 (dark) and more, any dtype.
        path: (top, left) of each glyph's upper left corner in every frame; the row comes first, y points down.
        height, width: of the canvas, in pixels.
    Returns: (f, height, width), 0 where no glyph is, in the dtype of ``glyphs``.
    Raises: ValueError if a glyph, its dark margin included, would leave the canvas anywhere on its path.
    """
    gh, gw = glyphs.shape[1:]
    check_path(path, gh, gw, height, width)
    video = glyphs.new_zeros(path.shape[1], height, width)
    for glyph, corners in zip(glyphs, path.tolist(), strict=True):
        for frame, (top, left) in zip(video, corners, strict=True):
            window = frame[top : top + gh, left : left + gw]  # a view: what is written here lands in the video
            window.copy_(torch.maximum(window, glyph))
    return video


def check_path(path: Int[Tensor, "... 2"], glyph_height: int, glyph_width: int, height: int, width: int) -> None:
    """Raise ValueError if a tile of this size leaves the canvas anywhere on the path."""
    limit = torch.tensor([height - glyph_height, width - glyph_width])
    if bool(((path < 0) | (path > limit)).any()):
        raise ValueError(
            f"a {glyph_height}x{glyph_width} glyph leaves the {height}x{width} canvas: its (top, left) must stay "
            f"between (0, 0) and {tuple(limit.tolist())}"
        )
