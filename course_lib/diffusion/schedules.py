r"""How much data and how much noise a mixture holds at each time: x_t = alpha(t) x0 + sigma(t) eps.

Every schedule of the field is a pair of functions, alpha falling from 1 to (nearly) 0 and sigma rising from 0 to 1:

    Steps(alpha_bar)   discrete times 0 ... T-1, alpha^2 + sigma^2 = 1 (DDPM, DDIM, latent diffusion)
    Line()             continuous times 0 ... 1, alpha + sigma = 1 (flow matching)

``linear_schedule``, ``sqrt_linear_schedule`` and ``cosine_schedule`` make the tables for ``Steps``, in float64: the
products of a thousand factors near 1 decide how a picture begins.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from course_lib.diffusion.flow import time_grid

LARGEST_BETA = 0.999  # a step that destroys everything could not be undone
USUAL_STEPS = 1000  # the length for which the papers give their betas


def linear_schedule(steps: int) -> tuple[Float64[Tensor, " steps"], Float64[Tensor, " steps"]]:
    r"""DDPM's noise schedule: ``beta``, the noise that each step adds, and ``alpha_bar``, what is left of the data.

    beta grows linearly from 0.0001 * (1000 / steps), at index 0, to 0.02 * (1000 / steps), at index steps - 1. Fewer
    steps must each do more, or the last one is not noise yet: hence the factor. A beta above 0.999 is set to 0.999.
    alpha_bar[t] is the product of all (1 - beta[s]) with s = 0 ... t, so alpha_bar[0] = 1 - beta[0].

    Args:
        steps: how many there are, the paper's T; at least 2, and perhaps more than 1000.
    Returns: beta and alpha_bar, each (steps,) in float64.
    Raises: ValueError if steps is below 2.
    Source: Ho et al. 2020 (DDPM), sections 2 and 4. Paper's t = 1 is our index 0.
    """
    if steps < 2:
        raise ValueError(f"steps={steps}: a schedule needs at least 2 steps")
    longer = USUAL_STEPS / steps
    beta = torch.linspace(1e-4 * longer, 0.02 * longer, steps, dtype=torch.float64).clamp(max=LARGEST_BETA)
    return beta, (1 - beta).cumprod(dim=0)


def sqrt_linear_schedule(steps: int) -> tuple[Float64[Tensor, " steps"], Float64[Tensor, " steps"]]:
    """Latent diffusion's "linear" schedule, which is linear in the *square root* of beta; as ``linear_schedule``.

    At its end sqrt(alpha_bar) is still 0.068: the last step is not quite noise.

    Source: Rombach et al. 2022, released configuration (beta from 0.00085 to 0.012).
    """
    if steps < 2:
        raise ValueError(f"steps={steps}: a schedule needs at least 2 steps")
    longer = USUAL_STEPS / steps
    root = torch.linspace(math.sqrt(0.00085 * longer), math.sqrt(0.012 * longer), steps, dtype=torch.float64)
    beta = root.square().clamp(max=LARGEST_BETA)
    return beta, (1 - beta).cumprod(dim=0)


def cosine_schedule(steps: int, s: float = 0.008) -> tuple[Float64[Tensor, " steps"], Float64[Tensor, " steps"]]:
    r"""alpha_bar falls like a squared cosine, which spends fewer steps on pictures that are all but noise.

    Args:
        steps: at least 2.
        s: keeps the first betas from being too small to matter.
    Source: Nichol and Dhariwal 2021, section 3.2, eq. 17.
    """
    if steps < 2:
        raise ValueError(f"steps={steps}: a schedule needs at least 2 steps")
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    wanted = torch.cos((time + s) / (1 + s) * math.pi / 2).square()
    beta = (1 - wanted[1:] / wanted[:-1]).clamp(max=LARGEST_BETA)
    return beta, (1 - beta).cumprod(dim=0)


@dataclass(frozen=True, eq=False)
class Steps:
    """A schedule of discrete times 0 ... T-1; time -1 is the data itself."""

    alpha_bar: Float64[Tensor, " T"]

    def alpha(self, t: Int[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
        """How much of the data there is: sqrt(alpha_bar[t]), and 1 for t = -1."""
        return self._alpha_bar(t).sqrt()

    def sigma(self, t: Int[Tensor, "*b"]) -> Float64[Tensor, "*b"]:
        """How much noise there is: sqrt(1 - alpha_bar[t]), and 0 for t = -1."""
        return (1 - self._alpha_bar(t)).sqrt()

    def _alpha_bar(self, t: Tensor) -> Tensor:
        return torch.where(t < 0, 1.0, self.alpha_bar.to(t.device)[t])

    def times(self, steps: int) -> list[int]:
        """``steps`` different times from T-1 downwards, all gaps T / steps (rounded), and then -1, the data.

        So T = 1000 in 4 steps are 999, 749, 499, 249, -1. Spreading them from T-1 to 0 instead would spend one call of
        the network on t = 0, where next to nothing is left to remove.

        Raises: ValueError unless there are between 1 and T.
        Source: Lin et al. 2024, arXiv:2305.08891, table 2 ("trailing").
        """
        longest = len(self.alpha_bar)
        if not 1 <= steps <= longest:
            raise ValueError(f"steps={steps}; this schedule can visit 1 to {longest} times")
        return [*(round(longest * (steps - i) / steps) - 1 for i in range(steps)), -1]


@dataclass(frozen=True)
class Line:
    """The straight line of flow matching: alpha = 1 - t, sigma = t; ``shift`` moves the visited times towards noise."""

    shift: float = 1.0

    def alpha(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """How much of the data there is."""
        return 1 - t

    def sigma(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """How much noise there is."""
        return t

    def times(self, steps: int) -> list[float]:
        """``steps + 1`` times from exactly 1 down to exactly 0."""
        return time_grid(steps, self.shift).tolist()


def q_sample(
    x0: Float[Tensor, "b *s"], t: Int[Tensor, " b"], eps: Float[Tensor, "b *s"], alpha_bar: Float64[Tensor, " T"]
) -> Float[Tensor, "b *s"]:
    r"""Noise the data up to step t in one jump: x_t = sqrt(alpha_bar[t]) x0 + sqrt(1 - alpha_bar[t]) eps.

    Every sample of the batch has its own t, which holds for all its channels and pixels.

    Args:
        x0: (b, ...) data, with any number of further axes, also none.
        t: (b,) int64, each from 0 (least noise) to T - 1.
        eps: like x0, standard normal.
        alpha_bar: (T,) float64.
    Returns: like x0, of x0's dtype and precision: float64 data must not pass through float32. Gradients reach
        x0 and eps.
    Source: Ho et al. 2020, eq. 4.
    """
    left = alpha_bar[t].view(-1, *[1] * (x0.ndim - 1))
    return left.sqrt().to(x0.dtype) * x0 + (1 - left).sqrt().to(x0.dtype) * eps
