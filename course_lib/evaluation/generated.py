"""How well generated videos do what they were asked for, with real clips and the tokenizer alone beside them.

One digit is measured as in ``evaluation/metrics.py``. Two digits are told apart by their colours first: every pixel
goes to the mover whose tint it is nearer to, and each mover is then measured alone. Where they overlap this errs, for
real clips as well: their column is the ceiling.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from course_lib.data.captions import describe
from course_lib.data.digits import Digits
from course_lib.data.moving_mnist import RGB, render_scenes, seeded
from course_lib.data.sampling import NAMES, SceneBatch, sample_scenes
from course_lib.evaluation.frechet import Frechet
from course_lib.evaluation.metrics import measure
from course_lib.video_generator import first_sentence

Generate = Callable[[list[str], torch.Generator], Float[Tensor, "n c f h w"]]  # prompts to videos of equal size


def one_mover(scenes: SceneBatch, slot: int) -> SceneBatch:
    """The scenes with only one of their movers."""
    only = {name: getattr(scenes, name)[:, slot : slot + 1] for name in ("digit", *NAMES)}
    return SceneBatch(**only, frames=scenes.frames, height=scenes.height, width=scenes.width)


def apart(video: Float[Tensor, "n 3 f h w"], scenes: SceneBatch) -> list[Float[Tensor, "n 1 f h w"]]:
    """One grey video per mover, in [-1, 1]: each pixel belongs to the mover whose colour it resembles most.

    Args:
        video: in [-1, 1], colour.
        scenes: with as many movers in every scene, of different colours within a scene.
    """
    light = (video + 1) / 2
    tints = RGB[scenes.colour].to(light) / 255  # (n, k, 3)
    tints = tints / tints.norm(dim=-1, keepdim=True)
    nearest = torch.einsum("ncfhw,nkc->nkfhw", light, tints).argmax(dim=1)
    grey = light.amax(dim=1)
    return [2 * torch.where(nearest == k, grey, 0.0)[:, None] - 1 for k in range(tints.shape[1])]


def colour_as_asked(video: Float[Tensor, "n 3 f h w"], scenes: SceneBatch) -> Float[Tensor, " n"]:
    """1 where the mean colour of what shines is nearest to the asked one, for scenes of one mover."""
    light = (video + 1) / 2
    shines = (light.amax(dim=1, keepdim=True) > 0.5).float()
    mean = (light * shines).sum(dim=(2, 3, 4))
    tints = RGB.to(light) / 255
    alike = torch.cosine_similarity(mean[:, None], tints[None], dim=-1)
    return (alike.argmax(dim=-1) == scenes.colour[:, 0]).float()


def ask(n: int, movers: int, seed: int, world: dict) -> SceneBatch:
    """Scenes to ask for: every digit equally often, and two movers differ in colour and in digit."""
    scenes = sample_scenes(n, seeded(seed, movers), movers=(movers, movers), colour=True, **world)
    scenes.digit[:, 0] = torch.arange(n) % 10
    if movers == 2:
        other = torch.randint(1, 10, (n,), generator=seeded(seed, 7))
        scenes.digit[:, 1] = (scenes.digit[:, 0] + other) % 10
        shade = torch.randint(1, len(RGB), (n,), generator=seeded(seed, 8))
        scenes.colour[:, 1] = (scenes.colour[:, 0] + shade) % len(RGB)
    return scenes


def prompts(scenes: SceneBatch) -> list[str]:
    """Full captions, without their sentence about the canvas."""
    return [first_sentence(describe(scene, "descriptive")) for scene in scenes]


def figures(video: Float[Tensor, "n 3 f h w"], scenes: SceneBatch) -> dict[str, float | None]:
    """Everything that ``measure`` says, and the colour; with several movers a clip counts if all of them are right."""
    if scenes.digit.shape[1] == 1:
        return measure(video, scenes).summary() | {"colour": colour_as_asked(video, scenes).mean().item()}
    each = [measure(v, one_mover(scenes, k)) for k, v in enumerate(apart(video, scenes))]
    whole = {name: torch.stack([getattr(m, name) for m in each]) for name in ("digit", "identity", "direction")}
    found = {name: values.nan_to_num(1.0).amin(dim=0).mean().item() for name, values in whole.items()}
    return found | {"residual": torch.stack([m.residual for m in each]).mean().item()}


def evaluate(
    generate: Generate,
    rebuild: Callable[[Tensor], Tensor],
    digits: Sequence[Digits],
    *,
    n: int,
    world: dict,
    movers: int = 1,
    seed: int = 5,
) -> dict[str, dict[str, float | None]]:
    """One column of figures each for generated, rebuilt and real clips.

    Args:
        generate: prompts to videos. rebuild: real videos through the tokenizer and back.
        digits: held-out handwriting; real clips use each kind for an equal share.
        world: ``frames``, ``height``, ``width`` and what else ``sample_scenes`` takes.
    """
    scenes = ask(n, movers, seed, world)
    real = draw(scenes, digits, seeded(seed, 9))
    columns = {"generated": generate(prompts(scenes), seeded(seed, 10)), "tokenizer": rebuild(real), "real": real}
    found = {name: figures(video, scenes) for name, video in columns.items()}
    if movers == 1:
        others = draw(ask(max(n, 512), 1, seed + 1, world), digits, seeded(seed, 11))
        distance = Frechet(others[:, :, others.shape[2] // 2])
        for name, video in columns.items():
            found[name]["frechet"] = distance(video[:, :, video.shape[2] // 2])
    return found


def draw(scenes: SceneBatch, digits: Sequence[Digits], generator: torch.Generator) -> Float[Tensor, "n 3 f h w"]:
    """Colour clips of the scenes, in equal shares of each kind of digits."""
    share = torch.arange(len(scenes)) * len(digits) // len(scenes)
    parts = [
        render_scenes(scenes[(share == k).nonzero()[:, 0]], kind, generator, channels=3)
        for k, kind in enumerate(digits)
    ]
    return torch.cat(parts)
