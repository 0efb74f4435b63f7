"""Tools for those who write lessons: ``python -m course_lib.authoring --help``.

A committed notebook is executed as an untouched learner would execute it, holds small static outputs with words for
each picture, and has cell ids that stay the same. ``execute`` makes it so, ``check`` says where it is not.
"""

import argparse
import contextlib
import html
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from course_lib import paths

LARGEST_NOTEBOOK = 1.5e6  # bytes; more makes GitHub slow to show it and every clone slow for ever
LONGEST_CELL = 25  # lines with something on them; what is longer belongs into the library or into two cells
CELL_SECONDS = 900
WIDGET_TYPES = ("application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json")
STUB_CELL = re.compile(r"@exercise\s*\n(?:def|class)\s+(\w+)")
STUB_PLACEHOLDER = re.compile(r"# stub: (\w+)\s*")


def stub_cell(name: str) -> str:
    """The whole cell that a notebook holds for the exercise ``name``."""
    from course_lib.exercises.catalogue import stub_source

    return "@exercise\n" + stub_source(name).strip()


# ------------------------------------------------------------------------------------------------------------ execute


@contextlib.contextmanager
def new_learner() -> Iterator[dict[str, str]]:
    """Environment variables under which a notebook meets somebody who starts today: nothing solved, nothing downloaded.

    Speeds are those of the reference machine, so that saved times do not depend on the author's machine.
    """
    with tempfile.TemporaryDirectory(prefix="course-learner-", ignore_cleanup_errors=True) as folder:
        yield {
            "COURSE_STATE": os.path.join(folder, "state"),
            "COURSE_DATA": os.path.join(folder, "datasets"),
            "COURSE_OUTPUTS": os.path.join(folder, "outputs"),
            "COURSE_DEVICE": "cpu",
            "COURSE_PROFILE": "laptop",
            "COURSE_SPEED": "1",
            "IPYTHONDIR": os.path.join(folder, "ipython"),
        }


def execute(path: Path) -> float:
    """Run a notebook in its folder, as a new learner, and save it with clean outputs; the seconds that it took.

    Stubs are brought up to date with the library first. Nothing is written when a cell fails.
    Raises: nbclient's ``CellExecutionError`` with the failing cell.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    renew_stubs(notebook)
    code_cells = [cell.id for cell in notebook.cells if cell.cell_type == "code"]

    def tell(cell, cell_index):
        if cell.id in code_cells and sys.stdout.isatty():
            print(f"\r{path.name}: cell {code_cells.index(cell.id) + 1} of {len(code_cells)} ", end="", flush=True)

    start = time.perf_counter()
    with new_learner() as environment:
        client = NotebookClient(
            notebook,
            timeout=CELL_SECONDS,
            kernel_name="python3",
            resources={"metadata": {"path": str(path.parent)}},
            record_timing=False,
            coalesce_streams=True,
            on_cell_start=tell,
        )
        client.execute(env={**os.environ, **environment})
    seconds = time.perf_counter() - start
    clean(notebook)
    _write(path, notebook)
    return seconds


def renew_stubs(notebook: Any) -> None:
    """Put the library's present stub into every exercise cell, and in place of a cell ``# stub: NAME``."""
    for cell in notebook.cells:
        found = STUB_CELL.match(cell.source) or STUB_PLACEHOLDER.fullmatch(cell.source)
        if cell.cell_type == "code" and found:
            cell.source = stub_cell(found[1])


def clean(notebook: Any) -> None:
    """Drop what dies with the kernel (widgets) and what changes from run to run without meaning anything."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    notebook.metadata["language_info"] = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"}
    for cell in notebook.cells:
        for key in ("execution", "trusted", "lines_to_next_cell", "collapsed", "scrolled"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if not any(kind in o.get("data", {}) for kind in WIDGET_TYPES)]
            cell.outputs = [kept for output in cell.outputs for kept in _pictures_with_words(output)]


def _pictures_with_words(output: Any) -> list[Any]:
    """A picture of ``course_lib.viz`` without its HTML, followed by its words to unfold.

    The HTML holds the picture a second time, with its alt text, for a live JupyterLab. A saved page does without:
    GitHub surely shows a PNG. But then neither JupyterLab nor nbconvert tells what it shows, so the words stand below.
    """
    from nbformat.v4 import new_output

    alt = output.get("metadata", {}).get("image/png", {}).get("alt")
    if not alt or output.data.pop("text/html", None) is None:
        return [output]
    style = "font-size:smaller;opacity:.75"
    page = f'<details style="{style}"><summary>the picture in words</summary>{html.escape(alt)}</details>'
    return [output, new_output("display_data", {"text/html": page, "text/plain": alt})]


def _write(path: Path, notebook: Any) -> None:
    import nbformat

    from course_lib.paths import write_atomically

    nbformat.validate(notebook)
    text = nbformat.writes(notebook, indent=1).rstrip("\n") + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomically(path, text)
        path.chmod(0o644)  # a temporary file is its owner's alone, a notebook is everybody's


# --------------------------------------------------------------------------------------- notebooks as Python scripts


def from_py(script: Path, path: Path) -> None:
    """Make or update a notebook from a script with ``# %% name`` and ``# %% name [markdown]`` cells.

    The name becomes the cell's id; without one the id is made from the cell's first words. Outputs of code that did not
    change are kept. A cell ``# stub: NAME`` becomes the stub of that exercise.
    """
    import jupytext
    import nbformat

    notebook = jupytext.reads(script.read_text(encoding="utf-8"), fmt="py:percent")
    renew_stubs(notebook)
    before = {}
    if path.exists():
        before = {(cell.id, cell.source): cell for cell in nbformat.read(path, as_version=4).cells}
    taken: set[str] = set()
    for cell in notebook.cells:
        name = cell.metadata.pop("name", None) or cell.metadata.pop("title", None) or cell.source
        cell["id"] = _unused(_slug(name), taken)
        old = before.get((cell["id"], cell.source))
        if cell.cell_type == "code" and old is not None:
            cell.outputs, cell.execution_count = old.outputs, old.execution_count
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata.pop("jupytext", None)
    clean(notebook)
    _write(path, notebook)


def to_py(path: Path, script: Path) -> None:
    """Write a notebook as a script that ``from_py`` turns into the same cells again."""
    import jupytext
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.metadata["title"] = cell.id
    notebook.metadata.pop("jupytext", None)
    script.write_text(jupytext.writes(notebook, fmt="py:percent"), encoding="utf-8")


def _slug(text: str) -> str:
    first = next((line for line in text.splitlines() if line.strip()), "")
    words = re.findall(r"[a-z0-9]+", first.lower())
    slug = "-".join(words)[:40].strip("-")
    return slug if slug[:1].isalpha() else f"cell-{slug}".rstrip("-")


def _unused(slug: str, taken: set) -> str:
    number, candidate = 2, slug
    while candidate in taken:
        number, candidate = number + 1, f"{slug}-{number}"
    taken.add(candidate)
    return candidate


# -------------------------------------------------------------------------------------------------------------- check


def problems(path: Path) -> list[str]:
    """Everything about a notebook file that a reader, a learner or a reviewer would stumble over; empty when clean."""
    import nbformat

    try:
        notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=nbformat.NO_CONVERT)
        nbformat.validate(notebook)
    except Exception as error:  # nbformat and its validators raise many kinds
        return [f"{path.name}: not a valid notebook: {str(error).splitlines()[0]}"]
    found = list(_problems_of_the_whole(path, notebook))
    for index, cell in enumerate(notebook.cells):
        place = cell.get("id", f"cell {index + 1}")
        kinds = {"code": _problems_of_code, "markdown": _problems_of_markdown}
        found += [f"{place}: {text}" for text in kinds.get(cell.cell_type, lambda *_: [])(cell, path)]
    return [f"{path.name}: {text}" for text in found]


def _problems_of_the_whole(path: Path, notebook: Any) -> Iterator[str]:
    from course_lib.exercises.catalogue import lessons

    size = path.stat().st_size
    if size > LARGEST_NOTEBOOK:
        yield f"{size / 1e6:.1f} MB, more than {LARGEST_NOTEBOOK / 1e6} MB; save fewer or smaller pictures"
    if "widgets" in notebook.metadata:
        yield "holds widget state; run `python -m course_lib.authoring execute`"
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "names another kernel than python3"
    ids = [cell.get("id", "") for cell in notebook.cells]
    for name in ids:
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name) or re.fullmatch(r"[0-9a-f]{8}(-.*)?", name):
            yield f"cell id {name!r} is not a name; give the cell one"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        yield "was not run from top to bottom in one go; run `python -m course_lib.authoring execute`"
    stubs = {found[1] for cell in code if (found := STUB_CELL.match(cell.source))}
    expected = {exercise.name for exercise in lessons().get(path.stem, ())}
    if stubs != expected:
        odd = ", ".join(sorted(stubs ^ expected))
        yield f"its exercises are not those of its catalogue in course_lib/exercises/lessons: {odd}"


def _problems_of_code(cell: Any, path: Path) -> Iterator[str]:
    lines = [line for line in cell.source.splitlines() if line.strip()]
    stub = STUB_CELL.match(cell.source)
    if not lines:
        yield "an empty cell"
    if stub is None and len(lines) > LONGEST_CELL:
        yield f"{len(lines)} lines of code, more than {LONGEST_CELL}"
    if any(line.lstrip().startswith("!") for line in lines):
        yield "a shell command, which not every system has"
    if stub is not None and cell.source.strip() != _stub_or_nothing(stub[1]):
        yield f"the stub of {stub[1]} is not the library's; run `python -m course_lib.authoring execute`"
    for output in cell.outputs:
        yield from _problems_of_output(output)


def _stub_or_nothing(name: str) -> str | None:
    with contextlib.suppress(ValueError):  # no such exercise
        return stub_cell(name)


def _problems_of_output(output: Any) -> Iterator[str]:
    if output.output_type == "error":
        yield f"ends in {output.ename}"
        return
    if output.output_type == "stream":
        if output.name == "stderr":
            yield f"writes to stderr: {output.text.strip().splitlines()[0][:100] if output.text.strip() else ''}"
        yield from _problems_of_text(output.text)
        return
    plain = output.data.get("text/plain", "")
    yield from _problems_of_text(plain)
    for kind in output.data:
        if kind in WIDGET_TYPES:
            yield "a widget was saved, which is dead without its kernel"
        if kind.startswith("image/"):
            alt = output.metadata.get(kind, {}).get("alt", "") or output.metadata.get("alt", "")
            if not (alt.strip() or (plain.strip() and not plain.startswith("<"))):
                yield "a picture without alt text; show it with course_lib.viz"
    page = output.data.get("text/html", "")
    yield from _problems_of_html(page)
    for tag in ("script", "style", "iframe"):
        if f"<{tag}" in page.lower():
            yield f"<{tag}> in an output, which JupyterLab and GitHub remove"
    if re.search(r"""(src|href)\s*=\s*["']https?:[^"']*\.(js|css|png|jpe?g|gif|svg|webp)""", page):
        yield "an output fetches something from the network"


def _problems_of_markdown(cell: Any, path: Path) -> Iterator[str]:
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", cell.source, flags=re.S)
    if not cell.source.strip():
        yield "an empty cell"
    if re.search(r"!\[\s*\]\(", prose):
        yield "a picture without alt text"
    yield from _problems_of_html(prose)
    for target in re.findall(r"\]\(([^)\s]+)", prose):
        file = target.split("#")[0]
        if file and not re.match(r"[a-z]+:", file) and not (path.parent / file).exists():
            yield f"a link to {target}, which does not exist"


def _problems_of_html(page: str) -> Iterator[str]:
    for tag in re.findall(r"<img\b[^>]*>", page):
        if not re.search(r"""\balt\s*=\s*["'][^"']*\w""", tag):
            yield "a picture without alt text"


def _problems_of_text(text: str) -> Iterator[str]:
    if re.search(r"\bat 0x[0-9a-f]{6,}", text):
        yield "prints a memory address, which differs on every run"
    if str(paths.repo_root()) in text or re.search(r"(^|[\s'\"(])(/home/|/root/|/Users/|[A-Z]:\\Users\\)", text):
        yield "prints a path of the author's machine"


# ------------------------------------------------------------------------------------------------------- command line


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status is 1 if something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m course_lib.authoring", description="Tools for writing lessons.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("stub", help="print the cell that a notebook holds for an exercise")
    command.add_argument("name")
    command = commands.add_parser("execute", help="run notebooks as a new learner and save clean outputs")
    command.add_argument("notebooks", nargs="+", type=Path)
    command = commands.add_parser("check", help="look for what must not be in a committed notebook")
    command.add_argument("notebooks", nargs="*", type=Path)
    command = commands.add_parser("from-py", help="make or update a notebook from a `# %%%% name` script")
    command.add_argument("script", type=Path)
    command.add_argument("notebook", type=Path)
    command = commands.add_parser("to-py", help="write a notebook as such a script")
    command.add_argument("notebook", type=Path)
    command.add_argument("script", type=Path)
    chosen = parser.parse_args(arguments)
    try:
        return _COMMANDS[chosen.command](chosen)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1


def _execute_all(chosen: argparse.Namespace) -> int:
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    status = 0
    for path in chosen.notebooks:
        try:
            print(f"\r{path}: ran in {execute(path):.0f} s", flush=True)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            print(f"\r{path}: not saved. {error}", flush=True)
            status = 1
    return status


def _check_all(chosen: argparse.Namespace) -> int:
    notebooks = chosen.notebooks or sorted((paths.repo_root() / "notebooks").glob("*.ipynb"))
    found = [problem for path in notebooks for problem in problems(path)]
    print("\n".join(found) if found else f"{len(notebooks)} notebooks are clean")
    return 1 if found else 0


_COMMANDS = {
    "stub": lambda chosen: print(stub_cell(chosen.name)) or 0,
    "execute": _execute_all,
    "check": _check_all,
    "from-py": lambda chosen: from_py(chosen.script, chosen.notebook) or 0,
    "to-py": lambda chosen: to_py(chosen.notebook, chosen.script) or 0,
}

if __name__ == "__main__":
    sys.exit(main())
