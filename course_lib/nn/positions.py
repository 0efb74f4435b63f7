"""Fixed sine-cosine positions for tokens on a spacetime grid."""

import torch
from jaxtyping import Float
from torch import Tensor


def sincos(
    positions: Float[Tensor, " n"], dim: int, longest: float = 10_000.0, shortest: float = 1.0
) -> Float[Tensor, "n dim"]:
    r"""Sine and cosine of every position at geometrically spaced frequencies.

    Column i of the first half is sin(p / w_i), of the second half cos(p / w_i), with
    w_i = shortest (longest / shortest)^{i / (dim/2)}.

    Args:
        positions: (n,) any real numbers: patch indices, or a diffusion time scaled up.
        dim: even number of columns.
        longest, shortest: the range of w.
    Returns: (n, dim) in [-1, 1].
    Raises: ValueError if dim is odd.
    Source: Vaswani et al. 2017, section 3.5 (there sine and cosine columns alternate).
    """
    if dim < 2 or dim % 2:
        raise ValueError(f"sine-cosine positions need an even number of columns, but dim={dim}")
    exponent = torch.arange(dim // 2, device=positions.device, dtype=torch.float32) / (dim // 2)
    angle = positions.float()[:, None] / (shortest * (longest / shortest) ** exponent)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def sincos_3d(grid: tuple[int, int, int], dim: int) -> Float[Tensor, "n dim"]:
    """Positions of a spacetime grid: a third of the columns for each of frame, row and column.

    Args:
        grid: number of patches along frames, height and width.
        dim: number of columns, a multiple of 6 (three axes, a sine and a cosine each).
    Returns: (f h w, dim) in [-1, 1], in the token order of ``patchify``: time slowest, width fastest.
    Raises: ValueError if dim is no multiple of 6.
    Source: Peebles and Xie 2023 (DiT), section 3.2, with time as the third axis.
    """
    if dim % 6:
        raise ValueError(f"three axes of sine-cosine pairs need a multiple of 6 columns, but dim={dim}")
    axes = torch.meshgrid(*(torch.arange(length, dtype=torch.float32) for length in grid), indexing="ij")
    return torch.cat([sincos(axis.flatten(), dim // 3) for axis in axes], dim=-1)
