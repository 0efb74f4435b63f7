"""Handwritten digits in one format, from four sources: embedded, MNIST, both, or a folder of images.

The embedded digits need no download: scikit-learn ships 1,797 of them at 8x8 pixels, and we redraw them in MNIST's
style (28x28, ink in a 20-pixel box, centre of mass in the middle), so that models trained on one read the other.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from course_lib.data.glyphs import GLYPH, mnist_style, resize, sharpen
from course_lib.data.mnist_files import download_mnist, find_mnist, read_split
from course_lib.paths import datasets_dir

__all__ = ["Digits", "download_mnist", "evenly_spaced", "load_digits"]

HELD_OUT_MNIST = 100  # per class, 1,000 in all
HELD_OUT_SHARE = 0.15  # of the smallest class, for the sources that bring no test set
IMAGE_FILES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")


@dataclass(frozen=True, eq=False)
class Digits:
    """Digit images and their labels.

    images: (n, 28, 28) uint8, white ink (255) on black. labels: (n,) int64 in 0..9. source: where they come from.
    Raises: ValueError if a digit class has no image (a scene could not be drawn).
    """

    images: UInt8[Tensor, "n 28 28"]
    labels: Int[Tensor, " n"]
    source: str
    _sized: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        missing = sorted(set(range(10)) - set(self.labels.unique().tolist()))
        if missing:
            raise ValueError(f"digits from {self.source} have no image of {', '.join(map(str, missing))}")
        order = torch.argsort(self.labels, stable=True)
        count = torch.bincount(self.labels, minlength=10)
        object.__setattr__(self, "_order", order)
        object.__setattr__(self, "_count", count)
        object.__setattr__(self, "_first", count.cumsum(0) - count)

    def __len__(self) -> int:
        return len(self.labels)

    def draw(self, labels: Int[Tensor, "*n"], generator: torch.Generator) -> Int[Tensor, "*n"]:
        """For each label in 0..9 the index of a random image of that digit."""
        chance = torch.rand(labels.shape, generator=generator, dtype=torch.float64)
        return self._order[self._first[labels] + (chance * self._count[labels]).long()]

    def at_size(self, edge: int) -> UInt8[Tensor, "n edge edge"]:
        """All images resampled to ``edge`` x ``edge`` pixels (antialiased bicubic); computed once and kept."""
        if edge == GLYPH:
            return self.images
        if edge not in self._sized:
            parts = [resize(part, edge) for part in self.images.split(4096)]  # keeps the float copies small
            self._sized[edge] = torch.cat(parts)
        return self._sized[edge]

    def subset(self, index: Int[Tensor, " m"]) -> "Digits":
        """The images at these positions."""
        return Digits(self.images[index], self.labels[index], self.source)


def load_digits(kind: str = "auto", split: str = "train") -> Digits:
    """Handwritten digits, the same ones on every run; loaded once per process.

    Args:
        kind: "embedded" (no download), "mnist" (files in the data folder, see ``download_mnist``), "auto" (MNIST if
            it is there, else embedded), "both" (together), or the path of a folder with images in ``0/`` ... ``9/``.
        split: "train", "heldout" (fixed, equally many per digit, never in train) or "all".
    Raises: ValueError for an unknown kind or split, and for missing or damaged files.
    """
    if split not in ("train", "heldout", "all"):
        raise ValueError(f"split {split!r} is unknown; choose one of train, heldout, all")
    found = find_mnist(datasets_dir())
    if kind == "auto":
        kind = "mnist" if found else "embedded"
    if kind == "both":
        return _together(load_digits("embedded", split), load_digits("mnist", split))
    if kind == "embedded":
        everything, heldout = _embedded()
    elif kind == "mnist":
        if not found:
            raise ValueError(
                f"no MNIST files in {datasets_dir()}; call course_lib.data.digits.download_mnist(), point COURSE_DATA "
                'at a folder that has them, or use the digits that need no download: kind="embedded"'
            )
        everything, heldout = _mnist(tuple(found.values()))
    elif Path(kind).is_dir():
        everything, heldout = _image_folder(kind, tuple(_images_in(Path(kind))))
    else:
        raise ValueError(f"digits {kind!r} are unknown; choose embedded, mnist, auto, both or the path of a folder")
    return everything if split == "all" else _split(everything, heldout, split)


# What is loaded is kept, under the files it came from: new files are read, the same ones are not read again.
@lru_cache(maxsize=8)
def _split(everything: Digits, heldout: tuple[int, ...], split: str) -> Digits:
    is_heldout = torch.zeros(len(everything), dtype=torch.bool)
    is_heldout[list(heldout)] = True
    return everything.subset((is_heldout if split == "heldout" else ~is_heldout).nonzero()[:, 0])


def evenly_spaced(labels: Int[Tensor, " n"], per_class: int) -> tuple[int, ...]:
    """``per_class`` positions of each digit, spread over the whole list: a held-out set without a random seed."""
    chosen = []
    for digit in range(10):
        position = (labels == digit).nonzero()[:, 0]
        chosen += position[torch.arange(per_class) * len(position) // per_class].tolist()
    return tuple(chosen)


def _share(labels: Int[Tensor, " n"]) -> int:
    smallest = int(torch.bincount(labels, minlength=10).min())
    if smallest < 2:
        raise ValueError("every digit needs at least two images, one of them to hold out")
    return max(1, round(HELD_OUT_SHARE * smallest))


@lru_cache(maxsize=1)
def _embedded() -> tuple[Digits, tuple[int, ...]]:
    from sklearn.datasets import load_digits as load_bundled  # slow to import, and only this function needs it

    bundled = load_bundled()
    labels = torch.from_numpy(bundled.target).long()
    images = mnist_style(sharpen(torch.from_numpy(bundled.images).float() / 16))
    return Digits(images, labels, "embedded"), evenly_spaced(labels, _share(labels))


@lru_cache(maxsize=2)
def _mnist(splits: tuple[tuple[Path, Path], ...]) -> tuple[Digits, tuple[int, ...]]:
    """All of it. Held out: 1,000 of the last split, the test digits; the same with and without the training set."""
    parts = [read_split(*files) for files in splits]
    images = torch.cat([images for images, _ in parts])
    labels = torch.cat([labels for _, labels in parts])
    last = parts[-1][1]
    offset = len(labels) - len(last)
    return Digits(images, labels, "mnist"), tuple(offset + i for i in evenly_spaced(last, HELD_OUT_MNIST))


@lru_cache(maxsize=4)
def _together(one: Digits, other: Digits) -> Digits:
    images, labels = torch.cat([one.images, other.images]), torch.cat([one.labels, other.labels])
    return Digits(images, labels, f"{one.source} + {other.source}")


def _images_in(folder: Path) -> list[tuple[int, Path]]:
    """The images in ``folder/0`` ... ``folder/9`` with their labels."""
    found = [(digit, file) for digit in range(10) for file in sorted((folder / str(digit)).glob("*"))]
    found = [(digit, file) for digit, file in found if file.suffix.lower() in IMAGE_FILES]
    if not found:
        raise ValueError(
            f"no images in {folder}; it should hold folders named 0 to 9 with {', '.join(IMAGE_FILES)} files"
        )
    return found


@lru_cache(maxsize=2)
def _image_folder(name: str, files: tuple[tuple[int, Path], ...]) -> tuple[Digits, tuple[int, ...]]:
    images = torch.cat([_read_image(file) for _, file in files])
    everything = Digits(images, torch.tensor([digit for digit, _ in files]), name)
    return everything, evenly_spaced(everything.labels, _share(everything.labels))


def _read_image(file: Path) -> UInt8[Tensor, "1 28 28"]:
    import numpy as np
    from PIL import Image

    try:
        with Image.open(file) as picture:
            image = torch.from_numpy(np.array(picture.convert("L"), dtype=np.float32) / 255)
        border = torch.cat([image[0], image[-1], image[:, 0], image[:, -1]])
        return mnist_style((1 - image if border.mean() > 0.5 else image)[None])  # ink on paper becomes light on dark
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as a digit ({error}); repair or remove it") from error
