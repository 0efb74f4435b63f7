"""The Vision Transformer of "An Image is Worth 16x16 Words" (Dosovitskiy et al. 2021).

An image is a sequence of patches. ``ViT`` follows section 3.1 of the paper: patches, a class token, learned
positions, a stack of pre-norm blocks, one last norm, a linear head. ``from_torchvision`` runs published weights through
this very code.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from course_lib.nn.attention import MultiHeadAttention, fused_attention
from course_lib.nn.blocks import PreNormBlock
from course_lib.nn.patches import patchify_image


def vit_block(d: int, heads: int, d_ff: int) -> PreNormBlock:
    """A pre-norm block whose attention has biases, as in the paper's code, and runs in PyTorch's fused kernel."""
    return PreNormBlock(d, heads, d_ff, attention=partial(MultiHeadAttention, attend=fused_attention, bias=True))


class ViT(nn.Module):
    """Images to class scores: an encoder that reads patches as a sentence.

    Args:
        image_size: height and width of the images, multiples of ``patch``.
        patch: edge of a square patch in pixels.
        channels: 1 for grey images, 3 for colour.
        classes: number of scores that come out.
        d: width of the tokens, a multiple of ``heads``.
        heads, layers, d_ff: attention heads, number of blocks, hidden width in each block.
        block: makes a block, called as ``block(d, heads, d_ff)``.
    Raises: ValueError if the image is no whole number of patches.
    Source: Dosovitskiy et al. 2021, section 3.1, equations 1 to 4. The initial values are those of the paper's code.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        patch: int,
        channels: int,
        classes: int,
        d: int,
        heads: int,
        layers: int,
        d_ff: int,
        block: Callable[..., nn.Module] = vit_block,
    ):
        super().__init__()
        height, width = image_size
        if patch < 1 or height % patch or width % patch:
            raise ValueError(f"an image of {height} x {width} pixels does not split into squares of {patch} x {patch}")
        self.image_size, self.patch = (height, width), patch
        patches = (height // patch) * (width // patch)
        self.to_token = nn.Linear(patch * patch * channels, d)
        self.class_token = nn.Parameter(torch.zeros(d))
        self.positions = nn.Parameter(0.02 * torch.randn(1 + patches, d))
        self.blocks = nn.ModuleList(block(d, heads, d_ff) for _ in range(layers))
        self.norm = nn.LayerNorm(d, eps=1e-6)
        self.head = nn.Linear(d, classes)
        nn.init.zeros_(self.head.weight)  # an untrained model prefers no class, so the first loss is exactly ln classes
        nn.init.zeros_(self.head.bias)

    def forward(self, image: Float[Tensor, "b channels height width"]) -> Float[Tensor, "b classes"]:
        """Class scores of each image.

        1. Cut each image into patches (``patchify_image``) and turn every patch into a token of width d (``to_token``).
        2. Put ``class_token`` before the first patch of each image.
        3. Add ``positions``: row 0 belongs to the class token, row 1 + i to patch i.
        4. Run the ``blocks`` one after the other; every token may look at every other.
        5. Normalise the class token (``norm``) and read the scores from it alone (``head``).

        Args:
            image: (b, channels, height, width).
        Returns: (b, classes), logits: no softmax.
        Raises: ValueError if height and width are not those of ``self.image_size``, in this order. An image of 8 x 12
            pixels has as many patches as one of 12 x 8, but at other places.
        """
        if tuple(image.shape[-2:]) != self.image_size:
            raise ValueError(f"this model reads images of {self.image_size}, not of {tuple(image.shape[-2:])} pixels")
        patches = self.to_token(patchify_image(image, self.patch))
        first = self.class_token.expand(len(image), 1, -1)
        x = torch.cat([first, patches], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


def resize_positions(
    positions: Float[Tensor, "old d"], grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[Tensor, "new d"]:
    """Stretch learned positions to another number of patches, so that a model can read larger or smaller images.

    Row 0 belongs to the class token, which has no place in the picture: it is copied. The other rows lie on a grid,
    numbered like words on a page, and are interpolated linearly down the grid and across it ("bilinear"). The corners
    of the new grid are the corners of the old one, and the squares between lie at equal distances. A new grid with a
    single row takes the first row of the old one, and likewise with a single column.

    Args:
        positions: (1 + h w, d), for the class token and h w patches.
        grid: how many patches stand above each other and side by side: (h, w).
        new_grid: the same for the images to come: (new h, new w).
    Returns: (1 + new h * new w, d), worked out in the dtype of positions.
    Raises: ValueError if positions does not have exactly 1 + h w rows, also where the grid stays as it is.
    Source: Dosovitskiy et al. 2021, section 3.2. Linear with fixed corners is what the paper's code does.
    """
    (h, w), count = grid, len(positions)
    if count != 1 + h * w:
        raise ValueError(f"{count} positions are not one for the class token and {h} x {w} = {h * w} for the patches")
    on_grid = rearrange(positions[1:], "(h w) d -> 1 d h w", h=h)
    stretched = F.interpolate(on_grid, size=tuple(new_grid), mode="bilinear", align_corners=True)
    return torch.cat([positions[:1], rearrange(stretched, "1 d h w -> (h w) d")])


def attention_rollout(maps: Sequence[Float[Tensor, "b heads n n"]]) -> Float[Tensor, "b layers n n"]:
    r"""How much of each input token is in each token after layer 1, 2, ..., if attention were all that happens.

    Half of each token stays itself and half comes from where it looks, averaged over heads: A = (mean + identity) / 2.
    Layers in a row multiply: after layer l the shares are A_l ... A_2 A_1. Values and feed-forward networks are
    ignored, so this is a picture of who could be heard, not a proof of who was.

    Args:
        maps: attention weights of each layer, the first layer first, as ``attention_maps`` collects them.
    Returns: (b, layers, n, n); each row sums to 1.
    Source: Abnar and Zuidema 2020, "attention rollout". Dosovitskiy et al. 2021 use it for their figure 6.
    """
    shares, after = [], None
    for weights in maps:
        mixed = weights.mean(1)
        mixed = (mixed + torch.eye(mixed.shape[-1]).to(mixed)) / 2
        after = mixed if after is None else mixed @ after
        shares.append(after)
    return torch.stack(shares, dim=1)


_INSIDE_A_LAYER = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    "self_attention.out_proj": "attention.to_out",
    "mlp.0": "mlp.0",
    "mlp.3": "mlp.2",  # theirs has dropout in between
    "mlp.linear_1": "mlp.0",  # the names in the published files are older than the ones in torchvision's code
    "mlp.linear_2": "mlp.2",
}
_OUTSIDE = {"conv_proj": "to_token", "encoder.ln": "norm", "heads.head": "head"}


def from_torchvision(weights: Mapping[str, Tensor], heads: int = 12, vit: Callable[..., nn.Module] = ViT) -> nn.Module:
    """A ViT with the weights of one of torchvision's: ``vit_b_16().state_dict()``, or a published file as it is.

    Three things are arranged differently there: the patch layer is a convolution, whose kernel lists channels before
    pixels; q, k and v share one matrix; and the positions have an axis for the batch. All sizes follow from the weights
    except the number of heads. The images are taken to be square, as torchvision's are.

    Args:
        weights: name -> tensor.
        heads: 12 for B/16 and B/32, 16 for L/16, L/32 and H/14.
        vit: the class to build, with the arguments of ``ViT``; a learner's own, for example.
    Raises: ValueError if a weight has no place here, or a place gets no weight.
    """
    found = {}
    for name, value in weights.items():
        inside = re.fullmatch(r"encoder\.layers\.encoder_layer_(\d+)\.(.+)[._](weight|bias)", name)
        outside = re.fullmatch(r"(.+)\.(weight|bias)", name)
        if inside and inside[2] == "self_attention.in_proj":
            for part, third in zip(("to_q", "to_k", "to_v"), value.chunk(3), strict=True):
                found[f"blocks.{inside[1]}.attention.{part}.{inside[3]}"] = third
        elif inside and inside[2] in _INSIDE_A_LAYER:
            found[f"blocks.{inside[1]}.{_INSIDE_A_LAYER[inside[2]]}.{inside[3]}"] = value
        elif name == "conv_proj.weight":
            found["to_token.weight"] = rearrange(value, "d c ph pw -> d (ph pw c)")
        elif name in ("class_token", "encoder.pos_embedding"):
            found["class_token" if name == "class_token" else "positions"] = value.squeeze()
        elif outside and outside[1] in _OUTSIDE:
            found[f"{_OUTSIDE[outside[1]]}.{outside[2]}"] = value
        else:
            raise ValueError(f"{name!r} has no place in this ViT; it takes plain ones, without a stem or a second head")
    try:
        d, channels, patch, _ = weights["conv_proj.weight"].shape
        edge = patch * round((len(found["positions"]) - 1) ** 0.5)
        layers = len({name.split(".")[1] for name in found if name.startswith("blocks.")})
        classes, d_ff = len(found["head.bias"]), len(found["blocks.0.mlp.0.bias"])
    except KeyError as missing:
        raise ValueError(
            f"the weights lack {missing}; are they a state dict of torchvision's VisionTransformer?"
        ) from None
    model = vit((edge, edge), patch, channels, classes, d, heads, layers, d_ff)
    try:
        model.load_state_dict(found)
    except RuntimeError as error:
        raise ValueError(f"the weights do not fit: {error}") from error
    return model
