"""The same U-Net in latent space and on pixels, each for the same time:

    python -m course_lib.training.latent_or_pixels

Large coloured digits on 48 x 48 pixels. Both models read the same captions, by the same attention on the same grids of
12 x 12 and 6 x 6; the one on pixels has two levels more to get there, and its pixels are whitened as the latents are.
Each is trained three times: for a quarter of the time, for half of it, and for all of it, on one thread, counted as the
processor's time. The result is the table
``data/experiments/latent_or_pixels.json``.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from course_lib.data.digits import load_digits
from course_lib.data.moving_mnist import seeded
from course_lib.evaluation.frechet import Frechet
from course_lib.models.latent_diffusion import LatentDiffusion, LatentDiffusionConfig, Pixels, still_autoencoder
from course_lib.paths import repo_root, write_atomically
from course_lib.training.train_latent import (
    cache,
    caption,
    draw,
    measure_pictures,
    still_scenes,
    train_for,
)

SIZES = {"d_text": 32, "text_layers": 1, "base": 32}
LATENT = LatentDiffusionConfig(widths=(1, 2), attend=(0, 1), **SIZES)
PIXEL = LatentDiffusionConfig(widths=(1, 1, 1, 2), attend=(2, 3), **SIZES)
WORLD = {"movers": (1, 1), "sizes": ("large",)}
WHITE = {"mean": -0.89, "std": 0.36}  # of the pixels of such pictures
TRAINING, TESTED, REAL = 6000, 200, 2048


def arms(seed: int = 0) -> dict[str, LatentDiffusion]:
    """The two models, new."""
    made = {}
    for name, config, stage in (("latents", LATENT, still_autoencoder()), ("pixels", PIXEL, Pixels(**WHITE))):
        torch.manual_seed(seed)
        made[name] = LatentDiffusion(config, stage)
    return made


def paint(model: LatentDiffusion, prompts: list[str], seed: int, guidance: float = 3.0, steps: int = 12) -> Tensor:
    """Pictures for the prompts, a hundred at a time."""
    random, parts = seeded(seed, 9), range(0, len(prompts), 100)
    return torch.cat([model.generate(prompts[i : i + 100], random, guidance=guidance, steps=steps) for i in parts])


def table_path() -> Path:
    """The recorded table."""
    return repo_root() / "data" / "experiments" / "latent_or_pixels.json"


def main(arguments: list[str] | None = None) -> int:
    """Train both models for each of the times, measure them, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m course_lib.training.latent_or_pixels", description=main.__doc__)
    parser.add_argument("--digits", default="embedded", help="auto, embedded or mnist")
    parser.add_argument("--minutes", type=float, default=8.0, help="of processor time, of the longest training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=table_path())
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seed = options.seed
    digits, unseen = ([load_digits(options.digits, split)] for split in ("train", "heldout"))
    scenes, asked = (still_scenes(n, seeded(seed, i), **WORLD) for i, n in ((1, TRAINING), (2, TESTED)))
    real = draw(asked, unseen, seeded(seed, 3))[:, :, 0]
    distance = Frechet(draw(still_scenes(REAL, seeded(seed, 4), **WORLD), digits, seeded(seed, 5))[:, :, 0])
    table = {
        "command": f"python -m course_lib.training.latent_or_pixels --minutes {options.minutes:g}",
        "seed": seed,
        "digits": options.digits, "pictures": TRAINING, "tested": TESTED, "torch": torch.__version__,
        "real": {"frechet": distance(real), **measure_pictures(real, asked)},
        "rows": [],
    }  # fmt: skip
    for share in (0.25, 0.5, 1.0):
        for name, model in arms(seed).items():
            began = time.process_time()
            stills = cache(model.first_stage, digits, scenes, seed)
            seconds = 60 * options.minutes * share
            cached = time.process_time() - began  # the pictures are encoded once; that is part of its time
            taken = list(train_for(seconds - cached, model, stills, seed=seed, clock=time.process_time))
            trained = time.process_time()
            pictures = paint(model, [caption(scene) for scene in asked], seed)
            row = {"model": name, "minutes": seconds / 60, "steps": len(taken), "weights": weights(model)}
            row |= {"frechet": distance(pictures), **measure_pictures(pictures, asked)}
            row |= {"milliseconds per picture": 1000 * (time.process_time() - trained) / TESTED}
            table["rows"].append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
            print(json.dumps(table["rows"][-1]), flush=True)
    write_atomically(options.out, (json.dumps(table, indent=1) + "\n").encode())
    print(f"wrote {options.out}")
    return 0


def weights(model: LatentDiffusion) -> int:
    """How many weights the second stage has."""
    return sum(p.numel() for part in (model.text_encoder, model.unet) for p in part.parameters())


if __name__ == "__main__":
    sys.exit(main())
