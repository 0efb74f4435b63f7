"""The U-Net twice: as Ronneberger et al. built it in 2015, and as diffusion models have used it since 2020.

    UNet           two convolutions, pool, ... and back up; what each level saw is handed across the U
    DiffusionUNet  the same U out of residual blocks that are told the diffusion time, with attention at the bottom

Every part is made by an argument, so that a lesson can swap one (no skips, other blocks, attention over time).
"""

import math
from collections.abc import Callable, Collection, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from course_lib.nn.attention import CrossAttention, MultiHeadAttention
from course_lib.nn.modulation import TimestepEmbedding


def transposed_convolution(
    x: Float[Tensor, "b c_in h w"], weight: Float[Tensor, "c_in c_out k k"], stride: int
) -> Float[Tensor, "b c_out height width"]:
    """Enlarge a picture: every pixel stamps a k x k copy of the kernel, times its value, into the output.

    Pixel (i, j) of input channel c adds x[:, c, i, j] * weight[c, o] to output channel o, for every c and o, in the
    k x k square whose top-left corner is (stride * i, stride * j). Where squares overlap, they are summed; where none
    falls, the output is 0. The kernel is stamped as it is, not flipped.

    Args:
        x: (b, c_in, h, w).
        weight: (c_in, c_out, k, k); note that input channels come first.
        stride: how far apart neighbouring stamps are, at least 1; smaller, equal or larger than k.
    Returns: (b, c_out, height, width) with height = (h - 1) * stride + k and width = (w - 1) * stride + k: just large
        enough for every stamp; in the dtype of x.
    Raises: ValueError if stride is below 1.
    Source: Ronneberger et al. 2015, section 2 ("up-convolution", there k = stride = 2, plus a bias).
    """
    if stride < 1:
        raise ValueError(f"stride={stride}: stamps must be at least one pixel apart")
    (b, _, h, w), (_, c_out, k, _) = x.shape, weight.shape
    height, width = (h - 1) * stride + k, (w - 1) * stride + k
    out = x.new_zeros(b, c_out, height, width)
    for dy in range(k):  # all stamps at once, one pixel of the kernel after the other
        for dx in range(k):
            stamped = torch.einsum("bcij,co->boij", x, weight[:, :, dy, dx])
            out[:, :, dy : height - k + dy + 1 : stride, dx : width - k + dx + 1 : stride] += stamped
    return out


def crop_concat(
    up: Float[Tensor, "b c h w"], skip: Float[Tensor, "b c_skip height width"]
) -> Float[Tensor, "b c_both h w"]:
    """Cut the middle out of ``skip``, as large as ``up``, and put both on top of each other: skip's channels first.

    Unpadded convolutions ate the border of ``up`` evenly on all sides, so pixel (0, 0) of ``up`` belongs to a pixel
    inside ``skip``: the margin is (height - h) / 2 rows above and (width - w) / 2 columns at the left, rounded down.
    Where a margin is odd, the pixel that is left over is cut off below or at the right.

    Args:
        up: (b, c, h, w), coming up from the level below.
        skip: (b, c_skip, height, width), kept from the way down; as large as ``up`` or larger.
    Returns: (b, c_skip + c, h, w): the crop of ``skip`` and then ``up``, in their dtype.
    Raises: ValueError if ``up`` is higher or wider than ``skip``.
    Source: Ronneberger et al. 2015, figure 1 ("copy and crop").
    """
    (h, w), (height, width) = up.shape[-2:], skip.shape[-2:]
    if h > height or w > width:
        raise ValueError(f"cannot cut {h} x {w} pixels out of a skip of {height} x {width}")
    top, left = (height - h) // 2, (width - w) // 2
    return torch.cat([skip[:, :, top : top + h, left : left + w], up], dim=1)


class DoubleConv(nn.Sequential):
    """Twice a 3 x 3 convolution and a ReLU; without ``padding`` each convolution eats one pixel at every border."""

    def __init__(self, c_in: int, c_out: int, padding: int = 0):
        super().__init__(
            nn.Conv2d(c_in, c_out, 3, padding=padding),
            nn.ReLU(),
            nn.Conv2d(c_out, c_out, 3, padding=padding),
            nn.ReLU(),
        )


class UNet(nn.Module):
    """Down to see what is there, up to draw it, and across the U at every level to know where.

    Args:
        c_in, c_out: channels of the picture and of the logits.
        base: channels of the first level; every level below has twice as many.
        levels: how often the picture is halved.
        padding: 1 keeps the size of the picture, 0 is the paper's.
        join: puts what comes up and what was kept together, called as ``join(up, skip)``.
    Source: Ronneberger et al. 2015, section 2 and figure 1. Its dropout at the bottom is left out: our data is endless.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        base: int = 16,
        levels: int = 3,
        padding: int = 1,
        join: Callable[[Tensor, Tensor], Tensor] = crop_concat,
    ):
        super().__init__()
        width = [base * 2**level for level in range(levels + 1)]
        self.join = join
        self.downs = nn.ModuleList(DoubleConv(i, o, padding) for i, o in zip([c_in, *width], width[:-1], strict=False))
        self.bottom = DoubleConv(width[-2] if levels else c_in, width[-1], padding)
        upwards = width[:-1][::-1]  # what follows is listed in the order in which it is used: from the bottom up
        self.ups = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, kernel_size=2, stride=2) for c in upwards)
        self.convs = nn.ModuleList(DoubleConv(2 * c, c, padding) for c in upwards)
        self.to_logits = nn.Conv2d(base, c_out, kernel_size=1)
        for part in self.modules():
            if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):  # the paper's: std sqrt(2 / N), N numbers come in
                incoming = part.in_channels * (part.weight[0, 0].numel() if isinstance(part, nn.Conv2d) else 1)
                nn.init.normal_(part.weight, std=math.sqrt(2 / incoming))
                nn.init.zeros_(part.bias)

    def forward(self, x: Float[Tensor, "b c_in height width"]) -> Float[Tensor, "b c_out h w"]:
        """Logits for every pixel.

        Down, once for each of ``self.downs``: apply it, keep the result for later, and halve height and width by taking
        the largest value of each 2 x 2 square. Then ``self.bottom``.

        Up, once for each pair of ``self.ups`` and ``self.convs``, which are listed from the bottom up: apply the up,
        call ``self.join(up, skip)``, without keywords, with the result and with what was kept on the way down at the
        same level, and apply the convs. ``self.to_logits`` comes last, and nothing after it: logits may be any number.

        Args:
            x: (b, c_in, height, width).
        Returns: (b, c_out, h, w). With padding=1 h = height and w = width; with padding=0 smaller: 572 becomes 388.
        Raises: ValueError if height or width is odd where it should be halved; what is not halved may be odd. (So ask
            at each level: without padding 572 is fine, though 572 / 16 is no whole number.)
        """
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
            h, w = x.shape[-2:]
            if h % 2 or w % 2:
                raise ValueError(f"a picture of {h} x {w} pixels cannot be halved at level {len(skips)}; resize it")
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        for up, convs in zip(self.ups, self.convs, strict=True):
            x = convs(self.join(up(x), skips.pop()))
        return self.to_logits(x)


def original_unet(c_in: int = 1, c_out: int = 2) -> UNet:
    """The network of the paper's figure 1: four halvings, 64 to 1024 channels, no padding; 572 pixels in, 388 out."""
    return UNet(c_in, c_out, base=64, levels=4, padding=0)


class ResBlock(nn.Module):
    """Two convolutions that are told the diffusion time, added to their input.

    Args:
        c_in, c_out: channels in and out, multiples of ``groups``.
        time_dim: width of the time embedding.
        groups: of both group norms.

    Its parts (with these names in any order, or in this order under other names; no other weights):
        norm1: group norm over ``groups`` groups of the c_in channels. All norms have PyTorch's default eps.
        conv1: 3 x 3 convolution, c_in -> c_out, that keeps height and width by a border of zeros.
        time: linear layer, time_dim -> c_out.
        norm2: group norm over ``groups`` groups of the c_out channels.
        conv2: 3 x 3 convolution, c_out -> c_out, likewise. Its weight and its bias start at zero: a new block with
            c_in = c_out hands its input on unchanged.
        shortcut: 1 x 1 convolution, c_in -> c_out, where c_in and c_out differ; ``nn.Identity()``, or anything
            else that has no weights and changes nothing, where they are equal.
    All convolutions and the linear layer have a bias. Nothing but conv2 (and the norms' biases) starts at zero.

    Source: Ho et al. 2020 (DDPM), appendix B; Dhariwal and Nichol 2021, section 3. Their dropout is left out.
    """

    def __init__(self, c_in: int, c_out: int, time_dim: int, groups: int = 8):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(time_dim, c_out)
        self.norm2 = nn.GroupNorm(groups, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Float[Tensor, "b c_in h w"], t: Float[Tensor, "b time_dim"]) -> Float[Tensor, "b c_out h w"]:
        """``shortcut(x)`` plus a branch: norm1, SiLU, conv1; add the time; norm2, SiLU, conv2.

        The time that is added is ``time(silu(t))``: one number for each sample and channel, the same at all pixels.

        Args:
            x: (b, c_in, h, w).
            t: (b, time_dim), the embedding of each sample's diffusion time.
        Returns: (b, c_out, h, w).
        """
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(F.silu(t))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return self.shortcut(x) + h


class ImageAttention(nn.Module):
    """Every place of a small picture looks at all others and, if there is one, at a context such as a caption.

    Args:
        width: channels, a multiple of ``heads`` and ``groups``.
        context_dim: width of the context's tokens; None for a picture that only looks at itself.
        attention: makes the self-attention, called as ``attention(d, heads, bias=True)``.
        cross_attention: makes the one that reads the context, called as ``cross_attention(d, d_context, heads)``.
    Source: Ho et al. 2020, appendix B (self-attention at 16 x 16); Rombach et al. 2022, section 3.3 (context).
    """

    def __init__(
        self,
        width: int,
        context_dim: int | None = None,
        heads: int = 4,
        groups: int = 8,
        attention: Callable[..., nn.Module] = MultiHeadAttention,
        cross_attention: Callable[..., nn.Module] = CrossAttention,
    ):
        super().__init__()
        self.norm = nn.GroupNorm(groups, width)
        self.self_attention = attention(width, heads, bias=True)
        branches = [self.self_attention]
        self.cross_attention = None
        if context_dim is not None:
            self.cross_norm = nn.LayerNorm(width)
            self.cross_attention = cross_attention(width, context_dim, heads)
            branches.append(self.cross_attention)
        for branch in branches:  # silent at the start, like a ResBlock
            nn.init.zeros_(branch.to_out.weight)
            nn.init.zeros_(branch.to_out.bias)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        context: Float[Tensor, "b tokens context_dim"] | None = None,
        context_keep: Bool[Tensor, "b tokens"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """``context_keep`` is False at padding of the context."""
        if context is not None and self.cross_attention is None:
            raise ValueError("there is a context, but this block was built without context_dim and cannot read it")
        height = x.shape[-2]
        tokens = rearrange(x, "b c h w -> b (h w) c")
        tokens = tokens + self.self_attention(rearrange(self.norm(x), "b c h w -> b (h w) c"))
        if context is not None:
            tokens = tokens + self.cross_attention(self.cross_norm(tokens), context, context_keep)
        return rearrange(tokens, "b (h w) c -> b c h w", h=height)


class Stage(nn.Module):
    """A residual block, followed by attention where the level has it."""

    def __init__(self, block: nn.Module, attention: nn.Module | None = None):
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, x, t, context=None, context_keep=None) -> Tensor:
        x = self.block(x, t)
        return x if self.attention is None else self.attention(x, context, context_keep)


class Upsample(nn.Module):
    """Twice as many rows and columns by repeating each, then a convolution: no checkerboard can arise."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class DiffusionUNet(nn.Module):
    """The U-Net of diffusion models: residual blocks that are told the time, attention where the picture is small.

    Each level runs ``blocks`` stages on the way down and ``blocks`` + 1 on the way up, because the first convolution
    and every halving leave a skip as well.

    Args:
        channels: of the picture.
        base: channels of the first level.
        widths: channels of each level as multiples of ``base``; the picture is halved between two levels.
        blocks: residual blocks per level on the way down.
        attend: the levels, counted from 0, whose stages have attention; the bottom always has it.
        condition_dim: width of an optional condition that is added to the time, such as a label's embedding.
        context_dim: width of an optional context's tokens, which attention reads, such as a caption's words.
        out_channels: of the result; by default ``channels``.
        block: makes a residual block, called as ``block(c_in, c_out, time_dim)`` and then as ``(x, t)``.
        attention: makes an attention, called as ``attention(width, context_dim)`` and then as ``(x, context, keep)``.
    Source: Ho et al. 2020 (DDPM), appendix B; Rombach et al. 2022, section 3.3, for the context.
    """

    def __init__(
        self,
        channels: int = 1,
        base: int = 32,
        widths: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        attend: Collection[int] = (),
        condition_dim: int | None = None,
        context_dim: int | None = None,
        out_channels: int | None = None,
        block: Callable[..., nn.Module] = ResBlock,
        attention: Callable[..., nn.Module] = ImageAttention,
    ):
        super().__init__()
        time_dim = 4 * base
        width = [base * multiple for multiple in widths]
        self.halvings = len(width) - 1
        self.time = TimestepEmbedding(time_dim)
        self.condition = None if condition_dim is None else nn.Linear(condition_dim, time_dim)

        def stage(c_in, c_out, with_attention):
            return Stage(block(c_in, c_out, time_dim), attention(c_out, context_dim) if with_attention else None)

        self.read = nn.Conv2d(channels, width[0], 3, padding=1)
        kept, c = [width[0]], width[0]  # widths of the skips, in the order in which forward keeps them
        self.downs = nn.ModuleList()
        for level, wide in enumerate(width):
            for _ in range(blocks):
                self.downs.append(stage(c, wide, level in attend))
                kept, c = [*kept, wide], wide
            if level < self.halvings:
                self.downs.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
                kept.append(c)
        self.bottom = nn.ModuleList([stage(c, c, True), stage(c, c, False)])
        self.ups = nn.ModuleList()
        for level, wide in reversed(list(enumerate(width))):
            for _ in range(blocks + 1):
                self.ups.append(stage(kept.pop() + c, wide, level in attend))
                c = wide
            if level > 0:
                self.ups.append(Upsample(c))
        assert not kept, "every skip is used exactly once"
        self.write = nn.Sequential(nn.GroupNorm(8, c), nn.SiLU(), nn.Conv2d(c, out_channels or channels, 3, padding=1))
        nn.init.zeros_(self.write[-1].weight)  # a new network predicts 0, the best guess before it knows anything
        nn.init.zeros_(self.write[-1].bias)

    def forward(
        self,
        xt: Float[Tensor, "b c height width"],
        t: Float[Tensor, " b"],
        condition: Float[Tensor, "b condition_dim"] | None = None,
        context: Float[Tensor, "b tokens context_dim"] | None = None,
        context_keep: Bool[Tensor, "b tokens"] | None = None,
    ) -> Float[Tensor, "b out_channels height width"]:
        """What the lesson trains it to predict about the noisy pictures ``xt``, of the same size.

        Args:
            xt: (b, c, height, width), noisy pictures.
            t: (b,), diffusion times in [0, 1]; 0 is data, 1 is noise.
            condition: (b, condition_dim), added to the time embedding; None leaves it out.
            context: (b, tokens, context_dim), read by attention; None leaves it out.
            context_keep: boolean (b, tokens), False at padding of the context.
        Raises: ValueError if height or width cannot be halved often enough, or if there is a condition or a context
            and the network was built without.
        """
        step = 2**self.halvings
        if xt.shape[-2] % step or xt.shape[-1] % step:
            raise ValueError(f"pictures of {xt.shape[-2]} x {xt.shape[-1]} pixels; make both multiples of {step}")
        if condition is not None and self.condition is None:
            raise ValueError("there is a condition, but the network was built without condition_dim")
        time = self.time(t)
        if condition is not None:
            time = time + self.condition(condition)
        x = self.read(xt)
        skips = [x]
        for part in self.downs:
            x = part(x, time, context, context_keep) if isinstance(part, Stage) else part(x)
            skips.append(x)
        for part in self.bottom:
            x = part(x, time, context, context_keep)
        for part in self.ups:
            if isinstance(part, Stage):
                x = part(torch.cat([skips.pop(), x], dim=1), time, context, context_keep)
            else:
                x = part(x)
        return self.write(x)
