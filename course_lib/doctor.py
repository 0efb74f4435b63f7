"""Looks this machine over and says what to do about each thing that is not right.

``python -m course_lib.doctor`` in a terminal, ``doctor()`` in a notebook. It has to work where everything else is
broken: outside the checks only the standard library is imported, and a check that breaks becomes a finding itself.
"""

import html
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from course_lib import paths

TESTED_PYTHON = ((3, 11), (3, 13))
SYSTEM_PREFIXES = ("/usr/local", "/usr")
GIB = 2**30
WORDS = {"ok": "ok", "note": "note", "problem": "PROBLEM"}
COLOURS = {
    "ok": "var(--jp-success-color1,#388e3c)",
    "note": "var(--jp-warn-color1,#b26a00)",
    "problem": "var(--jp-error-color1,#d32f2f)",
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at; ``level`` is "ok", "note" (works, but worth knowing) or "problem", ``fix`` what to do."""

    level: str
    text: str
    fix: str = ""
    check: str = ""

    def __str__(self):
        lines = [f"[{WORDS[self.level]}]".ljust(10) + f"{self.check:12} {self.text}"]
        return "\n".join(lines + [" " * 10 + f"{'':12} To do: {self.fix}"] * bool(self.fix))


class Report:
    """All findings; shows itself as a table in a notebook and as lines elsewhere."""

    def __init__(self, findings):
        self.findings = list(findings)

    @property
    def healthy(self):
        """True when nothing stands in the way of the course."""
        return not any(finding.level == "problem" for finding in self.findings)

    @property
    def verdict(self):
        """One sentence: whether the course can start."""
        problems, notes = (sum(f.level == level for f in self.findings) for level in ("problem", "note"))
        also = f" {_count(notes, 'note')} above may be worth a look." if notes else ""
        if problems:
            return f"{_count(problems, 'problem')} to mend before the course runs well: see 'To do' above."
        return f"This machine is ready for the course.{also}"

    def __repr__(self):
        return "\n".join([*map(str, self.findings), self.verdict])

    def _repr_html_(self):
        cell = "text-align:left;vertical-align:top;padding:2px 10px 2px 0;white-space:normal;overflow-wrap:anywhere"
        rows = []
        for finding in self.findings:
            fix = f"<br><b>To do:</b> {html.escape(finding.fix)}" if finding.fix else ""
            rows.append(
                f'<tr><td style="{cell};color:{COLOURS[finding.level]};font-weight:600">{WORDS[finding.level]}</td>'
                f'<td style="{cell}">{html.escape(finding.check)}</td>'
                f'<td style="{cell}">{html.escape(finding.text)}{fix}</td></tr>'
            )
        table = f'<table style="margin:0">{"".join(rows)}</table>'
        return f'<div role="status">{table}<p><b>{html.escape(self.verdict)}</b></p></div>'

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/plain": repr(self), "text/html": self._repr_html_()}


def doctor(show=None):
    """Run every check (about ten seconds, most of it imports and the speed probe) and return a ``Report``.

    show: called with each ``Finding`` as soon as it is known; the terminal prints with it.
    """
    findings = []
    for name, check in CHECKS.items():
        found = _guarded(check)
        fix = "as above" if found.fix and found.fix in [earlier.fix for earlier in findings] else found.fix
        findings.append(Finding(found.level, found.text, fix, name))
        if show is not None:
            show(findings[-1])
        if name == "Python" and found.level == "problem":
            break  # nothing else can be right
    return Report(findings)


def _guarded(check):
    try:
        return check()
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        return Finding("problem", f"the package {error.name} is missing", _reinstall())
    except BaseException as error:  # a broken package may raise anything while it is imported, SystemExit included
        return Finding("problem", f"could not be looked at: {type(error).__name__}: {_first_line(error)}", _reinstall())


# --------------------------------------------------------------------------------------------------------- the checks


def check_python():
    """Version and word size of the interpreter."""
    version, (oldest, newest) = sys.version_info[:2], TESTED_PYTHON
    text = "%d.%d.%d at %s" % (*sys.version_info[:3], _short(sys.executable))  # noqa: UP031  (an old Python runs this line too)
    if version < oldest:
        fix = "install Python 3.11 or newer from python.org, delete the folder .venv and run `make lab` again"
        return Finding("problem", f"{text} is too old for the course", fix)
    if sys.maxsize < 2**32:
        return Finding("problem", f"{text} is a 32-bit Python, and torch needs 64 bits", "install the 64-bit Python")
    if version > newest:
        fix = "nothing, unless something breaks; then use Python {}.{}".format(*newest)
        return Finding("note", f"{text}; the course is tested on 3.11 to 3.13", fix)
    return Finding("ok", text)


def check_environment():
    """Whether this Python is the one that was set up for the course."""
    venv, root = paths.repo_root() / ".venv", paths.repo_root()
    if not (root / "notebooks").is_dir():
        return Finding("problem", f"there are no notebooks in {root}", "start Python inside the folder of the course")
    if venv.is_dir() and Path(sys.prefix).resolve() != venv.resolve():
        fix = "open the course with `make lab`, or choose its kernel in JupyterLab (Kernel > Change Kernel)"
        return Finding("note", f"this Python belongs to {sys.prefix}, not to the course's own {venv}", fix)
    if sys.prefix == sys.base_prefix and "CONDA_PREFIX" not in os.environ:
        return Finding("note", "this is the system's Python, without an environment of its own", "run `make lab`")
    return Finding("ok", f"the course has an environment of its own, {_short(sys.prefix)}")


def check_packages():
    """Every package that pyproject.toml asks for, in a version that it allows."""
    import tomllib
    from importlib import metadata

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((paths.repo_root() / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tested = {}
    for line in (paths.repo_root() / "constraints.txt").read_text(encoding="utf-8").splitlines():
        name, _, version = line.partition("==")
        tested[canonicalize_name(name)] = version.strip()
    missing, wrong, others = [], [], []
    for requirement in map(Requirement, project["dependencies"]):
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            missing.append(requirement.name)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} (needs {requirement.specifier})")
        elif version.split("+")[0] != tested.get(canonicalize_name(requirement.name)):
            others.append(f"{requirement.name} {version}")
    if missing or wrong:
        parts = [("missing", missing), ("wrong version", wrong)]
        text = "; ".join(f"{what}: {', '.join(names)}" for what, names in parts if names)
        return Finding("problem", text, _reinstall())
    text = f"{len(project['dependencies'])} packages in versions that the course allows"
    return Finding("ok", f"{text}; newer or older than the tested one: {', '.join(others)}" if others else text)


def check_torch():
    """torch imports, computes, and finds the accelerator that the machine has."""
    import torch

    from course_lib.profile import pick_device, profile

    try:
        device, name = pick_device(), profile()
    except ValueError as error:  # a COURSE_... variable that means nothing
        return Finding("problem", _first_line(error), "correct or unset that environment variable")
    try:
        total = float((torch.ones(3, 5, device=device) @ torch.ones(5, 2, device=device)).sum())
    except Exception as error:
        text = f"torch {torch.__version__} cannot compute on {device}: {type(error).__name__}: {_first_line(error)}"
        return Finding("problem", text, "set COURSE_DEVICE=cpu, or update the driver of the graphics card")
    if total != 30:
        return Finding("problem", f"torch {torch.__version__} computes 3*5*2 = {total} on {device}", _reinstall())
    text = f"torch {torch.__version__} computes on {device} (profile {name})"
    if device.type == "cpu" and not os.environ.get("COURSE_DEVICE") and shutil.which("nvidia-smi"):
        fix = "nothing is needed; to use the card, install the CUDA build of torch (pytorch.org, 'Start locally')"
        return Finding("note", f"{text}, although there seems to be an NVIDIA card", fix)
    return Finding("ok", text)


def check_torchvision():
    """torchvision is the one made for this torch, and imports."""
    from importlib import metadata

    torch_minor = int(metadata.version("torch").split(".")[1])
    version, wanted = metadata.version("torchvision"), f"0.{torch_minor + 15}"
    if ".".join(version.split(".")[:2]) != wanted:
        text = f"torchvision {version} does not belong to torch {metadata.version('torch')}, which needs {wanted}"
        return Finding("problem", text, f'{_pip()} "torchvision=={wanted}.*"')
    from course_lib import torchvision_shim

    stands_in = torchvision_shim.ensure()
    import torchvision

    text = f"torchvision {torchvision.__version__} imports"
    return Finding("ok", f"{text} without its compiled part, which the course does not need" if stands_in else text)


def check_threads():
    """torch uses the cores that it may use, and nobody else does."""
    import torch

    from course_lib import speed

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    text = f"torch uses {_count(threads, 'thread')} on {_count(cores, 'core')}"
    if threads == 1 < cores:
        named = [name for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if os.environ.get(name) == "1"]
        fix = f"unset {' and '.join(named)}" if named else "call torch.set_num_threads(n) with the number of cores"
        return Finding("note", f"{text}; training would be faster with more", fix)
    if speed.busy():
        fix = "close what computes in the background, or expect longer times"
        return Finding("note", f"{text}, but other programs keep them busy now", fix)
    return Finding("ok", text)


def check_memory():
    """Enough memory for a lesson, which stays under 4 GB."""
    import psutil

    memory = psutil.virtual_memory()
    text = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB are free"
    if memory.available < 2 * GIB:
        return Finding("problem", text, "close other programs and other notebooks; a lesson takes up to 4 GiB")
    if memory.available < 4 * GIB:
        return Finding("note", text, "keep one notebook open at a time: a lesson takes up to 4 GiB")
    return Finding("ok", text)


def check_disk():
    """Room for training runs, and the right to write where progress and runs are kept."""
    free = shutil.disk_usage(paths.repo_root()).free
    text = f"{free / GIB:.1f} GiB are free"
    for folder, variable in ((paths.state_dir(), "COURSE_STATE"), (paths.outputs_dir(), "COURSE_OUTPUTS")):
        problem = _cannot_write(folder)
        if problem:
            fix = f"make the folder writable, or set {variable} to one that is"
            return Finding("problem", f"{text}, but {folder} cannot be written ({problem}), so nothing is saved", fix)
    if free < GIB:
        return Finding("problem", text, "free some space: progress and training runs cannot be saved on a full disk")
    if free < 3 * GIB:
        return Finding("note", text, "MNIST and training runs take up to 2 GiB; old runs in outputs/ may be deleted")
    return Finding("ok", text)


def check_progress():
    """The file with the learner's progress can be read."""
    import json

    file = paths.state_dir() / "progress.json"
    if not file.exists():
        return Finding("ok", "nothing saved yet")
    try:
        exercises = json.loads(file.read_text(encoding="utf-8"))["exercises"].values()
        passed = sum(exercise.get("state") == "passed" for exercise in exercises)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        fix = "restore it from a backup, or go on: it is set aside, not deleted, and passed answers stay in my_code/"
        return Finding("problem", f"{file} is damaged ({type(error).__name__}: {_first_line(error)})", fix)
    return Finding("ok", f"{_count(passed, 'exercise')} passed so far ({_short(file)})")


def check_digits():
    """Handwritten digits to make videos of."""
    from course_lib.data.digits import load_digits

    digits = load_digits("auto", "all")
    if digits.source == "embedded":
        return Finding("ok", f"{len(digits):,} built-in digits (MNIST is not downloaded, and not needed)")
    return Finding("ok", f"{len(digits):,} digits from {digits.source}")


def check_checkpoints():
    """The trained models that the course ships, so that no lesson needs a training run."""
    from safetensors import SafetensorError, safe_open

    files = sorted(paths.checkpoints_dir().rglob("*.safetensors"))
    damaged = []
    for file in files:
        try:
            with safe_open(file, framework="pt") as checkpoint:
                checkpoint.keys()
        except (OSError, SafetensorError):
            damaged.append(file.name)
    if damaged:
        return Finding("problem", f"damaged: {', '.join(damaged)}", "restore them: git checkout -- data/checkpoints")
    if not files:
        fix = "fetch the course's files again (git checkout -- data/checkpoints), or train: make train"
        return Finding("note", f"no trained model in {paths.checkpoints_dir()}", fix)
    return Finding("ok", f"{_count(len(files), 'trained model')} shipped with the course")


def check_widgets():
    """Sliders and buttons: the Python half and the half that runs in JupyterLab."""
    from importlib import metadata

    import ipywidgets  # noqa: F401

    prefixes = [sys.prefix, str(Path.home() / ".local"), *SYSTEM_PREFIXES]
    extension = Path("share", "jupyter", "labextensions", "@jupyter-widgets", "jupyterlab-manager", "package.json")
    text = f"ipywidgets {metadata.version('ipywidgets')}, JupyterLab {metadata.version('jupyterlab')}"
    if not any((Path(prefix) / extension).is_file() for prefix in prefixes):
        fix = f"{_pip()} --force-reinstall --no-deps jupyterlab_widgets , then reload JupyterLab's page"
        return Finding("problem", f"{text}, but JupyterLab has not got the extension that draws widgets", fix)
    return Finding("ok", text)


def check_speed():
    """A probe of two seconds, behind every time that the course states."""
    from course_lib import speed

    busy, factor = speed.busy(), speed.factor(anew=True)
    text = f"{factor:.1f} times the reference machine's time: a minute of training there takes {speed.about(60)}"
    if busy:
        return Finding("note", f"{text}, while other programs compute too", "look again when they have finished")
    if factor > 4:
        return Finding("note", text, "plan for longer training: every cell that trains says how long it takes here")
    return Finding("ok", text)


CHECKS = {
    "Python": check_python,
    "environment": check_environment,
    "packages": check_packages,
    "torch": check_torch,
    "torchvision": check_torchvision,
    "threads": check_threads,
    "memory": check_memory,
    "disk": check_disk,
    "progress": check_progress,
    "digits": check_digits,
    "models": check_checkpoints,
    "widgets": check_widgets,
    "speed": check_speed,
}


def _cannot_write(folder):
    """Why nothing can be saved in ``folder``; empty when it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _short(path):
    """A path as seen from the course's folder; of one outside only the end, for saved pages must not tell more."""
    path, root = Path(path), paths.repo_root()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(Path("…", *path.parts[-2:]))


def _pip():
    return f'"{sys.executable}" -m pip install'


def _reinstall():
    if sys.prefix == sys.base_prefix and "CONDA_PREFIX" not in os.environ:
        return "run `make lab`, or the README's lines for machines without make: they set up the course's own Python"
    return f"in {paths.repo_root()}: {_pip()} -c constraints.txt -e ."


def _count(n, noun):
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _first_line(error):
    return (str(error).strip().splitlines() or ["no message"])[0][:200]


def main():
    """Print the findings as they come; the exit status is 1 if there is a problem."""
    print("Looking at this machine; about ten seconds.")
    report = doctor(show=lambda finding: print(finding, flush=True))
    print(report.verdict)
    return 0 if report.healthy else 1


if __name__ == "__main__":
    sys.exit(main())
