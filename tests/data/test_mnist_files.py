import errno
import gzip
import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from course_lib.data import mnist_files
from course_lib.data.mnist_files import (
    DownloadError,
    download_mnist,
    find_mnist,
    load_official_moving_mnist,
    read_idx,
    read_split,
)


def idx(array: np.ndarray) -> bytes:
    lengths = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return b"\0\0\x08" + bytes([array.ndim]) + lengths + array.astype(np.uint8).tobytes()


def small_mnist() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    files = {}
    for split, n in (("train", 31), ("t10k", 13)):
        files[f"{split}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (n, 28, 28)))
        files[f"{split}-labels-idx1-ubyte"] = idx(np.arange(n) % 10)
    return files


def write(folder: Path, compress: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in small_mnist().items():
        file = folder / (name + ".gz" * compress)
        file.write_bytes(gzip.compress(content) if compress else content)


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("place", ["", "MNIST/raw"])
def test_files_are_found_and_read_wherever_they_lie(tmp_path, place, compress):
    assert find_mnist(tmp_path) == {}
    write(tmp_path / place, compress)
    found = find_mnist(tmp_path)
    assert list(found) == ["train", "t10k"]
    images, labels = read_split(*found["t10k"])
    assert images.shape == (13, 28, 28) and labels.tolist() == [i % 10 for i in range(13)]
    assert images.dtype == torch.uint8 and labels.dtype == torch.int64
    assert idx(images.numpy()) == small_mnist()["t10k-images-idx3-ubyte"]
    for file in found["train"]:
        file.unlink()
    assert list(find_mnist(tmp_path)) == ["t10k"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an idx file"),
        (b"<html>sorry</html>", "not an idx file"),
        (idx(np.zeros((3, 28, 28)))[:-1], "should hold 2,368 bytes but has 2,367"),
        (idx(np.zeros((3, 28, 28))) + b"x", "should hold 2,368 bytes but has 2,369"),
        (b"\0\0\x08\x03\0\0", "should hold|not an idx file"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, message):
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"train-images-idx3-ubyte.*({message}).*download it again"):
        read_idx(file)


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-7], lambda raw: raw[:20] + bytes([raw[20] ^ 255]) + raw[21:], lambda _: b"x"]
)
def test_a_damaged_archive_is_named(tmp_path, damage):
    file = tmp_path / "labels.gz"
    file.write_bytes(damage(gzip.compress(idx(np.arange(97) % 10))))
    with pytest.raises(ValueError, match=r"labels\.gz is damaged.*download it again"):
        read_idx(file)


def test_files_that_do_not_belong_together_are_named(tmp_path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.write_bytes(idx(np.zeros((3, 28, 28))))
    labels.write_bytes(idx(np.zeros(4)))
    with pytest.raises(ValueError, match=r"\(3, 28, 28\) values and labels \(4,\)"):
        read_split(images, labels)
    labels.write_bytes(idx(np.array([1, 2, 10])))
    with pytest.raises(ValueError, match="holds the label 10"):
        read_split(images, labels)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A local mirror of a small MNIST, with torchvision's own download code and checksums in between."""
    from torchvision.datasets import MNIST

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    mirror = tmp_path / "mirror"
    write(mirror, compress=True)
    running = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(mirror)))
    threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{running.server_port}/"])
    sums = [(file.name, hashlib.md5(file.read_bytes()).hexdigest()) for file in sorted(mirror.iterdir())]
    monkeypatch.setattr(MNIST, "resources", sums)
    yield mirror
    running.shutdown()
    running.server_close()


def test_a_download_arrives_whole_and_is_not_repeated(server, tmp_path):
    target = tmp_path / "data"
    assert download_mnist(target) == target / "MNIST" / "raw"
    assert set(find_mnist(target)) == {"train", "t10k"}
    assert everything_in(target)[:2] == ["MNIST", "MNIST/raw"]  # no temporary folder is left
    for file in server.iterdir():
        file.unlink()
    download_mnist(target)  # nothing to fetch any more


def test_a_damaged_local_copy_is_replaced(server, tmp_path):
    target = tmp_path / "data"
    raw = download_mnist(target)
    (raw / "train-images-idx3-ubyte").write_bytes(b"half")
    (raw / "train-images-idx3-ubyte.gz").unlink()
    download_mnist(target)
    assert len(read_split(*find_mnist(target)["train"])[0]) == 31
    assert [name for name in everything_in(target) if name.startswith(".")] == []


@pytest.mark.parametrize("damage", ["truncated", "wrong checksum", "gone"])
def test_a_bad_download_is_an_error_and_leaves_nothing(server, tmp_path, damage):
    file = server / "train-images-idx3-ubyte.gz"
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2] if damage == "truncated" else content[:-1] + b"?")
    target = tmp_path / "data"
    with pytest.raises(DownloadError, match=r"could not be fetched.*Nothing was changed on disk"):
        download_mnist(target)
    assert everything_in(target) == []


def test_a_failed_download_keeps_what_was_there(server, tmp_path):
    target = tmp_path / "data"
    raw = download_mnist(target)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"half")
    before = everything_in(target)
    for file in server.iterdir():
        file.unlink()
    with pytest.raises(DownloadError):
        download_mnist(target)
    assert everything_in(target) == before and (raw / "t10k-labels-idx1-ubyte").read_bytes() == b"half"


def test_no_network_is_a_clear_error(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])  # nobody listens on the discard port
    with pytest.raises(DownloadError, match=r"could not be fetched.*embedded"):
        download_mnist(tmp_path / "data")
    assert everything_in(tmp_path / "data") == []


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(server, tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))  # writes beyond fail, as on a full disk
    try:
        with pytest.raises(DownloadError, match=r"could not be stored in.*Free some space"):
            download_mnist(tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert everything_in(tmp_path / "data") == []


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_disk_that_refuses_is_named_with_its_reason(tmp_path, monkeypatch, code):
    def refuse(root):
        root.mkdir()
        (root / "half").write_bytes(b"half")
        raise OSError(code, "the reason")

    monkeypatch.setattr(mnist_files, "_fetch", refuse)
    with pytest.raises(DownloadError, match=r"could not be stored in .*: the reason.*COURSE_DATA"):
        download_mnist(tmp_path)
    assert everything_in(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match=r"could not be stored in .*COURSE_DATA"):
        download_mnist(tmp_path / "file" / "data")


def test_files_that_pass_their_checksum_but_are_not_mnist_are_refused(tmp_path, monkeypatch):
    def fetch(root):
        write(root / "MNIST" / "raw", compress=False)
        (root / "MNIST" / "raw" / "t10k-images-idx3-ubyte").write_bytes(b"something else")

    monkeypatch.setattr(mnist_files, "_fetch", fetch)
    with pytest.raises(DownloadError, match="damaged"):
        download_mnist(tmp_path)
    assert everything_in(tmp_path) == []


def official(folder: Path, array: np.ndarray) -> Path:
    (folder / "MovingMNIST").mkdir()
    np.save(folder / "MovingMNIST" / "mnist_test_seq.npy", array)
    return folder / "MovingMNIST" / "mnist_test_seq.npy"


def test_the_official_moving_mnist_is_read_as_torchvision_reads_it(tmp_path):
    from torchvision.datasets import MovingMNIST

    official(tmp_path, np.random.default_rng(0).integers(0, 256, (5, 7, 11, 13), dtype=np.uint8))
    theirs = MovingMNIST(str(tmp_path)).data  # (clips, frames, 1, h, w)
    ours = load_official_moving_mnist(tmp_path)
    assert torch.equal(ours, theirs.transpose(1, 2))
    assert torch.equal(load_official_moving_mnist(tmp_path, clips=3), ours[:3])


def test_an_official_file_that_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"mnist_test_seq\.npy is missing; torchvision"):
        load_official_moving_mnist(tmp_path)
    file = official(tmp_path, np.zeros((5, 7, 11, 13), np.uint8))
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"is damaged.*download it again"):
        load_official_moving_mnist(tmp_path)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="is damaged"):
        load_official_moving_mnist(tmp_path)
    np.save(file, np.zeros((5, 7, 11), np.float32))
    with pytest.raises(ValueError, match=r"holds float32 of shape \(5, 7, 11\)"):
        load_official_moving_mnist(tmp_path)
    np.save(file, np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(ValueError, match="is damaged"):
        load_official_moving_mnist(tmp_path)
