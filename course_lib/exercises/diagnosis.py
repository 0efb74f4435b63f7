"""Which catalogued mistake does the same thing as an answer, however either of them is written?"""

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

from course_lib.exercises.catalogue import Exercise, Mistake, define, get, substituted, wrong_answer
from course_lib.exercises.compare import alike
from course_lib.exercises.observe import Observation, Situation, observe

PAIRS_SECONDS = 1.5  # processor time for trying two mistakes at once, which is a bonus


def diagnose(
    exercise: Exercise,
    seen: Sequence[tuple[Situation, Observation]],
    outputs_suffice: bool = False,
    also: Callable[[Any], bool] | None = None,
) -> tuple[Mistake, ...]:
    """The catalogued mistake, or the pair of them, that does exactly what was seen; empty when there is none.

    Args:
        seen: what the answer did, the most telling situation first.
        outputs_suffice: when no mistake agrees in gradients too, accept one that agrees in outputs alone.
        also: where values are right, the condition on the mistake as a callable that tells instead; then it must
            explain everything.
    """
    fits = also or (lambda candidate: True)
    for gradients in (True, False) if outputs_suffice else (True,):
        for index, mistake in enumerate(exercise.mistakes):
            # A substitution that no longer fits the library raises; the tests see that, a learner must not.
            with contextlib.suppress(ValueError):
                if all(alike(exercise, _mistake_does(exercise.name, index, s), o, gradients) for s, o in seen) and fits(
                    wrong_answer(exercise, mistake)
                ):
                    return (mistake,)
    return _two_at_once(exercise, seen, fits) or (() if also else _nearly(exercise, seen))


def _two_at_once(exercise: Exercise, seen: Sequence, fits: Callable[[Any], bool]) -> tuple[Mistake, ...]:
    """A pair of mistakes that together do exactly what was seen."""
    deadline = time.process_time() + PAIRS_SECONDS
    for pair in itertools.combinations([m for m in exercise.mistakes if m.old is not None], 2):
        if time.process_time() > deadline:
            break
        with contextlib.suppress(ValueError, SyntaxError):  # the two changes overlap
            both = define(exercise.name, substituted(exercise, *pair), exercise.target)
            if all(alike(exercise, observe(exercise, both, s, exercise.seconds), o) for s, o in seen) and fits(both):
                return pair
    return ()


def _nearly(exercise: Exercise, seen: Sequence) -> tuple[Mistake, ...]:
    """The mistake that explains the most telling situation and more than half of all; the rest is another matter.

    Somebody who takes the wrong remainder has rarely thought of the empty room yet: they hear about the remainder.
    """
    best, most = (), 0.5
    for index, mistake in enumerate(exercise.mistakes):
        with contextlib.suppress(ValueError):
            agree = [alike(exercise, _mistake_does(exercise.name, index, s), o) for s, o in seen[:1]]
            if agree == [True] and seen[0][1].error is None:
                agree += [alike(exercise, _mistake_does(exercise.name, index, s), o) for s, o in seen[1:]]
                if len(seen) > 1 and sum(agree) / len(agree) > most:
                    best, most = (mistake,), sum(agree) / len(agree)
    return best


@functools.cache
def _mistake_does(name: str, index: int, situation: Situation) -> Observation:
    """What a catalogued mistake does in a situation; the same for every learner, so kept."""
    exercise = get(name)
    return observe(exercise, wrong_answer(exercise, exercise.mistakes[index]), situation, exercise.seconds)
