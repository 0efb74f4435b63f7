"""Text to video in one object: autoencoder, caption encoder and diffusion transformer, loaded from one small file.

from course_lib.video_generator import VideoGenerator
VideoGenerator.from_checkpoint().generate("a 3 moving left")
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from course_lib.data.captions import describe
from course_lib.data.moving_mnist import sample_scenes, seeded
from course_lib.data.parser import Stated, parse
from course_lib.data.scenes import Scene
from course_lib.data.tokenizer import VOCABULARY, Tokenizer
from course_lib.diffusion.flow import guide, sample_steps
from course_lib.models.autoencoder import AutoencoderConfig, KLAutoencoder
from course_lib.models.video_dit import VideoDiT, VideoDiTConfig
from course_lib.paths import checkpoints_dir
from course_lib.profile import pick_device
from course_lib.training.checkpoint import (
    load_checkpoint,
    load_weights,
    pack,
    save_checkpoint,
    under_prefix,
    unpack,
    with_prefix,
)

KIND = "video generator"


@dataclass(frozen=True)
class World:
    """The scenes that a generator was trained on: what may be asked of it."""

    frames: int
    height: int
    width: int
    directions: tuple[str, ...]
    speeds: tuple[str, ...]
    sizes: tuple[str, ...] = ("medium",)
    colours: tuple[str, ...] = ("white",)
    movers: int = 1

    def check(self, stated: "Scene | Stated") -> None:
        """Raise ValueError, saying what this world holds, if a text asks for something outside it."""
        if len(stated.movers) > self.movers:
            most = "one digit" if self.movers == 1 else f"at most {self.movers} digits"
            raise ValueError(
                f"the text asks for {len(stated.movers)} digits, but this checkpoint has only seen clips with {most}; "
                "ask for fewer, for example 'a 3 moving left'"
            )
        for name in ("height", "width"):
            if getattr(stated, name) not in (None, getattr(self, name)):
                raise ValueError(
                    f"the text asks for {name} {getattr(stated, name)}, but this checkpoint makes clips of "
                    f"{self.height} x {self.width} pixels; leave the size out"
                )
        if (stated.frames or 1) > self.frames:
            raise ValueError(f"the text asks for {stated.frames} frames; this checkpoint makes at most {self.frames}")
        for mover in stated.movers:
            for name in ("direction", "speed", "size", "colour"):
                asked, known = getattr(mover, name), getattr(self, f"{name}s")
                still = name == "speed" and mover.direction == "still"
                if asked is not None and asked not in known and not still:
                    raise ValueError(
                        f"the text asks for the {name} {asked!r}, which this checkpoint has never seen; "
                        f"it knows {', '.join(known)}"
                    )

    def complete(self, stated: "Scene | Stated", generator: torch.Generator) -> Scene:
        """Draw, among what this world holds, every attribute that a text leaves open."""
        if isinstance(stated, Scene):
            return stated
        movers = []
        for mover in stated.movers or (None,):
            said = {name: value for name, value in vars(mover).items() if value is not None} if mover else {}
            given = {"labels" if name == "digit" else f"{name}s": (value,) for name, value in said.items()}
            known = {"directions": self.directions, "speeds": self.speeds, "sizes": self.sizes, "colours": self.colours}
            canvas = {"frames": self.frames, "height": self.height, "width": self.width}
            movers += sample_scenes(1, generator, colour=True, **canvas, **(known | given))[0].movers
        return Scene(tuple(movers), self.frames, self.height, self.width)


class Video(Tensor):
    """A tensor (c, f, h, w), or (b, c, f, h, w) for several prompts, in [-1, 1]; Jupyter shows it as a moving picture.

    Everything computed from it is a plain tensor. ``captions`` are the texts that the model read.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl
    captions: tuple[str, ...]
    prompts: tuple[str, ...]
    seed: int

    @classmethod
    def wrap(cls, video: Tensor, prompts: Sequence[str], captions: Sequence[str], seed: int) -> "Video":
        """A tensor with the words that it was made from."""
        wrapped = video.detach().as_subclass(cls)
        wrapped.prompts, wrapped.captions, wrapped.seed = tuple(prompts), tuple(captions), seed
        return wrapped

    def save(self, path: Path | str, fps: int = 8) -> Path:
        """Write a GIF, or an animated PNG if the name ends in .png or .apng."""
        from course_lib.viz import save_apng, save_gif

        save = save_apng if Path(path).suffix.lower() in (".png", ".apng") else save_gif
        return Path(save(self.as_subclass(Tensor), path, fps=fps))

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.shape))
        return f"<video {shape}, seed {self.seed}: {'; '.join(self.prompts)}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Any:
        from course_lib.viz import show_video

        labels = list(self.prompts) if self.ndim == 5 else None
        alt = f"generated video: {'; '.join(self.prompts)}"
        return show_video(self.as_subclass(Tensor), alt=alt, labels=labels)._repr_mimebundle_(include, exclude)


class Preview(NamedTuple):
    """One moment of ``VideoGenerator.generate_steps``."""

    step: int  # 1 … steps
    steps: int
    latents: Tensor  # noisy, at this step's time
    clean: Tensor  # the latents that the model expects to end at; decode them for a preview


def first_sentence(caption: str) -> str:
    """A caption without its sentence about the canvas, which the shape of the noise says already."""
    return caption.partition(".")[0].strip()


class VideoGenerator(nn.Module):
    """An autoencoder, and a ``VideoDiT`` with its caption encoder that lives in its latents."""

    def __init__(self, autoencoder: KLAutoencoder, dit: VideoDiT, world: World, info: Mapping[str, Any]) -> None:
        super().__init__()
        self.autoencoder, self.dit, self.world, self.info = autoencoder, dit, world, dict(info)
        self.tokenizer = Tokenizer()

    @classmethod
    def from_checkpoint(
        cls, path: Path | str | None = None, device: torch.device | str | None = None
    ) -> "VideoGenerator":
        """Load a generator.

        Args:
            path: a file written by ``save`` or a run's folder; by default the checkpoint that the course ships.
            device: by default what ``course_lib.profile.pick_device`` finds.
        Raises: ValueError if the file is missing, damaged, or holds something else.
        """
        path = checkpoints_dir() / "first_light.safetensors" if path is None else Path(path)
        if path.is_dir():
            path = path / "generator.safetensors"
        found = load_checkpoint(path, KIND)
        try:
            autoencoder = KLAutoencoder(AutoencoderConfig(**found.info["autoencoder"]))
            dit_sizes = {k: tuple(v) if isinstance(v, list) else v for k, v in found.info["dit"].items()}
            words = list(found.info["words"])
            dit = VideoDiT(VideoDiTConfig(**dit_sizes | {"vocabulary": len(VOCABULARY)}))
            world = World(**{k: tuple(v) if isinstance(v, list) else v for k, v in found.info["world"].items()})
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} does not describe a generator that this version knows: {error!r}") from error
        tensors = unpack(found.tensors)
        # The vocabulary may have grown since: find each of today's words in the file's list, and give new ones nothing.
        table = tensors["dit.caption.words.weight"]
        row = {word: i for i, word in enumerate(words)}
        rows = torch.tensor([row.get(word, -1) for word in VOCABULARY])
        tensors["dit.caption.words.weight"] = table[rows.clamp(min=0)] * (rows >= 0)[:, None]
        load_weights(autoencoder, under_prefix("autoencoder", tensors), f"the autoencoder in {path}")
        load_weights(dit, under_prefix("dit", tensors), f"the transformer in {path}")
        made = cls(autoencoder, dit, world, found.info.get("about", {}))
        return made.to(device or pick_device()).eval().requires_grad_(False)

    def save(self, path: Path, small: bool = True) -> None:
        """Write everything that ``from_checkpoint`` needs into one file; ``small`` keeps about a byte per weight."""
        tensors = with_prefix("autoencoder", self.autoencoder.state_dict()) | with_prefix("dit", self.dit.state_dict())
        info = {
            "kind": KIND,
            "autoencoder": asdict(self.autoencoder.config),
            "dit": asdict(self.dit.config),
            "world": asdict(self.world),
            "words": list(VOCABULARY),
            "about": self.info,
        }
        save_checkpoint(path, pack(tensors) if small else tensors, info)

    def caption(self, prompt: str, seed: int = 0, expand: bool = True) -> str:
        """The text that the model reads for a prompt.

        Args:
            prompt: what a person types: "a 3 moving left", "7 going up slowly from the centre".
            seed: decides what the prompt leaves open.
            expand: complete the prompt to a full description first, as GPT does with Sora's short prompts. Otherwise
                the model reads the prompt as it is.
        Raises: ValueError for words that nobody taught, or scenes outside the checkpoint's world.
        """
        stated = parse(prompt)
        self.world.check(stated)
        if not expand:
            unknown = [word for word in self.tokenizer.tokens(prompt) if word == "<unk>"]
            if unknown:
                raise ValueError(f"{prompt!r} has {len(unknown)} words outside the vocabulary; use expand=True")
            return first_sentence(prompt)
        scene = self.world.complete(stated, seeded(seed, 1))
        return first_sentence(describe(scene))

    @torch.no_grad()
    def generate(
        self,
        prompt: str | Sequence[str],
        seed: int = 0,
        *,
        frames: int | None = None,
        guidance: float = 3.0,
        steps: int = 10,
        expand: bool = True,
        progress: bool = False,
    ) -> Video:
        """Make a video from text.

        Args:
            prompt: one text, or a list of them for a batch.
            seed: equal seeds give equal videos on the same machine.
            frames: how many of the clip's frames to return; by default what the prompt says, else all.
            guidance: 1 follows the caption as learned, more exaggerates it; above about 4 pictures break.
            steps: of the sampler.
            expand: see ``caption``.
            progress: show a progress line.
        Returns: (c, frames, h, w) for one text, (b, c, frames, h, w) for a list, in [-1, 1].
        Raises: ValueError for a prompt that the checkpoint cannot do, frames out of range, or steps < 1.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        captions = [self.caption(text, seed + i, expand) for i, text in enumerate(prompts)]
        asked = max((parse(text).frames or 0 for text in prompts), default=0)
        frames = (asked or self.world.frames) if frames is None else frames
        if not 1 <= frames <= self.world.frames:
            raise ValueError(f"frames={frames}; this checkpoint makes 1 to {self.world.frames} frames")
        moments: Iterator[Preview] = self.generate_steps(captions, seed, guidance=guidance, steps=steps)
        if progress:
            from course_lib.viz import progress as bar

            moments = iter(bar(moments, steps, label="sampling"))
        for moment in moments:
            latents = moment.latents
        video = self.decode(latents)[:, :, :frames].cpu()
        return Video.wrap(video[0] if isinstance(prompt, str) else video, prompts, captions, seed)

    @torch.no_grad()
    def generate_steps(
        self, captions: Sequence[str], seed: int = 0, *, guidance: float = 3.0, steps: int = 10
    ) -> Iterator[Preview]:
        """Sample latents for captions that the model reads as they are, yielding after every step."""
        words = self.tokenizer.encode([first_sentence(caption) for caption in captions])
        c, (f, h, w) = self.dit.config.latent_channels, self.dit.config.latent_size
        # One generator per clip: a clip's noise does not depend on the others in its batch.
        noise = torch.stack([torch.randn(c, f, h, w, generator=seeded(seed + i, 0)) for i in range(len(captions))])
        yield from self._steps(noise, words, guidance, steps)

    def _steps(self, noise: Tensor, words: Int[Tensor, "b words"], guidance: float, steps: int) -> Iterator[Preview]:
        device = next(self.parameters()).device
        words = words.to(device)
        both = torch.cat([words, torch.zeros_like(words)])  # the caption, and nothing asked

        def velocity(xt: Tensor, t: float) -> Tensor:
            time = torch.full((len(xt),), t, device=xt.device)
            if guidance == 1:
                return self.dit(xt, time, words)
            cond, uncond = self.dit(torch.cat([xt, xt]), torch.cat([time, time]), both).chunk(2)
            return guide(cond, uncond, guidance)

        shift = float(self.info.get("shift", 1.0))
        for state in sample_steps(velocity, noise.to(device), steps=steps, shift=shift):
            yield Preview(state.step, steps, state.xt, state.x0)

    @torch.no_grad()
    def sample(
        self,
        words: Int[Tensor, "b words"],
        generator: torch.Generator,
        *,
        guidance: float = 3.0,
        steps: int = 10,
        batch: int = 32,
    ) -> Float[Tensor, "b c f h w"]:
        """Videos for captions given as token ids, in batches: what evaluation uses."""
        videos = []
        for part in words.split(batch):
            shape = (len(part), self.dit.config.latent_channels, *self.dit.config.latent_size)
            latents = noise = torch.randn(shape, generator=generator)
            for moment in self._steps(noise, part, guidance, steps):
                latents = moment.latents
            videos.append(self.decode(latents).cpu())
        return torch.cat(videos)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b z f h w"]) -> Float[Tensor, "b c f height width"]:
        """Latents to pixels in [-1, 1]."""
        return self.autoencoder.decompress(latents)
