"""The pre-norm transformer block that ViT, CLIP and most of what came after them are stacks of."""

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from course_lib.nn.attention import MultiHeadAttention


class PreNormBlock(nn.Module):
    """Self-attention, then a small network on each token; each reads a normalised copy of the stream and adds to it.

    The stream itself is never normalised, so gradients have one path through any number of blocks that no norm touches.
    Whoever reads the stream after the last block must normalise it first.

    Args:
        d: width of the tokens.
        heads: number of attention heads.
        d_ff: hidden width of the feed-forward network.
        attention: makes the attention, called as ``attention(d, heads)`` and then as ``(x, keep=keep)``.
        activation: makes the nonlinearity of the feed-forward network.
        eps: of both layer norms.
    Source: Dosovitskiy et al. 2021 (ViT), section 3.1, equations 2 and 3; Wang et al. 2019 for the place of the norm.
    """

    def __init__(
        self,
        d: int,
        heads: int,
        d_ff: int,
        attention: Callable[..., nn.Module] = MultiHeadAttention,
        activation: Callable[[], nn.Module] = nn.GELU,
        eps: float = 1e-6,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(d, eps=eps)
        self.attention = attention(d, heads)
        self.norm2 = nn.LayerNorm(d, eps=eps)
        self.mlp = nn.Sequential(nn.Linear(d, d_ff), activation(), nn.Linear(d_ff, d))

    def forward(self, x: Float[Tensor, "b n d"], keep: Bool[Tensor, "#b #n n"] | None = None) -> Float[Tensor, "b n d"]:
        """Add the output of ``attention`` to the stream, then the output of ``mlp`` to the stream so far.

        ``attention`` is called as ``self.attention(..., keep=keep)`` and reads the stream through ``norm1``; ``mlp``
        reads the stream, attention included, through ``norm2``. Both outputs are added to the stream itself, never to a
        normalised copy.

        Args:
            x: (b, n, d), the tokens; left as they are.
            keep: boolean (b, n, n), or with ones in place of some sizes; True where a token may look. None allows all.
        Returns: (b, n, d), the stream after both additions; no norm comes last.
        """
        x = x + self.attention(self.norm1(x), keep=keep)
        return x + self.mlp(self.norm2(x))
