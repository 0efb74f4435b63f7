"""Our Muon against torch's, and against what it promises."""

import pytest
import torch

from course_lib.training.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(7, 7), (5, 13), (13, 5)])
def test_orthogonalise_keeps_the_singular_directions_and_levels_their_values(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ orthogonalise(matrix) @ vt.T
    values = inside.diagonal()
    assert (inside - values.diag()).abs().max() < 1e-3
    assert 0.5 < values.min() and values.max() < 1.3
    assert torch.allclose(orthogonalise(matrix), orthogonalise(1000 * matrix), atol=1e-5)


def test_it_steps_like_torch_up_to_bfloat16():
    torch.manual_seed(0)
    start = [torch.randn(12, 5), torch.randn(5, 12), torch.randn(6, 6)]
    mine, theirs = ([torch.nn.Parameter(s.clone()) for s in start] for _ in range(2))
    optimizers = Muon(mine, lr=0.1), torch.optim.Muon(theirs, lr=0.1, weight_decay=0.0, momentum=0.95)
    for step in range(3):
        g = torch.Generator().manual_seed(step)
        for a, b in zip(mine, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=g)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b, s in zip(mine, theirs, start, strict=True):
        assert (a - b).norm() < 0.03 * (a - s).norm()


def test_only_matrices_and_only_those_with_a_gradient():
    with pytest.raises(ValueError, match="shape \\(3,\\)"):
        Muon([torch.nn.Parameter(torch.zeros(3))])
    p = torch.nn.Parameter(torch.ones(2, 3))
    Muon([p]).step()
    assert torch.equal(p, torch.ones(2, 3))


def test_a_kernel_steps_like_the_matrix_it_is():
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(torch.randn(6, 5, 3, 3))
    matrix = torch.nn.Parameter(kernel.detach().flatten(1).clone())
    kernel.grad = torch.randn(6, 5, 3, 3)
    matrix.grad = kernel.grad.flatten(1).clone()
    for p in (kernel, matrix):
        Muon([p], lr=0.1).step()
    assert torch.equal(kernel.flatten(1), matrix)
