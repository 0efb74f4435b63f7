"""Flow matching against closed forms: straight lines land exactly, Gaussians have a known velocity."""

import pytest
import torch

from course_lib.diffusion.flow import (
    add_noise,
    denoised,
    guide,
    sample,
    sample_steps,
    sample_times,
    shift_times,
    time_grid,
    velocity,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = generator()
    return (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))


def test_ends_of_the_line_and_the_way_back_to_the_data():
    x0, eps = pair(3, 2, 5)
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    xt = add_noise(x0, t, eps)
    assert torch.equal(xt[0], x0[0]) and torch.equal(xt[2], eps[2])
    assert torch.allclose(denoised(xt, t, velocity(x0, eps)), x0, atol=1e-14)


def test_velocity_is_the_derivative_of_the_mixture():
    x0, eps = pair(2, 3)
    t, step = torch.tensor([0.4, 0.7], dtype=torch.float64), 1e-6
    slope = (add_noise(x0, t + step, eps) - add_noise(x0, t - step, eps)) / (2 * step)
    assert torch.allclose(slope, velocity(x0, eps), atol=1e-8)


@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("shift", [1.0, 2.5])
def test_a_constant_velocity_lands_exactly(method, steps, shift):
    x0, eps = pair(2, 3, 5)
    v = velocity(x0, eps)
    assert torch.allclose(sample(lambda xt, t: v, eps, steps=steps, shift=shift, method=method), x0, atol=1e-6)


def test_gaussian_data_have_a_closed_form_and_heun_is_of_second_order():
    # Data N(m, s^2): E[eps - x0 | xt] is linear in xt, and the flow maps noise z to m + s z.
    m, s = 1.5, 0.4

    def model(xt, t):
        variance = (1 - t) ** 2 * s**2 + t**2
        slope = (t - (1 - t) * s**2) / variance
        return slope * (xt - (1 - t) * m) - m

    z = torch.randn(1000, generator=generator(), dtype=torch.float64)
    error = {
        (method, steps): (sample(model, z, steps=steps, method=method) - (m + s * z)).abs().max().item()
        for method in ("euler", "heun")
        for steps in (20, 40)
    }
    assert error["heun", 40] < 3e-3
    assert error["euler", 20] / error["euler", 40] == pytest.approx(2, rel=0.2)
    assert error["heun", 20] / error["heun", 40] == pytest.approx(4, rel=0.3)
    assert error["heun", 20] < error["euler", 40]


def test_guidance_of_one_is_the_conditional_and_of_zero_the_unconditional():
    cond, uncond = pair(2, 5)
    assert torch.allclose(guide(cond, uncond, 1.0), cond, atol=1e-15)
    assert torch.equal(guide(cond, uncond, 0.0), uncond)
    assert torch.allclose(guide(cond, uncond, 3.0), cond + 2 * (cond - uncond), atol=1e-14)


def test_shifted_times_keep_their_ends_and_invert():
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    t = shift_times(u, 2.5)
    assert t[0] == 0 and t[-1] == 1 and (t[1:-1] > u[1:-1]).all()
    assert torch.allclose(shift_times(t, 1 / 2.5), u)
    with pytest.raises(ValueError, match="shift=0"):
        shift_times(u, 0)


def test_training_times_are_logit_normal_then_shifted():
    t = sample_times(20_000, generator(), shift=3.0)
    unshifted = shift_times(t.double(), 1 / 3)
    logit = unshifted.log() - (1 - unshifted).log()
    assert abs(logit.mean()) < 0.03 and abs(logit.std() - 1) < 0.03
    assert torch.equal(t, sample_times(20_000, generator(), shift=3.0))


def test_the_grid_runs_from_noise_to_data():
    times = time_grid(7, shift=2.5)
    assert len(times) == 8 and times[0] == 1 and times[-1] == 0 and (times.diff() < 0).all()
    with pytest.raises(ValueError, match="steps=0"):
        time_grid(0)


def test_steps_report_where_they_are_and_bad_methods_are_named():
    x0, eps = pair(2, 3)
    states = list(sample_steps(lambda xt, t: velocity(x0, eps), eps, steps=3))
    assert [state.step for state in states] == [1, 2, 3]
    assert states[-1].t == 0
    assert all(torch.allclose(state.x0, x0, atol=1e-6) for state in states)
    with pytest.raises(ValueError, match="'leapfrog'"):
        sample(lambda xt, t: xt, eps, method="leapfrog")
