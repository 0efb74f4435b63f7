"""The judge: a small digit reader, trained apart from any generator, that says what a clip shows.

It sees only crops around the centre of mass, so it judges the digit and not its place. Train it anew, on the training
digits of both kinds, with

    python -m course_lib.evaluation.judge
"""

import argparse
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from course_lib.evaluation.tracking import centred_crops
from course_lib.paths import checkpoints_dir
from course_lib.training.checkpoint import load_checkpoint, load_weights, save_checkpoint

KIND = "digit judge"


@dataclass(frozen=True)
class JudgeConfig:
    """Sizes of the ``Judge``."""

    width: int = 24


class Judge(nn.Module):
    """Crops (n, 28, 28) with brightness in [0, 1] to log-probabilities of the ten digits."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        w = config.width
        self.features = nn.Sequential(
            *(nn.Conv2d(1, w, 5, stride=2, padding=2), nn.BatchNorm2d(w), nn.ReLU()),  # 14 x 14
            *(nn.Conv2d(w, 2 * w, 3, padding=1), nn.BatchNorm2d(2 * w), nn.ReLU(), nn.MaxPool2d(2)),  # 7 x 7
            *(nn.Conv2d(2 * w, 2 * w, 3, padding=1), nn.BatchNorm2d(2 * w), nn.ReLU()),
        )
        self.read = nn.Linear(2 * w * 7 * 7, 10)

    def forward(self, crops: Float[Tensor, "n 28 28"]) -> Float[Tensor, "n 10"]:
        return self.read(self.features(crops.unsqueeze(1)).flatten(1)).log_softmax(dim=-1)

    @torch.no_grad()
    def read_frames(self, video: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b f 10"]:
        """Log-probabilities of the ten digits in every frame of clips with one digit."""
        crops = centred_crops(video)
        return torch.cat([self(part) for part in crops.flatten(0, 1).split(4096)]).unflatten(0, crops.shape[:2])

    def read_clips(self, video: Float[Tensor, "b c f h w"]) -> Int[Tensor, " b"]:
        """The digit of each clip: the largest log-probability, averaged over its frames."""
        return self.read_frames(video).mean(dim=1).argmax(dim=-1)


@lru_cache(maxsize=1)
def load_judge(path: Path | None = None) -> Judge:
    """The judge that the course ships, or another one. Raises ValueError if the file is not a judge."""
    found = load_checkpoint(path or checkpoints_dir() / "judge.safetensors", KIND)
    judge = Judge(JudgeConfig(**found.info["config"]))
    load_weights(judge, {name: tensor.float() for name, tensor in found.tensors.items()}, "the judge")
    return judge.eval()


def _jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random small shifts, turns and scales of (n, 28, 28), and a change of contrast: handwriting and blur vary."""
    n = len(images)
    angle, log_scale, contrast = (a * torch.randn(n, generator=generator) for a in (0.12, 0.08, 0.15))
    shift = torch.rand(n, 2, generator=generator) * 0.2 - 0.1  # up to 1.4 pixels
    cos, sin = angle.cos() * log_scale.exp(), angle.sin() * log_scale.exp()
    theta = torch.stack([torch.stack([cos, -sin, shift[:, 0]], -1), torch.stack([sin, cos, shift[:, 1]], -1)], dim=1)
    grid = F.affine_grid(theta, [n, 1, 28, 28], align_corners=False)
    moved = F.grid_sample(images[:, None], grid, align_corners=False)[:, 0]
    return moved.clamp(min=1e-6).pow(contrast.exp()[:, None, None])


def train_judge(steps: int, seed: int = 0, batch: int = 128) -> tuple[Judge, dict[str, float]]:
    """Train on the training digits of every kind there is, half of each batch from each; report held-out accuracy."""
    from course_lib.data.digits import load_digits

    kinds = _kinds()
    train = {kind: load_digits(kind, "train") for kind in kinds}
    crops = {kind: _tiles(d.images) for kind, d in train.items()}
    torch.manual_seed(seed)
    judge = Judge(JudgeConfig())
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        images, labels = [], []
        for kind in kinds:
            index = torch.randint(len(train[kind]), (batch // len(kinds),), generator=generator)
            images.append(crops[kind][index])
            labels.append(train[kind].labels[index])
        loss = F.nll_loss(judge(_jitter(torch.cat(images), generator)), torch.cat(labels))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    judge.eval()
    accuracy = {}
    for kind in kinds:
        held_out = load_digits(kind, "heldout")
        with torch.no_grad():
            read = judge(_tiles(held_out.images)).argmax(dim=-1)
        accuracy[kind] = (read == held_out.labels).float().mean().item()
    return judge, accuracy


def _kinds() -> tuple[str, ...]:
    from course_lib.data.digits import load_digits

    try:
        load_digits("mnist")
    except ValueError:
        return ("embedded",)
    return ("embedded", "mnist")


def _tiles(images: Tensor) -> Tensor:
    """Images (n, 28, 28) uint8 cut out exactly as a clip's frames are."""
    return centred_crops(images.float()[:, None, None].div(127.5).sub(1))[:, 0]


def main() -> None:
    """Train the judge and write it to ``data/checkpoints/judge.safetensors``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=checkpoints_dir() / "judge.safetensors")
    options = parser.parse_args()
    began = time.perf_counter()
    judge, accuracy = train_judge(options.steps, options.seed)
    if "mnist" not in accuracy:
        print("MNIST is not here, so this judge reads the embedded digits only (see course_lib.data.digits)")
    tensors = {name: v.half() if v.is_floating_point() else v for name, v in judge.state_dict().items()}
    info = {"kind": KIND, "config": asdict(judge.config), "steps": options.steps, "seed": options.seed}
    save_checkpoint(options.out, tensors, info | {"held-out accuracy": accuracy})
    figures = ", ".join(f"{kind} {share:.3f}" for kind, share in accuracy.items())
    print(f"{options.out}: held-out accuracy {figures}; {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
