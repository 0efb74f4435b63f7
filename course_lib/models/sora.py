r"""A small Sora: text to video of any length and shape, with a Transformer over spacetime patches of compressed video.

    clips of any size -> tokenizer (frozen) -> latents (z, f, h, w) -> spacetime patches, packed into rows
        -> N x [attention among the patches of a clip | reading the caption | MLP] -> velocity of every patch
                        ^ adaLN: the diffusion time of the patch's own frame, and the caption as a whole

Every frame of a clip has a diffusion time of its own. A frame at time 0 is clean: it is known, and the others are made
to fit it. So one network makes videos from text, continues them, goes back before their beginning, joins two of them,
or closes a loop (``diffusion/known_frames.py``); which of these depends on nothing but which frames are known.

What OpenAI's report leaves open is filled in with parts of this course: latents of ``models/video_tokenizer.py``,
packing of ``nn/packing.py``, blocks like those of ``models/dit.py``, captions through the frozen text tower of
``models/clip.py``.

Source: OpenAI 2024, "Video generation models as world simulators"; Peebles and Xie 2023 (DiT); Dehghani et al. 2023
(NaViT); Chen et al. 2024 (diffusion forcing), for a time per frame.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from course_lib.data.tokenizer import Tokenizer
from course_lib.models.clip import CLIP
from course_lib.nn.attention import CrossAttention, fused_attention
from course_lib.nn.modulation import TimestepEmbedding, rms_norm
from course_lib.nn.packing import Packed, block_mask, first_fit_decreasing, grid_positions, pack, unpack
from course_lib.nn.patches import patch_grid, patchify, unpatchify
from course_lib.nn.positions import rotary_angles, rotate, sincos
from course_lib.paths import checkpoints_dir
from course_lib.training.checkpoint import load_checkpoint, load_weights, save_checkpoint
from course_lib.training.checkpoint import pack as pack_weights
from course_lib.training.checkpoint import unpack as unpack_weights

KIND = "sora"
Size3 = tuple[int, int, int]
WAYS = ("joint", "factorised", "windowed")


@dataclass(frozen=True)
class SoraConfig:
    """Sizes of a ``Sora``."""

    latent_channels: int = 16
    patch: Size3 = (1, 2, 2)  # latent frames, rows and columns in one token
    d: int = 192
    depth: int = 6
    heads: int = 6
    mlp_ratio: int = 4
    d_text: int = 128  # of the caption's tokens
    attention: str = "joint"  # or "factorised": in turns within a frame and along time; or "windowed"
    window: int = 2  # rows and columns of patches in a window, where attention is windowed

    @property
    def token_dim(self) -> int:
        """Numbers in one spacetime patch."""
        f, h, w = self.patch
        return f * h * w * self.latent_channels


class Text(NamedTuple):
    """Captions as the network reads them: one vector per word, which of them are there, and one for the whole."""

    words: Float[Tensor, "clips words d_text"]
    keep: Bool[Tensor, "clips words"]
    whole: Float[Tensor, "clips d_text"]


class TextReader(nn.Module):
    """Captions to ``Text``, through CLIP's text tower, frozen. The empty caption asks for nothing.

    Source: Rombach et al. 2022 (released Stable Diffusion) and OpenAI's later models freeze CLIP's text tower; ours is
    that of lesson 05.
    """

    def __init__(self, clip: CLIP | None = None):
        super().__init__()
        self.tokenizer = Tokenizer()
        self.tower = (clip or CLIP.from_checkpoint()).text.eval().requires_grad_(False)

    def forward(self, captions: Sequence[str]) -> Text:
        """One row per caption."""
        return self.read(self.tokenizer.encode(list(captions)))

    @torch.no_grad()
    def read(self, ids: Int[Tensor, "clips words"]) -> Text:
        """The same for captions that are tokenized already."""
        ids = ids.to(self.tower.positions.device)
        words = self.tower.features(ids)
        end = ids.argmax(dim=-1)  # <eos> is the highest id
        return Text(words, ids != self.tokenizer.pad, words[torch.arange(len(ids)), end])


# --------------------------------------------------------------------------------------------------------- the network


class Where(NamedTuple):
    """What every block needs to know about packed tokens, worked out once.

    keep: per block, who may look at whom. angles: of rotary positions. frame: (b, n), the row of the table of
    conditions that holds for a token. clip: (b, n), which clip's caption it reads.
    """

    keep: list[Bool[Tensor, "b n n"]]
    angles: Float[Tensor, "b n half"]
    frame: Int[Tensor, "b n"]
    clip: Int[Tensor, "b n"]


def spacetime_masks(
    ids: Int[Tensor, "b n"], places: Float[Tensor, "b n 3"], way: str, window: int = 2
) -> list[Bool[Tensor, "b n n"]]:
    """Who may look at whom among the packed patches of several clips: the masks that blocks use in turns.

    "joint", one mask: every patch looks at all patches of its clip. "factorised", two masks: first at the patches of
    the same frame; then at those in the same row *and* column, in all frames. "windowed", two masks: first at the
    patches of the same frame; then at those in the same window, in all frames. Windows tile every frame from its
    top-left patch on, each ``window`` rows high and ``window`` columns wide; at the lower and right edge, where fewer
    rows or columns are left, they are smaller.

    All of it in both directions of time, and everybody looks at themselves, too. Patches of different clips never look
    at each other. A token of padding looks at itself alone, and no other token looks at it.

    ``block_mask(ids)`` of ``course_lib.nn.packing`` is the mask that keeps clips and padding apart. You may use it.

    Args:
        ids: (b, n), the clip that each token belongs to, 0 or more; -1 at padding. The tokens of a clip stand in any
            order, and not always side by side.
        places: (b, n, 3), frame, row and column of each token within its own clip: whole numbers from 0 on, counted in
            patches. At padding, any numbers.
        way: "joint", "factorised" or "windowed".
        window: rows and columns of patches in a window, 1 or more; only "windowed" asks for it.
    Returns: a list of one or two boolean (b, n, n); ``[b, i, j]`` is True where token i may look at token j.
    Raises: ValueError if ``way`` is none of the three, or if it is "windowed" and ``window`` is below 1.
    Source: Arnab et al. 2021 (ViViT), section 3.3, models 1 and 3; Gupta et al. 2023 (W.A.L.T), window attention. Which
        way Sora goes is not known.
    """
    if way not in WAYS:
        raise ValueError(f"attention={way!r} is unknown; choose one of {', '.join(WAYS)}")
    if way == "windowed" and window < 1:
        raise ValueError(f"window={window}: a window needs at least one row and column")
    own, (f, h, w) = block_mask(ids), places.unbind(-1)
    if way == "joint":
        return [own]
    if way == "windowed":
        h, w = h // window, w // window
    return [own & _equal(f), own & _equal(h) & _equal(w)]


def _equal(values: Float[Tensor, "b n"]) -> Bool[Tensor, "b n n"]:
    return values[:, :, None] == values[:, None, :]


class SpacetimeAttention(nn.Module):
    """Attention among packed tokens, with normalised queries and keys and rotary positions."""

    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.q_scale = nn.Parameter(torch.ones(d // heads))
        self.k_scale = nn.Parameter(torch.ones(d // heads))

    def forward(
        self, x: Float[Tensor, "b n d"], keep: Bool[Tensor, "b n n"], angles: Float[Tensor, "b n half"]
    ) -> Float[Tensor, "b n d"]:
        q, k, v = rearrange(self.qkv(x), "b n (three heads d) -> three b heads n d", three=3, heads=self.heads)
        q, k = (rotate(rms_norm(y, scale), angles) for y, scale in ((q, self.q_scale), (k, self.k_scale)))
        out, _ = fused_attention(q, k, v, keep[:, None])
        return self.out(rearrange(out, "b heads n d -> b n (heads d)"))


class SpacetimeBlock(nn.Module):
    """A ``DiTBlock`` whose condition differs from frame to frame, and which reads a caption between its two parts.

    Args:
        d, heads, d_ff: width, attention heads, hidden width.
        cross_attention: makes what reads the caption, called as ``cross_attention(d, d_context, heads)``.
    Source: Peebles and Xie 2023 (DiT), section 3.2, for adaLN-Zero and for cross-attention; both together, and a
        condition per frame, are our choice: OpenAI does not say how time and captions enter Sora.
    """

    def __init__(self, d: int, heads: int, d_ff: int, cross_attention: Callable[..., nn.Module] = CrossAttention):
        super().__init__()
        self.norm1 = nn.LayerNorm(d, elementwise_affine=False, eps=1e-6)
        self.attention = SpacetimeAttention(d, heads)
        self.norm_text = nn.LayerNorm(d, elementwise_affine=False, eps=1e-6)
        self.read = cross_attention(d, d, heads)
        self.norm2 = nn.LayerNorm(d, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(d, d_ff, bias=False), nn.GELU("tanh"), nn.Linear(d_ff, d, bias=False))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        condition: Float[Tensor, "frames d"],
        where: Where,
        keep: Bool[Tensor, "b n n"],
        words: Float[Tensor, "clips words d"],
        words_keep: Bool[Tensor, "clips words"],
    ) -> Float[Tensor, "b n d"]:
        """Attention among tokens, then the caption, then the MLP: each adds to the tokens as the last one left them.

        ``self.modulation(condition)`` makes 6 d numbers of every frame's condition: shift, scale and gate of the
        attention, then shift, scale and gate of the MLP, d each, in this order. Every token takes those of its own
        frame. Attention and MLP read the tokens normalised (``norm1``, ``norm2``), times 1 + scale, plus shift; what
        they answer is multiplied by the gate before it is added. ``self.attention`` is called with the tokens, ``keep``
        and ``where.angles``.

        The caption has no shift, scale or gate: ``norm_text`` of a clip's tokens reads the words of that clip, and the
        answer is added. ``self.read(tokens, words, keep)`` takes (any number of samples, tokens, d), (samples, words,
        d) and boolean (samples, words), and answers like its tokens; a sample is one caption and the tokens that read
        it. No token may read the caption of another clip.

        Args:
            x: (b, n, d), packed tokens of several clips.
            condition: (frames, d), one row for each frame of each clip: all frames of clip 0, then all of clip 1, ...
            where: ``where.frame``, (b, n), the row of ``condition`` that is a token's own frame; ``where.clip``, (b,
                n), its clip, from 0 to clips - 1, or -1 at padding; ``where.angles``, for the attention. The tokens of
                a clip stand in any order and not always side by side; a clip may have no token here.
            keep: (b, n, n), who may look at whom in this block, for the attention.
            words: (clips, words, d), the captions, one per clip.
            words_keep: (clips, words), which words are there.
        Returns: (b, n, d). What it holds at padding does not matter, as long as it is finite.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[where.frame].chunk(6, dim=-1)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1, keep, where.angles)
        x = x + clip_by_clip(self.read, self.norm_text(x), where.clip, words, words_keep)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


def clip_by_clip(
    read: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Float[Tensor, "b n d"],
    clip: Int[Tensor, "b n"],
    words: Float[Tensor, "clips words d"],
    words_keep: Bool[Tensor, "clips words"],
) -> Float[Tensor, "b n d"]:
    """What ``read`` tells each clip's tokens about its own caption; zeros at padding.

    The tokens are laid out with one clip per row for a moment, so that all clips read at once, and go back to where
    they were.
    """
    real = clip >= 0
    lengths = torch.bincount(clip[real], minlength=len(words))
    laid = x.new_zeros(len(words), int(lengths.max()), x.shape[-1])
    owner, order = clip[real].sort(stable=True)
    place = torch.arange(len(owner), device=x.device) - (lengths.cumsum(0) - lengths)[owner]
    laid = laid.index_put((owner, place), x[real][order])
    told = read(laid, words, words_keep)[owner, place]
    back = torch.zeros_like(told).index_put((order,), told)
    return torch.zeros_like(x).masked_scatter(real[..., None], back)


class Sora(nn.Module):
    """Velocities of noisy latents, for clips of any number of frames, rows and columns at once.

    Args:
        config: sizes.
        cross_attention: what reads the caption in each block; ``block`` makes the blocks.
        cut, join, angles, masks: what cuts clips into patches and joins them again, the angles of rotary positions, and
            who may look at whom. The lesson puts a learner's own ones here.
    """

    def __init__(
        self,
        config: SoraConfig,
        cross_attention: Callable[..., nn.Module] = CrossAttention,
        block: Callable[..., nn.Module] = SpacetimeBlock,
        *,
        cut: Callable[..., Tensor] = patchify,
        join: Callable[..., Tensor] = unpatchify,
        angles: Callable[..., Tensor] = rotary_angles,
        masks: Callable[..., list[Tensor]] = spacetime_masks,
    ):
        super().__init__()
        self.config = c = config
        self.cut, self.join, self.angles, self.masks = cut, join, angles, masks
        self.about: dict[str, Any] = {}
        if c.attention not in WAYS:
            raise ValueError(f"attention={c.attention!r} is unknown; choose one of {', '.join(WAYS)}")
        if c.d % c.heads or (c.d // c.heads) % 2:
            raise ValueError(f"d={c.d} must split into heads={c.heads} of an even number of channels")
        self.embed = nn.Linear(c.token_dim, c.d)
        self.place = nn.Linear(3 * 2 * PLACES, c.d)
        self.time = TimestepEmbedding(c.d)
        self.whole = nn.Linear(c.d_text, c.d)
        self.words = nn.Linear(c.d_text, c.d)
        self.blocks = nn.ModuleList(block(c.d, c.heads, c.mlp_ratio * c.d, cross_attention) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.d, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(c.d, 2 * c.d))
        self.out = nn.Linear(c.d, c.token_dim)
        self.initialise()

    def initialise(self) -> None:
        """All initial values; zeros last, so that a new model predicts 0 and a new block changes nothing."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        zeros = [self.out, self.modulation[1]]
        for block in self.blocks:
            zeros += [block.modulation[1], block.read.to_out]
        for zero in zeros:
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)

    def forward(
        self,
        latents: Sequence[Float[Tensor, "z _ _ _"]],
        times: Sequence[Float[Tensor, " _"]],
        text: Text,
        row: int | None = None,
        begin: Sequence[int] | None = None,
    ) -> list[Float[Tensor, "z _ _ _"]]:
        """The velocity of each clip.

        Args:
            latents: one (z, f, h, w) per clip, of any sizes that divide by ``config.patch``.
            times: one (f,) per clip, the diffusion time of each latent frame; 0 is clean.
            text: one caption per clip.
            row: tokens in a packed row; by default as many as the largest clip has.
            begin: for pieces of clips, the number of the latent frame at which each begins; by default 0.
        Raises: ValueError if the numbers of clips, times and captions differ, or a size does not divide.
        """
        if not len(latents) == len(times) == len(text.words):
            raise ValueError(f"{len(latents)} clips, {len(times)} times and {len(text.words)} captions")
        grids, packed = self._pack(latents, row)
        where = self._where(packed, grids)
        frame_times = torch.cat([t[:: self.config.patch[0]] for t in times])
        frames = torch.tensor([grid[0] for grid in grids], device=frame_times.device)
        condition = self.time(frame_times) + self.whole(text.whole).repeat_interleave(frames, dim=0)
        x = self.embed(packed.tokens) + self.place(self._places(packed, begin))
        words = self.words(text.words)
        for i, block in enumerate(self.blocks):
            x = block(x, condition, where, where.keep[i], words, text.keep)
        shift, scale = self.modulation(condition)[where.frame].chunk(2, dim=-1)
        tokens = unpack(self.out(self.norm(x) * (1 + scale) + shift), packed.ids, packed.count)
        return [self.join(t[None], grid, self.config.patch)[0] for t, grid in zip(tokens, grids, strict=True)]

    def _pack(self, latents: Sequence[Tensor], row: int | None) -> tuple[list[Size3], Packed]:
        """Patches of all clips in rows; places: frame, row, column, and the last two as shares of the canvas."""
        grids = [patch_grid((x.shape[1], x.shape[2], x.shape[3]), self.config.patch) for x in latents]
        tokens = [self.cut(x[None], self.config.patch)[0] for x in latents]
        places = {
            g: torch.cat([grid_positions(g), grid_positions(g, fractional=True)[:, 1:]], dim=-1) for g in set(grids)
        }
        lengths = [len(t) for t in tokens]
        rows = first_fit_decreasing(lengths, row or max(lengths))
        return grids, pack(tokens, [places[g].to(tokens[0].device) for g in grids], rows)

    def _places(self, packed: Packed, begin: Sequence[int] | None) -> Float[Tensor, "b n _"]:
        """Which latent frame of its clip, and which share of the canvas, as sines and cosines."""
        frame, *_, row, column = packed.positions.unbind(-1)
        if begin is not None:
            starts = torch.as_tensor(begin, device=frame.device)
            frame = frame + starts[packed.ids.clamp(min=0)] / self.config.patch[0]
        ranges = ((frame, LENGTHS), (row, SCALE), (column, SCALE))
        places = [sincos(values.flatten(), 2 * PLACES, *scale) for values, scale in ranges]
        return torch.cat(places, dim=-1).view(*packed.ids.shape, -1)

    def _where(self, packed: Packed, grids: list[Size3]) -> Where:
        c, ids, places = self.config, packed.ids, packed.positions[..., :3]
        masks = self.masks(ids, places, c.attention, c.window)
        pairs = c.d // c.heads // 2
        space = pairs // 3
        angles = self.angles(places, (pairs - 2 * space, space, space))
        first = torch.tensor([0, *(grid[0] for grid in grids)], device=ids.device).cumsum(0)
        frame = torch.where(ids >= 0, first[ids.clamp(min=0)] + places[..., 0].long(), 0)
        return Where([masks[i % len(masks)] for i in range(c.depth)], angles, frame, ids)

    def save(self, path: Path, about: dict) -> None:
        """Write the weights, packed, with their configuration and ``about``."""
        info = {"kind": KIND, "config": asdict(self.config), "about": about}
        save_checkpoint(path, pack_weights(self.state_dict()), info)

    @classmethod
    def from_checkpoint(cls, path: Path | str | None = None) -> "Sora":
        """What ``save`` wrote, by default to data/checkpoints/sora.safetensors; ``about`` says how it was made.

        Raises: ValueError if the file is none.
        """
        found = load_checkpoint(path or checkpoints_dir() / "sora.safetensors", KIND)
        model = cls(SoraConfig(**{**found.info["config"], "patch": tuple(found.info["config"]["patch"])}))
        load_weights(model, unpack_weights(found.tensors), "Sora")
        model.about = found.info["about"]
        return model.eval().requires_grad_(False)


# Rotary positions say how far tokens are from each other. What a caption says ("starts at the top-left") is about where
# they are: so a token also learns its place on the canvas, as a share of it, and its latent frame's number.
PLACES = 8  # frequencies for each of the three
SCALE = (1.0, 0.05)  # the longest and the shortest, in canvases
LENGTHS = (100.0, 1.0)  # the same in latent frames
