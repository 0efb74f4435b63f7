"""``check(name, answer)``: the whole judgement of one answer, with no notebook around it.

In order: is it still the stub? Does it take the right arguments? Does it do what the library does in every situation
(values, gradients, refusals, untouched inputs)? Do the stated properties hold? If not, which catalogued mistake does
the same thing?
"""

import contextlib
import functools
import inspect
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from course_lib.exercises.catalogue import (
    Exercise,
    Mistake,
    define,
    get,
    is_untouched,
    source_of,
    substituted,
    wrong_answer,
)
from course_lib.exercises.compare import alike, first_difference, note_on_dtype
from course_lib.exercises.observe import Observation, Situation, observe, same_start, situations
from course_lib.exercises.sandbox import run_guarded, where_it_broke

NOT_ATTEMPTED, PASSED, FAILED, CRASHED, TIMED_OUT = "not attempted", "passed", "failed", "crashed", "timed out"
DIAGNOSIS_SECONDS = 4.0  # the most that looking for the mistake's name may take


@dataclass(frozen=True)
class Verdict:
    """What ``check`` found; true when the answer passed."""

    name: str
    state: str
    sentence: str  # what the learner reads
    details: str = ""  # where and by how much: folded away in the notebook
    printed: str = ""  # what the answer printed during the first situation
    seconds: float = 0.0
    mistakes: tuple[Mistake, ...] = ()  # the catalogued mistakes that the answer behaves like
    pictures: tuple[Tensor, Tensor] | None = field(default=None, compare=False)  # the output, the expected one

    def __bool__(self) -> bool:
        return self.state == PASSED

    def __str__(self) -> str:
        mark = {PASSED: "[ok]", NOT_ATTEMPTED: "[todo]"}.get(self.state, "[not yet]")
        return "\n  ".join(filter(None, [f"{mark} {self.name}: {self.state}. {self.sentence}", self.details]))


def check(name: str, answer: Any) -> Verdict:
    """Judge ``answer`` as a solution of the exercise ``name``.

    Args:
        name: name of the exercise, which is the name of the library's function or class.
        answer: a function or class. It is run guarded: it may loop, exit, print or reseed without harm.
    Raises:
        ValueError: there is no such exercise. Nothing that the answer does raises.
    """
    exercise, start = get(name), time.monotonic()
    with _bound_to_itself(name, answer):
        verdict = _judge(exercise, answer)
    return Verdict(**{**vars(verdict), "seconds": time.monotonic() - start})


def _judge(exercise: Exercise, answer: Any) -> Verdict:
    verdict = functools.partial(Verdict, exercise.name)
    filename, source = _file_and_source(answer)
    if source and is_untouched(exercise.name, source):
        return verdict(NOT_ATTEMPTED, f"Not attempted yet: about {exercise.minutes} minutes.")
    unfit = _wrong_object(exercise, answer)
    if unfit:
        return verdict(FAILED, unfit)

    deadline = time.monotonic() + exercise.seconds
    seen: list[tuple[Situation, Observation]] = []
    failure = None  # (situation, sentence, numbers) of the first difference
    for situation, expected in _expected(exercise.name):
        got = observe(exercise, answer, situation, max(0.05, deadline - time.monotonic()))
        seen.append((situation, got))
        if isinstance(got.error, NotImplementedError) and expected.error is None:
            return verdict(
                NOT_ATTEMPTED, "There is still a `raise NotImplementedError` in it.", printed=got.outcome.printed
            )
        if got.outcome.timed_out:
            line = where_it_broke(got.error, filename)
            text = f"Stopped after {exercise.seconds:g} s: does a loop never end?" + (
                f"\nIt was at {line}" if line else ""
            )
            return verdict(TIMED_OUT, text, _where(situation), got.outcome.printed)
        if failure is None:
            sentence, numbers = ("crash", "") if _crashed(got, expected) else ("", "")
            if not sentence:
                sentence, numbers = first_difference(exercise, got, expected, situation.inputs())
            failure = (situation, got, expected, sentence, numbers) if sentence else None
        # A slow answer is judged on the plain cases first; the other layouts and seeds need not all run once it failed.
        if failure and situation.note and time.monotonic() > deadline - 0.75 * exercise.seconds:
            break

    printed = seen[0][1].outcome.printed
    broken = [p.sentence for p, ok in zip(exercise.properties, _held(exercise, answer), strict=True) if ok is False]
    if failure is None and not broken:
        return verdict(
            PASSED, "Your code is in use from here on.", note_on_dtype(seen[0][1], _expected(exercise.name)[0][1])
        )

    mistakes = _diagnose(exercise, answer, seen, failure[0] if failure else None)
    if failure is None:
        return verdict(FAILED, _named(mistakes) or broken[0], "", printed, mistakes=mistakes)
    situation, got, expected, sentence, numbers = failure
    details = "; ".join(filter(None, [_where(situation), numbers]))
    if _crashed(got, expected):
        line = where_it_broke(got.error, filename)
        raised = _raised(got.error)
        details = "; ".join(filter(None, [line, raised, details])) if mistakes else details
        sentence = f"Your code stopped with {raised}" + (f"\nat {line}" if line else "")
        return verdict(CRASHED, _named(mistakes) or sentence, details, printed, mistakes=mistakes)
    outputs = [o.leaves.get("the output", next(iter(o.leaves.values()), None)) for o in (got, expected)]
    pictures = tuple(outputs) if exercise.picture and all(isinstance(o, Tensor) for o in outputs) else None
    sentence = _named(mistakes) or (broken[0] if broken else sentence)
    return verdict(FAILED, sentence, details, printed, mistakes=mistakes, pictures=pictures)


def _crashed(got: Observation, expected: Observation) -> bool:
    return got.error is not None and expected.error is None


def _raised(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "a call that ends Python, such as exit()"
    text = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
    return text if len(text) < 600 else text[:600] + " …"


def _where(situation: Situation) -> str:
    return f"seen with: {situation.label}"


@functools.cache
def _expected(name: str) -> tuple[tuple[Situation, Observation], ...]:
    """What the library does in every situation of the exercise; the same for every answer, so kept."""
    exercise = get(name)
    return tuple((s, observe(exercise, exercise.target, s, exercise.seconds)) for s in situations(exercise))


def _held(exercise: Exercise, answer: Any) -> list[bool | None]:
    """For each property whether it holds; None where the property itself could not run."""
    outcomes = [run_guarded(lambda p=p: bool(p.holds(answer)), exercise.seconds) for p in exercise.properties]
    return [None if o.error is not None else o.value for o in outcomes]


# ----------------------------------------------------------------------------------------------------------- diagnosis


def _diagnose(exercise: Exercise, answer: Any, seen: list, failing: Situation | None) -> tuple[Mistake, ...]:
    """The catalogued mistake, or the pair of them, that does exactly what the answer does."""
    deadline = time.monotonic() + DIAGNOSIS_SECONDS
    expected = dict(_expected(exercise.name))
    chosen = [(s, o) for s, o in seen if s is failing or not (s.note or expected[s].error)]
    chosen.sort(key=lambda pair: pair[0] is not failing)  # the failing one first: it tells most answers apart
    held = _held(exercise, answer)

    def does_the_same(candidate: Any, gradients: bool) -> bool:
        same = all(
            time.monotonic() < deadline and alike(exercise, observe(exercise, candidate, s, 1.0), o, gradients)
            for s, o in chosen
        )
        if failing is not None or not same:
            return same
        # Only a property failed: then the same properties must fail, from the same initial weights.
        return _held(exercise, candidate) == held and same_start(exercise, candidate, answer)

    pairs = itertools.combinations([m for m in exercise.mistakes if m.old is not None], 2)
    # A second look compares outputs alone, unless the gradient is the only thing that is wrong.
    only_gradients = failing is None or alike(exercise, chosen[0][1], expected[failing], gradients=False)
    for gradients in (True,) if only_gradients else (True, False):
        for mistake in exercise.mistakes:
            with contextlib.suppress(ValueError):  # a catalogue that no longer fits the library fails in the tests
                if does_the_same(wrong_answer(exercise, mistake), gradients):
                    return (mistake,)
    for pair in pairs:
        if time.monotonic() > deadline:
            break
        with contextlib.suppress(ValueError, SyntaxError):  # the two changes overlap
            if does_the_same(define(exercise.name, substituted(exercise, *pair), exercise.target), True):
                return pair
    return ()


def _named(mistakes: tuple[Mistake, ...]) -> str:
    if len(mistakes) < 2:
        return "".join(m.sentence for m in mistakes)
    return f"Two things at once. {mistakes[0].sentence}\nAnd: {mistakes[1].sentence}"


# ---------------------------------------------------------------------------------------------------- the object itself


def _wrong_object(exercise: Exercise, answer: Any) -> str:
    kind = "class" if exercise.is_class else "function"
    if inspect.isclass(answer) != exercise.is_class or not callable(answer):
        return f"`{exercise.name}` must be a {kind}, got {type(answer).__name__}."
    if not exercise.is_class:
        return _wrong_parameters(exercise.name, exercise.target, answer)
    for method, theirs in vars(exercise.target).items():
        if inspect.isfunction(theirs) and (not method.startswith("_") or method == "__init__"):
            mine = getattr(answer, method, None)
            if not callable(mine):
                return f"The class has no method `{method}`; the stub has one."
            problem = _wrong_parameters(f"{exercise.name}.{method}", theirs, mine)
            if problem:
                return problem
    return ""


def _wrong_parameters(name: str, theirs: Callable, mine: Callable) -> str:
    """Arguments are passed by name, so the stub's names must be accepted and nothing else required."""
    try:
        expected, own = inspect.signature(inspect.unwrap(theirs)), inspect.signature(mine)
    except (TypeError, ValueError):
        return ""
    if any(p.kind is p.VAR_KEYWORD for p in own.parameters.values()):
        return ""
    missing = [p for p in expected.parameters if p not in own.parameters]
    extra = [p.name for p in own.parameters.values() if p.name not in expected.parameters and p.default is p.empty]
    if missing or extra:
        return f"`{name}` must take ({', '.join(expected.parameters)}); yours takes ({', '.join(own.parameters)})."
    return ""


def _file_and_source(answer: Any) -> tuple[str | None, str]:
    try:
        source = source_of(answer)
        code = answer.__code__ if inspect.isfunction(answer) else _first_method(answer).__code__
        return code.co_filename, source
    except (OSError, AttributeError, TypeError):
        return None, ""


def _first_method(cls: type) -> Any:
    return next(f for f in vars(cls).values() if inspect.isfunction(f))


@contextlib.contextmanager
def _bound_to_itself(name: str, answer: Any):
    """While it is judged, the answer's own name means the answer.

    Otherwise a recursive function, or ``super(Name, self)``, would reach whatever the name meant before: perhaps the
    library's version, and a wrong answer would pass. What the answer does to its globals is undone afterwards.
    """
    function = inspect.unwrap(answer) if callable(answer) else None
    with contextlib.suppress(StopIteration):
        function = _first_method(answer) if inspect.isclass(answer) else function
    namespace = getattr(function, "__globals__", None)
    if namespace is None:
        yield
        return
    before = dict(namespace)
    namespace[name] = answer
    try:
        yield
    finally:
        for key in namespace.keys() - before.keys():
            del namespace[key]
        namespace.update(before)
