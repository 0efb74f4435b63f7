"""Exercises that answer at once: define the function, run the cell, read what you did.

``from course_lib.exercises import exercise, hint, solution, reset, skip, predict, quiz, progress, my_code``
"""

from course_lib.exercises.answers import my_code
from course_lib.exercises.checking import Verdict, check
from course_lib.exercises.course_map import progress
from course_lib.exercises.notebook import exercise, hint, reset, skip, solution
from course_lib.exercises.questions import predict, quiz

__all__ = [
    "Verdict",
    "check",
    "exercise",
    "hint",
    "my_code",
    "predict",
    "progress",
    "quiz",
    "reset",
    "skip",
    "solution",
]
