"""Everything that a small Sora can be asked for: one network, and a different choice of what is known.

    text -> video · text -> image · image -> video · extend · extend backwards · connect two videos · loop · edit

Each task below prepares latents and marks the frames that are known; ``_make`` does the rest, and is the only place
that samples. Videos are (c, f, h, w) in [-1, 1], of any number of frames, with height and width in multiples of 16.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from course_lib.diffusion.known_frames import State, guided, mix, sample_known
from course_lib.models.sora import Sora, Text, TextReader
from course_lib.models.video_tokenizer import GROUP as GROUPED
from course_lib.models.video_tokenizer import VideoTokenizer

GROUP = GROUPED[0]  # frames behind each latent frame but the first
Video = Float[Tensor, "_ _ _ _"]  # (c, f, height, width)
Watch = Callable[[State], None]


class Settings(NamedTuple):
    """How to sample: strength of guidance, steps, shift of their times, Euler or Heun."""

    guidance: float = 3.0
    steps: int = 12
    shift: float = 2.5
    method: str = "euler"


class SoraPipeline:
    """A network with its tokenizer and its reader of captions.

    Args:
        model: a ``Sora``, or what is called like one. tokenizer: a ``VideoTokenizer``. reader: a ``TextReader``.
        settings: used where a task is given no others.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: nn.Module,
        reader: Callable[[Sequence[str]], Text] | None = None,
        settings: Settings | None = None,
    ):
        self.model, self.tokenizer = model.eval(), tokenizer.eval()
        self.reader, self.settings = reader or TextReader(), settings or Settings()

    @classmethod
    def from_checkpoint(cls, path: Path | str | None = None) -> "SoraPipeline":
        """A generator that was saved (see ``Sora.from_checkpoint``), with its own settings for sampling."""
        model = Sora.from_checkpoint(path)
        how = model.about.get("settings", {})
        given = {"guidance": "guidance", "steps": "sample_steps", "shift": "shift"}
        settings = Settings(**{name: how[key] for name, key in given.items() if key in how})
        return cls(model, VideoTokenizer.from_checkpoint(), settings=settings)

    # ------------------------------------------------------------------------------------------------------- from text

    def videos(
        self,
        prompts: Sequence[str],
        frames: int | Sequence[int] = 17,
        size: tuple[int, int] | Sequence[tuple[int, int]] = (48, 48),
        **rest,
    ) -> list[Video]:
        """One video per prompt, all of one length and size or each of its own; packed, they are sampled together.

        Args:
            frames: 1 makes a picture. Other numbers are rounded up to 1 + 4 k for sampling, and cut.
            size: (height, width).
            rest: ``settings``, ``generator``, ``watch`` (called with every ``State``).
        """
        lengths = [frames] * len(prompts) if isinstance(frames, int) else list(frames)
        sizes = [size] * len(prompts) if isinstance(size[0], int) else list(size)
        blank = [self._blank(n, *s) for n, s in zip(lengths, sizes, strict=True)]
        made = self._make(list(prompts), blank, **rest)
        return [video[:, :n] for video, n in zip(made, lengths, strict=True)]

    def images(self, prompts: Sequence[str], size: tuple[int, int] = (48, 48), **rest) -> list[Video]:
        """One picture per prompt: a video of one frame."""
        return self.videos(prompts, 1, size, **rest)

    # -------------------------------------------------------------------------------------------- from images and video

    def animate(self, image: Video, prompt: str, frames: int = 17, **rest) -> Video:
        """A video that begins with the picture (c, 1, h, w)."""
        return self.extend(image, prompt, frames - 1, **rest)

    def extend(self, video: Video, prompt: str, frames: int, context: int = 9, **rest) -> Video:
        """The video, and ``frames`` more at its end. The last ``context`` frames, or fewer, are what it goes by."""
        n = video.shape[1]
        keep = 1 + (min(context, n) - 1) // GROUP * GROUP
        past = self._encode(video[:, n - keep :])
        z = self._blank(keep + frames, *video.shape[2:])
        z[:, : past.shape[1]] = past
        known = torch.arange(z.shape[1]) < past.shape[1]
        made = self._make([prompt], [z], [known], **rest)[0]
        return torch.cat([video, made[:, keep : keep + frames]], dim=1)

    def extend_backwards(self, video: Video, prompt: str, frames: int, context: int = 8, **rest) -> Video:
        """``frames`` more before the beginning of the video, which follows unchanged."""
        later = video[:, : min(context, video.shape[1])]
        z, known = self._at_the_end(later, frames)
        made = self._make([prompt], [z], [known], **rest)[0]
        return torch.cat([made[:, made.shape[1] - later.shape[1] - frames : -later.shape[1]], video], dim=1)

    def connect(self, first: Video, second: Video, prompt: str, frames: int, context: int = 8, **rest) -> Video:
        """The first video, ``frames`` that lead from it to the second, and the second.

        Raises: ValueError if the videos differ in channels, height or width.
        """
        if first.shape[0] != second.shape[0] or first.shape[2:] != second.shape[2:]:
            raise ValueError(f"videos of {tuple(first.shape)} and {tuple(second.shape)} cannot be joined; resize one")
        keep = 1 + (min(context + 1, first.shape[1]) - 1) // GROUP * GROUP
        past, later = self._encode(first[:, first.shape[1] - keep :]), second[:, : min(context, second.shape[1])]
        z, known = self._at_the_end(later, keep + frames)
        z[:, : past.shape[1]], known[: past.shape[1]] = past, True
        made = self._make([prompt], [z], [known], **rest)[0]
        return torch.cat([first, made[:, keep : keep + frames], second], dim=1)

    def loop(self, video: Video, prompt: str, frames: int, **rest) -> Video:
        """The video, and ``frames`` that lead from its end back to its beginning, so that it can play in a circle."""
        return self.connect(video, video, prompt, frames, **rest)[:, : video.shape[1] + frames]

    def edit(self, video: Video, prompt: str, strength: float = 0.6, **rest) -> Video:
        """The video as the prompt would have it. 0 leaves it alone; 1 keeps nothing of it (SDEdit).

        Raises: ValueError if strength is not from 0 to 1.
        """
        if not 0 <= strength <= 1:
            raise ValueError(
                f"strength={strength} must lie between 0, which changes nothing, and 1, which keeps nothing"
            )
        if strength == 0:
            return video.clone()
        n = video.shape[1]
        padded = torch.cat([video, video[:, -1:].expand(-1, -(n - 1) % GROUP, -1, -1)], dim=1)
        return self._make([prompt], [self._encode(padded)], begin=strength, **rest)[0][:, :n]

    # --------------------------------------------------------------------------------------------------------- the work

    @torch.no_grad()
    def _make(
        self,
        prompts: Sequence[str],
        values: list[Tensor],
        known: list[Bool[Tensor, " _"]] | None = None,
        *,
        begin: float = 1.0,
        settings: Settings | None = None,
        generator: torch.Generator | None = None,
        watch: Watch | None = None,
    ) -> list[Video]:
        """Sample latents like ``values``, whose known frames stay, and decode them."""
        how = settings or self.settings
        eps = [torch.randn(v.shape, generator=generator) for v in values]
        start = [
            mix(v, e, torch.full((v.shape[1],), begin)) if begin < 1 else e for v, e in zip(values, eps, strict=True)
        ]
        told, untold = (self._asks(self.reader(texts)) for texts in (prompts, [""] * len(prompts)))
        model = guided(told, untold, how.guidance)
        states = sample_known(
            model, start, known, values, steps=how.steps, shift=how.shift, method=how.method, begin=begin
        )
        for state in states:
            if watch is not None:
                watch(state)
        return self.decode(state.xt)

    def _asks(self, text: Text) -> Callable[[list[Tensor], list[Tensor]], list[Tensor]]:
        return lambda latents, times: self.model(latents, times, text)

    @torch.no_grad()
    def decode(self, latents: Sequence[Tensor]) -> list[Video]:
        """Latents to videos; those of one size are decoded together."""
        videos: list[Tensor] = [torch.empty(0)] * len(latents)
        for shape in {z.shape for z in latents}:
            same = [i for i, z in enumerate(latents) if z.shape == shape]
            for i, video in zip(same, self.tokenizer.decompress(torch.stack([latents[i] for i in same])), strict=True):
                videos[i] = video
        return videos

    @torch.no_grad()
    def _encode(self, video: Video) -> Float[Tensor, "_ _ _ _"]:
        return self.tokenizer.compress(video[None])[0]

    def _blank(self, frames: int, height: int, width: int) -> Float[Tensor, "_ _ _ _"]:
        """Zero latents of the right size.

        Raises: ValueError for no frames, or a height or width that is no multiple of what one patch covers.
        """
        edge = 8 * self.model.config.patch[1]
        if frames < 1 or height < edge or width < edge or height % edge or width % edge:
            raise ValueError(
                f"{frames} frames of {height} x {width} pixels: ask for one frame or more, with height and width in "
                f"multiples of {edge}"
            )
        groups = 1 + -(-(frames - 1) // GROUP)
        return torch.zeros(self.model.config.latent_channels, groups, height // 8, width // 8)

    def _at_the_end(self, later: Video, before: int) -> tuple[Tensor, Tensor]:
        """Latents that end with those of ``later``, with room for ``before`` frames in front, and which are known.

        A latent frame stands for four frames, and only those that lie wholly inside ``later`` are known. The encoder is
        causal: it must see something in front, and sees the first frame standing still.
        """
        n = later.shape[1]
        total = 1 + -(-(before + n - 1) // GROUP) * GROUP
        z = self._encode(torch.cat([later[:, :1].expand(-1, total - n, -1, -1), later], dim=1))
        begins = torch.arange(z.shape[1]) * GROUP - (GROUP - 1)  # the first frame behind each latent frame
        begins[0] = 0
        return z, begins >= total - n
