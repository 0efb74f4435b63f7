"""A learner's first hour: from opening the course to a passed exercise that survives a restart."""

import re

import pytest

from course_lib.authoring import stub_cell
from course_lib.exercises.catalogue import get, substituted

pytestmark = pytest.mark.browser

EXERCISE = get("reflect")
MISTAKE = next(mistake for mistake in EXERCISE.mistakes if mistake.code)


def words(text: str) -> str:
    """Text as a person reads it: without markup, in one line."""
    return " ".join(re.sub(r"[`*]", "", text).split())


def output_of(lab, index: int) -> str:
    """What stands under a cell."""
    return words(lab.show(index).locator(".jp-Cell-outputWrapper").inner_text())


def errors(lab) -> list[str]:
    """Names of the errors under all cells."""
    outputs = [output for cell in lab.cells() for output in cell.get("outputs", [])]
    return [output["ename"] for output in outputs if output["output_type"] == "error"]


def test_the_first_cell_turns_a_sentence_into_a_video(lab):
    lab.open("00_start_here.ipynb")
    first = next(i for i, cell in enumerate(lab.cells()) if cell["cell_type"] == "code")
    lab.run(first)
    output = lab.show(first).locator(".jp-Cell-outputWrapper")
    before = pictures(lab.show(first))
    assert before and errors(lab) == []
    output.locator("input[type=text]").fill("a 7 going up slowly")
    output.get_by_role("button", name="Generate").click()
    lab.page.wait_for_timeout(300)
    lab.wait_idle()
    assert pictures(lab.show(first)) != before
    lab.screenshot("another sentence, another video")
    assert errors(lab) == [] and lab.thrown == []


def test_a_learners_first_hour(lab):
    lab.open("00_start_here.ipynb")
    lab.screenshot("opened")
    lab.run_all()
    assert errors(lab) == []
    counts = [cell["execution_count"] for cell in lab.cells() if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    lab.show(0)
    lab.screenshot("everything ran untouched")

    stub = lab.index(f"@exercise\ndef {EXERCISE.name}(")
    assert "".join(lab.cells()[stub]["source"]) == stub_cell(EXERCISE.name)
    assert "not attempted yet" in output_of(lab, stub)
    lab.screenshot("not attempted")

    lab.write(stub, "@exercise\n" + re.sub(r"(?m)^ {12}", "", MISTAKE.code).strip())
    said = output_of(lab, stub)
    assert words(MISTAKE.sentence) in said and "Traceback" not in said
    lab.screenshot("wrong, with the mistake named")

    for number, hint in enumerate(EXERCISE.hints[:2], 1):
        which = f"{number}/{len(EXERCISE.hints)}"
        lab.show(stub).get_by_role("button", name=f"hint {which}").click()
        lab.show(stub).get_by_text(re.compile(f"Hint {which}")).wait_for()
        assert words(hint.text) in output_of(lab, stub)
    lab.screenshot("two hints")
    lab.theme("JupyterLab Dark")
    lab.screenshot("two hints in the dark")

    lab.write(stub, "@exercise\n" + substituted(EXERCISE).strip())
    assert f"✓ {EXERCISE.name}: passed" in output_of(lab, stub)
    lab.screenshot("passed in the dark")
    lab.theme("JupyterLab Light")
    lab.show(stub)
    lab.screenshot("passed")

    lab.restart()
    lab.write(stub, stub_cell(EXERCISE.name))
    assert "NameError" in errors(lab)  # the kernel is a new one: the set-up cell has not run
    lab.run_all()
    assert errors(lab) == []
    assert f"✓ {EXERCISE.name}: passed before" in output_of(lab, stub)
    lab.screenshot("after the restart the pass is kept")
    assert lab.thrown == []


def test_a_slider_changes_the_picture(lab):
    lab.open("00_start_here.ipynb")
    lab.run_all()
    index, slider = find_slider(lab)
    cell = lab.show(index)
    before = pictures(cell)
    assert before, "there is no picture beside the slider"
    lab.screenshot("slider before")
    lab.drag(slider, 0.4 if slider_position(slider) < 0.5 else -0.4)
    lab.page.wait_for_timeout(500)
    lab.wait_idle()
    assert pictures(cell) != before
    lab.screenshot("slider after")
    lab.theme("JupyterLab Dark")
    lab.show(index)
    lab.screenshot("slider in the dark")
    assert errors(lab) == [] and lab.thrown == []


def find_slider(lab):
    """(position of the first cell that redraws while a slider moves, its slider)."""
    for index in cells_with_widgets(lab):
        output = lab.show(index).locator(".jp-Cell-outputWrapper")
        if output.locator(".widget-slider").count() and not output.get_by_role("button").count():
            return index, output.locator(".widget-slider").first
    raise AssertionError("no cell shows a slider without a button")


def cells_with_widgets(lab) -> list[int]:
    """Positions of the cells that show a widget."""
    kind = "application/vnd.jupyter.widget-view+json"
    cells = enumerate(lab.cells())
    return [i for i, cell in cells if any(kind in output.get("data", {}) for output in cell.get("outputs", []))]


def slider_position(slider) -> float:
    """Where the handle stands, from 0 to 1."""
    handle, track = (slider.locator(part).bounding_box() for part in (".noUi-handle", ".noUi-target"))
    return (handle["x"] + handle["width"] / 2 - track["x"]) / track["width"]


def pictures(cell) -> list[str]:
    """The pictures that a cell shows."""
    return cell.locator(".jp-Cell-outputWrapper img").evaluate_all("every => every.map(one => one.src)")
