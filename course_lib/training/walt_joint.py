"""Can a video model move a digit that it knows only from pictures? Small W.A.L.T models with and without pictures:

    python -m course_lib.training.walt_joint --seeds 3

Grey clips of 9 frames, 32 x 32, in which one small digit crosses the canvas, and their latents. Clips for training show
0 to 6 only; pictures show every digit. The result is the table ``data/experiments/walt_joint.json``.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from course_lib.data.digits import Digits, load_digits
from course_lib.data.moving_mnist import SceneBatch, render_scenes, sample_scenes, seeded
from course_lib.data.sampling import NAMES
from course_lib.diffusion.flow import add_noise, guide, sample, sample_times, velocity
from course_lib.evaluation.judge import load_judge
from course_lib.evaluation.tracking import centroids
from course_lib.models.video_tokenizer import VideoTokenizer
from course_lib.models.walt import Walt, WaltConfig
from course_lib.paths import repo_root, write_atomically
from course_lib.training.loop import Step, muon_and_adamw, train

FRAMES, EDGE = 9, 32
MOVING, STILL_ONLY = tuple(range(7)), (7, 8, 9)  # digits that training shows in motion; and those that it does not
CROSSINGS = {  # direction -> the cells where it starts, so that nothing meets a wall within 8 steps of one pixel
    "right": ("top-left", "middle-left", "bottom-left"),
    "left": ("top-right", "middle-right", "bottom-right"),
    "down": ("top-left", "top-middle", "top-right"),
    "up": ("bottom-left", "bottom-middle", "bottom-right"),
}
ARMS = {  # name -> (share of rows that are stacks of pictures, digits in clips)
    "clips of 0 to 6": (0.0, MOVING),
    "and pictures of all": (0.5, MOVING),
    "clips of all": (0.0, MOVING + STILL_ONLY),
}
CONFIG = WaltConfig(1 + 10 + len(CROSSINGS), grid=(3, 4, 4), box=(2, 2), d=96, depth=4, heads=4, mlp_ratio=3)
CACHED, BATCH, SHIFT, DROP = 4000, 64, 1.5, 0.1


@dataclass(frozen=True, eq=False)
class Latents:
    """Clips, or pictures (f = 1), as the tokenizer sees them, with what they show.

    latents: (n, 16, f, 4, 4). digit: (n,). direction: (n,) position in ``CROSSINGS``.
    """

    latents: Float[Tensor, "n z f h w"]
    digit: Int[Tensor, " n"]
    direction: Int[Tensor, " n"]


def crossing_scenes(n: int, random: torch.Generator, labels: tuple[int, ...]) -> SceneBatch:
    """Scenes of one small digit that crosses the canvas; n is split evenly among the four directions."""
    parts = [
        sample_scenes(
            n // len(CROSSINGS), random, frames=FRAMES, height=EDGE, width=EDGE, labels=labels, sizes=("small",),
            starts=starts, directions=(direction,), speeds=("slow",),
        )
        for direction, starts in CROSSINGS.items()
    ]  # fmt: skip
    return SceneBatch.concatenate(parts)


def asked_direction(scenes: SceneBatch) -> Int[Tensor, " n"]:
    """Positions in ``CROSSINGS``."""
    place = {NAMES["direction"].index(name): i for i, name in enumerate(CROSSINGS)}
    return torch.tensor([place[d] for d in scenes.direction[:, 0].tolist()])


@torch.no_grad()
def clips(tokenizer: VideoTokenizer, digits: Digits, n: int, seed: int, labels: tuple[int, ...]) -> Latents:
    """Latents of n clips that cross the canvas."""
    random = seeded(seed, 0)
    scenes = crossing_scenes(n, random, labels)
    video = render_scenes(scenes, digits, random)
    latents = torch.cat([tokenizer.compress(part) for part in video.split(100)])
    return Latents(latents, scenes.digit[:, 0], asked_direction(scenes))


@torch.no_grad()
def pictures(tokenizer: VideoTokenizer, digits: Digits, n: int, seed: int) -> Latents:
    """Latents of n pictures of a digit, anywhere on the canvas, sorted by digit; n is a multiple of 10."""
    random, found = seeded(seed, 1), []
    for label in range(10):
        scenes = sample_scenes(n // 10, random, frames=1, height=EDGE, width=EDGE, labels=(label,), sizes=("small",))
        video = render_scenes(scenes, digits, random)
        found.append(torch.cat([tokenizer.compress(part) for part in video.split(400)]))
    digit = torch.arange(10).repeat_interleave(n // 10)
    return Latents(torch.cat(found), digit, torch.zeros(n, dtype=torch.long))


def caption(digit: Int[Tensor, " n"], direction: Int[Tensor, " n"] | None = None) -> Int[Tensor, "n 2"]:
    """Two words, digit and direction; without a direction the second is padding, as for a picture."""
    second = torch.zeros_like(digit) if direction is None else 11 + direction
    return torch.stack([1 + digit, second], dim=1)


def draw_batch(
    moving: Latents, stills: Latents, share: float, random: torch.Generator, batch: int = BATCH
) -> tuple[Float[Tensor, "b z f h w"], Int[Tensor, "b 2"], Bool[Tensor, " b"]]:
    """Rows of clips, then rows that are stacks of pictures of one digit: ``(latents, captions, is_image)``."""
    stacks = round(share * batch)
    f = moving.latents.shape[2]
    row = torch.randint(len(moving.digit), (batch - stacks,), generator=random)
    of_digit = len(stills.digit) // 10
    digit = torch.randint(10, (stacks,), generator=random)
    each = of_digit * digit[:, None] + torch.randint(of_digit, (stacks, f), generator=random)
    stack = stills.latents[each][:, :, :, 0].transpose(1, 2)  # (stacks, z, f, h, w)
    words = torch.cat([caption(moving.digit[row], moving.direction[row]), caption(digit)])
    return torch.cat([moving.latents[row], stack]), words, torch.arange(batch) >= batch - stacks


def fit(
    model: Walt, moving: Latents, stills: Latents, share: float, *, steps: int, seed: int, masked: bool = True
) -> Iterator[Step]:
    """Train, yielding after every step. No second look: it would cost a half more, alike for all.

    ``masked=False`` is a slip to look at: stacks of pictures are taken for clips.
    """

    def loss_of_step(step: int) -> Tensor:
        random = seeded(seed, step)
        x0, words, is_image = draw_batch(moving, stills, share, random)
        t, eps = sample_times(len(x0), random, shift=SHIFT), torch.randn(x0.shape, generator=random)
        words = words * (torch.rand(len(words), 1, generator=random) >= DROP)
        predicted = model(add_noise(x0, t, eps), t, words, is_image=is_image if share and masked else None)
        return (predicted - velocity(x0, eps)).square().mean()

    return train(loss_of_step, model, muon_and_adamw(model, [model.blocks]), steps=steps)


@torch.no_grad()
def held_out_loss(model: Walt, real: Latents, seed: int = 0, words: Tensor | None = None) -> Float[Tensor, " n"]:
    """Squared error of the velocity per clip, averaged over four noise levels; equal noise for every model."""
    random, losses = seeded(seed, 7), []
    words = caption(real.digit, real.direction) if words is None else words
    for t in (0.3, 0.5, 0.7, 0.9):
        eps = torch.randn(real.latents.shape, generator=random)
        times = torch.full((len(eps),), t)
        predicted = torch.cat(
            [model(*part) for part in zip(*(x.split(200) for x in (add_noise(real.latents, times, eps), times, words)),
                                          strict=True)]
        )  # fmt: skip
        losses.append((predicted - velocity(real.latents, eps)).square().mean(dim=(1, 2, 3, 4)))
    return torch.stack(losses).mean(0)


@torch.no_grad()
def paint(
    model: Walt, tokenizer: VideoTokenizer, words: Int[Tensor, "n 2"], *, seed: int, steps: int = 20, w: float = 2.0
) -> Float[Tensor, "n 1 frames height width"]:
    """Clips for the captions."""
    noise = torch.randn(len(words), CONFIG.latent_channels, *CONFIG.grid, generator=seeded(seed, 8))

    def ask(xt: Tensor, t: float) -> Tensor:
        both = model(torch.cat([xt, xt]), torch.full((2 * len(xt),), t), torch.cat([words, torch.zeros_like(words)]))
        return guide(*both.chunk(2), w)

    latents = sample(ask, noise, steps=steps, shift=SHIFT)
    video = torch.cat([tokenizer.decompress(part) for part in latents.split(100)])
    return video.mean(dim=1, keepdim=True)


def scores(video: Float[Tensor, "n 1 frames h w"], words: Int[Tensor, "n 2"]) -> dict[str, Tensor]:
    """Per clip: is it read as asked, does the last frame still read so, does it move as asked, and both?

    To move as asked is to go the asked way, of the four, by at least half of the asked 8 pixels.
    """
    digit, direction = words[:, 0] - 1, words[:, 1] - 11
    frames = load_judge().read_frames(video)
    centre = centroids(video)
    went = centre[:, -1] - centre[:, 0]  # (n, 2): down, right
    ways = torch.tensor([(0.0, 1.0), (0.0, -1.0), (1.0, 0.0), (-1.0, 0.0)])  # in the order of CROSSINGS
    along = went @ ways.T
    moves = (along.argmax(1) == direction) & (along.amax(1) >= (FRAMES - 1) / 2)
    read = frames.mean(1).argmax(-1) == digit
    last = frames[:, -1].argmax(-1) == digit
    return {"digit": read, "first frame": frames[:, 0].argmax(-1) == digit, "last frame": last, "motion": moves,
            "both": read & moves}  # fmt: skip


def every_wish(labels: tuple[int, ...], each: int) -> Int[Tensor, "n 2"]:
    """``each`` captions for every digit and direction."""
    pairs = torch.cartesian_prod(torch.tensor(labels), torch.arange(len(CROSSINGS))).repeat_interleave(each, dim=0)
    return caption(pairs[:, 0], pairs[:, 1])


def table_path() -> Path:
    """The recorded table."""
    return repo_root() / "data" / "experiments" / "walt_joint.json"


def main(arguments: list[str] | None = None) -> int:
    """Train every arm with every seed, measure, and write the table after each."""
    parser = argparse.ArgumentParser(prog="python -m course_lib.training.walt_joint", description=main.__doc__)
    parser.add_argument("--digits", default="embedded", help="auto, embedded or mnist")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--each", type=int, default=10, help="clips generated for every digit and direction")
    parser.add_argument("--tokenizer", type=Path, default=None, help="by default the one that comes with the course")
    parser.add_argument("--out", type=Path, default=table_path())
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    train_digits, unseen = (load_digits(options.digits, split) for split in ("train", "heldout"))
    tokenizer = VideoTokenizer.from_checkpoint(options.tokenizer)
    groups = {"seen in motion": MOVING, "only in pictures": STILL_ONLY}
    real = {name: clips(tokenizer, unseen, 400, 99, labels) for name, labels in groups.items()}
    table = {
        "command": " ".join(["python -m course_lib.training.walt_joint", *(arguments or sys.argv[1:])]),
        "torch": torch.__version__, "steps": options.steps, "rows": [],
    }  # fmt: skip
    stills = pictures(tokenizer, train_digits, CACHED, 1)
    for name, found in real.items():
        video = torch.cat([tokenizer.decompress(part).mean(1, keepdim=True) for part in found.latents.split(100)])
        ceiling = {k: v.float().mean().item() for k, v in scores(video, caption(found.digit, found.direction)).items()}
        table["rows"].append({"arm": "real clips, coded and decoded", "digits": name, **ceiling})
    for seed in range(options.seeds):
        for arm, (share, labels) in ARMS.items():
            began = time.process_time()
            moving = clips(tokenizer, train_digits, CACHED, 2, labels)
            torch.manual_seed(seed)
            model = Walt(CONFIG)
            for step in fit(model, moving, stills, share, steps=options.steps, seed=seed):
                if step.step % 250 == 0:
                    print(f"{arm}, step {step.step}: {step.loss:.3f}, {step.seconds:.2f} s", flush=True)
            minutes = (time.process_time() - began) / 60
            model.eval()
            for name, asked in groups.items():
                words = every_wish(asked, options.each)
                found = scores(paint(model, tokenizer, words, seed=seed), words)
                row = {"arm": arm, "digits": name, "seed": seed, "clips": len(words), "minutes": round(minutes, 2)}
                row["loss"] = held_out_loss(model, real[name]).mean().item()
                row |= {k: round(v.float().mean().item(), 4) for k, v in found.items()}
                table["rows"].append(row)
                print(json.dumps(row), flush=True)
            write_atomically(options.out, (json.dumps(table, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
