"""Samplers against diffusers step by step, against closed forms, and against each other."""

import pytest
import torch

from course_lib.diffusion.ideal import Gaussians, ideal_model
from course_lib.diffusion.samplers import (
    ddim_sample,
    ddim_step,
    ddpm_step,
    euler_sample,
    sample,
    sample_steps,
)
from course_lib.diffusion.schedules import Line, Steps, linear_schedule

T = 1000
ALPHA_BAR = linear_schedule(T)[1]
MEAN, STD = 1.5, 0.5  # the data of the closed forms
DATA = Gaussians(torch.tensor([[MEAN]]).double(), torch.tensor([STD]).double(), torch.ones(1).double())


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_ddpm_steps_equal_diffusers(monkeypatch):
    from diffusers import DDPMScheduler
    from diffusers.schedulers import scheduling_ddpm

    theirs = DDPMScheduler(T, clip_sample=False, variance_type="fixed_small")
    x, eps, z = randn(3, 3, 2, 5).unbind(0)
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **kwargs: z)
    for t in (999, 500, 1, 0):
        want = theirs.step(eps, t, x).prev_sample
        torch.testing.assert_close(ddpm_step(x, eps, t, t - 1, ALPHA_BAR, z), want, rtol=0, atol=2e-4)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_steps_equal_diffusers(eta):
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(T, clip_sample=False)
    theirs.set_timesteps(50)
    x, eps, z = randn(3, 3, 2, 5).unbind(0)
    for t in theirs.timesteps.tolist():
        want = theirs.step(eps, t, x, eta=eta, variance_noise=z).prev_sample
        x = ddim_step(x, eps, t, max(t - 20, -1), ALPHA_BAR, z, eta)
        torch.testing.assert_close(x, want, rtol=1e-4, atol=1e-4)


def test_euler_equals_diffusers():
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs = FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(sigmas=[1 - i / 7 for i in range(7)])
    model = lambda xt, t: torch.sin(xt + t.view(-1, 1))  # noqa: E731
    ours = theirs_x = randn(3, 5).float()
    for t in theirs.timesteps:
        theirs_x = theirs.step(model(theirs_x, torch.full((3,), t.item() / 1000)), t, theirs_x).prev_sample
    torch.testing.assert_close(euler_sample(model, ours, 7), theirs_x, rtol=0, atol=1e-5)


def test_ddim_with_eta_one_is_ddpm_also_over_several_steps():
    x, eps, z = randn(3, 3, 5).unbind(0)
    for t, t_next in ((999, 998), (999, 10), (500, 499), (3, 0), (0, -1)):
        one = ddim_step(x, eps, t, t_next, ALPHA_BAR, z, eta=1.0)
        torch.testing.assert_close(one, ddpm_step(x, eps, t, t_next, ALPHA_BAR, z), rtol=0, atol=1e-10)


def test_ddim_converges_to_the_closed_form_with_order_one():
    """The flow of a Gaussian: noise z at the first time goes to MEAN + STD (z - alpha MEAN) / std of x_T."""
    schedule, z = Steps(ALPHA_BAR), randn(500, 1)
    alpha, sigma = ALPHA_BAR[-1].sqrt(), (1 - ALPHA_BAR[-1]).sqrt()
    exact = MEAN + STD * (z - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2).sqrt()
    model = ideal_model(DATA, schedule)
    error = {n: (sample(model, z, schedule, steps=n) - exact).abs().max().item() for n in (25, 50, 1000)}
    assert error[50] < 0.15 and error[1000] < 0.01
    assert error[25] / error[50] == pytest.approx(2, rel=0.3)


def test_euler_is_of_order_one_and_heun_of_order_two():
    z, model = randn(500, 1), ideal_model(DATA, Line())
    exact = MEAN + STD * z
    error = {
        (sampler, n): (sample(model, z, Line(), sampler=sampler, steps=n) - exact).abs().max().item()
        for sampler in ("euler", "heun")
        for n in (20, 40)
    }
    assert error["euler", 20] / error["euler", 40] == pytest.approx(2, rel=0.3)
    assert error["heun", 20] / error["heun", 40] == pytest.approx(4, rel=0.35)
    # one step from pure noise lands on the mean of the data
    torch.testing.assert_close(
        sample(model, z, Line(), sampler="euler", steps=1), torch.full_like(z, MEAN), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("sampler,eta", [("ddpm", 0.0), ("ddim", 1.0), ("ddim", 0.5), ("ddim", 0.0)])
def test_all_samplers_reach_the_right_distribution(sampler, eta):
    schedule = Steps(ALPHA_BAR)
    x = sample(
        ideal_model(DATA, schedule),
        randn(4000, 1),
        schedule,
        sampler=sampler,
        steps=250,
        eta=eta,
        generator=torch.Generator().manual_seed(1),
    )
    assert x.mean().item() == pytest.approx(MEAN, abs=0.03) and x.std().item() == pytest.approx(STD, abs=0.03)


def test_the_loops_of_the_exercises_are_the_general_one():
    schedule, z = Steps(ALPHA_BAR), randn(7, 3)
    model = lambda xt, t: torch.tanh(xt) * (1 + t.view(-1, 1) / T)  # noqa: E731
    torch.testing.assert_close(
        ddim_sample(model, z, ALPHA_BAR, schedule.times(11)[:-1]), sample(model, z, schedule, steps=11)
    )
    flowing = lambda xt, t: torch.tanh(xt) * (1 + t.view(-1, 1).to(xt))  # noqa: E731
    for sampler in ("euler", "ddim"):
        torch.testing.assert_close(
            euler_sample(flowing, z, 11), sample(flowing, z, Line(), sampler=sampler, steps=11), rtol=0, atol=1e-6
        )


def test_ddim_on_the_line_is_euler():
    """The step's formula, x' = alpha' x0 + sigma' eps, is x + (t' - t) v where alpha = 1 - t and sigma = t."""
    x0, eps = randn(2, 3, 5).unbind(0)
    t, t_next = 0.8, 0.3
    xt = (1 - t) * x0 + t * eps
    torch.testing.assert_close((1 - t_next) * x0 + t_next * eps, xt + (t_next - t) * (eps - x0))


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "velocity"])
def test_a_network_may_predict_anything(prediction):
    schedule, z = Steps(ALPHA_BAR), randn(50, 1)
    model = ideal_model(DATA, schedule, prediction)
    mine = sample(model, z, schedule, steps=20, prediction=prediction)
    torch.testing.assert_close(mine, sample(ideal_model(DATA, schedule), z, schedule, steps=20), rtol=0, atol=1e-8)


def test_steps_are_yielded_and_odd_wishes_named():
    schedule, z = Steps(ALPHA_BAR), randn(2, 1)
    model = ideal_model(DATA, schedule)
    states = list(sample_steps(model, z, schedule, steps=5))
    assert [s.step for s in states] == [1, 2, 3, 4, 5] and states[-1].t == -1
    torch.testing.assert_close(states[-1].xt, states[-1].x0)
    with pytest.raises(ValueError, match="'leapfrog' is unknown"):
        sample(model, z, schedule, sampler="leapfrog")
    with pytest.raises(ValueError, match="does not fit Steps"):
        sample(model, z, schedule, sampler="heun")
    with pytest.raises(ValueError, match=r"eta=0\.5"):
        sample(model, z, Line(), sampler="euler", eta=0.5)
    with pytest.raises(ValueError, match="steps=0"):
        euler_sample(model, z, 0)
