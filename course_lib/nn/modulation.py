"""How a condition steers a transformer block: adaptive layer norm, and the embedding of diffusion time."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from course_lib.nn.positions import sincos


def modulate(
    x: Float[Tensor, "b n d"], shift: Float[Tensor, "b d"], scale: Float[Tensor, "b d"]
) -> Float[Tensor, "b n d"]:
    """Shift and scale every token of a sample by numbers that its condition chose; zeros leave x as it is.

    Source: Perez et al. 2018 (FiLM), eq. 2; Peebles and Xie 2023 (DiT), section 3.2, adaLN (scale there is 1 + scale).
    """
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def timestep_embedding(t: Float[Tensor, " b"] | Int[Tensor, " b"], dim: int) -> Float[Tensor, "b dim"]:
    r"""Diffusion time as a vector that a network can read: cosines and sines at geometrically spaced frequencies.

    With half = dim / 2 and the frequencies f_i = 10000^(-i / half), i = 0 ... half - 1: column i is cos(t f_i), column
    half + i is sin(t f_i). So the first column turns by t radians, and the slowest by a little more than t / 10000. All
    cosines come first, then all sines.

    Times are meant to run from 0 to 1000: whoever counts from 0 to 1 multiplies *before* the call. Here they are used
    as they are: not scaled (not even where all are below 1), not rounded (t = 0.5 differs from t = 0), and not clamped
    (a t beyond 0 ... 1000, also a negative one, follows the same formula).

    Args:
        t: (b,) times, in floating point or integer of any width, such as int32, float16 or bfloat16; b >= 1.
        dim: even, at least 2.
    Returns: (b, dim) in float32, in [-1, 1], on the device of t. Angles and frequencies are computed in float32 or
        better, whatever t is. Gradients with respect to t are not asked for.
    Raises: ValueError if dim is odd, or below 2.
    Source: Peebles and Xie 2023 (DiT), section 3.2, and the paper's code; Vaswani et al. 2017, section 3.5.
    """
    if dim < 2 or dim % 2:
        raise ValueError(f"pairs of cosine and sine need an even number of columns, but dim={dim}")
    half = dim // 2
    frequencies = 10_000.0 ** (-torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angle = t.float()[:, None] * frequencies
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class TimestepEmbedding(nn.Module):
    """Diffusion time in [0, 1] as a vector: sines and cosines, then a two-layer MLP.

    Source: Peebles and Xie 2023 (DiT), section 3.2 (frequency embedding of size 256 and an MLP with SiLU).
    """

    def __init__(self, dim: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Float[Tensor, " b"]) -> Float[Tensor, "b dim"]:
        # Times lie in [0, 1]; 1000 t gives the sinusoids the range that the usual 1000 integer timesteps have.
        return self.mlp(sincos(1000 * t, self.frequencies).to(self.mlp[0].weight.dtype))


def rms_norm(x: Float[Tensor, "*b d"], scale: Float[Tensor, " d"], eps: float = 1e-6) -> Float[Tensor, "*b d"]:
    """Divide by the root mean square over the last axis, then scale each channel.

    Applied to queries and keys it bounds the attention logits, which keeps training stable at high learning rates.

    Source: Zhang and Sennrich 2019, eq. 4; Dehghani et al. 2023, section 3.1 (normalised queries and keys).
    """
    return torch.nn.functional.rms_norm(x, (x.shape[-1],), scale.to(x.dtype), eps)
