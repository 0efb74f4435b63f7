"""How the cost of ViViT's four models grows with the frames of a clip: ``python benchmarks/bench_vivit.py``.

For each model and number of frames: operations as PyTorch counts them, and milliseconds per clip forward and per step
of training, the 10th percentile over repeated runs. Frames of 48 x 48 pixels, boxes of 1 x 6 x 6.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from course_lib.models.vivit import ENCODERS, ViViT


def milliseconds(work: Callable[[], object], rounds: int) -> float:
    """10th percentile of the time of ``work``, after one run to warm up."""
    work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - start))
    return torch.tensor(times).quantile(0.1).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16, 32, 64])
    asked = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, one clip at a time")
    for name, encoder in ENCODERS.items():
        for frames in asked.frames:
            model = ViViT((frames, 48, 48), (1, 6, 6), 1, 8, d=48, heads=4, layers=2, d_ff=96, encoder=encoder)
            clip = torch.randn(1, 1, frames, 48, 48)
            with torch.no_grad():
                forward = milliseconds(lambda model=model, clip=clip: model(clip), asked.rounds)
                # The fused kernel hides its operations from the counter.
                with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                    model(clip)
            both = milliseconds(lambda model=model, clip=clip: model(clip).sum().backward(), asked.rounds)
            print(
                f"{name:>28}, {frames:3} frames: {counter.get_total_flops() / 1e6:8.1f} M operations, "
                f"{forward:7.1f} ms forward, {both:7.1f} ms with backward"
            )


if __name__ == "__main__":
    main()
