"""``make test``: run every part of the tests, one after the other, and end with a verdict.

``python tests/run_all.py unit browser`` runs the named parts only. The exit status is 1 if anything failed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
CELL_SECONDS = 600


@dataclass
class Part:
    """What one part of the tests came to."""

    name: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    remarks: list[str] = field(default_factory=list)

    def line(self) -> str:
        verdict = "FAILED" if self.failed else "passed" if self.passed else "SKIPPED"
        counts = f"{self.passed:6} passed {self.failed:4} failed {self.skipped:4} skipped"
        return f"  {self.name:<10} {verdict:<8} {counts} {self.seconds:6.0f} s   {' · '.join(self.remarks)}".rstrip()


def run(command: list[str], **environment: str) -> tuple[int, str]:
    """Run a command, show its output as it comes, and return (exit status, output)."""
    env = {**os.environ, **environment}
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return process.returncode, "".join(lines)


def pytest(part: Part, *arguments: str, **environment: str) -> dict[str, float]:
    """Run pytest and add what it counted to ``part``; a run that breaks down counts as one failure.

    Returns the seconds that each file took.
    """
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        status, _ = run([sys.executable, "-m", "pytest", "-q", f"--junit-xml={report}", *arguments], **environment)
        counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
        if report.exists():
            for suite in ElementTree.parse(report).iter("testsuite"):
                for name in counts:
                    counts[name] += int(suite.get(name, 0))
            for case in ElementTree.parse(report).iter("testcase"):
                file = case.get("classname", "").removesuffix(".ipynb").split(".")[-1]
                seconds[file] = seconds.get(file, 0.0) + float(case.get("time", 0))
                if (skipped := case.find("skipped")) is not None:
                    part.remarks.append(f"skipped: {skipped.get('message')}")
    failed = counts["failures"] + counts["errors"]
    part.remarks[:] = dict.fromkeys(part.remarks)
    part.passed += max(0, counts["tests"] - failed - counts["skipped"])
    part.skipped += counts["skipped"]
    part.failed += max(failed, int(status not in (0, 5)))  # 5: there was no test to run
    return seconds


def unit(part: Part) -> None:
    """The library, without the three parts below."""
    others = [f"--ignore=tests/{name}" for name in ("exercises", "lessons", "browser", "test_notebooks.py")]
    pytest(part, "tests", *others, *_spread(CORES), "--durations=5")


def exercises(part: Part) -> None:
    """The engine, and the proof that it tells right answers from wrong ones."""
    pytest(part, *_present("tests/exercises", "tests/lessons"), *_spread(CORES))
    status, output = run([sys.executable, "-m", "course_lib.exercises.killscore"], OMP_NUM_THREADS="1")
    part.passed, part.failed = part.passed + (status == 0), part.failed + (status != 0)
    score = [line for line in output.splitlines() if line.startswith("mistakes caught")]
    part.remarks += score or ["no kill score"]


def notebooks(part: Part) -> None:
    """Every notebook: what is saved in it, and whether it runs for a new learner without a network."""
    pytest(part, "tests/test_notebooks.py")
    if not NOTEBOOKS:
        part.remarks.append("there is no notebook")
        return
    from course_lib.authoring import new_learner  # only here: the other parts shall say it if the library is broken

    with new_learner() as environment:
        startup = Path(environment["IPYTHONDIR"], "profile_default", "startup")
        startup.mkdir(parents=True)
        shutil.copy(ROOT / "tests" / "no_network.py", startup / "00_no_network.py")
        side_by_side = min(CORES, len(NOTEBOOKS))
        seconds = pytest(
            part,
            *["-o", "addopts=", "--nbval-lax", "--nbval-current-env"],
            *[f"--nbval-cell-timeout={CELL_SECONDS}", *_spread(side_by_side), *map(str, NOTEBOOKS)],
            OMP_NUM_THREADS=str(CORES // side_by_side),
            **environment,
        )
    part.remarks += [f"{name} {taken:.0f} s" for name, taken in sorted(seconds.items())]


def browser(part: Part) -> None:
    """A learner's first hour in JupyterLab."""
    pytest(part, "tests/browser", "-rs")


def _present(*folders: str) -> list[str]:
    return [folder for folder in folders if (ROOT / folder).is_dir()]


def _spread(workers: int) -> list[str]:
    return ["-n", str(workers), "--dist", "loadfile"] if workers > 1 else []


PARTS: dict[str, Callable[[Part], None]] = {
    "unit": unit,
    "exercises": exercises,
    "notebooks": notebooks,
    "browser": browser,
}


def main() -> int:
    """Run the chosen parts and print the verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all without one")
    chosen = parser.parse_args().parts or list(PARTS)
    unknown = sorted(set(chosen) - set(PARTS))
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}; choose of {', '.join(PARTS)}")
    done = []
    for number, name in enumerate(chosen, 1):
        part = Part(name)
        print(f"\n== {number} of {len(chosen)}: {name}. {PARTS[name].__doc__.splitlines()[0]}\n", flush=True)
        start = time.perf_counter()
        try:
            PARTS[name](part)
        except Exception as error:
            part.failed += 1
            part.remarks.append(f"broke down: {type(error).__name__}: {error}")
        part.seconds = time.perf_counter() - start
        done.append(part)
    passed, failed, skipped = (sum(getattr(part, what) for part in done) for what in ("passed", "failed", "skipped"))
    print("\n== Verdict\n", *(part.line() for part in done), sep="\n")
    minutes = sum(part.seconds for part in done) / 60
    print(f"\n  {'FAILED' if failed else 'PASSED'} in {minutes:.1f} min\n")
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
