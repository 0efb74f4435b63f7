"""Latent diffusion: a diffusion model that never sees a pixel.

    training    picture -> encoder (frozen) -> latents, scaled -> noise -> U-Net, which reads the caption -> noise?
    sampling    noise -> U-Net, step by step -> latents -> decoder (frozen) -> picture

The three boxes of the paper's figure 3 are the three parts of ``LatentDiffusion``: the first stage, the text encoder,
the U-Net. With ``Pixels`` as its first stage the same class is an ordinary diffusion model, to compare with.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from course_lib.data.tokenizer import Tokenizer
from course_lib.diffusion.guidance import guide
from course_lib.diffusion.samplers import SamplerStep, sample_steps
from course_lib.diffusion.schedules import Steps, q_sample, sqrt_linear_schedule
from course_lib.models.autoencoder import AutoencoderConfig, KLAutoencoder
from course_lib.models.transformer import Encoder
from course_lib.models.unet import DiffusionUNet, ImageAttention
from course_lib.nn.attention import CrossAttention, MultiHeadAttention, fused_attention
from course_lib.paths import checkpoints_dir
from course_lib.training.checkpoint import load_checkpoint, load_weights, pack, save_checkpoint, unpack

FIRST_STAGE, SECOND_STAGE = "still autoencoder", "latent diffusion"
STILL = AutoencoderConfig(channels=3, latent_channels=4, width=48, width_low=80, blocks=2, patch=2)


@dataclass(frozen=True)
class LatentDiffusionConfig:
    """Sizes of a ``LatentDiffusion``."""

    base: int = 40  # channels of the U-Net's first level
    widths: tuple[int, ...] = (1, 2)  # one level per entry: 12 x 12 latents, then 6 x 6
    attend: tuple[int, ...] = (0, 1)  # levels whose stages attend, to themselves and to the caption
    d_text: int = 64
    text_layers: int = 2
    heads: int = 4
    steps: int = 1000


class Pixels(nn.Module):
    """The first stage of a diffusion model that has none: "latents" are the pixels themselves, whitened.

    Args:
        mean, std: of the pixels; what is diffused is (pixel - mean) / std. The defaults change nothing.
    """

    latent_channels, downsampling = 3, 1

    def __init__(self, mean: float = 0.0, std: float = 1.0):
        super().__init__()
        self.mean, self.std = mean, std

    def latents(self, pictures: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return (pictures - self.mean) / self.std

    def pictures(self, latents: Tensor) -> Tensor:
        return (latents * self.std + self.mean).clamp(-1, 1)


class LatentDiffusion(nn.Module):
    """Captions to pictures, by way of latents.

    Args:
        config: sizes.
        first_stage: a ``KLAutoencoder`` that is trained and has its statistics, or ``Pixels()``. It is frozen.
        cross_attention: what reads the caption inside the U-Net, called as ``cross_attention(d, d_context, heads)``.
    Source: Rombach et al. 2022, figure 3 and sections 3.1 to 3.3; the schedule is that of the released code.
    """

    def __init__(
        self,
        config: LatentDiffusionConfig,
        first_stage: KLAutoencoder | Pixels,
        cross_attention: Callable[..., nn.Module] = CrossAttention,
    ):
        super().__init__()
        self.config = c = config
        self.tokenizer = Tokenizer()
        self.first_stage = first_stage.eval().requires_grad_(False)
        self.text_encoder = Encoder(len(self.tokenizer), c.d_text, c.heads, c.text_layers, 4 * c.d_text)
        attention = partial(
            ImageAttention,
            heads=c.heads,
            attention=partial(MultiHeadAttention, attend=fused_attention),
            cross_attention=cross_attention,
        )
        self.unet = DiffusionUNet(
            first_stage.latent_channels, c.base, c.widths, attend=c.attend, context_dim=c.d_text, attention=attention
        )
        self.register_buffer("alpha_bar", sqrt_linear_schedule(c.steps)[1], persistent=False)

    def train(self, mode: bool = True) -> "LatentDiffusion":
        """As for every module, except that the first stage stays in evaluation mode."""
        super().train(mode)
        self.first_stage.eval()
        return self

    def read(self, tokens: Int[Tensor, "b n"]) -> tuple[Float[Tensor, "b n d"], Bool[Tensor, "b n"]]:
        """Captions as context for the U-Net: one vector per token, and where there is a token at all."""
        keep = tokens != self.tokenizer.pad
        return self.text_encoder(tokens, keep), keep

    def forward(
        self, zt: Float[Tensor, "b c h w"], t: Int[Tensor, " b"], tokens: Int[Tensor, "b n"]
    ) -> Float[Tensor, "b c h w"]:
        """The noise that the U-Net sees in noisy latents, given their step t = 0 ... T - 1 and their captions."""
        context, keep = self.read(tokens)
        return self.unet(zt, t / self.config.steps, context=context, context_keep=keep)

    # ----------------------------------------------------------------------------------------------------- sampling

    def sample_steps(
        self, prompts: Sequence[str], noise: Float[Tensor, "b c h w"], *, guidance: float = 3.0, **options
    ) -> Iterator[SamplerStep]:
        """From noise to scaled latents, yielding after every step; ``options`` as for ``samplers.sample_steps``."""
        tokens = self.tokenizer.encode([*prompts, *[""] * len(prompts)])  # "" says nothing: the unconditional half
        context, keep = self.read(tokens.to(noise.device))

        def model(zt: Tensor, t: Tensor) -> Tensor:
            time = torch.cat([t, t]) / self.config.steps
            return guide(*self.unet(torch.cat([zt, zt]), time, context=context, context_keep=keep).chunk(2), guidance)

        yield from sample_steps(model, noise, Steps(self.alpha_bar), **options)

    @torch.no_grad()
    def generate(
        self,
        prompts: str | Sequence[str],
        generator: torch.Generator | None = None,
        *,
        guidance: float = 3.0,
        steps: int = 25,
        size: tuple[int, int] = (48, 48),
    ) -> Float[Tensor, "b c height width"]:
        """One picture in [-1, 1] for each prompt. Only the last line decodes."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        for state in self.sample_steps(
            prompts, self.noise(len(prompts), generator, size), guidance=guidance, steps=steps
        ):
            z = state.xt
        return self.first_stage.pictures(z)

    def noise(
        self, n: int, generator: torch.Generator | None = None, size: tuple[int, int] = (48, 48)
    ) -> Float[Tensor, "n c h w"]:
        """What sampling starts from, for pictures of ``size`` pixels."""
        f = self.first_stage.downsampling
        return torch.randn(n, self.unet.read.in_channels, size[0] // f, size[1] // f, generator=generator)

    # ---------------------------------------------------------------------------------------------------- checkpoints

    def save(self, path: Path, about: dict) -> None:
        """Write the weights, packed and without those of the first stage, with their configuration and ``about``."""
        tensors = {name: v for name, v in self.state_dict().items() if not name.startswith("first_stage.")}
        save_checkpoint(path, pack(tensors), {"kind": SECOND_STAGE, "config": asdict(self.config), "about": about})

    @classmethod
    def from_checkpoint(
        cls, path: Path | str | None = None, cross_attention: Callable[..., nn.Module] = CrossAttention
    ) -> "LatentDiffusion":
        """The model that comes with the course, on its own first stage. Raises ValueError if the file is none."""
        found = load_checkpoint(path or checkpoints_dir() / "latent_diffusion.safetensors", SECOND_STAGE)
        config = {name: tuple(v) if isinstance(v, list) else v for name, v in found.info["config"].items()}
        model = cls(LatentDiffusionConfig(**config), still_autoencoder(), cross_attention)
        first = {f"first_stage.{name}": v for name, v in model.first_stage.state_dict().items()}
        load_weights(model, unpack(found.tensors) | first, "the latent diffusion model")
        return model.eval().requires_grad_(False)


def latent_loss(
    model: Callable[[Tensor, Tensor, Tensor], Tensor],
    z0: Float[Tensor, "b c h w"],
    tokens: Int[Tensor, "b n"],
    t: Int[Tensor, " b"],
    eps: Float[Tensor, "b c h w"],
    dropped: Bool[Tensor, " b"],
) -> Float[Tensor, ""]:
    """The loss of a training step of latent diffusion: the mean squared error of the guessed noise.

    Latents are noised in one jump: zt = sqrt(alpha_bar[t]) z0 + sqrt(1 - alpha_bar[t]) eps, each sample with its own t,
    and zt has the dtype of z0. Where ``dropped`` is True, a sample's caption is replaced by the empty one, at every t,
    so that the model also learns what pictures look like when nobody says anything; guidance needs that. The model is
    called once, as ``model(zt, t, tokens)``, with t as it came, and returns its guess of eps. All samples count alike.
    Nothing is drawn here: noise, t and who loses a caption are arguments.

    Args:
        model: has an attribute ``alpha_bar``, (T,) float64, and one ``tokenizer``, which turns text into ids:
            ``model.tokenizer.encode("", length)`` are the ``length`` ids (length,) of the empty caption, padded.
        z0: (b, c, h, w), latents of the pictures, scaled already; float32.
        tokens: (b, n), the ids of their captions, padded to n each. Left as they are, like all that comes in.
        t: (b,) int64, from 0 to T - 1.
        eps: like z0, standard normal.
        dropped: (b,), True for those that lose their caption; perhaps none, perhaps all.
    Returns: a scalar, float32: the mean over all numbers of the batch. Gradients are asked for in the model alone.
    Source: Rombach et al. 2022, equations 2 and 3; Ho and Salimans 2022, algorithm 1, for the dropping.
    """
    nothing = model.tokenizer.encode("", tokens.shape[1]).to(tokens.device)
    tokens = torch.where(dropped[:, None], nothing, tokens)
    zt = q_sample(z0, t, eps, model.alpha_bar)
    return F.mse_loss(model(zt, t, tokens), eps)


def still_autoencoder(path: Path | str | None = None) -> KLAutoencoder:
    """The first stage that comes with the course: colour pictures (3, h, w) to latents (4, h / 4, w / 4) and back.

    Raises: ValueError if the file is no such autoencoder.
    """
    found = load_checkpoint(path or checkpoints_dir() / "still_autoencoder.safetensors", FIRST_STAGE)
    model = KLAutoencoder(AutoencoderConfig(**found.info["config"]))
    load_weights(model, unpack(found.tensors), "the autoencoder of still pictures")
    return model.eval().requires_grad_(False)


def save_autoencoder(path: Path, model: KLAutoencoder, about: dict) -> None:
    """Write the weights, packed, with their configuration and ``about``."""
    info = {"kind": FIRST_STAGE, "config": asdict(model.config), "about": about}
    save_checkpoint(path, pack(model.state_dict()), info)
