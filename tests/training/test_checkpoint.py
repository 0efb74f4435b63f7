"""Checkpoints come back as they were, and every other file is refused with its reason."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from course_lib.paths import write_atomically
from course_lib.training.checkpoint import (
    load_checkpoint,
    load_weights,
    optimizer_tensors,
    pack,
    restore_optimizer,
    save_checkpoint,
    under_prefix,
    unpack,
    with_prefix,
)

INFO = {"kind": "test", "sizes": [3, 5], "name": "ä"}


def test_tensors_and_description_come_back(tmp_path):
    base = torch.randn(7, 5)
    tensors = {
        "view": base[2:4],
        "transposed": base.T,
        "same": base,
        "again": base,
        "number": torch.tensor(3),
        "bf16": base.bfloat16(),
        "last": nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last).weight,
    }
    path = tmp_path / "new" / "folder" / "a.safetensors"
    save_checkpoint(path, tensors, INFO)
    found = load_checkpoint(path, "test")
    assert found.info == INFO
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found.tensors[name], tensor) and found.tensors[name].dtype == tensor.dtype
    assert os.listdir(path.parent) == ["a.safetensors"]  # no temporary file is left


def test_other_files_are_refused_with_a_reason(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match="there is no checkpoint"):
        load_checkpoint(path)
    save_checkpoint(path, {"x": torch.zeros(100)}, INFO)
    with pytest.raises(ValueError, match="holds 'test', but 'judge' was expected"):
        load_checkpoint(path, "judge")
    whole = path.read_bytes()
    for damaged in (whole[:-50], whole[:20], b"", b"\xff" * 200, whole[:8] + b"}" + whole[9:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged or no safetensors"):
            load_checkpoint(path)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="not written by this course"):
        load_checkpoint(path)
    save_file({"x": torch.zeros(2)}, path, metadata={"course_lib": "{"})
    with pytest.raises(ValueError, match="not written by this course"):
        load_checkpoint(path)
    save_file({"x": torch.zeros(2)}, path, metadata={"course_lib": "[1]"})
    with pytest.raises(ValueError, match="was expected"):
        load_checkpoint(path, "test")


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    path = tmp_path / "a.safetensors"
    for content in (pickle.dumps(Bomb()), None):
        if content is None:
            torch.save(Bomb(), path)
        else:
            path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            load_checkpoint(path)
    assert not (tmp_path / "exploded").exists()


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_atomically(path, b"old")

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_a_kill_in_the_middle_of_writing_leaves_a_whole_file(tmp_path):
    path = tmp_path / "a.safetensors"
    code = (
        "import sys, torch; from pathlib import Path\n"
        "from course_lib.training.checkpoint import save_checkpoint\n"
        "i = 0\n"
        "while True:\n"
        "    i += 1\n"
        "    save_checkpoint(Path(sys.argv[1]), {'x': torch.full((500_000,), i)}, {'kind': 'k', 'i': i})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = load_checkpoint(path, "k")
    assert (found.tensors["x"] == found.info["i"]).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_optimizer_state_survives_and_continues_the_same(layout):
    def setup():
        torch.manual_seed(0)
        model = nn.Conv2d(5, 3, 3).to(memory_format=layout)
        optimizer = torch.optim.AdamW(model.parameters(), 0.1, fused=True)
        return model, optimizer, {p: n for n, p in model.named_parameters()}

    def steps(model, optimizer, seeds):
        for seed in seeds:
            x = torch.randn(7, 5, 4, 4, generator=torch.Generator().manual_seed(seed))
            model(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    straight, optimizer, _ = setup()
    steps(straight, optimizer, range(6))
    first, optimizer, names = setup()
    steps(first, optimizer, range(3))
    saved = with_prefix("model", first.state_dict()) | with_prefix("adam", optimizer_tensors(optimizer, names))
    saved = {name: t.clone(memory_format=torch.contiguous_format) for name, t in saved.items()}  # as in a file
    second, optimizer, names = setup()
    load_weights(second, under_prefix("model", saved), "the model")
    restore_optimizer(optimizer, names, under_prefix("adam", saved))
    steps(second, optimizer, range(3, 6))
    assert torch.equal(second.weight, straight.weight)


def test_weights_and_states_of_other_models_are_refused():
    layer = nn.Linear(5, 3)
    with pytest.raises(ValueError, match="the layer do not fit"):
        load_weights(layer, {"weight": torch.zeros(5, 3), "bias": torch.zeros(3)}, "the layer")
    optimizer = torch.optim.AdamW(layer.parameters())
    with pytest.raises(ValueError, match="'other'"):
        restore_optimizer(optimizer, {p: n for n, p in layer.named_parameters()}, {"other.step": torch.zeros(())})


def test_packed_weights_are_small_and_close():
    torch.manual_seed(0)
    tensors = {"matrix": torch.randn(64, 67), "kernel": torch.randn(40, 12, 3, 3) * 5, "bias": torch.randn(7)}
    tensors |= {"zero": torch.zeros(64, 64), "count": torch.tensor([3])}
    packed = pack(tensors)
    assert packed["matrix.int8"].dtype == torch.int8 and packed["bias"].dtype == torch.bfloat16
    assert sum(t.nbytes for t in packed.values()) < 0.3 * sum(t.nbytes for t in tensors.values())
    back = unpack(packed)
    assert back.keys() == tensors.keys() and torch.equal(back["count"], tensors["count"])
    for name in ("matrix", "kernel"):
        assert back[name].shape == tensors[name].shape
        assert (back[name] - tensors[name]).std() < 0.015 * tensors[name].std()
    assert torch.equal(back["zero"], tensors["zero"])
    assert all(torch.equal(v, tensors[k]) for k, v in unpack(tensors).items())
