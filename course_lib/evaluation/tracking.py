"""Where the digit is in every frame, and what it looks like there: everything that the metrics measure starts here."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

CROP = 28  # edge of a crop in pixels: the tile of a medium digit
INK = 0.2  # brightness (0 black, 1 white) below which a pixel does not count: blur and faint noise carry no position


def brightness(video: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b f h w"]:
    """Values in [-1, 1] to brightness in [0, 1]; the brightest channel counts."""
    return video.float().amax(dim=1).add(1).div(2).clamp(0, 1)


def centroids(video: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b f 2"]:
    """Centre of mass (row, column) of the ink in every frame, in pixels; the canvas' middle where there is none."""
    weight = (brightness(video) - INK).clamp(min=0)
    total = weight.sum(dim=(-2, -1))
    found = []
    for axis, length in ((-1, video.shape[-2]), (-2, video.shape[-1])):
        position = torch.arange(length, device=video.device, dtype=weight.dtype)
        mean = (weight.sum(dim=axis) * position).sum(dim=-1) / total.clamp(min=1e-6)
        found.append(torch.where(total > 1e-3, mean, (length - 1) / 2))
    return torch.stack(found, dim=-1)


def centred_crops(video: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b f 28 28"]:
    """The 28 x 28 pixels around each frame's centre of mass as brightness in [0, 1], black beyond the canvas.

    Like the images of MNIST, a crop has its centre of mass in the middle, so the judge that reads it sees no position.
    """
    light = F.pad(brightness(video), (CROP,) * 4)
    corner = (centroids(video) - (CROP - 1) / 2).round().long() + CROP  # (b, f, 2) in the padded frame
    steps = torch.arange(CROP, device=video.device)
    rows, columns = corner[..., :1] + steps, corner[..., 1:] + steps
    b, f = torch.arange(light.shape[0], device=video.device), torch.arange(light.shape[1], device=video.device)
    return light[b[:, None, None, None], f[None, :, None, None], rows[..., :, None], columns[..., None, :]]
