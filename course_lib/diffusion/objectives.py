r"""What a network may be asked for: the noise, the data, or a mixture of both, and how one follows from the other.

At a given time x_t = alpha x0 + sigma eps is one known combination of two unknowns. A network supplies a second one:

    prediction   a x0 + b eps           a, b
    "eps"        eps                    0, 1
    "x0"         x0                     1, 0
    "v"          alpha eps - sigma x0   -sigma, alpha     a quarter turn from x_t where alpha^2 + sigma^2 = 1
    "velocity"   eps - x0               -1, 1             the derivative of x_t on the straight line

Two equations, two unknowns: from any of them come x0 and eps, and from these every other.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from torch import Tensor

from course_lib.diffusion.flow import add_noise, velocity
from course_lib.diffusion.schedules import q_sample

PREDICTIONS = ("eps", "x0", "v", "velocity")


def ddpm_loss(
    model: Callable[[Tensor, Tensor], Tensor], x0: Float[Tensor, "b *s"], alpha_bar: Float64[Tensor, " T"]
) -> Float[Tensor, ""]:
    r"""DDPM's training loss: add noise, ask the model which noise it was, and take the mean squared error.

    For each sample of the batch, draw its own step t, uniformly from all of 0 ... T - 1 (both can occur), and its own
    noise eps, standard normal; no draw depends on another, or on an earlier call. Mix them to x_t as ``q_sample`` does.
    The loss is the mean, over all numbers of the batch, of (model(x_t, t) - eps)^2. The model is called once.

    Args:
        model: called as ``model(xt, t)`` with xt like x0 and t (b,) int64; returns a guess of eps.
        x0: (b, ...) data, with any number of further axes, also none.
        alpha_bar: (T,) float64.
    Returns: a scalar. Its gradient reaches the model's weights.
    Source: Ho et al. 2020, algorithm 1 and eq. 14. The random numbers come from torch's global generator.
    """
    t = torch.randint(len(alpha_bar), (len(x0),), device=x0.device)
    eps = torch.randn_like(x0)
    return F.mse_loss(model(q_sample(x0, t, eps, alpha_bar), t), eps)


def flow_loss(model: Callable[[Tensor, Tensor], Tensor], x0: Float[Tensor, "b *s"]) -> Float[Tensor, ""]:
    r"""The loss of flow matching: mix data and noise on a straight line, ask for the direction of the line.

    For each sample of the batch, draw its own time t, uniform in [0, 1), and its own noise eps, standard normal; no
    draw depends on another, or on an earlier call. The mixture is x_t = (1 - t) x0 + t eps, so t = 0 is data and t = 1
    is noise. The target is v = eps - x0. The loss is the mean, over all numbers of the batch, of (model(x_t, t) - v)^2.
    The model is called once.

    Args:
        model: called as ``model(xt, t)`` with xt like x0 and t (b,) in floating point; returns a guess of v.
        x0: (b, ...) data, with any number of further axes, also none.
    Returns: a scalar. Its gradient reaches the model's weights.
    Source: Lipman et al. 2023, eq. 23 with sigma_min = 0, with time reversed. The random numbers come from torch's
        global generator.
    """
    t = torch.rand(len(x0), device=x0.device, dtype=x0.dtype)
    eps = torch.randn_like(x0)
    return F.mse_loss(model(add_noise(x0, t, eps), t), velocity(x0, eps))


def from_v(
    xt: Float[Tensor, "b *s"], v: Float[Tensor, "b *s"], t: Int[Tensor, " b"], alpha_bar: Float64[Tensor, " T"]
) -> tuple[Float[Tensor, "b *s"], Float[Tensor, "b *s"]]:
    r"""Data and noise, from a mixture and its v.

    With alpha = sqrt(alpha_bar[t]) and sigma = sqrt(1 - alpha_bar[t]), each sample having its own t, the two knowns are

        x_t = alpha x0 + sigma eps      and      v = alpha eps - sigma x0,

    and alpha^2 + sigma^2 = 1. Solve for x0 and eps. Nothing is divided by alpha or sigma, so that neither end of the
    schedule, where one of them is (nearly) 0, does harm.

    Args:
        xt: (b, ...) the mixture.
        v: like xt.
        t: (b,) int64.
        alpha_bar: (T,) float64; may hold 0 and 1 exactly.
    Returns: x0 and eps, in this order, each like xt and of its dtype and precision. Gradients reach xt and v, and are
        finite at both ends too.
    Source: Salimans and Ho 2022, section 4 and appendix D.
    """
    left = alpha_bar[t].view(-1, *[1] * (xt.ndim - 1))
    alpha, sigma = left.sqrt().to(xt.dtype), (1 - left).sqrt().to(xt.dtype)
    return alpha * xt - sigma * v, sigma * xt + alpha * v


def weights_of(prediction: str, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The (a, b) for which the prediction is a x0 + b eps; ValueError for an unknown one."""
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
    table = {"eps": (zero, one), "x0": (one, zero), "v": (-sigma, alpha), "velocity": (-one, one)}
    if prediction not in table:
        raise ValueError(f"prediction={prediction!r} is unknown; choose one of {', '.join(PREDICTIONS)}")
    return table[prediction]


def target(
    prediction: str,
    x0: Float[Tensor, "b *s"],
    eps: Float[Tensor, "b *s"],
    alpha: Float[Tensor, " b"],
    sigma: Float[Tensor, " b"],
) -> Float[Tensor, "b *s"]:
    """What a network with that prediction should return: a x0 + b eps.

    Args:
        prediction: "eps", "x0", "v" or "velocity".
        alpha, sigma: (b,), from a schedule.
    """
    a, b = (_like(w, x0) for w in weights_of(prediction, alpha, sigma))
    return a * x0 + b * eps


def to_x0_eps(
    prediction: str,
    value: Float[Tensor, "b *s"],
    xt: Float[Tensor, "b *s"],
    alpha: Float[Tensor, " b"],
    sigma: Float[Tensor, " b"],
) -> tuple[Float[Tensor, "b *s"], Float[Tensor, "b *s"]]:
    """Data and noise from what a network returned: the inverse of ``target`` and ``x_t`` together.

    An "eps" says nothing about the data where alpha = 0, an "x0" nothing about the noise where sigma = 0; "v" and
    "velocity" work everywhere.
    """
    a, b = weights_of(prediction, alpha, sigma)
    determinant = alpha * b - sigma * a
    x0 = _like(b / determinant, xt) * xt - _like(sigma / determinant, xt) * value
    eps = _like(alpha / determinant, xt) * value - _like(a / determinant, xt) * xt
    return x0, eps


def _like(weight: Tensor, x: Tensor) -> Tensor:
    return weight.view(-1, *[1] * (x.ndim - 1)).to(x.dtype)
