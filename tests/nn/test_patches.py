"""Spacetime patches are a reordering of numbers: nothing is lost and every token holds the patch that it should."""

import pytest
import torch

from course_lib.nn.patches import patch_grid, patchify, unpatchify

PATCH = (2, 3, 5)
GRID = (7, 3, 2)


def clip() -> torch.Tensor:
    return torch.randn(2, 3, 14, 9, 10, generator=torch.Generator().manual_seed(0))


def test_unpatchify_inverts_patchify_exactly():
    tokens = patchify(clip(), PATCH)
    assert tokens.shape == (2, 7 * 3 * 2, 2 * 3 * 5 * 3)
    assert torch.equal(unpatchify(tokens, GRID, PATCH), clip())


def test_a_token_is_one_block_of_the_video_time_slowest_and_width_fastest():
    video = clip()
    tokens = patchify(video, PATCH)
    f, h, w = 4, 2, 1
    block = video[1, :, 2 * f : 2 * f + 2, 3 * h : 3 * h + 3, 5 * w : 5 * w + 5]
    assert torch.equal(tokens[1, (f * 3 + h) * 2 + w], block.permute(1, 2, 3, 0).flatten())


def test_whole_numbers_and_other_types_stay_what_they_are():
    video = torch.arange(2 * 4 * 6 * 10, dtype=torch.uint8).view(1, 2, 4, 6, 10)
    assert torch.equal(unpatchify(patchify(video, PATCH), (2, 2, 2), PATCH), video)


@pytest.mark.parametrize("size", [(15, 9, 10), (14, 10, 10), (14, 9, 11)])
def test_a_video_that_does_not_fit_is_refused(size):
    with pytest.raises(ValueError, match="no multiple of the patch"):
        patch_grid(size, PATCH)


def test_wrong_token_counts_are_refused():
    tokens = patchify(clip(), PATCH)
    with pytest.raises(ValueError, match="42 tokens do not fill"):
        unpatchify(tokens, (7, 3, 3), PATCH)
    with pytest.raises(ValueError, match="numbers per token"):
        unpatchify(tokens, GRID, (2, 3, 7))
    with pytest.raises(ValueError, match="at least one"):
        patch_grid((4, 4, 4), (0, 1, 1))
