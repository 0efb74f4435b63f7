"""CLIP (Radford et al. 2021): a tower that reads pictures, a tower that reads text, and one loss that makes them agree.

Our pictures are film strips: a few frames of a clip stacked as channels, because a direction cannot be seen in one
frame. The text tower also hands out its features word by word; frozen, it is the text encoder of the course's last
video generator.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from course_lib.nn.attention import MultiHeadAttention, fused_attention
from course_lib.nn.blocks import PreNormBlock
from course_lib.nn.patches import patchify_image
from course_lib.paths import checkpoints_dir
from course_lib.training.checkpoint import load_checkpoint, load_weights, pack, save_checkpoint, unpack

KIND = "clip"
LARGEST_LOG_SCALE = math.log(100)  # section 2.5: logits are never scaled by more than 100


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), the cheap approximation of GELU in the published weights of CLIP."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return x * torch.sigmoid(1.702 * x)


def clip_block(d: int, heads: int, attention: Callable[..., nn.Module] | None = None) -> PreNormBlock:
    """One block of either tower: ``PreNormBlock`` with QuickGELU, a hidden width of 4 d and biases everywhere."""
    attention = attention or partial(MultiHeadAttention, attend=fused_attention, bias=True)
    return PreNormBlock(d, heads, 4 * d, attention=attention, activation=QuickGELU, eps=1e-5)


def film_strip(
    video: Float[Tensor, "b c f h w"], frames: Sequence[int], side_by_side: bool = False
) -> Float[Tensor, "b strip height width"]:
    """A clip as one picture: the chosen ``frames`` stacked as channels (frame slowest), or laid side by side.

    Returns: (b, len(frames) * c, h, w), or (b, c, h, len(frames) * w).
    Raises: ValueError if the clip has too few frames.
    """
    if max(frames) >= video.shape[2]:
        raise ValueError(f"frame {max(frames)} is asked for, but the clip has {video.shape[2]} frames, counted from 0")
    chosen = video[:, :, list(frames)]
    return rearrange(chosen, "b c f h w -> b c h (f w)" if side_by_side else "b c f h w -> b (f c) h w")


class ImageTower(nn.Module):
    """A Vision Transformer with one norm more: pictures to vectors.

    Args:
        size: height and width of a picture.
        patch: edge of a square patch.
        channels: of a picture.
        d, heads, layers: width, heads and number of the blocks.
        d_out: width of the space shared with the text tower.
        block: makes a block, called as ``block(d, heads)``.
    Source: Radford et al. 2021, section 2.4: a ViT "with an additional layer normalization" before the blocks.
    """

    def __init__(
        self,
        size: tuple[int, int],
        patch: int,
        channels: int,
        d: int,
        heads: int,
        layers: int,
        d_out: int,
        block: Callable[[int, int], nn.Module] = clip_block,
    ):
        super().__init__()
        self.patch = patch
        n = (size[0] // patch) * (size[1] // patch)
        self.embed = nn.Linear(patch * patch * channels, d, bias=False)
        self.class_token = nn.Parameter(torch.randn(d) * d**-0.5)
        self.positions = nn.Parameter(torch.randn(1 + n, d) * d**-0.5)
        self.norm_pre = nn.LayerNorm(d, eps=1e-5)
        self.blocks = nn.ModuleList(block(d, heads) for _ in range(layers))
        self.norm_post = nn.LayerNorm(d, eps=1e-5)
        self.project = nn.Linear(d, d_out, bias=False)

    def forward(self, picture: Float[Tensor, "b c height width"]) -> Float[Tensor, "b d_out"]:
        """The class token after the last block, normalised and projected; its length is not 1 yet."""
        x = self.embed(patchify_image(picture, self.patch))  # (b, n, d)
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1) + self.positions  # (b, 1 + n, d)
        x = self.norm_pre(x)
        for block in self.blocks:
            x = block(x)
        return self.project(self.norm_post(x[:, 0]))


class TextTower(nn.Module):
    """A causal Transformer over tokens: captions to vectors, and to one vector per token.

    Args:
        vocabulary: number of different tokens; the last id, vocabulary - 1, is ``<eos>``.
        length: the longest caption in tokens, ``<bos>``, ``<eos>`` and padding included.
        d, heads, layers: width, heads and number of the blocks.
        d_out: width of the space shared with the image tower.
        block: makes a block, called as ``block(d, heads)`` and then as ``(x, keep=keep)``.
    Source: Radford et al. 2021, section 2.4.
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        d: int,
        heads: int,
        layers: int,
        d_out: int,
        block: Callable[[int, int], nn.Module] = clip_block,
    ):
        super().__init__()
        self.length = length
        self.embed = nn.Embedding(vocabulary, d)
        self.positions = nn.Parameter(torch.randn(length, d) * 0.01)
        self.blocks = nn.ModuleList(block(d, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(d, eps=1e-5)
        self.project = nn.Linear(d, d_out, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)

    def features(self, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        """One vector per token: embedding plus position, then ``self.blocks`` in order, then ``self.norm``.

        The i-th row of ``self.positions`` belongs to the i-th token of every caption. The blocks are causal: ``keep``,
        boolean (1, n, n), lets each token look at itself and at earlier ones. No other mask is needed: padding follows
        ``<eos>``, so no token of the caption ever sees it. Id 0 gets no special treatment either.

        Raises: ValueError if n > ``self.length``.
        """
        n = tokens.shape[1]
        if n > self.length:
            raise ValueError(f"a caption of {n} tokens is too long for a text tower of length={self.length}")
        x = self.embed(tokens) + self.positions[:n]
        keep = torch.ones(1, n, n, dtype=torch.bool, device=x.device).tril()
        for block in self.blocks:
            x = block(x, keep=keep)
        return self.norm(x)

    def forward(self, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b d_out"]:
        """One vector per caption: the feature at its ``<eos>``, the only token that has read all of it, projected.

        ``self.project`` makes it (b, d_out). Its length is not 1 yet; the loss takes care of that.

        Args:
            tokens: (b, n), every row with ``<eos>`` (the id vocabulary - 1) in it. What follows the first ``<eos>`` of
                a row is padding and must not change the result: mostly zeros, but any ids may stand there, also more
                ``<eos>``.
        Raises: ValueError where ``features`` does.
        """
        x = self.features(tokens)
        end = tokens.argmax(dim=-1)  # <eos> is the largest id; among equals argmax takes the first
        return self.project(x[torch.arange(len(x), device=x.device), end])


@dataclass(frozen=True)
class CLIPConfig:
    """Sizes of both towers, and how a clip becomes a picture."""

    vocabulary: int
    length: int = 72  # two digits described in full need 61 tokens
    height: int = 48
    width: int = 48
    colours: int = 3
    frames: tuple[int, ...] = (0, 2, 4, 8)  # early and close: walls turn a digit round later
    side_by_side: bool = False
    patch: int = 8
    d: int = 128
    heads: int = 4
    layers: int = 4
    d_out: int = 96


class CLIP(nn.Module):
    """Both towers and the temperature.

    Args:
        image, text: towers with equal ``d_out``.
        config: how the towers were made, kept for ``save``; see ``CLIP.build``.
    Source: Radford et al. 2021, figure 3 and section 2.5.
    """

    def __init__(self, image: nn.Module, text: nn.Module, config: CLIPConfig | None = None):
        super().__init__()
        self.image, self.text, self.config = image, text, config
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self._initialise()

    @classmethod
    def build(cls, config: CLIPConfig, text_tower: Callable[..., nn.Module] = TextTower) -> "CLIP":
        """New towers of the sizes in ``config``."""
        k = len(config.frames)
        size = (config.height, config.width * (k if config.side_by_side else 1))
        channels = config.colours * (1 if config.side_by_side else k)
        body = dict(d=config.d, heads=config.heads, layers=config.layers, d_out=config.d_out)
        image = ImageTower(size, config.patch, channels, **body)
        return cls(image, text_tower(config.vocabulary, config.length, **body), config)

    def _initialise(self) -> None:
        """The published initialisation; parts of another make keep theirs."""
        for tower in (self.image, self.text):
            blocks = [m for m in tower.modules() if isinstance(m, PreNormBlock)]
            for block in blocks:
                d = block.norm1.normalized_shape[0]
                last = (2 * len(blocks) * d) ** -0.5  # what is added to the stream: smaller in deeper towers
                stds = {"to_q": d**-0.5, "to_k": d**-0.5, "to_v": d**-0.5, "to_out": last}
                for name, std in stds.items():
                    if hasattr(block.attention, name):
                        nn.init.normal_(getattr(block.attention, name).weight, std=std)
                nn.init.normal_(block.mlp[0].weight, std=(2 * d) ** -0.5)
                nn.init.normal_(block.mlp[2].weight, std=last)
            if hasattr(tower, "project"):
                nn.init.normal_(tower.project.weight, std=tower.project.in_features**-0.5)

    def strip(self, video: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b strip height width"]:
        """The picture that the image tower reads of a clip: its film strip, with the dark background at 0.

        At -1 the background would dominate every patch, and training would crawl.
        """
        return film_strip(video, self.config.frames, self.config.side_by_side) + 1

    def forward(
        self, picture: Float[Tensor, "b c height width"], tokens: Int[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b d_out"], Float[Tensor, "b d_out"]]:
        """Both embeddings, for ``clip_loss``."""
        return self.image(picture), self.text(tokens)

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keep the scale at 100 or less; call it after every step of the optimizer (section 2.5)."""
        self.log_scale.clamp_(max=LARGEST_LOG_SCALE)

    @torch.no_grad()
    def embed_clips(self, video: Float[Tensor, "b c f h w"], part: int = 128) -> Float[Tensor, "b d_out"]:
        """Embeddings of length 1."""
        return torch.cat([F.normalize(self.image(self.strip(v)), dim=-1) for v in video.split(part)])

    @torch.no_grad()
    def embed_captions(self, captions: Sequence[str], part: int = 256) -> Float[Tensor, "b d_out"]:
        """Embeddings of length 1."""
        from course_lib.data.tokenizer import Tokenizer

        parts = Tokenizer().encode(list(captions)).to(self.log_scale.device).split(part)
        return torch.cat([F.normalize(self.text(ids), dim=-1) for ids in parts])

    def save(self, path: Path, about: dict) -> None:
        """One safetensors file, a byte for most weights, with the configuration and ``about`` inside."""
        save_checkpoint(path, pack(self.state_dict()), {"kind": KIND, "config": asdict(self.config), **about})

    @classmethod
    def from_checkpoint(cls, path: Path | str | None = None) -> "CLIP":
        """The model that comes with the course, or another file of ``save``. Raises ValueError if it is none."""
        found = load_checkpoint(path or checkpoints_dir() / "clip.safetensors", KIND)
        config = dict(found.info["config"])
        model = cls.build(CLIPConfig(**{**config, "frames": tuple(config["frames"])}))
        load_weights(model, unpack(found.tensors), "CLIP")
        return model.eval()


def clip_loss(
    image: Float[Tensor, "b d"], text: Float[Tensor, "b d"], log_scale: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    r"""Symmetric contrastive loss: in a batch of pairs, who belongs to whom?

    Both embeddings are scaled to length 1. The logit of picture i and caption j is their cosine times exp(log_scale).
    Every picture chooses among all b captions of the batch, every caption among all b pictures; the right answer for
    number i is number i. The loss is the mean of the two cross-entropies, each a mean over the batch, in nats.

    Args:
        image: (b, d), one embedding per picture, float32, of any length above 0, also far below 1.
        text: (b, d), one embedding per caption, likewise; text[i] belongs to image[i].
        log_scale: a scalar tensor, the logarithm of the inverse temperature. It is learned; use it as it is, unclamped.
    Returns: a scalar, right and finite also where logits are in the thousands.
    Source: Radford et al. 2021, section 2.3 and figure 3.
    """
    logits = log_scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def multi_positive_loss(logits: Float[Tensor, "n n"], ids: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    r"""The symmetric loss for batches in which several captions say the same: all of them count as right.

    Pictures and captions with equal ids belong together. Each picture shares its target probability evenly among all
    captions with its own id, each caption likewise among all pictures with its id; everything else has target 0. The
    loss is the mean of the two cross-entropies with these soft targets, each a mean over the batch, in nats. With n
    different ids it is the loss of CLIP.

    Args:
        logits: (n, n), row i is picture i, column j is caption j: scaled cosines, before any softmax.
        ids: (n,), int64 of any size and sign, too large for a float perhaps; ids[i] says what pair i shows.
    Returns: a scalar, right and finite also where logits are in the hundreds.
    Source: Khosla et al. 2020 (supervised contrastive learning); Yang et al. 2022 (UniCL) carry it to captions.
    """
    same = (ids[:, None] == ids[None, :]).to(logits.dtype)
    target = same / same.sum(dim=-1, keepdim=True)  # symmetric: equal ids have equally many partners
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def loss_floor(ids: Int[Tensor, " b"]) -> float:
    """The least ``clip_loss`` that any model can reach, in nats, when pairs of equal ids share one caption.

    A picture cannot tell n equal captions apart, so the best bet on the right one is 1/n: ln n nats.
    """
    return (ids[:, None] == ids[None, :]).sum(dim=-1).double().log().mean().item()


def siglip_loss(
    image: Float[Tensor, "b d"], text: Float[Tensor, "b d"], log_scale: Float[Tensor, ""], bias: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Every picture-caption pair on its own: do the two belong together, yes or no? Summed over captions, mean over b.

    ``log_scale`` starts at ln 10 and ``bias`` at -10, because nearly all of the b * b pairs are a no.
    Source: Zhai et al. 2023 (SigLIP), section 3.2, algorithm 1.
    """
    logits = log_scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T + bias
    sign = 2 * torch.eye(len(logits), device=logits.device) - 1
    return -F.logsigmoid(sign * logits).sum() / len(logits)


def zero_shot(
    image: Float[Tensor, "b d"], prompts: Float[Tensor, "classes templates d"], log_scale: Float[Tensor, ""]
) -> Float[Tensor, "b classes"]:
    r"""Classify pictures by the captions they fit; no class was ever trained on.

    A class is described by several captions ("a 3", "the digit three", ...). Its vector is the mean of their
    embeddings, each scaled to length 1 before the mean is taken; the mean is scaled to length 1 again. Pictures are
    scaled to length 1 too. The classes then compete: a softmax of cosine times exp(log_scale).

    Args:
        image: (b, d), embeddings of pictures, float32, of any length above 0, also far below 1.
        prompts: (classes, templates, d), embeddings of the captions, likewise. There may be one class only.
        log_scale: a scalar tensor, as in ``clip_loss``.
    Returns: (b, classes), the probability of each class; rows sum to 1, also where logits are in the hundreds.
    Source: Radford et al. 2021, sections 3.1.2 and 3.1.4 (prompt ensembles).
    """
    classes = F.normalize(F.normalize(prompts, dim=-1).mean(dim=1), dim=-1)  # (classes, d)
    logits = log_scale.exp() * F.normalize(image, dim=-1) @ classes.T
    return logits.softmax(dim=-1)
