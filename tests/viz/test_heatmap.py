"""A named matrix as a picture: the right numbers, the right names, and no silent mismatch."""

import pytest
import torch

from course_lib.viz.heatmap import heatmap


@pytest.fixture
def ax():
    plt = pytest.importorskip("matplotlib.pyplot")
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_shows_the_matrix_with_its_names(ax):
    matrix = torch.tensor([[0.1, 0.2, 0.7], [1.0, 0.0, 0.0]], requires_grad=True)
    heatmap(ax, matrix, ["asks", "also"], ["a", "red", "3"], title="weights", highest=1.0)
    image = ax.images[0]
    assert image.get_array().shape == (2, 3)
    assert image.get_array()[0, 2] == pytest.approx(0.7)
    assert image.get_clim() == (0.0, 1.0)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["asks", "also"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "red", "3"]
    assert ax.get_title() == "weights"


def test_brightest_is_the_largest_by_default_even_where_all_is_zero(ax):
    heatmap(ax, torch.tensor([[0.0, 0.25]]), ["r"], ["a", "b"])
    assert ax.images[0].get_clim() == (0.0, 0.25)
    heatmap(ax, torch.zeros(1, 2), ["r"], ["a", "b"])
    assert ax.images[1].get_clim()[1] > 0


def test_names_must_fit(ax):
    with pytest.raises(ValueError, match=r"\(1, 2\) needs as many names, got \(2, 1\)"):
        heatmap(ax, torch.zeros(1, 2), ["a", "b"], ["c"])
