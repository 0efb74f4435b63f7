"""Fixed sine-cosine positions for tokens on a grid of space, or of space and time."""

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


def sincos_2d(grid: tuple[int, int], dim: int) -> Float[Tensor, "n dim"]:
    r"""Frozen positions for the patches of an image: half of the columns say in which column of the grid a patch lies.

    Patches are numbered like words on a page: with a grid of h rows and w columns, patch r w + c lies in row r and
    column c. Its vector is the encoding of c (dim / 2 numbers), and then the encoding of r (dim / 2 numbers). Column
    before row: so it is in the weights that were published.

    The encoding of a number p has quarter = dim / 4 frequencies f_i = 10000^(-i / quarter), i = 0 ... quarter - 1:
    first sin(p f_i) for all i, then cos(p f_i) for all i. That is ``sincos`` of ``course_lib.nn.positions``:
    ``sincos(positions, dim // 2)`` turns (n,) floats into (n, dim / 2). You may use it, or write it again.

    Args:
        grid: how many patches stand above each other and side by side, (h, w).
        dim: a multiple of 4, at least 4.
    Returns: (h w, dim) in float32, in [-1, 1]. It is a constant, no gradient is asked of it: a plain tensor (an
        ``nn.Parameter`` with ``requires_grad=False`` counts as one). Each call makes a new one.
    Raises: ValueError if dim is no multiple of 4, or below 4.
    Source: Peebles and Xie 2023 (DiT), section 3.2, "sine-cosine version", and the paper's code.
    """
    if dim < 4 or dim % 4:
        raise ValueError(f"two axes of sine-cosine pairs need a multiple of 4 columns, but dim={dim}")
    rows, columns = torch.meshgrid(*(torch.arange(length, dtype=torch.float32) for length in grid), indexing="ij")
    return torch.cat([sincos(columns.flatten(), dim // 2), sincos(rows.flatten(), dim // 2)], dim=-1)


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


def rotary_angles(
    positions: Float[Tensor, "*b n axes"], pairs: tuple[int, ...], longest: float = 100.0
) -> Float[Tensor, "*b n half"]:
    """Angles by which rotary positions turn each pair of channels: ``pairs[a]`` of the pairs belong to axis a.

    A token at position p along an axis that owns m pairs turns pair i of them, i = 0 ... m - 1, by the angle
    p longest^(-i / m). So every axis has the whole range of speeds for itself: its first pair turns by one radian per
    step, its last by a little more than 1 / ``longest``. The columns are the m angles of the first axis, then those of
    the second, and so on. An axis with 0 pairs has no columns.

    Args:
        positions: (..., n, axes), the place of each token, in patches; any real numbers, also fractions and below 0.
            There may be any number of axes before n, or none.
        pairs: how many pairs of channels each axis gets, one number per axis; together they are half of a head's
            channels.
    Returns: (..., n, half) with half = sum(pairs), in radians, not wrapped at a full turn. It is computed in float32
        and stays float32, whatever floats the positions are. Places are not learned: no gradient is asked for.
    Source: Su et al. 2021 (RoFormer), section 3.2.2; one range of channels for each axis.
    """
    turned = []
    for axis, count in enumerate(pairs):
        frequencies = longest ** (-torch.arange(count, device=positions.device, dtype=torch.float32) / max(count, 1))
        turned.append(positions[..., axis, None].float() * frequencies)
    return torch.cat(turned, dim=-1)


def rotate(x: Float[Tensor, "b heads n d"], angles: Float[Tensor, "b n half"]) -> Float[Tensor, "b heads n d"]:
    """Turn channel i and channel d/2 + i of every token by its i-th angle, in all heads alike.

    The product of a query and a key that were both turned depends on where they are *from each other*, not on where
    they are: a grid of another size asks nothing new of the network.

    Source: Su et al. 2021 (RoFormer), equations 14 to 16; the pairing of halves is that of most released code.
    """
    a, b = x.chunk(2, dim=-1)
    cos, sin = angles.cos().unsqueeze(1).to(x), angles.sin().unsqueeze(1).to(x)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
