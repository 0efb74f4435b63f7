"""A firefly on a dark grid: what can be known of it, by whom, and which way of attention finds out?

One cell of a small grid glows in one of eight colours. From frame to frame it moves one cell to the right, left, up or
down, and what leaves at one edge comes back at the other. Through noise a single frame shows little; all frames
together show much, to whoever follows the firefly. How much, is known exactly: there are so few clips that the best
possible answer is a sum over all of them.

    python -m course_lib.training.spacetime_attention

trains ``Sora`` of lesson 18 on such clips, small, in each of its ways of attention and with controls, and writes the
table ``data/experiments/spacetime_attention.json``. A stopped run goes on with what is missing in the table.
"""

import argparse
import functools
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from course_lib.data.digits import load_digits
from course_lib.data.moving_mnist import render_scenes, sample_scenes, seeded
from course_lib.diffusion.flow import sample_times
from course_lib.diffusion.known_frames import Latents, known_loss, mix, some_known
from course_lib.models.sora import Sora, SoraConfig, Text, Where
from course_lib.nn.attention import fused_attention
from course_lib.paths import repo_root, write_atomically
from course_lib.training.loop import Step, muon_and_adamw, train

Shape = tuple[int, int, int]  # frames, rows, columns
Answer = Callable[[Latents, list[Tensor]], Latents]  # (noisy clips, times of their frames) -> velocities

GLOW, CHANNELS = 2.0, 3
MOVES = ((0, 1), (1, 0), (0, -1), (-1, 0))  # rows down, columns right
SHAPE: Shape = (5, 3, 3)  # as many patches as a clip of 17 frames, 48 x 48, has
MANY: tuple[Shape, ...] = (SHAPE, (5, 3, 4), (9, 3, 3), (1, 3, 3))
UNSEEN: tuple[Shape, ...] = ((5, 4, 4), (9, 3, 4))  # no run is trained on these
CONFIG = SoraConfig(latent_channels=CHANNELS, patch=(1, 1, 1), d=48, depth=4, heads=4, mlp_ratio=2, d_text=4)


# --------------------------------------------------------------------------------------------------------- the world


@functools.cache
def every_firefly(shape: Shape) -> Float[Tensor, "clips 3 f h w"]:
    """All clips of this shape: every start, move and colour once."""
    f, h, w = shape
    row, column, move, colour = torch.cartesian_prod(*(torch.arange(n) for n in (h, w, len(MOVES), 8))).unbind(-1)
    steps = torch.arange(f)[:, None] * torch.tensor(MOVES)[move][:, None]  # (clips, f, 2)
    rows, columns = (row[:, None] + steps[..., 0]) % h, (column[:, None] + steps[..., 1]) % w
    clips = torch.zeros(len(row), f, h, w)
    clips[torch.arange(len(row))[:, None], torch.arange(f), rows, columns] = 1
    signs = 2.0 * (colour[:, None] // torch.tensor([1, 2, 4]) % 2) - 1
    return GLOW * signs[:, :, None, None, None] * clips[:, None]


def fireflies(n: int, shape: Shape, random: torch.Generator) -> Latents:
    """Random clips; all are equally likely."""
    world = every_firefly(shape)
    return list(world[torch.randint(len(world), (n,), generator=random)])


def silence(n: int) -> Text:
    """The captions of clips that have none."""
    return Text(torch.zeros(n, 1, CONFIG.d_text), torch.ones(n, 1, dtype=torch.bool), torch.zeros(n, CONFIG.d_text))


def best_answer(noisy: Latents, times: list[Tensor], *, alone: bool = False) -> Latents:
    """The velocities with the least expected error: (x_t - E[x]) / t, where E[x] is over all clips that there are.

    Args:
        alone: every frame must be answered from itself.
    """
    answers = []
    for xt, t in zip(noisy, times, strict=True):
        world = every_firefly(tuple(xt.shape[1:]))
        t = t.clamp(min=1e-2).view(-1, 1, 1)
        away = ((xt - (1 - t) * world) / t).square().sum(dim=(1, 3, 4))  # (clips, f)
        likely = (-away / 2 if alone else -away.sum(1, keepdim=True) / 2).softmax(dim=0).expand_as(away)
        answers.append((xt - torch.einsum("nf,ncfhw->cfhw", likely, world)) / t)
    return answers


@torch.no_grad()
def unknown(
    answer: Answer, clips: Latents, t: float, *, first: str = "noisy", told: bool | None = None, seed: int = 0
) -> Float[Tensor, " n"]:
    """Which share of the firefly an answer does not know, per clip: 1 is what is lost by answering "dark everywhere".

    Args:
        answer: velocities for noisy clips and the times of their frames.
        t: the time of all frames; or, with ``first="clean"``, of all but the first, which is then not asked about.
        told: with a clean first frame, whether its time says 0 (the default) or t.
    """
    random, clean = seeded(seed, 7), first == "clean"
    eps = [torch.randn(x.shape, generator=random) for x in clips]
    start = lambda value: [torch.full((x.shape[1],), t).index_fill(0, torch.tensor(0), value) for x in clips]  # noqa: E731
    noisy = [mix(x, e, ts) for x, e, ts in zip(clips, eps, start(0.0 if clean else t), strict=True)]
    made = answer(noisy, start(0.0 if clean and told in (None, True) else t))
    lost = [(t * (v - (e - x)))[:, int(clean) :].square().sum() for v, e, x in zip(made, eps, clips, strict=True)]
    return torch.stack([part / x[:, int(clean) :].square().sum() for part, x in zip(lost, clips, strict=True)])


def asked(model: Sora) -> Answer:
    """A network as an answer, without captions."""
    return lambda noisy, times: model(noisy, times, silence(len(noisy)), max(180, *(x[0].numel() for x in noisy)))


# -------------------------------------------------------------------------------------------------------- training


class FramesAlone(Sora):
    """The control: in every block, every patch looks at its own frame only."""

    def _where(self, *arguments) -> Where:
        where = super()._where(*arguments)
        return where._replace(keep=[where.keep[0]] * len(where.keep))


def fit(
    model: Sora,
    shapes: Sequence[Shape] = (SHAPE,),
    *,
    steps: int,
    batch: int = 12,
    seed: int = 0,
    lr: float = 0.02,
    honest: bool = True,
) -> Iterator[Step]:
    """Train on fireflies of these shapes, half of the clips with known frames, yielding after every step.

    ``honest=False`` is a slip to look at: known frames are clean, but the network is told the time of the others.
    """

    def loss_of_step(step: int) -> Tensor:
        random = seeded(seed, step)
        clips = [
            clip for i, shape in enumerate(shapes) for clip in fireflies(_part(batch, len(shapes), i), shape, random)
        ]
        known = [some_known(x.shape[1], random, share=0.5) for x in clips]
        eps = [torch.randn(x.shape, generator=random) for x in clips]
        t = sample_times(len(clips), random)
        told = lambda times: times if honest else [ts.amax().expand_as(ts) for ts in times]  # noqa: E731
        return known_loss(lambda noisy, times: asked(model)(noisy, told(times)), clips, known, t, eps)

    inside = [part for block in model.blocks for part in (block.attention, block.read, block.mlp)]
    return train(loss_of_step, model, muon_and_adamw(model, inside, muon_lr=lr, adamw_lr=3e-3), steps=steps)


def _part(n: int, parts: int, i: int) -> int:
    return n // parts + (i < n % parts)


# --------------------------------------------------------------------------------------------------- what looking costs

_FRAMES = "f s (h a w b) d"
FOLDS = {  # h x w windows of a x b patches; who may meet shares a sample
    "joint": ("1 s (f h a w b) d",),
    "factorised": (_FRAMES, "(h a w b) s f d"),
    "windowed": (_FRAMES, "(h w) s (f a b) d"),
}


def folded(
    q: Float[Tensor, "1 heads n d"], k: Tensor, v: Tensor, grid: Shape, way: str, turn: int = 0, window: int = 1
) -> Float[Tensor, "1 heads n d"]:
    """Attention among the patches of one clip without a mask: those that may meet are laid into a sample of their own.

    Args:
        q, k, v: of the f h w patches, in the order of ``patchify``.
        grid: f, h, w; the last two divide by ``window``.
        way: one of ``FOLDS``; turn: which of its masks.
    """
    f, h, w = grid
    sizes = {"f": f, "h": h // window, "w": w // window, "a": window, "b": window}
    flat, fold = FOLDS["joint"][0], FOLDS[way][turn]
    q, k, v = (rearrange(x, f"{flat} -> {fold}", **sizes) for x in (q, k, v))
    return rearrange(fused_attention(q, k, v)[0], f"{fold} -> {flat}", **sizes)


# ------------------------------------------------------------------------------------------------------ what crops show


def digit_clips(n: int, shape: Shape, split: str = "heldout", seed: int = 99) -> Float[Tensor, "n 3 f h w"]:
    """Videos of one digit that moves and bounces."""
    frames, height, width = shape
    random = seeded(seed, frames * height * width)
    scenes = sample_scenes(n, random, frames=frames, height=height, width=width, speeds=("slow", "medium"))
    return render_scenes(scenes, load_digits("embedded", split), random, channels=3)


def cropped(video: Float[Tensor, "n c f h w"], edge: int) -> Float[Tensor, "n c f edge edge"]:
    """The square in the middle, as data loaders cut it."""
    top, left = (video.shape[3] - edge) // 2, (video.shape[4] - edge) // 2
    return video[..., top : top + edge, left : left + edge]


def whole(video: Float[Tensor, "n c f h w"], edge: int) -> Bool[Tensor, "n f"]:
    """In which frames all of the ink lies in the square in the middle (99 percent of it, for soft edges)."""
    ink = lambda clip: (clip + 1).sum(dim=(1, 3, 4))  # noqa: E731
    return ink(cropped(video, edge)) > 0.99 * ink(video)


# ---------------------------------------------------------------------------------------------------- the recorded runs

ARMS = {  # name -> (the network, its way, the shapes that it sees)
    "joint": (Sora, "joint", MANY),
    "factorised": (Sora, "factorised", MANY),
    "windowed": (Sora, "windowed", MANY),
    "frames alone": (FramesAlone, "factorised", MANY),
    "joint, one shape": (Sora, "joint", (SHAPE,)),
}
TIMES = (0.5, 0.6, 0.7)


def name_of(shape: Shape) -> str:
    """A clip's shape in words."""
    return "{} x {} x {}".format(*shape)


def small(arm: str, seed: int) -> Sora:
    """A new network for one arm of the experiment."""
    network, way, _ = ARMS[arm]
    torch.manual_seed(seed)
    return network(SoraConfig(**{**vars(CONFIG), "attention": way}))


def measured(answer: Answer, shape: Shape, n: int) -> dict[str, float]:
    """Means of ``unknown`` over n clips, for each of ``TIMES``, and with a clean first frame at the last."""
    clips = fireflies(n, shape, seeded(99, sum(shape)))
    found = {f"t = {t}": unknown(answer, clips, t).mean().item() for t in TIMES}
    if shape[0] > 1:
        found["first frame known"] = unknown(answer, clips, TIMES[2], first="clean").mean().item()
    return {key: round(value, 4) for key, value in found.items()}


def table_path() -> Path:
    """The recorded table."""
    return repo_root() / "data" / "experiments" / "spacetime_attention.json"


def main(arguments: list[str] | None = None) -> int:
    """Train what is missing in the table, measure it, and write the table after each run."""
    parser = argparse.ArgumentParser(prog="python -m course_lib.training.spacetime_attention", description=main.__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=list(ARMS), choices=ARMS, help="some of the arms")
    parser.add_argument("--clips", type=int, default=200, help="measured, of every shape")
    parser.add_argument("--out", type=Path, default=table_path())
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    shapes = (*MANY, *UNSEEN)
    plan = {"steps": options.steps, "clips": options.clips, "times": list(TIMES)}
    plan |= {"trained on": [name_of(shape) for shape in MANY], "never seen": [name_of(shape) for shape in UNSEEN]}
    table = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    if {key: table.get(key) for key in plan} != plan:  # other settings: nothing of it can be used
        command = " ".join(["python -m course_lib.training.spacetime_attention", *(arguments or sys.argv[1:])])
        table = {
            "command": command,
            **plan,
            "torch": torch.__version__,
            "device": f"{platform.machine()} CPU, 1 thread",
        }
        for name, alone in (("best, frames alone", True), ("best", False)):
            answer = lambda noisy, times, alone=alone: best_answer(noisy, times, alone=alone)  # noqa: E731
            table[name] = {name_of(shape): measured(answer, shape, options.clips) for shape in shapes}
        table["rows"] = []
    for seed in range(options.seeds):
        for arm, (_, _, seen) in ARMS.items():
            if arm not in options.only or any(row["arm"] == arm and row["seed"] == seed for row in table["rows"]):
                continue
            model, began = small(arm, seed), time.process_time()
            for step in fit(model, seen, steps=options.steps, seed=seed):
                if step.step % 50 == 0:
                    print(f"{arm}, seed {seed}, step {step.step}: {step.loss:.3f}", flush=True)
            minutes = (time.process_time() - began) / 60
            found = {name_of(shape): measured(asked(model.eval()), shape, options.clips) for shape in shapes}
            row = {"arm": arm, "seed": seed, "minutes of one core": round(minutes, 2), "unknown": found}
            table["rows"].append(row)
            print(json.dumps(row), flush=True)
            write_atomically(options.out, (json.dumps(table, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
