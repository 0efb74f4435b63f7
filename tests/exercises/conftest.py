"""The engine's tests run on a small lesson of their own, so that no lesson of the course can bend them."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def sample(monkeypatch: pytest.MonkeyPatch, state: Path) -> ModuleType:
    """The sample lesson as the only lesson, with an empty progress folder."""
    from course_lib.exercises import catalogue, checking, course_map

    if "sample_lesson" not in sys.modules:
        spec = importlib.util.spec_from_file_location("sample_lesson", Path(__file__).parent / "sample.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["sample_lesson"] = module
        spec.loader.exec_module(module)
    lesson = {"99_sample": sys.modules["sample_lesson"].EXERCISES}
    for place in (catalogue, course_map):
        monkeypatch.setattr(place, "lessons", lambda: lesson)
    checking._expected.cache_clear()
    yield sys.modules["sample_lesson"]
    checking._expected.cache_clear()
