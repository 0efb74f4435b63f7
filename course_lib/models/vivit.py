"""ViViT: A Video Vision Transformer (Arnab et al. 2021). A clip is a grid of tokens, frames times places.

``ViViT`` cuts a clip into tubelets, adds positions, and hands the grid (b, f, s, d) to one of five encoders. What
differs between the paper's four models is only which tokens may look at which:

    Model 1, ``JointEncoder``          every token at every token
    Model 2, ``FactorisedEncoder``     first within each frame, then the summaries of the frames at each other
    Model 3, ``AxialEncoder``          in every block first within the frame, then along time
    Model 4, ``DotProductEncoder``     half of the heads along time, the other half within the frame

and ``FramePooling`` is the control: Model 2 with its second encoder replaced by a mean. All of them read the mean of
their tokens, so that nothing but the attention differs; ``class_token=True`` is the paper's other way for Models 1
and 2. The second half of the file turns an image model into a video model (section 3.4).
"""

from collections.abc import Callable
from functools import partial

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from course_lib.models.vit import vit_block
from course_lib.nn.attention import MultiHeadAttention, fused_attention
from course_lib.nn.blocks import PreNormBlock
from course_lib.nn.patches import Size3, patch_grid, patchify

# ------------------------------------------------------------------------------------------------------- tokens


def tubelet_embed(
    video: Float[Tensor, "b c frames height width"],
    weight: Float[Tensor, "d c pf ph pw"],
    bias: Float[Tensor, " d"],
) -> Float[Tensor, "b n d"]:
    """Cut a clip into boxes of pf frames, ph rows and pw columns (tubelets), and make one token of each.

    Boxes do not overlap and fill the clip. They are numbered like words in a book: all boxes of the first pf frames
    come first, a page read along the first row, then along the second and so on; then those of the next pf frames. In
    each box every number is multiplied by the weight at its place; channel k of a token is the sum of these products
    with ``weight[k]``, plus ``bias[k]``. This is a 3D convolution whose stride is its kernel.

    Args:
        video: (b, c, frames, height, width).
        weight: (d, c, pf, ph, pw), in the order of a convolution's weight; its shape says how large a box is.
        bias: (d,).
    Returns: (b, n, d) with n = (frames / pf) (height / ph) (width / pw), of the inputs' dtype.
    Raises: ValueError if frames, height or width is no multiple of the box's, whatever the other two are.
    Source: Arnab et al. 2021, section 3.2, figure 3.
    """
    boxes = patchify(video, tuple(weight.shape[2:]))
    return boxes @ rearrange(weight, "d c pf ph pw -> (pf ph pw c) d") + bias


# ---------------------------------------------------------------------------------------------------- attention


def axial_attention(
    x: Float[Tensor, "b f s d"],
    attend: Callable[[Float[Tensor, "n tokens d"]], Float[Tensor, "n tokens d"]],
    axis: str,
) -> Float[Tensor, "b f s d"]:
    """Let every token of a grid look at the tokens of its own row or column alone.

    ``attend`` is a self-attention that knows nothing of grids: it takes (n, tokens, d), n sequences that never meet,
    and returns as much. Hand it one sequence for each frame, all places in it in order (``axis="space"``), or one for
    each place, all frames of it in order (``axis="time"``), and bring what it returns back to the grid. It may mind
    the order of the tokens within a sequence. Call it once.

    Args:
        x: (b, f, s, d): clips, frames, places in a frame, channels. Left as it is.
        attend: called as ``attend(sequences)``.
        axis: "space" or "time", letter by letter.
    Returns: (b, f, s, d), what ``attend`` returned for each token, at the token's place. Nothing is added to it.
    Raises: ValueError for another axis.
    Source: Arnab et al. 2021, section 3.3, Model 3.
    """
    b = len(x)
    if axis == "space":
        return rearrange(attend(rearrange(x, "b f s d -> (b f) s d")), "(b f) s d -> b f s d", b=b)
    if axis == "time":
        return rearrange(attend(rearrange(x, "b f s d -> (b s) f d")), "(b s) f d -> b f s d", b=b)
    raise ValueError(f"axis={axis!r} is unknown; tokens look along 'space' or along 'time'")


def factorised_dot_product(
    q: Float[Tensor, "b heads f s d"],
    k: Float[Tensor, "b heads f s d"],
    v: Float[Tensor, "b heads f s d"],
) -> Float[Tensor, "b heads f s d"]:
    r"""Multi-head attention on a grid whose heads share the work: one half looks along time, the other within a frame.

    A query of heads 0 to heads / 2 - 1 sees the keys of its own place in all frames; a query of the other heads sees
    the keys of its own frame at all places. Each head is ordinary attention on the keys that it sees,
    softmax(q k^T / sqrt(d)) v, with d the width of one head, also where scores are in the thousands, above zero or
    below.

    Args:
        q, k, v: (b, heads, f, s, d): clips, heads, frames, places in a frame, channels of one head.
    Returns: (b, heads, f, s, d), the heads in their old order.
    Raises: ValueError if the number of heads is odd.
    Source: Arnab et al. 2021, section 3.3, Model 4. The paper names the half in space first; its code has time first.
    """
    if q.shape[1] % 2:
        raise ValueError(f"{q.shape[1]} heads do not split into two equal halves; take an even number")
    of_time, of_space = zip(*(x.chunk(2, dim=1) for x in (q, k, v)), strict=True)
    along_time = fused_attention(*(rearrange(x, "b h f s d -> (b s) h f d") for x in of_time))[0]
    in_frames = fused_attention(*(rearrange(x, "b h f s d -> (b f) h s d") for x in of_space))[0]
    along_time = rearrange(along_time, "(b s) h f d -> b h f s d", b=len(q))
    in_frames = rearrange(in_frames, "(b f) h s d -> b h f s d", b=len(q))
    return torch.cat([along_time, in_frames], dim=1)


class FactorisedDotProductAttention(MultiHeadAttention):
    """``MultiHeadAttention`` for a flattened grid, with ``factorised_dot_product`` inside; the same weights.

    Args:
        d, heads: width of the tokens and number of heads, an even one.
        frames: how many frames the grid has; tokens are numbered frame by frame.
        inner: the attention on the grid, called as ``inner(q, k, v)`` on (b, heads, f, s, d / heads).
    """

    def __init__(self, d: int, heads: int, frames: int, inner: Callable = factorised_dot_product):
        super().__init__(d, heads, bias=True)
        if heads % 2:
            raise ValueError(f"{heads} heads do not split into two equal halves; take an even number")
        self.frames, self.inner = frames, inner
        del self.attend  # `attention_maps` would take it for one attention over all tokens, which it is not

    def forward(self, x: Float[Tensor, "b n d"], keep: Bool[Tensor, "..."] | None = None) -> Float[Tensor, "b n d"]:
        """No masks here: raises ValueError when ``keep`` is given."""
        if keep is not None:
            raise ValueError("factorised attention takes no mask; its pattern is fixed by the grid")
        q, k, v = (
            rearrange(to(x), "b (f s) (h d) -> b h f s d", f=self.frames, h=self.heads)
            for to in (self.to_q, self.to_k, self.to_v)
        )
        return self.to_out(rearrange(self.inner(q, k, v), "b h f s d -> b (f s) (h d)"))


class AxialBlock(nn.Module):
    """The transformer block of Model 3: attention in space, attention in time, then a small network on each token.

    Each of the three reads a normalised copy of the stream through a norm of its own and adds to the stream.

    Args:
        d: width of the tokens.
        heads: number of heads in each of the two attentions.
        d_ff: hidden width of the feed-forward network.
        along: runs an attention along one axis of the grid, called as ``along(x, attend, axis)``.
    Source: Arnab et al. 2021, section 3.3, Model 3, equations 4 to 6, figure 5.
    """

    def __init__(self, d: int, heads: int, d_ff: int, along: Callable = axial_attention):
        super().__init__()
        self.norm_space, self.norm_time, self.norm_mlp = (nn.LayerNorm(d, eps=1e-6) for _ in range(3))
        self.space = MultiHeadAttention(d, heads, attend=fused_attention, bias=True)
        self.time = MultiHeadAttention(d, heads, attend=fused_attention, bias=True)
        self.mlp = nn.Sequential(nn.Linear(d, d_ff), nn.GELU(), nn.Linear(d_ff, d))
        self.along = along

    def forward(self, x: Float[Tensor, "b f s d"]) -> Float[Tensor, "b f s d"]:
        """Add to the stream, in this order, what ``space``, ``time`` and ``mlp`` make of it.

        1. ``space`` reads the stream through ``norm_space`` and looks along "space".
        2. ``time`` reads the stream so far through ``norm_time`` and looks along "time".
        3. ``mlp`` reads the stream so far through ``norm_mlp``, once for each token.

        The two attentions run through ``self.along``, which keeps the grid's shape. It gets three arguments, by
        position: the normalised copy of the stream, the module ``space`` or ``time``, and the axis. The stream itself
        is never normalised.

        Args:
            x: (b, f, s, d): clips, frames, places in a frame, channels. Left as it is.
        Returns: (b, f, s, d), the stream after the three additions.
        """
        x = x + self.along(self.norm_space(x), self.space, "space")
        x = x + self.along(self.norm_time(x), self.time, "time")
        return x + self.mlp(self.norm_mlp(x))


# ----------------------------------------------------------------------------------------------------- encoders


class Encoder(nn.Module):
    """A stack of pre-norm blocks that makes one vector of a whole sequence.

    Args:
        d, heads, layers, d_ff: width of the tokens, attention heads, number of blocks, hidden width in each block.
        block: makes a block, called as ``block(d, heads, d_ff)``.
        class_token: read a learned token, put before the others, instead of the mean of all.
    """

    def __init__(
        self,
        d: int,
        heads: int,
        layers: int,
        d_ff: int,
        block: Callable[..., nn.Module] = vit_block,
        class_token: bool = False,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(block(d, heads, d_ff) for _ in range(layers))
        self.norm = nn.LayerNorm(d, eps=1e-6)
        self.class_token = nn.Parameter(torch.zeros(d)) if class_token else None

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """One vector for each sequence."""
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x.mean(1) if self.class_token is None else x[:, 0]


class JointEncoder(nn.Module):
    """Model 1: every token looks at every token of the clip."""

    def __init__(self, grid: tuple[int, int], d: int, heads: int, layers: int, d_ff: int, **options):
        super().__init__()
        self.encoder = Encoder(d, heads, layers, d_ff, **options)

    def forward(self, x: Float[Tensor, "b f s d"]) -> Float[Tensor, "b d"]:
        """One vector for each clip."""
        return self.encoder(rearrange(x, "b f s d -> b (f s) d"))


class FactorisedEncoder(nn.Module):
    """Model 2: one encoder summarises every frame by itself, a second one reads the summaries in their order.

    Args:
        grid: (f, s), how many frames and how many places in each the clips have.
        d, heads, layers, d_ff: of the first encoder, as in ``Encoder``.
        time_layers: how many blocks the second encoder has; otherwise it is like the first.
        options: ``block`` and ``class_token`` of both encoders.
    Source: Arnab et al. 2021, section 3.3, Model 2, figure 4.
    """

    def __init__(
        self, grid: tuple[int, int], d: int, heads: int, layers: int, d_ff: int, time_layers: int = 1, **options
    ):
        super().__init__()
        self.encoder = Encoder(d, heads, layers, d_ff, **options)
        self.time_positions = nn.Parameter(0.02 * torch.randn(grid[0], d))
        self.time_encoder = Encoder(d, heads, time_layers, d_ff, **options)

    def forward(self, x: Float[Tensor, "b f s d"]) -> Float[Tensor, "b d"]:
        """Summarise frames, then the clip.

        1. ``encoder`` makes one vector of the tokens of each frame, in their order: it takes (n, tokens, d), n
           sequences that never meet, and returns (n, d).
        2. ``time_positions``, one row for each frame, are added to these vectors.
        3. ``time_encoder`` makes one vector of the f vectors of each clip, first frame first; it takes and returns
           likewise.

        Args:
            x: (b, f, s, d): clips, frames, places in a frame, channels. Left as it is. Any number of places will do.
        Returns: (b, d), one vector for each clip.
        Raises: ValueError if f is not the number of frames for which there are positions.
        """
        b, f = x.shape[:2]
        if f != len(self.time_positions):
            raise ValueError(f"this encoder knows {len(self.time_positions)} places in time, not {f}")
        frames = self.encoder(rearrange(x, "b f s d -> (b f) s d"))
        return self.time_encoder(rearrange(frames, "(b f) d -> b f d", b=b) + self.time_positions)


class FramePooling(nn.Module):
    """The control: every frame by itself, then the mean of the frames. Their order is lost.

    Source: Arnab et al. 2021, section 4.2, table 2, "average pool baseline".
    """

    def __init__(self, grid: tuple[int, int], d: int, heads: int, layers: int, d_ff: int, **options):
        super().__init__()
        self.encoder = Encoder(d, heads, layers, d_ff, **options)

    def forward(self, x: Float[Tensor, "b f s d"]) -> Float[Tensor, "b d"]:
        """One vector for each clip."""
        frames = self.encoder(rearrange(x, "b f s d -> (b f) s d"))
        return rearrange(frames, "(b f) d -> b f d", b=len(x)).mean(1)


class AxialEncoder(nn.Module):
    """Model 3: in every block attention in space, then attention in time.

    Args:
        block: makes a block for a grid, called as ``block(d, heads, d_ff)``.
    """

    def __init__(self, grid: tuple[int, int], d: int, heads: int, layers: int, d_ff: int, block: Callable = AxialBlock):
        super().__init__()
        self.encoder = Encoder(d, heads, layers, d_ff, block)

    def forward(self, x: Float[Tensor, "b f s d"]) -> Float[Tensor, "b d"]:
        """One vector for each clip."""
        for block in self.encoder.blocks:
            x = block(x)
        return self.encoder.norm(x).mean((1, 2))


class DotProductEncoder(JointEncoder):
    """Model 4: Model 1, weight for weight, but half of its heads see along time and the other half their frame.

    Args:
        inner: the attention on the grid; see ``FactorisedDotProductAttention``.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        d: int,
        heads: int,
        layers: int,
        d_ff: int,
        inner: Callable = factorised_dot_product,
    ):
        attend = partial(FactorisedDotProductAttention, frames=grid[0], inner=inner)
        super().__init__(grid, d, heads, layers, d_ff, block=partial(PreNormBlock, attention=attend))


ENCODERS = {
    "frame pooling": FramePooling,
    "1 joint": JointEncoder,
    "2 factorised encoder": FactorisedEncoder,
    "3 factorised self-attention": AxialEncoder,
    "4 factorised dot product": DotProductEncoder,
}


class ViViT(nn.Module):
    """Clips to class scores.

    Args:
        size: frames, height and width of the clips.
        tubelet: frames, height and width of one box.
        channels: 1 for grey clips, 3 for colour.
        classes: number of scores that come out.
        d, heads, layers, d_ff: width of the tokens, attention heads, number of blocks, hidden width in each block.
        encoder: makes what reads the grid of tokens, called as ``encoder((f, s), d, heads, layers, d_ff)``.
        dated: positions know the frame (one row for each token); otherwise each frame gets the same s rows.
        embed: makes the tokens, called as ``embed(video, weight, bias)``.
    Raises: ValueError if the clip is no whole number of boxes.
    Source: Arnab et al. 2021, section 3.
    """

    def __init__(
        self,
        size: Size3,
        tubelet: Size3,
        channels: int,
        classes: int,
        d: int,
        heads: int,
        layers: int,
        d_ff: int,
        encoder: Callable[..., nn.Module] = JointEncoder,
        dated: bool = True,
        embed: Callable = tubelet_embed,
    ):
        super().__init__()
        self.size, self.embed = tuple(size), embed
        f, h, w = patch_grid(self.size, tuple(tubelet))
        self.grid = (f, h * w)
        projection = nn.Linear(channels * tubelet[0] * tubelet[1] * tubelet[2], d)  # for its initial values
        self.weight = nn.Parameter(projection.weight.detach().reshape(d, channels, *tubelet))
        self.bias = nn.Parameter(projection.bias.detach())
        self.positions = nn.Parameter(0.02 * torch.randn(f if dated else 1, h * w, d))
        self.encoder = encoder(self.grid, d, heads, layers, d_ff)
        self.head = nn.Linear(d, classes)
        nn.init.zeros_(self.head.weight)  # an untrained model prefers no class, so the first loss is exactly ln classes
        nn.init.zeros_(self.head.bias)

    def tokens(self, video: Float[Tensor, "b c frames height width"]) -> Float[Tensor, "b f s d"]:
        """The grid of tokens with their positions. Raises ValueError for clips of another size."""
        if tuple(video.shape[2:]) != self.size:
            raise ValueError(f"this model reads clips of {self.size}, not of {tuple(video.shape[2:])}")
        flat = self.embed(video, self.weight, self.bias)
        return rearrange(flat, "b (f s) d -> b f s d", f=self.grid[0]) + self.positions

    def forward(self, video: Float[Tensor, "b c frames height width"]) -> Float[Tensor, "b classes"]:
        """Logits of each clip."""
        return self.head(self.encoder(self.tokens(video)))


# ------------------------------------------------------------------------------------ from an image model (3.4)


def inflate(weight: Float[Tensor, "d c ph pw"], frames: int, mode: str) -> Float[Tensor, "d c frames ph pw"]:
    """Make the patch weights of an image model the tubelet weights of a video model.

    ``mode="inflation"``: every frame of the box gets the image's weights divided by the number of frames, so that the
    frames together weigh what the image did. ``mode="central frame"``: frame ``frames // 2``, counted from 0, gets the
    image's weights as they are, and all others get zeros.

    Args:
        weight: (d, c, ph, pw), in the order of a convolution's weight. Left as it is.
        frames: of a box, at least 1.
        mode: "inflation" or "central frame", letter by letter.
    Returns: (d, c, frames, ph, pw), of the same dtype, in memory of its own: writing into one frame of it changes
        neither another frame nor ``weight``. Gradients flow back to ``weight``.
    Raises: ValueError for another mode, or fewer than 1 frame.
    Source: Arnab et al. 2021, section 3.4, equations 8 and 9.
    """
    if frames < 1:
        raise ValueError(f"frames={frames}: a box has at least one frame")
    if mode == "inflation":
        return repeat(weight / frames, "d c ph pw -> d c frames ph pw", frames=frames).clone()
    if mode == "central frame":
        taps = [torch.zeros_like(weight)] * frames
        taps[frames // 2] = weight
        return torch.stack(taps, dim=2)
    raise ValueError(f"mode={mode!r} is unknown; give 'inflation' or 'central frame'")


@torch.no_grad()
def start_from_image(video: ViViT, image: ViViT, mode: str = "central frame") -> ViViT:
    """Give a video model the weights of an image model, in place; whatever has no counterpart keeps its start.

    An image model is a ``ViViT`` of one frame whose encoder is a ``JointEncoder``. Positions are repeated for every
    frame. The attention in time of an ``AxialBlock`` gets ``to_out`` = 0 and nothing else: so the block leaves the
    stream alone at first and still learns. (The paper sets *all* its weights to zero, which taken literally would never
    train: each factor's gradient is a product with a zero.) The head stays as it is.

    Returns: ``video``.
    Raises: ValueError if width, places or number of blocks differ.
    """
    if image.grid[0] != 1 or image.grid[1] != video.grid[1]:
        raise ValueError(f"an image model has the grid (1, {video.grid[1]}), not {image.grid}")
    video.weight.copy_(inflate(image.weight[:, :, 0], video.weight.shape[2], mode))
    video.bias.copy_(image.bias)
    video.positions.copy_(image.positions.expand_as(video.positions))
    blocks, of_image = video.encoder.encoder.blocks, image.encoder.encoder.blocks
    for block, old in zip(blocks, of_image, strict=True):
        if hasattr(block, "time"):
            for name, part in (("norm_space", "norm1"), ("space", "attention"), ("norm_mlp", "norm2"), ("mlp", "mlp")):
                getattr(block, name).load_state_dict(getattr(old, part).state_dict())
            silence(block.time)
        else:
            block.load_state_dict(old.state_dict())
    video.encoder.encoder.norm.load_state_dict(image.encoder.encoder.norm.state_dict())
    return video


@torch.no_grad()
def silence(attention: nn.Module, parts: tuple[str, ...] = ("to_out",)) -> None:
    """Set the weights and biases of these parts of an attention to zero, in place."""
    for name in parts:
        for parameter in getattr(attention, name).parameters():
            parameter.zero_()


# ---------------------------------------------------------------------------------------------- who looks at whom


def reach(
    layer: Callable[[Float[Tensor, "b f s d"]], Float[Tensor, "b f s d"]], f: int, s: int, d: int
) -> Bool[Tensor, "n n"]:
    """Which tokens each token of a grid depends on after ``layer``, found by asking the gradients.

    Args:
        layer: any map of the grid to the grid; give it weights that are not zero, which would hide a path.
    Returns: (f s, f s), True at [i, j] if output token i changes with input token j. Tokens are numbered by frame.
    """
    n = f * s
    x = torch.randn(f, s, d, generator=torch.Generator().manual_seed(0)).expand(n, f, s, d).clone().requires_grad_()
    out = layer(x).flatten(1, 2)
    wanted = out[torch.arange(n), torch.arange(n)]  # in copy i of the grid, token i
    (gradient,) = torch.autograd.grad((wanted * torch.linspace(1, 2, d)).sum(), x)
    return gradient.flatten(1, 2).abs().amax(-1) > 0
