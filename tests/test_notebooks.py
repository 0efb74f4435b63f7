"""What is saved in each notebook: see ``course_lib.authoring.problems`` for the list of faults it looks for."""

import ast
import builtins
import json
from pathlib import Path

import pytest

from course_lib.authoring import problems, stub_cell
from course_lib.exercises.answers import names_taken
from course_lib.exercises.catalogue import lessons
from course_lib.exercises.course_map import LESSONS

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
STUBS = [(lesson.name, exercise) for lesson in LESSONS for exercise in lesson.exercises]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_clean(path):
    found = problems(path)
    assert not found, "\n".join(found)


def test_every_notebook_is_on_the_map_and_every_lesson_with_exercises_too():
    assert {path.stem for path in NOTEBOOKS} | set(lessons()) <= {lesson.name for lesson in LESSONS}


def test_a_learners_first_notebook_is_there():
    assert (FOLDER / "00_start_here.ipynb").is_file()


@pytest.mark.parametrize(("lesson", "exercise"), STUBS, ids=[e.name for _, e in STUBS])
def test_a_stub_finds_every_name_it_uses(lesson, exercise):
    """What a stub is given must run in its notebook: a learner did not write a constructor that wants ``math``."""
    notebook = json.loads((FOLDER / f"{lesson}.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    stub = next(i for i, source in enumerate(cells) if source == stub_cell(exercise.name))
    known = set(dir(builtins)) | {exercise.name}
    for node in (node for source in cells[:stub] for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            known |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            known.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            known.add(node.id)
    assert set(names_taken(stub_cell(exercise.name))) <= known
