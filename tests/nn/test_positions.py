"""Sine-cosine positions: known values, and three independent axes in the order of patchify."""

import math

import pytest
import torch

from course_lib.nn.patches import patchify
from course_lib.nn.positions import sincos, sincos_3d


def test_known_values():
    table = sincos(torch.tensor([0.0, 3.0]), 6, longest=100.0)
    assert torch.equal(table[0], torch.tensor([0.0, 0, 0, 1, 1, 1]))
    for i in range(3):
        angle = 3 / 100 ** (i / 3)
        assert table[1, i] == pytest.approx(math.sin(angle), abs=1e-6)
        assert table[1, 3 + i] == pytest.approx(math.cos(angle), abs=1e-6)


def test_the_shift_between_positions_is_a_rotation_that_does_not_depend_on_where():
    table = sincos(torch.arange(11.0), 14).double()
    inner = table @ table.T
    for gap in range(5):
        assert torch.allclose(inner.diagonal(gap), inner[0, gap].expand(11 - gap), atol=1e-5)


def test_each_axis_owns_a_third_of_the_columns_in_the_token_order_of_patchify():
    grid, dim = (5, 3, 7), 18
    table = sincos_3d(grid, dim)
    where = torch.stack(torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij"))[None]  # (1, 3, 5, 3, 7)
    tokens = patchify(where, (1, 1, 1))[0]  # (105, 3): frame, row and column of every token
    assert table.shape == (105, 18)
    for axis in range(3):
        own = table[:, 6 * axis : 6 * axis + 6]
        assert torch.equal(own, sincos(tokens[:, axis].float(), 6))
    assert len(table.unique(dim=0)) == 105


def test_odd_widths_are_refused():
    with pytest.raises(ValueError, match="dim=7"):
        sincos(torch.zeros(2), 7)
    with pytest.raises(ValueError, match="dim=10"):
        sincos_3d((2, 2, 2), 10)
