"""The promises of the repository itself: what is in it, what is not, and that its files agree."""

import os
import re
import shutil
import stat
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LARGEST_FILE = 1_600_000  # bytes: a notebook with its pictures, a small checkpoint
LARGEST_CHECKPOINT = 8_000_000
CONDA_NAMES = {"torch": "pytorch"}


def tracked() -> list[Path]:
    """The files that git has or would take; in an unpacked archive, all that are not obviously made here."""
    if shutil.which("git") and (ROOT / ".git").exists():
        listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
        return [ROOT / name for name in names if name and (ROOT / name).is_file()]
    skipped = {".venv", ".git", "outputs", "build", "__pycache__", "artifacts"}
    return [path for path in ROOT.rglob("*") if path.is_file() and not skipped & set(path.relative_to(ROOT).parts)]


TRACKED = tracked()


def text_of(path: Path) -> str | None:
    """The file's text; None for pictures and weights."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def requirements(lines: list[str]) -> dict[str, SpecifierSet]:
    return {requirement.name: requirement.specifier for requirement in map(Requirement, lines)}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


# ------------------------------------------------------------------------------------------------ files that must agree


def test_conda_users_get_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    lines = [line for line in environment["dependencies"] if isinstance(line, str)]
    by_pip = [line["pip"] for line in environment["dependencies"] if isinstance(line, dict)]
    conda = requirements([line for line in lines if line != "pip"])
    assert conda.pop("python") == SpecifierSet(PROJECT["requires-python"])
    wanted = requirements(PROJECT["dependencies"])
    assert conda == {CONDA_NAMES.get(name, name): versions for name, versions in wanted.items()}
    assert by_pip == [["-e ."]]
    assert environment["channels"] == ["conda-forge"]


@pytest.mark.parametrize("extra", [None, "test"])
def test_every_dependency_has_a_range_and_a_tested_version_inside_it(extra):
    lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    for name, versions in requirements(lines).items():
        assert versions, f"{name} has no range"
        assert not any(part.operator == "==" for part in versions), f"{name} is pinned; pins stand in constraints.txt"
        assert versions.contains(pins()[name]), f"{name} is tested with {pins()[name]}, outside {versions}"


def test_the_tested_torch_and_torchvision_belong_together():
    torch_minor, torchvision_minor = (int(pins()[name].split(".")[1]) for name in ("torch", "torchvision"))
    assert torchvision_minor == torch_minor + 15


def test_the_installed_versions_are_the_tested_ones():
    from importlib import metadata

    names = [*requirements(PROJECT["dependencies"]), *requirements(PROJECT["optional-dependencies"]["test"])]
    assert {name: metadata.version(name).split("+")[0] for name in names} == {name: pins()[name] for name in names}


def test_everything_that_the_library_imports_is_a_dependency():
    """Imports anywhere in the package, against what a learner gets who did not install the tests' extra."""
    import ast

    provider = {"pil": "pillow", "sklearn": "scikit-learn", "ipython": "ipykernel"}
    provider |= {"packaging": "jupyterlab", "cycler": "matplotlib"}
    known = {name.lower().replace("-", "_") for name in requirements(PROJECT["dependencies"])}
    for_authors = {"authoring.py": {"jupytext", "nbclient", "nbformat"}}
    for path in (ROOT / "course_lib").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""] if not node.level else []
            else:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"course_lib"}:
                package = provider.get(name.lower(), name.lower()).replace("-", "_")
                assert package in known or name in for_authors.get(path.name, ()), f"{path.name} imports {name}"


# ----------------------------------------------------------------------------------------------- what must not be there


def test_no_file_is_large():
    for path in TRACKED:
        limit = LARGEST_CHECKPOINT if "checkpoints" in path.parts else LARGEST_FILE
        assert path.stat().st_size <= limit, f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes"


FORBIDDEN = {
    "a path of somebody's machine": r"(?<![\w.~/-])/(?:work|farm|root|home|Users)/[A-Za-z.]\w*",
    "an option that names a package index": r"--(?:extra-)?index-url",
    "the address of a package index": r"https?://[^\s)\"']+/simple\b",
    "a wheel on somebody's disk": r"file:/{2}",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_of_one_machine_is_in_the_files(what):
    for path in TRACKED:
        found = re.search(FORBIDDEN[what], text_of(path) or "")
        assert not found, f"{path.relative_to(ROOT)}: {found[0]}"


@pytest.mark.parametrize("line", ["cd /{}/me", "pip --{}-url x", "http://a.b/pypi/{}/", "{}://wheels/torch"])
def test_the_patterns_find_what_they_are_for(line):
    words = ["home", "extra-index", "simple", "file"]  # put in here, so that this file does not hold what it forbids
    assert any(re.search(pattern, line.format(word)) for pattern in FORBIDDEN.values() for word in words)
    assert not any(re.search(pattern, line.format("else")) for pattern in FORBIDDEN.values())


def test_what_belongs_to_one_learner_is_ignored_by_git():
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    made = ["data/progress.json", "data/my_code/reflect.py", "data/speed.json", "data/MNIST/raw/x", "outputs/run/a.gif"]
    made += [".venv/x", "tests/artifacts/a.png", "notebooks/.ipynb_checkpoints/a.ipynb", "course_lib.egg-info/x"]
    done = subprocess.run(["git", "check-ignore", *made], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == made


# --------------------------------------------------------------------------------------------------- what must be there


def test_licence():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.startswith("MIT License") and "Road to Sora contributors" in text
    assert PROJECT["license"] == "MIT"


def test_make_knows_its_targets():
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    targets = ["lab", "test", "train", "notebooks", "bench", "lint", "doctor"]
    done = subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    used = ["jupyter lab", "run_all.py", "course_lib.training", "bench_data.py", "authoring execute"]
    used += ["ruff check", "course_lib.doctor"]
    assert [part for part in used if part not in done.stdout] == []


def test_ci_runs_the_readmes_commands():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR or os.name == "nt"
    commands = script.read_text(encoding="utf-8").splitlines()
    assert "make test" in commands and "make lint" in commands
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make lab" in readme and "make test" in readme


# ---------------------------------------------------------------------------------------------------------- its manners


def fresh(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-W", "always", "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_importing_the_library_is_quick_and_quiet():
    clock = "time.perf_counter()"
    done = fresh(f"import time, torch; start = {clock}; import course_lib; print({clock} - start)")
    assert done.returncode == 0 and "course_lib" not in done.stderr, done.stderr
    assert float(done.stdout) < 0.2


def test_what_every_notebook_imports_leaves_the_heavy_packages_alone():
    code = """
import sys
import course_lib.exercises
print(*sorted({"torchvision", "sklearn", "matplotlib", "transformers", "scipy", "pandas"} & set(sys.modules)))
"""
    done = fresh(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_every_module_imports_by_itself():
    """No module needs another one to be imported first. One process, so what they share is loaded once."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "course_lib").rglob("*.py"))
    ]
    code = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
    for mine in [m for m in sys.modules if m.startswith("course_lib")]:
        del sys.modules[mine]
"""
    start = time.perf_counter()
    done = fresh(code)
    assert done.returncode == 0, done.stderr
    warned = [line for line in done.stderr.splitlines() if "course_lib" in line and "Warning" in line]
    assert not warned, warned
    assert time.perf_counter() - start < 120
