"""Guesses are kept, revealed honestly, and counted."""

import pytest

from course_lib.exercises import store
from course_lib.exercises.questions import calibration, predict, quiz


@pytest.fixture
def question(state):
    return predict("Which is larger?", ["two", "three"], name="size")


def test_a_guess_is_kept_and_judged(question):
    question.guess("three", confidence=90)
    card = question.reveal(1, because="Counting says so.")
    assert card.kind == "good" and "three. Counting says so." in repr(card)
    assert store.load()["questions"]["size"]["correct"] is True


def test_a_wrong_guess_is_told_kindly_and_counted(question):
    question.guess(0, confidence=50)
    card = question.reveal("three")
    assert card.kind == "warn" and "Your guess was: two." in repr(card)
    assert calibration(store.load()["questions"]) == [(50, 0, 1)]


def test_after_the_answer_the_first_guess_stands(question, capsys):
    question.guess(0)
    question.reveal(1)
    question.guess(1)
    assert store.load()["questions"]["size"]["guess"] == "two"
    assert "the first guess counts" in capsys.readouterr().out


def test_without_a_guess_the_answer_is_shown_and_nothing_is_counted(question):
    assert "You did not guess" in repr(question.reveal(1))
    assert calibration(store.load()["questions"]) == []


@pytest.mark.parametrize("bad", [2, -1, "four"])
def test_unknown_choices_are_refused(question, bad):
    with pytest.raises(ValueError, match=str(bad)):
        question.guess(bad)


def test_odd_questions_are_refused(state):
    with pytest.raises(ValueError, match="two different choices"):
        predict("?", ["same", "same"], name="x")
    with pytest.raises(ValueError, match="none of the choices"):
        quiz("?", {"a": "yes", "b": "no"}, answer="c", name="y")
    with pytest.raises(ValueError, match="confidence 60"):
        predict("?", ["a", "b"], name="z").guess(0, confidence=60)


def test_a_quiz_prints_its_choices_outside_a_notebook(state, capsys):
    quiz("Which?", {"a": "yes", "b": "no"}, answer="a", name="q")
    assert "• a" in capsys.readouterr().out
