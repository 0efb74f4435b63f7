"""Patches are a reordering of numbers: nothing is lost, and every token holds the patch that it should."""

import pytest
import torch

from course_lib.nn.patches import patch_grid, patchify, patchify_image, unpatchify, unpatchify_image

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


# ------------------------------------------------------------------------------------------------------- images


def picture() -> torch.Tensor:
    return torch.randn(2, 3, 10, 35, generator=torch.Generator().manual_seed(0))


def test_a_token_of_an_image_is_one_square_numbered_like_words_on_a_page():
    tokens = patchify_image(picture(), 5)
    assert tokens.shape == (2, 2 * 7, 5 * 5 * 3)
    for row in range(2):
        for column in range(7):
            square = picture()[1, :, 5 * row : 5 * row + 5, 5 * column : 5 * column + 5]
            assert torch.equal(tokens[1, 7 * row + column], square.permute(1, 2, 0).flatten())


def test_patches_of_an_image_are_spacetime_patches_of_one_frame():
    assert torch.equal(patchify_image(picture(), 5), patchify(picture()[:, :, None], (1, 5, 5)))


def test_a_linear_layer_on_patches_is_a_convolution():
    kernel = torch.randn(11, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.conv2d(picture(), kernel, stride=5).flatten(2).mT
    out = patchify_image(picture(), 5) @ kernel.permute(0, 2, 3, 1).flatten(1).T
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-4)


def test_unpatchify_image_inverts_patchify_image_exactly():
    assert torch.equal(unpatchify_image(patchify_image(picture(), 5), 5, 10, 35), picture())
    image = torch.arange(2 * 6 * 4, dtype=torch.uint8).view(1, 2, 6, 4)
    assert torch.equal(unpatchify_image(patchify_image(image, 2), 2, 6, 4), image)


@pytest.mark.parametrize("size", [(11, 35), (10, 34), (2, 125)])
def test_an_image_that_does_not_split_is_refused(size):
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} pixels does not split into squares of 5 x 5"):
        patchify_image(torch.zeros(1, 1, *size), 5)


@pytest.mark.parametrize(("shape", "size"), [((1, 13, 25), (10, 35)), ((1, 14, 26), (10, 35)), ((1, 14, 25), (11, 35))])
def test_tokens_that_do_not_fill_an_image_are_refused(shape, size):
    with pytest.raises(ValueError, match=f"{shape[1]} tokens of {shape[2]} numbers do not make squares of 5 x 5"):
        unpatchify_image(torch.zeros(shape), 5, *size)


@pytest.mark.parametrize("patch", [0, -2])
def test_squares_without_pixels_are_refused(patch):
    with pytest.raises(ValueError, match=f"patch={patch}"):
        unpatchify_image(torch.zeros(1, 6, 4), patch, 4, 6)
