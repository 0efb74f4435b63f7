"""An exponential moving average of the weights: what one samples from."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """A running average of a module's parameters.

    The decay grows with the step, min(decay, (1 + step) / (10 + step)), so that early averages forget the
    initial weights quickly.

    Source: Polyak and Juditsky 1992; the growing decay is common practice in diffusion codebases.
    """

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} must lie in [0, 1)")
        self.decay = decay
        self._live = dict(module.named_parameters())
        self.weights: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the module's present weights; ``step`` counts updates from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.weights.values()), list(self._live.values()), 1 - decay)

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continue from saved averages. Raises ValueError if the names differ."""
        if tensors.keys() != self.weights.keys():
            raise ValueError(f"averages for other weights: {sorted(tensors.keys() ^ self.weights.keys())[:3]} …")
        for name, tensor in tensors.items():
            self.weights[name].copy_(tensor)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside this context the module computes with the averaged weights."""
        live = {name: p.data for name, p in self._live.items()}
        try:
            for name, p in self._live.items():
                p.data = self.weights[name]
            yield
        finally:
            for name, p in self._live.items():
                p.data = live[name]
