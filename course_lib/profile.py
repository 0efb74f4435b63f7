"""Device and size of the work: the two choices that depend on the machine, made in one place each."""

import os

import torch

PROFILES = {"ci": 1.0, "laptop": 1.0, "gpu": 4.0}  # factor on the number of training steps


def profile() -> str:
    """``COURSE_PROFILE``: ``ci``, ``laptop`` (default) or ``gpu``."""
    name = os.environ.get("COURSE_PROFILE", "laptop")
    if name not in PROFILES:
        raise ValueError(f"COURSE_PROFILE={name!r} is unknown; choose one of {', '.join(PROFILES)}")
    return name


def steps(n: int) -> int:
    """The number of training steps for a cell that takes ``n`` of them on a laptop."""
    return max(1, round(n * PROFILES[profile()]))


def pick_device() -> torch.device:
    """``COURSE_DEVICE`` if set, else CUDA, else Apple's MPS, else the CPU."""
    chosen = os.environ.get("COURSE_DEVICE")
    if chosen:
        try:
            return torch.device(chosen)
        except RuntimeError as error:
            raise ValueError(f"COURSE_DEVICE={chosen!r} is not a device torch knows; try cpu, cuda or mps") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
