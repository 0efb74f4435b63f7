r"""Clips of which some frames are known: every frame has its own diffusion time, and a known frame's is 0.

    training    some frames stay clean and say so (t = 0), the others are noised; the loss counts the others only
    sampling    known frames are put back, clean, before every call; the others walk from noise to data beside them

Which frames are known decides what a sampler does: none, a video from nothing but text; the first, an image that begins
to move; a clip's last ones, its continuation; two clips with a gap, the way from one to the other.

Source: OpenAI 2024, "Video generation models as world simulators", for the tasks; Chen et al. 2024 (diffusion forcing),
for a time per frame. How the real Sora does it is not known.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from course_lib.diffusion.flow import guide, time_grid

Latents = list[Float[Tensor, "z _ _ _"]]  # one (z, f, h, w) per clip
Model = Callable[[Latents, list[Tensor]], Latents]  # (noisy latents, times (f,) of their frames) -> velocities


def some_known(frames: int, generator: torch.Generator, share: float = 0.5) -> Bool[Tensor, " frames"]:
    """Which frames of a training clip are known: none in 1 - ``share`` of all clips, else a random pattern.

    The patterns are those of the tasks: the first k frames, the last k, both ends, or each frame with a chance of one
    half. At least one frame stays unknown. A picture, a clip of one frame, has nothing to be known.
    """
    chance, kind = torch.rand(2, generator=generator).tolist()
    known = torch.zeros(frames, dtype=torch.bool)
    if frames == 1 or chance >= share:
        return known
    k = int(torch.randint(1, frames, (1,), generator=generator))
    if kind < 0.35:
        known[:k] = True
    elif kind < 0.6:
        known[-k:] = True
    elif kind < 0.8:
        known[0] = known[-1] = frames > 2
    else:
        known = torch.rand(frames, generator=generator) < 0.5
    if known.all():
        known[int(torch.randint(frames, (1,), generator=generator))] = False
    return known


def mix(x0: Float[Tensor, "z f h w"], eps: Float[Tensor, "z f h w"], times: Float[Tensor, " f"]) -> Tensor:
    """x_t = (1 - t) x0 + t eps with each frame's own t; at t = 0 exactly x0."""
    t = times.view(-1, 1, 1).to(x0)
    return (1 - t) * x0 + t * eps


def known_loss(
    model: Model, latents: Latents, known: Sequence[Bool[Tensor, " _"]], t: Float[Tensor, " clips"], eps: Latents
) -> Float[Tensor, ""]:
    """Flow matching's loss where it is asked for something: the squared error of the velocity on frames not known.

    Every frame has its own time: 0 if it is known, else the t of its clip. The model sees (1 - time) x + time eps, so a
    known frame enters clean, and it is told the times. What it should answer is the velocity eps - x. Known frames do
    not count: their answer is trivial and would dilute the rest. The loss of a clip is the mean of the squared errors
    over all numbers of its unknown frames; the result is the mean over the clips, so that every clip counts alike,
    however large it is.

    ``mix(x, eps, times)`` of this module mixes a clip (z, f, h, w) with its noise at times (f,). You may use it.

    Args:
        model: called once, with all clips, as ``model(noisy, times)``, by position: a list of (z, f, h, w) and a list
            of (f,). It answers with the list of velocities, each like its clip.
        latents: clean, one (z, f, h, w) per clip. Clips differ in f, h and w, so they cannot be stacked.
        known: one (f,) per clip, True where a frame is known, in any pattern; at least one is False, often all.
        t: one time per clip, from 0 to 1, both included. Use it as it is.
        eps: like ``latents``, standard normal.
    Returns: one number of the latents' dtype, with a gradient for the model.
    """
    times = [torch.where(k, 0.0, ti) for k, ti in zip(known, t, strict=True)]
    noisy = [mix(x, e, ts) for x, e, ts in zip(latents, eps, times, strict=True)]
    errors = [
        (v - (e - x))[:, ~k].square().mean()
        for v, e, x, k in zip(model(noisy, times), eps, latents, known, strict=True)
    ]
    return torch.stack(errors).mean()


class State(NamedTuple):
    """After a step: its number from 1, the time reached, the latents there, the clean ones the velocity implies."""

    step: int
    t: float
    xt: Latents
    x0: Latents


def sample_known(
    model: Model,
    noise: Latents,
    known: Sequence[Bool[Tensor, " _"]] | None = None,
    values: Latents | None = None,
    *,
    steps: int = 20,
    shift: float = 1.0,
    method: str = "euler",
    begin: float = 1.0,
) -> Iterator[State]:
    """Walk the unknown frames from noise to data beside the known ones, yielding after every step.

    The times are ``time_grid(steps, shift)`` of ``course_lib.diffusion.flow``: ``steps`` + 1 of them, from exactly 1
    down to exactly 0. The walk starts at exactly ``begin`` and goes on with those times of the grid that are below it;
    where ``begin`` is below 1 there are fewer steps. A step from t to t' < t:

    1. The model is asked for the velocity v, with x of all clips and one time for each of their frames: 0 for a known
       frame, t for the others.
    2. Euler: x' = x + (t' - t) v. Heun: the model is asked a second time, about that x' at the times 0 and t', and
       x' = x + (t' - t) (v + v2) / 2; not in the step to t' = 0, which is Euler's.
    3. ``yield State(number of the step from 1, t', x', x - t v)``, with ``State`` of this module. The last of these is
       the clean clip that the first velocity of the step implies.

    Everywhere in this, known frames are those of ``values``, clean: in all latents that the model is asked about, from
    the very first on and for Heun's second question too, and in both latents of a ``State``. The model's velocity on
    them is not zero, and does not matter. A step is made when its state is asked for, the first one too: before that
    the model is asked nothing, and who looks on may stop. Whether gradients run through a walk is left to you.

    Args:
        model: as in ``known_loss``, ``model(latents, times)`` with the lists of all clips, times (f,) for each;
            guidance is its own business, see ``guided``.
        noise: what to start from, one (z, f, h, w) per clip. It is not overwritten, nor is what was yielded.
        known: one (f,) per clip, True where a frame is known; None knows nothing.
        values: latents of which the known frames are taken, clean, one (z, f, h, w) per clip; at the end they are in
            the result bit for bit. None takes them from ``noise`` as it is; their time is 0 all the same.
        steps, shift: of the grid of times.
        method: "euler", or "heun", which asks twice a step.
        begin: the time to start from, for edits: ``noise`` is then a clip mixed with noise to this time (SDEdit).
    Raises: ValueError for an unknown method, a ``begin`` outside (0, 1], or fewer than one step (``time_grid`` refuses
        that); at the call, or when the first state is asked for.
    Source: Meng et al. 2022 (SDEdit), for starting in the middle; Karras et al. 2022 (EDM), algorithm 1, for Heun.
    """
    if method not in ("euler", "heun"):
        raise ValueError(f"method={method!r} is unknown; choose euler or heun")
    if not 0 < begin <= 1:
        raise ValueError(f"begin={begin} must be above 0 and at most 1; 1 keeps nothing of the clip")
    known = known or [torch.zeros(x.shape[1], dtype=torch.bool) for x in noise]
    values = values or noise

    def with_known(latents: Latents) -> Latents:
        return [torch.where(k.view(-1, 1, 1), v, x) for k, v, x in zip(known, values, latents, strict=True)]

    def ask(latents: Latents, t: float) -> Latents:
        return model(latents, [torch.where(k, 0.0, t) for k in known])

    xt, times = with_known(noise), time_grid(steps, shift).tolist()
    kept = [t for t in times if t < begin]  # what is left of the grid after ``begin``
    for step, (t, t_next) in enumerate(pairwise([begin, *kept]), start=1):
        v = ask(xt, t)
        x0 = with_known([x - t * s for x, s in zip(xt, v, strict=True)])
        if method == "heun" and t_next > 0:
            ahead = ask(with_known([x + (t_next - t) * s for x, s in zip(xt, v, strict=True)]), t_next)
            v = [(a + b) / 2 for a, b in zip(v, ahead, strict=True)]
        xt = with_known([x + (t_next - t) * s for x, s in zip(xt, v, strict=True)])
        yield State(step, t_next, xt, x0)


def guided(told: Model, untold: Model, w: float) -> Model:
    """Classifier-free guidance for lists of clips: what the caption changes, times ``w``."""
    if w == 1:
        return told
    return lambda latents, times: [
        guide(a, b, w) for a, b in zip(told(latents, times), untold(latents, times), strict=True)
    ]
