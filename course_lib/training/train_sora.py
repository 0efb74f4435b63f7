"""Train the generator: ``python -m course_lib.training.train_sora --preset tiny``.

Its tokenizer and its reader of captions come with the course and stay frozen. Three stages: latents of captioned clips,
the network, figures and pictures. Each leaves a file in the run's folder, so a run that was stopped at any moment
continues where it was and computes the same losses.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from course_lib.data.captions import describe
from course_lib.data.digits import Digits, load_digits
from course_lib.data.moving_mnist import sample_scenes, seeded
from course_lib.data.sampling import SceneBatch
from course_lib.data.scenes import COLOURS, Mover, Scene
from course_lib.diffusion.flow import sample_times
from course_lib.diffusion.known_frames import known_loss, some_known
from course_lib.evaluation.generated import draw, evaluate, prompts
from course_lib.models.sora import Sora, SoraConfig, Text, TextReader
from course_lib.models.sora_pipeline import Settings, SoraPipeline
from course_lib.models.video_tokenizer import VideoTokenizer
from course_lib.paths import outputs_dir, write_atomically
from course_lib.profile import pick_device
from course_lib.training.checkpoint import load_checkpoint, save_checkpoint
from course_lib.training.ema import EMA
from course_lib.training.loop import Step, muon_and_adamw
from course_lib.training.presets import MOVING
from course_lib.training.train import run_stage
from course_lib.video_generator import first_sentence
from course_lib.viz import progress, sheet

CACHE, STEPS, SHEET, INITIAL = range(4)  # streams of random numbers, one per purpose


class Canvas(NamedTuple):
    """One shape of clips, and the share of clips that have it."""

    share: float
    frames: int
    height: int
    width: int


@dataclass(frozen=True)
class SoraPreset:
    """Everything that decides what a run computes, except its seed and its digits."""

    # the world
    canvases: tuple[Canvas, ...] = (Canvas(1.0, 17, 48, 48),)
    movers: tuple[int, int] = (1, 1)
    colours: tuple[str, ...] = ("white",)
    directions: tuple[str, ...] = MOVING
    speeds: tuple[str, ...] = ("slow", "medium")
    # the cache of latents
    clips: int = 4096
    captions: int = 4  # per clip
    short: float = 0.2  # share of short captions; the rest are descriptive
    # the network
    d: int = 192
    depth: int = 6
    heads: int = 6
    attention: str = "joint"
    # training
    steps: int = 1200
    image_share: float = 0.4  # of the steps, at the beginning, on single latent frames
    image_batch: int = 128
    batch: int = 32
    known: float = 0.25  # share of clips of which some frames are known
    # Of the times towards noise. An ideal denoiser over the latents of 5,000 digits in the centre gains most from
    # knowing which digit it is at t = 0.9 and above (0.16 to 0.18 less loss), 0.11 at 0.85, and 0.05 at 0.8. With 5,
    # nearly half of all times are above 0.85; with 1, one in twenty-five.
    shift: float = 5.0
    drop: float = 0.1  # share of captions replaced by the empty one, for guidance
    muon_lr: float = 0.01
    adamw_lr: float = 1.5e-3
    ema: float = 0.999
    # looking at the result
    guidance: float = 3.0
    sample_steps: int = 12
    evaluated: int = 200
    previews: int = 8

    @property
    def world(self) -> dict[str, Any]:
        """What ``sample_scenes`` takes for every canvas."""
        return {"colours": self.colours, "directions": self.directions, "speeds": self.speeds}

    @property
    def main_canvas(self) -> Canvas:
        """The shape that most clips have."""
        return max(self.canvases, key=lambda canvas: canvas.share)


def _shapes(square: float) -> tuple[Canvas, ...]:
    """A share of 17 frames of 48 x 48; what is left goes to other shapes and to longer clips."""
    rest = round((1 - square) / 4, 4)
    others = ((17, 48, 64), (17, 64, 48), (17, 64, 64), (33, 48, 48))
    return (Canvas(square, 17, 48, 48), *(Canvas(rest, *shape) for shape in others))


_MANY = {"canvases": _shapes(0.6), "movers": (1, 2), "colours": tuple(COLOURS)}
PRESETS = {
    "tiny": SoraPreset(_shapes(0.8)),
    "laptop": SoraPreset(**_MANY, clips=8192, steps=7000),
    "gpu": SoraPreset(**_MANY, clips=65_536, d=384, depth=12, heads=12, steps=20_000, batch=128),
    # for tests: every stage in seconds, nothing worth looking at
    "mini": SoraPreset(
        (Canvas(0.7, 5, 32, 32), Canvas(0.3, 1, 32, 48)),
        (1, 2),
        tuple(COLOURS),
        **{"clips": 12, "d": 24, "depth": 2, "heads": 2, "steps": 8, "image_batch": 4, "batch": 3},
        **{"sample_steps": 2, "evaluated": 4, "previews": 2},
    ),
}


@dataclass
class SoraRun:
    """One training run: its folder, and everything that decides its numbers."""

    folder: Path
    name: str
    preset: SoraPreset
    seed: int
    digits: str
    tokenizer: VideoTokenizer
    reader: TextReader
    device: torch.device
    save_seconds: float = 20.0

    def stream(self, purpose: int, index: int) -> torch.Generator:
        """Random numbers for one purpose and step."""
        return seeded(self.seed * 8 + purpose, index)

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to be continued."""
        found = {"preset": self.name, "seed": self.seed, "digits": self.digits, "settings": asdict(self.preset)}
        return json.loads(json.dumps(found))

    def kinds(self, split: str) -> list[Digits]:
        """The digits of the run; both kinds for "both"."""
        return [
            load_digits(kind, split) for kind in (("embedded", "mnist") if self.digits == "both" else (self.digits,))
        ]


class Cached(NamedTuple):
    """Clips of one canvas: whitened latents (n, z, f, h, w) in bfloat16, and caption ids (n, captions, words)."""

    latents: Tensor
    words: Tensor


@torch.no_grad()
def cache_latents(run: SoraRun) -> list[Cached]:
    """Stage 1: captioned clips of every canvas, encoded once."""
    p, path, kinds = run.preset, run.folder / "latents.safetensors", run.kinds("train")
    if not path.exists():
        tensors: dict[str, Tensor] = {}
        parts = [
            (k, part) for k, c in enumerate(p.canvases) for part in torch.arange(round(c.share * p.clips)).split(32)
        ]
        latents: dict[int, list[Tensor]] = {k: [] for k in range(len(p.canvases))}
        texts: dict[int, list[str]] = {k: [] for k in range(len(p.canvases))}
        for i, (k, part) in enumerate(progress(parts, label="latents")):
            random, (_, frames, height, width) = run.stream(CACHE, i), p.canvases[k]
            size = {"frames": frames, "height": height, "width": width}
            scenes = sample_scenes(len(part), random, movers=p.movers, colour=True, **size, **p.world)
            video = draw(scenes, kinds, random).to(run.device)
            with torch.autocast(run.device.type, torch.bfloat16):
                latents[k].append(run.tokenizer.compress(video).bfloat16().cpu())
            texts[k] += [text for scene in scenes for text in wordings(scene, p, random)]
        for k in range(len(p.canvases)):
            tensors[f"latents.{k}"] = torch.cat(latents[k])
            tensors[f"words.{k}"] = run.reader.tokenizer.encode(texts[k]).unflatten(0, (-1, p.captions))
        save_checkpoint(path, tensors, {"kind": "latents of sora"})
    found = load_checkpoint(path, "latents of sora").tensors
    return [Cached(found[f"latents.{k}"], found[f"words.{k}"]) for k in range(len(p.canvases))]


def wordings(scene: Scene, p: SoraPreset, random: torch.Generator) -> list[str]:
    """``p.captions`` captions of a scene in the plain wording, without their sentence about the canvas."""
    levels = ["short" if x < p.short else "descriptive" for x in torch.rand(p.captions, generator=random)]
    return [first_sentence(describe(scene, level)) for level in levels]


def train_network(run: SoraRun, cached: list[Cached]) -> tuple[Sora, Tensor]:
    """Stage 2: flow matching, first on single latent frames ("images"), then on whole clips, some frames of them known.

    A single latent frame has a fifth of a clip's tokens, and shows what a digit looks like; a clip shows how it moves.
    """
    p = run.preset
    torch.manual_seed(run.seed * 8 + INITIAL)
    channels = cached[0].latents.shape[1]
    config = SoraConfig(channels, d=p.d, depth=p.depth, heads=p.heads, attention=p.attention)
    model = Sora(config).to(run.device)
    inside = [part for block in model.blocks for part in (block.attention, block.read, block.mlp)]
    optimizers = muon_and_adamw(model, inside, muon_lr=p.muon_lr, adamw_lr=p.adamw_lr)
    ema = EMA(model, p.ema)
    image_steps = round(p.image_share * p.steps)
    shares = torch.tensor([canvas.share for canvas in p.canvases])
    texts, silence = [read_all(run, c.words) for c in cached], run.reader([""])

    def loss_of_step(step: int) -> Tensor:
        random, images = run.stream(STEPS, step), step < image_steps
        n = p.image_batch if images else p.batch
        clips, told, begin = [], [], []
        dropped = torch.rand(n, generator=random) < p.drop
        for k, drop in zip(
            torch.multinomial(shares, n, replacement=True, generator=random).tolist(), dropped, strict=True
        ):
            i = int(torch.randint(len(cached[k].latents), (1,), generator=random))
            j = int(torch.randint(p.captions, (1,), generator=random))
            x = cached[k].latents[i].float().to(run.device)
            first = int(torch.randint(x.shape[1], (1,), generator=random)) if images else 0
            clips.append(x[:, first : first + 1] if images else x)
            begin.append(first)
            told.append(Text(*(part[0] for part in silence)) if drop else Text(*(part[i, j] for part in texts[k])))
        text = together(told)
        known = [some_known(x.shape[1], random, share=0.0 if images else p.known).to(run.device) for x in clips]
        eps = [torch.randn(x.shape, generator=random).to(run.device) for x in clips]
        t = sample_times(n, random, shift=p.shift).to(run.device)
        row = ROW_OF_IMAGES if images else ROW
        return known_loss(lambda x, times: model(x, times, text, row, begin), clips, known, t, eps)

    moments = {round(p.steps * (k + 1) / p.previews) for k in range(p.previews)}

    def preview(step: Step, extra: dict[str, Tensor]) -> None:
        if step.step in moments:
            with ema.applied():
                show(run, SoraPipeline(model, run.tokenizer, run.reader, how(p)), step.step)
                model.save(run.folder / "so_far.safetensors", {"step": step.step, **run.identity})
            model.train()

    history = run_stage(
        run, "network", model, optimizers, loss_of_step, steps=p.steps, ema=ema, after_step=preview, low=True
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(ema.weights[name])
    return model.eval().requires_grad_(False), history


@torch.no_grad()
def read_all(run: SoraRun, ids: Tensor) -> Text:
    """All captions (n, captions, words), read once: the reader is frozen. In bfloat16, for memory."""
    parts = [run.reader.read(part) for part in ids.flatten(0, 1).split(256)]
    words, keep, whole = (torch.cat(part).unflatten(0, ids.shape[:2]) for part in zip(*parts, strict=True))
    return Text(words.bfloat16(), keep, whole)


def together(texts: Sequence[Text]) -> Text:
    """Single captions of any length as one batch; what is missing at the end is padding."""
    words, keep = (pad_sequence([t[part] for t in texts], batch_first=True) for part in (0, 1))
    return Text(words.float(), keep, torch.stack([t.whole for t in texts]))


ROW, ROW_OF_IMAGES = 180, 96  # tokens in a packed row: about four clips, or ten images


def how(p: SoraPreset) -> Settings:
    """How a run's model is sampled."""
    return Settings(guidance=p.guidance, steps=p.sample_steps, shift=p.shift)


def sample(pipeline: SoraPipeline, canvas: Canvas, asked: list[str], random: torch.Generator, part: int = 32) -> Tensor:
    """Videos (n, 3, f, h, w) for the prompts, ``part`` at a time."""
    _, frames, height, width = canvas
    made = []
    for i in range(0, len(asked), part):
        made += pipeline.videos(asked[i : i + part], frames, (height, width), generator=random)
    return torch.stack(made)


def show(run: SoraRun, pipeline: SoraPipeline, step: int) -> None:
    """Film strips of five prompts, ``sheet-<step>.png``."""
    _, frames, height, width = canvas = run.preset.main_canvas
    colour = lambda name: name if name in run.preset.colours else run.preset.colours[0]  # noqa: E731
    movers = [
        [Mover(3, colour=colour("red"), start="middle-left", direction="right", speed="medium")],
        [Mover(7, colour=colour("white"), start="bottom-middle", direction="up", speed="slow")],
        [Mover(8, colour=colour("blue"), start="top-left", direction="down-right", speed="medium")],
        [Mover(4, colour=colour("green"), start="centre", direction="left", speed="slow")],
        [
            Mover(2, colour=colour("yellow"), start="top-right", direction="down", speed="medium"),
            Mover(5, colour=colour("purple"), start="bottom-left", direction="up", speed="medium"),
        ][: run.preset.movers[1]],
    ]
    scenes = SceneBatch.from_scenes([Scene(m, frames, height, width) for m in movers])
    video = sample(pipeline, canvas, prompts(scenes), run.stream(SHEET, 0))
    picture = sheet(video, alt=f"Five prompts after step {step}.", labels=prompts(scenes), frames=5, scale=2)
    write_atomically(run.folder / f"sheet-{step:06d}.png", picture.png)


def measure_run(run: SoraRun, model: Sora) -> dict[str, Any]:
    """Stage 3: the figures of ``evaluation/generated.py``, for each number of movers that was trained."""
    p, pipeline = run.preset, SoraPipeline(model, run.tokenizer, run.reader, how(run.preset))
    _, frames, height, width = canvas = p.main_canvas
    world = {**p.world, "frames": frames, "height": height, "width": width}

    def rebuild(video: Tensor) -> Tensor:
        return torch.cat([run.tokenizer.decompress(run.tokenizer.compress(part)) for part in video.split(32)])

    found = {}
    for movers in range(p.movers[0], p.movers[1] + 1):
        generate = partial(sample, pipeline, canvas)
        found[f"{movers} digit" + "s" * (movers > 1)] = evaluate(
            generate, rebuild, run.kinds("heldout"), n=p.evaluated, world=world, movers=movers
        )
    return found


def train_sora(run: SoraRun) -> dict[str, Any]:
    """All stages. Returns what ``metrics.json`` holds."""
    began = time.perf_counter()
    path = run.folder / "run.json"
    if path.exists() and json.loads(path.read_text()) != run.identity:
        raise ValueError(f"{run.folder} was begun with other settings; use --fresh, or another --out")
    write_atomically(path, json.dumps(run.identity, indent=1).encode())
    cached = cache_latents(run)
    model, history = train_network(run, cached)
    found = measure_run(run, model)
    minutes = (time.perf_counter() - began) / 60
    model.save(run.folder / "sora.safetensors", {**run.identity, "figures": found, "minutes": minutes})
    metrics = {**run.identity, "figures": found, "minutes": minutes, "losses": history[:, 0].tolist()}
    write_atomically(run.folder / "metrics.json", json.dumps(metrics, indent=1).encode())
    return metrics


def changed(preset: SoraPreset, changes: list[str]) -> SoraPreset:
    """The preset with single numbers or names changed, given as ``field=value``.

    Raises: ValueError for an unknown field, or a value of the wrong kind.
    """
    kinds = {field.name: field.type for field in fields(SoraPreset) if field.type in (int, float, str)}
    for text in changes:
        key, _, value = text.partition("=")
        if key not in kinds:
            raise ValueError(f"--set changes {', '.join(kinds)}; not {key!r}")
        try:
            preset = replace(preset, **{key: kinds[key](value)})
        except ValueError as error:
            raise ValueError(f"{key}={value!r} is not of type {kinds[key].__name__}") from error
    return preset


def main(arguments: list[str] | None = None) -> int:
    """Train the generator and write it, with pictures and figures, to a folder. Continues by itself."""
    parser = argparse.ArgumentParser(prog="python -m course_lib.training.train_sora", description=main.__doc__)
    parser.add_argument("--preset", default="tiny", choices=PRESETS)
    parser.add_argument("--digits", default="auto", help="auto, embedded, mnist or both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, help="a video tokenizer; by default the one of the course")
    parser.add_argument("--out", type=Path, help="the run's folder; default: outputs/sora-<preset>-<digits>-seed<seed>")
    parser.add_argument("--fresh", action="store_true", help="delete an earlier run in that folder and start again")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="change values of the preset")
    options = parser.parse_args(arguments)
    folder = options.out or outputs_dir() / f"sora-{options.preset}-{options.digits}-seed{options.seed}"
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        device = pick_device()
        run = SoraRun(
            folder=folder,
            name=options.preset,
            preset=changed(PRESETS[options.preset], options.set),
            seed=options.seed,
            digits=options.digits,
            tokenizer=VideoTokenizer.from_checkpoint(options.tokenizer).to(device),
            reader=TextReader().to(device),
            device=device,
        )
        run.kinds("train")
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{options.preset} on {device}, into {folder}", flush=True)
        metrics = train_sora(run)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nstopped; the same command continues from {folder}")
        return 130
    print(json.dumps(metrics["figures"], indent=1))
    print(f"done in {metrics['minutes']:.1f} minutes: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
