"""Train the video tokenizer that comes with the course:

python -m course_lib.training.train_tokenizer --digits both --seed 0
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from course_lib.data.digits import Digits, load_digits
from course_lib.data.moving_mnist import render_scenes, sample_scenes, seeded
from course_lib.evaluation.judge import load_judge
from course_lib.models.video_tokenizer import TokenizerConfig, VideoTokenizer, tokenizer_loss
from course_lib.paths import checkpoints_dir
from course_lib.training.ema import EMA
from course_lib.training.loop import Step, muon_and_adamw, train, warm_flat_decay

SHAPES = (  # (share, clips, frames, height, width): as many latents in every batch, about
    (0.6, 12, 17, 48, 48),
    (0.2, 6, 17, 64, 64),
    (0.1, 20, 9, 48, 48),
    (0.1, 48, 1, 48, 48),
)
INK, KL, SHAKE = 5.0, 1e-3, 0.1


def training_clips(digits: list[Digits], random: torch.Generator) -> Tensor:
    """Fresh colour clips of one or two digits, of one of ``SHAPES``; half of them with each kind of digits."""
    shares = torch.tensor([share for share, *_ in SHAPES])
    _, clips, frames, height, width = SHAPES[int(torch.multinomial(shares, 1, generator=random))]
    video = []
    for kind in digits:
        scenes = sample_scenes(
            clips // len(digits), random, movers=(1, 2), frames=frames, height=height, width=width, colour=True
        )
        video.append(render_scenes(scenes, kind, random, channels=3))
    return torch.cat(video)


def train_tokenizer(
    model: VideoTokenizer, digits: list[Digits], *, steps: int, seed: int = 0, ema: EMA | None = None, flat: float = 0.3
) -> Iterator[Step]:
    """Train on fresh clips in bfloat16, yielding after every step; after a share ``flat`` the learning rate falls."""

    def loss_of_step(step: int) -> Tensor:
        random = seeded(seed, step)
        return tokenizer_loss(model, training_clips(digits, random), random, ink=INK, kl=KL, shake=SHAKE)

    inner = [model.encoder[2:-1], model.decoder[:-2]]
    optimizers = muon_and_adamw(model, inner, muon_lr=0.01, adamw_lr=1e-3)
    schedule = lambda step, steps: warm_flat_decay(step, steps, flat=flat)  # noqa: E731
    yield from train(loss_of_step, model, optimizers, steps=steps, schedule=schedule, ema=ema, autocast=torch.bfloat16)
    model.eval()


@torch.no_grad()
def raw_latents(model: VideoTokenizer, digits: list[Digits], seed: int = 2) -> Tensor:
    """Raw latents (n, z, f, h, w) of 128 clips."""
    random = seeded(seed, 0)
    scenes = [sample_scenes(64, random, movers=(1, 2), frames=17, height=48, width=48, colour=True) for _ in digits]
    video = torch.cat([render_scenes(s, d, random, channels=3) for s, d in zip(scenes, digits, strict=True)])
    return torch.cat([model.posterior(part)[0] for part in video.split(16)])


def fit(model: VideoTokenizer, digits: list[Digits]) -> None:
    """Measure mean and spread of the latents, and keep them for whitening."""
    latents = raw_latents(model, digits)
    model.fit_whitening(latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4)))


@torch.no_grad()
def drop_loudest(model: VideoTokenizer, digits: list[Digits]) -> float:
    """Silence the direction of the latents, a mixture of channels, in which they vary most; in place.

    Returns: the share of all variance that lay there. If it is near 1, most of what a generator would learn to make is
    one pattern, whether the decoder looks at it or not.
    """
    vectors = raw_latents(model, digits).movedim(1, -1).flatten(0, -2)
    values, directions = torch.linalg.eigh(torch.cov(vectors.T))
    u, last, z = directions[:, -1], model.encoder[-1], len(values)
    last.weight[:z] -= torch.einsum("i,j,j...->i...", u, u, last.weight[:z])
    last.bias[:z] -= u * (u @ (last.bias[:z] - vectors.mean(dim=0)))
    return (values[-1] / values.sum()).item()


@torch.no_grad()
def measure_tokenizer(model: VideoTokenizer, digits: Digits, n: int = 100, seed: int = 1, edge: int = 64) -> dict:
    """PSNR (peak 2) and how often the judge reads the same digit, on held-out grey clips of one digit."""
    random = seeded(seed, 0)
    scenes = sample_scenes(n, random, frames=17, height=edge, width=edge)
    video = render_scenes(scenes, digits, random)
    began = time.perf_counter()
    latents = torch.cat([model.compress(part) for part in video.split(20)])
    encoded = time.perf_counter()
    back = torch.cat([model.decompress(part) for part in latents.split(20)]).mean(dim=1, keepdim=True)
    decoded = time.perf_counter()
    mse = (back - video).square().mean(dim=(1, 2, 3, 4))
    judge = load_judge()
    before, after = (judge.read_frames(clips).argmax(dim=-1) for clips in (video, back))
    return {
        "psnr": (10 * torch.log10(4 / mse)).mean().item(),
        "psnr of the mean error": (10 * torch.log10(4 / mse.mean())).item(),
        "frames read as before": (before == after).double().mean().item(),
        "frames read rightly": (after == scenes.digit).double().mean().item(),
        "frames read rightly, real": (before == scenes.digit).double().mean().item(),
        "clips encoded per second": n / (encoded - began),
        "clips decoded per second": n / (decoded - encoded),
    }


def main(arguments: list[str] | None = None) -> int:
    """Train a video tokenizer, measure it, and write it as a checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m course_lib.training.train_tokenizer", description=main.__doc__)
    parser.add_argument("--digits", default="auto", help="auto, embedded, mnist or both")
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="go on from these weights, with a learning rate that falls at once")
    parser.add_argument("--drop-loudest", action="store_true", help="first silence the direction that varies most")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="change values of TokenizerConfig")
    parser.add_argument("--out", type=Path, default=checkpoints_dir() / "video_tokenizer.safetensors")
    options = parser.parse_args(arguments)
    kinds = ("embedded", "mnist") if options.digits == "both" else (options.digits,)
    try:
        digits = [load_digits(kind, "train") for kind in kinds]
        held_out = load_digits(kinds[-1], "heldout")
        config = replace(TokenizerConfig(), **{k: json.loads(v) for k, v in (t.split("=", 1) for t in options.set)})
    except (ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    torch.manual_seed(options.seed)
    model = VideoTokenizer(config)
    if options.start:
        model = VideoTokenizer.from_checkpoint(options.start).train().requires_grad_(True)
    if options.drop_loudest:
        print(f"silenced the direction with {drop_loudest(model, digits):.1%} of the latents' variance", flush=True)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M weights", flush=True)
    ema = EMA(model, 0.995)
    about = {"steps": options.steps, "seed": options.seed, "digits": list(kinds)}
    began, window = time.perf_counter(), []

    def finish(more: dict, n: int) -> dict:
        with ema.applied():
            fit(model, digits)
            figures = measure_tokenizer(model, held_out, n)
            minutes = (time.perf_counter() - began) / 60
            model.save(options.out, about | more | {"minutes": minutes, "figures": figures})
        return figures | {"minutes": minutes}

    for step in train_tokenizer(
        model, digits, steps=options.steps, seed=options.seed, ema=ema, flat=0.0 if options.start else 0.3
    ):
        window.append(step.loss)
        if step.step % 50 == 0:
            minutes = (time.perf_counter() - began) / 60
            print(f"step {step.step}: loss {sum(window) / len(window):.4f}, {minutes:.1f} min", flush=True)
            window = []
        if step.step % 500 == 0:
            print(json.dumps(finish({"so far": step.step}, 20)), flush=True)
    print(json.dumps(finish({}, 200), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
