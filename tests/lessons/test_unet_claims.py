"""The direction of every claim that lesson 01 makes, at sizes that train in seconds, with fixed seeds."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from course_lib.data.clutter import add_clutter, outline
from course_lib.data.digits import load_digits
from course_lib.data.moving_mnist import render_scenes
from course_lib.data.sampling import sample_scenes
from course_lib.models.unet import DiffusionUNet, ResBlock, UNet, crop_concat
from course_lib.training.loop import train


def pictures(n, seed, split="train"):
    digits, g = load_digits("embedded", split), torch.Generator().manual_seed(seed)
    clean = render_scenes(sample_scenes(n, g, frames=1, height=32, width=32, sizes=("medium",)), digits, g)
    return add_clutter(clean, digits, g, pieces=6, noise=0.3)[:, :, 0], outline(clean)[:, :, 0]


def no_skips(up, skip):
    return crop_concat(up, torch.zeros_like(skip))


def shaken(up, skip):
    return crop_concat(up, skip.roll(torch.randint(-3, 4, (2,)).tolist(), (2, 3)))


def shifted(up, skip):
    return crop_concat(up, skip.roll((3, 3), (2, 3)))


@torch.no_grad()
def iou(model, join=None):
    x, y = pictures(100, 10**6, "heldout")
    before, model.join = model.join, join or model.join
    answer = model(x) > 0
    model.join = before
    both, either = (answer & y).sum((1, 2, 3)), (answer | y).sum((1, 2, 3))
    return (both / either.clamp(min=1)).mean().item()


def trained(join, steps=60):
    torch.manual_seed(0)
    model = UNet(1, 1, base=8, levels=3, join=join)
    nn.init.constant_(model.to_logits.bias, -2.0)

    def loss_of_step(step):
        x, y = pictures(24, step)
        return F.binary_cross_entropy_with_logits(model(x), y.float(), pos_weight=torch.tensor(3.0))

    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    for _ in train(loss_of_step, model, [optimizer], steps=steps):
        pass
    return model


@pytest.fixture(scope="module")
def with_skips():
    return trained(crop_concat)


def test_skips_carry_detail_and_only_in_their_place(with_skips):
    own, none, shaking = iou(with_skips), iou(trained(no_skips)), trained(shaken)
    moved = sum(iou(shaking) for _ in range(5)) / 5  # every call shakes anew
    assert own > 0.4
    assert own > none + 0.12 and own > moved + 0.12


def test_a_trained_network_needs_both_sources(with_skips):
    """Without its skips the lines are gone; without what comes from below it cannot tell a digit from clutter."""
    own = iou(with_skips)
    assert iou(with_skips, no_skips) < own / 2
    assert iou(with_skips, lambda up, skip: crop_concat(0 * up, skip)) < own / 2


def test_a_constant_shift_is_learned_away_but_fatal_to_a_network_trained_without(with_skips):
    assert iou(with_skips, shifted) < iou(with_skips) / 2
    assert iou(trained(shifted)) > 1.5 * iou(with_skips, shifted)


def test_silent_blocks_can_be_stacked():
    torch.manual_seed(0)
    x, t = torch.randn(2, 16, 8, 8), torch.randn(2, 32)
    blocks = [ResBlock(16, 16, 32) for _ in range(40)]
    y = x
    for block in blocks:
        y = block(y, t)
    assert torch.equal(x, y)
    for block in blocks:
        block.conv2.reset_parameters()
        y = block(y, t)
    assert F.cosine_similarity(x.flatten(), y.flatten(), 0) < 0.7


class Renamed(nn.Module):
    """A residual block whose parts have other names and stand in another order, as the exercise allows."""

    def __init__(self, c_in, c_out, time_dim, groups=8):
        super().__init__()
        self.last = nn.Conv2d(c_out, c_out, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.side = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        self.first = nn.Sequential(nn.GroupNorm(groups, c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.clock = nn.Linear(time_dim, c_out)
        self.norm = nn.GroupNorm(groups, c_out)

    def forward(self, x, t):
        h = self.first(x) + self.clock(F.silu(t))[:, :, None, None]
        return self.side(x) + self.last(F.silu(self.norm(h)))


@pytest.mark.parametrize("make", [ResBlock, Renamed])
def test_the_lesson_finds_the_silent_convolution_by_what_it_is(make):
    block = make(16, 32, 24)
    convolutions = [m for m in block.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    (silent,) = [m for m in convolutions if not m.weight.any()]
    assert silent.in_channels == silent.out_channels == 32
    assert DiffusionUNet(base=16, widths=(1, 2), block=make)(torch.randn(2, 1, 8, 8), torch.rand(2)).shape == (
        2,
        1,
        8,
        8,
    )


@pytest.fixture(scope="module")
def denoiser():
    images = F.interpolate(load_digits("embedded").images[:, None].float(), size=16, mode="area") / 127.5 - 1
    torch.manual_seed(0)
    model = DiffusionUNet(base=16, widths=(1, 2))

    def loss_of_step(step):
        g = torch.Generator().manual_seed(step)
        x0, t = images[torch.randint(len(images), (48,), generator=g)], torch.rand(48, generator=g)
        return F.mse_loss(model(mixed(x0, t, g), t), x0)

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    for _ in train(loss_of_step, model, [optimizer], steps=60):
        pass
    return model.eval(), images


def mixed(x0, t, g):
    t = t[:, None, None, None]
    return (1 - t) * x0 + t * torch.randn(x0.shape, generator=g)


@torch.no_grad()
def answers(denoiser, true_t, told_t):
    model, images = denoiser
    x0 = images[::10]
    xt = mixed(x0, torch.full((len(x0),), true_t), torch.Generator().manual_seed(0))
    return x0, model(xt, torch.full((len(x0),), told_t))


def test_a_denoiser_believes_the_time_that_it_is_told(denoiser):
    def error(true_t, told_t):
        return F.mse_loss(*answers(denoiser, true_t, told_t)).item()

    assert error(0.3, 0.3) < 0.8 * error(0.3, 0.9)
    assert error(0.7, 0.7) < 0.9 * error(0.7, 0.1)

    def roughness(told_t):
        return answers(denoiser, 0.7, told_t)[1].diff(dim=-1).abs().mean().item()

    assert roughness(0.2) > 1.1 * roughness(0.7)


def test_from_pure_noise_the_answer_is_near_the_mean(denoiser):
    x0, blur = answers(denoiser, 1.0, 1.0)
    mean = denoiser[1].mean(0, keepdim=True).expand_as(blur)
    assert F.mse_loss(blur, mean) < 0.5 * F.mse_loss(blur, x0)
