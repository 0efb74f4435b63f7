"""Exact denoisers against autograd and against brute force; guidance against its two ends."""

import pytest
import torch

from course_lib.diffusion.guidance import LabelEmbedding, guide, guided_prediction
from course_lib.diffusion.ideal import Gaussians, Images, ideal_model
from course_lib.diffusion.samplers import sample
from course_lib.diffusion.schedules import Line, Steps, linear_schedule

MIXTURE = Gaussians(
    torch.tensor([[1.0, 0.0], [-1.0, 2.0], [0.0, -3.0]]).double(),
    torch.tensor([0.5, 0.2, 1.1]).double(),
    torch.tensor([0.5, 0.3, 0.2]).double(),
)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_mixture_agrees_with_the_score_by_autograd():
    """Tweedie: E[eps | x_t] = -sigma * gradient of log p(x_t)."""
    alpha, sigma = torch.tensor(0.8).double(), torch.tensor(0.6).double()
    x = randn(7, 2).requires_grad_()
    parts = []
    for mean, std, share in zip(MIXTURE.means, MIXTURE.stds, MIXTURE.shares, strict=True):
        normal = torch.distributions.Normal(alpha * mean, (alpha**2 * std**2 + sigma**2).sqrt())
        parts.append(share.log() + normal.log_prob(x).sum(1))
    (score,) = torch.autograd.grad(torch.stack(parts).logsumexp(0).sum(), x)
    x0 = MIXTURE.x0(x.detach(), alpha.expand(7), sigma.expand(7))
    torch.testing.assert_close((x.detach() - alpha * x0) / sigma, -sigma * score, rtol=0, atol=1e-10)


def test_the_images_agree_with_bayes_by_brute_force():
    data = Images(randn(11, 2, 3))
    xt, alpha, sigma = randn(5, 2, 3), torch.linspace(0.2, 0.9, 5).double(), torch.linspace(0.9, 0.1, 5).double()
    for i in range(5):
        likelihood = torch.stack(
            [torch.distributions.Normal(alpha[i] * x, sigma[i]).log_prob(xt[i]).sum() for x in data.images]
        )
        want = (likelihood.softmax(0)[:, None, None] * data.images).sum(0)
        torch.testing.assert_close(data.x0(xt, alpha, sigma)[i], want, rtol=0, atol=1e-10)


def test_the_ideal_model_gives_back_its_images():
    data = Images(randn(11, 2, 3))
    for schedule, sampler in ((Steps(linear_schedule(1000)[1]), "ddim"), (Line(), "euler")):
        x = sample(ideal_model(data, schedule), randn(50, 2, 3), schedule, sampler=sampler, steps=50)
        distance, index = data.nearest(x)
        assert distance.max() < 1e-2 and len(index.unique()) > 5


def test_ideal_models_exist_for_every_prediction():
    for prediction in ("eps", "x0", "v", "velocity"):
        model = ideal_model(MIXTURE, Line(), prediction)
        assert model(randn(5, 2), torch.linspace(0.1, 0.9, 5)).isfinite().all()


def test_draws_follow_the_mixture():
    x, which = MIXTURE.draw(20_000, torch.Generator().manual_seed(0))
    for k in range(3):
        mine = x[which == k]
        assert len(mine) / len(x) == pytest.approx(MIXTURE.shares[k].item(), abs=0.02)
        torch.testing.assert_close(mine.mean(0), MIXTURE.means[k], rtol=0, atol=0.08)
    assert (
        MIXTURE.only(1).x0(randn(3, 2), torch.ones(3), torch.full((3,), 1e6)).sub(MIXTURE.means[1]).abs().max() < 1e-3
    )


def test_labels_are_dropped_in_training_only():
    torch.manual_seed(0)
    embed, labels = LabelEmbedding(5, 7, drop=0.3), torch.arange(5).repeat(2000)
    null = embed.table.weight[embed.null]
    share = (embed(labels) == null).all(1).float().mean().item()
    assert share == pytest.approx(0.3, abs=0.02)
    assert torch.equal(embed.eval()(labels), embed.table.weight[labels])


def test_guidance_calls_once_and_has_the_right_ends():
    calls = []

    def model(xt, t, labels):
        calls.append(len(xt))
        return xt * (labels + 1).view(-1, 1) + t.view(-1, 1)

    xt, t, labels = randn(3, 5), torch.rand(3).double(), torch.tensor([2, 0, 4])
    cond, uncond = model(xt, t, labels), model(xt, t, torch.full_like(labels, 9))
    calls.clear()
    for w in (0.0, 1.0, 3.0):
        torch.testing.assert_close(guided_prediction(model, xt, t, labels, 9, w), guide(cond, uncond, w))
    assert calls == [6, 6, 6]
