"""A causal autoencoder for pictures and videos: 4x shorter, 8x smaller along height and width.

    1 + T frames -> fold 4 x 4 x 4 pixels into channels -> causal convolutions -> 1 + T/4 latent frames -> mirrored back

The first frame is coded alone and every later latent frame stands for four. Nothing looks ahead. So a picture is a
video of one frame, a clip can be extended without touching the latents it already has, and a long one can be coded in
pieces.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from course_lib.models.autoencoder import slowness
from course_lib.nn.causal import CausalConv3d, CausalResBlock, ChannelNorm, fold_time, unfold_time
from course_lib.paths import checkpoints_dir
from course_lib.training.checkpoint import load_checkpoint, load_weights, pack, save_checkpoint, unpack

KIND = "video tokenizer"
STEM = (4, 4, 4)


@dataclass(frozen=True)
class TokenizerConfig:
    """Sizes of a ``VideoTokenizer``."""

    channels: int = 3
    latent_channels: int = 16
    width: int = 96  # behind the stem, at a quarter of the resolution
    width_low: int = 192  # at an eighth
    blocks: int = 3  # residual blocks there; one behind the stem


class VideoTokenizer(nn.Module):
    """Videos to latents and back.

    Source: Gupta et al. 2023 (W.A.L.T); Yu et al. 2024 (MAGVIT-v2).
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = c = config
        folded = c.channels * STEM[0] * STEM[1] * STEM[2]
        self.encoder = nn.Sequential(
            CausalConv3d(folded, c.width, (1, 3, 3)),
            CausalResBlock(c.width),
            CausalConv3d(c.width, c.width_low, (1, 4, 4), (1, 2, 2)),
            *(CausalResBlock(c.width_low) for _ in range(c.blocks)),
            ChannelNorm(c.width_low),
            CausalConv3d(c.width_low, 2 * c.latent_channels, (1, 1, 1)),
        )
        self.decoder_low = nn.Sequential(
            CausalConv3d(c.latent_channels, c.width_low, (1, 3, 3)),
            *(CausalResBlock(c.width_low) for _ in range(c.blocks)),
            CausalConv3d(c.width_low, 4 * c.width, (1, 1, 1)),
        )
        self.decoder = nn.Sequential(
            *(CausalResBlock(c.width) for _ in range(2)), CausalConv3d(c.width, folded, (1, 3, 3))
        )
        self.register_buffer("latent_mean", torch.zeros(c.latent_channels))
        self.register_buffer("latent_std", torch.ones(c.latent_channels))
        nn.init.normal_(self.encoder[-1].weight, std=0.02)  # start near N(0, 1): mean 0, logvar 0

    def posterior(self, video: Float[Tensor, "b c frames height width"]) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latents, (b, z, 1 + T/4, height / 8, width / 8) each."""
        mean, logvar = self.encoder(fold_time(video, STEM)).chunk(2, dim=1)
        return mean, logvar.clamp(-20, 10)

    def decode(self, latents: Float[Tensor, "b z f h w"]) -> Float[Tensor, "b c frames height width"]:
        """Raw latents to 1 + 4 (f - 1) frames, in [-1, 1] up to the network's error."""
        x = rearrange(self.decoder_low(latents), "b (c ph pw) f h w -> b c f (h ph) (w pw)", ph=2, pw=2)
        return unfold_time(self.decoder(x), STEM)

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
    slow: float,
) -> Float[Tensor, ""]:
    """Weighted squared error, ``kl`` times the divergence and ``slow`` times ``slowness``, as ``autoencoder_loss``."""
    mean, logvar = model.posterior(video)
    eps = torch.randn(mean.shape, generator=generator).to(mean)
    error = (model.decode(mean + (0.5 * logvar).exp() * eps) - video).square()
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    loss = (torch.where(video.amax(1, keepdim=True) > -0.9, ink, 1.0) * error).mean() + kl * divergence
    if slow and mean.shape[2] > 1 and len(mean) > 1:
        loss = loss + slow * slowness(mean.float())
    return loss
