"""What every exercise of the course must have. That right and wrong answers are told apart is the kill score's part."""

import ast

import pytest
import torch

from course_lib.exercises import catalogue
from course_lib.exercises.course_map import LESSONS

EXERCISES = [e for exercises in catalogue.lessons().values() for e in exercises]


@pytest.fixture(params=EXERCISES, ids=lambda e: e.name)
def exercise(request):
    return request.param


def test_lessons_with_exercises_are_on_the_map():
    assert set(catalogue.lessons()) <= {lesson.name for lesson in LESSONS}


def test_an_exercise_is_complete(exercise):
    assert 5 <= exercise.minutes <= 40
    assert len(exercise.mistakes) >= 4
    assert len(exercise.variants) >= 2
    assert len(exercise.hints) >= 3
    assert exercise.target.__doc__


def test_sentences_are_sentences(exercise):
    texts = [m.sentence for m in exercise.mistakes] + [p.sentence for p in exercise.properties]
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert text.rstrip("`'\")").endswith((".", "?", "!", "…")), text
        assert len(text) >= 20, text


def test_some_case_has_no_two_equal_axes(exercise):
    """Where an input has two axes of one size, swapping them can go unseen; so one case must keep them apart.

    A mask of who may look at whom is square by its nature.
    """

    def distinct(value):
        shape = list(getattr(value, "shape", ()))
        if getattr(value, "dtype", None) == torch.bool and len(shape) > 2 and shape[-1] == shape[-2]:
            shape.pop()
        sizes = [n for n in shape if n > 1]
        return len(sizes) == len(set(sizes))

    seeds = (case.inputs(torch.Generator().manual_seed(1)) for case in exercise.cases)
    assert any(all(map(distinct, inputs.values())) for inputs in seeds)


def test_the_stub_parses_and_holds_the_contract_but_no_answer(exercise):
    stub = catalogue.stub_source(exercise.name)
    ast.parse(stub)
    assert catalogue.STUB_BODY in stub
    assert catalogue.is_untouched(exercise.name, stub)
    assert not catalogue.is_untouched(exercise.name, catalogue.substituted(exercise))
