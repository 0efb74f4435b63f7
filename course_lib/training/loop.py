"""The training loop of every lesson: a generator that yields what happened, so that plotting stays with the caller."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from course_lib.training.ema import EMA
from course_lib.training.muon import Muon


class Step(NamedTuple):
    """What one training step reports."""

    step: int  # 1 … steps: how many steps are now done
    loss: float
    lr: float  # as a share of the peak: every optimizer has its own
    grad_norm: float  # before clipping
    seconds: float


def warm_flat_decay(step: int, steps: int, *, warmup: int = 50, flat: float = 0.5, final: float = 0.02) -> float:
    """Learning rate at ``step`` of ``steps``, as a share of its peak: linear up, flat, linear down to ``final``.

    Args:
        step: 0 … steps - 1.
        warmup: steps until the peak; at most a tenth of all steps.
        flat: the share of all steps after which the descent begins.
        final: the share of the peak at the end.
    """
    warmup = max(1, min(warmup, steps // 10))
    down = (step - flat * steps) / max(1.0, (1 - flat) * steps)
    return min((step + 1) / warmup, 1.0) * (1 - (1 - final) * min(max(down, 0.0), 1.0))


def matrices_and_rest(model: nn.Module, inside: Sequence[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
    """Split parameters for Muon and AdamW: matrices and kernels (2, 4 or 5 axes) of ``inside``, and everything else."""
    chosen = {p: None for module in inside for p in module.parameters() if p.ndim in (2, 4, 5)}
    return list(chosen), [p for p in model.parameters() if p not in chosen]


def muon_and_adamw(
    model: nn.Module, inside: Sequence[nn.Module], *, muon_lr: float = 0.01, adamw_lr: float = 1.5e-3
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the modules ``inside``, fused AdamW (no weight decay) for all other parameters."""
    matrices, rest = matrices_and_rest(model, inside)
    adamw = torch.optim.AdamW(rest, lr=adamw_lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    return [Muon(matrices, lr=muon_lr), adamw] if matrices else [adamw]


def train(
    loss_of_step: Callable[[int], Tensor],
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    steps: int,
    start: int = 0,
    schedule: Callable[[int, int], float] = warm_flat_decay,
    clip: float = 1.0,
    ema: EMA | None = None,
    autocast: torch.dtype | None = None,
) -> Iterator[Step]:
    """Train from ``start`` to ``steps``, yielding after every step.

    All randomness of a step must follow from its number: ``loss_of_step`` seeds its own generators with it. Then a run
    that is stopped and continued from a checkpoint computes the same losses as one that never stopped, and there is no
    random state to save.

    Args:
        loss_of_step: from the step's index (0 … steps - 1) to a scalar loss.
        model: whose gradients are clipped to the norm ``clip``.
        schedule: (step, steps) to the share of each optimizer's own learning rate.
        ema: updated after every step when given.
        autocast: a lower precision for the forward pass; None computes in the dtype of the weights.
    Raises: ValueError if start > steps; RuntimeError when the loss is no longer finite.
    """
    if start > steps:
        raise ValueError(f"start={start} lies beyond steps={steps}")
    device = next(model.parameters()).device
    peak = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    model.train()
    try:
        for step in range(start, steps):
            began = time.perf_counter()
            share = schedule(step, steps)
            for optimizer, rates in zip(optimizers, peak, strict=True):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * share

            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                loss = loss_of_step(step)
            value = loss.item()
            if value != value or abs(value) == float("inf"):
                raise RuntimeError(f"the loss of step {step} is {value}; lower the learning rates or clip harder")
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), clip).item()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if ema is not None:
                ema.update(step)
            yield Step(step + 1, value, share, norm, time.perf_counter() - began)
    finally:  # also when the caller stops early: leave the optimizers as they came
        for optimizer, rates in zip(optimizers, peak, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
