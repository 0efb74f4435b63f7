"""The proof that the exercises can be trusted: ``python -m course_lib.exercises.killscore``.

For every exercise: the stub counts as not attempted, the library's own source passes, every variant passes, and every
catalogued mistake fails with its own sentence.
"""

import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from course_lib.exercises.catalogue import Exercise, define, get, lessons, stub_source, substituted, wrong_answer
from course_lib.exercises.checking import NOT_ATTEMPTED, PASSED, check


@dataclass(frozen=True)
class Trial:
    """One answer of known worth, and what the engine said."""

    exercise: str
    kind: str  # stub, library, variant or mistake
    label: str
    ok: bool
    said: str


def trials(exercise: Exercise) -> Iterator[Trial]:
    """Check the stub, the library, each variant and each mistake of one exercise."""

    def trial(kind, label, answer, right):
        verdict = check(exercise.name, answer)
        return Trial(exercise.name, kind, label, right(verdict), str(verdict))

    make = lambda code: define(exercise.name, code, exercise.target)  # noqa: E731
    yield trial("stub", "stub", make(stub_source(exercise.name)), lambda v: v.state == NOT_ATTEMPTED)
    yield trial("library", "library", make(substituted(exercise)), lambda v: v.state == PASSED)
    for variant in exercise.variants:
        yield trial("variant", variant.name, make(variant.code), lambda v: v.state == PASSED)
    for mistake in exercise.mistakes:
        named = lambda v, m=mistake: v.state != PASSED and v.mistakes == (m,)  # noqa: E731
        yield trial("mistake", mistake.sentence, wrong_answer(exercise, mistake), named)


def trials_of(name: str) -> list[Trial]:
    """All trials of the exercise ``name``; a process of its own may run them."""
    return list(trials(get(name)))


def main() -> int:
    """Print every failure and the score; 1 when anything failed. Each core takes one exercise at a time."""
    every: list[Trial] = []
    named = [(lesson, exercise) for lesson, exercises in lessons().items() for exercise in exercises]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ProcessPoolExecutor(min(cores, 4), multiprocessing.get_context("spawn")) as pool:
        results = pool.map(trials_of, [exercise.name for _, exercise in named])
        for (lesson, exercise), found in zip(named, results, strict=True):
            every += found
            caught, accepted = (sum(t.ok for t in found if t.kind == kind) for kind in ("mistake", "variant"))
            print(f"{lesson:<20} {exercise.name:<34} mistakes {caught}/{len(exercise.mistakes)} · "
                  f"variants {accepted}/{len(exercise.variants)}", flush=True)  # fmt: skip
    for t in every:
        if not t.ok:
            print(f"FAILED {t.exercise}, {t.kind} {t.label!r}:\n  {t.said}")
    mistakes, variants = ([t for t in every if t.kind == kind] for kind in ("mistake", "variant"))
    print(f"mistakes caught {sum(t.ok for t in mistakes)}/{len(mistakes)} · "
          f"variants accepted {sum(t.ok for t in variants)}/{len(variants)}")  # fmt: skip
    return 0 if all(t.ok for t in every) else 1


if __name__ == "__main__":
    sys.exit(main())
