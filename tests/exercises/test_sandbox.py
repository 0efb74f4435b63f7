"""Code that is hostile by accident: whatever it does, the engine answers, in time, and nothing leaks."""

import os
import random
import signal
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from course_lib.exercises.catalogue import define, get
from course_lib.exercises.checking import check
from course_lib.exercises.sandbox import PRINT_LIMIT, TimeLimitExceeded, run_guarded

RIGHT = "return ((scale * w).softmax(1)[:, :, None] * a).sum(1)"

# What learners' code does by accident -> the state that the check must end in. "passed" means: harmless if undone.
HOSTILE = {
    "returns None": ("pass", "failed"),
    "returns a string": ("return 'done'", "failed"),
    "returns its function": ("return mix", "failed"),
    "returns a generator": ("yield a", "failed"),
    "returns a numpy array": ("return a.detach().numpy()", "failed"),
    "returns another dtype": (RIGHT + ".half().long()", "failed"),
    "returns NaN": (RIGHT + " * float('nan')", "failed"),
    "returns infinity": (RIGHT + " / 0", "failed"),
    "returns a deep nest": ("out = a\n    for _ in range(300): out = [out]\n    return out", "failed"),
    "returns an object whose == raises": (
        "class Odd:\n        def __eq__(self, other): raise RuntimeError('no')\n    return Odd()",
        "failed",
    ),
    "returns an object whose repr raises": (
        "class Odd:\n        def __repr__(self): raise RuntimeError('no')\n    return Odd()",
        "failed",
    ),
    "prints megabytes": ("print('x' * 5_000_000)\n    " + RIGHT, "passed"),
    "writes to stderr": ("import sys; sys.stderr.write('y' * 100_000)\n    " + RIGHT, "passed"),
    "overwrites its input": ("a *= 2\n    " + RIGHT, "failed"),
    "sets the torch seed": ("torch.manual_seed(123)\n    " + RIGHT, "passed"),
    "sets the numpy seed": ("np.random.seed(3)\n    " + RIGHT, "passed"),
    "sets the random seed": ("import random; random.seed(3)\n    " + RIGHT, "passed"),
    "switches gradients off": ("torch.set_grad_enabled(False)\n    " + RIGHT, "failed"),
    "changes the default dtype": ("torch.set_default_dtype(torch.float64)\n    " + RIGHT, "passed"),
    "changes the thread count": ("torch.set_num_threads(1 + torch.get_num_threads())\n    " + RIGHT, "passed"),
    "patches torch": ("torch.softmax = None; F.softmax = None\n    " + RIGHT, "passed"),
    "patches a builtin": ("import builtins; builtins.divmod = max\n    " + RIGHT, "passed"),
    "patches a tensor method": ("torch.Tensor.mean = lambda *b, **c: 7\n    " + RIGHT, "passed"),
    "changes a global": ("global torch\n    torch = None\n    " + RIGHT, "passed"),
    "calls exit()": ("exit()", "crashed"),
    "calls quit()": ("quit()", "crashed"),
    "calls sys.exit": ("import sys; sys.exit(1)", "crashed"),
    "calls os._exit": ("import os; os._exit(1)", "crashed"),
    "calls os.abort": ("import os; os.abort()", "crashed"),
    "asks for input": ("input('how? ')", "crashed"),
    "recurses for ever": ("return mix(a, w, scale)", "crashed"),
    "raises an exception group": ("raise ExceptionGroup('many', [ValueError('one')])", "crashed"),
    "raises BaseException": ("raise BaseException('odd')", "crashed"),
    "raises an error whose text is huge": ("raise RuntimeError('z' * 1_000_000)", "crashed"),
    "raises an error without a text": ("assert False", "crashed"),
    "allocates far too much": ("return torch.empty(10**9, 10**9)", "crashed"),
    "loops for ever": ("while True: pass", "timed out"),
    "loops for ever and catches everything": (
        "while True:\n        try:\n            while True: pass\n        except BaseException: pass",
        "timed out",
    ),
    "loops for ever in finally": ("try:\n        return a\n    finally:\n        while True: a + a", "timed out"),
    "sleeps": ("import time; time.sleep(1000)", "timed out"),
    "waits for a lock": ("import threading; l = threading.Lock(); l.acquire(); l.acquire()", "timed out"),
    "prints for ever": ("while True: print('still here')", "timed out"),
    "changes the working folder": ("import os; os.chdir('/')\n    " + RIGHT, "passed"),
    "changes the environment": ("import os; os.environ['HOME'] = 'nowhere'\n    " + RIGHT, "passed"),
    "sets the recursion limit": ("import sys; sys.setrecursionlimit(100_000)\n    " + RIGHT, "passed"),
    "warns": ("import warnings; warnings.warn('careful')\n    " + RIGHT, "passed"),
    "opens figures": ("import matplotlib.pyplot as plt; plt.figure(); plt.plot([1])\n    " + RIGHT, "passed"),
    "replaces the print stream": ("import sys; sys.stdout = None\n    " + RIGHT, "passed"),
    "remembers its first answer": (
        "if not hasattr(mix, 'kept'):\n        mix.kept = ((scale * w).softmax(1)[:, :, None] * a).sum(1)"
        "\n    return mix.kept",
        "failed",
    ),
}


def world() -> dict[str, object]:
    """Everything that must be the same before and after."""
    import matplotlib.pyplot as plt

    return {
        "torch seed": torch.get_rng_state().tolist(),
        "numpy seed": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "gradients": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "patched": (torch.softmax, F.softmax, divmod, torch.Tensor.mean, input, os._exit),
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "recursion": sys.getrecursionlimit(),
        "figures": plt.get_fignums(),
        "streams": (sys.stdout, sys.stderr),
        "handler": signal.getsignal(signal.SIGINT),
        "trace": sys.gettrace(),
    }


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_code_is_survived_and_undone(sample, what, capsys):
    body, state = HOSTILE[what]
    code = f"def mix(a, w, scale=1.0):\n    if scale < 0:\n        raise ValueError('negative')\n    {body}\n"
    answer = define("mix", code, get("mix").target)
    before, start = world(), time.monotonic()
    verdict = check("mix", answer)
    assert verdict.state == state, verdict
    assert time.monotonic() - start < 15
    assert world() == before
    assert len(str(verdict)) < PRINT_LIMIT
    assert answer.__globals__["torch"] is torch
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_warning_filters_are_put_back():
    """Apart from the list above, because torch imports sympy at its leisure, and sympy adds filters of its own."""
    run_guarded(lambda: (warnings.simplefilter("error"), warnings.filterwarnings("ignore", "planted")), 1.0)
    assert not any(f[0] == "error" and f[3] is None for f in warnings.filters[:3])
    assert not any("planted" in str(f[1]) for f in warnings.filters)


def test_python_s_own_random_state_is_put_back():
    """Apart from the list above, because the shape checker of the tests draws random numbers itself."""
    before = random.getstate()
    run_guarded(lambda: random.seed(3), 1.0)
    assert random.getstate() == before


def test_there_are_at_least_thirty_kinds():
    assert len(HOSTILE) >= 30


def test_prints_are_kept_but_bounded(sample):
    code = f"def mix(a, w, scale=1.0):\n    print('look', a.shape); print('x' * 10**6)\n    {RIGHT}"
    printed = check("mix", define("mix", code, get("mix").target)).printed
    assert printed.startswith("look torch.Size([2, 5, 3])")
    assert "more characters" in printed
    assert len(printed) < PRINT_LIMIT + 100


def test_the_line_that_raised_is_the_learners():
    def fails():
        x = 1
        return x / 0

    outcome = run_guarded(fails, 5.0)
    assert isinstance(outcome.error, ZeroDivisionError)


def test_a_time_limit_leaves_no_thread_and_no_trace_behind():
    before = threading.active_count()
    outcome = run_guarded(lambda: time.sleep(30), 0.2)
    assert isinstance(outcome.error, TimeLimitExceeded)
    time.sleep(0.4)
    assert threading.active_count() <= before
    assert sys.gettrace() is None


def test_the_stop_button_is_not_mistaken_for_the_time_limit():
    threading.Timer(0.2, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        run_guarded(lambda: time.sleep(5), 30.0)


def test_a_limit_that_strikes_at_any_moment_is_contained():
    """The signal may land between the end of the function and the end of the guard; nothing may escape, ever."""
    handler = signal.getsignal(signal.SIGINT)
    for i in range(300):
        outcome = run_guarded(lambda: time.sleep(0.003), 0.002 + (i % 20) * 1e-4)
        assert outcome.error is None or outcome.timed_out
        assert signal.getsignal(signal.SIGINT) is handler
    time.sleep(0.3)  # a stray signal would end the test run here


def test_off_the_main_thread_code_still_runs():
    found = []
    thread = threading.Thread(target=lambda: found.append(run_guarded(lambda: 7, 1.0).value))
    thread.start()
    thread.join()
    assert found == [7]
