"""A diffusion transformer over spacetime patches of video latents, steered by a caption: what makes "first light".

    latents -> patchify -> + positions -> N x [adaLN-Zero attention, adaLN-Zero MLP] -> adaLN -> unpatchify -> velocity
                                                 ^ time embedding + caption embedding

Source: Peebles and Xie 2023, "Scalable diffusion models with transformers" (DiT), sections 3.1-3.2; the third axis is
OpenAI 2024, "Video generation models as world simulators".
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from course_lib.models.dit import DiTBlock
from course_lib.nn.modulation import TimestepEmbedding, modulate, rms_norm
from course_lib.nn.patches import patch_grid, patchify, unpatchify
from course_lib.nn.positions import sincos_3d

PAD = 0  # the tokenizer's <pad>


@dataclass(frozen=True)
class VideoDiTConfig:
    """Sizes of a ``VideoDiT``."""

    vocabulary: int  # number of words of the tokenizer
    latent_channels: int = 4
    latent_size: tuple[int, int, int] = (16, 6, 6)  # frames, height, width of the latents it is trained on
    patch: tuple[int, int, int] = (2, 2, 2)
    dim: int = 192  # a multiple of 6 (three axes of sine-cosine positions) and of heads
    depth: int = 6
    heads: int = 6
    mlp_ratio: int = 4

    @property
    def grid(self) -> tuple[int, int, int]:
        """Number of patches along frames, height and width."""
        return patch_grid(self.latent_size, self.patch)

    @property
    def token_dim(self) -> int:
        """Numbers in one spacetime patch."""
        pf, ph, pw = self.patch
        return pf * ph * pw * self.latent_channels


class CaptionEncoder(nn.Module):
    """The sum of word embeddings, through an MLP: a bag of words.

    In the captions of this world every word belongs to one attribute ("bottom-left" is always a start, "down-left"
    always a direction), so with one digit per clip their order carries nothing. With two digits it does, and
    this encoder cannot tell which digit moves where. The empty caption (only padding) is the condition "nothing asked".
    """

    def __init__(self, vocabulary: int, dim: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, caption: Int[Tensor, "b words"]) -> Float[Tensor, "b dim"]:
        asked = (caption != PAD).unsqueeze(-1)
        total = (self.words(caption) * asked).sum(dim=1)  # a sum, not a mean: long captions must not dilute a digit
        return total + self.mlp(total)


class SelfAttention(nn.Module):
    """Multi-head self-attention over all tokens, with normalised queries and keys."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.q_scale = nn.Parameter(torch.ones(dim // heads))
        self.k_scale = nn.Parameter(torch.ones(dim // heads))

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        q, k, v = rearrange(self.qkv(x), "b n (three heads d) -> three b heads n d", three=3, heads=self.heads)
        q, k = rms_norm(q, self.q_scale), rms_norm(k, self.k_scale)
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n d -> b n (heads d)"))


class VideoDiT(nn.Module):
    """Predicts the velocity eps - x0 of noisy video latents, given diffusion time and a caption."""

    def __init__(self, config: VideoDiTConfig) -> None:
        super().__init__()
        if config.dim % config.heads:
            raise ValueError(f"dim={config.dim} does not split into heads={config.heads}")
        self.config = config
        d = config.dim
        self.caption = CaptionEncoder(config.vocabulary, d)
        self.time = TimestepEmbedding(d)
        self.embed = nn.Linear(config.token_dim, d)
        self.positions = nn.Parameter(torch.empty(config.grid[0] * config.grid[1] * config.grid[2], d))
        self.blocks = nn.ModuleList(
            DiTBlock(d, config.heads, config.mlp_ratio * d, attention=SelfAttention, bias=False)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(d, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(d, 2 * d))
        self.out = nn.Linear(d, config.token_dim)
        self.initialise()

    def initialise(self) -> None:
        """All initial values, in one place; what must be zero is set last, so that nothing can overwrite it."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.caption.words.weight, std=0.5)
        with torch.no_grad():
            self.positions.copy_(0.5 * sincos_3d(self.config.grid, self.config.dim))  # then learned
        for zero in (self.out, self.modulation[1], *(block.modulation[1] for block in self.blocks)):
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)

    def forward(
        self,
        xt: Float[Tensor, "b c f h w"],
        t: Float[Tensor, " b"],
        caption: Int[Tensor, "b words"],
        first_patch: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b c f h w"]:
        """Velocity of the noisy latents.

        Args:
            xt: (b, c, f, h, w) noisy latents; f may be shorter than the trained clip, h and w may not.
            t: (b,) diffusion times in [0, 1].
            caption: (b, words) word ids; padding is 0, and a row of padding asks for nothing.
            first_patch: (b,) index of the temporal patch at which each piece of a clip begins; 0 when None. With
                single patches as input, the model is an image model that knows when in the clip its image happens.
        Returns: (b, c, f, h, w).
        Raises: ValueError if the size does not fit the positions.
        """
        grid = patch_grid((xt.shape[2], xt.shape[3], xt.shape[4]), self.config.patch)
        x = self.embed(patchify(xt, self.config.patch))  # (b, n, d)
        x = x + self._positions(grid, first_patch)
        condition = self.time(t) + self.caption(caption)  # (b, d)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(condition).chunk(2, dim=-1)
        return unpatchify(self.out(modulate(self.norm(x), shift, scale)), grid, self.config.patch)

    def _positions(self, grid: tuple[int, int, int], first_patch: Tensor | None) -> Tensor:
        frames, height, width = self.config.grid
        if grid[0] > frames or grid[1:] != (height, width):
            raise ValueError(f"a grid of {grid} patches does not fit the trained grid {self.config.grid}")
        table = self.positions.view(frames, height * width, -1)
        if first_patch is None:
            return rearrange(table[: grid[0]], "f s d -> (f s) d")
        steps = torch.arange(grid[0], device=first_patch.device)
        return rearrange(table[first_patch[:, None] + steps], "b f s d -> b (f s) d")
