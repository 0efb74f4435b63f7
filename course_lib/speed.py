"""How fast this machine is, so that the course can say how long a cell takes *here*.

Every time in the course was measured on one reference machine (two cores of a server CPU). A probe of about two seconds
runs the same mix of work here, once per machine; the ratio scales all estimates.
"""

import contextlib
import json
import os
import platform
import time
from pathlib import Path

from course_lib import paths

REFERENCE_ROUND_SECONDS = 0.030  # one round of the probe on the reference machine when nothing else runs there
PROBE_SECONDS = 2.0
_factor: dict[str, float] = {}  # of this process, by machine


def about(reference_seconds: float) -> str:
    """A time of the reference machine as a phrase for this one: ``about 40 s on this machine``."""
    if not reference_seconds >= 0:
        raise ValueError(f"reference_seconds={reference_seconds!r} is no duration; give seconds, 0 or more")
    return f"about {_rounded(reference_seconds * factor())} on this machine"


def factor(anew: bool = False) -> float:
    """How many times longer this machine takes than the reference machine (2.0: half as fast).

    Probed once per machine and kept; ``anew`` probes again. What was found while other programs computed, or in a
    folder that cannot be written, is kept for this process only. ``COURSE_SPEED`` names a factor and skips the probe.
    Raises: ValueError if ``COURSE_SPEED`` is no positive number.
    """
    chosen = os.environ.get("COURSE_SPEED")
    if chosen:
        with contextlib.suppress(ValueError):
            if float(chosen) > 0:
                return float(chosen)
        raise ValueError(f"COURSE_SPEED={chosen!r} is no positive number; unset it, or write 2 for half as fast")
    machine = _machine()
    if anew or machine not in _factor:
        stored = _stored()
        known = None if anew else stored.get(machine)
        if not isinstance(known, int | float) or not 1e-4 < known < 1e4:
            disturbed = busy()
            known = measure()
            if not disturbed:
                _store({**stored, machine: known})
        _factor[machine] = float(known)
    return _factor[machine]


def busy() -> bool:
    """True while other programs keep the cores busy, so that a probe would mislead; ``COURSE_SPEED`` makes it none."""
    import psutil

    return not os.environ.get("COURSE_SPEED") and psutil.getloadavg()[0] > 0.75 * (psutil.cpu_count() or 1)


def measure(seconds: float = PROBE_SECONDS) -> float:
    """Probe the machine anew for about ``seconds`` (at least one round of work) and return its factor."""
    import torch

    from course_lib.profile import pick_device

    device = pick_device()
    one_round = _workload(device)
    one_round()  # the first round pays for kernels being chosen and memory being taken
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        one_round()
        if device.type != "cpu":
            getattr(torch, device.type).synchronize()
        best = min(best, time.perf_counter() - start)  # the fastest: other programs only ever slow a round down
    return best / REFERENCE_ROUND_SECONDS


def _workload(device):
    """What lessons spend their time on: matrix products, convolutions and attention, forward and backward."""
    import torch
    from torch.nn import functional as F

    generator = torch.Generator().manual_seed(0)
    tokens, weight, images, kernel = (
        torch.randn(shape, generator=generator).to(device).requires_grad_()
        for shape in [(8, 6, 256, 32), (192, 768), (32, 32, 32, 32), (32, 32, 3, 3)]
    )

    def one_round():
        attended = F.scaled_dot_product_attention(tokens, tokens, tokens)
        hidden = F.gelu(attended.transpose(1, 2).reshape(8, 256, 192) @ weight)
        features = F.conv2d(images, kernel, padding=1)
        loss = hidden.square().mean() + features.square().mean()
        torch.autograd.grad(loss, (tokens, weight, images, kernel))
        loss.item()

    return one_round


def _rounded(seconds: float) -> str:
    if seconds < 1.5:
        return "a second"
    if seconds < 10:
        return f"{round(seconds)} s"
    if seconds < 90:
        return f"{5 * round(seconds / 5)} s"
    if seconds < 600:
        return f"{round(seconds / 30) / 2:g} min"
    if seconds < 5400:
        return f"{5 * round(seconds / 300)} min"
    return f"{round(seconds / 1800) / 2:g} h"


def _machine() -> str:
    import torch

    from course_lib.profile import pick_device

    device, threads = pick_device(), torch.get_num_threads()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{platform.node()} {platform.machine()}, {threads} threads, torch {torch.__version__}, {name}"


def _file() -> Path:
    return paths.state_dir() / "speed.json"


def _stored() -> dict:
    """What earlier probes found; nothing when the file is absent or damaged, since a probe takes two seconds."""
    try:
        stored = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _store(factors: dict) -> None:
    """Keep the result for the next process; a folder that cannot be written costs a probe each time."""
    from course_lib.paths import write_atomically

    with contextlib.suppress(OSError):
        write_atomically(_file(), json.dumps(factors, indent=1))
