import copy
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import v4

from course_lib import authoring
from course_lib.exercises.catalogue import get, lessons

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WIDGET = {"application/vnd.jupyter.widget-view+json": {"model_id": "5"}, "text/plain": "IntSlider(value=3)"}


def code(name: str, source: str, *outputs, count: int | None = 1):
    cell = v4.new_code_cell(source, id=name, execution_count=count, outputs=list(outputs))
    return cell


def shown(data: dict, **metadata):
    return v4.new_output("display_data", data=data, metadata=metadata)


@pytest.fixture
def clean(tmp_path):
    """A notebook without a fault, and the path that it is to be saved at."""
    cells = [
        v4.new_markdown_cell("# Title\nA link to [this](lesson.ipynb), ![words](lesson.ipynb)", id="title"),
        code("one", "print(1)", v4.new_output("stream", name="stdout", text="1\n")),
        code("two", "show()", shown({"image/png": PNG, "text/plain": "a red dot"}), count=2),
    ]
    notebook = v4.new_notebook(cells=cells)
    authoring.clean(notebook)
    return notebook, tmp_path / "lesson.ipynb"


def problems(notebook, path: Path) -> list[str]:
    path.write_text(nbformat.writes(notebook), encoding="utf-8")
    return authoring.problems(path)


def test_a_clean_notebook_has_no_problem(clean):
    assert problems(*clean) == []


def break_ids(nb):
    nb.cells[1]["id"] = "3fa85f64"


def break_order(nb):
    nb.cells[1].execution_count = 3


def leave_unrun(nb):
    nb.cells[2].execution_count = None


def save_widget_state(nb):
    nb.metadata["widgets"] = {"state": {}}


def name_a_kernel(nb):
    nb.metadata.kernelspec.name = "my-venv"


def grow(nb):
    nb.cells[2].outputs[0].data["image/png"] = "A" * 1_600_000


def make_long(nb):
    nb.cells[1].source = "x = 1\n" * 26


def output(*outputs):
    def change(nb):
        nb.cells[1].outputs = list(outputs)

    change.__name__ = f"output-{outputs[0].output_type}"
    return change


def source(text, index=1):
    def change(nb):
        nb.cells[index].source = text

    return change


@pytest.mark.parametrize(
    "change, words",
    [
        (break_ids, "is not a name"),
        (break_order, "top to bottom"),
        (leave_unrun, "top to bottom"),
        (save_widget_state, "widget state"),
        (name_a_kernel, "another kernel"),
        (grow, "1.6 MB"),
        (make_long, "26 lines"),
        (source(""), "an empty cell"),
        (source("!ls"), "a shell command"),
        (source("![](lesson.ipynb)", 0), "without alt text"),
        (source('<img src="lesson.ipynb" alt="">', 0), "without alt text"),
        (source("[lost](nowhere.ipynb#part)", 0), "nowhere.ipynb"),
        (output(v4.new_output("error", ename="ValueError", evalue="", traceback=[])), "ends in ValueError"),
        (output(v4.new_output("stream", name="stderr", text="UserWarning: hm")), "UserWarning: hm"),
        (output(v4.new_output("stream", name="stdout", text="<f at 0x7f3a5b6c7d8e>")), "memory address"),
        (output(v4.new_output("stream", name="stdout", text="saved in /{}/me".format("home"))), "author's machine"),
        (output(shown({"image/png": PNG})), "without alt text"),
        (output(shown({"image/png": PNG, "text/plain": "<Figure size 640x480 with 1 Axes>"})), "without alt text"),
        (output(shown({"text/html": "<img src='data:image/png;base64,'>"})), "without alt text"),
        (output(shown({"text/html": "<style>b {}</style>"})), "<style>"),
        (output(shown({"text/html": "<img alt='a' src='https://example.org/a.png'>"})), "from the network"),
        (output(shown(dict(WIDGET))), "dead without its kernel"),
    ],
)
def test_each_fault_is_found(clean, change, words):
    notebook, path = copy.deepcopy(clean[0]), clean[1]
    change(notebook)
    found = problems(notebook, path)
    assert len(found) == 1 and words in found[0], found
    assert found[0].startswith("lesson.ipynb: ")


def test_a_picture_is_saved_once_with_its_words_below(clean):
    notebook, _ = clean
    data = {"image/png": PNG, "text/html": "<img alt='a <dot>'>", "text/plain": "a <dot>"}
    described, foreign = (
        v4.new_output("display_data", dict(data), metadata=metadata)
        for metadata in ({"image/png": {"alt": "a <dot>"}}, {})
    )
    notebook.cells[-1] = code("two", "show()", described, foreign, count=2)
    for _ in range(2):  # cleaning twice changes nothing more
        authoring.clean(notebook)
        picture, words, other = notebook.cells[-1].outputs
        assert set(picture.data) == {"image/png", "text/plain"} and set(other.data) == set(data)
        assert "<summary>" in words.data["text/html"] and "a &lt;dot&gt;" in words.data["text/html"]


def test_alt_text_may_stand_in_the_metadata(clean):
    notebook, path = clean
    notebook.cells[2].outputs = [shown({"image/png": PNG}, **{"image/png": {"alt": "a red dot"}})]
    assert problems(notebook, path) == []


def test_a_file_that_is_no_notebook(tmp_path):
    path = tmp_path / "lesson.ipynb"
    path.write_text("{}")
    assert "not a valid notebook" in authoring.problems(path)[0]


@pytest.fixture
def lesson():
    """(lesson, name of its first exercise)"""
    name, exercises = next(iter(lessons().items()))
    return name, exercises[0].name


def test_a_stub_that_differs_from_the_library(clean, lesson):
    notebook, path = clean
    notebook.cells[1].source = authoring.stub_cell(lesson[1])
    path = path.with_name(f"{lesson[0]}.ipynb")
    notebook.cells[0].source = "# Title"
    others = {exercise.name for exercise in lessons()[lesson[0]]} - {lesson[1]}
    found = problems(notebook, path)
    assert [name in "".join(found) for name in others] == [True] * len(others)
    assert not any("is not the library's" in text for text in found)
    notebook.cells[2].source = "@exercise\ndef no_such_exercise():\n    ..."
    found = problems(notebook, path)
    assert any("not those of its catalogue" in text and "no_such_exercise" in text for text in found)
    assert any("the stub of no_such_exercise is not the library's" in text for text in found)
    notebook.cells[1].source = notebook.cells[1].source.replace("raise NotImplementedError", "return None", 1)
    assert any(f"the stub of {lesson[1]} is not the library's" in text for text in problems(notebook, path))


def test_stub_cell_is_python_and_says_what_is_asked(lesson):
    cell = authoring.stub_cell(lesson[1])
    compile(cell, "stub", "exec")
    assert get(lesson[1]).target.__doc__.splitlines()[0] in cell
    assert "NotImplementedError" in cell


def test_execute_runs_as_a_new_learner_and_saves_clean_outputs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_STATE", str(tmp_path / "mine"))
    path = tmp_path / "lesson.ipynb"
    look = "import os; print(os.environ['COURSE_STATE'] != %r, os.getcwd() == %r)" % (  # noqa: UP031
        str(tmp_path / "mine"),
        str(tmp_path),
    )
    cells = [
        v4.new_code_cell(look, id="look", metadata={"execution": {"iopub.status.busy": "now"}, "tags": ["kept"]}),
        v4.new_code_cell("import ipywidgets; display(ipywidgets.IntSlider()); print('a'); print('b')", id="slide"),
        v4.new_code_cell("ipywidgets.IntSlider()", id="last"),
    ]
    nbformat.write(v4.new_notebook(cells=cells), path)
    assert authoring.main(["execute", str(path)]) == 0
    first = path.read_bytes()
    notebook = nbformat.reads(first.decode(), as_version=4)
    assert notebook.cells[0].outputs[0].text == "True True\n"
    assert [output.text for output in notebook.cells[1].outputs] == ["a\nb\n"]
    assert notebook.cells[2].outputs == []
    assert dict(notebook.cells[0].metadata) == {"tags": ["kept"]}
    assert "widgets" not in notebook.metadata
    assert [cell.id for cell in notebook.cells] == ["look", "slide", "last"]
    assert authoring.main(["execute", str(path)]) == 0
    assert path.read_bytes() == first
    assert authoring.problems(path) == []


def test_a_notebook_that_fails_is_not_written(tmp_path, capsys):
    path = tmp_path / "lesson.ipynb"
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell("1 / 0", id="a")]), path)
    before = path.read_bytes()
    with pytest.raises(CellExecutionError):
        authoring.execute(path)
    assert authoring.main(["execute", str(path)]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["lesson.ipynb"]


SCRIPT = """# %% [markdown]
# # A Title, *here*
# text

# %% set-up
x = 3

# %%
x + 1

# %%
x + 1

# %% 3 things
# stub: EXERCISE
"""


def test_from_py_gives_names_and_keeps_outputs(tmp_path, lesson):
    script, path = tmp_path / "lesson.py", tmp_path / "lesson.ipynb"
    script.write_text(SCRIPT.replace("EXERCISE", lesson[1]))
    assert authoring.main(["from-py", str(script), str(path)]) == 0
    notebook = nbformat.read(path, as_version=4)
    assert [cell.id for cell in notebook.cells] == ["a-title-here", "set-up", "x-1", "x-1-2", "cell-3-things"]
    assert notebook.cells[4].source == authoring.stub_cell(lesson[1])
    notebook.cells[1].outputs = [v4.new_output("stream", text="kept")]
    notebook.cells[2].outputs = [v4.new_output("stream", text="dropped")]
    notebook.cells[1].execution_count = 1
    nbformat.write(notebook, path)
    script.write_text(script.read_text().replace("x + 1", "x + 2"))
    authoring.from_py(script, path)
    again = nbformat.read(path, as_version=4)
    assert again.cells[1].outputs[0].text == "kept" and again.cells[1].execution_count == 1
    assert [cell.get("outputs", []) for cell in again.cells[2:]] == [[], [], []]


def test_to_py_and_back_gives_the_same_notebook(tmp_path, clean):
    notebook, path = clean
    path.write_text(nbformat.writes(notebook, indent=1) + "\n", encoding="utf-8")
    script = tmp_path / "lesson.py"
    assert authoring.main(["to-py", str(path), str(script)]) == 0
    compile(script.read_text(), "script", "exec")
    before = nbformat.read(path, as_version=4)
    assert authoring.main(["from-py", str(script), str(path)]) == 0
    assert nbformat.read(path, as_version=4).cells == before.cells


def test_the_command_line_reports_what_is_wrong(tmp_path, capsys):
    assert authoring.main(["stub", "no_such_exercise"]) == 1
    assert "no_such_exercise" in capsys.readouterr().err
    (tmp_path / "a.ipynb").write_text("{}")
    assert authoring.main(["check", str(tmp_path / "a.ipynb")]) == 1
    assert "not a valid notebook" in capsys.readouterr().out
    assert authoring.main(["execute", str(tmp_path / "absent.ipynb")]) == 1
