"""The Fréchet distance: closed forms, scipy's matrix root, and that worse pictures are further away."""

import pytest
import torch

from course_lib.evaluation.frechet import frechet_distance


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_same_set_is_at_distance_zero_and_a_shifted_one_at_the_square_of_the_shift():
    a = randn(200, 5)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + torch.tensor([3.0, 0, 0, 4, 0])) == pytest.approx(25)
    assert frechet_distance(a, 3 * a) == pytest.approx(4 * torch.cov(a.T).trace().item() + 4 * a.mean(0).square().sum())


def test_it_equals_the_formula_with_scipys_root():
    linalg = pytest.importorskip("scipy.linalg")
    a, b = randn(90, 5) @ randn(5, 5, seed=1), randn(70, 5, seed=2) @ randn(5, 5, seed=3) + 1
    c_a, c_b = torch.cov(a.T), torch.cov(b.T)
    root = linalg.sqrtm((c_a @ c_b).numpy()).real.trace()
    expected = (a.mean(0) - b.mean(0)).square().sum() + c_a.trace() + c_b.trace() - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
