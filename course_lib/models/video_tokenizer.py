"""A causal autoencoder for pictures and videos: 4x shorter, 8x smaller along height and width.

    1 + T frames, each 4 x 4 pixels folded into channels -> frame by frame to an eighth of the resolution
        -> 4 frames folded into channels, 1 + T/4 of them -> latents -> and all of it mirrored back

The first frame is coded alone and every later latent frame stands for four. Nothing looks ahead. So a picture is a
video of one frame, a clip can be extended without touching the latents it already has, and a long one can be coded in
pieces.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from course_lib.nn.causal import CausalConv3d, CausalResBlock, ChannelNorm, Size3, fold_time, unfold_time
from course_lib.paths import checkpoints_dir
from course_lib.training.checkpoint import load_checkpoint, load_weights, pack, save_checkpoint, unpack

KIND = "video tokenizer"
STEM = (1, 4, 4)  # frames, rows and columns that the first layer reads at once
GROUP = (4, 1, 1)  # frames behind one latent frame


@dataclass(frozen=True)
class TokenizerConfig:
    """Sizes of a ``VideoTokenizer``."""

    channels: int = 3
    latent_channels: int = 16
    width: int = 64  # behind the stem, at a quarter of the resolution, of every frame
    width_mid: int = 128  # at an eighth, of every frame
    width_low: int = 176  # at an eighth, of four frames together
    blocks: int = 3  # residual blocks there


class Fold(nn.Module):
    """``fold_time`` as a layer."""

    def __init__(self, patch: Size3):
        super().__init__()
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        return fold_time(x, self.patch)


class Unfold(Fold):
    """``unfold_time`` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return unfold_time(x, self.patch)


class VideoTokenizer(nn.Module):
    """Videos to latents and back.

    Source: Gupta et al. 2023 (W.A.L.T); Yu et al. 2024 (MAGVIT-v2).
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = c = config
        pixels = c.channels * STEM[1] * STEM[2]
        self.encoder = nn.Sequential(
            Fold(STEM),
            CausalConv3d(pixels, c.width, (1, 3, 3)),
            CausalResBlock(c.width),
            CausalConv3d(c.width, c.width_mid, (1, 4, 4), (1, 2, 2)),
            CausalResBlock(c.width_mid),
            Fold(GROUP),
            CausalConv3d(GROUP[0] * c.width_mid, c.width_low, (1, 1, 1)),
            *(CausalResBlock(c.width_low) for _ in range(c.blocks)),
            ChannelNorm(c.width_low),
            CausalConv3d(c.width_low, 2 * c.latent_channels, (1, 1, 1)),
        )
        self.decoder = nn.Sequential(
            CausalConv3d(c.latent_channels, c.width_low, (1, 3, 3)),
            *(CausalResBlock(c.width_low) for _ in range(c.blocks)),
            CausalConv3d(c.width_low, GROUP[0] * c.width_mid, (1, 1, 1)),
            Unfold(GROUP),
            *(CausalResBlock(c.width_mid) for _ in range(2)),
            CausalConv3d(c.width_mid, 4 * c.width, (1, 1, 1)),
            Unfold((1, 2, 2)),
            CausalResBlock(c.width),
            CausalConv3d(c.width, pixels, (1, 3, 3)),
            Unfold(STEM),
        )
        self.register_buffer("latent_mean", torch.zeros(c.latent_channels))
        self.register_buffer("latent_std", torch.ones(c.latent_channels))
        nn.init.normal_(self.encoder[-1].weight, std=0.02)  # start near N(0, 1): mean 0, logvar 0

    def posterior(self, video: Float[Tensor, "b c frames height width"]) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latents, (b, z, 1 + T/4, height / 8, width / 8) each."""
        mean, logvar = self.encoder(video).chunk(2, dim=1)
        return mean, logvar.clamp(-20, 10)

    def decode(self, latents: Float[Tensor, "b z f h w"]) -> Float[Tensor, "b c frames height width"]:
        """Raw latents to 1 + 4 (f - 1) frames, in [-1, 1] up to the network's error."""
        return self.decoder(latents)

    def compress(self, video: Float[Tensor, "b c frames height width"]) -> Float[Tensor, "b z f h w"]:
        """A video in [-1, 1] to whitened posterior means; grey videos are read as white ones."""
        if video.shape[1] == 1:
            video = video.expand(-1, self.config.channels, -1, -1, -1)
        return (self.posterior(video)[0] - _channel(self.latent_mean)) / _channel(self.latent_std)

    def decompress(self, latents: Float[Tensor, "b z f h w"]) -> Float[Tensor, "b c frames height width"]:
        """Whitened latents to a video, clamped to [-1, 1]."""
        return self.decode(latents * _channel(self.latent_std) + _channel(self.latent_mean)).clamp(-1, 1)

    def fit_whitening(self, mean: Float[Tensor, " z"], std: Float[Tensor, " z"]) -> None:
        """Remember mean and standard deviation of raw latents, per channel."""
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)

    def save(self, path: Path, about: dict) -> None:
        """Write the weights, packed, with their configuration and ``about``."""
        info = {"kind": KIND, "config": asdict(self.config), "about": about}
        save_checkpoint(path, pack(self.state_dict()), info)

    @classmethod
    def from_checkpoint(cls, path: Path | str | None = None) -> "VideoTokenizer":
        """The tokenizer that comes with the course, or another one. Raises ValueError if the file is none."""
        path = path or checkpoints_dir() / "video_tokenizer.safetensors"
        found = load_checkpoint(path, KIND)
        model = cls(TokenizerConfig(**found.info["config"]))
        load_weights(model, unpack(found.tensors), "the video tokenizer")
        return model.eval().requires_grad_(False)


def _channel(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def tokenizer_loss(
    model: VideoTokenizer,
    video: Float[Tensor, "b c f h w"],
    generator: torch.Generator,
    *,
    ink: float,
    kl: float,
    shake: float = 0.0,
) -> Float[Tensor, ""]:
    """Weighted squared error and ``kl`` times the divergence, as ``autoencoder_loss``, but without its slowness.

    Slowness is a quotient, and a network trained with it had one mixture of channels along the borders, different in
    every clip and nearly the same in all its frames, which makes the quotient small: nine tenths of all variance, and
    the decoder hardly needed it.

    A generator's latents are never exact. So the decoder practises on disturbed ones: the latents of each clip get more
    noise, of a standard deviation between 0 and ``shake``.
    """
    mean, logvar = model.posterior(video)
    eps = torch.randn(mean.shape, generator=generator).to(mean)
    more = shake * torch.rand(len(mean), 1, 1, 1, 1, generator=generator).to(mean)
    error = (model.decode(mean + (logvar.exp() + more.square()).sqrt() * eps) - video).square()
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return (torch.where(video.amax(1, keepdim=True) > -0.9, ink, 1.0) * error).mean() + kl * divergence
