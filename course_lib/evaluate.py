"""Measure the generator that comes with the course, or your own: ``make evaluate``.

python -m course_lib.evaluate --clips 2048 --checkpoint outputs/.../sora.safetensors
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from course_lib.data.digits import load_digits
from course_lib.evaluation.generated import evaluate
from course_lib.models.sora_pipeline import SoraPipeline
from course_lib.training.train_sora import Canvas, sample
from course_lib.viz import progress

ROWS = {  # key -> what the table says, and how it formats the number
    "digit": ("digit as asked", "{:.1%}"),
    "identity": ("every frame as asked", "{:.1%}"),
    "colour": ("colour as asked", "{:.1%}"),
    "direction": ("direction within 22.5 degrees", "{:.1%}"),
    "start": ("start as asked", "{:.1%}"),
    "residual": ("residual to the exact path, RMSE in pixels", "{:.2f}"),
    "flicker": ("flicker", "{:.3f}"),
    "frechet": ("Fréchet distance", "{:.2f}"),
}


def columns(pipeline: SoraPipeline, clips: int, kinds: tuple[str, ...], movers: int) -> dict[str, dict[str, Any]]:
    """Figures for generated clips, for real ones through the tokenizer, and for real ones as they are."""
    world = pipeline.model.about["settings"]
    canvas = Canvas(*max(world["canvases"]))
    _, frames, height, width = canvas
    asked = {key: world[key] for key in ("colours", "directions", "speeds")}

    def generate(prompts: list[str], random: torch.Generator) -> Tensor:
        parts = [prompts[i : i + 32] for i in range(0, len(prompts), 32)]
        bar = progress(parts, label=f"{movers} digit{'s' * (movers > 1)}")
        return torch.cat([sample(pipeline, canvas, part, random) for part in bar])

    @torch.no_grad()
    def rebuild(video: Tensor) -> Tensor:
        return torch.cat([pipeline.tokenizer.decompress(pipeline.tokenizer.compress(part)) for part in video.split(32)])

    world = asked | {"frames": frames, "height": height, "width": width}
    digits = [load_digits(kind, "heldout") for kind in kinds]
    return evaluate(generate, rebuild, digits, n=clips, world=world, movers=movers)


def table(found: dict[str, dict[str, Any]]) -> str:
    """The columns side by side as text; what was not measured is a dash."""
    found = {name: found[name] for name in ("generated", "tokenizer", "real")}
    width = max(len(title) for title, _ in ROWS.values())
    lines = [" " * width + "".join(f"{name:>12}" for name in found)]
    for key, (title, form) in ROWS.items():
        cells = [column.get(key) for column in found.values()]
        if any(cell is not None for cell in cells):
            lines.append(f"{title:<{width}}" + "".join(f"{'–' if c is None else form.format(c):>12}" for c in cells))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Generate clips of one and of two digits from full captions, and print what they show beside real clips."""
    parser = argparse.ArgumentParser(prog="python -m course_lib.evaluate", description=main.__doc__)
    parser.add_argument("--clips", type=int, default=2048, help="of each kind")
    parser.add_argument("--digits", default="embedded", help="handwriting of the real clips: embedded, mnist or both")
    parser.add_argument("--checkpoint", type=Path, help="by default data/checkpoints/sora.safetensors")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args(arguments)
    try:
        if options.clips < 40:
            raise ValueError(f"--clips {options.clips} is too few for a Fréchet distance; ask for 40 or more")
        pipeline = SoraPipeline.from_checkpoint(options.checkpoint)
        kinds = ("embedded", "mnist") if options.digits == "both" else (options.digits,)
        fewest, most = pipeline.model.about["settings"]["movers"]
        found = {}
        for movers in range(fewest, most + 1):
            found[movers] = columns(pipeline, options.clips, kinds, movers)
            print(f"\n{options.clips} clips of {movers} digit{'s' * (movers > 1)}\n{table(found[movers])}", flush=True)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
