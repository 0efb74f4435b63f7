"""``check(name, answer)``: the whole judgement of one answer, with no notebook around it.

In order: is it still the stub? Does it take the right arguments? Does it do what the library does in every situation
(values, gradients, refusals, untouched inputs)? Do the stated properties hold? If not, which catalogued mistake does
the same thing?
"""

import contextlib
import functools
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from course_lib.exercises.catalogue import (
    Exercise,
    Mistake,
    get,
    is_untouched,
    source_of,
)
from course_lib.exercises.compare import alike, first_difference, note_on_dtype, second_call_difference
from course_lib.exercises.diagnosis import diagnose
from course_lib.exercises.observe import Observation, Situation, observe, same_start, situations
from course_lib.exercises.sandbox import raised_on_purpose, run_guarded, where_it_broke

NOT_ATTEMPTED, PASSED, FAILED, CRASHED, TIMED_OUT = "not attempted", "passed", "failed", "crashed", "timed out"


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
    with _bound_to_itself(name, answer), _one_thread():
        verdict = _judge(exercise, answer)
    return Verdict(**{**vars(verdict), "seconds": time.monotonic() - start})


@dataclass(frozen=True)
class _Difference:
    """The first situation in which the answer and the library part ways."""

    situation: Situation
    got: Observation
    expected: Observation
    sentence: str  # empty when the answer crashed
    numbers: str


def _judge(exercise: Exercise, answer: Any) -> Verdict:
    verdict = functools.partial(Verdict, exercise.name)
    filename, source = _file_and_source(answer)
    if source and is_untouched(exercise.name, source):
        return verdict(NOT_ATTEMPTED, f"Not attempted yet: about {exercise.minutes} minutes.")
    unfit = _wrong_object(exercise, answer)
    if unfit:
        return verdict(FAILED, unfit)

    seen, difference = _compare(exercise, answer)
    situation, got = seen[-1]
    printed = seen[0][1].outcome.printed
    if _is_still_a_stub(got):
        return verdict(NOT_ATTEMPTED, "There is still a `raise NotImplementedError` in it.", printed=printed)
    if got.outcome.timed_out:
        sentence = f"Stopped after {exercise.seconds:g} s: does a loop never end?{_line(got, filename)}"
        return verdict(TIMED_OUT, sentence, f"seen with: {situation.label}", printed)
    broken = [p.sentence for p, ok in zip(exercise.properties, _held(exercise, answer), strict=True) if ok is False]
    if difference is None and not broken:
        first = _expected(exercise.name)[0][1]
        return verdict(PASSED, "It does what the course's version does.", note_on_dtype(seen[0][1], first), printed)

    mistakes = _mistakes(exercise, answer, seen, difference)
    named = "\nAnd: ".join(m.sentence for m in mistakes)
    named = f"Two things at once. {named}" if len(mistakes) > 1 else named
    if difference is None:
        return verdict(FAILED, named or broken[0], "", printed, mistakes=mistakes)
    got = difference.got
    label = f"seen with: {difference.situation.label}" if named else ""  # otherwise the sentence says it
    details = [label, difference.numbers, _small_inputs(difference.situation)]
    if _crashed(got, difference.expected):
        line = _line(got, filename)
        crash = f"Your code stopped with {_raised(got.error)}{line}"
        if isinstance(got.error, ValueError | AssertionError) and raised_on_purpose(got.error):
            crash = f"Your code refuses an input that is allowed ({str(got.error) or 'without a message'}){line}"
        crash += _advice(got.error)
        details = "\n".join(filter(None, [*details, crash if named else ""]))
        return verdict(
            CRASHED, named or f"{crash}\nSeen with: {difference.situation.label}.", details, printed, mistakes=mistakes
        )
    where = f"\nSeen with: {difference.situation.label}."
    if difference.situation.training:  # which comes last: without it everything was right
        where += " It is right in eval mode: does something draw at random, or ask `self.training`, such as dropout?"
    sentence = named or "\n".join([*broken[:1], difference.sentence + where])
    pictures = _pictures(difference) if exercise.picture else None
    return verdict(FAILED, sentence, "\n".join(filter(None, details)), printed, mistakes=mistakes, pictures=pictures)


def _is_still_a_stub(got: Observation) -> bool:
    """Whether the answer itself says so; PyTorch raises the same error for operations that a dtype does not have."""
    return isinstance(got.error, NotImplementedError) and raised_on_purpose(got.error)


def _compare(exercise: Exercise, answer: Any) -> tuple[list[tuple[Situation, Observation]], _Difference | None]:
    """Run the answer beside the library in every situation; stop early when it times out or still is a stub."""
    deadline = time.monotonic() + exercise.seconds
    seen, difference = [], None
    for situation, expected in _expected(exercise.name):
        # Once it failed, a slow answer need not show the same in every layout and with every seed.
        if difference and situation.note and time.monotonic() > deadline - 0.75 * exercise.seconds:
            break
        got = observe(exercise, answer, situation, max(0.05, deadline - time.monotonic()))
        seen.append((situation, got))
        if got.outcome.timed_out or (_is_still_a_stub(got) and expected.error is None):
            break
        if difference is None:
            sentence, numbers = "", ""
            if not _crashed(got, expected):
                sentence, numbers = first_difference(exercise, got, expected, situation.inputs())
            if sentence or _crashed(got, expected):
                difference = _Difference(situation, got, expected, sentence, numbers)
    if difference is None and not seen[-1][1].outcome.timed_out:  # every single call is right
        for (situation, expected), (_, got) in zip(_expected(exercise.name), seen, strict=False):
            sentence, numbers = second_call_difference(exercise, got, expected)
            if sentence:
                return seen, _Difference(situation, got, expected, sentence, numbers)
    return seen, difference


def _mistakes(exercise: Exercise, answer: Any, seen: list, difference: _Difference | None) -> tuple[Mistake, ...]:
    """Name the mistake from the plain situations and, first of all, from the one that failed."""
    refused = {s for s, expected in _expected(exercise.name) if expected.error is not None}
    plain = [(s, got) for s, got in seen if not s.note and s not in refused]
    if difference is None:  # only a property failed: the same ones must fail, from the same initial weights
        held = _held(exercise, answer)
        return diagnose(exercise, plain, also=lambda c: _held(exercise, c) == held and same_start(exercise, c, answer))
    telling = (difference.situation, difference.got)
    outputs_differ = not alike(exercise, difference.got, difference.expected, gradients=False)
    return diagnose(exercise, [telling, *(p for p in plain if p[0] is not telling[0])], outputs_suffice=outputs_differ)


def _pictures(difference: _Difference) -> tuple[Tensor, Tensor] | None:
    outputs = [o.leaves.get("the output") for o in (difference.got, difference.expected)]
    return tuple(outputs) if all(isinstance(o, Tensor) for o in outputs) else None


def _crashed(got: Observation, expected: Observation) -> bool:
    return got.error is not None and expected.error is None


def _raised(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "a call that ends Python, such as exit()"
    text = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
    return text if len(text) < 600 else text[:600] + " …"


_ADVICE = {
    "Boolean value of Tensor with more than one value": "A tensor of several numbers is neither true nor false, so "
    "`if`, `and`, `or` cannot ask it. Whether an argument was given, asks `x is None`; what holds for each element, "
    "`torch.where`.",
    "only integer tensors of a single element": "A tensor of several numbers stands where Python wants one whole "
    "number (`range`, an index, a size). Arithmetic on tensors works on every element at once, without a loop.",
    "modified by an inplace operation": "Autograd needs a tensor that was changed in place: make a new one instead.",
    "Can't call numpy() on Tensor that requires grad": "NumPy knows no gradients: stay with torch's functions.",
    "'NoneType' object is not": "Something here may be None; ask `if … is not None` first.",
    "and 'NoneType'": "Something here may be None; ask `if … is not None` first.",
    "unsupported operand type(s) for ~": "Something here may be None; ask `if … is not None` first.",
    "only implemented on integer and Boolean": "Only a boolean mask can be inverted by `~`: `.bool()` makes it one.",
    "The shape of the mask": "Indexing with a mask does not broadcast it; `masked_fill` and `torch.where` do.",
    "not implemented for '": "This function of PyTorch does not know that dtype. Slices, `reshape`, `permute` and "
    "`rearrange` take every dtype.",
    "view size is not compatible": "`view` needs one memory layout; `reshape` works for all.",
}


def _advice(error: BaseException) -> str:
    """A sentence for the errors whose own words do not help."""
    return next((f"\n{advice}" for words, advice in _ADVICE.items() if words in str(error)), "")


def _small_inputs(situation: Situation) -> str:
    """The inputs as a learner would type them, where they are small enough to read."""
    shown = []
    for name, value in situation.inputs().items():
        if isinstance(value, Tensor):
            value = value.tolist() if value.numel() <= 8 else f"a tensor of shape {tuple(value.shape)}"
        shown.append(f"{name} = {str(value)[:120]}")
    return "inputs: " + ", ".join(shown)


def _line(got: Observation, filename: str | None) -> str:
    line = where_it_broke(got.error, filename)
    return f"\nat {line}" if line else ""


@functools.cache
def _expected(name: str) -> tuple[tuple[Situation, Observation], ...]:
    """What the library does in every situation of the exercise; the same for every answer, so kept."""
    exercise = get(name)
    return tuple((s, observe(exercise, exercise.target, s, exercise.seconds)) for s in situations(exercise))


def _held(exercise: Exercise, answer: Any) -> list[bool | None]:
    """For each property whether it holds; None where the property itself could not run."""
    outcomes = [run_guarded(lambda p=p: bool(p.holds(answer)), exercise.seconds) for p in exercise.properties]
    return [None if o.error is not None else o.value for o in outcomes]


@contextlib.contextmanager
def _one_thread():
    """The inputs are tiny: on a busy machine several threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
        function = inspect.unwrap(answer if inspect.isfunction(answer) else _first_method(answer))
        code = function.__code__  # of the learner's function, not of a decorator such as torch.no_grad()
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
