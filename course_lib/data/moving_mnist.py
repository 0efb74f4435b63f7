"""Captioned Moving MNIST: clips drawn on the fly, seeded, vectorised, in any length and shape.

``batches`` is the fast path for training; ``CaptionedMovingMNIST`` is the same world as a ``torch.utils.data.Dataset``.
Unlike the classic generators, nothing is truncated or clamped: velocities are integers and walls reflect exactly.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Num, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from course_lib.data.captions import describe
from course_lib.data.digits import Digits, load_digits
from course_lib.data.mnist_files import load_official_moving_mnist
from course_lib.data.sampling import EDGES, Placement, SceneBatch, paths, place, sample_scenes
from course_lib.data.scenes import COLOURS, Scene, paint

__all__ = [
    "CaptionedMovingMNIST",
    "Clips",
    "Placement",
    "SceneBatch",
    "as_moving_mnist_layout",
    "batches",
    "load_official_moving_mnist",
    "paths",
    "place",
    "render_scenes",
    "sample_scenes",
    "seeded",
]

RGB = torch.tensor(list(COLOURS.values()), dtype=torch.uint8)


def seeded(seed: int, index: int) -> torch.Generator:
    """A generator for item ``index`` of the world ``seed``; neighbouring pairs give unrelated streams.

    torch's CPU generator keeps 32 bits of its seed, so of four billion pairs about one equals a given one.
    """
    return torch.Generator().manual_seed(_scramble(_scramble(seed) + index) % 2**32)


def _scramble(number: int) -> int:
    """splitmix64: maps 64-bit numbers one to one, and spreads every bit over all others."""
    number = (number + 0x9E3779B97F4A7C15) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        number = ((number ^ (number >> shift)) * factor) % 2**64
    return number ^ (number >> 31)


def render_scenes(
    scenes: Scene | Sequence[Scene] | SceneBatch,
    digits: Digits,
    generator: torch.Generator | None = None,
    *,
    placement: Placement | None = None,
    channels: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Num[Tensor, "b c f h w"]:
    """Draw scenes as video; where digits overlap, the brighter value wins in each channel.

    Args:
        scenes: one canvas size per call.
        generator: draws handwriting and exact start pixels; or give a ``placement`` to fix them.
        channels: 1 (grey) or 3 (RGB); by default 3 if any digit is coloured.
        dtype: a floating type gives values in [-1, 1], ``torch.uint8`` gives 0..255.
    Returns: ``(b, channels, frames, height, width)``.
    Raises: ValueError if neither or both of generator and placement are given, or grey is asked for coloured digits.
    """
    if isinstance(scenes, Scene):
        scenes = [scenes]
    if not isinstance(scenes, SceneBatch):
        scenes = SceneBatch.from_scenes(scenes)
    if (generator is None) == (placement is None):
        raise ValueError(
            "give either a generator, which draws handwriting and start pixels, or a placement that fixes them"
        )
    if placement is None:
        placement = place(scenes, digits, generator)
    coloured = bool((scenes.colour > 0).any())
    channels = channels or (3 if coloured else 1)
    if channels not in (1, 3) or (channels == 1 and coloured):
        raise ValueError(f"channels must be 1 or 3, and 3 for coloured digits; got {channels}")
    video = _draw(scenes, digits, placement, channels)
    return video if dtype == torch.uint8 else to_unit_range(video, dtype)


def to_unit_range(video: UInt8[Tensor, "*shape"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "*shape"]:
    """Bytes 0..255 to floats in [-1, 1]."""
    exact = torch.promote_types(dtype, torch.float32)  # half precision would round twice
    return video.to(exact).mul_(2 / 255).sub_(1).to(dtype)


def to_bytes(video: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Floats in [-1, 1] to bytes 0..255, the inverse of ``to_unit_range``; values outside are clipped."""
    return video.float().add(1).mul(127.5).round().clamp(0, 255).byte()


def _draw(scenes: SceneBatch, digits: Digits, placement: Placement, channels: int) -> UInt8[Tensor, "b c f h w"]:
    b, frames = len(scenes), scenes.frames
    video = torch.zeros(b, channels, frames, scenes.height, scenes.width, dtype=torch.uint8)
    flat = video.view(-1, scenes.height, scenes.width)  # one row per (clip, channel, frame)
    path = paths(scenes, placement)
    offset = torch.arange(channels)[:, None] * frames + torch.arange(frames)  # of a clip's rows, (c, f)
    for slot in range(scenes.digit.shape[1]):
        present = scenes.digit[:, slot] >= 0
        for size in scenes.size[present, slot].unique().tolist():  # tiles of one size can be painted together
            clip = (present & (scenes.size[:, slot] == size)).nonzero()[:, 0]
            glyph = digits.at_size(int(EDGES[size]))[placement.glyph[clip, slot]][:, None]  # (m, 1, edge, edge)
            if channels == 3:
                tint = RGB[scenes.colour[clip, slot]].float() / 255
                glyph = (glyph * tint[:, :, None, None]).round().byte()
            row = clip[:, None, None] * (channels * frames) + offset  # (m, c, f)
            top, left = path[clip, slot][:, None].unbind(-1)  # (m, 1, f) each
            paint(flat, row, glyph[:, :, None], top, left)
    return video


@dataclass(frozen=True, eq=False)
class Clips:
    """A batch of clips with everything that is known about them.

    video: (b, c, f, h, w), floats in [-1, 1] or bytes. scenes: what was asked. placement: handwriting and start pixels.
    path: (b, k, f, 2), the exact (top, left) of every tile.
    """

    video: Num[Tensor, "b c f h w"]
    scenes: SceneBatch
    placement: Placement
    path: Int[Tensor, "b k f 2"]

    def captions(
        self, level: str = "descriptive", generator: torch.Generator | None = None, paraphrase: str | None = None
    ):
        """One caption per clip, see ``describe``."""
        return [describe(scene, level, generator, paraphrase) for scene in self.scenes]


def batches(
    digits: Digits,
    batch_size: int,
    seed: int = 0,
    *,
    start: int = 0,
    dtype: torch.dtype = torch.float32,
    **sampling,
) -> Iterator[Clips]:
    """Batches of fresh clips without end, in the calling process and fast enough never to starve training.

    Batch ``step`` depends on ``(seed, step)`` only, so a run that is resumed with ``start=step`` sees the same clips.

    Args:
        start: the first step. dtype: as in ``render_scenes``.
        sampling: passed to ``sample_scenes``: movers, frames, height, width, colour, labels, directions, ...
            With ``colour`` the video has three channels.
    """
    step = start
    while True:
        generator = seeded(seed, step)
        scenes = sample_scenes(batch_size, generator, **sampling)
        placement = place(scenes, digits, generator)
        channels = 3 if sampling.get("colour") else 1
        video = render_scenes(scenes, digits, placement=placement, channels=channels, dtype=dtype)
        yield Clips(video, scenes, placement, paths(scenes, placement))
        step += 1


class CaptionedMovingMNIST(Dataset):
    """The world as a map-style dataset: item ``i`` depends on ``(seed, i)`` only, however many workers load it.

    Items are dicts with ``video`` (c, f, h, w), ``caption`` (str), ``scene`` (Scene) and ``path`` (k, f, 2). Because
    scenes and strings do not stack, pass ``collate_fn=CaptionedMovingMNIST.collate`` to a DataLoader.

    Args:
        digits: a ``Digits``, or what ``load_digits`` takes as ``kind``; split: which part of them.
        length: number of items. level, paraphrase: of the captions, see ``describe``.
        canvases: (frames, height, width) triples; each item has one of them, drawn at random. By default the canvas of
            ``sampling``. With more than one, a batch may mix shapes and ``collate`` keeps the videos in a list.
        sampling: passed to ``sample_scenes``.
    """

    def __init__(
        self,
        digits: Digits | str = "auto",
        length: int = 10_000,
        seed: int = 0,
        *,
        split: str = "train",
        level: str = "descriptive",
        paraphrase: str | None = None,
        canvases: Sequence[tuple[int, int, int]] = (),
        dtype: torch.dtype = torch.float32,
        **sampling,
    ):
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        self.digits = load_digits(digits, split) if isinstance(digits, str) else digits
        self.length, self.seed, self.level, self.paraphrase = length, seed, level, paraphrase
        self.canvases, self.dtype, self.sampling = tuple(canvases), dtype, sampling

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        """The items of one batch, as a DataLoader asks for them: drawn one by one, but rendered together."""
        items, waiting = [], {}
        for index in indices:
            if not -self.length <= index < self.length:
                raise IndexError(f"item {index} of a dataset of {self.length}")
            generator = seeded(self.seed, index % self.length)
            sampling = dict(self.sampling)
            if self.canvases:
                canvas = self.canvases[int(torch.randint(len(self.canvases), (), generator=generator))]
                sampling |= dict(zip(("frames", "height", "width"), canvas, strict=True))
            scenes = sample_scenes(1, generator, **sampling)
            placement = place(scenes, self.digits, generator)
            scene = scenes[0]
            caption = describe(scene, self.level, generator, self.paraphrase)
            item = {"video": None, "caption": caption, "scene": scene, "path": None}
            items.append(item)
            waiting.setdefault((scene.frames, scene.height, scene.width), []).append((item, scenes, placement))
        channels = 3 if self.sampling.get("colour") else 1
        for group in waiting.values():
            scenes = SceneBatch.concatenate([scenes for _, scenes, _ in group])
            placement = Placement.concatenate([placement for _, _, placement in group])
            video = render_scenes(scenes, self.digits, placement=placement, channels=channels, dtype=self.dtype)
            for (item, _, _), clip, path in zip(group, video, paths(scenes, placement), strict=True):
                item["video"], item["path"] = clip, path[: len(item["scene"].movers)]
        return items

    @staticmethod
    def collate(items: Sequence[dict]) -> dict:
        """Stack the videos (a list where shapes differ); captions, scenes and paths become lists."""
        batch = {name: [item[name] for item in items] for name in items[0]}
        if len({video.shape for video in batch["video"]}) == 1:
            batch["video"] = torch.stack(batch["video"])
        return batch


def as_moving_mnist_layout(video: Num[Tensor, "b 1 f h w"]) -> UInt8[Tensor, "f b h w"]:
    """Grey clips in the layout of the official file ``mnist_test_seq.npy``: (frames, clips, height, width), bytes."""
    bytes_ = video if video.dtype == torch.uint8 else to_bytes(video)
    return bytes_[:, 0].transpose(0, 1).contiguous()
