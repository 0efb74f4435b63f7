"""Train a text-to-video generator from nothing: ``python -m course_lib.training.train --preset tiny``.

Five stages: autoencoder, cache of latents, diffusion transformer, evaluation, pictures. Each leaves a file in the run's
folder, so a run that was killed at any moment continues where it was and computes the same losses.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from course_lib.data.captions import describe
from course_lib.data.digits import Digits, load_digits
from course_lib.data.moving_mnist import render_scenes, sample_scenes, seeded
from course_lib.data.sampling import SceneBatch
from course_lib.data.scenes import Scene
from course_lib.data.tokenizer import Tokenizer
from course_lib.diffusion.flow import add_noise, sample_times, velocity
from course_lib.models.autoencoder import DOWNSAMPLING, AutoencoderConfig, KLAutoencoder, autoencoder_loss
from course_lib.models.video_dit import VideoDiT, VideoDiTConfig
from course_lib.paths import outputs_dir, write_atomically
from course_lib.profile import pick_device
from course_lib.training.checkpoint import (
    load_checkpoint,
    load_weights,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    under_prefix,
    with_prefix,
)
from course_lib.training.ema import EMA
from course_lib.training.loop import Step, muon_and_adamw, train, warm_flat_decay
from course_lib.training.presets import PRESETS, Preset, choose, settings
from course_lib.video_generator import VideoGenerator, World, first_sentence
from course_lib.viz import progress

# Streams of random numbers: each purpose has its own, so that changing one leaves the others alone.
AE_FRAMES, CACHE, DIT, SHEET, EVALUATION, INITIAL = range(6)
SHEET_DIGITS = (3, 7, 8, 4, 2)
SHEET_FRAMES = (0, 5, 10, 15)


@dataclass
class Run:
    """One training run: its folder, and everything that decides its numbers."""

    folder: Path
    name: str
    preset: Preset
    seed: int
    digits: str
    save_seconds: float
    device: torch.device

    def stream(self, purpose: int, index: int) -> torch.Generator:
        """Random numbers for one purpose and step."""
        return seeded(self.seed * 8 + purpose, index)

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to be continued."""
        source = load_digits(self.digits).source  # "auto" means other digits once MNIST has been downloaded
        return {"preset": self.name, "seed": self.seed, "digits": source, "settings": settings(self.preset)}

    @property
    def world(self) -> World:
        """What the generator learns."""
        p = self.preset
        return World(frames=p.frames, height=p.height, width=p.width, directions=p.directions, speeds=p.speeds)

    def scenes(self, n: int, generator: torch.Generator, frames: int | None = None) -> SceneBatch:
        """Random scenes of the run's world."""
        p = self.preset
        size = {"frames": frames or p.frames, "height": p.height, "width": p.width}
        return sample_scenes(n, generator, directions=p.directions, speeds=p.speeds, **size)

    def clips(self, scenes: SceneBatch, generator: torch.Generator, split: str = "train") -> Tensor:
        """Draw scenes. With "both", each clip takes either kind of digit with equal chance, whatever their numbers."""
        if self.digits != "both":
            return render_scenes(scenes, load_digits(self.digits, split), generator)
        kinds: list[Digits] = [load_digits(kind, split) for kind in ("embedded", "mnist")]
        choice = torch.randint(2, (len(scenes),), generator=generator)
        video = torch.empty(len(scenes), 1, scenes.frames, scenes.height, scenes.width)
        for k, kind in enumerate(kinds):
            mine = (choice == k).nonzero()[:, 0]
            if len(mine):
                video[mine] = render_scenes(scenes[mine], kind, generator)
        return video


@runtime_checkable
class Place(Protocol):
    """Where a stage keeps its state, how often, and on which device it computes; a ``Run`` is one."""

    folder: Path
    save_seconds: float
    device: torch.device


def run_stage(
    run: Place,
    label: str,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    loss_of_step: Callable[[int], Tensor],
    *,
    steps: int,
    ema: EMA | None = None,
    schedule: Callable[[int, int], float] = warm_flat_decay,
    after_step: Callable[[Step, dict[str, Tensor]], None] | None = None,
    low: bool = False,
) -> Tensor:
    """Train a model to its last step, from its saved state if there is one.

    Args:
        low: compute in bfloat16 on a CPU as well.
        after_step: called with every step and a dictionary of further tensors that the state keeps.
    Returns: the history (steps, 3): loss, gradient norm, seconds.
    """
    path = run.folder / f"{label}.safetensors"
    names = {p: name for name, p in model.named_parameters()}
    history: list[list[float]] = []
    extra: dict[str, Tensor] = {}
    if path.exists():
        found = load_checkpoint(path, f"state of {label}")
        load_weights(model, under_prefix("model", found.tensors), f"{label} in {path}")
        if ema is not None:
            ema.restore(under_prefix("ema", found.tensors))
        for i, optimizer in enumerate(optimizers):
            restore_optimizer(optimizer, names, under_prefix(f"optimizer{i}", found.tensors))
        history = found.tensors["history"].tolist()
        extra = under_prefix("extra", found.tensors)

    def save() -> None:
        tensors = with_prefix("model", model.state_dict()) | with_prefix("extra", extra)
        if ema is not None:
            tensors |= with_prefix("ema", ema.weights)
        for i, optimizer in enumerate(optimizers):
            tensors |= with_prefix(f"optimizer{i}", optimizer_tensors(optimizer, names))
        tensors["history"] = torch.tensor(history, dtype=torch.float64)
        save_checkpoint(path, tensors, {"kind": f"state of {label}", "step": len(history)})

    start = len(history)
    if start < steps:
        autocast = torch.bfloat16 if low or run.device.type == "cuda" else None
        taken = train(
            loss_of_step, model, optimizers, steps=steps, start=start, schedule=schedule, ema=ema, autocast=autocast
        )
        bar = progress(taken, steps - start, label=label if start == 0 else f"{label} (from step {start})")
        saved = time.monotonic()
        smooth = None
        for step in bar:
            history.append([step.loss, step.grad_norm, step.seconds])
            smooth = step.loss if smooth is None else 0.95 * smooth + 0.05 * step.loss
            bar.note = f"loss {smooth:.4f} · {step.seconds:.2f} s/step"
            if after_step is not None:
                after_step(step, extra)
            if step.step == steps or time.monotonic() - saved > run.save_seconds:
                save()
                saved = time.monotonic()
    return torch.tensor(history, dtype=torch.float64)


def train_autoencoder(run: Run) -> tuple[KLAutoencoder, Tensor]:
    """Stage 1: frames of the world, reconstructed; in pairs, so that the code can be slow."""
    p = run.preset
    torch.manual_seed(run.seed * 8 + INITIAL)
    config = AutoencoderConfig(width=p.ae_width, width_low=p.ae_width_low, blocks=p.ae_blocks)
    model = KLAutoencoder(config).to(run.device, memory_format=torch.channels_last)  # a tenth faster on CPUs
    optimizer = torch.optim.AdamW(model.parameters(), lr=p.ae_lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)

    def loss_of_step(step: int) -> Tensor:
        random = run.stream(AE_FRAMES, step)
        pairs = run.clips(run.scenes(p.ae_batch, random, frames=2), random).to(run.device)
        return autoencoder_loss(model, pairs, random, ink=p.ae_ink, kl=p.ae_kl, slow=p.ae_slow)

    def schedule(step: int, steps: int) -> float:
        return warm_flat_decay(step, steps, flat=0.0)

    history = run_stage(run, "autoencoder", model, [optimizer], loss_of_step, steps=p.ae_steps, schedule=schedule)
    return model.eval().requires_grad_(False), history


@torch.no_grad()
def cache_latents(run: Run, autoencoder: KLAutoencoder) -> tuple[Tensor, Tensor]:
    """Stage 2: latents (clips, z, f, h, w) in bfloat16 and caption ids (clips, captions, words); fits the whitening."""
    p, path = run.preset, run.folder / "latents.safetensors"
    if not path.exists():
        latents, texts = [], []
        parts = list(torch.arange(p.clips).split(64))
        for i, part in enumerate(progress(parts, label="latents")):
            random = run.stream(CACHE, i)
            scenes = run.scenes(len(part), random)
            latents.append(autoencoder.compress(run.clips(scenes, random).to(run.device)).bfloat16().cpu())
            for scene in scenes:
                levels = ["short" if x < p.short else "descriptive" for x in torch.rand(p.captions, generator=random)]
                texts += [wording(run, scene, level, random) for level in levels]
        words = Tokenizer().encode(texts).unflatten(0, (p.clips, p.captions))
        raw = torch.cat(latents)
        autoencoder.fit_whitening(raw.float().to(run.device))
        white = {"mean": autoencoder.latent_mean, "std": autoencoder.latent_std}
        channel = (1, -1, 1, 1, 1)
        raw = ((raw.float() - white["mean"].cpu().view(channel)) / white["std"].cpu().view(channel)).bfloat16()
        save_checkpoint(path, {"latents": raw, "words": words, **white}, {"kind": "latents"})
    found = load_checkpoint(path, "latents").tensors
    autoencoder.latent_mean.copy_(found["mean"])
    autoencoder.latent_std.copy_(found["std"])
    return found["latents"], found["words"]


def train_dit(run: Run, autoencoder: KLAutoencoder, latents: Tensor, words: Tensor) -> tuple[VideoGenerator, Tensor]:
    """Stage 3: flow matching on cached latents, first on single temporal patches ("images"), then on whole clips."""
    p = run.preset
    torch.manual_seed(run.seed * 8 + INITIAL)
    size = (p.frames, p.height // DOWNSAMPLING, p.width // DOWNSAMPLING)
    config = VideoDiTConfig(len(Tokenizer()), latent_size=size, patch=p.patch, dim=p.dim, depth=p.depth, heads=p.heads)
    model = VideoDiT(config).to(run.device)
    hidden = [part for block in model.blocks for part in (block.attention, block.mlp)]
    optimizers = muon_and_adamw(model, hidden, muon_lr=p.muon_lr, adamw_lr=p.adamw_lr)
    ema = EMA(model, p.ema)
    about = {"shift": p.shift, **run.identity}
    generator = VideoGenerator(autoencoder, model, run.world, about)
    latents, words = latents.to(run.device), words.to(run.device)
    image_steps = round(p.image_share * p.steps)

    def loss_of_step(step: int) -> Tensor:
        random = run.stream(DIT, step)
        images = step < image_steps
        n = p.image_batch if images else p.batch
        clip = torch.randint(len(latents), (n,), generator=random)
        caption = words[clip, torch.randint(p.captions, (n,), generator=random)]
        caption = caption * (torch.rand(n, 1, generator=random) >= p.drop).to(run.device)
        x0, first = latents[clip].float(), None
        if images:  # one random temporal patch per clip, at its own place in time
            first = torch.randint(config.grid[0], (n,), generator=random).to(run.device)
            frame = first[:, None] * p.patch[0] + torch.arange(p.patch[0], device=run.device)
            x0 = x0.gather(2, frame[:, None, :, None, None].expand(-1, x0.shape[1], -1, *x0.shape[3:]))
        eps = torch.randn(x0.shape, generator=random).to(run.device)
        t = sample_times(n, random, shift=p.shift).to(run.device)
        predicted = model(add_noise(x0, t, eps), t, caption, first)
        return (predicted.float() - velocity(x0, eps)).square().mean()

    moments = {round(p.steps * (k + 1) / p.previews) for k in range(p.previews)} if p.previews else set()

    def preview(step: Step, extra: dict[str, Tensor]) -> None:
        if step.step in moments:
            with ema.applied():
                row = sheet_row(run, generator)
            extra["sheet"] = torch.cat([extra["sheet"], row[None]]) if "sheet" in extra else row[None]
            model.train()
            save_sheet(run, extra["sheet"])

    history = run_stage(run, "transformer", model, optimizers, loss_of_step, steps=p.steps, ema=ema, after_step=preview)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(ema.weights[name])
    return generator.eval().requires_grad_(False), history


def wording(run: Run, scene: Scene, level: str, generator: torch.Generator) -> str:
    """A caption as the model reads it: the plain wording, or a random one if the preset trains on paraphrases."""
    return first_sentence(describe(scene, level, generator, "train" if run.preset.paraphrases else None))


def asked(run: Run, scenes: SceneBatch, level: str, generator: torch.Generator) -> Tensor:
    """Caption ids of scenes."""
    return Tokenizer().encode([wording(run, scene, level, generator) for scene in scenes])


@torch.no_grad()
def sheet_row(run: Run, generator: VideoGenerator) -> Tensor:
    """One row of the sample sheet: a few frames of a few digits, (height, width) in 0..255."""
    random, p = run.stream(SHEET, 0), run.preset
    scenes = run.scenes(len(SHEET_DIGITS), random)
    scenes.digit[:, 0] = torch.tensor(SHEET_DIGITS)
    words = asked(run, scenes, "descriptive", random)
    video = generator.sample(words, random, guidance=p.guidance, steps=p.sample_steps)
    frames = [frame % p.frames for frame in SHEET_FRAMES]
    tiles = video[:, 0, frames].flatten(0, 1)  # (digits frames, h, w)
    return ((torch.cat(list(tiles), dim=-1) + 1) * 127.5).round().clamp(0, 255).byte()


def save_sheet(run: Run, rows: Tensor) -> None:
    """The sample sheet so far: one row per moment of training, the latest at the bottom."""
    import io

    from PIL import Image

    lined = nn.functional.pad(rows, (0, 0, 0, 1), value=128).flatten(0, 1)
    buffer = io.BytesIO()
    Image.fromarray(lined.numpy()).save(buffer, "PNG")
    write_atomically(run.folder / "sheet.png", buffer.getvalue())


@torch.no_grad()
def evaluate(run: Run, generator: VideoGenerator) -> tuple[dict[str, Any], Tensor]:
    """Stage 4: what the clips show against what was asked, beside real clips of held-out digits; also a few clips."""
    from course_lib.evaluation.metrics import measure, table

    p, random = run.preset, run.stream(EVALUATION, 0)
    scenes = run.scenes(p.evaluated, random)
    scenes.digit[:, 0] = torch.arange(p.evaluated) % 10
    began = time.perf_counter()
    options = {"guidance": p.guidance, "steps": p.sample_steps}
    video = generator.sample(asked(run, scenes, "descriptive", random), random, **options)
    seconds = time.perf_counter() - began
    short = generator.sample(asked(run, scenes, "short", random), random, **options)
    real = run.clips(scenes, random, "heldout")
    rebuilt = [generator.decode(generator.autoencoder.compress(part.to(run.device))).cpu() for part in real.split(32)]
    clips = {"descriptive": video, "short": short, "autoencoder": torch.cat(rebuilt), "real": real}
    columns = {name: measure(v, scenes).summary() for name, v in clips.items()}
    for key in ("speed", "start", "residual"):
        columns["short"][key] = None  # a short caption asks for neither start nor speed
    print(table(columns))
    print(f"{p.evaluated} clips each; 'short' asks for digit and direction only; 'real' has held-out digits")
    return {"clips": p.evaluated, "seconds per clip": seconds / p.evaluated, "figures": columns}, video[:10]


def save_loss_curve(run: Run, histories: dict[str, Tensor]) -> None:
    """Loss against step for both trained parts, raw and smoothed."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, (name, history) in zip(figure.subplots(1, len(histories)), histories.items(), strict=True):
        loss = history[:, 0]
        window = min(25, len(loss))
        smooth = loss.unfold(0, window, 1).mean(dim=-1)
        axes.semilogy(range(1, len(loss) + 1), loss, color="0.75", linewidth=0.6)
        axes.semilogy(range(window, len(loss) + 1), smooth, color="#0072B2")
        axes.set(title=f"{name}: loss", xlabel="step")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_atomically(run.folder / "loss.png", buffer.getvalue())


def nominal_minutes(history: Tensor, parts: Sequence[tuple[int, int]]) -> float:
    """Training time of a quiet machine: the 10th percentile of the step times of each part, times its steps."""
    return sum(history[a:b, 2].quantile(0.1).item() * (b - a) for a, b in parts if b > a) / 60


def claim_folder(run: Run) -> bool:
    """Make the folder this run's own; True if it already holds the finished run.

    A run may be given more steps than it was begun with: it then continues from its last state, with the learning rate
    that the longer schedule has there.

    Raises: ValueError if the folder belongs to a run with other settings, or is damaged.
    """
    path, metrics = run.folder / "run.json", run.folder / "metrics.json"
    mine = json.loads(json.dumps(run.identity))
    known = mine
    if path.exists():
        try:
            known = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is damaged ({error}); start again with --fresh") from error
        longer = {**known, "settings": {**known.get("settings", {}), "steps": run.preset.steps}}
        if longer != mine or known["settings"]["steps"] > run.preset.steps:
            raise ValueError(f"{run.folder} was begun with other settings; use --fresh, or another --out")
    if known != mine:
        metrics.unlink(missing_ok=True)
    write_atomically(path, json.dumps(mine, indent=1).encode())
    return metrics.exists()


def train_generator(run: Run) -> dict[str, Any]:
    """All stages. Returns what ``metrics.json`` holds."""
    began = time.perf_counter()
    for leftover in run.folder.glob(".*.tmp"):  # of a write that was killed
        leftover.unlink()
    resumed = (run.folder / "autoencoder.safetensors").exists()

    marks = [("start", time.perf_counter())]
    autoencoder, ae_history = train_autoencoder(run)
    marks.append(("autoencoder", time.perf_counter()))
    latents, words = cache_latents(run, autoencoder)
    marks.append(("latents", time.perf_counter()))
    generator, dit_history = train_dit(run, autoencoder, latents, words)
    marks.append(("transformer", time.perf_counter()))
    result, clips = evaluate(run, generator)
    marks.append(("evaluation", time.perf_counter()))

    images = round(run.preset.image_share * run.preset.steps)
    nominal = {
        "autoencoder": nominal_minutes(ae_history, [(0, len(ae_history))]),
        "transformer": nominal_minutes(dit_history, [(0, images), (images, len(dit_history))]),
    }
    generator.info |= {"figures": result["figures"]}
    generator.save(run.folder / "generator.safetensors")
    save_loss_curve(run, {"autoencoder": ae_history, "transformer": dit_history})
    from course_lib.viz import save_gif

    save_gif(clips, run.folder / "samples.gif", scale=2)
    marks.append(("pictures", time.perf_counter()))
    metrics = {
        **run.identity,
        **result,
        "device": str(run.device),
        "threads": torch.get_num_threads(),
        "resumed": resumed,
        "minutes": {name: (now - marks[i][1]) / 60 for i, (name, now) in enumerate(marks[1:])},
        "minutes in all": (time.perf_counter() - began) / 60,
        "nominal training minutes": nominal,
        "losses": {"autoencoder": ae_history[:, 0].tolist(), "transformer": dit_history[:, 0].tolist()},
    }
    write_atomically(run.folder / "metrics.json", json.dumps(metrics, indent=1).encode())
    return metrics


def main(arguments: list[str] | None = None) -> int:
    """Train a video generator end to end and write it, with pictures and figures, to a folder. Continues by itself."""
    parser = argparse.ArgumentParser(prog="python -m course_lib.training.train", description=main.__doc__)
    parser.add_argument("--preset", default="tiny", choices=PRESETS)
    parser.add_argument("--digits", default="auto", help="auto, embedded, mnist, both, or a folder of images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="the run's folder; default: outputs/<preset>-<digits>-seed<seed>")
    parser.add_argument("--fresh", action="store_true", help="delete an earlier run in that folder and start again")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="change values of the preset")
    parser.add_argument("--save-seconds", type=float, default=20.0, help="how often the state is saved")
    options = parser.parse_args(arguments)
    kind = Path(options.digits).name
    folder = options.out or outputs_dir() / f"{options.preset}-{kind}-seed{options.seed}"
    try:
        preset = choose(options.preset, dict(change.split("=", 1) for change in options.set))
        if options.fresh and folder.exists():
            if not (folder / "run.json").exists():
                raise ValueError(f"{folder} is not a training run (it has no run.json), so --fresh does not delete it")
            shutil.rmtree(folder)
        run = Run(folder, options.preset, preset, options.seed, options.digits, options.save_seconds, pick_device())
        if claim_folder(run):
            print(f"{folder} holds the finished run; look at sheet.png and metrics.json, or start again with --fresh")
            return 0
        source = load_digits(options.digits).source
        print(f"{options.preset} on {run.device}, digits: {source}, into {folder}", flush=True)
        metrics = train_generator(run)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nstopped; the same command continues from {folder}")
        return 130
    print(f"done in {metrics['minutes in all']:.1f} minutes: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
