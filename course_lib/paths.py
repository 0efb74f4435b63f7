"""Where files live: one place, so that no other module guesses."""

import contextlib
import os
import tempfile
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


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace a file as a whole: a reader sees the old content or the new, also after a power cut or ``kill -9``.

    Raises ``OSError`` when the disk is full or read-only; the old file is untouched then, nothing half-written left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes private files
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
