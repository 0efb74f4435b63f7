"""Makes ``import torchvision`` work where its compiled part does not fit the installed torch.

The torchvision that pip installs on Linux is built for CUDA. Beside a CPU-only torch its compiled part cannot be
loaded, the operators ``nms`` and ``qnms`` stay undeclared, and ``import torchvision`` dies while it registers shape
functions for them. Its Python parts (datasets, transforms.v2, models, utils), which are all that the course uses, need
neither operator, so declaring their signatures is enough. Calling ``torchvision.ops.nms`` still raises an error that
names the mismatch.

``import course_lib`` installs a hook that costs nothing until somebody imports torchvision; where the compiled part
loads, it does nothing at all.
"""

import sys
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder, PathFinder

_declarations = []  # a declared schema lives as long as the object that declared it


def ensure() -> bool:
    """Declare what torchvision misses before its import; True where this module stands in for the compiled part."""
    if _declarations:
        return True
    spec = PathFinder.find_spec("torchvision")  # not importlib's, which would ask the hook below
    if spec is None or "torchvision" in sys.modules or _compiled_part_loads(spec.submodule_search_locations or ()):
        return False
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declarations.append(library)
    return True


def _compiled_part_loads(folders) -> bool:
    import torch

    for folder in folders:
        compiled = FileFinder(folder, (ExtensionFileLoader, EXTENSION_SUFFIXES)).find_spec("_C")
        if compiled is None:
            continue
        try:
            torch.ops.load_library(compiled.origin)  # what torchvision does next; loading twice is harmless
        except (ImportError, OSError):
            continue
        return True
    return False


class _BeforeTorchvision:
    """Sees that torchvision is about to be imported, prepares for it, and leaves the import to Python."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            ensure()
        return None


def install() -> None:
    """Prepare for an ``import torchvision`` that may come later; cheap, and harmless when called twice."""
    if not any(isinstance(finder, _BeforeTorchvision) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BeforeTorchvision())
