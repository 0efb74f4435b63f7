"""The tracker against clips whose paths are known."""

import torch

from course_lib.evaluation.tracking import CROP, centred_crops, centroids


def blob_clip(corners: list[tuple[int, int]], height: int = 41, width: int = 53) -> torch.Tensor:
    video = torch.full((1, 1, len(corners), height, width), -1.0)
    for f, (top, left) in enumerate(corners):
        video[0, 0, f, top : top + 4, left : left + 6] = 1
    return video


def test_centroids_are_exact_for_a_rectangle_and_ignore_faint_noise():
    video = blob_clip([(3, 4), (20, 11), (36, 46)])
    middle = torch.tensor([[4.5, 6.5], [21.5, 13.5], [37.5, 48.5]])
    assert torch.allclose(centroids(video)[0], middle, atol=1e-4)
    noisy = video + 0.3 * torch.rand(video.shape) * (video < 0)  # brightness up to 0.15
    assert torch.allclose(centroids(noisy)[0], middle, atol=1e-4)


def test_an_empty_frame_has_the_middle_of_the_canvas():
    assert torch.equal(centroids(torch.full((1, 1, 2, 41, 53), -1.0))[0, 1], torch.tensor([20.0, 26.0]))


def test_colour_counts_by_its_brightest_channel():
    video = blob_clip([(3, 4), (20, 11)])
    red = torch.cat([video, torch.full_like(video, -1), torch.full_like(video, -1)], dim=1)
    assert torch.allclose(centroids(red), centroids(video))


def test_crops_follow_the_digit_even_over_the_edge():
    crops = centred_crops(blob_clip([(3, 4), (20, 11), (36, 46)]))
    assert crops.shape == (1, 3, CROP, CROP)
    assert torch.equal(crops[0, 0], crops[0, 1]) and torch.equal(crops[0, 1], crops[0, 2])
    assert crops[0, 2].sum() == 24 and crops.min() == 0
