r"""Denoisers that need no training because the answer is known: a finite set of images, and mixtures of Gaussians.

The best guess of the data, E[x0 | x_t], has a closed form for both. Everything else (noise, v, velocity, score) follows
from it, so whole samplers can be judged exactly, without a network whose errors would hide theirs.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from course_lib.diffusion.objectives import target
from course_lib.diffusion.schedules import Line, Steps


@dataclass(frozen=True, eq=False)
class Images:
    """Data that are one of these images, each equally likely."""

    images: Float[Tensor, "n *s"]

    def x0(self, xt: Float[Tensor, "b *s"], alpha: Float[Tensor, " b"], sigma: Float[Tensor, " b"]) -> Tensor:
        r"""E[x0 | x_t]: the mean of all images, each weighted by how likely it would become x_t.

        softmax_i(-|x_t - alpha x_i|^2 / 2 sigma^2) x_i
        """
        return torch.einsum("bn,n...->b...", self.weights(xt, alpha, sigma), self.images)

    def weights(self, xt, alpha, sigma) -> Float[Tensor, "b n"]:
        """The probability of each image, given x_t."""
        noisy, clean = xt.flatten(1), self.images.flatten(1)
        alpha, sigma = alpha.to(xt.dtype)[:, None], sigma.to(xt.dtype)[:, None]
        # |x - alpha x_i|^2 without the |x|^2 that all images share
        distance = alpha.square() * clean.square().sum(1) - 2 * alpha * noisy @ clean.T
        return (-distance / (2 * sigma.square())).softmax(dim=1)

    def nearest(self, x: Float[Tensor, "b *s"]) -> tuple[Float[Tensor, " b"], Int[Tensor, " b"]]:
        """Root mean square distance per pixel to the nearest image, and which one that is."""
        distance, index = torch.cdist(x.flatten(1), self.images.flatten(1)).min(dim=1)
        return distance / x[0].numel() ** 0.5, index


@dataclass(frozen=True, eq=False)
class Gaussians:
    """A mixture of round Gaussians: means (k, d), standard deviations (k,), probabilities (k,)."""

    means: Float[Tensor, "k d"]
    stds: Float[Tensor, " k"]
    shares: Float[Tensor, " k"]

    def x0(self, xt: Float[Tensor, "b d"], alpha: Float[Tensor, " b"], sigma: Float[Tensor, " b"]) -> Tensor:
        """E[x0 | x_t]."""
        alpha, sigma = alpha.to(xt.dtype)[:, None], sigma.to(xt.dtype)[:, None]
        variance = alpha.square() * self.stds.square() + sigma.square()  # (b, k), of x_t given the component
        offset = xt[:, None] - alpha[..., None] * self.means  # (b, k, d)
        pull = alpha * self.stds.square() / variance
        guess = self.means + pull[..., None] * offset  # the best guess within each component
        share = self.shares.log() - offset.square().sum(-1) / (2 * variance) - xt.shape[1] / 2 * variance.log()
        return (share.softmax(dim=1)[..., None] * guess).sum(dim=1)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
        """n samples, and the component that each came from."""
        which = torch.multinomial(self.shares, n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[which] + self.stds[which, None] * z, which

    def only(self, component: int) -> "Gaussians":
        """The data with a given label: one component alone."""
        return Gaussians(self.means[[component]], self.stds[[component]], torch.ones_like(self.shares[:1]))


def ideal_model(data: Images | Gaussians, schedule: Steps | Line, prediction: str | None = None):
    """A perfect "network" for this data: ``model(xt, t)``, as ``course_lib.diffusion.samplers`` calls it.

    Args:
        prediction: see ``course_lib.diffusion.objectives``; by default "eps" for ``Steps`` and "velocity" for ``Line``.
    """
    prediction = prediction or ("eps" if isinstance(schedule, Steps) else "velocity")

    def model(xt: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x0 = data.x0(xt, alpha, sigma)
        shape = (-1, *[1] * (xt.ndim - 1))
        eps = (xt - alpha.to(xt.dtype).view(shape) * x0) / sigma.to(xt.dtype).view(shape)
        return target(prediction, x0, eps, alpha.to(xt.dtype), sigma.to(xt.dtype))

    return model
