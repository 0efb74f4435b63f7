"""What an answer does: its outputs, its gradients and what it left behind, as plain data that two answers can share.

The library's function and the learner's are run on equal inputs; everything the engine says is read off the two
observations.
"""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from course_lib.exercises.catalogue import Case, Exercise
from course_lib.exercises.sandbox import Outcome, run_guarded

# How the names of two kinds of leaves begin:
GRADIENT = "the gradient of "
SECOND_CALL = "the output of a second call"


@dataclass
class Observation:
    """One run of an answer in one situation."""

    outcome: Outcome
    leaves: dict[str, Any] = field(default_factory=dict)  # "the output", "output[1]", "the gradient of q", …
    changed: list[str] = field(default_factory=list)  # inputs that the answer overwrote
    parts: dict[str, tuple] = field(default_factory=dict)  # submodule -> (what it received, what it returned)
    weights: str = ""  # why the course's weights could not be copied into the learner's module
    second_error: Exception | None = None  # what the second call on the same instance raised

    @property
    def error(self) -> BaseException | None:
        return self.outcome.error

    @functools.cached_property
    def largest_gradient(self) -> float:
        """The largest entry of all gradients."""
        gradients = [v for n, v in self.leaves.items() if n.startswith(GRADIENT) and v.numel()]
        return max((float(v.nan_to_num().abs().max()) for v in gradients), default=0.0)


@dataclass(frozen=True, eq=False)
class Situation:
    """A case made concrete: inputs from a seed, perhaps re-laid in memory or cut to the first of the batch."""

    case: Case
    note: str = ""
    seed: int = 1
    alter: Callable[[Any], Any] | None = None
    then: "Situation | None" = None  # for modules: call the same instance once more, with these inputs
    batch_axes: tuple[str, ...] = ()  # inputs to cut to the first element of the batch
    training: bool = False

    @property
    def label(self) -> str:
        return self.case.label + (f" ({self.note})" if self.note else "")

    def inputs(self) -> dict[str, Any]:
        """Fresh inputs, equal at every call."""
        inputs = self.case.inputs(torch.Generator().manual_seed(self.seed))
        inputs |= {name: inputs[name][:1].clone() for name in self.batch_axes}
        return {name: self.alter(value) if self.alter else value for name, value in inputs.items()}


def situations(exercise: Exercise) -> list[Situation]:
    """Every case as it is, then each one with another seed and another memory layout; modules also in train mode."""
    plain = [Situation(case, then=_another(exercise, case)) for case in exercise.cases]
    again = [Situation(case, "other values", seed=2) for case in exercise.cases]
    laid = [Situation(case, "not contiguous in memory", seed=3, alter=_not_contiguous) for case in exercise.cases]
    one = [
        Situation(s.case, "a batch of one", seed=5, batch_axes=axes)
        for s in plain
        if (axes := _batch_axes(exercise, s))
    ]
    train = [
        Situation(case, "in train mode", seed=4, training=True) for case in exercise.cases[:1] if exercise.is_class
    ]
    return plain + again + laid + one + train


def _another(exercise: Exercise, case: Case) -> "Situation | None":
    """Inputs for a second call on the same instance: another case of equal construction, else other values."""
    if not exercise.is_class or case.init is None or case.call is not None:
        return None
    others = [c for c in exercise.cases if c.init == case.init and c is not case and c.call is None]
    return Situation(others[0] if others else case, "" if others else "other values", seed=6)


def _batch_axes(exercise: Exercise, situation: Situation) -> tuple[str, ...]:
    """The inputs whose annotation begins with the axis ``b``; none where a case has its own protocol."""
    if situation.case.call is not None or (exercise.is_class and situation.case.init is None):
        return ()
    function = getattr(exercise.target, "forward", exercise.target)
    annotations = getattr(inspect.unwrap(function), "__annotations__", {})
    names = []
    for name, value in situation.inputs().items():
        kinds = [annotations.get(name), *typing.get_args(annotations.get(name))]
        first = {getattr(kind, "dim_str", "").split(" ")[0].lstrip("#") for kind in kinds}
        if isinstance(value, Tensor) and value.dim() and "b" in first:
            names.append(name)
    return tuple(names)


def _not_contiguous(value: Any) -> Any:
    """The same numbers with the first axis fastest in memory: ``view`` fails on it, as on a transposed tensor."""
    if isinstance(value, Tensor) and value.dim() > 1:
        return value.transpose(0, -1).contiguous().transpose(0, -1)
    return value


# ------------------------------------------------------------------------------------------------------------- running


def observe(exercise: Exercise, answer: Any, situation: Situation, seconds: float) -> Observation:
    """Run ``answer`` in one situation, guarded; the first pass looks at values, the second at gradients."""
    observation = Observation(Outcome())
    inputs = situation.inputs()
    observation.outcome = run_guarded(
        lambda: _run(exercise, answer, situation, inputs, observation, record_parts=True), seconds
    )
    if observation.error is not None:
        return observation
    observation.changed = [name for name, old in situation.inputs().items() if not _same(old, inputs[name])]
    observation.leaves = dict(_leaves(observation.outcome.value)) | observation.leaves
    if exercise.gradients and not observation.changed:
        second = run_guarded(lambda: _gradients(exercise, answer, situation), seconds)
        if second.error is not None:
            observation.outcome = dataclasses.replace(observation.outcome, error=second.error)
        else:
            observation.leaves |= second.value
    return observation


def _run(exercise, answer, situation, inputs, observation=None, record_parts=False):
    torch.manual_seed(0)  # whatever an answer draws, it draws alike
    case = situation.case
    if exercise.is_class and case.init is not None:
        module, problem = _with_course_weights(exercise, answer, case.init)
        module.train(situation.training)
        if observation is not None:
            observation.weights = problem
            if record_parts:
                _record_parts(module, observation.parts)
        torch.manual_seed(0)
        answer = module
    with torch.set_grad_enabled(observation is None):
        value = case.call(answer, **inputs) if case.call else answer(**inputs)
        if observation is not None and situation.then is not None:
            try:
                again = answer(**situation.then.inputs())
                observation.leaves |= dict(_leaves(again, f"{SECOND_CALL} ({situation.then.label})"))
            except Exception as error:  # the first call stands by itself
                observation.second_error = error
        return value


def _gradients(exercise, answer, situation) -> dict[str, Any]:
    """Gradient of a fixed random reading of the outputs with respect to every float input and every weight."""
    inputs = situation.inputs()
    for value in _float_tensors(inputs.values()):
        value.requires_grad_(True)
    module_seen = []

    def remember(answer, **kwargs):
        module_seen.append(answer)
        return situation.case.call(answer, **kwargs) if situation.case.call else answer(**kwargs)

    case = dataclasses.replace(situation.case, call=remember)
    value = _run(exercise, answer, dataclasses.replace(situation, case=case), inputs)
    outputs = [leaf for _, leaf in _leaves(value) if isinstance(leaf, Tensor) and leaf.requires_grad]
    reader = torch.Generator().manual_seed(5)
    total = sum(
        (
            (out * torch.randn(out.shape, generator=reader, dtype=torch.float32).to(out)).nan_to_num().sum()
            for out in outputs
        ),
        torch.zeros(()),
    )
    if total.requires_grad:
        total.backward()
    wanted = [(name, v) for name, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point()]
    for module in module_seen:
        if isinstance(module, nn.Module):
            names = getattr(module, _COURSE_NAMES, {})
            wanted += [(names.get(n, n), p) for n, p in module.named_parameters()]
    return {f"{GRADIENT}{n}": torch.zeros_like(v) if v.grad is None else v.grad.detach() for n, v in wanted}


def _float_tensors(values: Any) -> Iterator[Tensor]:
    return (v for v in values if isinstance(v, Tensor) and v.is_floating_point())


def _leaves(value: Any, name: str = "the output") -> Iterator[tuple[str, Any]]:
    """Tensors, numbers and strings inside nested tuples, lists, dicts and dataclasses, each with a readable name."""
    base = name.removeprefix("the ")
    if isinstance(value, tuple | list):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{base}[{i}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            in_words = name == "the output" and isinstance(key, str) and " " in key  # the report of a case's protocol
            yield from _leaves(item, key if in_words else f"{base}[{key!r}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for f in dataclasses.fields(value):
            yield from _leaves(getattr(value, f.name), f"{base}.{f.name}")
    else:
        yield name, value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a.nan_to_num(), b.detach().nan_to_num())
    if isinstance(a, str | int | float | bool | list | tuple | dict | type(None)):
        try:
            return bool(a == b)
        except Exception:  # a list of tensors has no truth value
            return True
    return True


# ------------------------------------------------------------------------------------------------------------- weights


def _with_course_weights(exercise: Exercise, answer: Any, init: dict[str, Any]) -> tuple[nn.Module, str]:
    """An instance of ``answer`` that carries the same random weights as the course's, and what stood in the way."""
    module = answer(**init)
    if not isinstance(module, nn.Module):
        raise TypeError(f"{answer.__name__} must be an nn.Module, got {type(module).__name__}")
    parameters, buffers = _course_weights(exercise, init)
    pairs, problem = _pair_weights(dict(module.named_parameters()), parameters)
    names = {id(theirs): name for name, theirs in parameters.items()}
    own_names = {id(mine): name for name, mine in module.named_parameters()}
    object.__setattr__(module, _COURSE_NAMES, {own_names[id(mine)]: names[id(theirs)] for mine, theirs in pairs})
    pairs += [(b, buffers[n]) for n, b in module.named_buffers() if n in buffers and b.shape == buffers[n].shape]
    with torch.no_grad():
        for mine, theirs in pairs:
            mine.copy_(theirs)
    return module, problem


_COURSE_NAMES = "_course_names"  # on a module under check: its parameters' names -> the course's names


def same_start(exercise: Exercise, a: Any, b: Any) -> bool:
    """Do two classes start from equal weights, given equal random numbers? True for functions."""
    init = next((case.init for case in exercise.cases if case.init is not None), None)
    if not exercise.is_class or init is None:
        return True

    def fresh(answer):
        torch.manual_seed(0)
        return [p.detach().clone() for p in answer(**init).parameters()]

    first, second = (run_guarded(lambda x=x: fresh(x), exercise.seconds).value for x in (a, b))
    return first is not None and second is not None and len(first) == len(second) and all(map(_same, first, second))


_course_weights_seen: dict[tuple[str, str], tuple[dict, dict]] = {}


def _course_weights(exercise: Exercise, init: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The course's parameters, moved off their initial values (zeros and ones would hide broken parts), and buffers."""
    key = (exercise.name, repr(init))
    if key not in _course_weights_seen:
        torch.manual_seed(0)
        module = exercise.target(**init)
        generator = torch.Generator().manual_seed(7)
        for parameter in module.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
        copies = (
            {n: v.detach().clone() for n, v in named} for named in (module.named_parameters(), module.named_buffers())
        )
        _course_weights_seen[key] = tuple(copies)
    return _course_weights_seen[key]


def _pair_weights(own: dict[str, Tensor], wanted: dict[str, Tensor]) -> tuple[list, str]:
    """Match by name, else by order where all shapes agree; otherwise match what can be and say what is missing."""
    if own.keys() == wanted.keys() and all(own[n].shape == wanted[n].shape for n in own):
        return [(own[n], wanted[n]) for n in own], ""
    if [tuple(v.shape) for v in own.values()] == [tuple(v.shape) for v in wanted.values()]:
        return list(zip(own.values(), wanted.values(), strict=True)), ""
    common = [n for n in own if n in wanted and own[n].shape == wanted[n].shape]

    def describe(names, source):
        return ", ".join(f"{n} {tuple(source[n].shape)}" for n in names)

    missing = [n for n in wanted if n not in common]
    extra = [n for n in own if n not in common]
    problem = "Its weights differ from what the task describes."
    if missing:
        problem += f" Expected but not found: {describe(missing, wanted)}."
    if extra:
        problem += f" Found but not expected: {describe(extra, own)}."
    present = {n.rpartition(".")[0] for n in common}
    if missing and not extra and all(n.endswith(".bias") and n.removesuffix(".bias") in present for n in missing):
        problem += " (Was a bias switched off?)"
    elif missing and not extra:
        problem += " (Modules kept in a plain Python list or dict are invisible to PyTorch: use nn.ModuleList.)"
    return [(own[n], wanted[n]) for n in common], problem


def _record_parts(module: nn.Module, record: dict[str, tuple]) -> None:
    def hook(name):
        def keep(part, inputs, output):
            tensors = [t for _, t in _leaves(inputs) if isinstance(t, Tensor)]
            results = [t for _, t in _leaves(output) if isinstance(t, Tensor)]
            record.setdefault(name, (tensors[0].clone() if tensors else None, results[0].clone() if results else None))

        return keep

    for name, part in module.named_modules():
        if name:
            part.register_forward_hook(hook(name))
