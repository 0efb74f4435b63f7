"""What is saved in each notebook: see ``course_lib.authoring.problems`` for the list of faults it looks for."""

from pathlib import Path

import pytest

from course_lib.authoring import problems
from course_lib.exercises.catalogue import lessons

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_clean(path):
    found = problems(path)
    assert not found, "\n".join(found)


def test_every_lesson_with_exercises_has_its_notebook():
    assert set(lessons()) <= {path.stem for path in NOTEBOOKS}


def test_a_learners_first_notebook_is_there():
    assert (FOLDER / "00_start_here.ipynb").is_file()
