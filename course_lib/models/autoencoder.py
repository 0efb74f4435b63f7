"""A small KL autoencoder for single frames: 8x smaller along height and width.

    frame (1, 48, 48) -> pixel-unshuffle 4 -> (16, 12, 12) -> convolutions -> (4, 6, 6) Gaussian -> mirrored decoder

The stem moves 4 x 4 pixels into channels before the first convolution. Convolutions at full resolution would dominate
the cost on a CPU: with this stem a training step is about five times cheaper.

``build_encoder`` and ``build_decoder`` hold no opinion about what lies between them: the VQ-VAE (``models/vqvae.py``)
is the same network with another bottleneck.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

DOWNSAMPLING = 8  # of the default patch, which the video generator uses


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of a ``KLAutoencoder`` or a ``VQVAE``."""

    channels: int = 1  # of the pixels: 1 grey, 3 colour
    latent_channels: int = 4
    width: int = 64  # behind the stem, at a quarter of the resolution
    width_low: int = 96  # at half of that
    blocks: int = 2  # residual blocks there; one behind the stem
    patch: int = 4  # the stem folds patch x patch pixels into channels

    @property
    def downsampling(self) -> int:
        """Pixels per latent, along height and along width."""
        return 2 * self.patch


class Gaussian(NamedTuple):
    """A diagonal normal distribution over latents."""

    mean: Tensor
    logvar: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw once, differentiably (Kingma and Welling 2014, section 2.4)."""
        eps = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + (0.5 * self.logvar).exp() * eps

    def kl(self) -> Tensor:
        """KL(self || N(0, 1)) in nats, averaged over every latent number (Kingma and Welling 2014, appendix B)."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar).mean()


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))); the identity at initialisation, so that no normalisation is needed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


def build_encoder(config: AutoencoderConfig, channels: int) -> nn.Sequential:
    """Frames to ``channels`` numbers at every place of a grid, which is ``config.downsampling`` times smaller."""
    return nn.Sequential(
        nn.PixelUnshuffle(config.patch),
        nn.Conv2d(config.patch**2 * config.channels, config.width, 3, padding=1),
        ResidualBlock(config.width),
        nn.Conv2d(config.width, config.width_low, 3, stride=2, padding=1),
        *(ResidualBlock(config.width_low) for _ in range(config.blocks)),
        nn.Conv2d(config.width_low, channels, 1),
    )


def build_decoder(config: AutoencoderConfig, channels: int) -> nn.Sequential:
    """The mirror image of ``build_encoder``: ``channels`` numbers per place to frames."""
    return nn.Sequential(
        nn.Conv2d(channels, config.width_low, 3, padding=1),
        *(ResidualBlock(config.width_low) for _ in range(config.blocks)),
        nn.Conv2d(config.width_low, 4 * config.width, 1),
        nn.PixelShuffle(2),
        ResidualBlock(config.width),
        nn.Conv2d(config.width, config.patch**2 * config.channels, 3, padding=1),
        nn.PixelShuffle(config.patch),
    )


def initialise_convolutions(model: nn.Module) -> None:
    """He for every convolution, then zero for the last of each residual block, which makes the block the identity."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(module.conv2.weight)


def check_divides(frames: Float[Tensor, "b c height width"], config: AutoencoderConfig) -> None:
    """Raises: ValueError if height or width is no multiple of ``config.downsampling``."""
    if frames.shape[-2] % config.downsampling or frames.shape[-1] % config.downsampling:
        size = f"{frames.shape[-2]} x {frames.shape[-1]}"
        raise ValueError(f"frames of {size} pixels do not divide by {config.downsampling}; choose multiples of it")


class KLAutoencoder(nn.Module):
    """Frames to latents and back.

    ``encode``/``decode`` are the raw maps that training uses. ``compress``/``decompress`` are what a diffusion model
    sees: whole videos, posterior means, whitened per channel with statistics that ``fit_whitening`` measured once.

    Source: Kingma and Welling 2014; Rombach et al. 2022 (latent diffusion), section 3.1 and appendix G, KL-reg.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config, 2 * config.latent_channels)
        self.decoder = build_decoder(config, config.latent_channels)
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latent_std", torch.ones(config.latent_channels))
        self.initialise()

    def initialise(self) -> None:
        """All initial values, in one place."""
        initialise_convolutions(self)
        nn.init.normal_(self.encoder[-1].weight, std=0.02)  # start near N(0, 1): mean 0, logvar 0

    def encode(self, frames: Float[Tensor, "b c height width"]) -> Gaussian:
        """Frames in [-1, 1] to a Gaussian over latents, (b, latent_channels, height / 8, width / 8) at patch 4.

        Raises: ValueError if height or width is no multiple of ``config.downsampling``.
        """
        check_divides(frames, self.config)
        mean, logvar = self.encoder(frames).chunk(2, dim=1)
        return Gaussian(mean, logvar.clamp(-20, 10))

    def decode(self, latents: Float[Tensor, "b z h w"]) -> Float[Tensor, "b c height width"]:
        """Raw latents to frames, in [-1, 1] up to the network's error."""
        return self.decoder(latents)

    def fit_whitening(self, latents: Float[Tensor, "b z f h w"]) -> None:
        """Remember mean and standard deviation per channel of these whitened latents, on top of what is remembered."""
        mean, std = latents.float().mean(dim=(0, 2, 3, 4)), latents.float().std(dim=(0, 2, 3, 4))
        self.latent_mean += mean * self.latent_std
        self.latent_std *= std

    def compress(self, video: Float[Tensor, "b c f height width"]) -> Float[Tensor, "b z f h w"]:
        """A video in [-1, 1] to whitened posterior means."""
        mean = self.encode(rearrange(video, "b c f h w -> (b f) c h w")).mean
        mean = (mean - _per_channel(self.latent_mean)) / _per_channel(self.latent_std)
        return rearrange(mean, "(b f) z h w -> b z f h w", f=video.shape[2])

    def decompress(self, latents: Float[Tensor, "b z f h w"]) -> Float[Tensor, "b c f height width"]:
        """Whitened latents to a video, clamped to [-1, 1]."""
        raw = rearrange(latents, "b z f h w -> (b f) z h w")
        raw = raw * _per_channel(self.latent_std) + _per_channel(self.latent_mean)
        return rearrange(self.decode(raw).clamp(-1, 1), "(b f) c h w -> b c f h w", f=latents.shape[2])


def _per_channel(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)


def slowness(latents: Float[Tensor, "b z f h w"]) -> Float[Tensor, ""]:
    """How much latents change from frame to frame, as a share of how much they differ between clips; 0 is a still code.

    A code that only has to reconstruct is free to change wildly when a digit moves by one pixel, and then a diffusion
    model has to learn every code for every pixel of every place. Slow codes cost little to reconstruct from and are
    several times easier to denoise. The variance is taken at each place over clips: over places, a constant
    pattern along the border would count as variance, and the network finds that way out.

    Source: Wiskott and Sejnowski 2002 (slow feature analysis), eq. 1-2, with the constraint as a quotient.
    """
    change = latents.diff(dim=2).square().mean(dim=(0, 2, 3, 4))
    spread = latents[:, :, 0].var(dim=0).mean(dim=(1, 2))
    return (change / spread.clamp(min=1e-4)).mean()


def autoencoder_loss(
    model: KLAutoencoder,
    video: Float[Tensor, "b c f h w"],
    generator: torch.Generator,
    *,
    ink: float,
    kl: float,
    slow: float,
) -> Float[Tensor, ""]:
    """Weighted squared error of the reconstruction, plus ``kl`` times the divergence and ``slow`` times the slowness.

    Args:
        video: short clips in [-1, 1], two or more, of two or more frames where ``slow`` is not 0.
        generator: for the latent noise.
        ink: weight of pixels that are not black. Digits cover a tenth of the canvas; without it the background wins.
        kl: weight of the divergence (averaged over latents). Small: 2e-2 makes latents look like noise, and then
            nothing can denoise them.
        slow: weight of ``slowness``.
    """
    frames = rearrange(video, "b c f h w -> (b f) c h w")
    latents = model.encode(frames)
    error = (model.decode(latents.sample(generator)) - frames).square()
    loss = (torch.where(frames > -0.9, ink, 1.0) * error).mean() + kl * latents.kl()
    if slow:
        loss = loss + slow * slowness(rearrange(latents.mean, "(b f) z h w -> b z f h w", f=video.shape[2]))
    return loss
