"""The course's DiT beside diffusers' ``DiTTransformer2DModel`` of the same shape: one training step, same run.

    python benchmarks/bench_dit.py

Forward, backward, AdamW, in float32 and under bfloat16 autocast; on a GPU also compiled. Both get the same data;
steps of the two alternate, so that a busy machine disturbs both alike, and the median step counts.
"""

import statistics
import time

import torch
from torch import Tensor, nn

from course_lib.models.dit import DiT, DiTConfig
from course_lib.profile import pick_device

SHAPES = {
    "lesson 10, patch 2": (DiTConfig(size=(12, 12), patch=2, d=96, depth=6, heads=4), 64),
    "lesson 10, patch 1": (DiTConfig(size=(12, 12), patch=1, d=96, depth=6, heads=4), 16),
    "S/4 of the paper": (DiTConfig(size=(32, 32), patch=4, d=384, depth=12, heads=6, classes=1000), 8),
    "B/2 of the paper": (DiTConfig(size=(32, 32), patch=2, d=768, depth=12, heads=12, classes=1000), 64),
}
ON_A_CPU = 3  # the first shapes
STEPS = 12


class Theirs(nn.Module):
    """diffusers' model behind our signature."""

    def __init__(self, config: DiTConfig) -> None:
        from diffusers import DiTTransformer2DModel

        super().__init__()
        self.scale = config.time_scale
        self.model = DiTTransformer2DModel(
            num_attention_heads=config.heads,
            attention_head_dim=config.d // config.heads,
            in_channels=config.channels,
            out_channels=config.channels,
            num_layers=config.depth,
            sample_size=config.size[0],
            patch_size=config.patch,
            num_embeds_ada_norm=config.classes,
            norm_eps=1e-6,
        )

    def forward(self, xt: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.model(xt, timestep=self.scale * t, class_labels=labels, return_dict=False)[0]


def step_of(model: nn.Module, batch: tuple[Tensor, ...], low: bool):
    """One training step as a function."""
    device = batch[0].device
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)

    def step() -> None:
        xt, t, labels, target = batch
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            predicted = model(xt, t, labels)
        (predicted.float() - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def seconds(steps: dict, device: torch.device) -> dict[str, float]:
    """The median time of each step, taken in turns."""
    times = {name: [] for name in steps}
    for turn in range(STEPS + 3):
        for name, step in steps.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn >= 3:  # the first ones choose kernels and compile
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


def main() -> None:
    device = pick_device()
    modes = [("float32", False, False), ("bfloat16", True, False)]
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        modes += [("bfloat16, compiled", True, True)]
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, (config, b) in list(SHAPES.items())[: ON_A_CPU if device.type == "cpu" else None]:
        torch.manual_seed(0)
        x = torch.randn(b, config.channels, *config.size, device=device)
        batch = (
            x,
            torch.rand(b, device=device),
            torch.randint(config.classes, (b,), device=device),
            torch.randn_like(x),
        )
        for mode, low, compiled in modes:
            models = {"ours": DiT(config).to(device), "diffusers": Theirs(config).to(device)}
            if compiled:
                models = {key: torch.compile(model) for key, model in models.items()}
            taken = seconds({key: step_of(model, batch, low) for key, model in models.items()}, device)
            ours, theirs = taken["ours"], taken["diffusers"]
            print(
                f"{name}, batch {b}, {mode}: ours {1e3 * ours:.1f} ms, diffusers {1e3 * theirs:.1f} ms, "
                f"{theirs / ours:.2f} x"
            )


if __name__ == "__main__":
    main()
