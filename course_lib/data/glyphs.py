"""Redraw any picture of a digit as MNIST draws it: white strokes in a 20-pixel box, the centre of mass in the middle.

MNIST's recipe is LeCun et al. 1998, section III-A; the sharpening of 8x8 pictures is ours.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

GLYPH = 28  # edge of a digit image in pixels
BOX = 20  # the longer side of the ink


def resize(images: UInt8[Tensor, "n h w"], edge: int) -> UInt8[Tensor, "n {edge} {edge}"]:
    """Antialiased bicubic resampling to ``edge`` x ``edge`` pixels."""
    resampled = F.interpolate(images[:, None].float(), size=(edge, edge), mode="bicubic", antialias=True)
    return resampled[:, 0].round().clamp(0, 255).byte()


def blur(images: Float[Tensor, "n h w"], sigma: float) -> Float[Tensor, "n h w"]:
    """Gaussian blur with a standard deviation of ``sigma`` pixels."""
    reach = max(1, round(3 * sigma))
    weight = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))
    weight = weight / weight.sum()
    padded = F.pad(images[:, None], (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, weight.view(1, 1, 1, -1)), weight.view(1, 1, -1, 1))[:, 0]


def sharpen(images: Float[Tensor, "n h w"], factor: int = 4) -> Float[Tensor, "n hf wf"]:
    """Enlarge coarse pictures of strokes and give them crisp edges.

    A coarse pixel holds the *share* of ink in its area, so strokes look like hills. Ink is where the enlarged picture
    is clearly brighter than its surroundings: comparing with a wide blur keeps the loops of 6, 8 and 9 open, which a
    fixed threshold fills. The numbers were chosen by eye and by the mean brightness of MNIST.

    Args:
        images: values in [0, 1]. factor: enlargement; one dark pixel is added on every side first.
    Returns: values in [0, 1], ``(n, (h + 2) * factor, (w + 2) * factor)``.
    """
    large = F.interpolate(F.pad(images[:, None], (1, 1, 1, 1)), scale_factor=factor, mode="bicubic").clamp(0, 1)[:, 0]
    smooth, surroundings = blur(large, 0.25 * factor), blur(large, 0.8 * factor)
    return (0.5 + 5 * (smooth - 0.8 * surroundings - 0.16)).clamp(0, 1)


def mnist_style(images: Float[Tensor, "n h w"]) -> UInt8[Tensor, "n 28 28"]:
    """Scale the ink of each picture to a 20-pixel box and put its centre of mass in the middle of 28x28.

    Args:
        images: bright ink on a dark ground, in [0, 1], any size.
    Raises: ValueError if a picture has no ink (nothing above 0.3).
    """
    ink = images > 0.3
    empty = (~ink.flatten(1).any(1)).nonzero()[:, 0].tolist()
    if empty:
        raise ValueError(f"picture {empty[0]} of {len(images)} is empty: there is no ink to redraw")
    top, bottom = _extent(ink.any(2))
    left, right = _extent(ink.any(1))
    centre = torch.stack([top + bottom, left + right], dim=1) / 2
    scale = torch.maximum(bottom - top, right - left)[:, None] / BOX  # source pixels per MNIST pixel
    boxed = _window(images, centre, scale)
    offset = torch.arange(GLYPH) + 0.5 - GLYPH / 2
    mass = boxed.sum((1, 2))
    shift = torch.stack([(boxed.sum(2) * offset).sum(1) / mass, (boxed.sum(1) * offset).sum(1) / mass], dim=1)
    reach = (GLYPH - BOX) / 2  # a larger shift would push the box over the edge
    # Crop, scale and shift in one resampling of the source: resampling twice would blur.
    centred = _window(images, centre + shift.clamp(-reach, reach) * scale, scale, samples=3)
    return (centred / centred.amax((1, 2), keepdim=True) * 255).round().byte()


def _window(
    images: Float[Tensor, "n h w"], centre: Float[Tensor, "n 2"], scale: Float[Tensor, "n 1"], samples: int = 1
) -> Float[Tensor, "n 28 28"]:
    """The 28x28 pixels of size ``scale`` around ``centre`` (y, x), each the mean of ``samples`` squared points."""
    height, width = images.shape[1:]
    point = (torch.arange(GLYPH * samples) + 0.5) / samples - GLYPH / 2
    y = (centre[:, :1] + scale * point) * (2 / height) - 1  # grid_sample counts from -1 to 1
    x = (centre[:, 1:] + scale * point) * (2 / width) - 1
    n, points = y.shape
    grid = torch.stack([x[:, None].expand(n, points, points), y[:, :, None].expand(n, points, points)], dim=-1)
    return F.avg_pool2d(F.grid_sample(images[:, None], grid, align_corners=False), samples)[:, 0]


def _extent(filled: Bool[Tensor, "n edge"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """The first True of every row, and one past the last."""
    first = filled.float().argmax(1)
    last = filled.shape[1] - filled.flip(1).float().argmax(1)
    return first.float(), last.float()
