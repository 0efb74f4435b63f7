import pytest

from course_lib.viz import live
from course_lib.viz import widgets as module

ipywidgets = pytest.importorskip("ipywidgets")


@pytest.fixture
def notebook(monkeypatch):
    """Pretends that a kernel is there; returns (things displayed, things the picture was replaced by)."""
    displayed, updates = [], []

    class Handle:
        def update(self, thing):
            updates.append(thing)

    def display(thing, display_id=None):
        displayed.append(thing)
        return Handle()

    monkeypatch.setattr(module, "in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", display)
    return displayed, updates


def controls(displayed):
    row = displayed[0].children[0]
    return row.children


def test_outside_a_notebook_the_first_picture_is_printed(capsys):
    live(lambda n, word: f"{word} {n}", n=(5, range(3, 8)), word="seven")
    assert capsys.readouterr().out == "seven 5\n"


def test_a_control_replaces_the_picture_below_it(notebook):
    displayed, updates = notebook
    live(lambda n, way: (n, way), n=range(2, 9), way=("up", ["down", "up"]))
    box, picture = displayed
    assert picture == (2, "up") and isinstance(box, ipywidgets.VBox)
    slider, menu = controls(displayed)
    slider.value = 7
    menu.value = "down"
    assert updates == [(7, "up"), (7, "down")]


def test_a_button_waits_for_the_press_and_enter_counts_as_one(notebook):
    displayed, updates = notebook
    live(lambda prompt, w: (prompt, w), button="Generate", prompt="a 3", w=(2.0, (1.0, 4.0, 0.5)))
    text, slider, button = controls(displayed)
    slider.value = 3.0
    assert updates == []
    button.click()
    assert updates == [("a 3", 3.0)]
    text.value = "a 7"
    button.click()  # leaving the box and pressing the button are one wish
    assert updates == [("a 3", 3.0), ("a 7", 3.0)]


def test_a_failing_picture_says_so_and_keeps_the_old_one(notebook):
    displayed, updates = notebook
    live(lambda n: 1 / n, n=(1, range(0, 5)))
    controls(displayed)[0].value = 0
    status = displayed[0].children[1]
    assert "ZeroDivisionError" in status.value and updates == []
    controls(displayed)[0].value = 4
    assert status.value == "" and updates == [0.25]


def test_slow_pictures_wait_until_the_slider_is_let_go(notebook, monkeypatch):
    displayed, _ = notebook
    live(lambda n: n, n=range(5))
    assert controls(displayed)[0].continuous_update
    displayed.clear()
    monkeypatch.setattr(module, "FAST_ENOUGH_TO_DRAG", 0.0)
    live(lambda n: n, n=range(5))
    assert not controls(displayed)[0].continuous_update


def test_each_form_becomes_its_control(notebook):
    displayed, _ = notebook
    own = ipywidgets.IntText(value=11)
    forms = dict(a=range(1, 9, 2), b=(0.0, 1.0, 0.25), c={"one": 1, "two": 2}, d=True, e="words", f=own)
    live(lambda **values: values, labels={"a": "odd"}, **forms)
    kinds = [type(box).__name__ for box in controls(displayed)]
    assert kinds == ["IntSlider", "FloatSlider", "Dropdown", "Checkbox", "Text", "IntText"]
    assert displayed[1] == dict(a=1, b=0.0, c=1, d=True, e="words", f=11)
    slider = controls(displayed)[0]
    assert (slider.min, slider.max, slider.step, slider.description) == (1, 7, 2, "odd")


@pytest.mark.parametrize(
    ("spec", "message"),
    [(3, "fits no form"), ([], "fits no form"), ((9, range(5)), "not among"), ((2.0, (0.0, 1.0, 0.1)), "outside")],
)
def test_a_control_of_no_known_form_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        live(lambda n: n, n=spec)


def test_without_ipywidgets_the_picture_is_still_shown(notebook, monkeypatch):
    displayed, _ = notebook
    monkeypatch.setitem(__import__("sys").modules, "ipywidgets", None)
    live(lambda n: n, n=range(3, 5))
    assert displayed == [3]
