"""Running code that is hostile by accident: it may loop, exit, print megabytes, or reseed the world; nothing gets out.

What cannot be stopped from inside a process is left: a loop in C that never returns to Python, and ``kill -9``.
"""

import builtins
import contextlib
import dis
import io
import math
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

PRINT_LIMIT = 20_000  # characters of the learner's prints that are kept


class TimeLimitExceeded(BaseException):
    """Raised in the learner's code when its time is up; a BaseException, so that ``except Exception`` lets it pass."""


@dataclass(frozen=True)
class Outcome:
    """What one guarded call did: a value or an error, and what it printed."""

    value: Any = None
    error: BaseException | None = None
    printed: str = ""

    @property
    def timed_out(self) -> bool:
        return isinstance(self.error, TimeLimitExceeded)


def run_guarded(function: Callable[[], Any], seconds: float) -> Outcome:
    """Call ``function`` and return its outcome; every global state that learners commonly touch is put back."""
    printed = _BoundedText()
    value, error = None, None
    # PyTorch's fused attention on CPUs does not compare the lengths of keys and values: where they differ it reads and
    # writes past the end and the process dies. The plain one raises.
    plain = sdpa_kernel(SDPBackend.MATH)
    with _restored_state(), plain, contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            value = _run_limited(function, seconds)
        except KeyboardInterrupt:
            raise  # the learner pressed stop: that is theirs to do
        except BaseException as caught:  # SystemExit and TimeLimitExceeded included
            error = caught
    return Outcome(value, error, printed.getvalue())


class _BoundedText(io.TextIOBase):
    """A text stream that keeps the first ``PRINT_LIMIT`` characters and counts the rest."""

    def __init__(self):
        self.parts, self.kept, self.dropped = [], 0, 0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        room = PRINT_LIMIT - self.kept
        if room > 0:
            self.parts.append(text[:room])
            self.kept += len(self.parts[-1])
        self.dropped += max(0, len(text) - max(room, 0))
        return len(text)

    def getvalue(self) -> str:
        tail = f"\n… and {self.dropped:,} more characters" if self.dropped else ""
        return "".join(self.parts) + tail


# ---------------------------------------------------------------------------------------------------------- time limit


def _run_limited(function: Callable[[], Any], seconds: float) -> Any:
    """Call ``function``; raise ``TimeLimitExceeded`` inside it after ``seconds``, again and again until it ends.

    Signals reach the main thread only; elsewhere the function runs without a limit.
    """
    if threading.current_thread() is not threading.main_thread():
        return function()
    home, deadline = sys._getframe(), time.monotonic() + seconds
    over, turn, fired = threading.Event(), threading.Lock(), []
    old_handler, old_trace = signal.getsignal(signal.SIGINT), sys.gettrace()

    def on_signal(number, frame):
        if time.monotonic() < deadline:
            raise KeyboardInterrupt
        # Only where the function is still running: an exception in our own lines would leave the handlers behind.
        frames = []
        while frame is not None and frame is not home:
            frames.append(frame)
            frame = frame.f_back
        if frame is None or not frames or frames[-1].f_code is not function.__code__ or over.is_set():
            return
        # From here on every further line of the learner's frames raises too: a bare `except:` must not swallow it.
        sys.settrace(raise_on_line)
        for inner in frames:
            inner.f_trace = raise_on_line
        raise TimeLimitExceeded(f"stopped after {seconds:g} s")

    def raise_on_line(frame, event, argument):
        if event == "line" and not frame.f_code.co_filename.startswith(_NOT_THE_LEARNERS):
            raise TimeLimitExceeded(f"stopped after {seconds:g} s")
        return raise_on_line

    def watch():
        wait = seconds
        while not over.wait(wait):
            with turn:  # never after the main thread has taken its handler down
                if not over.is_set():
                    fired.append(True)
                    _interrupt_main()
            wait = 0.2

    signal.signal(signal.SIGINT, on_signal)
    threading.Thread(target=watch, daemon=True).start()
    try:
        return function()
    finally:
        sys.settrace(old_trace)
        with turn:
            over.set()
        if fired:
            time.sleep(0.01)  # a last signal may still be on its way; it must meet our handler
        signal.signal(signal.SIGINT, old_handler if old_handler is not None else signal.default_int_handler)


# Frames that only clean up while the exception passes; raising there again would hide where the learner's code was.
_NOT_THE_LEARNERS = (
    os.path.dirname(__file__),
    contextlib.__file__,
    threading.__file__,
    os.path.dirname(torch.__file__),
)


def _interrupt_main() -> None:
    if hasattr(signal, "pthread_kill"):  # a real signal also wakes time.sleep
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    else:
        import _thread

        _thread.interrupt_main()


# ------------------------------------------------------------------------------------------------------- global state


def _refuse_exit(*arguments):
    raise SystemExit(*arguments[:1])


def _refuse_input(prompt=""):
    raise RuntimeError("input() was called while your answer was being checked; nobody is there to type")


_SHARED_NAMESPACES = (builtins, torch, F, nn, torch.Tensor, nn.Module, math, np, random)


@contextlib.contextmanager
def _restored_state():
    """Put back random states, torch's switches, patched libraries, the working folder and open figures."""
    numpy_state = np.random.get_state()  # noqa: NPY002 (the global state is what learners reseed)
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    switches = (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads())
    deterministic = torch.are_deterministic_algorithms_enabled()
    anomaly, recursion = torch.is_anomaly_enabled(), sys.getrecursionlimit()
    folder, environment = os.getcwd(), dict(os.environ)
    namespaces = [(place, dict(vars(place))) for place in _SHARED_NAMESPACES]
    pyplot = sys.modules.get("matplotlib.pyplot")
    figures = set(pyplot.get_fignums()) if pyplot else set()
    patched = {(os, "_exit"): _refuse_exit, (builtins, "exit"): _refuse_exit, (builtins, "quit"): _refuse_exit}
    patched |= {(os, "abort"): _refuse_exit, (builtins, "input"): _refuse_input}
    shell = sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()
    if shell:  # in a notebook, exit() asks the shell to end the kernel
        patched[(shell, "ask_exit")] = _refuse_exit
    originals = {key: getattr(*key, None) for key in patched}
    for (place, attribute), replacement in patched.items():
        setattr(place, attribute, replacement)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for place, before in namespaces:
            _restore_namespace(place, before)
        for (place, attribute), original in originals.items():
            setattr(place, attribute, original)
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
        torch.set_rng_state(torch_state)
        torch.set_grad_enabled(switches[0])
        torch.set_default_dtype(switches[1])
        if torch.get_num_threads() != switches[2]:
            torch.set_num_threads(switches[2])
        if torch.are_deterministic_algorithms_enabled() != deterministic:  # setting it imports half of torch
            torch.use_deterministic_algorithms(deterministic)
        if torch.is_anomaly_enabled() != anomaly:
            torch.autograd.set_detect_anomaly(anomaly)
        sys.setrecursionlimit(recursion)
        if os.getcwd() != folder:
            os.chdir(folder)
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot:
            for number in set(pyplot.get_fignums()) - figures:
                pyplot.close(number)


def _restore_namespace(place: Any, before: dict[str, Any]) -> None:
    now = vars(place)
    for key in [k for k in now if k not in before and not k.startswith("__")]:
        # Submodules imported meanwhile (torch.foo) are honest additions; anything else was planted.
        if not isinstance(now[key], type(sys)):
            with contextlib.suppress(AttributeError, TypeError):
                delattr(place, key)
    for key, value in before.items():
        if now.get(key, _MISSING) is not value:
            with contextlib.suppress(AttributeError, TypeError):
                setattr(place, key, value)


_MISSING = object()


def raised_on_purpose(error: BaseException) -> bool:
    """Whether a ``raise`` of the learner's own, and no call of a library, made this error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    code = trace.tb_frame.f_code
    own = not code.co_filename.startswith((os.path.dirname(os.path.dirname(__file__)), os.path.dirname(torch.__file__)))
    return own and code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def where_it_broke(error: BaseException, filename: str | None) -> str:
    """The learner's own line that raised, such as ``line 7: y = q @ k``; empty when none of the frames is theirs."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == filename]
    return f"line {frames[-1].lineno}: {frames[-1].line}" if frames and frames[-1].line else ""
