"""Guess before you look: ``predict`` takes a guess before a result is known, ``quiz`` asks about what was just read.

Both record the guess with the progress, so that learners see how well their confidence matches their hits.
"""

import html
from collections.abc import Sequence
from typing import Any

from course_lib.exercises import cards
from course_lib.exercises.store import load, now, update

CONFIDENCES = (50, 70, 90)  # percent


def _record(name: str) -> dict[str, Any]:
    return load()["questions"].get(name, {})


class Prediction:
    """A question whose answer a later cell will measure. Made by ``predict``; ``reveal`` closes it."""

    def __init__(self, question: str, choices: Sequence[str], name: str):
        if len(set(choices)) != len(choices) or len(choices) < 2:
            raise ValueError(f"a question needs at least two different choices, got {list(choices)!r}")
        self.question, self.choices, self.name = question, list(choices), name

    def guess(self, choice: str | int, confidence: int = 70) -> None:
        """Commit to a choice (its text or number, from 0) and to how sure you are, in percent (50, 70 or 90).

        Raises ``ValueError`` for an unknown choice or confidence.
        """
        index = choice if isinstance(choice, int) else self._index(choice)
        if not 0 <= index < len(self.choices):
            raise ValueError(f"choice {choice!r} does not exist; choose a number from 0 to {len(self.choices) - 1}")
        if confidence not in CONFIDENCES:
            raise ValueError(f"confidence {confidence!r} is not one of {CONFIDENCES}")
        if "answer" in _record(self.name):
            print("This one is revealed already: the first guess counts.")
            return
        new = {"guess": self.choices[index], "confidence": confidence, "time": now()}
        update(lambda data: data["questions"].update({self.name: new}))

    def _index(self, choice: str) -> int:
        if choice not in self.choices:
            raise ValueError(f"{choice!r} is none of the choices {self.choices}")
        return self.choices.index(choice)

    def reveal(self, answer: int | str, because: str = "") -> cards.Card:
        """Close the question with the measured answer (number or text of a choice) and say why."""
        right = self.choices[answer] if isinstance(answer, int) else self.choices[self._index(answer)]
        guess = _record(self.name).get("guess")
        if guess is not None:
            update(lambda data: data["questions"][self.name].update(answer=right, correct=guess == right))
        if guess is None:
            return cards.Card(
                "quiet", self.question, f"{right}. {because}".strip(), note="You did not guess this time."
            )
        note = "You had it right." if guess == right else f"Your guess was: {guess}."
        return cards.Card("good" if guess == right else "warn", self.question, f"{right}. {because}".strip(), note=note)

    def __repr__(self) -> str:
        return f"predict({self.question!r}, guess={_record(self.name).get('guess')!r})"

    def _card(self) -> cards.Card:
        guess = _record(self.name).get("guess")
        listed = "\n".join(f"{i}. {c}" for i, c in enumerate(self.choices))
        return cards.Card(
            "quiet", f"Guess first: {self.question}", listed, note=f"Your guess: {guess}." if guess else ""
        )


def predict(question: str, choices: Sequence[str], *, name: str) -> Prediction:
    """Ask for a guess before a result is shown; a later cell calls ``reveal`` on what this returns.

    Args:
        name: unique in the course; the guess is kept under it.
    """
    prediction = Prediction(question, choices, name)
    cards.show(prediction._card())
    cards.show_widget(lambda: _buttons(prediction))
    return prediction


def _buttons(prediction: Prediction):
    import ipywidgets as widgets

    guess = _record(prediction.name)
    chosen = guess.get("guess") if guess.get("guess") in prediction.choices else None
    choice = widgets.RadioButtons(options=prediction.choices, value=chosen)
    choice.layout.width = "auto"
    sure = widgets.ToggleButtons(options=[(f"{c} % sure", c) for c in CONFIDENCES], value=guess.get("confidence", 70))
    sure.style.button_width = "8em"
    kept = widgets.HTML(
        "Your guess is kept. It can change until the answer is shown." if guess else "Choose, then go on."
    )

    def keep(_):
        if choice.value is not None:
            prediction.guess(choice.value, sure.value)
            kept.value = f"Kept: <b>{html.escape(choice.value)}</b>, {sure.value} % sure."

    choice.observe(keep, "value")
    sure.observe(keep, "value")
    return widgets.VBox([choice, sure, kept])


def quiz(question: str, choices: dict[str, str], *, answer: str, name: str) -> None:
    """A multiple-choice question with feedback on every choice.

    Args:
        choices: choice -> what to tell somebody who chose it.
        answer: the right choice.
        name: unique in the course.
    Raises:
        ValueError: the answer is not among the choices.
    """
    if answer not in choices:
        raise ValueError(f"the answer {answer!r} is none of the choices {list(choices)}")
    cards.show(cards.Card("quiet", question, "\n".join(f"• {c}" for c in choices)))

    def buttons():
        import ipywidgets as widgets

        feedback = widgets.HTML()

        def choose(text):
            correct = text == answer
            new = {"guess": text, "answer": answer, "correct": correct, "time": now()}
            update(lambda data: data["questions"].setdefault(name, new))  # the first try counts
            mark = "✓ Right." if correct else "✗ Not this one."
            feedback.value = f"<b>{mark}</b> {html.escape(choices[text])}"

        made = []
        for text in choices:
            button = widgets.Button(description=text, layout=widgets.Layout(width="auto"))
            button.on_click(lambda b: choose(b.description))
            made.append(button)
        return widgets.VBox([widgets.HBox(made, layout=widgets.Layout(flex_flow="row wrap")), feedback])

    cards.show_widget(buttons)


def calibration(questions: dict[str, dict[str, Any]]) -> list[tuple[int, int, int]]:
    """``(confidence, right, asked)`` for each confidence that was used, from saved progress."""
    closed = [q for q in questions.values() if "correct" in q and "confidence" in q]
    rows = []
    for confidence in CONFIDENCES:
        group = [q for q in closed if q["confidence"] == confidence]
        if group:
            rows.append((confidence, sum(q["correct"] for q in group), len(group)))
    return rows
