"""Data sets on disk: find them, read them, and download MNIST without ever leaving half of it behind."""

import gzip
import os
import tempfile
import urllib.error
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from course_lib.paths import datasets_dir

SPLITS = ("train", "t10k")  # the names that MNIST's files carry


class DownloadError(RuntimeError):
    """A data set could not be fetched or stored; nothing was left behind."""


def find_mnist(folder: Path) -> dict[str, tuple[Path, Path]]:
    """The (images, labels) files of each split in ``folder`` or where torchvision puts them, plain or gzipped."""
    found = {}
    for split in SPLITS:
        for place in (folder / "MNIST" / "raw", folder):
            files = [
                next((f for ending in ("", ".gz") if (f := place / f"{split}-{kind}-ubyte{ending}").is_file()), None)
                for kind in ("images-idx3", "labels-idx1")
            ]
            if all(files):
                found[split] = tuple(files)
                break
    return found


def read_split(image_file: Path, label_file: Path) -> tuple[UInt8[Tensor, "n 28 28"], Int[Tensor, " n"]]:
    """Images and labels of one split. Raises ValueError naming the file if one is damaged or they do not match."""
    images, labels = read_idx(image_file), read_idx(label_file)
    if images.shape[1:] != (28, 28) or labels.ndim != 1 or len(images) != len(labels):
        raise ValueError(
            f"{image_file} holds {tuple(images.shape)} values and {label_file.name} {tuple(labels.shape)}; expected "
            "(n, 28, 28) and (n,). Remove both and download them again"
        )
    if labels.max() > 9:
        raise ValueError(f"{label_file} holds the label {int(labels.max())}, digits go from 0 to 9; download it again")
    return images, labels.long()


def read_idx(file: Path) -> UInt8[Tensor, "..."]:
    """An array in MNIST's idx format: two zero bytes, type 8, number of axes, their lengths, then the bytes.

    Raises: ValueError if the file is truncated, damaged or something else.
    """
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file} is damaged ({error}); remove it and download it again") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise ValueError(f"{file} is not an idx file of bytes; remove it and download it again")
    header = 4 + 4 * raw[3]
    shape = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, header, 4)]
    size = torch.Size(shape).numel()
    if len(raw) != header + size:
        raise ValueError(
            f"{file} should hold {header + size:,} bytes but has {len(raw):,}; remove it and download it again"
        )
    return torch.frombuffer(bytearray(raw[header:]), dtype=torch.uint8).view(shape)


def download_mnist(folder: Path | None = None) -> Path:
    """Fetch MNIST through torchvision, which knows the addresses and checksums, into ``MNIST/raw`` (about 65 MB).

    All or nothing: the files are fetched into a temporary folder beside their destination, checked, and moved there in
    one step. Files that are already there and readable are kept; damaged ones are replaced.

    Args:
        folder: the data folder, by default ``datasets_dir()``.
    Returns: the folder with the files.
    Raises: DownloadError if the network, a checksum or the disk gets in the way.
    """
    folder = folder or datasets_dir()
    target = folder / "MNIST"
    if _is_complete(folder):
        return target / "raw"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mnist-", dir=folder, ignore_cleanup_errors=True) as temporary:
            fetched = Path(temporary, "new")
            _fetch(fetched)
            if not _is_complete(fetched):
                raise DownloadError(
                    f"the MNIST files that arrived are damaged; {target} was left as it was. Try again later"
                )
            if target.exists():
                os.replace(target, Path(temporary, "old"))
            os.replace(fetched / "MNIST", target)
    except OSError as error:  # URLError is one too
        if isinstance(error, urllib.error.URLError):
            raise DownloadError(f"MNIST could not be fetched: {error.reason}. {_WAY_OUT}") from error
        raise DownloadError(
            f"MNIST could not be stored in {folder}: {error.strerror or error}. Free some space or make the folder "
            "writable, or point COURSE_DATA at another one"
        ) from error
    except RuntimeError as error:
        if isinstance(error, DownloadError):
            raise
        raise DownloadError(f"MNIST could not be fetched: {str(error).splitlines()[-1]} {_WAY_OUT}") from error
    return target / "raw"


_WAY_OUT = 'Nothing was changed on disk; the course also works without it (digits="embedded")'


def _fetch(root: Path) -> None:
    from torchvision.datasets import MNIST  # heavy, and only needed here

    MNIST(str(root), download=True)


def _is_complete(folder: Path) -> bool:
    found = find_mnist(folder)
    try:
        return len(found) == len(SPLITS) and all(len(read_split(*files)[0]) > 0 for files in found.values())
    except ValueError:
        return False


def load_official_moving_mnist(folder: Path | None = None, clips: int | None = None) -> UInt8[Tensor, "b 1 f h w"]:
    """The published test set of Moving MNIST (Srivastava et al. 2015): 10,000 clips of 20 frames with two digits each.

    The course never downloads it (820 MB); it reads ``MovingMNIST/mnist_test_seq.npy`` where
    ``torchvision.datasets.MovingMNIST(folder, download=True)`` puts it.

    Args:
        folder: the data folder, by default ``datasets_dir()``. clips: only the first so many, which saves memory.
    Returns: bytes, in the course's layout.
    Raises: ValueError if the file is missing, damaged or holds something else.
    """
    folder = folder or datasets_dir()
    file = folder / "MovingMNIST" / "mnist_test_seq.npy"
    if not file.is_file():
        raise ValueError(
            f"{file} is missing; torchvision.datasets.MovingMNIST({str(folder)!r}, download=True) fetches it (820 MB)"
        )
    try:
        data = np.load(file, mmap_mode="r")  # pickled arrays stay forbidden, numpy's default
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{file} is damaged ({error}); remove it and download it again") from error
    if data.ndim != 4 or data.dtype != np.uint8:
        raise ValueError(
            f"{file} holds {data.dtype} of shape {data.shape}; expected bytes of (frames, clips, height, width)"
        )
    return torch.from_numpy(np.ascontiguousarray(data[:, :clips].swapaxes(0, 1)))[:, None]
