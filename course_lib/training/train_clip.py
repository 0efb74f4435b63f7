"""Train the CLIP that comes with the course:

python -m course_lib.training.train_clip --digits both --seed 0

Clips of one or two coloured digits meet captions of every level and of all training paraphrases. One direction per
digit is held out: a 3 never moves down-right in training, so that what a model knows of it is composed.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from course_lib.data.captions import describe
from course_lib.data.digits import Digits, load_digits
from course_lib.data.moving_mnist import render_scenes, seeded
from course_lib.data.sampling import NAMES, SceneBatch, sample_scenes
from course_lib.data.scenes import COLOURS, DIRECTIONS, SIZES, Scene
from course_lib.data.tokenizer import Tokenizer
from course_lib.models.clip import CLIP, CLIPConfig, clip_loss, multi_positive_loss, zero_shot
from course_lib.paths import checkpoints_dir
from course_lib.training.loop import Step, muon_and_adamw, train, warm_flat_decay

HELD_OUT = tuple(list(DIRECTIONS)[3 * digit % 8] for digit in range(10))  # the direction no digit of training moves in
MOVING = tuple(DIRECTIONS)[:8]
WORLD = {"frames": 16, "height": 48, "width": 48, "colour": True, "sizes": tuple(SIZES)}
LEVEL_SHARES = {"descriptive": 0.45, "short": 0.4, "qa": 0.1, "alt": 0.05}
CANVASES = (8, 12, 16, 24, 32), (32, 48, 64, 80)  # frames and edges that captions mention; the tower learns to ignore
BATCHES = {
    "digit": 0.35,
    "digit and direction": 0.35,
    "all": 0.3,
}  # what tells the clips of a batch apart
WITH_CANVAS = 0.2  # share of descriptive captions that keep their sentence about frames and pixels


def is_held_out(scenes: SceneBatch) -> Bool[Tensor, "b k"]:
    """True for movers whose digit and direction never meet in training."""
    directions = torch.tensor([NAMES["direction"].index(name) for name in HELD_OUT])
    return scenes.present & (directions[scenes.digit.clamp(min=0)] == scenes.direction)


def clip_scenes(n: int, generator: torch.Generator, movers: tuple[int, int] = (1, 2), **sampling) -> SceneBatch:
    """``n`` scenes of colour clips without any held-out combination; ``sampling`` goes to ``sample_scenes``."""
    kept = []
    while sum(map(len, kept)) < n:
        scenes = sample_scenes(n, generator, movers=movers, **WORLD | sampling)
        kept.append(scenes[~is_held_out(scenes).any(dim=1)])
    return SceneBatch.concatenate(kept)[:n]


def held_out_scenes(n: int, generator: torch.Generator, **sampling) -> SceneBatch:
    """``n`` scenes of one digit each, all in their held-out direction; digits take turns."""
    scenes = sample_scenes(n, generator, **WORLD | {"directions": MOVING} | sampling)
    scenes.digit[:, 0] = torch.arange(n) % 10
    scenes.direction[:, 0] = torch.tensor([NAMES["direction"].index(HELD_OUT[d]) for d in scenes.digit[:, 0].tolist()])
    return scenes


def training_scenes(
    n: int, generator: torch.Generator, progress: float, batches: dict[str, float] = BATCHES
) -> tuple[str, SceneBatch]:
    """A batch of scenes and what tells them apart, one of ``batches``.

    A contrastive model learns what its batch asks for. Among clips of many colours, sizes and places nobody needs to
    read a digit, and for a long time nobody does. So most batches have a single colour, and many a single direction.
    Digits are easiest to read when they are large: small ones join as ``progress`` goes from 0 to 1.
    """
    chance, colour, direction = torch.rand(3, generator=generator).tolist()
    kind = _pick(chance, batches)
    if kind == "all":
        return kind, clip_scenes(n, generator)
    narrow = {"colours": (list(COLOURS)[int(colour * len(COLOURS))],)}
    narrow["sizes"] = tuple(SIZES)[max(0, 2 - int(6 * progress)) :]
    if kind == "digit":
        narrow["directions"] = (list(DIRECTIONS)[int(direction * len(DIRECTIONS))],)
    return kind, clip_scenes(n, generator, movers=(1, 1), **narrow)


def caption(scene: Scene, generator: torch.Generator, paraphrase: str = "train") -> str:
    """A caption as the tower reads it in training: any level, any paraphrase."""
    level, keep_canvas, *sizes = torch.rand(5, generator=generator).tolist()
    name = _pick(level, LEVEL_SHARES)
    if name != "descriptive":
        return describe(scene, name, generator, paraphrase)
    frames, edges = CANVASES
    height, width = (edges[int(len(edges) * x)] for x in sizes[1:])
    scene = replace(scene, frames=frames[int(len(frames) * sizes[0])], height=max(36, height), width=max(36, width))
    text = describe(scene, name, generator, paraphrase)
    return text if keep_canvas < WITH_CANVAS else text.split(".")[0]


def _pick(chance: float, shares: dict[str, float]) -> str:
    for name, share in shares.items():
        if chance < share:
            return name
        chance -= share
    return name


def train_clip(
    model: CLIP,
    digits: Digits,
    *,
    steps: int,
    batch: int = 64,
    seed: int = 0,
    muon_lr: float = 0.01,
    lr: float = 1e-3,
    batches: dict[str, float] = BATCHES,
) -> Iterator[Step]:
    """Train on fresh clips, yielding after every step; ``lr`` is AdamW's, for all that is no matrix of a block."""
    tokenizer = Tokenizer()

    def loss_of_step(step: int) -> Tensor:
        g = seeded(seed, step)
        kind, scenes = training_scenes(batch, g, step / steps, batches)
        texts = [caption(s, g) if kind == "all" else describe(s, "short", g, "train") for s in scenes]
        # Frames that nobody looks at need not be drawn.
        drawn = render_scenes(replace(scenes, frames=max(model.config.frames) + 1), digits, g, channels=3)
        image, text = model(model.strip(drawn), tokenizer.encode(texts))
        if kind == "all":
            return clip_loss(image, text, model.log_scale)
        logits = model.log_scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
        return multi_positive_loss(logits, scenes.digit[:, 0] * len(DIRECTIONS) + scenes.direction[:, 0])

    hidden = [*model.image.blocks, *model.text.blocks]
    optimizers = muon_and_adamw(model, hidden, muon_lr=muon_lr, adamw_lr=lr)
    for step in train(loss_of_step, model, optimizers, steps=steps, schedule=warm_flat_decay):
        model.clamp_scale()
        yield step
    model.eval()


@torch.no_grad()
def measure_clip(model: CLIP, digits: Digits, n: int = 400, seed: int = 1) -> dict[str, float]:
    """Zero-shot accuracy on held-out and on seen combinations, and retrieval, all on held-out handwriting."""
    g = seeded(seed, 0)
    found = {}
    for name, scenes in (
        ("held-out", held_out_scenes(n, g)),
        ("seen", clip_scenes(n, g, movers=(1, 1), directions=MOVING)),
    ):
        clips = model.embed_clips(render_scenes(scenes, digits, g, channels=3))
        digit, direction = scenes.digit[:, 0], scenes.direction[:, 0]
        for what, classes, right in (
            ("digit", [[f"a {d}", f"the digit {d}", f"a video of a {d}"] for d in range(10)], digit),
            ("direction", [[f"a digit moving {d}", f"a digit that moves {d}"] for d in MOVING], direction),
        ):  # fmt: skip
            prompts = model.embed_captions([p for group in classes for p in group]).unflatten(0, (len(classes), -1))
            guess = zero_shot(clips, prompts, model.log_scale).argmax(dim=-1)
            found[f"{name} {what}"] = (guess == right).double().mean().item()
        pairs = [f"a {d} moving {w}" for d in range(10) for w in MOVING]
        guess = (clips @ model.embed_captions(pairs).T).argmax(dim=-1)
        found[f"{name} pair"] = (guess == digit * 8 + direction).double().mean().item()
    hits = []
    for i in range(8):
        scenes = clip_scenes(64, seeded(seed, 1 + i))
        captions = [describe(scene, "descriptive").split(".")[0] for scene in scenes]
        clips = model.embed_clips(render_scenes(scenes, digits, seeded(seed, 100 + i), channels=3))
        similarity = clips @ model.embed_captions(captions).T
        hits += [(similarity.argmax(dim=1 - axis) == torch.arange(64)).double().mean().item() for axis in (0, 1)]
    found["retrieval@1 of 64"] = sum(hits) / len(hits)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Train CLIP on clips of one or two digits, measure it, and write it as a checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m course_lib.training.train_clip", description=main.__doc__)
    parser.add_argument("--digits", default="auto", help="auto, embedded, mnist, both, or a folder of images")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--muon-lr", type=float, default=0.01)
    parser.add_argument("--lr", type=float, default=1e-3, help="of AdamW, for embeddings, norms and projections")
    parser.add_argument("--ordinary", action="store_true", help="no narrow batches: every clip differs in everything")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="change values of CLIPConfig")
    parser.add_argument("--out", type=Path, default=checkpoints_dir() / "clip.safetensors")
    options = parser.parse_args(arguments)
    try:
        digits, held_out = (load_digits(options.digits, split) for split in ("train", "heldout"))
        changes = {name: json.loads(value) for name, value in (text.split("=", 1) for text in options.set)}
        changes = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
        config = replace(CLIPConfig(len(Tokenizer())), **changes)
    except (ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    torch.manual_seed(options.seed)
    model = CLIP.build(config)
    about = {"steps": options.steps, "batch": options.batch, "seed": options.seed, "digits": digits.source}
    began = time.perf_counter()
    how = {"steps": options.steps, "batch": options.batch, "seed": options.seed}
    how |= {"muon_lr": options.muon_lr, "lr": options.lr, "batches": {"all": 1.0} if options.ordinary else BATCHES}
    run = train_clip(model, digits, **how)
    window = []
    for step in run:
        window.append(step.loss)
        if step.step % 50 == 0 or step.step == options.steps:
            minutes = (time.perf_counter() - began) / 60
            mean, scale, window = sum(window) / len(window), model.log_scale.exp().item(), []
            print(f"step {step.step}: loss {mean:.3f}, scale {scale:.1f}, {minutes:.1f} min", flush=True)
            if step.step % 250 == 0:
                model.eval()
                figures = measure_clip(model, held_out, 200)
                model.save(options.out, {**about, "so far": step.step})
                model.train()
                print({name: round(value, 3) for name, value in figures.items()}, flush=True)
    minutes = (time.perf_counter() - began) / 60
    model.save(options.out, {**about, "minutes": minutes})
    figures = measure_clip(CLIP.from_checkpoint(options.out), held_out)
    model.save(options.out, {**about, "minutes": minutes, "figures": figures})
    print(json.dumps({"config": asdict(config), "minutes": minutes, "figures": figures}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
