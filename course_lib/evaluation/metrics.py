"""Does a clip show what was asked? Measured with our own judge and a tracker; nothing is downloaded.

All figures are for clips with one digit. Every report prints the same figures for real held-out clips beside the
generator's: that is the ceiling, and it is below 100 % because the judge errs too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from course_lib.data.sampling import SceneBatch
from course_lib.data.scenes import cell_range, trajectory
from course_lib.evaluation.judge import Judge, load_judge
from course_lib.evaluation.tracking import centred_crops, centroids

MIN_FLIGHT = 3  # a direction is measured over at least this many steps before the first wall
ANGLE = 22.5  # half of the 45 degrees between neighbouring directions


@dataclass(frozen=True)
class ClipMetrics:
    """One number per clip; nan where a clip does not allow the measurement. See ``COLUMNS`` for the words."""

    digit: Float[Tensor, " b"]  # 1 if the clip is read as the asked digit
    digit_frames: Float[Tensor, " b"]  # share of frames read as the asked digit
    identity: Float[Tensor, " b"]  # 1 if every single frame is read as the asked digit
    direction: Float[Tensor, " b"]  # 1 if the first flight is within 22.5 degrees of the asked direction
    angle: Float[Tensor, " b"]  # degrees between asked and measured direction
    speed: Float[Tensor, " b"]  # |measured - asked| / asked, over the first flight
    start: Float[Tensor, " b"]  # 1 if the best-fitting start lies in the asked cell
    residual: Float[Tensor, " b"]  # RMSE in pixels to the best-fitting path of the exact reflector
    flicker: Float[Tensor, " b"]  # 1 - correlation of consecutive centred crops: 0 for a digit that keeps its shape

    def summary(self) -> dict[str, float | None]:
        """Means over clips, medians for angle and speed, whose outliers would drown the rest; None without any clip."""
        means = {}
        for field in fields(self):
            average = torch.nanmedian if field.name in ("angle", "speed") else torch.nanmean
            value = average(getattr(self, field.name)).item()
            means[field.name] = None if math.isnan(value) else value
        return means


COLUMNS = {  # key -> what a table says, and how it formats the number
    "digit": ("digit as asked", "{:.1%}"),
    "digit_frames": ("frames as asked", "{:.1%}"),
    "identity": ("every frame as asked", "{:.1%}"),
    "direction": (f"direction within {ANGLE} deg", "{:.1%}"),
    "angle": ("direction error, median deg", "{:.1f}"),
    "speed": ("speed error, median", "{:.1%}"),
    "start": ("start cell as asked", "{:.1%}"),
    "residual": ("residual to the exact path, px", "{:.2f}"),
    "flicker": ("flicker", "{:.3f}"),
}


def measure(video: Float[Tensor, "b c f h w"], scenes: SceneBatch, judge: Judge | None = None) -> ClipMetrics:
    """Compare clips of one digit each with the scenes that were asked for.

    Args:
        video: (b, c, f, h, w) in [-1, 1].
        scenes: b scenes with one mover each, on the canvas of the video; its start pixel and handwriting are free.
        judge: reads the digits; by default the shipped one.
    Raises: ValueError if the sizes do not fit or a scene has several movers.
    """
    if scenes.digit.shape[1] != 1 or len(scenes) != len(video):
        shape = tuple(scenes.digit.shape)
        raise ValueError(f"{len(video)} clips need {len(video)} scenes of one digit each, but scenes are {shape}")
    if (scenes.frames, scenes.height, scenes.width) != tuple(video.shape[2:]):
        asked = (scenes.frames, scenes.height, scenes.width)
        raise ValueError(f"clips of {tuple(video.shape[2:])} frames x height x width do not fit scenes of {asked}")
    video = video.cpu()
    digit = scenes.digit[:, 0]
    frames = (judge or load_judge()).read_frames(video)  # (b, f, 10)
    as_asked = frames.argmax(dim=-1) == digit[:, None]

    corner = centroids(video) - (scenes.edge[:, 0, None, None] - 1) / 2  # (b, f, 2): where the tile's corner must be
    velocity, limit = scenes.velocity[:, 0], scenes.limit[:, 0]
    slope, counts = first_flight(corner, velocity, limit)
    asked = velocity.float()
    cosine = torch.cosine_similarity(slope, asked, dim=-1).clamp(-1, 1)
    angle = torch.where(counts, torch.rad2deg(cosine.acos()), torch.nan)
    pace = (slope.norm(dim=-1) - asked.norm(dim=-1)).abs() / asked.norm(dim=-1)
    start, residual = best_start(corner, velocity, limit)
    cell = torch.stack([scenes.start[:, 0] // 3, scenes.start[:, 0] % 3], dim=-1)
    first, last = cell_range(cell, limit)

    crops = centred_crops(video).flatten(2)
    crops = crops - crops.mean(dim=-1, keepdim=True)
    correlation = torch.cosine_similarity(crops[:, 1:], crops[:, :-1], dim=-1)
    return ClipMetrics(
        digit=(frames.mean(dim=1).argmax(dim=-1) == digit).float(),
        digit_frames=as_asked.float().mean(dim=1),
        identity=as_asked.all(dim=1).float(),
        direction=torch.where(counts, (angle <= ANGLE).float(), torch.nan),
        angle=angle,
        speed=torch.where(counts, pace, torch.nan),
        start=((start >= first) & (start <= last)).all(dim=-1).float(),
        residual=residual,
        flicker=1 - correlation.mean(dim=1),
    )


def first_flight(
    corner: Float[Tensor, "b f 2"], velocity: Int[Tensor, "b 2"], limit: Int[Tensor, "b 2"]
) -> tuple[Float[Tensor, "b 2"], Bool[Tensor, " b"]]:
    """Measured velocity until the asked motion would meet its first wall, by least squares.

    Args:
        corner: measured (top, left) per frame, in pixels.
        velocity, limit: what was asked, pixels per frame and last valid position.
    Returns: pixels per frame (b, 2), and which clips count: those that move, and fly ``MIN_FLIGHT`` steps or more.
    """
    start = corner[:, 0].round().clamp(min=torch.zeros(2), max=limit.float())
    room = torch.where(velocity > 0, limit - start, start)
    steps = torch.where(velocity == 0, torch.inf, (room / velocity.abs().clamp(min=1)).floor()).amin(dim=-1)
    steps = steps.clamp(max=corner.shape[1] - 1)
    time = torch.arange(corner.shape[1]).expand(len(corner), -1).float()
    inside = (time <= steps[:, None]).float()
    n = inside.sum(dim=1, keepdim=True)
    centred = (time - (time * inside).sum(dim=1, keepdim=True) / n) * inside
    slope = (centred[..., None] * corner).sum(dim=1) / centred.square().sum(dim=1, keepdim=True).clamp(min=1e-6)
    return slope, (steps >= MIN_FLIGHT) & (velocity != 0).any(dim=-1)


def best_start(
    corner: Float[Tensor, "b f 2"], velocity: Int[Tensor, "b 2"], limit: Int[Tensor, "b 2"]
) -> tuple[Int[Tensor, "b 2"], Float[Tensor, " b"]]:
    """The start pixel whose exactly reflected path comes closest, and its root mean square distance in pixels.

    A handwriting's centre of mass may sit up to a pixel off the middle of its tile; such a constant offset is no error.
    The two axes are independent, so each is searched alone over all its positions.
    """
    reach = int(limit.max()) + 1
    candidates = torch.arange(reach)[None, :, None].expand(len(corner), -1, 2)
    allowed = candidates <= limit[:, None]
    start = torch.minimum(candidates, limit[:, None])
    path = trajectory(start, velocity[:, None].expand_as(start), limit[:, None].expand_as(start), corner.shape[1])
    error = corner[:, None] - path  # (b, candidates, f, 2)
    offset = error.mean(dim=2)
    error = (error - offset.clamp(-1, 1)[:, :, None]).square().mean(dim=2)
    # Before the first wall, neighbouring starts fit equally well up to the offset: prefer the smallest.
    index = (error + 0.05 * offset.square()).masked_fill(~allowed, torch.inf).argmin(dim=1)
    return index, error.gather(1, index[:, None]).sum(dim=(1, 2)).sqrt()


def table(columns: dict[str, dict[str, float | None]], rows: Sequence[str] = tuple(COLUMNS)) -> str:
    """Summaries side by side as text, one line per figure.

    Args:
        columns: heading -> what ``ClipMetrics.summary`` returned.
        rows: which figures, by their keys in ``COLUMNS``.
    Returns: the text; a figure that was not measured (None or nan) is a dash.
    """
    width = max(len(COLUMNS[key][0]) for key in rows)
    lines = [" " * width + "".join(f"{name:>14}" for name in columns)]
    for key in rows:
        title, form = COLUMNS[key]
        lines.append(f"{title:<{width}}" + "".join(f"{_cell(s[key], form):>14}" for s in columns.values()))
    return "\n".join(lines)


def _cell(value: float | None, form: str) -> str:
    if value is None or math.isnan(value):
        return "\u2013"
    text = form.format(value)
    return text if text.strip("-0.%") else text.lstrip("-")  # what rounds to zero has no sign
