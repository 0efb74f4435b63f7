"""How the loss of a DiT follows its size and its patches, which way of steering learns fastest, and what slips cost:

    python -m course_lib.training.dit_scaling

DiTs of several widths, patches and kinds of blocks learn the same latents for equally many steps, one thread each. The
result, ``data/experiments/dit_scaling.json``, is a table: one row per training, with its operations and its losses on
held-out handwriting, at fixed times and with fixed noise. Stopped, the command goes on where it was.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from course_lib.data.digits import Digits, load_digits
from course_lib.data.moving_mnist import render_scenes, sample_scenes, seeded
from course_lib.diffusion.flow import add_noise, sample_times, velocity
from course_lib.models.autoencoder import KLAutoencoder
from course_lib.models.dit import BLOCKS, DiT, DiTBlock, DiTConfig, forward_flops, initialise_dit
from course_lib.models.latent_diffusion import still_autoencoder
from course_lib.paths import outputs_dir, repo_root, write_atomically
from course_lib.training.loop import Step, muon_and_adamw, train

EDGE = 48
GRID = [("adaLN-Zero", d, patch) for d in (32, 64, 128) for patch in (6, 4, 3, 2)]
DEPTH, HEADS = 4, 4


class WithoutOne(DiTBlock):
    """A likely slip: scale, where 1 + scale belongs. With gates of zero too, it never wakes."""

    def forward(self, x: Float[Tensor, "b n d"], condition: Float[Tensor, "b d"]) -> Float[Tensor, "b n d"]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).unsqueeze(1).chunk(6, dim=-1)
        x = x + gate1 * self.attention(self.norm1(x) * scale1 + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * scale2 + shift2)


def open_gates(model: nn.Module) -> None:
    """Another one: Xavier's rule, run once more over the blocks' modulation, overwrites the zeros there."""
    initialise_dit(model)
    for block in model.blocks:
        nn.init.xavier_uniform_(block.modulation[1].weight)


SLIPS = {
    "adaLN-Zero, zeros overwritten": (DiTBlock, open_gates),
    "adaLN-Zero, 1 + forgotten": (WithoutOne, initialise_dit),
}
BIRTHS = {name: (block, initialise_dit) for name, block in BLOCKS.items()} | SLIPS
WAYS = [(name, 64, 3) for name in BIRTHS if name != "adaLN-Zero"]  # adaLN-Zero of this size is in the grid


class Latents(NamedTuple):
    """Latents of pictures with one digit each, and which digit it is."""

    z: Float[Tensor, "n 4 12 12"]
    labels: Int[Tensor, " n"]


class HeldOut(NamedTuple):
    """A fixed question: noisy latents at fixed times, with the velocities that would be right."""

    zt: Tensor
    t: Tensor
    labels: Tensor
    v: Tensor


@torch.no_grad()
def digit_latents(
    n: int, digits: Digits, autoencoder: KLAutoencoder, generator: torch.Generator, **sampling
) -> Latents:
    """Latents of ``n`` pictures (3, 48, 48), each with one large digit in any colour and place.

    ``sampling`` goes to ``sample_scenes``, to allow less: ``colours=("white",), starts=("centre",)``.
    """
    world = {"colour": True, "sizes": ("large",), "directions": ("still",)} | sampling
    scenes = sample_scenes(n, generator, frames=1, height=EDGE, width=EDGE, **world)
    pictures = render_scenes(scenes, digits, generator, channels=3)[:, :, 0]
    return Latents(torch.cat([autoencoder.latents(part) for part in pictures.split(256)]), scenes.digit[:, 0])


def held_out(latents: Latents, seed: int = 0) -> HeldOut:
    """Each of the latents once, with its own noise, at times that are spread evenly from 0 to 1."""
    g, n = torch.Generator().manual_seed(seed), len(latents.z)
    t = (torch.arange(n) + 0.5) / n
    t = t[torch.randperm(n, generator=g)]
    eps = torch.randn(latents.z.shape, generator=g)
    return HeldOut(add_noise(latents.z, t, eps), t, latents.labels, velocity(latents.z, eps))


@torch.no_grad()
def held_out_loss(model: nn.Module, question: HeldOut) -> float:
    """Mean squared error of the velocity, in evaluation mode."""
    training = model.training
    model.eval()
    parts = zip(*(x.split(256) for x in question), strict=True)
    total = sum(F.mse_loss(model(zt, t, y), v, reduction="sum").item() for zt, t, y, v in parts)
    model.train(training)
    return total / question.v.numel()


def train_dit(
    model: nn.Module,
    latents: Latents,
    *,
    steps: int,
    seed: int = 0,
    batch: int = 64,
    lr: float = 2e-3,
    shift: float | None = None,
    muon: bool = False,
) -> Iterator[Step]:
    """Flow matching on latents, yielding after every step; every step's data and noise follow from seed and step.

    The paper trains with AdamW and times drawn evenly, and so does the experiment. Two later inventions make digits
    readable sooner: ``shift`` draws logit-normal times moved towards noise, and ``muon`` trains the blocks' matrices.
    """
    if muon:
        optimizers = muon_and_adamw(model, [p for b in model.blocks for p in (b.attention, b.mlp)], adamw_lr=lr)
    else:
        betas = (0.9, 0.99)
        optimizers = [torch.optim.AdamW(model.parameters(), lr=lr, betas=betas, weight_decay=0.0, fused=True)]

    def loss_of_step(step: int) -> Tensor:
        random = seeded(seed, step)
        torch.manual_seed(seed * 1_000_003 + step)  # which labels are dropped
        some = torch.randint(len(latents.z), (batch,), generator=random)
        z = latents.z[some]
        t = torch.rand(batch, generator=random) if shift is None else sample_times(batch, random, shift=shift)
        eps = torch.randn(z.shape, generator=random)
        return F.mse_loss(model(add_noise(z, t, eps), t, latents.labels[some]), velocity(z, eps))

    return train(loss_of_step, model, optimizers, steps=steps)


def experiment(
    kind: str, d: int, patch: int, seed: int, steps: int, data: Latents, question: HeldOut, every: int = 100
) -> dict:
    """Train one DiT; one row of the table."""
    config = DiTConfig(patch=patch, d=d, depth=DEPTH, heads=HEADS)
    torch.manual_seed(seed)
    block, initialise = BIRTHS[kind]
    model = DiT(config, block, initialise=initialise)
    began, losses = time.process_time(), {}
    for state in train_dit(model, data, steps=steps, seed=seed):
        if state.step % every == 0 or state.step == steps:
            losses[state.step] = round(held_out_loss(model, question), 5)
    return {
        "block": kind,
        "d": d,
        "patch": patch,
        "seed": seed,
        "tokens": config.patches[0] * config.patches[1],
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops": forward_flops(config, block),
        "losses": losses,
        "processor seconds": round(time.process_time() - began, 1),
    }


def table_path() -> Path:
    """The recorded table."""
    return repo_root() / "data" / "experiments" / "dit_scaling.json"


def load_table() -> dict:
    """The recorded table, as the command wrote it; steps are numbers again."""
    table = json.loads(table_path().read_text(encoding="utf-8"))
    for row in table["rows"]:
        row["losses"] = {int(step): loss for step, loss in row["losses"].items()}
    return table


def main(arguments: list[str] | None = None) -> int:
    """Train the whole grid and write the table."""
    parser = argparse.ArgumentParser(prog="python -m course_lib.training.dit_scaling", description=main.__doc__)
    parser.add_argument("--digits", default="embedded", help="auto, embedded or mnist")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=6000)
    parser.add_argument("--out", type=Path, default=table_path())
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    autoencoder = still_autoencoder()
    data = digit_latents(options.pictures, load_digits(options.digits, "train"), autoencoder, seeded(0, 0))
    question = held_out(digit_latents(1000, load_digits(options.digits, "heldout"), autoencoder, seeded(0, 1)))
    command = " ".join(["python -m course_lib.training.dit_scaling", *(sys.argv[1:] if arguments is None else [])])
    setting = {"steps": options.steps, "digits": options.digits, "pictures": options.pictures}
    partial = outputs_dir() / f"dit_scaling-{'-'.join(map(str, setting.values()))}.json"
    rows = json.loads(partial.read_text()) if partial.exists() else []
    done = {(row["block"], row["d"], row["patch"], row["seed"]) for row in rows}
    for seed in range(options.seeds):
        for kind, d, patch in GRID + WAYS:
            if (kind, d, patch, seed) not in done:
                rows.append(experiment(kind, d, patch, seed, options.steps, data, question))
                write_atomically(partial, json.dumps(rows).encode())
                print(json.dumps(rows[-1]), flush=True)
    zero = F.mse_loss(torch.zeros_like(question.v), question.v).item()
    table = {"command": command, **setting, "depth": DEPTH, "heads": HEADS, "batch": 64, "torch": torch.__version__}
    table |= {"loss of a model that says 0": round(zero, 5), "held out": len(question.t)}
    body = ",\n  ".join(json.dumps(row) for row in rows)
    head = json.dumps(table, indent=1)[:-2]
    write_atomically(options.out, f'{head},\n "rows": [\n  {body}\n ]\n}}\n'.encode())
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
