import _ctypes
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(code: str, **kwargs) -> str:
    """The last line that fresh Python prints; the shim acts once per process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120, **kwargs)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_a_plain_import_works_after_course_lib():
    code = """
import course_lib, torchvision, torch
from torchvision.datasets import MNIST, MovingMNIST
from torchvision.transforms import v2
image = v2.Resize(5)(torch.rand(3, 7, 7))
print(tuple(image.shape), tuple(torchvision.models.resnet18()(torch.rand(1, 3, 37, 41)).shape))
"""
    assert run(code) == "(3, 5, 5) (1, 1000)"


def test_it_acts_exactly_when_the_compiled_part_is_missing():
    code = """
try:
    import torchvision
    alone = True
except RuntimeError:
    alone = False
for name in [name for name in __import__("sys").modules if name.startswith("torchvision")]:
    del __import__("sys").modules[name]
from course_lib import torchvision_shim
print(alone, torchvision_shim.ensure())
"""
    assert run(code) in ("True False", "False True")


def test_an_import_that_failed_before_course_lib_can_be_repeated():
    code = """
try:
    import torchvision
except RuntimeError:
    pass
import course_lib, torchvision
print(torchvision.__name__)
"""
    assert run(code) == "torchvision"


def test_importing_course_lib_imports_neither_torch_nor_torchvision():
    assert run("import course_lib, sys; print('torch' in sys.modules, 'torchvision' in sys.modules)") == "False False"


@pytest.mark.parametrize("compiled", ["loads", "is broken", "is absent"])
def test_a_compiled_part_that_loads_is_left_alone(tmp_path, compiled):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("")
    library = package / f"_C{EXTENSION_SUFFIXES[-1]}"
    if compiled == "loads":
        shutil.copy(_ctypes.__file__, library)
    elif compiled == "is broken":
        library.write_bytes(b"no library")
    code = f"""
import sys; sys.path.insert(0, {str(tmp_path)!r})
from course_lib import torchvision_shim
import torchvision, torch
print(not torchvision_shim._declarations, hasattr(torch.ops.torchvision, 'nms'))
"""
    assert run(code) == ("True False" if compiled == "loads" else "False True")
