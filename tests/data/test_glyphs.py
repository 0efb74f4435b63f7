import pytest
import torch

from course_lib.data.glyphs import BOX, GLYPH, blur, mnist_style, resize, sharpen


def blob(height: int, width: int, top: int, left: int, tall: int, wide: int) -> torch.Tensor:
    picture = torch.zeros(1, height, width)
    picture[:, top : top + tall, left : left + wide] = 1
    return picture


def extent(image: torch.Tensor) -> tuple[int, int]:
    ink = image > 90
    return int(ink.any(1).sum()), int(ink.any(0).sum())


@pytest.mark.parametrize(("tall", "wide"), [(31, 11), (9, 23), (40, 40), (17, 3)])
def test_the_longer_side_of_the_ink_fills_the_box_and_its_mass_is_centred(tall, wide):
    (image,) = mnist_style(blob(61, 53, 13, 7, tall, wide))
    assert image.dtype == torch.uint8 and image.shape == (GLYPH, GLYPH) and image.max() == 255
    high, across = extent(image)
    assert abs(max(high, across) - BOX) <= 1
    assert abs(high / across - tall / wide) < 0.2 * tall / wide + 0.1
    mass = image.float() / image.sum()
    offset = torch.arange(GLYPH) + 0.5
    assert abs((mass.sum(1) * offset).sum() - GLYPH / 2) < 0.1
    assert abs((mass.sum(0) * offset).sum() - GLYPH / 2) < 0.1


def test_a_lopsided_digit_is_shifted_but_never_cut():
    picture = blob(50, 50, 5, 5, 40, 2) + blob(50, 50, 40, 5, 5, 40)  # an L: its mass is far from its middle
    (image,) = mnist_style(picture.clamp(max=1))
    high, across = extent(image)
    assert 19 <= high <= 21 and 19 <= across <= 21
    mass = image.float() / image.sum()
    offset = torch.arange(GLYPH) + 0.5
    assert 1 < (mass.sum(1) * offset).sum() - GLYPH / 2 < 2.5  # 6 pixels off, of which the border allows 4


def test_pictures_do_not_influence_each_other():
    pictures = torch.cat([blob(40, 40, 3, 5, 30, 12), 0.7 * blob(40, 40, 20, 1, 7, 13)])
    both = mnist_style(pictures)
    assert torch.equal(both[0], mnist_style(pictures[:1])[0]) and torch.equal(both[1], mnist_style(pictures[1:])[0])


def test_an_empty_picture_is_named():
    with pytest.raises(ValueError, match="picture 1 of 2 is empty"):
        mnist_style(torch.cat([blob(20, 20, 3, 3, 9, 4), torch.zeros(1, 20, 20)]))


def test_sharpen_gives_crisp_edges_and_keeps_a_loop_open():
    ring = torch.zeros(1, 8, 8)
    ring[:, 1:6, 2:6] = 1
    ring[:, 2:5, 3:5] = 0.4  # a hole that is nearly filled: a threshold at one third would close it
    large = sharpen(ring)
    assert large.shape == (1, 40, 40) and large.min() == 0 and large.max() == 1
    crisp = ((large < 0.1) | (large > 0.9)).float().mean()
    assert crisp > 0.8
    at = lambda row, column: large[0, int((row + 1.5) * 4), int((column + 1.5) * 4)]  # noqa: E731
    assert at(3, 3.5) < 0.3 and at(3, 2) > 0.7 and at(1, 3.5) > 0.7


def test_blur_keeps_the_mean_and_spreads_a_point():
    point = torch.zeros(1, 31, 29)
    point[0, 15, 14] = 1
    spread = blur(point, 2.0)
    assert torch.allclose(spread.sum(), torch.tensor(1.0))
    offset = torch.arange(31) - 15.0
    assert abs((spread[0].sum(1) * offset**2).sum() - 4) < 0.1  # the variance is sigma squared
    assert torch.allclose(spread[0], spread[0].flip(0).flip(1), atol=1e-6)
    assert torch.allclose(blur(torch.ones(1, 9, 9), 1.0), torch.ones(1, 9, 9))


def test_resize_keeps_shape_and_brightness():
    image = mnist_style(blob(40, 40, 3, 5, 30, 12))
    for edge in (20, 36):
        resized = resize(image, edge)
        assert resized.shape == (1, edge, edge) and resized.dtype == torch.uint8
        assert abs(resized.float().mean() - image.float().mean()) < 3
        assert abs(extent(resized[0])[0] - 20 * edge / 28) <= 2
