"""Where files live: one place, so that no other module guesses."""

import os
from pathlib import Path


def repo_root() -> Path:
    """The checkout that holds ``notebooks/``; the working directory when the package was installed elsewhere."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "notebooks").is_dir() else Path.cwd()


def _folder(variable: str, *default: str) -> Path:
    chosen = os.environ.get(variable)
    return Path(chosen).expanduser().resolve() if chosen else repo_root().joinpath(*default)


def datasets_dir() -> Path:
    """Downloaded data sets (``COURSE_DATA``, else ``data/``). May be read-only."""
    return _folder("COURSE_DATA", "data")


def state_dir() -> Path:
    """What belongs to one learner: progress and passed answers (``COURSE_STATE``, else ``data/``)."""
    return _folder("COURSE_STATE", "data")


def outputs_dir() -> Path:
    """What training runs write (``COURSE_OUTPUTS``, else ``outputs/``)."""
    return _folder("COURSE_OUTPUTS", "outputs")


def checkpoints_dir() -> Path:
    """The small checkpoints that the course ships."""
    return repo_root() / "data" / "checkpoints"
