import pytest
import torch

from course_lib.data.digits import Digits, evenly_spaced, load_digits
from course_lib.data.mnist_files import find_mnist
from course_lib.paths import datasets_dir

needs_mnist = pytest.mark.skipif(
    "t10k" not in find_mnist(datasets_dir()), reason="no MNIST in the data folder (COURSE_DATA)"
)


@pytest.fixture
def no_data(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    return tmp_path


def as_set(digits: Digits) -> set[bytes]:
    return {image.numpy().tobytes() for image in digits.images}


def check_split(kind: str) -> tuple[Digits, Digits]:
    train, heldout, everything = (load_digits(kind, split) for split in ("train", "heldout", "all"))
    assert len(train) + len(heldout) == len(everything)
    assert as_set(train) | as_set(heldout) == as_set(everything)
    assert not as_set(train) & as_set(heldout)
    assert len(set(torch.bincount(heldout.labels).tolist())) == 1  # equally many of each digit
    return train, heldout


def test_the_embedded_digits_need_no_files_and_look_like_mnist(no_data):
    train, heldout = check_split("embedded")
    assert len(train) == 1797 - len(heldout) and 0.13 < len(heldout) / 1797 < 0.16
    assert train.images.dtype == torch.uint8 and train.source == "embedded"
    images = train.images.float() / 255
    assert 0.1 < images.mean() < 0.17  # MNIST: 0.131
    assert (images > 0.9).float().mean() > 0.06 and (images < 0.1).float().mean() > 0.75  # strokes, not fog
    ink = train.images > 90
    sides = torch.maximum(ink.any(2).sum(1), ink.any(1).sum(1))
    assert sides.min() >= 18 and sides.max() <= 22  # the 20-pixel box
    offset = torch.arange(28) - 13.5
    mass = images.sum((1, 2))
    assert ((images.sum(1) * offset).sum(1) / mass).abs().max() < 0.5
    assert ((images.sum(2) * offset).sum(1) / mass).abs().max() < 0.5


def test_the_embedded_digits_can_be_told_apart():
    """Nearest neighbour on held-out digits: a resampling that destroys shape fails here."""
    train, heldout = load_digits("embedded", "train"), load_digits("embedded", "heldout")
    features = [torch.nn.functional.normalize(d.images.flatten(1).float(), dim=1) for d in (train, heldout)]
    nearest = (features[1] @ features[0].T).argmax(1)
    assert (train.labels[nearest] == heldout.labels).float().mean() > 0.95


def test_auto_takes_the_embedded_digits_when_there_is_no_mnist(no_data):
    assert load_digits("auto").source == "embedded"
    with pytest.raises(ValueError, match=r"no MNIST files in .*download_mnist.*embedded"):
        load_digits("mnist")
    with pytest.raises(ValueError, match="no MNIST files"):
        load_digits("both")


@needs_mnist
def test_real_mnist_is_split_and_preferred():
    train, heldout = check_split("mnist")
    assert len(heldout) == 1000 and len(train) >= 9000
    assert load_digits("auto").source == "mnist"
    both = load_digits("both")
    assert load_digits("both") is both  # its resampled sizes are kept, too
    assert len(both) == len(train) + len(load_digits("embedded")) and both.source == "embedded + mnist"
    assert 0.12 < train.images.float().mean() / 255 < 0.14


def test_the_same_digits_on_every_call():
    assert torch.equal(load_digits("embedded").images, load_digits("embedded").images)
    assert load_digits("embedded") is load_digits("embedded")  # loaded once


def test_wrong_names_are_named(tmp_path):
    with pytest.raises(ValueError, match="split 'test' is unknown; choose one of train, heldout, all"):
        load_digits("embedded", "test")
    with pytest.raises(ValueError, match=r"digits 'mnsit' are unknown; choose embedded, mnist"):
        load_digits("mnsit")
    with pytest.raises(ValueError, match="no images in"):
        load_digits(str(tmp_path))


def save_folder(folder, count, invert=False):
    from PIL import Image

    digits = load_digits("embedded", "all")
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True)
        for i, image in enumerate(digits.images[digits.labels == digit][:count]):
            picture = 255 - image if invert else image
            Image.fromarray(picture.numpy()).resize((45, 45)).save(folder / str(digit) / f"{i}.png")


@pytest.mark.parametrize("invert", [False, True])
def test_a_folder_of_images_is_read_ink_on_paper_or_chalk_on_slate(tmp_path, invert):
    folder = tmp_path / "mine"
    save_folder(folder, 7, invert)
    (folder / "3" / "notes.txt").write_text("not an image")
    train, heldout = check_split(str(folder))
    assert len(train) == 60 and len(heldout) == 10
    original = load_digits("embedded", "all")
    mine = load_digits(str(folder), "all")
    for digit in range(10):
        before = original.images[original.labels == digit][0].float()
        after = mine.images[mine.labels == digit][0].float()
        assert (before - after).abs().mean() < 12  # redrawn, so not bit for bit


def test_a_folder_that_cannot_serve_is_named(tmp_path):
    save_folder(tmp_path / "one", 1)
    with pytest.raises(ValueError, match="at least two images"):
        load_digits(str(tmp_path / "one"))
    save_folder(tmp_path / "gap", 2)
    for file in (tmp_path / "gap" / "4").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="no image of 4"):
        load_digits(str(tmp_path / "gap"))
    save_folder(tmp_path / "broken", 2)
    (tmp_path / "broken" / "5" / "0.png").write_bytes(b"\x89PNG not really")
    with pytest.raises(ValueError, match=r"0\.png cannot be read as a digit"):
        load_digits(str(tmp_path / "broken"))


def test_images_added_to_a_folder_are_seen(tmp_path):
    save_folder(tmp_path, 2)
    assert len(load_digits(str(tmp_path), "all")) == 20
    (tmp_path / "7" / "9.png").write_bytes((tmp_path / "7" / "0.png").read_bytes())
    assert load_digits(str(tmp_path), "all").labels.tolist().count(7) == 3
    assert load_digits(str(tmp_path), "all") is load_digits(str(tmp_path), "all")


def test_draw_picks_images_of_the_asked_digit_and_every_one_of_them():
    labels = torch.tensor([9, 0, 3, 3, 1, 2, 4, 5, 6, 7, 8, 3])
    digits = Digits(torch.arange(12, dtype=torch.uint8)[:, None, None].expand(12, 28, 28), labels, "test")
    asked = torch.arange(10).repeat(60, 1)
    index = digits.draw(asked, torch.Generator().manual_seed(0))
    assert index.shape == (60, 10) and torch.equal(labels[index], asked)
    share = torch.bincount(index[:, 3], minlength=12)[[2, 3, 11]]
    assert (share > 8).all()
    assert torch.equal(index, digits.draw(asked, torch.Generator().manual_seed(0)))


def test_sizes_are_resampled_once_and_subsets_keep_their_order():
    digits = load_digits("embedded", "heldout")
    assert digits.at_size(28) is digits.images
    assert digits.at_size(20).shape == (len(digits), 20, 20) and digits.at_size(20) is digits.at_size(20)
    part = digits.subset(torch.tensor([*range(len(digits))][::-1]))
    assert torch.equal(part.images, digits.images.flip(0)) and torch.equal(part.labels, digits.labels.flip(0))


def test_held_out_positions_are_spread_over_the_whole_list():
    labels = torch.arange(10).repeat_interleave(torch.arange(10, 20))
    chosen = evenly_spaced(labels, 5)
    assert len(chosen) == len(set(chosen)) == 50
    assert torch.bincount(labels[list(chosen)]).tolist() == [5] * 10
    assert chosen[:5] == (0, 2, 4, 6, 8)
