"""adaLN, the time embedding and RMS norm."""

import torch
from torch import nn

from course_lib.nn.modulation import TimestepEmbedding, modulate, rms_norm


def test_zero_modulation_changes_nothing_and_each_sample_has_its_own():
    x = torch.randn(2, 5, 7)
    zero = torch.zeros(2, 7)
    assert torch.equal(modulate(x, zero, zero), x)
    shift, scale = torch.randn(2, 7), torch.randn(2, 7)
    out = modulate(x, shift, scale)
    assert torch.allclose(out[1, 3], x[1, 3] * (1 + scale[1]) + shift[1])


def test_time_embedding_tells_neighbouring_times_apart():
    torch.manual_seed(0)
    embed = TimestepEmbedding(11)
    t = torch.linspace(0, 1, 101)
    features = embed(t)
    assert features.shape == (101, 11)
    assert torch.cdist(features, features)[~torch.eye(101, dtype=torch.bool)].min() > 1e-3


def test_rms_norm_equals_torch_and_bounds_the_length():
    x = torch.randn(2, 3, 5) * 100
    scale = torch.rand(5)
    reference = nn.RMSNorm(5, eps=1e-6)
    with torch.no_grad():
        reference.weight.copy_(scale)
    assert torch.allclose(rms_norm(x, scale), reference(x))
    assert torch.allclose(rms_norm(x, torch.ones(5)).square().mean(-1), torch.ones(2, 3), atol=1e-4)
