"""The learner's passed answers, kept as importable files, and handed back part by part.

``data/my_code/attention.py`` holds the answer as it passed, with the imports and helpers it needs. Nothing here is
ours: learners may read, edit and keep the files.
"""

import contextlib
import hashlib
import importlib.util
import inspect
import symtable
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from course_lib.exercises.catalogue import get, lesson_of, source_of
from course_lib.exercises.checking import check
from course_lib.exercises.store import now
from course_lib.paths import state_dir, write_atomically

_MARK = "# checked: "


def my_code_file(name: str) -> Path:
    """Where the learner's passed answer to exercise ``name`` is kept."""
    return state_dir() / "my_code" / f"{name}.py"


def save(name: str, answer: Any) -> str:
    """Keep a passed answer as a file that stands alone; return what went wrong, or an empty string."""
    try:
        body = _standalone(name, answer)
        text = f'"""My answer to `{name}` ({lesson_of(name)}), passed {now()}."""\n\n{body}\n'
        verdict = check(name, _load_text(name, text))  # it must work by itself, or a later lesson could not use it
        if not verdict:
            raise ValueError(f"outside of this notebook it fails: {verdict.sentence}")
        write_atomically(my_code_file(name), f"{text}\n{_MARK}{_digest(text)}\n")
        return ""
    except Exception as error:  # keeping a copy is a service: whatever goes wrong, the pass counts
        return f"It counts, but a copy for later lessons could not be kept ({type(error).__name__}: {error})."


def load(name: str) -> Any:
    """The kept answer, or None when there is none. Raises what the file raises; an edited file is checked again."""
    path = my_code_file(name)
    if not path.is_file():
        return None
    text, _, digest = path.read_text(encoding="utf-8").rpartition(f"\n{_MARK}")
    answer = _load_text(name, path.read_text(encoding="utf-8"), path)
    if digest.strip() != _digest(text):
        verdict = check(name, answer)
        if not verdict:
            raise ValueError(f"{path.name} was edited and no longer passes: {verdict.sentence}")
    return answer


def my_code(*names: str) -> SimpleNamespace:
    """Parts to build a model from: your own passed code where there is any, the course's where there is not.

    Prints whose part is whose. A kept answer that no longer works is named and replaced by the course's, part by part.

    Args:
        names: exercises, such as ``"attention"``.
    Returns: a namespace with one attribute per name.
    Raises: ValueError for a name that is no exercise.
    """
    parts, lines = SimpleNamespace(), []
    for name in names:
        answer, whose = get(name).target, "the course's"
        try:
            mine = load(name)
            if mine is not None:
                answer, whose = mine, "yours"
        except Exception as error:
            whose = f"the course's, because yours did not load ({type(error).__name__}: {error})"
        setattr(parts, name, answer)
        lines.append(f"  {name}: {whose}")
    print("Parts in use:\n" + "\n".join(lines))
    return parts


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


def _load_text(name: str, text: str, path: Path | None = None) -> Any:
    module_name = f"my_code_{name}"
    if path is not None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        module = importlib.util.module_from_spec(spec)
    else:
        module = types.ModuleType(module_name)
    sys.modules[module_name] = module  # classes and dataclasses look their module up
    exec(compile(text, str(path or f"<{module_name}>"), "exec", dont_inherit=True), vars(module))
    return getattr(module, name)


# ------------------------------------------------------------------------------- a source that needs nothing around it


def _standalone(name: str, answer: Any) -> str:
    """The answer's source, preceded by the imports, helpers and constants of the notebook that it mentions."""
    imports: dict[str, None] = {}
    pieces: list[str] = []
    _collect(name, answer, imports, pieces, seen=set())
    return "\n".join(sorted(imports)) + "\n\n\n" + "\n\n".join(p.strip() + "\n" for p in pieces)


def _collect(name: str, obj: Any, imports: dict[str, None], pieces: list[str], seen: set[str]) -> None:
    if name in seen:
        return
    seen.add(name)
    source = source_of(obj)
    namespace = _globals_of(obj)
    for used in names_taken(source):
        if used in seen or used not in namespace:
            continue
        value = getattr(namespace[used], "course_version", namespace[used])  # a stand-in is the library's object
        if isinstance(value, types.ModuleType):
            imports[_import_line(value.__name__, used)] = None
        elif _importable(value):
            alias = "" if value.__name__ == used else f" as {used}"
            imports[f"from {value.__module__} import {value.__name__}{alias}"] = None
        elif inspect.isfunction(value) or inspect.isclass(value):
            _collect(used, value, imports, pieces, seen)
        elif isinstance(value, bool | int | float | str | tuple | None):
            pieces.append(f"{used} = {value!r}")
            seen.add(used)
        elif type(value).__module__ == "typing":
            imports[f"from typing import {used}"] = None
        elif home := _home(used, value):
            imports[f"from {home} import {used}"] = None
    pieces.append(source)


def names_taken(source: str) -> list[str]:
    """The names that a source takes from around it; not its arguments and local variables, whatever they are called."""
    found, tables = set(), [symtable.symtable(source, "<answer>", "exec")]
    while tables:
        table = tables.pop()
        outermost = table.get_type() == "module"
        for symbol in table.get_symbols():
            taken = symbol.is_referenced() and not symbol.is_assigned() if outermost else symbol.is_global()
            if taken:
                found.add(symbol.get_name())
        tables += table.get_children()
    return sorted(found)


def _globals_of(obj: Any) -> dict[str, Any]:
    if inspect.isclass(obj):
        methods = [f for f in vars(obj).values() if inspect.isfunction(f)]
        return methods[0].__globals__ if methods else {}
    return inspect.unwrap(obj).__globals__


def _import_line(module: str, alias: str) -> str:
    if module == alias:
        return f"import {module}"
    return f"import {module} as {alias}"


def _home(name: str, value: Any) -> str | None:
    """The module of the course that holds an object without a name of its own: a partial, an alias of types."""
    modules = [m for m in sorted(sys.modules) if m.startswith("course_lib.") and "exercises" not in m]
    return next((m for m in modules if getattr(sys.modules[m], name, None) is value), None)


def _importable(value: Any) -> bool:
    module, name = getattr(value, "__module__", None), getattr(value, "__name__", None)
    if not module or not name or module == "__main__":
        return False
    with contextlib.suppress(Exception):
        return getattr(sys.modules.get(module) or importlib.import_module(module), name, None) is value
    return False
