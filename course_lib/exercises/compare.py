"""Where two observations differ, said so that a learner can act on it: structure, shape, type, then values.

``first_difference`` speaks to a learner; ``alike`` decides whether a catalogued mistake behaves like their code.
"""

import math
import typing
from typing import Any

import torch
from torch import Tensor

from course_lib.exercises.catalogue import Exercise
from course_lib.exercises.observe import GRADIENT, SECOND_CALL, Observation
from course_lib.exercises.sandbox import raised_on_purpose


def first_difference(
    exercise: Exercise, got: Observation, want: Observation, inputs: dict[str, Any]
) -> tuple[str, str]:
    """The first thing that is wrong with ``got``: ``(sentence, numbers)``; both empty when nothing is.

    What a second call on the same instance returned is left to ``second_call_difference``.
    """
    if want.error is not None:
        return _missing_error(got, want)
    if got.weights:
        return got.weights, ""
    for name in got.changed:
        if name not in want.changed:
            return (
                f"Your code overwrites its input `{name}`: copy it (`{name}.clone()`) before changing it in place.",
                "",
            )
    for name, expected in want.leaves.items():
        if name.startswith(SECOND_CALL):
            continue
        if name not in got.leaves:
            return _wrong_structure(got, want), ""
        if name.startswith(GRADIENT) and not expected.isfinite().all():
            continue  # the course's own gradient is not defined here, so there is nothing to ask for
        found = _wrong_kind(exercise, name, got.leaves[name], expected, inputs)
        if found:
            return found, ""
        if not _leaf_close(exercise, name, got, want):
            return _wrong_values(exercise, name, got, want)
    if len(_outputs(got)) != len(_outputs(want)):
        return _wrong_structure(got, want), ""
    return "", ""


def second_call_difference(exercise: Exercise, got: Observation, want: Observation) -> tuple[str, str]:
    """As ``first_difference``, for the second call on the same instance. Ask only where every first call is right."""
    remembers = "A fresh instance answers right, but called once more it does not: it remembers something. "
    if got.second_error is not None and want.second_error is None:
        return f"{remembers}The second call stops with {type(got.second_error).__name__}: {got.second_error}", ""
    if want.second_error is not None:  # an input to be refused, which has a case of its own
        return "", ""
    for name, expected in want.leaves.items():
        if name.startswith(SECOND_CALL):
            if name not in got.leaves:
                return f"{remembers}The result of the second call has other parts than that of the first.", ""
            found = _wrong_kind(exercise, name, got.leaves[name], expected, {})
            if found:
                return remembers + found, ""
            if not _leaf_close(exercise, name, got, want):
                sentence, numbers = _wrong_values(exercise, name, got, want)
                return remembers + sentence, numbers
    return "", ""


def alike(exercise: Exercise, a: Observation, b: Observation, gradients: bool = True) -> bool:
    """Do two answers do the same: equal values and gradients, or the same error, and the same inputs changed?"""
    if (a.error is None) != (b.error is None) or bool(a.weights) != bool(b.weights):
        return False
    if a.error is not None:  # the same kind of crash for the same reason; refusals have words of their own
        refusals = all(isinstance(o.error, ValueError | AssertionError) and raised_on_purpose(o.error) for o in (a, b))
        return type(a.error) is type(b.error) and (refusals or str(a.error)[:80] == str(b.error)[:80])
    if a.changed != b.changed:
        return False
    left, right = ({n for n in o.leaves if gradients or not n.startswith(GRADIENT)} for o in (a, b))
    if left != right:
        return False
    if (a.second_error is None) != (b.second_error is None):
        return False
    return all(_same_precision(a.leaves[name], b.leaves[name]) and _leaf_close(exercise, name, a, b) for name in left)


def _same_precision(a: Any, b: Any) -> bool:
    floats = all(isinstance(x, Tensor) and x.is_floating_point() for x in (a, b))
    return not floats or a.dtype == b.dtype


def note_on_dtype(got: Observation, want: Observation) -> str:
    """A remark that does not fail an answer: right integers of an unexpected width."""
    for name, expected in _outputs(want).items():
        value = got.leaves.get(name)
        if isinstance(expected, Tensor) and isinstance(value, Tensor) and value.dtype != expected.dtype:
            return f"({name} is {value.dtype}, the course's is {expected.dtype}.)"
    return ""


def _outputs(observation: Observation) -> dict[str, Any]:
    return {n: v for n, v in observation.leaves.items() if not n.startswith((GRADIENT, SECOND_CALL))}


# ------------------------------------------------------------------------------------------------------ kinds of wrong


def _missing_error(got: Observation, want: Observation) -> tuple[str, str]:
    expected = type(want.error).__name__
    if got.error is None:
        return f"This input must be refused with a {expected}, but your code returned a result. ({want.error})", ""
    if not isinstance(got.error, type(want.error)):
        return f"This input must be refused with a {expected}; your code raised {type(got.error).__name__}.", ""
    return "", ""


def _wrong_structure(got: Observation, want: Observation) -> str:
    if list(got.leaves.values())[:1] == [None]:
        return "Your code returns None. Is a `return` missing?"
    names = [", ".join(f"`{n.removeprefix('the ')}`" for n in _outputs(o)) or "nothing" for o in (want, got)]
    return f"The result has other parts than expected: expected {names[0]}, got {names[1]}."


def _wrong_kind(exercise: Exercise, name: str, got: Any, want: Any, inputs: dict[str, Any]) -> str:
    if got is None:
        return "Your code returns None. Is a `return` missing?" if name == "the output" else f"{name} is None."
    if isinstance(want, Tensor) != isinstance(got, Tensor):
        if isinstance(want, Tensor) and not (want.dim() == 0 and isinstance(got, int | float)):
            return f"{_capital(name)} must be a tensor, got {_named(got)}."
        if isinstance(got, Tensor) and not (got.dim() == 0 and isinstance(want, int | float | bool)):
            return f"{_capital(name)} must be {_named(want)}, got {_named(got)}."
        return ""
    if not isinstance(want, Tensor):
        numbers = isinstance(want, int | float) and isinstance(got, int | float)
        return (
            "" if type(got) is type(want) or numbers else f"{_capital(name)} must be {_named(want)}, got {_named(got)}."
        )
    if got.shape != want.shape:
        return _wrong_shape(exercise, name, got, want, inputs)
    if _family(got) != _family(want) or (want.is_floating_point() and got.dtype != want.dtype):
        return f"{_capital(name)} has dtype {got.dtype}, expected {want.dtype}."
    if want.isfinite().all() and not got.isfinite().all():
        bad = ~got.isfinite()
        what = "NaN" if got.isnan().any() else "inf"
        return f"{_capital(name)} holds {what} in {int(bad.sum())} of {bad.numel()} places, first at {_place(bad)}."
    return ""


def _wrong_shape(exercise: Exercise, name: str, got: Tensor, want: Tensor, inputs: dict[str, Any]) -> str:
    axes = _axis_names(exercise, name) or [""] * want.dim()
    axes = axes if len(axes) == want.dim() else [""] * want.dim()
    expected = ", ".join(f"{a}={n}" if a and not a.isdigit() else str(n) for a, n in zip(axes, want.shape, strict=True))
    text = f"{_capital(name)} has shape {tuple(got.shape)}, expected ({expected})."
    if sorted(got.shape) == sorted(want.shape):
        text += " The sizes are right but stand in another order: two axes are swapped."
    elif got.dim() != want.dim():
        text += f" It has {got.dim()} axes instead of {want.dim()}."
    else:
        off = [i for i in range(want.dim()) if got.shape[i] != want.shape[i]]
        text += f" Look at axis {off[0]}{f' ({axes[off[0]]})' if axes[off[0]] else ''}."
    return text


def _axis_names(exercise: Exercise, leaf: str) -> list[str]:
    """The axis names of the return annotation (jaxtyping), such as ``["b", "heads", "queries", "d_v"]``."""
    function = exercise.target.forward if exercise.is_class and hasattr(exercise.target, "forward") else exercise.target
    annotation = getattr(function, "__annotations__", {}).get("return")
    if "[" in leaf and typing.get_origin(annotation) is tuple:
        index = leaf.split("[")[1].rstrip("]")
        arguments = typing.get_args(annotation)
        annotation = arguments[int(index)] if index.isdigit() and int(index) < len(arguments) else None
    text = getattr(annotation, "dim_str", "").replace("{", "").replace("}", "")
    return [] if "..." in text or "*" in text else text.split()


def _wrong_values(exercise: Exercise, name: str, got: Observation, want: Observation) -> tuple[str, str]:
    a, b = (
        (torch.as_tensor(o.leaves[name]).detach() for o in (got, want)) if _numeric(want.leaves[name]) else (None, None)
    )
    if a is None:
        return f"{_capital(name)} is {got.leaves[name]!r}, expected {want.leaves[name]!r}.", ""
    a, b = a.to(torch.float64), b.to(torch.float64)
    difference = (a - b).abs()
    worst = difference.nan_to_num(nan=math.inf).flatten().argmax()
    numbers = f"largest difference {difference.flatten()[worst]:.3g} at {_unravel(worst, a.shape)}: "
    numbers += f"yours {a.flatten()[worst]:.5g}, expected {b.flatten()[worst]:.5g}"
    if name.startswith(GRADIENT):
        what = name.removeprefix(GRADIENT)
        if not a.any() and b.any():
            return f"The values are right, but no gradient reaches `{what}`: something detaches it on the way.", numbers
        return f"The values are right, but the gradient of `{what}` is not: something is detached or leaks.", numbers
    if torch.allclose(a, b, rtol=1e-6, atol=1e-6 * float(b.abs().max())):
        return (
            f"{_capital(name)} is right to six or seven digits only: it is asked for in float64, and something on the "
            "way is computed in float32. `torch.tensor(0.5)` is float32, for example; take the dtype of the inputs.",
            numbers,
        )
    pattern = explain(a, b)
    wrong = f"{_capital(name)} has the right shape but wrong values."
    others = [n for n in _outputs(want) if n != name]
    if others and all(_close(got.leaves.get(n), want.leaves[n], exercise.tolerance) for n in others):
        wrong = f"{_capital(name)} has wrong values; {' and '.join(others)} is right."
    where = _diverging_part(got, want)
    return " ".join(filter(None, [wrong, pattern, where])), numbers


def _diverging_part(got: Observation, want: Observation) -> str:
    """For modules: the first submodule that receives something else than in the course's version."""
    if not want.parts or got.parts.keys() != want.parts.keys():
        return ""
    for name, (received, returned) in want.parts.items():
        mine_in, mine_out = got.parts[name]
        if not _close(mine_in, received, 1e-4):
            return f"`{name}` is the first part that receives something wrong: look just before it."
        if not _close(mine_out, returned, 1e-4):
            return f"`{name}` receives the right input but returns something wrong: look inside it."
    return "Every submodule receives and returns the right thing: look after the last of them."


# ---------------------------------------------------------------------------------------------------------- the values


def explain(got: Tensor, want: Tensor) -> str:
    """A simple relation that turns ``want`` into ``got`` exactly, in words; empty when none is found."""
    if got.shape != want.shape or want.numel() < 2 or not want.isfinite().all() or not got.isfinite().all():
        return ""

    def same(a: Tensor, b: Tensor) -> bool:
        scale = max(float(b.abs().max()), 1e-3)
        varied = bool((a - a.mean()).abs().max() > 1e-9)
        return a.shape == b.shape and varied and torch.allclose(a, b, rtol=1e-4, atol=1e-5 * scale)

    if not got.any():
        return "It is zero everywhere."
    if same(got, -want):
        return "It is the expected result with the opposite sign."
    scale = (got * want).sum() / (want * want).sum()
    if abs(scale - 1) > 1e-3 and same(got, scale * want):
        return f"It is the expected result times {scale:.4g} (or divided by {1 / scale:.4g})."
    shift = (got - want).mean()
    if abs(shift) > 1e-3 and same(got, want + shift):
        return f"It is the expected result plus {shift:.4g} everywhere."
    for axis, size in enumerate(want.shape):
        added = (got - want).movedim(axis, 0).reshape(size, -1).mean(1)
        column = added.view(-1, *[1] * (want.dim() - axis - 1))
        if 1 < size < want.numel() and same(got, want + column):
            return f"It is the expected result plus one number for each index of axis {axis}: is it a bias too many?"
        if size > 1 and same(got, want.flip(axis)):
            return f"It is the expected result reversed along axis {axis}."
        for step in (1, -1):
            if size > 2 and same(got.roll(step, axis).narrow(axis, 1, size - 2), want.narrow(axis, 1, size - 2)):
                return f"It is the expected result shifted by one along axis {axis}."
        for other in range(axis + 1, want.dim()):
            if same(got, want.transpose(axis, other)):
                return f"It is the expected result with axes {axis} and {other} swapped."
    if same(got.flatten().sort().values, want.flatten().sort().values):
        return "It holds the right numbers in the wrong places: an axis is reordered, or a reshape mixes two axes."
    right = torch.isclose(got, want, rtol=1e-4, atol=1e-5 * max(1.0, float(want.abs().max())))
    for axis, size in enumerate(want.shape):
        per_index = right.movedim(axis, 0).reshape(size, -1).all(1)
        if size > 1 and per_index.any() and not per_index.all():
            good = [i for i in range(size) if per_index[i]]
            return f"Along axis {axis} only index {', '.join(map(str, good[:6]))} of 0…{size - 1} is right."
    return ""


def _leaf_close(exercise: Exercise, name: str, got: Observation, want: Observation) -> bool:
    """Are the leaves of that name equal, up to another order of additions?

    Gradients get more room. Where softmax saturates, a right one in another order is off by some 1e-4 of itself, and
    one that is zero in theory is rounding noise beside the largest.
    """
    mine, theirs = got.leaves[name], want.leaves[name]
    if name.startswith(GRADIENT):
        return _close(mine, theirs, 5 * exercise.tolerance, max(1e-3, 0.2 * want.largest_gradient))
    return _close(mine, theirs, exercise.tolerance)


def _close(a: Any, b: Any, tolerance: float, floor: float = 1e-3) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        if not (_numeric(a) and _numeric(b)):
            return a is None and b is None
        a, b = torch.as_tensor(a).detach(), torch.as_tensor(b).detach()
        if a.shape != b.shape:
            return False
        if not (a.is_floating_point() or b.is_floating_point() or a.is_complex() or b.is_complex()):
            return bool((a == b).all())
        if a.dtype == b.dtype == torch.float64:
            tolerance = 1e-9  # whoever computes in float64 must not go through float32 on the way
        a, b = a.to(torch.float64), b.to(torch.float64)
        finite = b[b.isfinite()]
        scale = max(float(finite.abs().max()) if finite.numel() else 0.0, floor)
        return torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale / 10, equal_nan=True)
    if isinstance(a, float) or isinstance(b, float):
        if not (_numeric(a) and _numeric(b)):
            return False
        return math.isclose(a, b, rel_tol=tolerance, abs_tol=1e-9) or (math.isnan(a) and math.isnan(b))
    try:
        return bool(a == b)
    except Exception:  # exotic objects that cannot be compared are not the same answer
        return False


def _numeric(value: Any) -> bool:
    return isinstance(value, Tensor | bool | int | float)


def _family(tensor: Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "bool"
    return "complex" if tensor.is_complex() else "float" if tensor.is_floating_point() else "int"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:] if text.startswith("the ") else f"`{text}`"


def _named(value: Any) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _place(mask: Tensor) -> str:
    return _unravel(mask.flatten().to(torch.int8).argmax(), mask.shape)


def _unravel(flat: Tensor, shape: torch.Size) -> str:
    return str([int(i) for i in torch.unravel_index(flat, shape)]) if shape else "[]"
