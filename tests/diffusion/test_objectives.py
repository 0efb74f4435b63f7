"""Training targets and the way back from each of them; losses that a model which knows the answer brings to zero."""

import pytest
import torch

from course_lib.diffusion.flow import add_noise
from course_lib.diffusion.objectives import PREDICTIONS, ddpm_loss, flow_loss, from_v, target, to_x0_eps
from course_lib.diffusion.schedules import Line, Steps, linear_schedule, q_sample

ALPHA_BAR = linear_schedule(1000)[1]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("schedule", [Steps(ALPHA_BAR), Line()])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_prediction_gives_back_data_and_noise(schedule, prediction):
    x0, eps = torch.randn(2, 3, 2, 5, dtype=torch.float64).unbind(0)
    t = torch.tensor([7, 500, 900]) if isinstance(schedule, Steps) else torch.tensor([0.1, 0.5, 0.9]).double()
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    xt = alpha.view(3, 1, 1) * x0 + sigma.view(3, 1, 1) * eps
    value = target(prediction, x0, eps, alpha, sigma)
    for found, wanted in zip(to_x0_eps(prediction, value, xt, alpha, sigma), (x0, eps), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def test_v_is_a_quarter_turn_and_equals_diffusers():
    from diffusers import DDPMScheduler

    x0, eps = torch.randn(2, 3, 2, 5, dtype=torch.float64).unbind(0)
    t = torch.tensor([0, 500, 999])
    alpha, sigma = Steps(ALPHA_BAR).alpha(t), Steps(ALPHA_BAR).sigma(t)
    xt, v = q_sample(x0, t, eps, ALPHA_BAR), target("v", x0, eps, alpha, sigma)
    torch.testing.assert_close(DDPMScheduler(1000).get_velocity(x0, eps, t), v, rtol=0, atol=1e-4)
    torch.testing.assert_close(xt**2 + v**2, x0**2 + eps**2, rtol=1e-12, atol=1e-12)  # a rotation keeps lengths
    for found, wanted in zip(from_v(xt, v, t, ALPHA_BAR), (x0, eps), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    for found, wanted in zip(from_v(xt, v, t, ALPHA_BAR), to_x0_eps("v", v, xt, alpha, sigma), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_an_unknown_prediction_is_named():
    with pytest.raises(ValueError, match="'score'"):
        target("score", torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1), torch.zeros(1))


def test_models_that_know_the_data_have_no_loss_and_models_that_say_zero_a_known_one():
    x0 = torch.randn(500, 3, 2)

    def knows_eps(xt, t):
        a = ALPHA_BAR[t].view(-1, 1, 1)
        return ((xt - a.sqrt() * x0) / (1 - a).sqrt()).float()

    def knows_v(xt, t):
        return (xt - x0) / t.view(-1, 1, 1)  # x_t - x0 = t (eps - x0)

    assert ddpm_loss(knows_eps, x0, ALPHA_BAR) < 1e-8
    assert flow_loss(knows_v, x0) < 1e-6
    assert ddpm_loss(lambda xt, t: torch.zeros_like(xt), x0, ALPHA_BAR).item() == pytest.approx(1, abs=0.1)
    assert flow_loss(lambda xt, t: torch.zeros_like(xt), x0).item() == pytest.approx(2, abs=0.2)


def test_losses_draw_times_over_the_whole_range():
    seen = []
    model = lambda xt, t: seen.append(t) or torch.zeros_like(xt)  # noqa: E731
    ddpm_loss(model, torch.zeros(5000, 1), ALPHA_BAR[:7])
    flow_loss(model, torch.zeros(5000, 1))
    assert torch.bincount(seen[0], minlength=7).min() > 600
    assert seen[1].min() < 0.01 and seen[1].max() > 0.99 and abs(seen[1].mean() - 0.5) < 0.02


def test_the_mixture_of_flow_is_the_line():
    x0, eps, t = torch.randn(3, 5), torch.randn(3, 5), torch.tensor([0.0, 0.25, 1.0])
    line = Line()
    torch.testing.assert_close(
        add_noise(x0, t, eps), line.alpha(t)[:, None] * x0 + line.sigma(t)[:, None] * eps, rtol=0, atol=1e-6
    )
