"""How fast the world is made: clips, captions and tokens per second, beside the usual ways of doing it.

Run it with ``python benchmarks/bench_data.py`` on a quiet machine; every row is the best of several rounds.
"""

import argparse
import os
import time
from collections.abc import Callable
from itertools import islice

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from course_lib.data.captions import describe, parse
from course_lib.data.digits import Digits, load_digits
from course_lib.data.moving_mnist import CaptionedMovingMNIST, batches, sample_scenes, seeded
from course_lib.data.tokenizer import Tokenizer

FRAMES, CANVAS, MOVERS, BATCH = 16, 64, 2, 256


class UsualMovingMNIST(Dataset):
    """Moving MNIST as it is usually written: float positions, one frame and one digit at a time, in numpy."""

    def __init__(self, digits: Digits, length: int):
        self.images, self.length = digits.images.numpy(), length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        rng = np.random.default_rng(index)
        limit = CANVAS - 28
        clip = np.zeros((FRAMES, CANVAS, CANVAS), np.float32)
        for _ in range(MOVERS):
            glyph = self.images[rng.integers(len(self.images))].astype(np.float32) / 255
            y, x = rng.random(2)
            angle = rng.random() * 2 * np.pi
            dy, dx = 0.1 * np.sin(angle), 0.1 * np.cos(angle)
            for f in range(FRAMES):
                y, x = y + dy, x + dx
                if not 0 <= y <= 1:
                    y, dy = min(max(y, 0), 1), -dy
                if not 0 <= x <= 1:
                    x, dx = min(max(x, 0), 1), -dx
                top, left = int(y * limit), int(x * limit)
                patch = clip[f, top : top + 28, left : left + 28]
                np.maximum(patch, glyph, out=patch)
        return torch.from_numpy((clip * 255).astype(np.uint8))[None]


def rates(make: Callable[[], int], rounds: int) -> tuple[float, float]:
    """Best rates per second of wall time and of this process's CPU time; ``make`` returns how many things it made."""
    per_wall, per_cpu = 0.0, 0.0
    for _ in range(rounds + 1):  # the first warms up
        wall, cpu = time.perf_counter(), time.process_time()
        made = make()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        per_wall, per_cpu = max(per_wall, made / wall), max(per_cpu, made / max(cpu, 1e-9))
    return per_wall, per_cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    digits = load_digits("embedded")
    wanted = {"movers": (MOVERS, MOVERS), "frames": FRAMES, "height": CANVAS, "width": CANVAS}
    usual = UsualMovingMNIST(digits, 1024)
    ours = CaptionedMovingMNIST(digits, 1024, dtype=torch.uint8, **wanted)
    workers = os.cpu_count() or 1

    def fast(**options) -> Callable[[], int]:
        stream = batches(digits, BATCH, **wanted, **options)
        return lambda: sum(len(clips.video) for clips in islice(stream, 4))

    def loader(dataset: Dataset, workers: int, collate: Callable | None = None) -> Callable[[], int]:
        # Workers stay alive between rounds: their start would hide what is measured here.
        data = DataLoader(dataset, 64, num_workers=workers, persistent_workers=workers > 0, collate_fn=collate)
        return lambda: sum(len(batch["video"] if isinstance(batch, dict) else batch) for batch in data)

    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"{workers} cores, torch uses {torch.get_num_threads()} threads{load}")
    print(f"clips of {FRAMES}x{CANVAS}x{CANVAS} with {MOVERS} digits{'per second':>30}     ratio   per CPU second")
    reference = None
    for name, make in {
        "numpy, frame by frame": lambda: sum(1 for i in range(256) if len(usual[i])),
        f"  the same, DataLoader, {workers} workers": loader(usual, workers),
        "batches(), bytes": fast(dtype=torch.uint8),
        "batches(), floats": fast(),
        "batches(), bytes, RGB": fast(dtype=torch.uint8, colour=True),
        "CaptionedMovingMNIST, DataLoader": loader(ours, 0, ours.collate),
        f"  the same, {workers} workers": loader(ours, workers, ours.collate),
    }.items():
        per_wall, per_cpu = rates(make, rounds)
        reference = reference or per_wall
        cpu = "(in workers)" if "workers" in name else f"{per_cpu:,.0f}"
        print(f"{name:<42} {per_wall:>21,.0f} {per_wall / reference:>8.1f}x {cpu:>16}", flush=True)

    scenes = sample_scenes(512, seeded(0, 0), movers=(MOVERS, MOVERS)).to_scenes()
    texts = [describe(scene) for scene in scenes]
    tokenizer, g = Tokenizer(), seeded(0, 1)
    print("\ncaptions")
    for name, make in {
        "describe, every attribute": lambda: len([describe(scene) for scene in scenes]),
        "describe, paraphrased": lambda: len([describe(s, "descriptive", g, "train") for s in scenes]),
        "tokenizer.encode": lambda: len(tokenizer.encode(texts)),
        "parse": lambda: len([parse(text) for text in texts]),
    }.items():
        per_wall, per_cpu = rates(make, rounds)
        print(f"{name:<42} {per_wall:>21,.0f} {'':>9} {per_cpu:>16,.0f}", flush=True)


if __name__ == "__main__":
    main()
