"""Checkpoints: safetensors with a JSON description inside, written atomically. Nothing is ever unpickled.

A training state is one flat dictionary of tensors. Names carry the structure: ``model.embed.weight``,
``ema.embed.weight``, ``optimizer0.embed.weight.exp_avg``.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from course_lib.paths import write_atomically

KIND = "course_lib"  # the metadata key under which the description lies; files without it are not ours


class Checkpoint(NamedTuple):
    """What a checkpoint file holds."""

    tensors: dict[str, Tensor]
    info: dict[str, Any]  # the JSON description


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
    """Write tensors and their description to one safetensors file, atomically.

    Args:
        path: the file; its folder is made.
        tensors: any names, shapes and dtypes; they are copied to the CPU.
        info: must survive JSON (strings, numbers, lists, dicts).
    """
    from safetensors.torch import save

    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # safetensors refuses tensors that share memory: clone those that are views of something larger or appear twice.
    seen: set[int] = set()
    for name, tensor in ready.items():
        if tensor.untyped_storage().data_ptr() in seen or tensor.untyped_storage().nbytes() != tensor.nbytes:
            ready[name] = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
    write_atomically(path, save(ready, {KIND: json.dumps(info, sort_keys=True)}))


def load_checkpoint(path: Path | str, kind: str | None = None, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint written by ``save_checkpoint``.

    Args:
        path: the file.
        kind: when given, ``info["kind"]`` must equal it.
        device: where the tensors go.
    Raises: ValueError if the file is missing, damaged, not ours, or of another kind; the message says which.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}); delete it and make it anew") from error
    try:
        info = json.loads(metadata[KIND])
    except (KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} was not written by this course: its metadata has no {KIND!r} description") from error
    if not isinstance(info, dict) or (kind is not None and info.get("kind") != kind):
        found = info.get("kind") if isinstance(info, dict) else info
        raise ValueError(f"{path} holds {found!r}, but {kind!r} was expected")
    return Checkpoint(tensors, info)


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under ``prefix.name``."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose name begins with ``prefix.``, without it."""
    return {name.removeprefix(f"{prefix}."): v for name, v in tensors.items() if name.startswith(f"{prefix}.")}


def pack(tensors: Mapping[str, Tensor], large: int = 4096) -> dict[str, Tensor]:
    """Make weights small enough to ship: one byte per number in large tensors, bfloat16 in all others.

    A large tensor becomes ``name.int8`` and ``name.scale``, one scale per row (its largest number is 127): for weights
    that look normal the rounding error is below 1 % of their spread.
    """
    packed = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or tensor.numel() < large:
            packed[name] = tensor.bfloat16() if tensor.is_floating_point() else tensor
            continue
        rows = tensor.float().flatten(1)
        scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        packed[f"{name}.int8"] = (rows / scale).round().to(torch.int8).view(tensor.shape)
        packed[f"{name}.scale"] = scale[:, 0]
    return packed


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The float32 tensors of a packed or plain dictionary."""
    whole = {}
    for name, tensor in tensors.items():
        if name.endswith(".int8"):
            scale = tensors[f"{name.removesuffix('.int8')}.scale"]
            whole[name.removesuffix(".int8")] = tensor.float() * scale.view(-1, *[1] * (tensor.ndim - 1))
        elif f"{name.removesuffix('.scale')}.int8" not in tensors:
            whole[name] = tensor.float() if tensor.is_floating_point() else tensor
    return whole


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Copy weights into a module. Raises ValueError, naming ``what``, where names or shapes differ."""
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise ValueError(f"the weights of {what} do not fit its configuration: {error}") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """The state of an optimizer as named tensors, ``parameter.key``; plain numbers become 0-d tensors."""
    return {
        f"{names[p]}.{key}": torch.as_tensor(value)
        for p, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], tensors: Mapping[str, Tensor]
) -> None:
    """The inverse of ``optimizer_tensors``. Raises ValueError for a parameter that the optimizer does not have."""
    known = {names[p]: p for group in optimizer.param_groups for p in group["params"]}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition(".")
        if parameter not in known:
            raise ValueError(f"the checkpoint has optimizer state for {parameter!r}, which this model does not have")
        p = known[parameter]
        if tensor.shape == p.shape:  # in the layout of its parameter: fused AdamW walks through both in memory order
            tensor = torch.empty_like(p).copy_(tensor)
        optimizer.state[p][key] = tensor.detach().clone()


def parameter_names(modules: Iterable[nn.Module]) -> dict[Tensor, str]:
    """From every parameter to its name."""
    return {p: name for module in modules for name, p in module.named_parameters()}
