"""DiT, the diffusion transformer of "Scalable Diffusion Models with Transformers" (Peebles and Xie 2023).

    latents -> patches -> + positions -> depth x [attention, MLP] -> norm -> linear -> latents
                                              ^ shift, scale and gate of everything: time + label

A ViT without a class token that returns an image. What is new is how time and label steer it: ``DiTBlock``
(adaLN-Zero), and the three other ways that the paper compares. ``from_official`` runs the published weights through
this very code.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from course_lib.diffusion.guidance import LabelEmbedding, guide
from course_lib.nn.attention import MultiHeadAttention, fused_attention
from course_lib.nn.blocks import PreNormBlock
from course_lib.nn.modulation import modulate, timestep_embedding
from course_lib.nn.patches import patchify_image, unpatchify_image
from course_lib.nn.positions import sincos_2d

full_attention = partial(MultiHeadAttention, attend=fused_attention, bias=True)
TIME_FREQUENCIES = 256  # width of the sine-cosine features of time


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of a ``DiT``."""

    size: tuple[int, int] = (12, 12)  # height and width of the latents
    channels: int = 4
    classes: int = 10
    patch: int = 2
    d: int = 96  # a multiple of heads and of 4
    depth: int = 6
    heads: int = 4
    mlp_ratio: int = 4
    drop: float = 0.1  # how often training hides the label
    learn_sigma: bool = False  # the published models also predict a variance: as many channels again
    time_scale: float = 1000.0  # times are multiplied by it: 1000 for t from 0 to 1, 1 for integer steps 0 ... 999

    @property
    def patches(self) -> tuple[int, int]:
        """How many patches stand above each other and side by side."""
        return self.size[0] // self.patch, self.size[1] // self.patch

    @property
    def token_dim(self) -> int:
        """Numbers in one patch."""
        return self.patch**2 * self.channels


# ---------------------------------------------------------------------------------------------------------- the block


class DiTBlock(nn.Module):
    """A transformer block that a condition steers through its normalisation: adaLN-Zero.

    Args:
        d: width of the tokens.
        heads: number of attention heads.
        d_ff: hidden width of the MLP.
        attention: makes the attention, called without keywords: ``attention(d, heads)``, and then ``attention(x)``.
        bias: whether the two layers of the MLP have a bias.
    Source: Peebles and Xie 2023, section 3.2, "adaLN-Zero block", figure 3.
    """

    def __init__(
        self, d: int, heads: int, d_ff: int, attention: Callable[..., nn.Module] = full_attention, bias: bool = True
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(d, elementwise_affine=False, eps=1e-6)
        self.attention = attention(d, heads)
        self.norm2 = nn.LayerNorm(d, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(d, d_ff, bias=bias), nn.GELU("tanh"), nn.Linear(d_ff, d, bias=bias))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))

    def forward(self, x: Float[Tensor, "b n d"], condition: Float[Tensor, "b d"]) -> Float[Tensor, "b n d"]:
        """Add what ``attention`` says to the tokens, then what ``mlp`` says; the condition has a hand in both.

        ``modulation`` turns the condition into six vectors of width d per sample, in this order: shift, scale and gate
        for the attention, then shift, scale and gate for the MLP. All tokens of a sample share them. Each part

        1. reads the tokens through its norm (``norm1`` or ``norm2``, with their eps of 1e-6: a token of zeros is
           normalised to zeros), multiplied by *1 + scale*, plus shift;
        2. is multiplied by its gate, and then added to the tokens as they came in. The gate acts on what the part
           says, not on the tokens: with all gates 0 the block returns x. Even then every part is called and
           multiplied, or no gradient would reach the gates.

        Initial weights are not set here; ``initialise_dit`` does that. Train and eval mode are the same.

        Args:
            x: (b, n, d), the tokens; left as they are. The MLP reads the tokens with the attention added.
            condition: (b, d).
        Returns: (b, n, d), computed in the dtype of x and of the weights: float32 or float64.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=-1)
        x = x + gate1.unsqueeze(1) * self.attention(modulate(self.norm1(x), shift1, scale1))
        return x + gate2.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift2, scale2))


class AdaLNBlock(nn.Module):
    """As ``DiTBlock``, but without gates, and not the identity at birth: the paper's adaLN."""

    def __init__(self, d: int, heads: int, d_ff: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(d, elementwise_affine=False, eps=1e-6)
        self.attention = full_attention(d, heads)
        self.norm2 = nn.LayerNorm(d, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(d, d_ff), nn.GELU("tanh"), nn.Linear(d_ff, d))
        self.shift_and_scale = nn.Sequential(nn.SiLU(), nn.Linear(d, 4 * d))

    def forward(self, x: Float[Tensor, "b n d"], condition: Float[Tensor, "b d"]) -> Float[Tensor, "b n d"]:
        shift1, scale1, shift2, scale2 = self.shift_and_scale(condition).chunk(4, dim=-1)
        x = x + self.attention(modulate(self.norm1(x), shift1, scale1))
        return x + self.mlp(modulate(self.norm2(x), shift2, scale2))


class CrossAttentionBlock(nn.Module):
    """Tokens ask the condition, a sequence of two (time and label), in a second attention: the paper's third way."""

    def __init__(self, d: int, heads: int, d_ff: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(d, eps=1e-6)
        self.attention = full_attention(d, heads)
        self.norm2 = nn.LayerNorm(d, eps=1e-6)
        self.cross_attention = full_attention(d, heads)
        self.norm3 = nn.LayerNorm(d, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(d, d_ff), nn.GELU("tanh"), nn.Linear(d_ff, d))

    def forward(self, x: Float[Tensor, "b n d"], condition: Float[Tensor, "b 2 d"]) -> Float[Tensor, "b n d"]:
        x = x + self.attention(self.norm1(x))
        x = x + self.cross_attention(self.norm2(x), condition)
        return x + self.mlp(self.norm3(x))


class InContextBlock(PreNormBlock):
    """A plain block of ViT: time and label stand among the tokens, as two more of them."""

    def __init__(self, d: int, heads: int, d_ff: int):
        super().__init__(d, heads, d_ff, attention=full_attention, activation=partial(nn.GELU, "tanh"))

    def forward(self, x: Float[Tensor, "b n d"], condition: Float[Tensor, "b 2 d"]) -> Float[Tensor, "b n d"]:
        return super().forward(x)


BLOCKS = {
    "adaLN-Zero": DiTBlock,
    "adaLN": AdaLNBlock,
    "cross-attention": CrossAttentionBlock,
    "in-context": InContextBlock,
}


# ---------------------------------------------------------------------------------------------------------- the model


def initialise_dit(model: nn.Module) -> None:
    """Set all initial weights of a ``DiT``, in place, so that it is born predicting 0, each block the identity.

    What must be zero comes last, or a more general rule would overwrite it.

    1. Every ``nn.Linear`` in the model, wherever it is, subclasses of it too: the weight Xavier uniform
       (``nn.init.xavier_uniform_``), the bias, if there is one, zero.
    2. The embeddings of label and time: ``model.label.table.weight``, ``model.time[0].weight`` and
       ``model.time[2].weight`` normal with standard deviation 0.02 and mean 0.
    3. Zero, weights and biases, in ``block.modulation[1]`` of each block of ``model.blocks``, in
       ``model.modulation[1]`` and in ``model.out``.

    Nothing else is touched: norms, convolutions, other embeddings, loose parameters and the positions (the buffer
    ``model.positions``) stay as they are. The parameters stay the objects that they are: an optimizer may hold them
    already. Whether one is frozen does not change, nor does it matter: a frozen linear layer is set like the others.
    The modes stay too, the model's (train or eval) and PyTorch's (gradients on or off). Every tensor gets random
    numbers of its own, new ones at every call; seeding is left to the caller.

    The model's parameters require gradients, and PyTorch lets nobody write into such a tensor, unless under
    ``torch.no_grad()``. The functions of ``nn.init`` see to that themselves.

    Args:
        model: with the parts ``embed``, ``time``, ``label``, ``blocks`` (an ``nn.ModuleList``), ``modulation`` and
            ``out``; ``time`` and every ``modulation`` are an ``nn.Sequential``. There may be more parts. Any linear
            layer may be without a bias, those of step 3 too.
    Returns: None.
    Source: Peebles and Xie 2023, section 3.2, "adaLN-Zero block", and the paper's code.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for weight in (model.label.table.weight, model.time[0].weight, model.time[2].weight):
        nn.init.normal_(weight, std=0.02)
    steered = [part for part in (model, *model.blocks) if hasattr(part, "modulation")]  # not so in the other variants
    for zero in (model.out, *(part.modulation[1] for part in steered)):
        nn.init.zeros_(zero.weight)
        if zero.bias is not None:
            nn.init.zeros_(zero.bias)


class DiT(nn.Module):
    """Predicts noise (or velocity) in images or latents, given diffusion time and a label.

    Args:
        config: sizes.
        block: makes a block, called as ``block(d, heads, d_ff)``; one of ``BLOCKS``, or your own ``DiTBlock``.
        positions: makes the frozen table, called as ``positions(patches, d)``.
        features: makes sines and cosines of time, called as ``features(t, frequencies)``.
        initialise: sets the initial weights.
    Raises: ValueError if the sizes do not fit each other.
    Source: Peebles and Xie 2023, sections 3.1 and 3.2.
    """

    def __init__(
        self,
        config: DiTConfig,
        block: Callable[..., nn.Module] = DiTBlock,
        positions: Callable[..., Tensor] = sincos_2d,
        features: Callable[..., Tensor] = timestep_embedding,
        initialise: Callable[[nn.Module], None] = initialise_dit,
    ):
        super().__init__()
        (height, width), d = config.size, config.d
        if height % config.patch or width % config.patch:
            raise ValueError(f"latents of {height} x {width} do not split into patches of edge {config.patch}")
        self.config, self.features = config, features
        self.in_context = block is InContextBlock
        self.two_tokens = block in (InContextBlock, CrossAttentionBlock)  # time and label, not their sum
        self.embed = nn.Linear(config.token_dim, d)
        self.register_buffer("positions", positions(config.patches, d))
        self.time = nn.Sequential(nn.Linear(TIME_FREQUENCIES, d), nn.SiLU(), nn.Linear(d, d))
        self.label = LabelEmbedding(config.classes, d, config.drop)
        self.blocks = nn.ModuleList(block(d, config.heads, config.mlp_ratio * d) for _ in range(config.depth))
        self.norm = nn.LayerNorm(d, elementwise_affine=self.two_tokens, eps=1e-6)
        if not self.two_tokens:
            self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(d, 2 * d))
        self.out = nn.Linear(d, config.token_dim * (1 + config.learn_sigma))
        initialise(self)

    @property
    def null(self) -> int:
        """The label that says nothing."""
        return self.label.null

    def forward(
        self, xt: Float[Tensor, "b c h w"], t: Float[Tensor, " b"] | Int[Tensor, " b"], labels: Int[Tensor, " b"]
    ) -> Float[Tensor, "b out h w"]:
        """What the noisy latents are made of.

        Args:
            xt: (b, c, h, w), of the size that ``config`` says.
            t: (b,) times, which are multiplied by ``config.time_scale``: from 0 (data) to 1 (noise) as it is.
            labels: (b,) 0 ... classes - 1, or ``self.null``. In training some of them are dropped.
        Returns: like xt; with ``learn_sigma`` (b, 2c, h, w), the second half of the channels for the variance.
        """
        if tuple(xt.shape[1:]) != (self.config.channels, *self.config.size):
            raise ValueError(f"this model reads {(self.config.channels, *self.config.size)}, not {tuple(xt.shape[1:])}")
        x = self.embed(patchify_image(xt, self.config.patch)) + self.positions  # (b, n, d)
        time = self.time(self.features(self.config.time_scale * t, TIME_FREQUENCIES).to(x.dtype))
        label = self.label(labels)
        condition = torch.stack([time, label], dim=1) if self.two_tokens else time + label
        if self.in_context:
            x = torch.cat([condition, x], dim=1)
        for block in self.blocks:
            x = block(x, condition)
        x = self.norm(x[:, 2:] if self.in_context else x)
        if not self.two_tokens:
            shift, scale = self.modulation(condition).chunk(2, dim=-1)
            x = modulate(x, shift, scale)
        return unpatchify_image(self.out(x), self.config.patch, *self.config.size)


def forward_with_cfg(
    model: Callable[[Tensor, Tensor, Tensor], Tensor],
    xt: Float[Tensor, "two_b c h w"],
    t: Float[Tensor, " two_b"] | Int[Tensor, " two_b"],
    labels: Int[Tensor, " two_b"],
    w: float,
) -> Float[Tensor, "two_b out h w"]:
    r"""Classifier-free guidance as DiT's samplers call it: a batch of two halves goes in, and comes out.

    The first half of ``labels`` says what is wanted, the second half holds the null label. Both halves must ask about
    the *same* noisy data, so the first half of ``xt`` is used for both, in its own dtype, and the second half of xt is
    not looked at.
    ``t`` and ``labels`` are handed on as they are. The model is called exactly once.

    The model returns ``c`` channels, or ``2c``: a prediction, and then a variance. The first c channels, all of them,
    are guided: uncond + w (cond - uncond), where cond is the first half of the batch. Both halves of the result
    hold this same guided prediction, so that a sampler which steps the whole batch keeps them together. Further
    channels come back as the model returned them.

    Args:
        model: any callable, called as ``model(xt, t, labels)``, without keywords. If it is an ``nn.Module``, its mode
            (train or eval) is left as it is. What it returns may be overwritten.
        xt: (2b, c, h, w), b >= 1; left as it is, like t and labels.
        t: (2b,) times, in floating point or integer.
        labels: (2b,) int64. The null label may be any number, not just the largest.
        w: any number, also below 0: 1 gives cond, 0 gives uncond. Even then the result is made as above.
    Returns: (2b, out, h, w), where ``out`` is what the model returns: c or 2c; in the dtype of what it returned.
        Gradients are not asked for.
    Raises: ValueError if the batch is odd.
    Source: Peebles and Xie 2023, section 3.1, "Classifier-free guidance". The paper's code guides only the first 3 of 4
        channels; all is what the equation says.
    """
    if len(xt) % 2:
        raise ValueError(f"a batch of {len(xt)} has no two halves")
    half = xt[: len(xt) // 2]
    out = model(torch.cat([half, half]), t, labels)
    prediction, rest = out[:, : xt.shape[1]], out[:, xt.shape[1] :]
    cond, uncond = prediction.chunk(2)
    guided = guide(cond, uncond, w)
    return torch.cat([torch.cat([guided, guided]), rest], dim=1)


# ----------------------------------------------------------------------------------------------- its cost, its weights


def forward_flops(config: DiTConfig, block: type = DiTBlock) -> int:
    """Floating point operations of one forward pass of one image: two for each multiply-and-add of a matrix product.

    Everything else (norms, softmax, sums) is left out, as usual. The paper's "Gflops" are half of this: it counts a
    multiply-and-add once.
    """
    d, n = config.d, config.patches[0] * config.patches[1]
    linear = lambda rows, into, out: 2 * rows * into * out  # noqa: E731
    tokens = n + 2 * (block is InContextBlock)
    attention = 4 * linear(tokens, d, d) + 2 * linear(tokens, tokens, d)
    per_block = attention + 2 * linear(tokens, d, config.mlp_ratio * d)
    if block is CrossAttentionBlock:
        per_block += 2 * linear(n, d, d) + 2 * linear(2, d, d) + 2 * linear(n, 2, d)
    vectors = {AdaLNBlock: 4, CrossAttentionBlock: 0, InContextBlock: 0}.get(block, 6)
    per_block += linear(1, d, vectors * d)
    final = linear(1, d, 2 * d) if vectors else 0
    time = linear(1, TIME_FREQUENCIES, d) + linear(1, d, d)
    ends = linear(n, config.token_dim, d) + linear(n, d, config.token_dim * (1 + config.learn_sigma))
    return ends + time + config.depth * per_block + final


_OFFICIAL = {
    "x_embedder.proj": "embed",
    "t_embedder.mlp": "time",
    "y_embedder.embedding_table": "label.table",
    "attn.proj": "attention.to_out",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
    "adaLN_modulation": "modulation",
    "final_layer.linear": "out",
    "final_layer.": "",
}


def from_official(weights: Mapping[str, Tensor], heads: int = 16, dit: Callable[..., nn.Module] = DiT) -> nn.Module:
    """A DiT with the weights of a published one: the state dict of the paper's code, for square latents.

    Three things are arranged differently there: the patch layer is a convolution, whose kernel lists channels before
    pixels; q, k and v share one matrix; and the positions have an axis for the batch. All sizes follow from the weights
    except the number of heads. Times are the integer steps 0 ... 999 of the schedule that it was trained with.

    Args:
        weights: name -> tensor.
        heads: 16 for L and XL, 12 for B, 6 for S.
        dit: the class to build, called as ``dit(config)``.
    Raises: ValueError if a weight has no place here, or a place gets no weight.
    """
    found = {}
    for theirs, value in weights.items():
        name = theirs
        for old, new in _OFFICIAL.items():
            name = name.replace(old, new)
        if theirs == "pos_embed":
            found["positions"] = value.squeeze(0)
        elif theirs == "x_embedder.proj.weight":
            found[name] = rearrange(value, "d c ph pw -> d (ph pw c)")
        elif qkv := re.fullmatch(r"(blocks\.\d+)\.attn\.qkv\.(weight|bias)", theirs):
            for part, third in zip(("to_q", "to_k", "to_v"), value.chunk(3), strict=True):
                found[f"{qkv[1]}.attention.{part}.{qkv[2]}"] = third
        else:
            found[name] = value
    try:
        d, channels, patch, _ = weights["x_embedder.proj.weight"].shape
        config = DiTConfig(
            size=(round(len(found["positions"]) ** 0.5) * patch,) * 2,
            channels=channels,
            classes=len(found["label.table.weight"]) - 1,
            patch=patch,
            d=d,
            depth=len({name.split(".")[1] for name in found if name.startswith("blocks.")}),
            heads=heads,
            mlp_ratio=len(found["blocks.0.mlp.0.bias"]) // d,
            learn_sigma=len(found["out.bias"]) == 2 * patch**2 * channels,
            time_scale=1.0,
        )
    except KeyError as missing:
        raise ValueError(f"the weights lack {missing}; are they a state dict of the paper's code?") from None
    model = dit(config)
    try:
        model.load_state_dict(found)
    except RuntimeError as error:
        raise ValueError(f"the weights do not fit: {error}") from error
    return model
