"""Controls that redraw a picture, and the picture that stays when there are no controls."""

import html
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

FAST_ENOUGH_TO_DRAG = 0.12  # seconds; slower pictures are redrawn when the slider is let go


def in_notebook() -> bool:
    """Whether a notebook kernel runs this code, so that displayed objects reach somebody."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return getattr(get_ipython(), "kernel", None) is not None


def live(draw: Callable[..., Any], *, button: str | None = None, labels: Mapping[str, str] | None = None, **controls):
    """Controls above one picture: moving a control calls ``draw`` with the new values and replaces the picture.

    The first picture is an ordinary output of the cell. It is what a saved notebook, GitHub or a printed page shows,
    where the controls are absent. With a live kernel the same output is updated, so a reader never sees two pictures.

    Args:
        draw: called as ``draw(**values)``; returns anything that a notebook can show (best: a `Picture`).
        button: label of a button; then only the button (or Enter in a text box) redraws. For anything above a second.
        labels: name of a control → words beside it; by default the name itself.
        controls: name → what can be chosen, the starting value first where it is a pair:
            ``(3, range(10))`` or ``(0.5, (0.0, 1.0, 0.1))`` (start, stop, step): a slider;
            ``("right", ["left", "right"])`` or ``["left", "right"]``: a menu; a dict as options maps words to values;
            ``True``/``False``: a tick box; a string: a text box; or an ipywidgets widget of your own.

    Returns None. Outside a notebook ``draw`` is called once and its result is printed.
    Raises: ValueError for a control that fits none of these forms.
    """
    start = {name: _start_value(name, spec) for name, spec in controls.items()}
    if not in_notebook():
        print(draw(**start))
        return
    from IPython.display import display

    began = time.perf_counter()
    first = draw(**start)
    quick = time.perf_counter() - began < FAST_ENOUGH_TO_DRAG
    boxes = _boxes(controls, labels or {}, continuous=quick and button is None)
    if boxes is None:  # ipywidgets is missing: the picture alone
        display(first)
        return

    import ipywidgets as widgets

    status = widgets.HTML()
    row = [*boxes.values()]
    if button is not None:
        go = widgets.Button(description=button, button_style="primary")
        row.append(go)
    for box in row:
        box.layout.margin = "2px 18px 2px 2px"
    display(widgets.VBox([widgets.HBox(row, layout=widgets.Layout(flex_flow="row wrap")), status]))
    handle = display(first, display_id=True)

    last = {"values": None, "ended": 0.0}

    def redraw(_event=None) -> None:
        values = {name: box.value for name, box in boxes.items()}
        # Leaving a text box by clicking the button sends both events; the second one has nothing new to say.
        if values == last["values"] and time.perf_counter() - last["ended"] < 0.5:
            return
        status.value = "drawing …"
        try:
            handle.update(draw(**values))
            status.value = ""
        except Exception as error:  # raised in a callback it would reach nobody
            kind = (
                "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            )  # a ValueError speaks for itself
            status.value = f"✗ {html.escape(kind + str(error))}"
        last.update(values=values, ended=time.perf_counter())

    if button is not None:
        go.on_click(redraw)
        for box in boxes.values():
            if isinstance(box, widgets.Text):
                box.continuous_update = False
                box.observe(redraw, "value")
    else:
        for box in boxes.values():
            box.observe(redraw, "value")


def _split(spec: Any) -> tuple[Any, Any]:
    """(starting value or None, what can be chosen)."""
    is_pair = isinstance(spec, tuple) and len(spec) == 2 and isinstance(spec[1], Sequence | Mapping)
    return (spec[0], spec[1]) if is_pair and not isinstance(spec[1], str) else (None, spec)


def _start_value(name: str, spec: Any) -> Any:
    start, options = _split(spec)
    if isinstance(options, str | bool) or hasattr(options, "comm"):
        return options.value if hasattr(options, "comm") else options
    allowed = _allowed(name, options)
    if isinstance(options, tuple):
        low, high, _step = options
        value = low if start is None else start
        if not low <= value <= high:
            raise ValueError(f"{name} starts at {value}, outside {low} … {high}")
        return value
    value = allowed[0] if start is None else start
    if value not in allowed:
        raise ValueError(f"{name} starts at {value!r}, which is not among {allowed}")
    return value


def _allowed(name: str, options: Any) -> list:
    if isinstance(options, Mapping):
        options = list(options.values())
    fits = isinstance(options, range | list) or (isinstance(options, tuple) and len(options) == 3)
    if not fits or len(options) == 0:
        raise ValueError(
            f"control {name}={options!r} fits no form; give a range, a (start, stop, step) tuple, a list, a dict, "
            "a bool, a string or an ipywidgets widget, or a pair of starting value and one of these"
        )
    return list(options)


def _boxes(controls: Mapping[str, Any], labels: Mapping[str, str], continuous: bool) -> dict[str, Any] | None:
    """The ipywidgets control for each name, or None where ipywidgets is not installed."""
    try:
        import ipywidgets as widgets
    except ImportError:
        return None
    boxes = {}
    for name, spec in controls.items():
        _, options = _split(spec)
        common = {
            "description": labels.get(name, name.replace("_", " ")),
            "value": _start_value(name, spec),
            "style": {"description_width": "initial"},
        }
        if hasattr(options, "comm"):
            boxes[name] = options
        elif isinstance(options, bool):
            boxes[name] = widgets.Checkbox(**common, indent=False)
        elif isinstance(options, str):
            boxes[name] = widgets.Text(**common, layout=widgets.Layout(width="28em"))
        elif isinstance(options, range):
            limits = {"min": options[0], "max": options[-1], "step": options.step}
            boxes[name] = widgets.IntSlider(**common, **limits, continuous_update=continuous)
        elif isinstance(options, tuple):
            limits = dict(zip(("min", "max", "step"), options, strict=True))
            boxes[name] = widgets.FloatSlider(**common, **limits, continuous_update=continuous)
        else:
            choices = list(options.items()) if isinstance(options, Mapping) else list(options)
            boxes[name] = widgets.Dropdown(**common, options=choices, layout=widgets.Layout(width="max-content"))
    return boxes
