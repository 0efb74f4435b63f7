"""The frame autoencoder: shapes, the KL term, whitening, and that it can learn."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from course_lib.models.autoencoder import (
    AutoencoderConfig,
    DiagonalGaussian,
    KLAutoencoder,
    autoencoder_loss,
    fit_latent_stats,
    scale_latents,
    slowness,
    unscale_latents,
)

SMALL = AutoencoderConfig(channels=3, latent_channels=5, width=8, width_low=12, blocks=1)


def model(config: AutoencoderConfig = SMALL) -> KLAutoencoder:
    torch.manual_seed(0)
    return KLAutoencoder(config)


def test_eight_times_smaller_and_back():
    frames = torch.rand(2, 3, 24, 40) * 2 - 1
    latents = model().encode(frames)
    assert latents.mean.shape == latents.logvar.shape == (2, 5, 3, 5)
    assert model().decode(latents.mean).shape == frames.shape
    with pytest.raises(ValueError, match="24 x 41"):
        model().encode(torch.zeros(1, 3, 24, 41))


def params(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_posterior_is_the_textbook_one():
    p = params(3, 10, 5, 7)
    ours, theirs = DiagonalGaussian(p), Normal(p[:, :5], (0.5 * p[:, 5:]).exp())
    torch.testing.assert_close(ours.std, theirs.stddev)
    torch.testing.assert_close(ours.mode(), theirs.mode)
    torch.testing.assert_close(ours.kl(), kl_divergence(theirs, Normal(0.0, 1.0)).sum(dim=(1, 2, 3)), rtol=0, atol=1e-4)
    assert torch.equal(DiagonalGaussian(torch.zeros(2, 6)).kl(), torch.zeros(2))
    with pytest.raises(ValueError, match="7 channels"):
        DiagonalGaussian(params(2, 7))


def test_the_posterior_is_that_of_diffusers():
    vae = pytest.importorskip("diffusers.models.autoencoders.vae")
    p = params(2, 6, 5, 3) + torch.tensor([0.0, 0, 0, 40, -70, 0]).view(1, 6, 1, 1)  # beyond the clamp on both sides
    ours, theirs = DiagonalGaussian(p), vae.DiagonalGaussianDistribution(p)
    for mine, other in ((ours.mean, theirs.mean), (ours.std, theirs.std), (ours.logvar, theirs.logvar)):
        assert torch.equal(mine, other)
    torch.testing.assert_close(ours.kl(), theirs.kl(), rtol=1e-5, atol=0)
    g = lambda: torch.Generator().manual_seed(1)  # noqa: E731
    assert torch.equal(ours.sample(g()), theirs.sample(g()))


def test_samples_have_the_asked_mean_and_spread_and_follow_the_generator():
    g = DiagonalGaussian(torch.tensor([2.0, -2.0]).expand(20_000, 2))
    drawn = g.sample(torch.Generator().manual_seed(0))
    assert drawn.mean() == pytest.approx(2, abs=0.02) and drawn.std() == pytest.approx(torch.e**-1, abs=0.02)
    assert torch.equal(drawn, g.sample(torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 7), (5, 3, 4, 7), (2, 3, 5, 4, 7)])
def test_latent_statistics_belong_to_channels_and_scaling_can_be_undone(shape):
    z = 3 * params(*shape) + 2
    mean, std = fit_latent_stats(z)
    for c in range(3):
        torch.testing.assert_close((mean[c], std[c]), (z[:, c].mean(), z[:, c].std()))
    white = scale_latents(z, mean, std)
    torch.testing.assert_close(fit_latent_stats(white), (torch.zeros(3), torch.ones(3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(unscale_latents(white, mean, std), z)


def test_a_constant_channel_is_left_as_wide_as_it_is_and_one_number_is_refused():
    z = params(5, 3, 4)
    z[:, 1] = 0.1  # not a binary fraction: its computed deviation is rounding noise, not 0
    assert fit_latent_stats(z)[1][1] == 1
    assert not any(v.requires_grad for v in fit_latent_stats(z.requires_grad_()))
    with pytest.raises(ValueError, match="two numbers"):
        fit_latent_stats(params(1, 3, 1, 1))


def test_pictures_are_videos_of_one_frame_and_sampled_latents_lie_around_the_means():
    m = model()
    m.fit_whitening(m.compress(params(3, 3, 1, 16, 24)))
    pictures = params(2, 3, 16, 24).clamp(-1, 1)
    assert torch.equal(m.latents(pictures), m.compress(pictures[:, :, None])[:, :, 0])
    assert torch.equal(m.pictures(m.latents(pictures)), m.decompress(m.compress(pictures[:, :, None]))[:, :, 0])
    drawn = torch.stack([m.latents(pictures, torch.Generator().manual_seed(i)) for i in range(2000)])
    expected = m.encode(pictures).std / m.latent_std.view(-1, 1, 1)
    assert torch.allclose(drawn.mean(0), m.latents(pictures), atol=0.15 * expected.max().item())
    torch.testing.assert_close(drawn.std(0), expected, rtol=0.12, atol=0)


def test_whitened_latents_have_mean_zero_and_spread_one_and_decompress_undoes_compress():
    m = model()
    video = torch.rand(3, 3, 5, 16, 24) * 2 - 1
    before = m.decompress(m.compress(video))
    raw = m.compress(video)
    m.fit_whitening(raw)
    white = m.compress(video)
    assert torch.allclose(white.mean(dim=(0, 2, 3, 4)), torch.zeros(5), atol=1e-4)
    assert torch.allclose(white.std(dim=(0, 2, 3, 4)), torch.ones(5), atol=1e-3)
    assert torch.allclose(m.decompress(white), before, atol=1e-4)
    m.fit_whitening(white)  # already white: nothing more to remember
    assert torch.allclose(m.compress(video), white, atol=1e-3)


def test_frames_of_a_video_are_coded_one_by_one_and_in_order():
    m = model()
    video = torch.rand(2, 3, 5, 16, 24) * 2 - 1
    changed = video.clone()
    changed[1, :, 3] = 0
    moved = (m.compress(video) != m.compress(changed)).any(dim=(1, 3, 4))
    assert moved.tolist() == [[False] * 5, [False, False, False, True, False]]


def test_slowness_of_known_codes():
    g = torch.Generator().manual_seed(0)
    first = torch.randn(4000, 3, 1, 2, 2, generator=g)
    still = first.expand(-1, -1, 5, -1, -1)
    assert slowness(still) == 0
    noise = torch.randn(4000, 3, 5, 2, 2, generator=g)
    assert slowness(noise) == pytest.approx(2, rel=0.05)  # independent frames: var(a - b) = 2 var(a)
    assert torch.allclose(slowness(7 * noise), slowness(noise))  # a code cannot become slow by becoming small …
    pattern = 100 * torch.randn(1, 3, 1, 2, 2, generator=g)
    assert torch.allclose(slowness(noise + pattern), slowness(noise), atol=1e-3)  # … or by standing on a fixed pattern


def test_the_loss_is_the_weighted_sum_of_its_three_parts():
    m = model(AutoencoderConfig(width=8, width_low=12, blocks=1))
    video = torch.ones(3, 1, 2, 16, 16)
    video[1] = torch.rand(1, 2, 16, 16)

    def loss(ink=1.0, kl=0.0, slow=0.0):
        return autoencoder_loss(m, video, torch.Generator().manual_seed(0), ink=ink, kl=kl, slow=slow).item()

    assert loss(ink=5.0) == pytest.approx(5 * loss(), rel=1e-5)  # every pixel is ink
    latents = m.encode(video.transpose(1, 2).flatten(0, 1))
    divergence = latents.kl().mean().item() / latents.mean[0].numel()  # a mean, as the error is
    assert loss(kl=0.3) - loss() == pytest.approx(0.3 * divergence, abs=1e-5)
    codes = latents.mean.unflatten(0, (3, 2)).transpose(1, 2)
    assert loss(slow=0.3) - loss() == pytest.approx(0.3 * slowness(codes).item(), rel=1e-3)


def test_it_learns_a_handful_of_frames():
    m = model(AutoencoderConfig(width=16, width_low=16, blocks=1))
    g = torch.Generator().manual_seed(0)
    frames = torch.nn.functional.avg_pool2d(torch.randn(4, 1, 24, 24, generator=g), 5, 1, 2).sign()
    optimizer = torch.optim.AdamW(m.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = autoencoder_loss(m, frames[:, :, None], g, ink=1.0, kl=1e-3, slow=0.0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_every_parameter_gets_a_gradient():
    m = model()
    with torch.no_grad():
        for p in m.parameters():
            p.add_(0.01 * torch.randn(p.shape))
    autoencoder_loss(m, torch.rand(2, 3, 2, 16, 16), torch.Generator(), ink=2.0, kl=1e-2, slow=0.1).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in m.parameters())
