"""Hide a digit: noise over it and pieces of other digits around it; and the outline that is to be found again."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from course_lib.data.digits import Digits
from course_lib.data.glyphs import GLYPH
from course_lib.data.moving_mnist import to_unit_range

INK_STARTS = 4  # the first row or column of a digit image that may hold ink


def add_clutter(
    video: Float[Tensor, "b c f h w"],
    digits: Digits,
    generator: torch.Generator,
    *,
    pieces: int = 10,
    edge: int = 7,
    noise: float = 0.4,
) -> Float[Tensor, "b c f h w"]:
    """Strew square pieces of digits over a clip and add noise; the digit that moves stays the only whole one.

    The pieces keep their places in all frames of a clip; the noise is new in every frame. Where a piece and the digit
    overlap, the brighter value wins.

    Args:
        video: (b, c, f, h, w), values in [-1, 1].
        digits: where the pieces are cut from.
        pieces: how many per clip.
        edge: rows and columns of a piece, in pixels.
        noise: standard deviation of the normal noise.
    Returns: (b, c, f, h, w), clipped to [-1, 1].
    Raises: ValueError if a piece is larger than a frame or than the ink of a digit.
    """
    b, _, _, h, w = video.shape
    room = GLYPH - 2 * INK_STARTS - edge
    if edge < 1 or room < 0 or edge > min(h, w):
        raise ValueError(f"edge={edge}: a piece must fit into {h} x {w} pixels and into a digit's ink of 20 x 20")

    def draw(limit):
        return torch.randint(limit + 1, (b,), generator=generator)

    def window(top, left):
        return (top[:, None] + torch.arange(edge))[:, :, None], (left[:, None] + torch.arange(edge))[:, None, :]

    clutter, row = torch.full((b, h, w), -1.0, dtype=video.dtype), torch.arange(b)[:, None, None]
    for _ in range(pieces):
        source = torch.randint(len(digits), (b,), generator=generator)[:, None, None]
        rows, columns = window(INK_STARTS + draw(room), INK_STARTS + draw(room))
        piece = to_unit_range(digits.images[source, rows, columns], video.dtype)
        rows, columns = window(draw(h - edge), draw(w - edge))
        clutter[row, rows, columns] = torch.maximum(clutter[row, rows, columns], piece)
    noisy = torch.maximum(video, clutter[:, None, None])
    noisy = noisy + noise * torch.randn(video.shape, generator=generator, dtype=video.dtype)
    return noisy.clamp(-1, 1)


def outline(frames: Float[Tensor, "*b h w"], threshold: float = 0.0) -> Bool[Tensor, "*b h w"]:
    """The line of one pixel around the ink: True where a pixel has no ink but one of its eight neighbours has.

    Args:
        frames: any number of leading axes; values in [-1, 1].
        threshold: ink is what is brighter.
    """
    ink = (frames > threshold).reshape(-1, 1, *frames.shape[-2:]).float()
    near = F.max_pool2d(ink, 3, stride=1, padding=1)
    return ((near > 0) & (ink == 0)).reshape(frames.shape)
