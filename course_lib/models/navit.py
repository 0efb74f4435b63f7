"""NaViT, a Vision Transformer for any aspect ratio and resolution (Dehghani et al. 2023).

    images -> patches, places -> drop some -> rows    |    rows -> + positions -> N x block, masked -> mean -> head

The first half is ``pack_images``, the work of a data loader; the second is ``NaViT``, which sees nothing but rows. It
is the ViT of ``course_lib.models.vit`` with three changes (section 2.1): a mask that keeps images apart, factorised
positions, and one mean per image in place of a class token. (The paper pools by attention, section 3; a mean has no
weights and is easier to check.) The query-key norm of section 3 is optional: ``NaViT(..., block=qk_norm_block)``.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from course_lib.models.vit import vit_block
from course_lib.nn.attention import MultiHeadAttention, fused_attention
from course_lib.nn.blocks import PreNormBlock
from course_lib.nn.packing import (
    FactorisedPositions,
    Packed,
    block_mask,
    drop_tokens,
    first_fit,
    grid_positions,
    pack,
    pool,
)
from course_lib.nn.patches import patchify_image


def pack_images(
    images: Sequence[Float[Tensor, "channels _ _"]],
    patch: int,
    capacity: int,
    fractional: bool = False,
    rates: Sequence[float] | None = None,
    generator: torch.Generator | None = None,
    full: bool = False,
    rows_of: Callable[..., list[list[int]]] = first_fit,
    places_of: Callable[..., Tensor] = grid_positions,
    drop: Callable[..., tuple[Tensor, Tensor]] = drop_tokens,
) -> Packed:
    """Cut images of any size into patches, drop some of them, and pack the rest into rows.

    Args:
        images: (channels, height, width) each, with the same number of channels.
        patch: edge of a square patch in pixels.
        capacity: most tokens in a row.
        fractional: the kind of places, as the model was built for.
        rates: share of the patches to drop, one for each image (section 2.2); None drops nothing, as in evaluation.
        generator: where the dropping draws from.
        full: pad all rows to ``capacity`` (fixed shapes, for a compiler) rather than to the fullest row.
        rows_of, places_of, drop: the parts inside, called like ``first_fit``, ``grid_positions`` and ``drop_tokens``.
    Returns: a ``Packed`` with tokens of patch * patch * channels numbers.
    Raises: ValueError if an image is no whole number of patches, or has more of them than a row holds.
    """
    tokens, places = [], []
    for i, image in enumerate(images):
        cut = patchify_image(image[None], patch)[0]
        at = places_of((image.shape[1] // patch, image.shape[2] // patch), fractional).to(image.device)
        if rates is not None:
            cut, at = drop(cut, at, rates[i], generator=generator)
        tokens.append(cut)
        places.append(at)
    rows = rows_of([len(cut) for cut in tokens], capacity)
    return pack(tokens, places, rows, capacity if full else None)


class NaViT(nn.Module):
    """Packed images to class scores.

    Args:
        patch: edge of a square patch in pixels.
        channels: 1 for grey images, 3 for colour.
        classes: number of scores that come out.
        d: width of the tokens, a multiple of ``heads``.
        heads, layers, d_ff: attention heads, number of blocks, hidden width in each block.
        grid: rows of the two tables of positions: the largest height and width in patches.
        fractional: whether positions are fractions of the side or patch numbers.
        block: makes a block, called as ``block(d, heads, d_ff)`` and then as ``(x, keep=keep)``.
        positions: makes the positions, called as ``positions(grid, d, fractional)``.
        mask: ``mask(ids)`` says who may look at whom.
        pooled: ``pooled(tokens, ids, count)`` makes one vector per image.
    Source: Dehghani et al. 2023, section 2.1.
    """

    def __init__(
        self,
        patch: int,
        channels: int,
        classes: int,
        d: int,
        heads: int,
        layers: int,
        d_ff: int,
        grid: tuple[int, int],
        fractional: bool = False,
        block: Callable[..., nn.Module] = vit_block,
        positions: Callable[..., nn.Module] = FactorisedPositions,
        mask: Callable[[Tensor], Tensor] = block_mask,
        pooled: Callable[[Tensor, Tensor, int], Tensor] = pool,
    ):
        super().__init__()
        self.patch, self.fractional, self.mask, self.pooled = patch, fractional, mask, pooled
        self.to_token = nn.Linear(patch * patch * channels, d)
        self.positions = positions(grid, d, fractional)
        self.blocks = nn.ModuleList(block(d, heads, d_ff) for _ in range(layers))
        self.norm = nn.LayerNorm(d, eps=1e-6)
        self.head = nn.Linear(d, classes)
        nn.init.zeros_(self.head.weight)  # as in ViT: the first loss is exactly ln classes
        nn.init.zeros_(self.head.bias)

    def forward(self, packed: Packed) -> Float[Tensor, "count classes"]:
        """Class scores of each image, in the order in which the images were given to ``pack_images``."""
        x = self.to_token(packed.tokens) + self.positions(packed.positions)
        keep = self.mask(packed.ids)
        for block in self.blocks:
            x = block(x, keep=keep)
        return self.head(self.norm(self.pooled(x, packed.ids, packed.count)))


class NormedAttention(nn.Module):
    """Attention whose queries and keys are normalised first, so that no score can grow without bound.

    A layer norm over the channels of each head, shared by the heads; the scores are still divided by sqrt(d).

    Args:
        d: channels of one head.
        attend: the attention inside, ``attention`` or ``fused_attention``.
    Source: Dehghani et al. 2023 (ViT-22B, arXiv:2302.05442), section 2; used by NaViT (section 3).
    """

    def __init__(self, d: int, attend: Callable = fused_attention):
        super().__init__()
        self.q_norm, self.k_norm = (nn.LayerNorm(d, eps=1e-6, bias=False) for _ in range(2))
        self.attend = attend

    def forward(
        self,
        q: Float[Tensor, "b heads queries d"],
        k: Float[Tensor, "b heads keys d"],
        v: Float[Tensor, "b heads keys d_v"],
        keep: Tensor | None = None,
    ) -> tuple[Float[Tensor, "b heads queries d_v"], Tensor | None]:
        return self.attend(self.q_norm(q), self.k_norm(k), v, keep)


def qk_norm_block(d: int, heads: int, d_ff: int) -> PreNormBlock:
    """``vit_block`` with normalised queries and keys."""
    attend = NormedAttention(d // heads)
    return PreNormBlock(d, heads, d_ff, attention=partial(MultiHeadAttention, attend=attend, bias=True))
