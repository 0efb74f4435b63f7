"""A small KL autoencoder for single frames: 8x smaller along height and width.

    frame (1, 48, 48) -> pixel-unshuffle 4 -> (16, 12, 12) -> convolutions -> (4, 6, 6) Gaussian -> mirrored decoder

The stem moves 4 x 4 pixels into channels before the first convolution. Convolutions at full resolution would dominate
the cost on a CPU: with this stem a training step is about five times cheaper.

``build_encoder`` and ``build_decoder`` hold no opinion about what lies between them: the VQ-VAE (``models/vqvae.py``)
is the same network with another bottleneck.
"""

from dataclasses import dataclass

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


class DiagonalGaussian:
    """What the encoder says about a picture: a normal distribution for every number of the latents, all independent.

    The encoder writes two numbers for each latent number. The first half of the channels of ``params`` are the means,
    which are taken as they are. The second half are the natural logarithms of the *variances*. They are clamped to
    [-30, 20] before anything is made of them: so every output of the network is allowed, a log-variance of 1000 too,
    and none of them makes a variance 0 or infinite, or a gradient nan.

    Args:
        params: (b, 2c, ...), with any number of further axes, also none; float32, float64 or bfloat16. Left as it is.
    Attributes: ``mean``, ``logvar`` (after the clamp) and ``std``, the standard deviation, each (b, c, ...). They, and
        whatever the three methods return, have the dtype of ``params``.
    Raises: ValueError if the number of channels is odd.
    Source: Kingma and Welling 2014, appendix C.2; the clamp is that of Rombach et al. 2022, released code.
    """

    def __init__(self, params: Float[Tensor, "b c2 *s"]):
        if params.shape[1] % 2:
            raise ValueError(f"{params.shape[1]} channels are no pairs of mean and log-variance; give an even number")
        self.mean, self.logvar = params.chunk(2, dim=1)
        self.logvar = self.logvar.clamp(-30, 20)
        self.std = (0.5 * self.logvar).exp()

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "b c *s"]:
        """Draw once: the mean plus the standard deviation times standard normal noise, its own for every number.

        The noise is the only thing that is random, so gradients reach ``params`` through mean and standard deviation.
        Every call draws anew, and changes nothing in the object.

        Args:
            generator: the noise is drawn with it; None takes torch's global one, which ``torch.manual_seed`` seeds.
        Source: Kingma and Welling 2014, section 2.4.
        """
        eps = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + self.std * eps

    def mode(self) -> Float[Tensor, "b c *s"]:
        """The most likely value of every number."""
        return self.mean

    def kl(self) -> Float[Tensor, " b"]:
        r"""KL(self || N(0, 1)) in nats, one number for each sample of the batch: the *sum* over all its latent numbers.

        Each of them contributes (mean^2 + variance - 1 - log variance) / 2, which is 0 for a standard normal and
        positive for every other.

        Returns: (b,).
        Source: Kingma and Welling 2014, appendix B.
        """
        return 0.5 * (self.mean.square() + self.std.square() - 1 - self.logvar).flatten(1).sum(dim=1)


def fit_latent_stats(z: Float[Tensor, "b c *s"]) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Where the latents lie: mean and standard deviation of every channel, over all samples and places together.

    They are measured once, on many samples, and kept: a schedule of noise is made for data with mean 0 and standard
    deviation 1, and ``scale_latents`` turns any latents into such.

    Args:
        z: (b, c, ...) with any number of further axes (pictures have two, videos three, and there may be none);
            float32 or float64. Left as it is.
    Returns: mean (c,) and standard deviation (c,), which divides by n - 1 as torch does, both computed in the dtype of
        z. The deviation is right also where it is a thousandth of the mean or less. A channel that never changes gets
        1, so that dividing by it stays harmless: one whose numbers are *exactly* equal. (What is computed as their
        deviation may be a little more than 0, by rounding.) Every other channel keeps its own deviation, however small.
        Neither result takes part in any gradient.
    Raises: ValueError if a channel has fewer than two numbers.
    """
    z = z.detach().transpose(0, 1).flatten(1)
    if z.shape[1] < 2:
        raise ValueError(f"a standard deviation needs two numbers per channel or more; there are {z.shape[1]}")
    constant = z.amin(dim=1) == z.amax(dim=1)
    return z.mean(dim=1), z.std(dim=1).masked_fill(constant, 1.0)


def scale_latents(
    z: Float[Tensor, "b c *s"], mean: Float[Tensor, " c"], std: Float[Tensor, " c"]
) -> Float[Tensor, "b c *s"]:
    """Latents as the diffusion model sees them: (z - mean) / std, channel by channel."""
    return (z - _per_channel(mean, z)) / _per_channel(std, z)


def unscale_latents(
    z: Float[Tensor, "b c *s"], mean: Float[Tensor, " c"], std: Float[Tensor, " c"]
) -> Float[Tensor, "b c *s"]:
    """The inverse of ``scale_latents``: what the decoder reads."""
    return z * _per_channel(std, z) + _per_channel(mean, z)


def _per_channel(values: Tensor, z: Tensor) -> Tensor:
    return values.view(-1, *[1] * (z.ndim - 2))


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

    ``encode``/``decode`` are the raw maps that training uses. ``latents``/``pictures`` are what a diffusion model sees:
    scaled channel by channel with statistics that ``fit_whitening`` measured once; ``compress``/``decompress`` do the
    same for whole videos.

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

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.config.latent_channels

    @property
    def downsampling(self) -> int:
        """Pixels per latent, along height and along width."""
        return self.config.downsampling

    def encode(self, frames: Float[Tensor, "b c height width"]) -> DiagonalGaussian:
        """Frames in [-1, 1] to a Gaussian over latents, (b, latent_channels, height / 8, width / 8) at patch 4.

        Raises: ValueError if height or width is no multiple of ``config.downsampling``.
        """
        check_divides(frames, self.config)
        return DiagonalGaussian(self.encoder(frames))

    def decode(self, latents: Float[Tensor, "b z h w"]) -> Float[Tensor, "b c height width"]:
        """Raw latents to frames, in [-1, 1] up to the network's error."""
        return self.decoder(latents)

    @torch.no_grad()
    def fit_whitening(self, latents: Float[Tensor, "b z *s"]) -> None:
        """Remember mean and standard deviation per channel of these scaled latents, on top of what is remembered."""
        mean, std = fit_latent_stats(latents.float())
        self.latent_mean += mean * self.latent_std
        self.latent_std *= std

    def latents(
        self, pictures: Float[Tensor, "b c height width"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b z h w"]:
        """Pictures in [-1, 1] to scaled latents: posterior means, or samples where there is a generator."""
        posterior = self.encode(pictures)
        raw = posterior.mode() if generator is None else posterior.sample(generator)
        return scale_latents(raw, self.latent_mean, self.latent_std)

    def pictures(self, latents: Float[Tensor, "b z h w"]) -> Float[Tensor, "b c height width"]:
        """Scaled latents to pictures, clamped to [-1, 1]."""
        return self.decode(unscale_latents(latents, self.latent_mean, self.latent_std)).clamp(-1, 1)

    def compress(self, video: Float[Tensor, "b c f height width"]) -> Float[Tensor, "b z f h w"]:
        """A video in [-1, 1] to scaled posterior means."""
        return rearrange(
            self.latents(rearrange(video, "b c f h w -> (b f) c h w")), "(b f) z h w -> b z f h w", f=video.shape[2]
        )

    def decompress(self, latents: Float[Tensor, "b z f h w"]) -> Float[Tensor, "b c f height width"]:
        """Scaled latents to a video, clamped to [-1, 1]."""
        frames = self.pictures(rearrange(latents, "b z f h w -> (b f) z h w"))
        return rearrange(frames, "(b f) c h w -> b c f h w", f=latents.shape[2])


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
        kl: weight of the divergence, averaged over latent numbers as the error is averaged over pixels. (Of losses that
            are summed, the same weight is larger by pixels / latents.) Small: 2e-2 makes latents look like noise, and
            then nothing can denoise them.
        slow: weight of ``slowness``.
    """
    frames = rearrange(video, "b c f h w -> (b f) c h w")
    latents = model.encode(frames)
    error = (model.decode(latents.sample(generator)) - frames).square()
    divergence = latents.kl().mean() / latents.mean[0].numel()  # kl() sums over a picture's latent numbers
    loss = (torch.where(frames > -0.9, ink, 1.0) * error).mean() + kl * divergence
    if slow:
        loss = loss + slow * slowness(rearrange(latents.mean, "(b f) z h w -> b z f h w", f=video.shape[2]))
    return loss
