r"""Flow matching on straight lines, in the course's direction of time: t = 0 is data, t = 1 is noise.

    x_t = (1 - t) x0 + t eps,     v = dx_t/dt = eps - x0

A network learns v from (x_t, t). Sampling starts from noise at t = 1 and follows -v down to t = 0. SiT and Meta's
flow_matching run t the other way: their t is our 1 - t, their velocity our -v.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]
METHODS = ("euler", "heun")


def _like(t: Tensor, x: Tensor) -> Tensor:
    return t.view(-1, *[1] * (x.ndim - 1)).to(x.dtype)


def add_noise(x0: Float[Tensor, "b *s"], t: Float[Tensor, " b"], eps: Float[Tensor, "b *s"]) -> Float[Tensor, "b *s"]:
    r"""The mixture x_t = (1 - t) x0 + t eps.

    Args:
        x0: (b, ...) data.
        t: (b,) in [0, 1]; 0 gives the data, 1 the noise.
        eps: like x0, standard normal.
    Returns: like x0.
    Source: Lipman et al. 2023, eq. 20 with sigma_min = 0; Liu et al. 2023 (rectified flow), section 2.1.
    """
    s = _like(t, x0)
    return (1 - s) * x0 + s * eps


def velocity(x0: Float[Tensor, "b *s"], eps: Float[Tensor, "b *s"]) -> Float[Tensor, "b *s"]:
    """The training target v = eps - x0: the direction from data to noise, constant along the line."""
    return eps - x0


def denoised(xt: Float[Tensor, "b *s"], t: Float[Tensor, " b"], v: Float[Tensor, "b *s"]) -> Float[Tensor, "b *s"]:
    """The data that a velocity implies: x0 = x_t - t v."""
    return xt - _like(t, xt) * v


def shift_times(u: Float[Tensor, "*b"], shift: float) -> Float[Tensor, "*b"]:
    r"""Move times towards noise: t = s u / (1 + (s - 1) u). Keeps 0 and 1; s = 1 changes nothing.

    Neighbouring tokens of a video carry the same information, so the same t hides less of it: training and sampling
    spend more of their steps at high noise.

    Args:
        u: times in [0, 1].
        shift: s > 0.
    Raises: ValueError if shift is not positive.
    Source: Esser et al. 2024 (Stable Diffusion 3), eq. 23, where s = sqrt(m / n).
    """
    if not shift > 0:
        raise ValueError(f"shift={shift} must be positive; 1 leaves times alone, 2.5 moves them towards noise")
    return shift * u / (1 + (shift - 1) * u)


def sample_times(
    n: int, generator: torch.Generator | None = None, *, shift: float = 1.0, mean: float = 0.0, std: float = 1.0
) -> Float[Tensor, " n"]:
    """Draw n training times in (0, 1): logit-normal, then shifted.

    Source: Esser et al. 2024, section 3.1, logit-normal sampling.
    """
    device = generator.device if generator is not None else None
    return shift_times(torch.sigmoid(mean + std * torch.randn(n, generator=generator, device=device)), shift)


def guide(cond: Float[Tensor, "*s"], uncond: Float[Tensor, "*s"], w: float) -> Float[Tensor, "*s"]:
    """Classifier-free guidance: uncond + w (cond - uncond). w = 1 is the conditional itself, w > 1 exaggerates it.

    Source: Ho and Salimans 2022, eq. 6, whose w is ours - 1.
    """
    return uncond + w * (cond - uncond)


def time_grid(steps: int, shift: float = 1.0) -> Float[Tensor, " points"]:
    """``steps + 1`` times from exactly 1 (noise) down to exactly 0 (data).

    Raises: ValueError if steps < 1.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: sampling needs at least one step")
    return shift_times(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).float()


class SamplerStep(NamedTuple):
    """State after one step of ``sample``."""

    step: int  # 1 … steps
    t: float  # the time that xt has reached
    xt: Tensor  # the sample so far
    x0: Tensor  # the clean sample that the last velocity implies: what a live preview shows


def sample_steps(
    model: Velocity, noise: Float[Tensor, "b *s"], *, steps: int = 20, shift: float = 1.0, method: str = "euler"
) -> Iterator[SamplerStep]:
    """Follow the velocity from noise to data, yielding after every step.

    Args:
        model: ``model(xt, t)`` returns v like xt, with t a float in (0, 1].
        noise: (b, ...) standard normal.
        steps: number of steps; Heun evaluates the model twice a step, except on the last.
        shift: of the time grid, see ``shift_times``.
        method: "euler" (order 1) or "heun" (order 2).
    Raises: ValueError for an unknown method or steps < 1.
    Source: Lipman et al. 2023, section 4; Heun as in Karras et al. 2022 (EDM), algorithm 1.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; choose one of {', '.join(METHODS)}")
    times = time_grid(steps, shift).tolist()
    xt = noise
    for step, (t, t_next) in enumerate(pairwise(times), start=1):
        v = model(xt, t)
        x0 = xt - t * v
        slope = v
        if method == "heun" and t_next > 0:
            slope = (v + model(xt + (t_next - t) * v, t_next)) / 2
        xt = xt + (t_next - t) * slope
        yield SamplerStep(step, t_next, xt, x0)


def sample(
    model: Velocity, noise: Float[Tensor, "b *s"], *, steps: int = 20, shift: float = 1.0, method: str = "euler"
) -> Float[Tensor, "b *s"]:
    """The last state of ``sample_steps``: a sample at t = 0."""
    return list(sample_steps(model, noise, steps=steps, shift=shift, method=method))[-1].xt
