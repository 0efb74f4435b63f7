"""The direction of every claim that lesson 06 makes, at sizes that train in seconds, with fixed seeds."""

from functools import cache, partial

import pytest
import torch
import torch.nn.functional as F

from course_lib.data.digits import load_digits
from course_lib.evaluation.judge import load_judge
from course_lib.models.autoencoder import AutoencoderConfig, KLAutoencoder, autoencoder_loss
from course_lib.models.transformer import Decoder, DecoderLayer, next_token_loss
from course_lib.models.vqvae import (
    VQVAE,
    VectorQuantizer,
    ema_update,
    perplexity,
    quantize,
    restart_dead_codes,
    straight_through,
    vqvae_loss,
)
from course_lib.nn.attention import MultiHeadAttention, fused_attention
from course_lib.training.loop import train

STEPS, BATCH = 110, 24


@cache
def digits(split):
    found = load_digits("embedded", split)
    return found.images.float()[:, None] / 127.5 - 1


def kl_loss(model, frames, generator):
    return autoencoder_loss(model, frames[:, :, None], generator, ink=1.0, kl=1e-3, slow=0.0)


def fit(model, loss=vqvae_loss):
    def loss_of_step(step):
        g = torch.Generator().manual_seed(step)
        chosen = torch.randint(len(digits("train")), (BATCH,), generator=g)
        return loss(model, digits("train")[chosen], g)

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0)
    for _ in train(loss_of_step, model, [optimizer], steps=STEPS):
        pass
    return model.eval()


def config(d=8):
    return AutoencoderConfig(latent_channels=d, width=16, width_low=32, blocks=1, patch=2)


@cache
def vqvae(k, d=8, clump=False, **options):
    torch.manual_seed(0)
    quantizer = VectorQuantizer(k, d, **options)
    if clump:
        quantizer.codebook.uniform_(-1 / k, 1 / k)
        quantizer.total.copy_(quantizer.codebook)
    return fit(VQVAE(config(d), quantizer))


@torch.no_grad()
def error_and_use(model):
    codes = model.encode(digits("heldout"))
    return F.mse_loss(model.decode(codes).clamp(-1, 1), digits("heldout")).item(), perplexity(codes).item()


@pytest.fixture(scope="module")
def main_model():
    return vqvae(128)


@torch.no_grad()
def read_alike(pictures):
    judge, real = load_judge(), digits("heldout")
    return (judge.read_clips(pictures[:, :, None]) == judge.read_clips(real[:, :, None])).float().mean().item()


def test_discrete_codes_keep_the_digit_and_cost_detail(main_model):
    torch.manual_seed(0)
    continuous = fit(KLAutoencoder(config()), kl_loss)
    real = digits("heldout")
    with torch.no_grad():
        discrete = main_model.decode(main_model.encode(real)).clamp(-1, 1)
        smooth = continuous.decode(continuous.encode(real).mean).clamp(-1, 1)
    assert read_alike(discrete) > 0.9
    assert F.mse_loss(smooth, real) < 0.85 * F.mse_loss(discrete, real)


def test_restarts_bring_codes_into_use_and_gradients_alone_use_few(main_model):
    restarted = error_and_use(main_model)[1]
    means = error_and_use(vqvae(128, restart=0))[1]
    gradients = error_and_use(vqvae(128, restart=0, ema=False))[1]
    assert restarted > 1.5 * means
    assert gradients < 32


def test_a_clump_of_codes_needs_restarts():
    with_restarts, without = (error_and_use(vqvae(64, 2, clump=True, restart=r)) for r in (1.0, 0.0))
    assert with_restarts[1] > 1.5 * without[1]
    assert with_restarts[0] < without[0]


def test_more_codes_smaller_error(main_model):
    few, many = error_and_use(vqvae(4))[0], error_and_use(main_model)[0]
    assert many < 0.75 * few


def test_a_prior_needs_fewer_nats_than_frequencies_alone_or_at_each_place():
    model, k = vqvae(4), 4
    with torch.no_grad():
        texts, held_out = (model.encode(digits(split)).flatten(1) for split in ("train", "heldout"))
    start = lambda codes: F.pad(codes, (1, 0), value=k)  # noqa: E731
    torch.manual_seed(0)
    layer = partial(DecoderLayer, attention=partial(MultiHeadAttention, attend=fused_attention))
    prior = Decoder(k + 1, 32, 2, 2, 64, layer=layer, cross=False)

    def loss_of_step(step):
        chosen = torch.randint(len(texts), (BATCH,), generator=torch.Generator().manual_seed(step))
        return next_token_loss(prior(start(texts[chosen])[:, :-1]), texts[chosen])

    optimizer = torch.optim.AdamW(prior.parameters(), lr=5e-3, betas=(0.9, 0.98), weight_decay=0.0)
    for _ in train(loss_of_step, prior, [optimizer], steps=400):
        pass
    with torch.no_grad():
        cost = next_token_loss(prior(start(held_out)[:, :-1]), held_out).item()
    frequency = texts.flatten().bincount(minlength=k) / texts.numel()
    assert cost < 0.85 * -frequency[held_out].log().mean().item()
    at_place = F.one_hot(texts, k).sum(0) + 0.1
    at_place = at_place / at_place.sum(-1, keepdim=True)
    assert cost < 0.95 * -at_place[torch.arange(texts.shape[1]), held_out].log().mean().item()


def test_without_the_straight_through_gradient_pictures_are_worse(main_model):
    deaf = vqvae(128, straight_through=lambda z, q, beta: (q, straight_through(z, q, beta)[1]))
    assert error_and_use(deaf)[0] > 1.5 * error_and_use(main_model)[0]


def test_codes_move_with_the_picture_by_whole_cells_only(main_model):
    canvas = torch.full((5, 1, 48, 48), -1.0)
    for f in range(5):
        canvas[f, 0, 10:38, 8 + f : 36 + f] = digits("heldout")[70, 0]
    with torch.no_grad():
        codes = main_model.encode(canvas)
    assert torch.equal(codes[4, 3:-3, 4:-3], codes[0, 3:-3, 3:-4])
    under = F.max_pool2d(canvas, 4)[:, 0] > -0.2  # cells that hold a piece of the stroke
    ink = under[1:] | under[:-1]
    assert ink.sum((1, 2)).max() < 36  # not the whole frame
    assert (codes[1:] != codes[:-1])[ink].float().mean() > 0.6


def test_swapped_stop_gradients_show_in_no_value():
    z, q = (torch.randn(2, 5, 3, 7, requires_grad=True) for _ in range(2))
    swapped = F.mse_loss(z, q.detach()) + 0.25 * F.mse_loss(z.detach(), q)
    _, right = straight_through(z, q)
    torch.testing.assert_close(swapped, right)
    gradients = [torch.autograd.grad(loss, z)[0].norm() for loss in (swapped, right)]
    assert gradients[0] > 3 * gradients[1]


def test_a_code_that_starts_far_away_never_moves_unless_restarted():
    g = torch.Generator().manual_seed(3)
    points = torch.tensor([[-2.0, -1.0], [2.0, -1.0], [0.0, 2.0]])[torch.arange(240) % 3]
    points = points + 0.35 * torch.randn(240, 2, generator=g)
    for restart in (False, True):
        book = torch.tensor([[-0.4, 0.2], [0.4, 0.0], [0.0, 0.5], [3.0, 4.5]])
        count, total = torch.ones(4), book
        for _ in range(60):
            chosen = quantize(points.view(1, 1, 240, 2), book)[0].flatten()
            book, count, total = ema_update(points, chosen, count, total, decay=0.9)
            if restart:
                book, count, total = restart_dead_codes(book, count, total, points)
        assert ((chosen == 3).sum() > 0) == restart
