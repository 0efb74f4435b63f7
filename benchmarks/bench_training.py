"""Seconds per step of the tiny preset, and of alternatives not taken: ``python benchmarks/bench_training.py``.

Prints the 10th percentile over repeated steps, which on a machine that also does other things is close to a quiet one.
"""

import time
from collections.abc import Callable

import torch
from torch import nn

from course_lib.data.tokenizer import VOCABULARY
from course_lib.diffusion.flow import add_noise, velocity
from course_lib.models.autoencoder import AutoencoderConfig, KLAutoencoder, autoencoder_loss
from course_lib.models.video_dit import VideoDiT, VideoDiTConfig
from course_lib.training.loop import matrices_and_rest
from course_lib.training.muon import Muon
from course_lib.training.presets import PRESETS

ROUNDS = 12


def seconds(step: Callable[[], object]) -> float:
    """10th percentile of the time of a step, after one to warm up."""
    step()
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return torch.tensor(times).quantile(0.1).item()


def autoencoder_step(layout: torch.memory_format, dtype: torch.dtype | None) -> Callable[[], object]:
    """One step of the autoencoder."""
    p = PRESETS["tiny"]
    config = AutoencoderConfig(width=p.ae_width, width_low=p.ae_width_low, blocks=p.ae_blocks)
    model = KLAutoencoder(config).to(memory_format=layout)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    video, random = torch.rand(p.ae_batch, 1, 2, p.height, p.width) * 2 - 1, torch.Generator()

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = autoencoder_loss(model, video, random, ink=p.ae_ink, kl=p.ae_kl, slow=p.ae_slow)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def transformer_step(
    images: bool, dtype: torch.dtype | None, muon: type[torch.optim.Optimizer]
) -> Callable[[], object]:
    """One step of the transformer, on single temporal patches or on whole clips."""
    p = PRESETS["tiny"]
    size = (p.frames, p.height // 8, p.width // 8)
    config = VideoDiTConfig(len(VOCABULARY), latent_size=size, patch=p.patch, dim=p.dim, depth=p.depth, heads=p.heads)
    model = VideoDiT(config)
    matrices, rest = matrices_and_rest(model, [m for b in model.blocks for m in (b.attention, b.mlp)])
    optimizers = [muon(matrices, lr=1e-2), torch.optim.AdamW(rest, 1e-3, fused=True)]
    n, frames = (p.image_batch, p.patch[0]) if images else (p.batch, p.frames)
    x0, eps = torch.randn(2, n, 4, frames, *size[1:])
    caption, first = torch.randint(1, 100, (n, 16)), torch.zeros(n, dtype=torch.long) if images else None

    def step() -> None:
        t = torch.rand(n)
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = (model(add_noise(x0, t, eps), t, caption, first).float() - velocity(x0, eps)).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


def main() -> None:
    """Print the table."""
    bf16, nhwc, nchw = torch.bfloat16, torch.channels_last, torch.contiguous_format
    cases = {
        "autoencoder, fp32, channels last": autoencoder_step(nhwc, None),
        "autoencoder, fp32": autoencoder_step(nchw, None),
        "autoencoder, bf16, channels last": autoencoder_step(nhwc, bf16),
        "transformer, images, fp32": transformer_step(True, None, Muon),
        "transformer, clips, fp32": transformer_step(False, None, Muon),
        "transformer, clips, bf16": transformer_step(False, bf16, Muon),
        "transformer, clips, fp32, torch.optim.Muon": transformer_step(False, None, torch.optim.Muon),
    }
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, step in cases.items():
        print(f"{name:<44} {1000 * seconds(step):7.0f} ms")


if __name__ == "__main__":
    main()
