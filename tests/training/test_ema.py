"""The average of weights: its formula, and that using it leaves the live weights alone."""

import pytest
import torch
from torch import nn

from course_lib.training.ema import EMA


def test_the_recursion_with_a_growing_decay():
    layer = nn.Linear(3, 2)
    ema = EMA(layer, decay=0.3)
    expected = layer.weight.detach().clone()
    for step in range(7):
        with torch.no_grad():
            layer.weight.add_(torch.randn(2, 3))
        ema.update(step)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * layer.weight.detach()
        assert torch.allclose(ema.weights["weight"], expected, atol=1e-6)
    assert min(0.3, 7 / 16) == 0.3  # both regimes were seen


def test_applied_is_temporary_even_after_an_error():
    layer = nn.Linear(3, 2)
    ema = EMA(layer)
    averaged = ema.weights["weight"].clone()
    with torch.no_grad():
        layer.weight.add_(1)
    live = layer.weight.detach().clone()
    with pytest.raises(KeyError), ema.applied():
        assert torch.equal(layer.weight, averaged)
        raise KeyError
    assert torch.equal(layer.weight, live)
    optimizer = torch.optim.SGD(layer.parameters(), 1.0)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert torch.equal(ema.weights["weight"], averaged)


def test_restore_refuses_other_names():
    ema = EMA(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="bias"):
        ema.restore({"weight": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match=r"decay=1\.0"):
        EMA(nn.Linear(1, 1), decay=1.0)
