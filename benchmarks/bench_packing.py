"""Useful tokens per second of a training step, by layout and row length: ``python benchmarks/bench_packing.py``.

256 digits-sized pictures of 14 to 56 pixels, in patches of 7 x 7. Prints the median of interleaved rounds, so that a
busy moment of the machine hits all layouts alike. With ``--flex`` also the forward pass through a compiled
FlexAttention, which takes some seconds to compile and needs a C++ compiler.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F

from course_lib.models.navit import NaViT, pack_images
from course_lib.models.vit import ViT
from course_lib.nn.attention import fused_attention
from course_lib.nn.packing import Packed, block_mask, document_attention

PATCH, ROUNDS, CAPACITIES = 7, 5, (64, 128, 256, 512, 1024, 2048)


def pictures(n: int) -> list[torch.Tensor]:
    """Random pictures: the longer side has 2 to 8 patches, the shorter one half of that up to all of it."""
    g = torch.Generator().manual_seed(0)
    longer = torch.randint(2, 9, (n,), generator=g)
    shorter = (longer * (0.5 + 0.5 * torch.rand(n, generator=g))).ceil().long()
    sizes = zip(longer.tolist(), shorter.tolist(), strict=True)
    return [torch.randn(1, PATCH * h, PATCH * w, generator=g) for h, w in sizes]


def seconds(jobs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each job; the jobs take turns, and the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(ROUNDS + 1):
        for name, job in jobs.items():
            began = time.perf_counter()
            job()
            times[name].append(time.perf_counter() - began)
    return {name: median(found[1:]) for name, found in times.items()}


def layouts(images: list[torch.Tensor]) -> dict[str, Packed]:
    """The same pictures, one per row and packed."""
    found = {"padded": pack_images(images, PATCH, 64, rows_of=lambda lengths, _: [[i] for i in range(len(lengths))])}
    return found | {f"packed, {c}": pack_images(images, PATCH, c) for c in CAPACITIES}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=64, help="channels of the model")
    parser.add_argument("--flex", action="store_true", help="also time compiled FlexAttention, forward only")
    chosen = parser.parse_args()
    d, images = chosen.width, pictures(256)
    labels = torch.randint(10, (256,))
    model = NaViT(PATCH, 1, 10, d, d // 16, 4, 2 * d, grid=(8, 8))
    vit = ViT((28, 28), PATCH, 1, 10, d, d // 16, 4, 2 * d)
    ways = layouts(images)
    useful = sum(x.numel() // PATCH**2 for x in images)

    def step(net, x):
        net.zero_grad()
        F.cross_entropy(net(x), labels).backward()

    jobs = {name: lambda p=p: step(model, p) for name, p in ways.items()}
    squares = torch.randn(256, 1, 28, 28)
    took = seconds({**jobs, "resized to 28 x 28": lambda: step(vit, squares)})
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {d} channels, {useful:,} tokens in 256 pictures"
    )
    for name, t in took.items():
        packed = ways.get(name)
        tokens = useful if packed else 256 * 16
        padding = f"{packed.padding:4.0%} padding" if packed else " " * 12
        print(f"{name:<20} {padding} {1000 * t:7.0f} ms {tokens / t:9,.0f} useful tokens/s {256 / t:7,.0f} pictures/s")
    if chosen.flex:
        flex(ways["packed, 1024"], d)


@torch.no_grad()
def flex(packed: Packed, d: int) -> None:
    """One attention, forward: a mask through the fused kernel against compiled FlexAttention."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention)
    q, k, v = torch.randn(3, len(packed.ids), d // 16, packed.ids.shape[1], 16)
    keep = block_mask(packed.ids)[:, None]
    began = time.perf_counter()
    document_attention(q, k, v, packed.ids, attend=compiled)
    print(f"FlexAttention: first call, with compiling, {time.perf_counter() - began:.1f} s")
    took = seconds(
        {
            "fused, masked": lambda: fused_attention(q, k, v, keep),
            "FlexAttention": lambda: document_attention(q, k, v, packed.ids, attend=compiled),
        }
    )
    print("one attention, forward, rows of 1024:", ", ".join(f"{n} {1000 * t:.1f} ms" for n, t in took.items()))


if __name__ == "__main__":
    main()
