"""Clutter and outlines against loops over pixels, and what they promise about frames, ranges and randomness."""

import pytest
import torch

from course_lib.data.clutter import add_clutter, outline
from course_lib.data.digits import load_digits


@pytest.fixture(scope="module")
def digits():
    return load_digits("embedded")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_outline_equals_a_loop_over_neighbours():
    frames = torch.rand(2, 3, 7, 11, generator=seeded()) * 2 - 1.4
    found = outline(frames)
    ink = frames > 0
    for a in range(2):
        for b in range(3):
            for i in range(7):
                for j in range(11):
                    near = ink[a, b, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].any()
                    assert found[a, b, i, j] == (near and not ink[a, b, i, j])


def test_the_outline_of_a_square_is_a_ring():
    frame = torch.full((9, 9), -1.0)
    frame[3:6, 3:6] = 1.0
    assert outline(frame).sum() == 16  # 5 x 5 without 3 x 3
    assert not outline(frame)[3:6, 3:6].any()


def test_a_threshold_moves_the_ink():
    frame = torch.full((5, 5), -1.0)
    frame[2, 2] = 0.3
    assert outline(frame).sum() == 8 and outline(frame, threshold=0.5).sum() == 0


def test_pieces_stay_and_noise_changes(digits):
    empty = torch.full((2, 1, 3, 23, 29), -1.0)
    still = add_clutter(empty, digits, seeded(), noise=0.0)
    assert torch.equal(still[:, :, 0], still[:, :, 2]) and (still > 0).any()
    assert not torch.equal(still[0], still[1])
    noisy = add_clutter(empty, digits, seeded(), noise=0.4)
    assert not torch.equal(noisy[:, :, 0], noisy[:, :, 1])
    assert noisy.min() == -1 and noisy.max() <= 1


def test_pieces_are_pieces_of_digits(digits):
    """One piece on an empty frame is a window of the ink of some digit."""
    placed = add_clutter(torch.full((1, 1, 1, 7, 7), -1.0), digits, seeded(3), pieces=1, noise=0.0)[0, 0, 0]
    windows = digits.images[:, 4:24, 4:24].unfold(1, 7, 1).unfold(2, 7, 1).flatten(0, 2)
    distance = (windows.float() * 2 / 255 - 1 - placed).abs().amax((1, 2))
    assert distance.min() < 1e-6


def test_the_digit_is_never_covered(digits):
    video = torch.rand(2, 1, 2, 23, 29, generator=seeded()) * 2 - 1
    assert (add_clutter(video, digits, seeded(), noise=0.0) >= video).all()
    assert torch.equal(add_clutter(video, digits, seeded(), pieces=0, noise=0.0), video)


def test_the_same_seed_gives_the_same_clutter(digits):
    video = torch.zeros(2, 1, 2, 23, 29)
    assert torch.equal(add_clutter(video, digits, seeded(1)), add_clutter(video, digits, seeded(1)))


@pytest.mark.parametrize("edge", [0, 21, 30])
def test_pieces_must_fit(digits, edge):
    with pytest.raises(ValueError, match=f"edge={edge}"):
        add_clutter(torch.zeros(1, 1, 1, 23, 29), digits, seeded(), edge=edge)
