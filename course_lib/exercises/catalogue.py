"""What an exercise is: the library's own function or class, plus the ways people get it right and wrong.

A lesson lists its exercises in ``course_lib/exercises/lessons/lNN_name.py``. Nothing here runs a learner's code.
"""

import ast
import functools
import importlib
import inspect
import itertools
import linecache
import math
import pkgutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import einops
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

STUB_BODY = "raise NotImplementedError  # your code here"


@dataclass(frozen=True)
class Case:
    """One situation in which the learner's object must behave like the library's.

    ``inputs(generator)`` returns keyword arguments. For a class, ``init`` holds the constructor's keyword arguments and
    the inputs go to the instance. ``call(obj, **inputs)`` replaces the plain call where a protocol needs more steps.
    """

    label: str
    inputs: Callable[[torch.Generator], dict[str, Any]]
    init: dict[str, Any] | None = None
    call: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Property:
    """A truth about right answers, in the words a learner should read when it does not hold."""

    sentence: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that people really write: a substitution in the library's source, or a whole answer."""

    sentence: str
    old: str | None = None
    new: str | None = None
    code: str | None = None


@dataclass(frozen=True)
class Variant:
    """A right answer in another style; it must pass."""

    name: str
    code: str


@dataclass(frozen=True)
class Hint:
    """A nudge, titled by the symptom that sends a learner here."""

    symptom: str
    text: str


@dataclass(frozen=True)
class Exercise:
    """One exercise: ``target`` is a public function or class of ``course_lib`` and is the solution.

    Args:
        minutes: honest working time of a learner.
        given: methods of a class that the stub shows whole; the others are the learner's.
        gradients: compare gradients too (True wherever the function belongs into a network).
        picture: show the output beside the expected one as images when the values differ.
        tolerance: relative to the largest expected value; room for another order of float32 additions.
        seconds: a check that runs longer than this is stopped.
    """

    target: Callable
    minutes: int
    cases: Sequence[Case]
    mistakes: Sequence[Mistake]
    variants: Sequence[Variant]
    hints: Sequence[Hint]
    properties: Sequence[Property] = ()
    given: Sequence[str] = ()
    gradients: bool = True
    picture: bool = False
    tolerance: float = 1e-4
    seconds: float = 20.0

    @property
    def name(self) -> str:
        return self.target.__name__

    @property
    def is_class(self) -> bool:
        return inspect.isclass(self.target)


def randn(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal values; the usual input of a case."""
    return torch.randn(*shape, generator=generator)


# ---------------------------------------------------------------------------------------------------- finding exercises


@functools.cache
def lessons() -> dict[str, tuple[Exercise, ...]]:
    """Every lesson that has exercises, in order: ``{"02_transformer": (Exercise, …), …}``."""
    package = importlib.import_module("course_lib.exercises.lessons")
    found = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name.startswith("l")):
        found[module[1:]] = tuple(importlib.import_module(f"{package.__name__}.{module}").EXERCISES)
    names = [e.name for exercises in found.values() for e in exercises]
    assert len(set(names)) == len(names), f"exercise names must be unique in the course: {sorted(names)}"
    return found


def get(name: str) -> Exercise:
    """The exercise with that function or class name; ``ValueError`` with the nearest names when there is none."""
    known = {e.name: e for exercises in lessons().values() for e in exercises}
    if name in known:
        return known[name]
    import difflib

    near = difflib.get_close_matches(name, known, n=3) or sorted(known)
    raise ValueError(f"there is no exercise called {name!r}; did you rename it? Known names: {', '.join(near)}")


def lesson_of(name: str) -> str:
    """The lesson that holds the exercise ``name``, such as ``"02_transformer"``."""
    return next(lesson for lesson, exercises in lessons().items() if any(e.name == name for e in exercises))


# ------------------------------------------------------------------------------------------------------------- sources


def source_of(obj: Any) -> str:
    """Source of a function or class without its decorators, also for classes defined in a notebook.

    ``inspect.getsource`` cannot find classes of ``__main__`` before Python 3.13, so we ask one of their methods.
    Raises ``OSError`` when there is no source to be found.
    """
    obj = inspect.unwrap(obj)
    codes = [obj.__code__] if inspect.isfunction(obj) else _method_codes(obj)
    for code in codes:
        lines = linecache.getlines(code.co_filename)
        try:
            tree = ast.parse("".join(lines))
        except SyntaxError:
            continue
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef) if inspect.isfunction(obj) else (ast.ClassDef,)
        for node in ast.walk(tree):
            if isinstance(node, kinds) and node.name == obj.__name__:
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                if first <= code.co_firstlineno <= node.end_lineno:
                    return textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno]))
    raise OSError(f"the source of {obj!r} is not to be found")


def _method_codes(cls: type) -> list:
    functions = (inspect.unwrap(getattr(v, "__func__", v)) for v in vars(cls).values())
    return [
        f.__code__ for f in functions if inspect.isfunction(f) and f.__qualname__.startswith(cls.__qualname__ + ".")
    ]


def stub_source(name: str) -> str:
    """The cell that a learner fills in: signature and docstring of the library, body removed."""
    exercise = get(name)
    source = source_of(exercise.target)
    node = ast.parse(source).body[0]
    if not exercise.is_class:
        return _stub_of_function(node, source.splitlines())
    lines, kept, last = source.splitlines(), [], 0
    for part in node.body:
        first = min([part.lineno, *(d.lineno for d in getattr(part, "decorator_list", []))])
        kept += lines[last : first - 1]
        if isinstance(part, ast.FunctionDef) and part.name not in exercise.given:
            kept += lines[first - 1 : part.lineno - 1] + _stub_of_function(part, lines).splitlines()
        else:
            kept += lines[first - 1 : part.end_lineno]
        last = part.end_lineno
    return "\n".join(kept)


def _stub_of_function(node: ast.FunctionDef, lines: list[str]) -> str:
    docstring = ast.get_docstring(node) is not None
    head_end = node.body[0].end_lineno if docstring else node.body[0].lineno - 1
    indent = " " * (node.col_offset + 4)
    return "\n".join([*lines[node.lineno - 1 : head_end], indent + STUB_BODY])


def is_untouched(name: str, source: str) -> bool:
    """True when ``source`` is still the stub; comments, docstrings and annotations do not count."""
    return _skeleton(source) == _skeleton(stub_source(name))


def _skeleton(source: str) -> str:
    tree = ast.parse(textwrap.dedent(source))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            node.decorator_list = []
            if ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
    return ast.dump(tree)


# ----------------------------------------------------------------------------------------------------- making answers

_count = itertools.count()


def define(name: str, code: str, home: Any) -> Any:
    """Execute ``code`` as if it stood in the module of ``home``; return its ``name``."""
    module = sys.modules[home.__module__]
    extras = dict(torch=torch, nn=nn, F=F, math=math, np=np, einops=einops, rearrange=einops.rearrange, Tensor=Tensor)
    namespace = {**extras, **vars(module)}
    filename = f"<answer {next(_count)} to {name}>"
    code = textwrap.dedent(code).strip() + "\n"
    linecache.cache[filename] = (len(code), None, code.splitlines(keepends=True), filename)
    exec(compile(code, filename, "exec", dont_inherit=True), namespace)
    return namespace[name]


def substituted(exercise: Exercise, *changes: Mistake) -> str:
    """The library's code, docstrings left out, with the changes applied.

    Raises ``ValueError`` unless each old text occurs exactly once.
    """
    source = _without_docstrings(textwrap.dedent(inspect.getsource(inspect.unwrap(exercise.target))))
    for change in changes:
        if source.count(change.old) != 1:
            raise ValueError(f"{change.old!r} occurs {source.count(change.old)} times in the source of {exercise.name}")
        source = source.replace(change.old, change.new)
    return source


def _without_docstrings(source: str) -> str:
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            text = node.body[0]
            lines[text.lineno - 1 : text.end_lineno] = [""] * (text.end_lineno - text.lineno + 1)
    return "\n".join(lines) + "\n"


def wrong_answer(exercise: Exercise, mistake: Mistake) -> Any:
    """The catalogued mistake as a callable."""
    code = mistake.code if mistake.code is not None else substituted(exercise, mistake)
    return define(exercise.name, code, exercise.target)
