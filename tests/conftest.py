"""Every test runs as a new learner, without a network, on one thread.

Nothing here imports course_lib: the plugin that checks shapes has to come first.
"""

import os
import runpy
import shutil
import tempfile
from pathlib import Path

import pytest

# Before torch is imported: two test processes share the machine, and one thread gives the same sums everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["COURSE_STATE"] = os.environ["COURSE_OUTPUTS"] = tempfile.mkdtemp(prefix="course-tests-")
os.environ["COURSE_DEVICE"] = "cpu"
os.environ["COURSE_SPEED"] = "1"
os.environ.pop("COURSE_PROFILE", None)

runpy.run_path(str(Path(__file__).with_name("no_network.py")))


def pytest_unconfigure(config):
    shutil.rmtree(os.environ["COURSE_STATE"], ignore_errors=True)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of this test's own for a learner's progress and answers."""
    monkeypatch.setenv("COURSE_STATE", str(tmp_path))
    return tmp_path
