"""What a learner touches: the ``@exercise`` decorator, the buttons under a cell, and the same as plain functions."""

import functools
import sys
from typing import Any

from course_lib.exercises import answers, cards, store
from course_lib.exercises.catalogue import Exercise, get, lesson_of, source_of, stub_source
from course_lib.exercises.checking import CRASHED, FAILED, NOT_ATTEMPTED, PASSED, TIMED_OUT, Verdict, check

_latest: list[str] = []  # the exercise whose cell ran last, for hint() and friends without a name

_TITLES = {
    PASSED: "✓ {name}: passed",
    FAILED: "✗ {name}: not yet",
    CRASHED: "✗ {name}: your code stopped with an error",
    TIMED_OUT: "✗ {name}: stopped, it took too long",
    NOT_ATTEMPTED: "○ {name}: not attempted yet",
}


def exercise(answer: Any) -> Any:
    """Check the function or class defined below, show the verdict, and bind the name to something that works.

    The name means the learner's code when it passed, their saved answer when the cell holds an untouched stub, and the
    course's version otherwise, so that the notebook always runs on. The last try is kept as ``attempt``.
    """
    name = getattr(answer, "__name__", None)
    if name is None:
        raise ValueError(f"@exercise goes above a function or class; it got {answer!r}")
    verdict = check(name, answer)
    _latest[:] = [name]
    _count_attempt(name, verdict)
    if verdict.state == NOT_ATTEMPTED:
        saved = _saved_answer(name)
        if saved is not None:
            return saved
        _show(
            get(name),
            verdict,
            f"About {get(name).minutes} minutes. Until then the lesson goes on with the course's version.",
        )
        return get(name).target
    _publish_attempt(answer)
    if verdict:
        problem = answers.save(name, answer)
        _show(get(name), verdict, problem or "Your code is in use from here on.")
        return answer
    note = f"The course's `{name}` stands in until yours passes. Your last try is `attempt`."
    if answers.my_code_file(name).is_file():
        note += " The answer that passed earlier is kept; run the untouched stub (`reset()`) to use it again."
    _show(get(name), verdict, note)
    return _stand_in(get(name))


def _count_attempt(name: str, verdict: Verdict) -> None:
    def change(data):
        record = store.exercise_record(data, name)
        record.setdefault("first", store.now())
        if verdict.state == NOT_ATTEMPTED:
            return
        record["attempts"] += 1
        if verdict and "passed" not in record:
            record["passed"] = store.now()
        if record["state"] != PASSED:  # a pass is never lost
            record["state"] = verdict.state

    store.update(change)


def _saved_answer(name: str) -> Any:
    """The answer passed earlier, with a card that says so; None when there is none that works."""
    try:
        saved = answers.load(name)
    except Exception as error:
        text = f"Your saved answer could not be used: {error}"
        cards.show(cards.Card("warn", f"○ {name}: the course's version is in use", text))
        return get(name).target
    if saved is None:
        return None
    when = store.load()["exercises"].get(name, {}).get("passed", "earlier")
    text = f"You passed this on {when}. Your saved answer is in use; the stub above may stay as it is."
    folded = [("show my answer", answers.my_code_file(name).read_text(encoding="utf-8"))]
    cards.show(cards.Card("good", f"✓ {name}: passed before", text, folded=folded))
    return saved


def _publish_attempt(answer: Any) -> None:
    """Leave the learner's last try in the notebook as ``attempt``, for debugging."""
    if answer.__module__ == "__main__":
        sys.modules["__main__"].attempt = answer


# ------------------------------------------------------------------------------------------------------------ stand-in


def _stand_in(exercise: Exercise) -> Any:
    """The library's object, which says so at its first use in a cell: after a failed try nobody must be fooled."""
    target, told = exercise.target, []

    def tell():
        cell = _cell_number()
        if told != [cell]:
            told[:] = [cell]
            print(f"({exercise.name}: the course's version stands in here; yours has not passed yet)")

    if exercise.is_class:

        def __init__(self, *args, **kwargs):
            tell()
            target.__init__(self, *args, **kwargs)

        members = {
            "__init__": __init__,
            "__doc__": target.__doc__,
            "__module__": target.__module__,
            "course_version": target,
        }
        return type(target.__name__, (target,), members)

    @functools.wraps(target)
    def stand_in(*args, **kwargs):
        tell()
        return target(*args, **kwargs)

    stand_in.course_version = target
    return stand_in


def _cell_number() -> int:
    shell = sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()
    return shell.execution_count if shell else 0


# --------------------------------------------------------------------------------------------------------------- cards


def _show(exercise: Exercise, verdict: Verdict, note: str) -> None:
    kind = {PASSED: "good", NOT_ATTEMPTED: "quiet"}.get(verdict.state, "bad")
    folded = [("details", verdict.details)] if verdict.details else []
    if verdict.printed:
        folded.append(("what your code printed", verdict.printed))
    pictures = []
    if verdict.pictures:
        low, high = (float(f(verdict.pictures[1].float())) for f in (lambda x: x.min(), lambda x: x.max()))
        pictures = [
            (c, cards.picture_png(p, low, high)) for c, p in zip(("yours", "expected"), verdict.pictures, strict=True)
        ]
    text = "" if verdict.state == NOT_ATTEMPTED else verdict.sentence
    title = _TITLES[verdict.state].format(name=exercise.name)
    cards.show(cards.Card(kind, title, text, note, folded, pictures))
    if verdict.state != PASSED:
        cards.show_widget(lambda: _buttons(exercise))


def _buttons(exercise: Exercise):
    import ipywidgets as widgets

    hint_button = widgets.Button(description=_hint_label(exercise), tooltip="the next hint")
    solution_button = widgets.Button(description="solution", tooltip="the course's own source")
    reset_button = widgets.Button(description="reset", tooltip="the untouched stub, to copy")
    output = widgets.HTML()
    shown: list[str] = []

    def put(*new: cards.Card):
        shown[:] = [*([s for s in shown] if new[0].kind == "quiet" else []), *(c._repr_html_() for c in new)]
        output.value = "".join(shown)

    def on_hint(_):
        put(_next_hint(exercise))
        hint_button.description = _hint_label(exercise)

    hint_button.on_click(on_hint)
    solution_button.on_click(lambda _: put(_solution_card(exercise)))
    reset_button.on_click(lambda _: put(_reset_card(exercise)))
    return widgets.VBox([widgets.HBox([hint_button, solution_button, reset_button]), output])


def _hint_label(exercise: Exercise) -> str:
    used = store.load()["exercises"].get(exercise.name, {}).get("hints", 0)
    return f"hint {min(used + 1, len(exercise.hints))}/{len(exercise.hints)}"


def _next_hint(exercise: Exercise) -> cards.Card:
    total = len(exercise.hints)

    def change(data):
        record = store.exercise_record(data, exercise.name)
        record["hints"] = min(record["hints"] + 1, total)

    number = store.update(change)["exercises"][exercise.name]["hints"]
    chosen = exercise.hints[number - 1]
    return cards.Card("quiet", f"Hint {number}/{total}: {chosen.symptom}", chosen.text)


def _solution_card(exercise: Exercise) -> cards.Card:
    store.update(lambda data: store.exercise_record(data, exercise.name).update(solution_seen=True))
    where = f"{exercise.target.__module__}.{exercise.name}"
    source = source_of(exercise.target)
    return cards.Card(
        "warn", f"The course's {exercise.name}", f"This is `{where}` itself.", folded=[("open the source", source)]
    )


def _reset_card(exercise: Exercise) -> cards.Card:
    text = "Copy this over your cell, or run `reset()` to get it in a new cell. Nothing that you passed is lost."
    stub = f"@exercise\n{stub_source(exercise.name)}"
    return cards.Card("warn", f"{exercise.name}: the untouched stub", text, folded=[("open the stub", stub)])


# ----------------------------------------------------------------------------------------------------- plain functions


def _chosen(name: str | Any | None) -> Exercise:
    if name is None:
        if not _latest:
            raise ValueError('run the cell of an exercise first, or name it, as in hint("reflect")')
        return get(_latest[0])
    return get(name if isinstance(name, str) else getattr(name, "__name__", str(name)))


def hint(name: str | None = None) -> None:
    """Show the next hint for an exercise (the latest one run, unless named); the last one stays."""
    cards.show(_next_hint(_chosen(name)))


def solution(name: str | None = None) -> None:
    """Show the library's source, which is the solution."""
    cards.show(_solution_card(_chosen(name)))


def reset(name: str | None = None) -> None:
    """Put the untouched stub into a new cell below; what was passed stays passed."""
    chosen = _chosen(name)
    if cards.in_notebook():
        from IPython import get_ipython

        get_ipython().set_next_input(f"@exercise\n{stub_source(chosen.name)}")
    cards.show(_reset_card(chosen))


def skip(name: str | None = None) -> None:
    """Note that you go on without this exercise; the course's version does its work, and you can return at any time."""
    chosen = _chosen(name)

    def change(data):
        record = store.exercise_record(data, chosen.name)
        if record["state"] != PASSED:
            record["state"] = "skipped"

    store.update(change)
    text = f"Skipped. {lesson_of(chosen.name)} goes on with the course's version; nothing depends on it."
    cards.show(cards.Card("quiet", f"○ {chosen.name}", text))
