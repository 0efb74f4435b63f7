r"""W.A.L.T, a window attention transformer that learns from pictures and videos at once (Gupta et al. 2023).

    latents, last estimate, known frames -> + positions -> [spatial windows, spacetime windows] x depth/2 -> velocity
                                                              ^ AdaLN-LoRA: time + caption

Latents come from the causal tokenizer (``models/video_tokenizer.py``): 1 + T/4 frames, of which the first is a
picture. Half of the blocks look around inside one frame, the other half inside a small window through all frames. A
batch may hold clips and, in rows that are marked, pictures: such a row is a stack of pictures that share nothing.

We leave the paper in one place: it predicts v for a zero-terminal-SNR schedule, we predict the velocity of flow
matching, as the rest of the course does.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from course_lib.diffusion.flow import add_noise, denoised, velocity
from course_lib.models.dit import full_attention
from course_lib.models.video_dit import CaptionEncoder
from course_lib.nn.modulation import TimestepEmbedding

Size3 = tuple[int, int, int]


# ------------------------------------------------------------------------------------------------------------ windows


def window(x: Shaped[Tensor, "b f h w d"], size: tuple[int, int, int]) -> Shaped[Tensor, "windows n d"]:
    """Cut a grid of tokens into boxes that do not overlap, one short sequence each.

    Boxes are solid: neighbours in the grid. All boxes of the first sample come first, then those of the second; within
    a sample they are numbered like tokens: frames slowest, columns fastest. The tokens of a box are ordered likewise.

    Args:
        x: (b, f, h, w, d), tokens on a grid of frames, rows and columns; of any dtype.
        size: frames, rows and columns of a box, at least 1 each; (1, h, w) is one whole frame.
    Returns: (windows, n, d) with n = the product of ``size`` and windows = b f h w / n.
    Raises: ValueError if an edge of the grid is no whole number of boxes, or an edge of the box is below 1.
    Source: Gupta et al. 2023, window attention.
    """
    (f, h, w), (wf, wh, ww) = x.shape[1:4], size
    if min(size) < 1 or f % wf or h % wh or w % ww:
        raise ValueError(f"a grid of {f} x {h} x {w} tokens is no whole number of boxes of {wf} x {wh} x {ww}")
    return rearrange(x, "b (f wf) (h wh) (w ww) d -> (b f h w) (wf wh ww) d", wf=wf, wh=wh, ww=ww)


def unwindow(
    boxes: Shaped[Tensor, "windows n d"], size: tuple[int, int, int], grid: tuple[int, int, int]
) -> Shaped[Tensor, "b f h w d"]:
    """Put the boxes back on their grid: ``unwindow(window(x, size), size, grid)`` is x.

    Args:
        boxes: (windows, n, d), in the order of ``window``: sample by sample, within a sample frames slowest and columns
            fastest, and the n tokens of a box likewise. Of any dtype.
        size: frames, rows and columns of a box.
        grid: frames, rows and columns of one sample, (f, h, w); each a multiple of the box's, unchecked.
    Returns: (b, f, h, w, d); how many samples there are follows from the number of windows.
    """
    (f, h, w), (wf, wh, ww) = grid, size
    shape = {"f": f // wf, "h": h // wh, "w": w // ww, "wf": wf, "wh": wh, "ww": ww}
    return rearrange(boxes, "(b f h w) (wf wh ww) d -> b (f wf) (h wh) (w ww) d", **shape)


def picture_mask(is_image: Bool[Tensor, " b"], windows: int, n: int) -> Bool[Tensor, "b*{windows} n n"]:
    """Who may look at whom in spacetime windows: in a clip everybody, in a stack of pictures each token at itself.

    A masked layer is not a skipped one: a token that sees only itself still goes through values and output, so the same
    weights learn from both.

    Args:
        is_image: (b,) boolean, True for a sample that is a stack of pictures.
        windows: windows per sample. n: tokens in a window.
    Returns: (b windows, n, n) boolean, one square per window, True where a token (row) may look at another (column).
        Windows come in the order of ``window``: all of the first sample, then all of the second.
    Source: Gupta et al. 2023, "identity attention mask".
    """
    itself = torch.eye(n, dtype=torch.bool, device=is_image.device)
    return (itself | ~is_image[:, None, None]).repeat_interleave(windows, dim=0)


# --------------------------------------------------------------------------------------------------------- modulation


class AdaLNLoRA(nn.Module):
    r"""The six modulation vectors of every block, for little more than the price of one block.

    All blocks share A = shared(condition), six vectors of d numbers, one behind the other. The first block takes A as
    it is. Every later block adds a correction of low rank, made from the condition itself: A + up(down(condition)).

    Parts, whose names are those of the stored weights: ``shared``, an ``nn.Sequential`` of SiLU and a linear layer
    d -> 6 d with bias; ``down`` and ``up``, an ``nn.ModuleList`` each, of depth - 1 linear layers without bias,
    d -> rank and rank -> 6 d, each a layer of its own. Weight and bias of ``shared`` and the weights of ``up`` start at
    zero, so that every block begins as the identity. Those of ``down`` keep PyTorch's start: if both halves were zero,
    neither would ever get a gradient.

    Args:
        d: width of condition and tokens. depth: number of blocks, at least 1. rank: of the corrections.
    Source: Gupta et al. 2023, AdaLN-LoRA.
    """

    def __init__(self, d: int, depth: int, rank: int = 2):
        super().__init__()
        self.shared = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))
        self.down = nn.ModuleList(nn.Linear(d, rank, bias=False) for _ in range(depth - 1))
        self.up = nn.ModuleList(nn.Linear(rank, 6 * d, bias=False) for _ in range(depth - 1))
        for zero in (self.shared[1], *self.up):
            nn.init.zeros_(zero.weight)
        nn.init.zeros_(self.shared[1].bias)

    def forward(self, condition: Float[Tensor, "b d"]) -> list[Float[Tensor, "b six_d"]]:
        """What each block is told, in order.

        Args:
            condition: (b, d).
        Returns: a list of ``depth`` tensors (b, 6 d).
        """
        shared = self.shared(condition)
        return [shared, *(shared + up(down(condition)) for down, up in zip(self.down, self.up, strict=True))]


class WindowBlock(nn.Module):
    """A ``DiTBlock`` that attends inside boxes and is told its modulation from outside.

    Args:
        d, heads, d_ff: width, attention heads, hidden width.
        size: frames, rows and columns of a box.
        attention: makes the attention, called as ``attention(d, heads)`` and then as ``attention(x, keep=keep)``.
    """

    def __init__(
        self, d: int, heads: int, d_ff: int, size: Size3, attention: Callable[..., nn.Module] = full_attention
    ):
        super().__init__()
        self.size = size
        self.norm1 = nn.LayerNorm(d, elementwise_affine=False, eps=1e-6)
        self.attention = attention(d, heads)
        self.norm2 = nn.LayerNorm(d, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(d, d_ff), nn.GELU("tanh"), nn.Linear(d_ff, d))

    def forward(
        self,
        x: Float[Tensor, "b f h w d"],
        modulation: Float[Tensor, "b six_d"],
        is_image: Bool[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b f h w d"]:
        """Attention inside the boxes, then the MLP; ``is_image`` marks stacks of pictures, which share nothing."""
        grid: Size3 = (x.shape[1], x.shape[2], x.shape[3])
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation[:, None, None, None].chunk(6, dim=-1)
        boxes = window(self.norm1(x) * (1 + scale1) + shift1, self.size)
        keep = None
        if is_image is not None and self.size[0] > 1:
            keep = picture_mask(is_image, len(boxes) // len(x), boxes.shape[1])
        x = x + gate1 * unwindow(self.attention(boxes, keep=keep), self.size, grid)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


# ---------------------------------------------------------------------------------------------------------- the model


@dataclass(frozen=True)
class WaltConfig:
    """Sizes of a ``Walt``."""

    vocabulary: int
    latent_channels: int = 16
    grid: Size3 = (5, 6, 6)  # latent frames, rows and columns; every latent is a token
    box: tuple[int, int] = (3, 3)  # rows and columns of a spacetime window, which spans all frames
    d: int = 128
    depth: int = 6  # even: spatial and spacetime blocks take turns
    heads: int = 4
    mlp_ratio: int = 4
    rank: int = 2  # of the modulation's corrections


class Walt(nn.Module):
    """Predicts the velocity of noisy latents; reads a caption, its own last estimate, and frames that are known.

    Source: Gupta et al. 2023.
    """

    def __init__(self, config: WaltConfig):
        super().__init__()
        self.config = c = config
        f, h, w = c.grid
        if c.depth % 2 or h % c.box[0] or w % c.box[1]:
            raise ValueError(f"depth={c.depth} must be even, and boxes of {c.box} must tile {h} x {w} tokens")
        self.caption = CaptionEncoder(c.vocabulary, c.d)
        self.time = TimestepEmbedding(c.d)
        self.embed = nn.Linear(3 * c.latent_channels + 1, c.d)  # noisy, estimate, known, and where something is known
        self.space = nn.Parameter(0.02 * torch.randn(h, w, c.d))
        self.frame = nn.Parameter(0.02 * torch.randn(f, 1, 1, c.d))
        sizes = ((1, h, w), (f, *c.box))
        self.blocks = nn.ModuleList(WindowBlock(c.d, c.heads, c.mlp_ratio * c.d, sizes[i % 2]) for i in range(c.depth))
        self.modulation = AdaLNLoRA(c.d, c.depth, c.rank)
        self.norm = nn.LayerNorm(c.d, elementwise_affine=False, eps=1e-6)
        self.out = nn.Linear(c.d, c.latent_channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        xt: Float[Tensor, "b z f h w"],
        t: Float[Tensor, " b"],
        caption: Int[Tensor, "b words"],
        *,
        is_image: Bool[Tensor, " b"] | None = None,
        estimate: Float[Tensor, "b z f h w"] | None = None,
        known: Float[Tensor, "b z+1 f h w"] | None = None,
    ) -> Float[Tensor, "b z f h w"]:
        """Velocity of the noisy latents.

        Args:
            xt: (b, z, f, h, w) noisy latents.
            t: (b,) diffusion times in [0, 1].
            caption: (b, words) word ids; a row of padding asks for nothing.
            is_image: (b,), True where the f frames are f pictures that share nothing but caption and time.
            estimate: the model's last guess of the clean latents (self-conditioning); None is none, all zero.
            known: clean latents of the frames that are given, zero elsewhere, and a channel for where (``given``).
        """
        estimate = torch.zeros_like(xt) if estimate is None else estimate
        known = torch.cat([torch.zeros_like(xt), torch.zeros_like(xt[:, :1])], dim=1) if known is None else known
        x = self.embed(rearrange(torch.cat([xt, estimate, known], dim=1), "b z f h w -> b f h w z"))
        frame = self.frame[None]
        if is_image is not None:  # a picture is the first frame of a video, wherever in its stack it lies
            frame = torch.where(is_image[:, None, None, None, None], self.frame[:1], self.frame)
        x = x + self.space + frame
        condition = self.time(t) + self.caption(caption)
        for block, told in zip(self.blocks, self.modulation(condition), strict=True):
            x = block(x, told, is_image)
        return rearrange(self.out(self.norm(x)), "b f h w z -> b z f h w")


# ------------------------------------------------------------------------------------------------ training and sampling


def given(latents: Float[Tensor, "b z f h w"], frames: Bool[Tensor, "b f"]) -> Float[Tensor, "b z+1 f h w"]:
    """The condition of frame prediction: clean latents where ``frames`` is True, zeros elsewhere, and the mask.

    Without the mask, a latent that is zero and a frame that is missing would look the same.

    Source: Gupta et al. 2023, "autoregressive generation".
    """
    mask = frames[:, None, :, None, None].to(latents.dtype).expand(-1, 1, -1, *latents.shape[3:])
    return torch.cat([mask * latents, mask], dim=1)


def self_conditioned(
    model: Callable[..., Tensor],
    xt: Float[Tensor, "b *s"],
    t: Float[Tensor, " b"],
    asked: Bool[Tensor, " b"],
    **rest,
) -> Float[Tensor, "b *s"]:
    """One training prediction in which some samples see what the model thought a moment before.

    First look: the whole batch, with an estimate of zeros. The velocity v that comes back implies clean latents,
    xt - t v. Second look: the same batch with these as the estimate, but zeros for every sample where ``asked`` is
    False. The estimate is a constant: no gradient passes through the first look, neither to the model nor to xt. The
    second look is an ordinary call that one can train through; whether gradients are on is up to the caller, before and
    after.

    Args:
        model: any function, called once for each look as ``model(xt, t, estimate=..., **rest)``, with an estimate of
            the shape and dtype of xt; returns a velocity like xt. Samples of a batch may influence each other, through
            their estimates as well.
        xt, t: (b, ...) noisy latents and (b,) their times in [0, 1], handed on in both looks as they are. Where xt is
            of half or double precision, t may still be float32, and stays it.
        asked: (b,) boolean, which samples get an estimate. Where nobody is asked the first look may be left out.
        rest: handed on in both looks as it is.
    Returns: the velocity of the second look for all samples, like xt.
    Source: Chen et al. 2023 ("Analog Bits"); Gupta et al. 2023.
    """
    with torch.no_grad():
        estimate = denoised(xt, t, model(xt, t, estimate=torch.zeros_like(xt), **rest))
    estimate = estimate * asked.view(-1, *[1] * (xt.ndim - 1)).to(xt.dtype)
    return model(xt, t, estimate=estimate, **rest)


def walt_loss(
    model: Walt,
    x0: Float[Tensor, "b z f h w"],
    t: Float[Tensor, " b"],
    eps: Float[Tensor, "b z f h w"],
    asked: Bool[Tensor, " b"],
    frames: Bool[Tensor, "b f"] | None = None,
    **rest,
) -> Float[Tensor, ""]:
    """Mean squared error of the velocity, self-conditioned where ``asked``, with the ``frames`` that are given."""
    known = None if frames is None else given(x0, frames)
    predicted = self_conditioned(model, add_noise(x0, t, eps), t, asked, known=known, **rest)
    return (predicted - velocity(x0, eps)).square().mean()
