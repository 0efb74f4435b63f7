"""How a condition steers a transformer block: adaptive layer norm, and the embedding of diffusion time."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from course_lib.nn.positions import sincos


def modulate(
    x: Float[Tensor, "b n d"], shift: Float[Tensor, "b d"], scale: Float[Tensor, "b d"]
) -> Float[Tensor, "b n d"]:
    """Shift and scale every token of a sample by numbers that its condition chose; zeros leave x as it is.

    Source: Perez et al. 2018 (FiLM), eq. 2; Peebles and Xie 2023 (DiT), section 3.2, adaLN (scale there is 1 + scale).
    """
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


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
