"""Noise schedules against diffusers, against loops, and against what the papers say about their ends."""

import math
from itertools import pairwise

import pytest
import torch

from course_lib.diffusion.flow import add_noise
from course_lib.diffusion.schedules import (
    Line,
    Steps,
    cosine_schedule,
    linear_schedule,
    q_sample,
    sqrt_linear_schedule,
)

ALL = [linear_schedule, sqrt_linear_schedule, cosine_schedule]


def test_tables_equal_diffusers():
    from diffusers import DDPMScheduler

    for ours, name, ends in (
        (linear_schedule, "linear", dict(beta_start=1e-4, beta_end=0.02)),
        (sqrt_linear_schedule, "scaled_linear", dict(beta_start=0.00085, beta_end=0.012)),
        (cosine_schedule, "squaredcos_cap_v2", {}),
    ):
        theirs = DDPMScheduler(1000, beta_schedule=name, **ends)
        beta, alpha_bar = ours(1000)
        torch.testing.assert_close(beta.float(), theirs.betas, rtol=2e-5, atol=0)
        torch.testing.assert_close(alpha_bar.float(), theirs.alphas_cumprod, rtol=2e-4, atol=1e-9)


@pytest.mark.parametrize("schedule", ALL)
@pytest.mark.parametrize("steps", [2, 7, 1000])
def test_alpha_bar_is_the_product_of_what_each_step_leaves(schedule, steps):
    beta, alpha_bar = schedule(steps)
    left = 1.0
    for t in range(steps):
        left *= 1 - beta[t].item()
        assert alpha_bar[t].item() == pytest.approx(left, rel=1e-12)
    assert beta.dtype == alpha_bar.dtype == torch.float64
    assert (beta > 0).all() and (beta <= 0.999).all() and (alpha_bar.diff() < 0).all()


def test_ends_of_the_schedules():
    assert linear_schedule(1000)[1][-1].item() == pytest.approx(4.0e-5, rel=0.02)
    assert linear_schedule(100)[1][-1] < 1e-4  # without the rescaling it would be 0.36
    assert (1 - torch.linspace(1e-4, 0.02, 100)).prod().item() == pytest.approx(0.36, abs=0.01)
    assert sqrt_linear_schedule(1000)[1][-1].sqrt().item() == pytest.approx(0.068, abs=5e-4)
    assert cosine_schedule(1000)[1][-1] < 1e-6


@pytest.mark.parametrize("schedule", ALL)
def test_a_schedule_of_one_step_is_refused(schedule):
    with pytest.raises(ValueError, match="steps=1"):
        schedule(1)


def test_one_jump_equals_many_small_steps():
    """Mean and variance of x_t by stepping, t times: x <- sqrt(1 - beta) x + sqrt(beta) eps."""
    beta, alpha_bar = linear_schedule(50)
    mean, variance = 1.0, 0.0
    for t in range(50):
        keep = 1 - beta[t].item()
        mean, variance = math.sqrt(keep) * mean, keep * variance + beta[t].item()
        assert alpha_bar[t].sqrt().item() == pytest.approx(mean, rel=1e-12)
        assert (1 - alpha_bar[t]).item() == pytest.approx(variance, rel=1e-9)


def test_q_sample_equals_diffusers_and_a_loop():
    from diffusers import DDPMScheduler

    x0, eps = torch.randn(2, 3, 2, 5, 7, dtype=torch.float64).unbind(0)
    t = torch.tensor([0, 41, 999])
    alpha_bar = linear_schedule(1000)[1]
    mixed = q_sample(x0, t, eps, alpha_bar)
    for i in range(3):
        a = alpha_bar[t[i]].item()
        torch.testing.assert_close(mixed[i], math.sqrt(a) * x0[i] + math.sqrt(1 - a) * eps[i], rtol=0, atol=1e-12)
    torch.testing.assert_close(DDPMScheduler(1000).add_noise(x0, eps, t), mixed, rtol=0, atol=1e-4)
    assert q_sample(x0.float(), t, eps.float(), alpha_bar).dtype == torch.float32


def test_both_kinds_of_schedule_are_one_pair_of_functions():
    alpha_bar = linear_schedule(50)[1]
    steps, t = Steps(alpha_bar), torch.tensor([-1, 0, 31, 49])
    torch.testing.assert_close(steps.alpha(t) ** 2 + steps.sigma(t) ** 2, torch.ones(4, dtype=torch.float64))
    assert steps.alpha(t)[0] == 1 and steps.sigma(t)[0] == 0
    x0, eps, t = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 7, 31, 49])
    mixed = steps.alpha(t)[:, None] * x0 + steps.sigma(t)[:, None] * eps
    torch.testing.assert_close(q_sample(x0, t, eps, alpha_bar), mixed.float())
    line, u = Line(), torch.rand(4)
    torch.testing.assert_close(
        add_noise(x0, u, eps), line.alpha(u)[:, None] * x0 + line.sigma(u)[:, None] * eps, rtol=0, atol=1e-6
    )


def test_visited_times_run_from_noise_to_data():
    steps = Steps(linear_schedule(1000)[1])
    for n in (1, 2, 7, 1000):
        times = steps.times(n)
        assert len(times) == n + 1 and times[0] == 999 and times[-1] == -1
        gaps = [a - b for a, b in pairwise(times)]
        assert min(gaps) >= 1 and max(gaps) - min(gaps) <= 1
    assert steps.times(4) == [999, 749, 499, 249, -1]
    assert Line(shift=2.0).times(2) == pytest.approx([1, 2 / 3, 0])
    with pytest.raises(ValueError, match="steps=1001"):
        steps.times(1001)
