"""The direction of every claim that lesson 07 makes, with exact denoisers where there are some, and fixed seeds."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from course_lib.data.digits import load_digits
from course_lib.diffusion.guidance import LabelEmbedding, guided_prediction
from course_lib.diffusion.ideal import Gaussians, Images, ideal_model
from course_lib.diffusion.objectives import ddpm_loss, flow_loss
from course_lib.diffusion.samplers import ddim_sample, ddim_step, ddpm_step, euler_sample, sample, sample_steps
from course_lib.diffusion.schedules import Line, Steps, linear_schedule, sqrt_linear_schedule
from course_lib.evaluation.judge import load_judge
from course_lib.models.unet import DiffusionUNet
from course_lib.training.loop import train

ALPHA_BAR = linear_schedule(1000)[1]
SCHEDULE = Steps(ALPHA_BAR)
BELL = Gaussians(torch.tensor([[1.5]]), torch.tensor([0.5]), torch.ones(1))


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def known() -> Images:
    return Images(load_digits("embedded").at_size(16).float()[:, None] / 127.5 - 1)


def test_the_perfect_denoiser_gives_back_its_training_pictures_and_many_of_them(known):
    distance, which = known.nearest(sample(ideal_model(known, Line()), randn(100, 1, 16, 16), Line(), sampler="euler"))
    assert distance.max() < 0.02 and len(which.unique()) > 80


def test_ddim_and_flow_are_one_equation_and_only_the_method_decides_how_many_calls_it_needs(known):
    noise = randn(200, 1, 16, 16)

    def arrive(schedule, sampler, steps):
        return known.nearest(sample(ideal_model(known, schedule), noise, schedule, sampler=sampler, steps=steps))[1]

    truth = arrive(Line(), "euler", 200)
    agree = lambda *arm: (arrive(*arm) == truth).float().mean().item()  # noqa: E731
    assert agree(SCHEDULE, "ddim", 200) > 0.9
    euler, ddim = agree(Line(), "euler", 4), agree(SCHEDULE, "ddim", 4)
    assert abs(euler - ddim) < 0.12  # the same within the error of 200 noises
    assert agree(Line(), "heun", 4) > euler + 0.1
    to_zero = ddim_sample(ideal_model(known, SCHEDULE), noise, ALPHA_BAR, [999, 666, 333, 0])
    assert (known.nearest(to_zero)[1] == truth).float().mean() < ddim - 0.08  # the call at t = 0 is wasted


def test_the_way_of_ddim_is_bent_more_than_that_of_flow(known):
    noise, longer = randn(50, 1, 16, 16), {}
    for name, schedule in (("euler", Line()), ("ddim", SCHEDULE)):
        run = sample_steps(ideal_model(known, schedule), noise, schedule, sampler=name, steps=50)
        path = torch.stack([noise, *(state.xt for state in run)]).flatten(2)
        longer[name] = (path.diff(dim=0).norm(dim=2).sum(0) / (path[-1] - path[0]).norm(dim=1)).mean().item() - 1
    assert longer["euler"] < 0.04 and longer["ddim"] > 0.08


def test_latent_diffusion_never_trains_on_pure_noise():
    assert sqrt_linear_schedule(1000)[1][-1].sqrt().item() == pytest.approx(0.068, abs=5e-4)


def test_without_fresh_noise_ddpm_collapses():
    model, spread = ideal_model(BELL, SCHEDULE), {}
    for share in (1.0, 0.5, 0.0):
        x, g = randn(1000, 1), torch.Generator().manual_seed(1)
        for t in range(999, -1, -1):
            eps = model(x, torch.full((1000,), t))
            x = ddpm_step(x, eps, t, t - 1, ALPHA_BAR, share * torch.randn(x.shape, generator=g))
        spread[share] = x.std().item()
    assert spread[1.0] == pytest.approx(0.5, abs=0.05)
    assert spread[0.5] < 0.4 and spread[0.0] < 0.02


def test_without_fresh_noise_two_bells_become_one_point_and_pictures_one_picture(known):
    two = Gaussians(torch.tensor([[-1.0], [1.2]]), torch.tensor([0.15, 0.3]), torch.tensor([0.4, 0.6]))
    for model, x, steps in (
        (ideal_model(two, SCHEDULE), randn(1000, 1), 1000),
        (ideal_model(known, SCHEDULE), randn(40, 1, 16, 16), 100),
    ):
        for t, t_next in pairwise(SCHEDULE.times(steps)):
            x = ddpm_step(x, model(x, torch.full((len(x),), t)), t, t_next, ALPHA_BAR, torch.zeros_like(x))
        if len(x) == 1000:
            assert x.std() < 0.02 and x.min() > 0.5  # nobody near the mean of the data, 0.32, or in the lower bell
        else:
            assert len(known.nearest(x)[1].unique()) <= 2


def test_a_blur_lies_nearer_to_the_training_pictures_than_real_digits_do(known):
    heldout, labels = load_digits("embedded", "heldout"), load_digits("embedded").labels
    real = known.nearest(heldout.at_size(16).float()[:, None] / 127.5 - 1)[0]
    means = torch.stack([known.images[labels == k].mean(0) for k in range(10)])
    assert known.nearest(means)[0].mean() < real.mean() and real.min() > 0.03


def test_the_previous_time_is_the_previous_visited_time():
    model, z = ideal_model(BELL, SCHEDULE), randn(500, 1)
    alpha, sigma = ALPHA_BAR[-1].sqrt().float(), (1 - ALPHA_BAR[-1]).sqrt().float()
    exact = 1.5 + 0.5 * (z - alpha * 1.5) / (alpha**2 * 0.25 + sigma**2).sqrt()
    error = {}
    for steps in (1000, 50):
        x = z
        for t in SCHEDULE.times(steps)[:-1]:
            x = ddim_step(x, model(x, torch.full((len(x),), t)), t, t - 1, ALPHA_BAR, torch.zeros_like(x))
        error[steps] = (x - exact).abs().max().item()
    assert error[1000] < 0.02 and error[50] > 1


def test_the_ode_keeps_neighbours_together_and_the_sde_does_not():
    three = Gaussians(
        torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.0, -1.5]]), torch.full((3,), 0.2), torch.full((3,), 1 / 3)
    )
    z = randn(1000, 2)
    neighbour = torch.cdist(z, z).fill_diagonal_(9).argmin(1)
    apart = {}
    for eta in (0.0, 1.0):
        g = torch.Generator().manual_seed(0)
        x = sample(ideal_model(three, SCHEDULE), z, SCHEDULE, steps=60, eta=eta, generator=g)
        apart[eta] = (x - x[neighbour]).norm(dim=1).median().item()
    assert apart[0.0] < apart[1.0] / 5


def test_an_error_in_eps_is_much_larger_in_the_data_than_an_error_in_v():
    assert (1 - ALPHA_BAR[-1]).sqrt() / ALPHA_BAR[-1].sqrt() > 100  # eps; for v it is sigma, at most 1


def test_guidance_leaves_the_data_and_narrows():
    corners = 2 * torch.tensor([[1.0, 0.0], [-0.5, 0.866], [-0.5, -0.866]])
    clouds = Gaussians(corners, torch.full((3,), 0.5), torch.full((3,), 1 / 3))
    models = [ideal_model(clouds.only(k), Line()) for k in range(3)] + [ideal_model(clouds, Line())]
    ask = lambda xt, t, y: torch.stack([m(xt, t) for m in models])[y, torch.arange(len(y))]  # noqa: E731
    right, found = torch.zeros(500, dtype=torch.long), {}
    for w in (1.0, 3.0, 8.0):
        x = euler_sample(lambda xt, t, w=w: guided_prediction(ask, xt, t, right, 3, w), randn(500, 2), 40)
        found[w] = x[:, 0].mean().item(), x.std(0).mean().item()
    assert found[1.0][0] == pytest.approx(2, abs=0.1) and found[1.0][1] == pytest.approx(0.5, abs=0.05)
    assert found[1.0][0] + 0.1 < found[3.0][0] < found[8.0][0] - 0.1
    assert found[1.0][1] > found[3.0][1] + 0.05 and found[3.0][1] > found[8.0][1] + 0.03


class Painter(nn.Module):
    def __init__(self):
        super().__init__()
        self.unet = DiffusionUNet(1, base=8, widths=(1, 2), condition_dim=16)
        self.embed = LabelEmbedding(10, 16)

    def forward(self, xt, t, labels):
        return self.unet(xt, t, self.embed(labels))


def fit(loss, known: Images, labels: torch.Tensor, steps: int) -> tuple[Painter, list[float]]:
    torch.manual_seed(0)
    painter = Painter()

    def loss_of_step(step):
        torch.manual_seed(step)
        chosen = torch.randint(len(known.images), (32,))
        return loss(painter, known.images[chosen], labels[chosen])

    optimizer = torch.optim.AdamW(painter.parameters(), lr=6e-3, betas=(0.9, 0.99), weight_decay=0.0)
    losses = [step.loss for step in train(loss_of_step, painter, [optimizer], steps=steps)]
    return painter.eval(), losses


def legible(images: torch.Tensor, wanted: torch.Tensor) -> float:
    large = F.interpolate(images, size=(28, 28), mode="bicubic", align_corners=False).clamp(-1, 1)
    return (load_judge().read_frames(large[:, :, None])[:, 0].argmax(-1) == wanted).float().mean().item()


def test_the_judge_reads_real_digits_and_does_not_see_a_blur(known):
    labels, heldout = load_digits("embedded").labels, load_digits("embedded", "heldout")
    assert legible(heldout.at_size(16).float()[:, None] / 127.5 - 1, heldout.labels) > 0.97
    assert legible(torch.stack([known.images[labels == k].mean(0) for k in range(10)]), torch.arange(10)) > 0.8


@torch.no_grad()
def test_trained_networks_few_steps_and_guidance(known):
    labels = load_digits("embedded").labels
    with torch.enable_grad():
        flow, flow_losses = fit(lambda net, x, y: flow_loss(lambda xt, t: net(xt, t, y), x), known, labels, 200)
        noise, noise_losses = fit(
            lambda net, x, y: ddpm_loss(lambda xt, t: net(xt, t / 1000, y), x, ALPHA_BAR), known, labels, 80
        )
    assert flow_losses[0] == pytest.approx(1 + known.images.square().mean().item(), abs=0.15)  # it says 0 at first
    assert noise_losses[0] == pytest.approx(1, abs=0.1)
    assert flow_losses[-1] < 0.5 and noise_losses[-1] < 0.4
    wanted, start = torch.arange(10).repeat(4), randn(40, 1, 16, 16)
    few = euler_sample(lambda xt, t: flow(xt, t, wanted), start, 4)

    ddim = sample(lambda xt, t: noise(xt, t / 1000, wanted), start, SCHEDULE, steps=4)
    assert known.nearest(few)[0].mean() < 0.5 * known.nearest(ddim)[0].mean()
    assert legible(few, wanted) > legible(ddim, wanted) + 0.25
    told = {
        "half": lambda xt, t: flow(xt, torch.full_like(t, 0.5), wanted),
        "1 - t": lambda xt, t: flow(xt, 1 - t, wanted),
    }
    right = legible(euler_sample(lambda xt, t: flow(xt, t, wanted), start, 8), wanted)
    slips = {name: legible(euler_sample(slip, start, 8), wanted) for name, slip in told.items()}
    assert slips["half"] > right - 0.2 and slips["1 - t"] < right - 0.1
    assert known.nearest(few)[0].min() > 0.02  # no copies
    variety = {}
    for w in (1.0, 3.0):
        x = euler_sample(lambda xt, t, w=w: guided_prediction(flow, xt, t, wanted, 10, w), start, 8)
        variety[w] = x.view(4, 10, -1).std(0).mean().item()
    assert variety[3.0] < 0.9 * variety[1.0]
