"""Packing: sequences of any length side by side in rows of one length, so that a batch holds hardly any padding.

Pictures and videos of any size become sequences of tokens; ``first_fit`` decides which of them share a row, ``pack``
lays them there, ``block_mask`` keeps them apart, ``pool`` and ``unpack`` get each one back. Every token carries the
number of its sequence (``ids``) and its own place in its own grid (``positions``), so that nothing depends on where in
a row it came to lie. Grids may have any number of axes: height and width, or frames, height and width.

Source: Dehghani et al. 2023, "Patch n' Pack: NaViT" (arXiv:2307.06304), sections 2.1 to 2.3 and appendix A.3.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

PAD = -1  # the id of padding; 0 is the first sequence


@dataclass(frozen=True, eq=False)
class Packed:
    """Sequences in rows.

    tokens: (b, n, d), zeros at padding. ids: (b, n), the sequence that a token belongs to, counted from 0 over all
    rows, and ``PAD`` at padding. positions: (b, n, axes), the place of each token in its own grid, zeros at padding.
    count: how many sequences there are.
    """

    tokens: Shaped[Tensor, "b n d"]
    ids: Int[Tensor, "b n"]
    positions: Float[Tensor, "b n axes"]
    count: int

    @property
    def padding(self) -> float:
        """Share of the tokens that are padding."""
        return (self.ids == PAD).float().mean().item()


# ------------------------------------------------------------------------------------------------- who shares a row


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Decide which sequences share a row: each goes to the first row that still has room for it.

    The sequences are taken in the order in which they are given. Each one looks at the rows from the first to the last,
    however full the later ones are, and joins the first where it fits whole; where none has room, it opens a new row at
    the end. A row is full when the lengths in it add up to ``capacity``, and may be filled to exactly that.

    Args:
        lengths: number of tokens of each sequence, 1 or more.
        capacity: most tokens in a row.
    Returns: the rows, in the order in which they were opened. A row is a list of sequence numbers (0 is the first of
        ``lengths``), in the order in which they joined it. No sequences, no rows: ``[]``.
    Raises: ValueError if a length is less than 1 or more than ``capacity``.
    Source: Dehghani et al. 2023, appendix A.3.
    """
    rows, room = [], []
    for i, length in enumerate(lengths):
        if not 1 <= length <= capacity:
            raise ValueError(f"sequence {i} has {length} tokens; a row holds between 1 and {capacity}")
        row = next((r for r, free in enumerate(room) if length <= free), None)
        if row is None:
            row = len(rows)
            rows.append([])
            room.append(capacity)
        rows[row].append(i)
        room[row] -= length
    return rows


def next_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """``first_fit`` without a memory: only the last row is looked at, and once left it is never filled up."""
    rows, room = [], 0
    for i, length in enumerate(lengths):
        if not 1 <= length <= capacity:
            raise ValueError(f"sequence {i} has {length} tokens; a row holds between 1 and {capacity}")
        if length > room:
            rows.append([])
            room = capacity
        rows[-1].append(i)
        room -= length
    return rows


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """``first_fit`` with the longest sequences first, so that the short ones fill the gaps; it must know them all."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [[order[j] for j in row] for row in first_fit([lengths[i] for i in order], capacity)]


# -------------------------------------------------------------------------------------------------- into rows and back


def pack(
    sequences: Sequence[Shaped[Tensor, "_ d"]],
    positions: Sequence[Float[Tensor, "_ axes"]],
    rows: Sequence[Sequence[int]],
    length: int | None = None,
) -> Packed:
    """Lay sequences into rows, one behind the other, and pad each row at its end.

    Args:
        sequences: tokens of each sequence, (n_i, d).
        positions: the place of each of them, (n_i, axes).
        rows: which sequences share a row, as ``first_fit`` says; each of them exactly once.
        length: tokens in a row after padding; the fullest row's by default.
    Raises: ValueError if a sequence is missing or twice, if positions do not fit, or if a row has more than ``length``.
    """
    if sorted(i for row in rows for i in row) != list(range(len(sequences))) or not all(rows) or not rows:
        raise ValueError(f"the rows {rows} do not hold each of the {len(sequences)} sequences once")
    if [len(s) for s in sequences] != [len(p) for p in positions]:
        raise ValueError("a sequence and its positions have different lengths; drop tokens and positions together")
    numbers = [torch.full((len(s),), i, device=s.device) for i, s in enumerate(sequences)]
    tokens, places, ids = (
        pad_sequence([torch.cat([parts[i] for i in row]) for row in rows], batch_first=True, padding_value=value)
        for parts, value in ((sequences, 0), (positions, 0), (numbers, PAD))
    )
    if length is not None:
        more = length - ids.shape[1]
        if more < 0:
            raise ValueError(f"the fullest row has {ids.shape[1]} tokens, more than length={length}")
        tokens, places = (nn.functional.pad(x, (0, 0, 0, more)) for x in (tokens, places))
        ids = nn.functional.pad(ids, (0, more), value=PAD)
    return Packed(tokens, ids, places, len(sequences))


def unpack(tokens: Shaped[Tensor, "b n d"], ids: Int[Tensor, "b n"], count: int) -> list[Shaped[Tensor, "_ d"]]:
    """The sequences again, in their original order: the inverse of ``pack``."""
    real = ids >= 0
    owner, order = ids[real].sort(stable=True)
    return list(tokens[real][order].split(torch.bincount(owner, minlength=count).tolist()))


# --------------------------------------------------------------------------------------- each sequence on its own


def block_mask(ids: Int[Tensor, "b n"]) -> Bool[Tensor, "b n n"]:
    """Who may look at whom in packed rows: tokens of one image at each other, in both directions, and at nobody else.

    A token of padding looks at itself alone, and no other token looks at it. So every row of the mask has at least one
    True, and no softmax has to divide 0 by 0.

    Args:
        ids: (b, n), the image that each token belongs to, 0 or more; -1 at padding. Tokens of one image need not stand
            side by side.
    Returns: boolean (b, n, n); ``[b, i, j]`` is True where token i may look at token j, as ``MultiHeadAttention`` takes
        it.
    Source: Dehghani et al. 2023, section 2.1, "masked self attention", and figure 2.
    """
    same = ids[:, :, None] == ids[:, None, :]
    itself = torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device)
    return (same & (ids >= 0)[:, None, :]) | itself


def pool(tokens: Float[Tensor, "b n d"], ids: Int[Tensor, "b n"], count: int) -> Float[Tensor, "count d"]:
    """The mean of each image's tokens, whatever row they lie in.

    Args:
        tokens: (b, n, d), any finite values at padding.
        ids: (b, n), the image that each token belongs to, 0 to count - 1; -1 at padding, which belongs to none. They
            come in any order.
        count: how many images there are.
    Returns: (count, d), of the tokens' dtype; row i is the mean over all tokens with id i, and zeros for an image
        without any.
    Source: Dehghani et al. 2023, section 2.1, "masked pooling".
    """
    real = ids >= 0
    owner = ids[real]
    total = tokens.new_zeros(count, tokens.shape[-1]).index_add(0, owner, tokens[real])
    return total / torch.bincount(owner, minlength=count).clamp(min=1)[:, None]


def document_attention(
    q: Float[Tensor, "b heads n d"],
    k: Float[Tensor, "b heads n d"],
    v: Float[Tensor, "b heads n d"],
    ids: Int[Tensor, "b n"],
    attend: Callable[..., Tensor] | None = None,
) -> Float[Tensor, "b heads n d"]:
    """Attention under ``block_mask(ids)`` that skips forbidden blocks instead of computing and hiding them.

    Made for GPUs, with ``attend=torch.compile(flex_attention)``. It works in blocks of 128 tokens, and only blocks in
    which nobody may look at anybody are skipped, so rows should be much longer than that. On a CPU, PyTorch's
    FlexAttention has no backward pass; training there uses ``fused_attention`` with a mask.

    Args:
        q, k, v: (b, heads, n, d).
        ids: (b, n), as in ``block_mask``.
        attend: ``torch.nn.attention.flex_attention.flex_attention`` or a compiled one; plain by default.
    """
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    same = lambda b, _head, i, j: ((ids[b, i] == ids[b, j]) & (ids[b, j] >= 0)) | (i == j)  # noqa: E731
    blocks = create_block_mask(same, len(ids), None, ids.shape[1], ids.shape[1], device=ids.device)
    return (attend or flex_attention)(q, k, v, block_mask=blocks)


# ---------------------------------------------------------------------------------------------- places and dropping


def grid_positions(grid: Sequence[int], fractional: bool = False) -> Float[Tensor, "n axes"]:
    """Where each token stands in its own grid, in the order in which patches are numbered: the last axis runs fastest.

    For a picture of h x w patches, ``grid_positions((h, w))`` lists (0, 0), (0, 1), ..., (0, w - 1), (1, 0), ...: first
    the row, counted from the top, then the column.

    Args:
        grid: number of patches along each axis, slowest first: (h, w), or (f, h, w) for a video, or any other number.
        fractional: False gives the patch's number p along each axis, True the fraction p / side, where side is the
            number of patches along the same axis. So fractions begin at 0 and stay below 1.
    Returns: (n, axes), float32, with n = the product of ``grid``; column a belongs to axis a.
    Raises: ValueError if a side is less than 1.
    Source: Dehghani et al. 2023, section 2.1 and appendix B.1, "absolute and fractional coordinates".
    """
    if min(grid) < 1:
        raise ValueError(f"a grid of {tuple(grid)} patches is empty; every side needs at least one")
    sides = [torch.arange(side, dtype=torch.float32) / (side if fractional else 1) for side in grid]
    return torch.stack(torch.meshgrid(*sides, indexing="ij"), dim=-1).flatten(0, -2)


class FactorisedPositions(nn.Module):
    """One learned table per axis; the vector of a place is the sum of what the tables say.

    A table for every pair (row, column) would need a vector for each of them, and learn only those that it has seen.
    Two tables need a vector for each row and one for each column.

    Args:
        rows: number of rows of each table: the largest height and width in patches, for example. Its length is the
            number of axes.
        d: width of the tokens.
        fractional: whether places come as fractions of the side, in [0, 1], or as patch numbers.
    Source: Dehghani et al. 2023, section 2.1: "factorized & fractional positional embeddings".
    """

    def __init__(self, rows: Sequence[int], d: int, fractional: bool = False):
        super().__init__()
        self.fractional = fractional
        self.tables = nn.ParameterList(0.02 * torch.randn(length, d) for length in rows)

    def forward(self, places: Float[Tensor, "*n axes"]) -> Float[Tensor, "*n d"]:
        """The sum over the axes of what each table says at the token's place along that axis.

        ``places[..., a]`` belongs to ``self.tables[a]``. A patch number p reads row p of the table. A fraction r reads
        at r * (rows - 1), so that 0 is the first row and 1 the last (with ``self.fractional``). A place between two
        rows, in either mode, takes both in proportion to its nearness: at 2.25 it is 0.75 of row 2 and 0.25 of row 3.

        Args:
            places: (..., axes), any number of axes before the last. They lie within the tables: 0 to rows - 1, or 0 to
                1 for fractions.
        Returns: (..., d).
        """
        total = 0.0
        for place, table in zip(places.unbind(-1), self.tables, strict=True):
            last = len(table) - 1
            at = place * last if self.fractional else place
            low = at.long().clamp(max=last)
            high = (low + 1).clamp(max=last)
            part = (at - low)[..., None]
            total = total + table[low] * (1 - part) + table[high] * part
        return total


def drop_tokens(
    tokens: Shaped[Tensor, "n d"],
    positions: Float[Tensor, "n axes"],
    rate: float,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> tuple[Shaped[Tensor, "m d"], Float[Tensor, "m axes"]]:
    """Leave out a random share of one image's tokens, each together with its position.

    Of n tokens, ``int(rate * n)`` are dropped, but at least one token stays. Which ones: draw a number for each token,
    ``torch.rand(n, generator=generator)``, and drop those with the smallest numbers. The others keep their order.
    Outside of training nothing is dropped and nothing is drawn.

    Args:
        tokens: (n, d), n at least 1, of any dtype.
        positions: (n, axes), the place of each token.
        rate: share to drop, from 0 to 1.
        training: False returns everything as it is.
        generator: source of the random numbers; None takes PyTorch's global one.
    Returns: the tokens that stay, (m, d), and their positions, (m, axes).
    Raises: ValueError if the rate is below 0 or above 1, also outside of training.
    Source: Dehghani et al. 2023, section 2.2, "continuous token dropping": another rate for every image.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate={rate} is no share of the tokens; give 0 to 1")
    if not training:
        return tokens, positions
    n = len(tokens)
    chance = torch.rand(n, generator=generator)
    dropped = min(int(rate * n), n - 1)
    stay = chance.argsort()[dropped:].sort().values.to(tokens.device)
    return tokens[stay], positions[stay]
