r"""From noise to data, in four ways with one interface: ``sample(model, noise, schedule, sampler=..., steps=...)``.

    ddpm    ancestral: a guess of the mean, then fresh noise                Ho et al. 2020, algorithm 2
    ddim    the same guess, less fresh noise (eta) or none at all           Song et al. 2021, eq. 12
    euler   follow the velocity in straight pieces                          first order
    heun    look ahead and take the mean of both slopes                     second order

A step of any of them goes from a time t to the next *visited* time, not to t - 1.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from course_lib.diffusion import flow
from course_lib.diffusion.flow import SamplerStep
from course_lib.diffusion.objectives import to_x0_eps
from course_lib.diffusion.schedules import Line, Steps

SAMPLERS = ("ddpm", "ddim", "euler", "heun")


def ddpm_step(
    xt: Float[Tensor, "b *s"],
    eps: Float[Tensor, "b *s"],
    t: int,
    t_next: int,
    alpha_bar: Float64[Tensor, " T"],
    z: Float[Tensor, "b *s"],
) -> Float[Tensor, "b *s"]:
    r"""One step of DDPM from time t to the less noisy time t_next: the mean, plus fresh noise.

    Write a for alpha_bar at t, and a' for alpha_bar at t_next; a' = 1 where t_next = -1, which stands for the data.
    What the forward process did in between is alpha = a / a' and beta = 1 - alpha. Then

        mean     = (xt - beta / sqrt(1 - a) * eps) / sqrt(alpha)
        variance = beta (1 - a') / (1 - a)

    and the result is mean + sqrt(variance) z. For t_next = t - 1 this is the paper's step; it holds for longer ones
    too. Nothing is clipped.

    Args:
        xt: (b, ...) the sample at time t.
        eps: like xt, the noise that the model sees in it.
        t: 0 ... T - 1.
        t_next: -1 ... t - 1.
        alpha_bar: (T,) float64.
        z: like xt, fresh standard normal noise.
    Returns: like xt, of its dtype and precision: the sample at time t_next. At t_next = -1 no noise is left in it.
    Source: Ho et al. 2020, algorithm 2 and eqs. 7, 11, with the smaller of the two variances of section 3.2.
    """
    a = alpha_bar[t]
    a_next = alpha_bar[t_next] if t_next >= 0 else torch.ones_like(a)
    alpha = a / a_next
    beta = 1 - alpha
    mean = (xt - beta / (1 - a).sqrt() * eps) / alpha.sqrt()
    return mean + (beta * (1 - a_next) / (1 - a)).sqrt() * z


def ddim_step(
    xt: Float[Tensor, "b *s"],
    eps: Float[Tensor, "b *s"],
    t: int,
    t_next: int,
    alpha_bar: Float64[Tensor, " T"],
    z: Float[Tensor, "b *s"],
    eta: float = 0.0,
) -> Float[Tensor, "b *s"]:
    r"""One step of DDIM from time t to the less noisy time t_next: guess the data, then mix again with less noise.

    Write a for alpha_bar at t, and a' for alpha_bar at t_next; a' = 1 where t_next = -1, which stands for the data.
    Then

        x0      = (xt - sqrt(1 - a) eps) / sqrt(a)
        sigma^2 = eta^2 (1 - a') / (1 - a) (1 - a / a')
        result  = sqrt(a') x0 + sqrt(1 - a' - sigma^2) eps + sigma z

    eta = 0 takes all noise from eps and none from z; eta = 1 is DDPM's step. Nothing is clipped.

    Args:
        xt: (b, ...) the sample at time t.
        eps: like xt, the noise that the model sees in it.
        t: 0 ... T - 1.
        t_next: -1 ... t - 1; any earlier time, not only t - 1.
        alpha_bar: (T,) float64.
        z: like xt, fresh standard normal noise.
        eta: from 0 to 1, the share of fresh noise.
    Returns: like xt, of its dtype and precision: the sample at time t_next.
    Source: Song et al. 2021 (DDIM), eqs. 12 and 16.
    """
    a = alpha_bar[t]
    a_next = alpha_bar[t_next] if t_next >= 0 else torch.ones_like(a)
    x0 = (xt - (1 - a).sqrt() * eps) / a.sqrt()
    variance = eta**2 * (1 - a_next) / (1 - a) * (1 - a / a_next)
    return a_next.sqrt() * x0 + (1 - a_next - variance).sqrt() * eps + variance.sqrt() * z


def ddim_sample(
    model: Callable[[Tensor, Tensor], Tensor],
    noise: Float[Tensor, "b *s"],
    alpha_bar: Float64[Tensor, " T"],
    times: Sequence[int],
) -> Float[Tensor, "b *s"]:
    r"""Walk from noise to data through the given times, with DDIM's step and eta = 0.

    Start with ``noise`` at times[0]. At every time of the list, in its order, ask the model once which noise it sees,
    and go with ``ddim_step(xt, eps, t, t_next, alpha_bar, z)`` to the next time *of the list*; from the last one go to
    the data, whose time is -1. (z may be anything like xt, since eta = 0.)

    Args:
        model: called as ``model(xt, t)`` with t (b,) int64, the same for all samples; returns eps like xt.
        noise: (b, ...) standard normal.
        alpha_bar: (T,) float64.
        times: decreasing, such as [999, 749, 499, 249], a list or a tuple; not always evenly spaced, perhaps only one.
            It is left as it is.
    Returns: like noise: the sample.
    Source: Song et al. 2021, section 4.2 (accelerated generation).
    """
    xt = noise
    for t, t_next in pairwise([*times, -1]):
        eps = model(xt, torch.full((len(xt),), t, device=xt.device))
        xt = ddim_step(xt, eps, t, t_next, alpha_bar, torch.zeros_like(xt))
    return xt


def euler_sample(
    model: Callable[[Tensor, Tensor], Tensor], noise: Float[Tensor, "b *s"], steps: int
) -> Float[Tensor, "b *s"]:
    r"""Follow a velocity from noise (t = 1) down to data (t = 0), in ``steps`` equal steps of Euler's method.

    The velocity is dx/dt, and time runs downwards here. With dt = 1 / steps the visited times are 1, 1 - dt, ..., dt;
    at each of them the model is asked once, and x moves with that velocity to the next time. The last step ends at 0.

    Args:
        model: called as ``model(xt, t)`` with t (b,) in floating point, the same for all samples; returns v like xt.
        noise: (b, ...) standard normal.
        steps: how many, at least 1.
    Returns: like noise: the sample.
    Raises: ValueError if steps is below 1.
    Source: Liu et al. 2023 (rectified flow), section 2, with time reversed.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: sampling needs at least one step")
    xt = noise
    for i in range(steps):
        t = torch.full((len(xt),), 1 - i / steps, dtype=xt.dtype, device=xt.device)
        xt = xt - model(xt, t) / steps
    return xt


def sample_steps(
    model: Callable[[Tensor, Tensor], Tensor],
    noise: Float[Tensor, "b *s"],
    schedule: Steps | Line,
    *,
    sampler: str = "ddim",
    steps: int = 50,
    prediction: str | None = None,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Iterator[SamplerStep]:
    """Go from noise to data, yielding after every step.

    Args:
        model: called as ``model(xt, t)`` with t (b,): int64 times of a ``Steps`` schedule, floats of a ``Line``.
        noise: (b, ...) standard normal.
        schedule: ``Steps(alpha_bar)`` for "ddpm" and "ddim", ``Line()`` for "ddim", "euler" and "heun".
        sampler: one of ``SAMPLERS``. On a ``Line``, "ddim" with eta = 0 and "euler" are the same.
        steps: how many times are visited before the data.
        prediction: what the model returns, see ``course_lib.diffusion.objectives``; by default "eps" for ``Steps`` and
            "velocity" for ``Line``.
        eta: for "ddim", the share of fresh noise.
        generator: of the fresh noise.
    Raises: ValueError for an unknown sampler, one that does not fit the schedule, or eta where there is none.
    """
    _check(sampler, schedule, eta)
    prediction = prediction or ("eps" if isinstance(schedule, Steps) else "velocity")

    def both(xt: Tensor, t: float) -> tuple[Tensor, Tensor]:
        time = torch.full((len(xt),), t, device=xt.device)
        return to_x0_eps(prediction, model(xt, time), xt, schedule.alpha(time), schedule.sigma(time))

    if isinstance(schedule, Line):
        method = "euler" if sampler == "ddim" else sampler
        line = lambda xt, t: flow.velocity(*both(xt, t))  # noqa: E731
        yield from flow.sample_steps(line, noise, steps=steps, shift=schedule.shift, method=method)
        return
    xt = noise
    for step, (t, t_next) in enumerate(pairwise(schedule.times(steps)), start=1):
        x0, eps = both(xt, t)
        fresh = torch.randn(xt.shape, generator=generator, dtype=xt.dtype).to(xt.device)
        table = schedule.alpha_bar.to(xt.device)
        if sampler == "ddpm":
            xt = ddpm_step(xt, eps, t, t_next, table, fresh)
        else:
            xt = ddim_step(xt, eps, t, t_next, table, fresh, eta)
        yield SamplerStep(step, t_next, xt, x0)


def sample(model, noise: Float[Tensor, "b *s"], schedule: Steps | Line, **options) -> Float[Tensor, "b *s"]:
    """The last state of ``sample_steps``, which explains the options."""
    for state in sample_steps(model, noise, schedule, **options):
        xt = state.xt
    return xt


def _check(sampler: str, schedule: Steps | Line, eta: float) -> None:
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler={sampler!r} is unknown; choose one of {', '.join(SAMPLERS)}")
    fitting = ("ddpm", "ddim") if isinstance(schedule, Steps) else ("ddim", "euler", "heun")
    if sampler not in fitting:
        raise ValueError(f"sampler={sampler!r} does not fit {type(schedule).__name__}; use {', '.join(fitting)}")
    if eta and (sampler != "ddim" or isinstance(schedule, Line)):
        raise ValueError(f"eta={eta} is for 'ddim' on a Steps schedule; {sampler!r} takes none here")
